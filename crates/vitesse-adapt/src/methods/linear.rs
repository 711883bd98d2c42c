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

use serde::{Deserialize, Serialize};
use vitesse_model::{ModelSpec, Tensors};

use super::{Adapted, select};
use crate::Result;

/// A linear probe has nothing to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Adapted> {
        select("linear", spec, tensors, |_| false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::counted;

    #[test]
    fn only_the_head_learns() {
        let trainable = counted("linear", &[]).trainable;
        assert_eq!(trainable.method_parameters, 0);
        assert_eq!(trainable.head, ["head.weight", "head.bias"]);
    }
}
