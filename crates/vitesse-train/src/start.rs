//! From a recipe to a run, or to the plan of one: opens the data, builds or loads the model, loads the teacher, and trains.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use vitesse_data::{DataSet, Loader, LoaderOptions, OnError, OpenOptions, Preprocess, Replica, Split, open};
use vitesse_model::{Checkpoint, Heads, LoadOptions, ModelSpec};
use vitesse_words::counted;

use crate::adamw::Slot;
use crate::classes::ClassNames;
use crate::events::{Events, Outcome, Plan};
use crate::method::Begun;
use crate::objective::Objective;
use crate::parallel::Team;
use crate::recipe::{DataConfig, DistillConfig, ModelConfig, Recipe};
use crate::resume::same_base;
use crate::run::{Existing, RunFolder};
use crate::state::State;
use crate::teacher::Teacher;
use crate::trainer::{Start, train_together};
use crate::{Error, Result};

/// Runs a recipe in the folder `path`, from the beginning or from where it was left.
///
/// # Errors
/// Whatever keeps the recipe from being followed, in a sentence; [`Error::Interrupted`] when `stop` was set.
pub fn run(
    recipe: &Recipe,
    path: &Path,
    existing: Existing,
    device: &Device,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Outcome> {
    run_together(&Team::alone(), recipe, path, existing, device, stop, events)
}

/// As [`run`], by all processes of `team`; the folder must be the same for all. Whatever is an error in one of them ends
/// all: one that gets an error calls [`Team::leave`].
///
/// # Errors
/// As [`run`]; [`Error::Peer`] and [`Error::Lost`] because of another process, with the state of the last step saved.
pub fn run_together(
    team: &Team,
    recipe: &Recipe,
    path: &Path,
    existing: Existing,
    device: &Device,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Outcome> {
    recipe.validate()?;
    recipe.refuse_method()?;
    if team.leads() {
        RunFolder::check(path, recipe, existing)?;
    }
    let (learn, validation) = recipe.data.open()?;
    let state = match RunFolder::saved_state(path, existing)? {
        Some(saved) => State::load(&saved, &recipe.optim)?,
        None => recipe.first_state(&recipe.model.checkpoint(&learn, recipe.train.seed)?, events)?,
    };
    let objective = recipe.distill.distillation();
    let teacher = recipe.distill.teacher(&objective, &state, device)?;
    let start = Start {
        state,
        train: learn,
        validation,
        objective: Box::new(objective),
        hooks: Vec::new(),
        teacher,
        device: device.clone(),
    };
    train_together(team, recipe, start, path, existing, stop, events)
}

/// Runs a recipe with the model that a method has `begun` on `base`: its tensors that learn, its objective beside the recipe's
/// loss or in its place, its hooks. In the folder `path`, from the beginning or from where it was left, by all processes of `team`.
///
/// # Errors
/// As [`run_together`]; a run that was begun on other weights, or with another model.
pub fn run_begun(
    team: &Team,
    recipe: &Recipe,
    (base, begun): (&Checkpoint, Begun),
    (learn, validation): (DataSet, Option<DataSet>),
    (path, existing): (&Path, Existing),
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Outcome> {
    let model = Checkpoint {
        spec: begun.spec,
        tensors: begun.tensors,
        config: base.config.clone(),
        source: base.source.clone(),
    };
    let learns = |name: &str| begun.trained.contains(name);
    let state = if let Some(saved) = RunFolder::saved_state(path, existing)? {
        let state = State::load(&saved, &recipe.optim)?;
        same_base(
            path,
            state.parent_sha256.as_deref(),
            model.source_sha256()?.as_deref(),
        )?;
        state
    } else {
        State::new(&model, &recipe.optim, recipe.train.ema_decay.is_some(), &learns)?
    };
    if state.spec != model.spec || !state.slots.iter().all(|slot: &Slot| learns(&slot.name)) {
        return Err(Error::Resume {
            path: path.to_owned(),
            reason: "the model that it was begun with is not the one that is there now; restore it, or start a new run"
                .into(),
        });
    }
    let mut objective: Vec<Box<dyn Objective>> = Vec::from_iter(begun.objective);
    if !objective.iter().any(|own| own.is_whole()) {
        objective.insert(0, Box::new(recipe.distill.distillation()));
    }
    let device = Device::flex();
    let start = Start {
        teacher: recipe.distill.teacher(&objective, &state, &device)?,
        state,
        train: learn,
        validation,
        objective: Box::new(objective),
        hooks: begun.hooks,
        device,
    };
    train_together(team, recipe, start, path, existing, stop, events)
}

impl Recipe {
    /// What a run by the processes of `team` would be, without a step of it: the data and the teacher are opened, the model
    /// is built or loaded, and the steps are counted.
    ///
    /// # Errors
    /// What keeps the recipe from being followed, as far as it shows before the first step.
    pub fn plan(&self, team: &Team, device: &Device, events: &mut dyn Events) -> Result<Plan> {
        let (learn, validation) = self.data.open()?;
        let student = self.model.checkpoint(&learn, self.train.seed)?;
        self.plan_of(&student, (learn, validation), team, device, events)
    }

    /// As [`Recipe::plan`], of a run with the model and the data that are there already.
    ///
    /// # Errors
    /// As [`Recipe::plan`].
    pub fn plan_of(
        &self,
        student: &Checkpoint,
        (learn, validation): (DataSet, Option<DataSet>),
        team: &Team,
        device: &Device,
        events: &mut dyn Events,
    ) -> Result<Plan> {
        let mut notes = student.source.notes.clone();
        notes.extend(self.warnings(team.size()));
        notes.extend(self.data.shortfall(&learn));
        notes.extend(learn.notes());
        notes.iter().for_each(|note| events.warning(note));
        let prepared = student.preprocess()?;
        let names = ClassNames::of(&student.config, student.spec.num_classes);
        let matched = names.matched(&learn, student.spec.num_classes, self.data.labels_by)?;
        matched.note.iter().for_each(|note| events.warning(note));
        let learn = matched.data;
        let teacher = match &self.distill.teacher {
            Some(path) if self.distill.distils() => {
                let mut teacher = Teacher::load(
                    (path, self.distill.key.as_deref()),
                    &student.spec,
                    &prepared,
                    device,
                )?;
                teacher.notes().iter().for_each(|note| events.warning(note));
                let note = teacher.answer_as(learn.class_names(), self.data.labels_by)?;
                note.iter().for_each(|note| events.warning(note));
                Some(teacher)
            }
            _ => None,
        };
        let (loader, steps_per_epoch) = self.loader(team, learn, &prepared)?;
        let parameters = student.spec.costs()?.parameters();
        Ok(Plan {
            model: student.spec.architecture.clone(),
            parameters,
            trained: parameters,
            teacher: teacher.map(|teacher| teacher.name().to_owned()),
            classes: student.spec.num_classes,
            train_samples: loader.data().len(),
            validation_samples: validation.as_ref().map_or(0, DataSet::len),
            epochs: self.train.epochs,
            steps_per_epoch,
            batch_size: self.train.batch_size * team.size(),
            processes: team.size(),
            done: 0,
        })
    }

    /// What gives this process of `team` its part of every batch, and the steps of an epoch.
    ///
    /// # Errors
    /// A batch of all processes that has more images than there are.
    pub(crate) fn loader(
        &self,
        team: &Team,
        learn: DataSet,
        preprocess: &Preprocess,
    ) -> Result<(Loader, usize)> {
        let options = LoaderOptions {
            batch_size: self.train.batch_size,
            workers: self.train.workers,
            order: self.augment.order(),
            seed: self.train.seed,
            drop_last: true,
            on_error: OnError::Replace,
            replica: Replica {
                rank: team.rank(),
                of: team.size(),
            },
            ..LoaderOptions::default()
        };
        let loader = Loader::new(learn, self.augment.transform(preprocess)?, options)?;
        let steps = loader.batches()?;
        if steps == 0 {
            let mut expected = format!(
                "at most the {} to learn from (`-b`)",
                counted(loader.data().len(), "image")
            );
            if team.size() > 1 {
                expected += &format!(", shared by {} processes", team.size());
            }
            return Err(Error::recipe(
                "train.batch_size",
                &self.train.batch_size,
                expected,
            ));
        }
        Ok((loader, steps))
    }

    /// The state before the first step; all parameters of the model are trained.
    fn first_state(&self, checkpoint: &Checkpoint, events: &mut dyn Events) -> Result<State> {
        checkpoint
            .source
            .notes
            .iter()
            .for_each(|note| events.warning(note));
        State::new(checkpoint, &self.optim, self.train.ema_decay.is_some(), &|_| true)
    }
}

impl DistillConfig {
    /// What the teacher of `student` is, if one is named and learned from: with the student's input size.
    ///
    /// # Errors
    /// A checkpoint that cannot be loaded or resized.
    pub fn teacher_spec(&self, student: &ModelSpec) -> Result<Option<ModelSpec>> {
        let Some(path) = self.teacher.as_ref().filter(|_| self.distils()) else {
            return Ok(None);
        };
        let [_, height, width] = student.input_size();
        let options = LoadOptions {
            img_size: Some([height, width]),
            key: self.key.clone(),
            ..LoadOptions::default()
        };
        Ok(Some(Checkpoint::load(path, &options)?.spec))
    }

    /// The teacher of the model that `state` trains, if one is named and the objective asks it.
    ///
    /// # Errors
    /// As [`Teacher::load`].
    pub fn teacher(
        &self,
        objective: &dyn Objective,
        state: &State,
        device: &Device,
    ) -> Result<Option<Teacher>> {
        let Some(teacher) = self
            .teacher
            .as_ref()
            .filter(|_| objective.wants().teacher.is_some())
        else {
            return Ok(None);
        };
        let prepared = state.config.pretrained_cfg.preprocess(&state.spec)?;
        Teacher::load((teacher, self.key.as_deref()), &state.spec, &prepared, device).map(Some)
    }
}

impl ModelConfig {
    /// The model to begin with: of the zoo with weights drawn from `seed`, or a checkpoint that is fitted to the
    /// recipe's image size and to the classes of `data`.
    ///
    /// # Errors
    /// An unknown name, or a checkpoint that cannot be loaded or fitted.
    pub fn checkpoint(&self, data: &DataSet, seed: u64) -> Result<Checkpoint> {
        let classes = self.num_classes.unwrap_or(data.class_names().len());
        let img_size = self.img_size.map(|side| [side; 2]);
        let window_size = self.window_size.map(|side| [side; 2]);
        if let Some(path) = &self.checkpoint {
            let options = LoadOptions {
                key: self.key.clone(),
                heads: self.num_heads.as_ref().map(|counts| Heads {
                    counts: counts.clone(),
                    scale_dim: self.head_dim,
                }),
                num_classes: Some(classes),
                img_size,
                window_size,
                seed,
                ..LoadOptions::default()
            };
            return Ok(Checkpoint::load(path, &options)?);
        }
        let name = self.name.as_deref().unwrap_or_default();
        let mut checkpoint = Checkpoint::fresh(name, Some(classes), img_size, seed)?;
        if let Some(size) = window_size {
            checkpoint.set_window_size(size)?;
        }
        // Small images are not enlarged to be cropped again.
        if checkpoint.spec.input_size()[1] <= 32 {
            checkpoint.config.pretrained_cfg.crop_pct = 1.0;
        }
        Ok(checkpoint)
    }
}

/// Whether two data sets have the same classes, in whatever order.
fn same_classes(one: &DataSet, other: &DataSet) -> bool {
    let sorted = |data: &DataSet| {
        let mut names = data.class_names().to_vec();
        names.sort_unstable();
        names
    };
    sorted(one) == sorted(other)
}

/// Steps that an epoch should have.
const STEPS: usize = 4;

impl Recipe {
    /// Makes the batch smaller, where the data are so few that an epoch would have less than a handful of steps, and says so; for
    /// recipes in which nobody has said how large it should be.
    ///
    /// # Errors
    /// As [`DataConfig::open`].
    pub fn fit_batch(&mut self) -> Result<Option<String>> {
        let images = self.data.open()?.0.len();
        let most = (images / STEPS).max(1);
        if self.train.batch_size <= most {
            return Ok(None);
        }
        // The largest power of two, which halves evenly wherever batches are halved.
        self.train.batch_size = 1 << most.ilog2();
        self.train.accumulate = self.train.accumulate.min(self.train.batch_size);
        self.validate()?;
        Ok(Some(format!(
            "batches are of {}, since there are only {} to learn from; `-b` chooses another size",
            self.train.batch_size,
            counted(images, "image")
        )))
    }
}

/// Classes that a sentence names at most.
const SHOWN: usize = 5;

impl DataConfig {
    /// What is learned from, and what is evaluated on.
    ///
    /// # Errors
    /// A path that holds no data set, or lacks the split; a class without images where each should give some.
    pub fn open(&self) -> Result<(DataSet, Option<DataSet>)> {
        let options = |split, val_fraction| OpenOptions {
            split: Some(split),
            val_fraction,
            seed: self.seed,
            decode: self.decode(),
            ..OpenOptions::default()
        };
        let limit = |data: DataSet, most: Option<usize>| match most {
            Some(most) => data.limit(most, self.seed),
            None => data,
        };
        let learn = open(&self.path, &options(self.split, self.val_fraction))?;
        let validation = match &self.validation {
            // A set of its own: its validation split, or all of it.
            Some(path) => {
                let stored = open(path, &options(Split::Validation, 0.0));
                Some(stored.or_else(|_| open(path, &options(Split::All, 0.0)))?)
            }
            // Everything is learned from.
            None if matches!(self.split, Split::TrainValidation | Split::All) => None,
            // Nothing is held back: only what is stored.
            None if self.val_fraction == 0.0 => open(&self.path, &options(Split::Validation, 0.0)).ok(),
            None => Some(open(&self.path, &options(Split::Validation, self.val_fraction))?),
        };
        if let Some(validation) = &validation
            && !same_classes(validation, &learn)
        {
            return Err(Error::Classes {
                train: learn.class_names().len(),
                validation: validation.class_names().len(),
            });
        }
        // A set of its own may number them otherwise.
        let validation = validation.map(|data| match data.class_names() == learn.class_names() {
            true => data,
            false => data.of_classes(learn.class_names()),
        });
        let learn = match self.shots {
            Some(shots) => self.few(&learn, shots)?,
            None => limit(learn, self.limit),
        };
        Ok((learn, validation.map(|data| limit(data, self.validation_limit))))
    }

    /// So many images of each class.
    fn few(&self, learn: &DataSet, shots: usize) -> Result<DataSet> {
        let few = learn.per_class(shots, self.seed);
        let mut classes = few.class_names().iter().zip(few.class_sizes());
        match classes.find(|(_, size)| *size == 0) {
            Some((class, _)) => Err(Error::NoShots {
                data: self.path.clone(),
                class: class.clone(),
            }),
            None => Ok(few),
        }
    }

    /// Which classes of `learn`, what is learned from, have fewer images than `shots` asks for, in a sentence.
    pub fn shortfall(&self, learn: &DataSet) -> Option<String> {
        let shots = self.shots?;
        let names = learn.class_names().iter().zip(learn.class_sizes());
        let short: Vec<String> = names
            .filter(|(_, size)| *size < shots)
            .map(|(name, size)| format!("`{name}` {size}"))
            .collect();
        if short.is_empty() {
            return None;
        }
        let (named, rest) = short.split_at(short.len().min(SHOWN));
        let rest = match rest.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Some(format!(
            "not every class has the {} that `data.shots` asks for, and those give all they have: {}{rest}",
            counted(shots, "image"),
            named.join(", ")
        ))
    }
}
