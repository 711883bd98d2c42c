//! PARTIAL — the last blocks, the final norm and the head.
//!
//! **Paper.** None of its own; "Partial-k" of the comparisons in *Visual Prompt Tuning* (VPT, ECCV 2022).
//!
//! **When.** Where the new images differ in kind, and memory for all gradients is short.
//!
//! **Changes** the values of the last `blocks` blocks and of the final norm.
//!
//! **Cost.** None.
//!
//! **Deviations.** None. A model whose last blocks share matrices or norms with earlier ones is refused, because those would
//! change with them.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use vitesse_model::ops;
use vitesse_model::spec::TensorSpec;
use vitesse_model::{ModelSpec, Site, Sites, Tensors};

use super::{Adapted, refuse};
use crate::{Result, Trainable};

const NAME: &str = "partial";

/// How many blocks learn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Blocks, counted from the last. Default 1.
    pub blocks: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { blocks: 1 }
    }
}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Adapted> {
        let (sites, depth) = (spec.sites(), spec.depth());
        if !(1..=depth).contains(&self.blocks) {
            return refuse(
                NAME,
                format!("`blocks` must be from 1 to {depth}, but is {}", self.blocks),
            );
        }
        let first = depth - self.blocks;
        let places = Site::PROJECTIONS.into_iter().chain([Site::AttnIn, Site::MlpIn]);
        let shared = places
            .flat_map(|site| (first..depth).map(move |layer| (site, layer)))
            .any(|(site, layer)| sites.sharing(site, layer).iter().any(|&other| other < first));
        if shared {
            return refuse(
                NAME,
                "the last blocks of this model share matrices or norms with earlier ones, so they cannot learn alone",
            );
        }
        // Ops that stand there belong to whoever put them there.
        let ops: HashSet<String> = ops::tensors(spec).into_iter().map(|tensor| tensor.name).collect();
        let learns = |tensor: &TensorSpec| tensor.depth > first && !ops.contains(&tensor.name);
        Ok(Adapted {
            spec: spec.clone(),
            tensors: tensors.clone(),
            trainable: Trainable::select(NAME, spec, learns)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{counted, refusal};
    use super::*;

    #[test]
    fn the_last_blocks_learn() {
        let trainable = counted(NAME, &[("blocks", "2")]).trainable;
        let block = 4 * 768 + 3 * 768 * 769 + 768 * 769 + 2 * 4 * 768 * 768 + 5 * 768;
        assert_eq!(trainable.method_parameters, 2 * block + 2 * 768);
        let of_these = |name: &String| name.starts_with("blocks.1") || name.starts_with("norm.");
        assert!(trainable.method.iter().all(of_these));
        assert!(refusal(NAME, &[("blocks", "4")]).contains("from 1 to 3"));
    }
}
