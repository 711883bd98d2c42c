//! The size of the weights: `Σ|w|^p` over all that is cut with a unit.
//!
//! Paper: Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017 (L1 of one layer); Fang et al., *DepGraph*, CVPR
//! 2023, equation 5 (over the whole group). When to use it: never wrong as a first guess, needs no data. Cost: one pass over the
//! weights. Deviation: none from DepGraph's program; it takes no root, and neither does this.

use serde::{Deserialize, Serialize};
use vitesse_model::Tensors;

use super::{Criterion, over_weights};
use crate::Result;
use crate::structure::units::Group;

/// By the size of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Magnitude {
    /// What is summed.
    #[serde(default)]
    pub norm: Norm,
}

/// What of a weight is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// `|w|`.
    L1,
    /// `w²`.
    #[default]
    L2,
}

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn scores(&self, tensors: &Tensors, group: &Group) -> Result<Vec<f64>> {
        let of = |weight: &f32| match self.norm {
            Norm::L1 => f64::from(weight.abs()),
            Norm::L2 => f64::from(*weight).powi(2),
        };
        over_weights(
            self.name(),
            group,
            tensors,
            |_, weights| Ok(weights.iter().map(of).collect()),
            |sum| sum,
        )
    }
}
