//! What a run tells: what is about to happen, how it goes, what it came to.

use vitesse_data::DataSet;
use vitesse_model::network::fused::has_bf16;

use crate::evaluate::EvalProgress;
use crate::recipe::Recipe;
use crate::run::{EpochRecord, StepRecord};
use crate::state::{Best, State};

/// What is about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The architecture.
    pub model: String,
    /// Numbers in the model.
    pub parameters: usize,
    /// Those of them that are trained.
    pub trained: usize,
    /// The teacher, if there is one.
    pub teacher: Option<String>,
    /// Classes.
    pub classes: usize,
    /// Images learned from.
    pub train_samples: usize,
    /// Images evaluated on.
    pub validation_samples: usize,
    /// Epochs.
    pub epochs: usize,
    /// Optimiser steps an epoch.
    pub steps_per_epoch: usize,
    /// Samples a step, of all processes together.
    pub batch_size: usize,
    /// Processes that take the steps together.
    pub processes: usize,
    /// Steps taken before, when a run is resumed.
    pub done: usize,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The best evaluation; its checkpoint is the folder `best`.
    pub best: Option<Best>,
    /// Epochs finished.
    pub epochs: usize,
    /// Optimiser steps taken.
    pub steps: usize,
    /// Whether it ended because the accuracy had not improved for `train.early_stop` epochs.
    pub stopped_early: bool,
}

/// Is told how a run goes. Every method does nothing unless it is written.
pub trait Events {
    /// The run begins.
    fn begin(&mut self, _: &Plan) {}
    /// A step was taken.
    fn step(&mut self, _: &StepRecord) {}
    /// Features of the images are computed, once for all epochs.
    fn caching(&mut self, _: EvalProgress) {}
    /// An evaluation goes on.
    fn evaluating(&mut self, _: EvalProgress) {}
    /// An epoch is finished; `best` if its accuracy is the best so far.
    fn epoch(&mut self, _: &EpochRecord, _best: bool) {}
    /// Something can be used but is hardly meant, or an image cannot be read.
    fn warning(&mut self, _: &str) {}
}

/// Tells nobody.
impl Events for () {}

/// What can be used but is hardly meant, in the recipe and in the model and the images that it meets.
pub(crate) fn warnings(recipe: &Recipe, state: &State, learn: &DataSet) -> Vec<String> {
    let mut warnings = recipe.warnings(state.progress.processes);
    warnings.extend(recipe.data.shortfall(learn));
    let distilled = state.spec.vit().is_ok_and(|vit| vit.is_distilled());
    if distilled && !recipe.distill.distils() {
        warnings.push(
            "the model has a distillation head but no teacher, so nothing trains that head; evaluate with the class \
             head alone, or set `distill.teacher`"
                .into(),
        );
    }
    if recipe.train.amp.is_some() && !has_bf16() {
        warnings.push(
            "this processor has no instructions for bf16: `train.amp` rounds as it should, but nothing is faster".into(),
        );
    }
    if recipe.train.grad_checkpointing && !state.spec.is_transformer() {
        warnings.push(format!(
            "`train.grad_checkpointing` is for transformer blocks, and `{}` has none",
            state.spec.architecture
        ));
    }
    warnings
}
