//! FULL — everything.
//!
//! **Paper.** None of its own; ordinary fine-tuning.
//!
//! **When.** With enough images and time; the yardstick of the other methods.
//!
//! **Changes** every tensor, so that nothing is saved by keeping one base for many tasks.
//!
//! **Cost.** None afterwards; the most while learning.
//!
//! **Deviations.** None.

use vitesse_model::ModelSpec;
use vitesse_train::method::{Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::select;

/// The name on the command line and in files.
pub const NAME: &str = "full";

settings! {
    /// Full tuning has nothing to set.
    pub struct Config {}
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recipe(&self) -> &'static [(&'static str, f64)] {
        &[("optim.lr", 1e-4), ("optim.weight_decay", 1e-2)]
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        select(NAME, spec, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::planned;
    use super::*;

    #[test]
    fn everything_learns() {
        let trainable = planned(NAME, &[]).trainable;
        assert_eq!(trainable.share(), 1.0);
        assert_eq!(trainable.method_param_count, 85_875_556 - 76_900);
    }
}
