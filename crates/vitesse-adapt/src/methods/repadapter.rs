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
use vitesse_model::{ModelSpec, Site, Sites, Tensors};

use super::{Adapted, insert, layers_with, op, refuse};
use crate::Result;
use crate::pattern::Targets;

const NAME: &str = "repadapter";

/// How RepAdapter is set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which sub-layers get one. Default `repblock`.
    pub placement: Placement,
    /// Projections that get one in front, by PEFT's rules for `target_modules`, in the place of `placement`. Default: none
    /// are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// Width between the two projections. Default 8.
    pub hidden: usize,
    /// Groups of the up projection; divides `hidden` and the model's width. Default 2.
    pub groups: usize,
    /// What the adapter's contribution is multiplied by, a constant. Default 1; the paper searches 0.1, 0.5, 1, 5, 10.
    pub scale: f64,
    /// Probability with which a hidden unit is zeroed in training. Default 0.1.
    pub dropout: f64,
    /// Where beside the sub-layer. Default `before`.
    pub position: Position,
    /// What stands between the two projections; anything but `none` keeps it from being folded. Default `none`.
    pub activation: Activation,
}

/// Which sub-layers get an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Attention and perceptron: two adapters a block.
    #[default]
    Repblock,
    /// Attention: one adapter a block.
    Repattn,
    /// The perceptron: one adapter a block.
    Repmlp,
}

/// Where an adapter stands beside its sub-layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Between the norm and the first projection.
    #[default]
    Before,
    /// Between the last projection and the residual sum.
    After,
    /// From the stream before the sub-layer to its result; cannot be folded.
    Parallel,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            placement: Placement::default(),
            targets: None,
            hidden: 8,
            groups: 2,
            scale: 1.0,
            dropout: 0.1,
            position: Position::default(),
            activation: Activation::None,
        }
    }
}

impl Config {
    /// The scales that the paper searches, by validation accuracy.
    pub const SCALES: [f64; 5] = [0.1, 0.5, 1.0, 5.0, 10.0];

    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
        let ops = match &self.targets {
            Some(targets) => self.before_projections(targets, spec)?,
            None => self.beside_sub_layers(spec),
        };
        insert(NAME, spec, tensors, ops, seed)
    }

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

    fn beside_sub_layers(&self, sites: &dyn Sites) -> Vec<OpSpec> {
        let (attn, mlp) = match self.position {
            Position::Before => ((Site::AttnIn, None), (Site::MlpIn, None)),
            Position::After => ((Site::AttnOut, None), (Site::MlpOut, None)),
            Position::Parallel => (
                (Site::AttnOut, Some(Site::BlockIn)),
                (Site::MlpOut, Some(Site::Mid)),
            ),
        };
        let places = match self.placement {
            Placement::Repblock => vec![attn, mlp],
            Placement::Repattn => vec![attn],
            Placement::Repmlp => vec![mlp],
        };
        places
            .into_iter()
            .flat_map(|(site, from)| {
                layers_with(sites, site).map(move |layer| op(site, layer, self.bottleneck(from)))
            })
            .collect()
    }

    fn before_projections(&self, targets: &Targets, sites: &dyn Sites) -> Result<Vec<OpSpec>> {
        if self.position != Position::Before {
            return refuse(
                NAME,
                "where `targets` names projections, `position` must be `before`",
            );
        }
        let projections = targets.projections(sites)?;
        Ok(projections
            .into_iter()
            .filter_map(|(site, layer)| Some(op(site.input()?, layer, self.bottleneck(None))))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{applied, counted, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        let block = counted(NAME, &[]).trainable;
        assert_eq!(
            (block.method_parameters, block.method_weights),
            (239_808, 221_184)
        );
        let attn = counted(NAME, &[("placement", "repattn")]).trainable;
        assert_eq!((attn.method_parameters, attn.method_weights), (119_904, 110_592));
        assert_eq!(block.head_parameters, 100 * 769);
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
            let mut sites: Vec<Site> = applied(NAME, settings)
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
        assert!(refusal(NAME, &[("groups", "5")]).contains("5 groups divide not both"));
        assert!(refusal(NAME, &[("placement", "repboth")]).contains("repblock"));
        assert!(refusal(NAME, &[("scale", "big")]).contains("big"));
        let settings = [("targets", "qkv"), ("position", "after")];
        assert!(refusal(NAME, &settings).contains("must be `before`"));
        assert!(refusal(NAME, &[("targets", "query")]).contains("`query` names no module"));
    }
}
