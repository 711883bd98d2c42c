//! NORM — nothing but the layer norms.
//!
//! **Papers.** A popular baseline; S. Basu et al., *Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning*, AAAI 2024,
//! section 3.
//!
//! **When.** The smallest change of features that is worth trying before an adapter.
//!
//! **Changes** the values of all layer norms, weights and biases.
//!
//! **Cost.** None.
//!
//! **Deviations.** None.

use serde::{Deserialize, Serialize};
use vitesse_model::{ModelSpec, Tensors};

use super::{Adapted, select};
use crate::Result;

/// Norm tuning has nothing to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Adapted> {
        let norms = spec.sites().norms();
        select("norm", spec, tensors, |name| {
            norms.iter().any(|norm| {
                name.strip_prefix(norm.as_str())
                    .is_some_and(|end| matches!(end, ".weight" | ".bias"))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::counted;

    #[test]
    fn all_norms_and_nothing_else_learn() {
        let trainable = counted("norm", &[]).trainable;
        assert_eq!(trainable.method_parameters, 25 * 2 * 768);
        assert!(trainable.method.iter().all(|name| name.contains("norm")));
    }
}
