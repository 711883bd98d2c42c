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

use super::{Adapted, insert, layers_with, op};
use crate::Result;

const NAME: &str = "adapter";

/// How adapters are set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// After which sub-layers. Default `pfeiffer`.
    pub placement: Placement,
    /// Width between the two projections. Default 8.
    pub hidden: usize,
    /// What stands between them. Default `gelu`.
    pub activation: Activation,
    /// What the adapter's contribution is multiplied by. Default 1.
    pub scale: f64,
    /// Probability with which a hidden unit is zeroed in training. Default 0.
    pub dropout: f64,
}

/// After which sub-layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// After the perceptron.
    #[default]
    Pfeiffer,
    /// After attention and after the perceptron.
    Houlsby,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            placement: Placement::default(),
            hidden: 8,
            activation: Activation::Gelu,
            scale: 1.0,
            dropout: 0.0,
        }
    }
}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
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
        insert(NAME, spec, tensors, ops, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{counted, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(counted(NAME, &[]).trainable.method_parameters, 156_768);
        let houlsby = counted(NAME, &[("placement", "houlsby")]);
        assert_eq!(houlsby.trainable.method_parameters, 313_536);
        assert!(refusal(NAME, &[("hidden", "0")]).contains("hidden must be from 1"));
    }
}
