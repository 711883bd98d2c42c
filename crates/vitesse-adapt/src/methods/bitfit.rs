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

use vitesse_model::{ModelSpec, Site};
use vitesse_train::method::{Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{no_place, select};

/// The name on the command line and in files.
pub const NAME: &str = "bitfit";

settings! {
    /// BitFit has nothing to set.
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
        let sites = spec.sites();
        let projections = sites.projections().map(|(_, _, projection)| projection);
        let biases: Vec<String> = projections
            .chain(sites.embedding())
            .map(|projection| projection.name)
            .chain(sites.norms())
            .map(|module| format!("{module}.bias"))
            .collect();
        if biases.is_empty() {
            return no_place(NAME, spec, &Site::PROJECTIONS);
        }
        select(NAME, spec, |tensor| biases.contains(&tensor.name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::planned;
    use super::*;

    #[test]
    fn the_count_is_the_published_one() {
        let trainable = planned(NAME, &[]).trainable;
        assert_eq!(trainable.method_param_count, 102_912);
        assert!(trainable.method.iter().all(|name| name.ends_with(".bias")));
    }
}
