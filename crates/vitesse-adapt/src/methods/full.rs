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

use serde::{Deserialize, Serialize};
use vitesse_model::{ModelSpec, Tensors};

use super::{Adapted, select};
use crate::Result;

/// Full tuning has nothing to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Adapted> {
        select("full", spec, tensors, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::counted;

    #[test]
    fn everything_learns() {
        let trainable = counted("full", &[]).trainable;
        assert_eq!(trainable.share(), 1.0);
        assert_eq!(trainable.method_parameters, 85_875_556 - 76_900);
    }
}
