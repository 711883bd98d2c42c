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
//! pools leaves them out. Of a CLIP they stand behind the norm before the blocks, with what enters the first block.

use vitesse_model::ops::{OpKind, Prompts};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_train::method::{Finished, Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{fold, insert, layers_with, op};

/// The name on the command line and in files.
pub const NAME: &str = "vpt";

settings! {
    /// How prompts are set up.
    pub struct Config {
        /// Prompts of a block; the paper searches 1 to 200.
        pub tokens: usize = 10,
        /// Whether every block has its own; else those of the first block travel on.
        pub deep: bool = true,
        /// Their width, where they are narrower or wider than the model: one linear map, the same for all blocks, makes
        /// tokens of them.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub project: Option<usize> = None,
    }
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The paper's setting.
    fn eval_mode(&self) -> bool {
        true
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let layers = if self.deep { spec.depth() } else { 1 };
        let prompts = OpKind::Prompts(Prompts {
            tokens: self.tokens,
            project: self.project,
        });
        let ops = layers_with(spec, Site::BlockIn)
            .take(layers)
            .map(|layer| op(Site::BlockIn, layer, prompts.clone()))
            .collect();
        insert(NAME, spec, &[Site::BlockIn], ops)
    }

    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        fold(spec, tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{begun, planned, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        let deep = planned(NAME, &[("tokens", "50")]);
        assert_eq!(deep.trainable.method_param_count, 9_216 * 50);
        let shallow = planned(NAME, &[("tokens", "50"), ("deep", "false")]);
        assert_eq!(shallow.trainable.method_param_count, 768 * 50);
    }

    #[test]
    fn prompts_start_within_their_bound() {
        let begun = begun(NAME, &[("tokens", "3")]);
        // Patches of 4×4×3 and width 12.
        let bound = (6.0f32 / (48.0 + 12.0)).sqrt();
        for name in &begun.trained.method {
            let tensor = begun.tensors.get(name).map(|tensor| tensor.to_f32().into_owned());
            assert!(tensor.is_ok_and(|values| values.iter().all(|x| x.abs() <= bound && *x != 0.0)));
        }
        assert!(refusal(NAME, &[("tokens", "0")]).contains("from 1 to"));
    }
}
