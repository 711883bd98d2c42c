//! One run: a base, a method on it, training, and the adapter that is left.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use vitesse_adapt::peft::{Adapter, Record};
use vitesse_data::DataSet;
use vitesse_model::checkpoint::{weights_file, weights_sha256};
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::events::{Events as Training, Outcome, Plan};
use vitesse_train::method::{Begun, Method, MethodPlan, Trainable, named};
use vitesse_train::parallel::Team;
use vitesse_train::run::{ADAPTER, Existing, RunFolder};
use vitesse_train::{Recipe, run_begun, same_base};

use crate::{Error, Events, Result};

/// What is to be done.
#[derive(Debug)]
pub struct Job<'a> {
    /// The method, of whatever list.
    pub method: &'a dyn Method,
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
    /// With the classes of the data; with a fresh head, where the method adapts it to another task.
    pub base: Checkpoint,
    begun: Begun,
    learn: DataSet,
    validation: Option<DataSet>,
}

/// What is left of a job.
#[derive(Debug)]
pub struct Done {
    /// How the run went.
    pub outcome: Outcome,
    /// What learned.
    pub trainable: Trainable,
    /// What was learned, without the base; none of a method that changes the network itself.
    pub adapter: Option<PathBuf>,
}

impl Ready {
    /// What learns.
    pub fn trainable(&self) -> &Trainable {
        &self.begun.trained
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
        if self.method.adapts() {
            if base.source.weights.is_none() {
                events.say(
                    "note",
                    "the model is a name: its weights are fresh, and there is little to adapt",
                );
            }
            // The head is always new, also where the number of classes is the same by chance. That needs no telling.
            let told = base.source.notes.len();
            base.set_num_classes(0, recipe.train.seed)?;
            base.set_num_classes(classes, recipe.train.seed)?;
            base.source.notes.truncate(told);
        }
        let mut begun = self.method.begin(&base.spec, &base.tensors, recipe.train.seed)?;
        if let Some(teacher) = recipe.distill.teacher_spec(&begun.spec)?
            && let Some(objective) = self.method.objective(&begun.spec, &teacher)?
        {
            begun.objective = Some(objective);
        }
        Ok(Ready {
            base,
            begun,
            learn,
            validation,
        })
    }

    /// What the method would change, and what the run by the processes of `team` would be, without a step of it.
    ///
    /// # Errors
    /// As [`Recipe::plan`].
    pub fn plan(&self, ready: &Ready, team: &Team, events: &mut dyn Training) -> Result<(MethodPlan, Plan)> {
        let data = (ready.learn.clone(), ready.validation.clone());
        let run = self
            .recipe
            .plan_of(&ready.base, data, team, &Device::flex(), events)?;
        Ok((self.method.plan(&ready.base.spec)?, run))
    }

    /// Trains, by all processes of `team`, and keeps what was learned.
    ///
    /// # Errors
    /// As [`run_begun`]; a run that was begun with another model, or with other weights of it.
    pub fn run(
        &self,
        ready: Ready,
        team: &Team,
        stop: &AtomicBool,
        events: &mut dyn Training,
    ) -> Result<Done> {
        self.same_base_as_adapter()?;
        let Ready {
            base,
            begun,
            learn,
            validation,
        } = ready;
        let trainable = begun.trained.clone();
        let folder = (self.output, self.existing);
        let outcome = run_begun(
            team,
            self.recipe,
            (&base, begun),
            (learn, validation),
            folder,
            stop,
            events,
        )?;
        Ok(Done {
            adapter: self.keep(&base, &trainable, team)?,
            outcome,
            trainable,
        })
    }

    /// Refuses to go on with a run whose adapter belongs to other weights than the base has now.
    pub(super) fn same_base_as_adapter(&self) -> Result<()> {
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
        Ok(same_base(self.output, Some(&begun), now.as_deref())?)
    }

    /// Writes what was learned as an adapter, the head included, where the base is still in the model.
    fn keep(&self, base: &Checkpoint, trainable: &Trainable, team: &Team) -> Result<Option<PathBuf>> {
        if !self.method.adapts() {
            return Ok(None);
        }
        let found = RunFolder::checkpoint_in(self.output);
        let found = Checkpoint::load(found, &LoadOptions::default())?;
        if found.spec.network != base.spec.network || !found.spec.ops.starts_with(&base.spec.ops) {
            return Ok(None);
        }
        let folder = self.output.join(ADAPTER);
        if team.leads() {
            let ops = found.spec.ops.len() - base.spec.ops.len();
            let metrics = found.config.history.last().map(|step| step.metrics.clone());
            let [_, height, width] = found.spec.input_size();
            let record = Record {
                base_sha256: base.source_sha256()?,
                architecture: Some(base.spec.architecture.clone()),
                method: Some(named(self.method)),
                data: Some(self.recipe.data.path.clone()),
                label_names: found.config.label_names.clone(),
                img_size: Some([height, width]),
                window_size: found.spec.window_size(),
                metrics: metrics.unwrap_or_default(),
            };
            Adapter::of(&found.spec, &found.tensors, trainable, ops, record)?.write(&folder, true)?;
        }
        Ok(Some(folder))
    }
}
