//! One run: a base, a method on it, training, and the adapter that is left.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use vitesse_adapt::Method;
use vitesse_adapt::peft::{Adapter, Record};
use vitesse_data::DataSet;
use vitesse_model::checkpoint::{weights_file, weights_sha256};
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::adamw::Slot;
use vitesse_train::events::{Events as Training, Outcome};
use vitesse_train::method::{Begun, Trainable};
use vitesse_train::objective::Objective;
use vitesse_train::run::{ADAPTER, Existing, RunFolder};
use vitesse_train::state::State;
use vitesse_train::trainer::{Start, train};
use vitesse_train::{Error as TrainError, Recipe};

use crate::{Error, Events, Result};

/// What is to be done.
#[derive(Debug)]
pub struct Job<'a> {
    /// The method.
    pub method: &'a Method,
    /// How it is trained.
    pub recipe: &'a Recipe,
    /// The folder of the run.
    pub output: &'a Path,
    /// What may be done about a run that is there.
    pub existing: Existing,
    /// Where the base is now, if it is not yet where the recipe says.
    pub base: Option<&'a Path>,
}

/// A base with a method on it, and what it learns from.
#[derive(Debug)]
pub struct Ready {
    /// With a fresh head for the classes of the data.
    pub base: Checkpoint,
    adapted: Begun,
    learn: DataSet,
    validation: Option<DataSet>,
}

impl Ready {
    /// What learns.
    pub fn trainable(&self) -> &Trainable {
        &self.adapted.trained
    }
}

impl Job<'_> {
    /// Opens the data and puts the method on the base.
    ///
    /// # Errors
    /// No data set, no base, a method that cannot be put on it; fewer than two classes.
    pub fn ready(&self, events: &mut dyn Events) -> Result<Ready> {
        let recipe = self.recipe;
        let (learn, validation) = recipe.data.open()?;
        let classes = recipe.model.num_classes.unwrap_or(learn.class_names().len());
        if classes < 2 {
            let data = recipe.data.path.clone();
            return Err(Error::TooFewClasses { data, classes });
        }
        let mut model = recipe.model.clone();
        model.checkpoint = self.base.map(Path::to_owned).or(model.checkpoint);
        let mut base = model.checkpoint(&learn, recipe.train.seed)?;
        for note in &base.source.notes {
            events.say("note", note);
        }
        if base.source.weights.is_none() {
            events.say(
                "note",
                "the model is a name: its weights are fresh, and there is little to adapt",
            );
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
    ///
    /// # Errors
    /// As [`train`]; a run that was begun with another model, or with other weights of it.
    pub fn run(
        &self,
        ready: &mut Ready,
        stop: &AtomicBool,
        events: &mut dyn Training,
    ) -> vitesse_train::Result<Outcome> {
        let (adapted, optim) = (&ready.adapted, &self.recipe.optim);
        let model = Checkpoint {
            spec: adapted.spec.clone(),
            tensors: adapted.tensors.clone(),
            ..ready.base.clone()
        };
        let saved = RunFolder::state_in(self.output);
        let state = if self.existing == Existing::Resume && saved.is_file() {
            let state = State::load(&saved, optim)?;
            self.same_base(state.parent_sha256.as_deref(), model.source_sha256()?.as_deref())?;
            state
        } else {
            self.same_base_as_adapter()?;
            let ema = self.recipe.train.ema_decay.is_some();
            State::new(&model, optim, ema, &|name| adapted.trained.contains(name))?
        };
        let learns = |slot: &Slot| adapted.trained.contains(&slot.name);
        if state.spec != model.spec || !state.slots.iter().all(learns) {
            return Err(TrainError::Resume {
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
            hooks: mem::take(&mut ready.adapted.hooks),
            device,
        };
        train(self.recipe, start, self.output, self.existing, stop, events)
    }

    /// Refuses to go on with a run whose adapter belongs to other weights than the base has now.
    pub(super) fn same_base_as_adapter(&self) -> vitesse_train::Result<()> {
        let folder = self.output.join(ADAPTER);
        if self.existing != Existing::Resume || !folder.is_dir() {
            return Ok(());
        }
        let Some(begun) = Adapter::read(&folder)?.record.base_sha256 else {
            return Ok(());
        };
        let base = self.base.or(self.recipe.model.checkpoint.as_deref());
        let key = self.recipe.model.key.as_deref();
        let now = base
            .map(|path| weights_sha256(&weights_file(path)?, key))
            .transpose()?;
        self.same_base(Some(&begun), now.as_deref())
    }

    /// Refuses other weights than the run was begun with: what learned on the ones would be kept as learned on the others.
    fn same_base(&self, begun: Option<&str>, now: Option<&str>) -> vitesse_train::Result<()> {
        if begun == now {
            return Ok(());
        }
        let sha256 = |sum: Option<&str>| match sum {
            Some(sum) => format!("weights with SHA-256 {sum}"),
            None => "fresh weights".to_owned(),
        };
        Err(TrainError::Resume {
            path: self.output.to_owned(),
            reason: format!(
                "the base that it was begun with had {}, and the one that is there now has {}; restore the base, or start a \
                 new run in another folder",
                sha256(begun),
                sha256(now)
            ),
        })
    }

    /// Writes what was learned in the checkpoint `found`, the head included, and tells where.
    ///
    /// # Errors
    /// A checkpoint that cannot be read, a folder that cannot be written.
    pub fn keep(&self, ready: &Ready, found: &Path) -> Result<PathBuf> {
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
