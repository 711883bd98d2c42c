//! REPADAPTER — linear bottlenecks in front of projections, folded into them after training.
//!
//! **Paper.** G. Luo, M. Huang, Y. Zhou, X. Sun, G. Jiang, Z. Wang, R. Ji, *Towards Efficient Visual Adaption via Structural
//! Re-parameterization*, 2023. `y = x + s · (B (A x + a) + β)` with `B` in groups (equation 8); no activation, so that
//! it is one affine map (equations 5 to 7).
//!
//! **When.** The default choice: accurate with a few hundred images, and free once merged.
//!
//! **Changes** ops `bottleneck` at `attn.in` and `mlp.in`; after merging, only the values of `qkv` and `fc1`.
//!
//! **Cost.** `C·h·(1 + 1/G)` multiply-adds for each token and adapter until merged, nothing after.
//!
//! **Deviations.** The width follows the model and `G` can be chosen, LayerScale or a projection without a bias are no
//! obstacle, another placement than the two named ones is refused (the released program takes any for `repattn`), and the
//! scale is part of the file. Positions after and parallel, and an activation, are the paper's ablations.

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{Activation, Bottleneck, OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Tensors};
use vitesse_train::method::{Finished, Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{fold, insert, layers_with, needs_projections, op, refuse};
use crate::pattern::Targets;

/// The name on the command line and in files.
pub const NAME: &str = "repadapter";

settings! {
    /// How RepAdapter is set up.
    pub struct Config {
        /// `repblock`: before attention and before the perceptron; `repattn` and `repmlp`: before one of them.
        pub placement: Placement = Placement::Repblock,
        /// Projections that get one in front instead, by PEFT's rules for `target_modules`, such as `all-linear` or
        /// `qkv,attn.proj`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub targets: Option<Targets> = None,
        /// Width between the two projections.
        pub hidden: usize = 8,
        /// Groups of the up projection; divides `hidden` and the model's width.
        pub groups: usize = 2,
        /// Constant factor of the adapter's contribution; the paper searches 0.1, 0.5, 1, 5, 10 by validation accuracy.
        pub scale: f64 = 1.0,
        /// Probability with which a hidden unit is zeroed in training.
        pub dropout: f64 = 0.1,
        /// `before` the sub-layer, `after` it (folds too), or `parallel` to it (does not).
        pub position: Position = Position::Before,
        /// What stands between the two projections: `none`, or for comparison `gelu`, `quick-gelu`, `relu`, none of which
        /// folds.
        pub activation: Activation = Activation::None,
    }
}

/// Which sub-layers get an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Attention and perceptron: two adapters a block.
    Repblock,
    /// Attention: one adapter a block.
    Repattn,
    /// The perceptron: one adapter a block.
    Repmlp,
}

/// Where an adapter stands beside its sub-layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Between the norm and the first projection.
    Before,
    /// Between the last projection and the residual sum.
    After,
    /// From the stream before the sub-layer to its result; cannot be folded.
    Parallel,
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        match &self.targets {
            Some(targets) => {
                let ops = self.before_projections(targets, spec)?;
                insert(NAME, spec, &Site::PROJECTIONS, ops)
            }
            None => {
                let places = self.places();
                let sites: Vec<Site> = places.iter().map(|(site, _)| *site).collect();
                let ops = places.into_iter().flat_map(|(site, from)| {
                    layers_with(spec, site).map(move |layer| op(site, layer, self.bottleneck(from)))
                });
                insert(NAME, spec, &sites, ops.collect())
            }
        }
    }

    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        fold(spec, tensors)
    }
}

impl Config {
    fn bottleneck(&self, from: Option<Site>) -> OpKind {
        OpKind::Bottleneck(Bottleneck {
            hidden: self.hidden,
            groups: self.groups,
            activation: self.activation,
            scale: self.scale,
            learned_scale: false,
            norm: None,
            from,
            dropout: self.dropout,
        })
    }

    /// Where adapters stand beside sub-layers, and where they read if not there.
    fn places(&self) -> Vec<(Site, Option<Site>)> {
        let (attn, mlp) = match self.position {
            Position::Before => ((Site::AttnIn, None), (Site::MlpIn, None)),
            Position::After => ((Site::AttnOut, None), (Site::MlpOut, None)),
            Position::Parallel => (
                (Site::AttnOut, Some(Site::BlockIn)),
                (Site::MlpOut, Some(Site::Mid)),
            ),
        };
        match self.placement {
            Placement::Repblock => vec![attn, mlp],
            Placement::Repattn => vec![attn],
            Placement::Repmlp => vec![mlp],
        }
    }

    fn before_projections(&self, targets: &Targets, spec: &ModelSpec) -> Result<Vec<OpSpec>> {
        if self.position != Position::Before {
            return refuse(
                NAME,
                "where `targets` names projections, `position` must be `before`",
            );
        }
        needs_projections(NAME, spec)?;
        let projections = targets.projections(spec)?;
        Ok(projections
            .into_iter()
            .filter_map(|(site, layer)| Some(op(site.input()?, layer, self.bottleneck(None))))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{begun, planned, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        let block = planned(NAME, &[]).trainable;
        assert_eq!(
            (block.method_param_count, block.method_matrix_param_count),
            (239_808, 221_184)
        );
        let attn = planned(NAME, &[("placement", "repattn")]).trainable;
        assert_eq!(
            (attn.method_param_count, attn.method_matrix_param_count),
            (119_904, 110_592)
        );
        assert_eq!(block.head_param_count, 100 * 769);
        assert!(
            block
                .to_string()
                .contains("239808 parameters learn in 96 tensors"),
            "{block}"
        );
    }

    #[test]
    fn every_linear_and_the_ablations_have_their_sites() {
        let sites = |settings: &[(&str, &str)]| -> Vec<Site> {
            let mut sites: Vec<Site> = begun(NAME, settings)
                .spec
                .ops
                .iter()
                .filter(|op| op.layer == Some(2))
                .map(|op| op.site)
                .collect();
            sites.sort();
            sites
        };
        assert_eq!(sites(&[("hidden", "4")]), [Site::AttnIn, Site::MlpIn]);
        assert_eq!(
            sites(&[("targets", "all-linear")]),
            [Site::AttnIn, Site::AttnHeads, Site::MlpIn, Site::MlpHidden]
        );
        assert_eq!(
            sites(&[("position", "parallel"), ("placement", "repmlp")]),
            [Site::MlpOut]
        );
        assert_eq!(
            sites(&[("position", "after"), ("activation", "gelu")]),
            [Site::AttnOut, Site::MlpOut]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(refusal(NAME, &[("groups", "5")]).contains("groups is 5, but must divide both"));
        assert!(refusal(NAME, &[("placement", "repboth")]).contains("repblock"));
        assert!(refusal(NAME, &[("scale", "big")]).contains("big"));
        let settings = [("targets", "qkv"), ("position", "after")];
        assert!(refusal(NAME, &settings).contains("must be `before`"));
        assert!(refusal(NAME, &[("targets", "query")]).contains("`query` names no module"));
    }
}
