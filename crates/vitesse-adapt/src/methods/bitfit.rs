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

use vitesse_model::ModelSpec;
use vitesse_train::method::{Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{norms, select};
use crate::pattern::{PATCH_EMBED, projections};

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
        let vit = spec.vit()?;
        let modules = projections(vit).into_iter().map(|(_, _, path)| path);
        let biases: Vec<String> = modules
            .chain(norms(vit))
            .chain([PATCH_EMBED.to_owned()])
            .map(|module| format!("{module}.bias"))
            .collect();
        select(NAME, spec, |name| biases.iter().any(|bias| bias == name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::planned;
    use super::*;

    #[test]
    fn the_count_is_the_published_one() {
        let trainable = planned(NAME, &[]).trainable;
        assert_eq!(trainable.method_parameters, 102_912);
        assert!(trainable.method.iter().all(|name| name.ends_with(".bias")));
    }
}
