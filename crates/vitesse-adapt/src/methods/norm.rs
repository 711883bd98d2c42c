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

use vitesse_model::{ModelSpec, Site};
use vitesse_train::method::{Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{no_place, select};

/// The name on the command line and in files.
pub const NAME: &str = "norm";

settings! {
    /// Norm tuning has nothing to set.
    pub struct Config {}
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recipe(&self) -> &'static [(&'static str, f64)] {
        &[("optim.lr", 5e-3)]
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let tensors: Vec<String> = spec
            .sites()
            .norms()
            .iter()
            .flat_map(|norm| [format!("{norm}.weight"), format!("{norm}.bias")])
            .collect();
        if tensors.is_empty() {
            return no_place(NAME, spec, &[Site::AttnIn, Site::MlpIn]);
        }
        select(NAME, spec, |tensor| tensors.contains(&tensor.name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::planned;
    use super::*;

    #[test]
    fn all_norms_and_nothing_else_learn() {
        let trainable = planned(NAME, &[]).trainable;
        assert_eq!(trainable.method_param_count, 25 * 2 * 768);
        assert!(trainable.method.iter().all(|name| name.contains("norm")));
    }
}
