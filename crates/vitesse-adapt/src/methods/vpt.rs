//! VPT — learned tokens beside the image's own.
//!
//! **Paper.** M. Jia, L. Tang, B.-C. Chen, C. Cardie, S. Belongie, B. Hariharan, S.-N. Lim, *Visual Prompt Tuning*, ECCV 2022:
//! shallow, tokens that enter the first block and travel on (equations 4 to 6); deep, fresh ones in every block
//! (equations 7 and 8).
//!
//! **When.** To compare; the longer sequence slows large batches most.
//!
//! **Changes** ops `prompts` at `block.in`. Cannot be folded.
//!
//! **Cost.** Every token of `n` passes all blocks, and attention grows with `(1 + n + N)²`.
//!
//! **Deviations.** The prompts stand after all prefix tokens (class, distillation, registers), and the mean of a model that
//! pools leaves them out. No projection of narrower prompts.

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{OpKind, Prompts};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};

use super::{Adapted, insert, op};
use crate::Result;

const NAME: &str = "vpt";

/// How prompts are set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Prompts of a block. Default 10; the paper searches 1 to 200.
    pub tokens: usize,
    /// Whether every block has its own. Default true.
    pub deep: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            tokens: 10,
            deep: true,
        }
    }
}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
        let depth = spec.depth();
        let layers = if self.deep { depth } else { depth.min(1) };
        let prompts = OpKind::Prompts(Prompts { tokens: self.tokens });
        let ops = (0..layers)
            .map(|layer| op(Site::BlockIn, layer, prompts.clone()))
            .collect();
        insert(NAME, spec, tensors, ops, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, counted, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        let deep = counted(NAME, &[("tokens", "50")]);
        assert_eq!(deep.trainable.method_parameters, 9_216 * 50);
        let shallow = counted(NAME, &[("tokens", "50"), ("deep", "false")]);
        assert_eq!(shallow.trainable.method_parameters, 768 * 50);
    }

    #[test]
    fn prompts_start_within_their_bound() {
        let adapted = applied(NAME, &[("tokens", "3")]);
        // Patches of 4×4×3 and width 12.
        let bound = (6.0f32 / (48.0 + 12.0)).sqrt();
        for name in &adapted.trainable.method {
            let tensor = adapted
                .tensors
                .get(name)
                .map(|tensor| tensor.to_f32().into_owned());
            assert!(tensor.is_ok_and(|values| values.iter().all(|x| x.abs() <= bound && *x != 0.0)));
        }
        assert!(refusal(NAME, &[("tokens", "0")]).contains("from 1 to"));
    }
}
