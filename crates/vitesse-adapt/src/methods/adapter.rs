//! ADAPTER — bottlenecks with an activation after sub-layers.
//!
//! **Papers.** N. Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, ICML 2019 (after both sub-layers); J. Pfeiffer
//! et al., *AdapterFusion*, EACL 2021 (after the perceptron alone). `y = x + U σ(D x + d) + u`, inside the residual
//! branch.
//!
//! **When.** To compare; RepAdapter is as accurate and can be merged.
//!
//! **Changes** ops `bottleneck` at `attn.out` and `mlp.out`. Cannot be folded: it is not linear.
//!
//! **Cost.** `2·C·h` multiply-adds for each token and adapter; small batches feel the extra steps most.
//!
//! **Deviations.** `D` starts Xavier-uniform and `U` at zero, the identity. (All four tensors at zero, as a published comparison
//! has it, leaves every gradient but that of `u` at zero for ever.)

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{Activation, Bottleneck, OpKind};
use vitesse_model::{ModelSpec, Site, Tensors};
use vitesse_train::method::{Finished, Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{fold, insert, layers_with, op};

/// The name on the command line and in files.
pub const NAME: &str = "adapter";

settings! {
    /// How adapters are set up.
    pub struct Config {
        /// `pfeiffer`: after the perceptron; `houlsby`: after attention too.
        pub placement: Placement = Placement::Pfeiffer,
        /// Width between the two projections.
        pub hidden: usize = 8,
        /// What stands between them: `gelu`, `quick-gelu`, `relu` or `none`.
        pub activation: Activation = Activation::Gelu,
        /// Factor of the adapter's contribution.
        pub scale: f64 = 1.0,
        /// Probability with which a hidden unit is zeroed in training.
        pub dropout: f64 = 0.0,
    }
}

/// After which sub-layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// After the perceptron.
    Pfeiffer,
    /// After attention and after the perceptron.
    Houlsby,
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let sites: &[Site] = match self.placement {
            Placement::Pfeiffer => &[Site::MlpOut],
            Placement::Houlsby => &[Site::AttnOut, Site::MlpOut],
        };
        let kind = OpKind::Bottleneck(Bottleneck {
            hidden: self.hidden,
            groups: 1,
            activation: self.activation,
            scale: self.scale,
            learned_scale: false,
            norm: None,
            from: None,
            dropout: self.dropout,
        });
        let ops = sites
            .iter()
            .flat_map(|&site| layers_with(spec, site).map(move |layer| (site, layer)))
            .map(|(site, layer)| op(site, layer, kind.clone()))
            .collect();
        insert(NAME, spec, sites, ops)
    }

    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        fold(spec, tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{planned, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(planned(NAME, &[]).trainable.method_param_count, 156_768);
        let houlsby = planned(NAME, &[("placement", "houlsby")]);
        assert_eq!(houlsby.trainable.method_param_count, 313_536);
        assert!(refusal(NAME, &[("hidden", "0")]).contains("hidden must be from 1"));
    }
}
