//! One run: a base, a method on it, training, and the adapter that is left.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use vitesse::adapt::Method;
use vitesse::adapt::peft::{Adapter, Record};
use vitesse::data::DataSet;
use vitesse::model::{Checkpoint, LoadOptions};
use vitesse_train::adamw::Slot;
use vitesse_train::events::Outcome as Learned;
use vitesse_train::method::{Begun, Trainable};
use vitesse_train::objective::Objective;
use vitesse_train::run::{Existing, RunFolder};
use vitesse_train::state::State;
use vitesse_train::trainer::{Start, train};
use vitesse_train::{Error, Recipe};

use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::training::Watch;

/// What a run leaves beside the folders of every run.
pub(super) const ADAPTER: &str = "adapter";

/// What is to be done.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) method: &'a Method,
    pub(super) recipe: &'a Recipe,
    /// The folder of the run.
    pub(super) output: &'a Path,
    pub(super) existing: Existing,
    /// Where the base is now, if it is not yet where the recipe says.
    pub(super) base: Option<&'a Path>,
}

/// A base with a method on it, and what it learns from.
#[derive(Debug)]
pub(super) struct Ready {
    /// With a fresh head for the classes of the data.
    pub(super) base: Checkpoint,
    adapted: Begun,
    learn: DataSet,
    validation: Option<DataSet>,
}

impl Ready {
    pub(super) fn trainable(&self) -> &Trainable {
        &self.adapted.trained
    }
}

impl Job<'_> {
    /// Opens the data and puts the method on the base.
    pub(super) fn ready(&self, console: &Console) -> Result<Ready> {
        let recipe = self.recipe;
        let (learn, validation) = recipe.data.open()?;
        let classes = recipe.model.num_classes.unwrap_or(learn.class_names().len());
        if classes < 2 {
            let sentence = format!(
                "`{}` has {classes} class, and there is nothing to tell apart",
                recipe.data.path
            );
            let failure = Failure::new("E_DATA_SET", sentence);
            return Err(failure.hint("a data set needs images of two classes at least"));
        }
        let mut model = recipe.model.clone();
        model.checkpoint = self.base.map(Path::to_owned).or(model.checkpoint);
        let mut base = model.checkpoint(&learn, recipe.train.seed)?;
        if base.source.weights.is_none() {
            console.note("the model is a name: its weights are fresh, and there is little to adapt");
        }
        // The head is always new, also where the number of classes is the same by chance.
        base.set_num_classes(0, recipe.train.seed)?;
        base.set_num_classes(classes, recipe.train.seed)?;
        let adapted = self.method.begin(&base.spec, &base.tensors, recipe.train.seed)?;
        Ok(Ready {
            base,
            adapted,
            learn,
            validation,
        })
    }

    /// Trains, with the objective and the hooks that `ready` then no longer has.
    pub(super) fn run(
        &self,
        ready: &mut Ready,
        console: &Console,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<Learned, Error> {
        let (adapted, optim) = (&ready.adapted, &self.recipe.optim);
        let model = Checkpoint {
            spec: adapted.spec.clone(),
            tensors: adapted.tensors.clone(),
            ..ready.base.clone()
        };
        let saved = RunFolder::state_in(self.output);
        let state = if self.existing == Existing::Resume && saved.is_file() {
            State::load(&saved, optim)?
        } else {
            let ema = self.recipe.train.ema_decay.is_some();
            State::new(&model, optim, ema, &|name| adapted.trained.contains(name))?
        };
        let learns = |slot: &Slot| adapted.trained.contains(&slot.name);
        if state.spec != model.spec || !state.slots.iter().all(learns) {
            return Err(Error::Resume {
                path: self.output.to_owned(),
                reason: "the model that it was begun with is not the one that is there now; restore it, or start a new run"
                    .into(),
            });
        }
        let mut objective: Vec<Box<dyn Objective>> = vec![Box::new(self.recipe.distill.distillation())];
        objective.extend(ready.adapted.objective.take());
        let device = Device::flex();
        let start = Start {
            teacher: self.recipe.distill.teacher(&objective, &state, &device)?,
            state,
            train: ready.learn.clone(),
            validation: ready.validation.clone(),
            objective: Box::new(objective),
            hooks: std::mem::take(&mut ready.adapted.hooks),
            device,
        };
        train(
            self.recipe,
            start,
            self.output,
            self.existing,
            console.stop(),
            watch,
        )
    }

    /// Writes what was learned in the checkpoint `found`, the head included, and tells where.
    pub(super) fn keep(&self, ready: &Ready, found: &Path) -> Result<PathBuf> {
        let found = Checkpoint::load(found, &LoadOptions::default())?;
        let base = &ready.base;
        let ops = found.spec.ops.len() - base.spec.ops.len();
        let metrics = found.config.history.last().map(|step| step.metrics.clone());
        let record = Record {
            base_sha256: base.source_sha256()?,
            architecture: Some(base.spec.architecture.clone()),
            method: Some(self.method.clone()),
            data: Some(self.recipe.data.path.clone()),
            label_names: found.config.label_names.clone(),
            metrics: metrics.unwrap_or_default(),
        };
        let folder = self.output.join(ADAPTER);
        Adapter::of(&found.spec, &found.tensors, ready.trainable(), ops, record)?.write(&folder, true)?;
        Ok(folder)
    }
}
