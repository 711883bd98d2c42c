//! LINEAR — nothing but the head: a linear probe.
//!
//! **Paper.** None of its own; the baseline of every comparison.
//!
//! **When.** First: it says how far the features go as they are.
//!
//! **Changes** the head.
//!
//! **Cost.** None.
//!
//! **Deviations.** None.

use vitesse_model::ModelSpec;
use vitesse_train::method::{Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::select;

/// The name on the command line and in files.
pub const NAME: &str = "linear";

settings! {
    /// A linear probe has nothing to set.
    pub struct Config {}
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn recipe(&self) -> &'static [(&'static str, f64)] {
        &[("optim.lr", 1e-2), ("model.drop_path", 0.0)]
    }

    fn eval_mode(&self) -> bool {
        true
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        select(NAME, spec, |_| false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::planned;
    use super::*;

    #[test]
    fn only_the_head_learns() {
        let trainable = planned(NAME, &[]).trainable;
        assert_eq!(trainable.method_param_count, 0);
        assert_eq!(trainable.head, ["head.weight", "head.bias"]);
    }
}
