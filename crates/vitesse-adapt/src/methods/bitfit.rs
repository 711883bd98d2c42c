//! BITFIT — nothing but the biases.
//!
//! **Paper.** E. Ben Zaken, S. Ravfogel, Y. Goldberg, *BitFit*, ACL 2022.
//!
//! **When.** A strong and very small baseline; nothing to merge.
//!
//! **Changes** the values of all biases: patch embedding, norms, projections. Not class token, not positions.
//!
//! **Cost.** None.
//!
//! **Deviations.** None.

use serde::{Deserialize, Serialize};
use vitesse_model::{ModelSpec, Tensors};

use super::{Adapted, select};
use crate::Result;

/// BitFit has nothing to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Adapted> {
        let sites = spec.sites();
        let projections = sites.projections().map(|(_, _, projection)| projection);
        let biases: Vec<String> = projections
            .chain(sites.embedding())
            .map(|projection| projection.name)
            .chain(sites.norms())
            .map(|module| format!("{module}.bias"))
            .collect();
        select("bitfit", spec, tensors, |name| {
            biases.iter().any(|bias| bias == name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::counted;

    #[test]
    fn the_count_is_the_published_one() {
        let trainable = counted("bitfit", &[]).trainable;
        assert_eq!(trainable.method_parameters, 102_912);
        assert!(trainable.method.iter().all(|name| name.ends_with(".bias")));
    }
}
