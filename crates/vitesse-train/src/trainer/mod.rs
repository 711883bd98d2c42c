//! The loop: epochs of steps, evaluation, what is kept, when it stops.
//!
//! The order of the images, their augmentation, mixing and drop path are functions of the seed, the epoch and the
//! step, so the loop has no state but the [`State`]: a run that is killed at any moment and
//! resumed ends with the same bits as one that was not, for any number of threads.
//!
//! Where only heads learn from images that stay the same, epochs go over features that are computed once.
//!
//! Where several processes train together, all go through the same loop with the same state, each with its part of every
//! batch and of every evaluation, and the first of them alone writes.

mod judge;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use vitesse_data::{Batch, DataSet, Loader, Preprocess};
use vitesse_model::config::Scores;
use vitesse_model::network::Compute;
use vitesse_rng::Key;
use vitesse_words::counted;

use crate::classes::ClassNames;
use crate::evaluate::labels;
use crate::events::{Events, Outcome, Plan, warnings};
use crate::features::{Features, suffice};
use crate::hooks::Hooks;
use crate::learner::{Learner, Lesson, Settings, Taken};
use crate::loss::target_rows;
use crate::objective::{At, Objective};
use crate::output::Output;
use crate::parallel::Team;
use crate::recipe::Recipe;
use crate::run::{Existing, RunFolder, StepRecord};
use crate::state::{State, fnv1a};
use crate::teacher::Teacher;
use crate::{Error, Result};

/// What a run is made of, besides its recipe.
#[derive(Debug)]
pub struct Start {
    /// Where the run is: a fresh state, or one to resume from.
    pub state: State,
    /// What is learned from.
    pub train: DataSet,
    /// What is evaluated on after an epoch, and what the best checkpoint is chosen by.
    pub validation: Option<DataSet>,
    /// What is minimised.
    pub objective: Box<dyn Objective>,
    /// What is done besides.
    pub hooks: Vec<Box<dyn Hooks>>,
    /// The teacher, where the objective wants one.
    pub teacher: Option<Teacher>,
    /// Where to compute.
    pub device: Device,
}

/// Trains in the folder `path`, which is touched only when nothing is left to refuse. `stop` ends the run after the
/// current step, with its state saved.
///
/// # Errors
/// Data that do not fit the model, [`Error::Diverged`], whatever the file system says, and [`Error::Interrupted`].
pub fn train(
    recipe: &Recipe,
    start: Start,
    path: &Path,
    existing: Existing,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Outcome> {
    train_together(&Team::alone(), recipe, start, path, existing, stop, events)
}

/// As [`train`], by all processes of `team`, each of which starts with the same.
///
/// # Errors
/// As [`train`]; [`Error::Peer`] and [`Error::Lost`] because of another process, with the state of the last step saved.
pub(crate) fn train_together(
    team: &Team,
    recipe: &Recipe,
    start: Start,
    path: &Path,
    existing: Existing,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Outcome> {
    let mut run = Run::new(team, recipe, start, path, existing, stop, events)?;
    let outcome = run.epochs();
    if let Err(Error::Peer { .. } | Error::Lost) = outcome {
        // Nobody is left to compare checksums with; no step is ever half taken.
        run.output.state(run.learner.state())?;
    }
    outcome
}

/// A run that goes on.
struct Run<'a> {
    team: &'a Team,
    recipe: &'a Recipe,
    output: Output,
    stop: &'a AtomicBool,
    /// Whether the processes have agreed to stop.
    stopping: bool,
    events: &'a mut dyn Events,
    learner: Learner,
    loader: Loader,
    validation: Option<DataSet>,
    preprocess: Preprocess,
    /// Of the images to learn from and those to evaluate on, where they are all that is needed.
    features: Option<Arc<(Features, Option<Features>)>>,
    steps_per_epoch: usize,
    /// Training images that could not be read, each mentioned once.
    unreadable: HashSet<usize>,
}

impl<'a> Run<'a> {
    fn new(
        team: &'a Team,
        recipe: &'a Recipe,
        start: Start,
        path: &Path,
        existing: Existing,
        stop: &'a AtomicBool,
        events: &'a mut dyn Events,
    ) -> Result<Run<'a>> {
        let Start {
            mut state,
            train,
            validation,
            objective,
            hooks,
            mut teacher,
            device,
        } = start;
        check(&state, &train, recipe)?;
        let (classes, by) = (state.spec.num_classes, recipe.data.labels_by);
        let names = ClassNames::of(&state.config, classes);
        let matched = names.matched(&train, classes, by)?;
        let validation = validation.map(|data| Ok::<_, Error>(names.matched(&data, classes, by)?.data));
        let (train, validation) = (matched.data, validation.transpose()?);
        let mut notes = Vec::from_iter(matched.note);
        if state.config.scores(classes) != Scores::Softmax {
            notes.push("the checkpoint scores each class by itself; from here on it learns that an image has one of them".into());
        }
        if let Some(teacher) = &mut teacher {
            notes.extend(teacher.notes().iter().cloned());
            notes.extend(teacher.answer_as(train.class_names(), by)?);
        }
        let wants = objective.wants();
        if wants.teacher.is_some() && teacher.is_none() {
            return Err(Error::TeacherMissing);
        }
        let preprocess = state.config.pretrained_cfg.preprocess(&state.spec)?;
        let (loader, steps_per_epoch) = recipe.loader(team, train, &preprocess)?;
        let progress = &state.progress;
        if progress.step > 0 && progress.processes != team.size() {
            return Err(Error::Resume {
                path: path.to_owned(),
                reason: format!(
                    "its steps were taken by {} with {} each, and now there are {}; start as many as \
                     then (`mpirun -n {}`), or start a new run from its checkpoint",
                    counted(progress.processes, "process"),
                    counted(recipe.train.batch_size, "image"),
                    team.size(),
                    progress.processes
                ),
            });
        }
        let reached = progress.step.checked_sub(progress.epochs * steps_per_epoch);
        if reached.is_none_or(|steps| steps > steps_per_epoch) {
            return Err(Error::Resume {
                path: path.to_owned(),
                reason: format!(
                    "it has taken {} in {}, but an epoch now has {steps_per_epoch}: the training set has \
                     changed since; restore it, or start a new run",
                    counted(progress.step, "step"),
                    counted(progress.epochs, "epoch")
                ),
            });
        }
        state.progress.processes = team.size();
        if team.size() > 1 {
            let document = serde_json::json!(recipe.decisive()?).to_string();
            let sizes = [loader.data().len(), validation.as_ref().map_or(0, DataSet::len)];
            team.agree([
                ("recipe", fnv1a(document.bytes().map(u64::from))),
                ("data sets", fnv1a(sizes.iter().map(|&size| size as u64))),
                ("number of steps behind it", state.progress.step as u64),
                ("weights", state.checksum()),
            ])?;
        }
        let plan = Plan {
            model: state.spec.architecture.clone(),
            parameters: state.spec.costs()?.parameters(),
            trained: state.slots.iter().map(|slot| slot.weight.len()).sum(),
            teacher: teacher.as_ref().map(|teacher| teacher.name().to_owned()),
            classes: state.spec.num_classes,
            train_samples: loader.data().len(),
            validation_samples: validation.as_ref().map_or(0, DataSet::len),
            epochs: recipe.train.epochs,
            steps_per_epoch,
            batch_size: recipe.train.batch_size * team.size(),
            processes: team.size(),
            done: state.progress.step,
        };
        let output = Output::open(team, path, recipe, existing, &state)?;
        events.begin(&plan);
        notes.extend(warnings(recipe, &state, loader.data()));
        notes.iter().for_each(|note| events.warning(note));
        let settings = Settings {
            optim: recipe.optim.clone(),
            ema_decay: recipe.train.ema_decay.unwrap_or(0.0),
            drop_path: recipe.model.drop_path,
            eval_mode: recipe.model.eval_mode,
            accumulate: recipe.train.accumulate,
            seed: recipe.train.seed,
            compute: recipe.train.compute(),
        };
        let images = loader.data().len() + validation.as_ref().map_or(0, DataSet::len);
        let cached = team.size() == 1 && suffice(recipe, &state, &wants, images);
        let learner = Learner::new(state, settings, objective, teacher, &device)?.with_hooks(hooks);
        let mut run = Run {
            team,
            recipe,
            output,
            stop,
            stopping: false,
            events,
            learner,
            loader,
            validation,
            preprocess,
            features: None,
            steps_per_epoch,
            unreadable: HashSet::new(),
        };
        if cached && run.learner.state().progress.epochs < recipe.train.epochs {
            let began = Instant::now();
            run.features = Some(Arc::new(run.features()?));
            // They are a part of the epoch that waits for them.
            run.learner.state_mut().progress.running.seconds += began.elapsed().as_secs_f64();
        }
        Ok(run)
    }

    /// The features of all images.
    fn features(&mut self) -> Result<(Features, Option<Features>)> {
        let (network, device) = (self.learner.network(false), self.learner.device());
        let (workers, stop) = (self.recipe.train.workers, self.stop);
        let events = &mut *self.events;
        let mut progress = |at| events.caching(at);
        let transform = self.recipe.augment.transform(&self.preprocess)?;
        let train = self.loader.data();
        let on = (&network, &device);
        // As each epoch would compute them, and each evaluation.
        let (learning, judging) = (self.recipe.train.compute(), Compute::default());
        let train = Features::of(on, learning, train, transform, workers, stop, &mut progress)?;
        let validation = self.validation.as_ref().map(|data| {
            let transform = self.preprocess.clone();
            Features::of(on, judging, data, transform, workers, stop, &mut progress)
        });
        let validation = validation.transpose()?;
        for failure in &train.failures {
            self.events
                .warning(&format!("{}; another image takes its place", failure.reason));
        }
        Ok((train, validation))
    }

    /// All that is left of the run.
    fn epochs(&mut self) -> Result<Outcome> {
        let mut stopped_early = false;
        for epoch in self.learner.state().progress.epochs..self.recipe.train.epochs {
            if self.exhausted() {
                stopped_early = true;
                break;
            }
            self.epoch(epoch)?;
        }
        self.save_checkpoint(RunFolder::last_checkpoint)?;
        // Nobody looks for what the first process has not written yet.
        self.team.meet(false, Default::default())?;
        let progress = &self.learner.state().progress;
        Ok(Outcome {
            best: progress.best,
            epochs: progress.epochs,
            steps: progress.step,
            stopped_early,
        })
    }

    /// Whether the accuracy has not improved for so long that the recipe gives up.
    fn exhausted(&self) -> bool {
        let progress = &self.learner.state().progress;
        match (self.recipe.train.early_stop, progress.best) {
            (Some(patience), Some(best)) => progress.epochs > best.epoch + patience,
            _ => false,
        }
    }

    /// The rest of an epoch, and what comes after it.
    fn epoch(&mut self, epoch: usize) -> Result<()> {
        let done = self
            .learner
            .state()
            .progress
            .step
            .saturating_sub(epoch * self.steps_per_epoch);
        if let Some(features) = self.features.clone() {
            for indices in self.loader.order(epoch as u64, done)? {
                if self.stop.load(Ordering::Relaxed) {
                    return self.interrupted();
                }
                self.step_on(&features.0, epoch, &indices)?;
            }
        } else if done < self.steps_per_epoch {
            let mut waiting = Instant::now();
            for batch in self.loader.rest_of_epoch(epoch as u64, done)? {
                // A process of a team stops only when all do.
                if self.stopping || self.team.size() == 1 && self.stop.load(Ordering::Relaxed) {
                    return self.interrupted();
                }
                let batch = batch?;
                let wait = waiting.elapsed().as_secs_f64();
                self.step(epoch, batch, wait)?;
                waiting = Instant::now();
            }
        }
        if self.stopping {
            return self.interrupted();
        }
        let began = Instant::now();
        let mut record = match self.evaluate_epoch(epoch) {
            Err(Error::Interrupted) => return self.interrupted(),
            other => other?,
        };
        record.seconds += began.elapsed().as_secs_f64();
        self.finish_epoch(epoch, &record)
    }

    fn step(&mut self, epoch: usize, batch: Batch, wait: f64) -> Result<()> {
        let began = Instant::now();
        for failure in &batch.failures {
            if self.unreadable.insert(failure.index) {
                self.events
                    .warning(&format!("{}; another image takes its place", failure.reason));
            }
        }
        let (step, indices) = (self.learner.state().progress.step, batch.indices.clone());
        let lesson = self.lesson(step, batch)?;
        self.take(epoch, &lesson, &indices, began, wait)
    }

    /// A step on features of images.
    fn step_on(&mut self, features: &Features, epoch: usize, indices: &[usize]) -> Result<()> {
        let (began, device) = (Instant::now(), self.learner.device());
        let indices: Vec<usize> = indices.iter().map(|&index| features.readable(index)).collect();
        let classes = self.learner.state().spec.num_classes;
        let labels = labels(self.loader.data(), &indices)?;
        let targets = target_rows(&labels, classes, self.recipe.train.smoothing)?;
        let lesson = Lesson::of_features(features.batch(&indices, &device), targets, &device);
        self.take(epoch, &lesson, &indices, began, 0.0)
    }

    /// Takes the step, which began with `wait` seconds of waiting for its images.
    fn take(
        &mut self,
        epoch: usize,
        lesson: &Lesson,
        indices: &[usize],
        began: Instant,
        wait: f64,
    ) -> Result<()> {
        let step = self.learner.state().progress.step;
        let (lr, samples) = (self.lr(step), indices.len());
        let at = At {
            step,
            epoch,
            steps_per_epoch: self.steps_per_epoch,
            epochs: self.recipe.train.epochs,
        };
        let stop = || self.stop.load(Ordering::Relaxed);
        let stepped = self.learner.step_together(self.team, lesson, at, lr, stop);
        let (taken, stopping) = stepped.map_err(|error| match error {
            Error::NotFinite { what, value } => Error::Diverged {
                what,
                value,
                step,
                epoch,
                lr,
                files: self.names(indices),
            },
            other => other,
        })?;
        self.stopping = stopping;
        let running = &mut self.learner.state_mut().progress.running;
        running.steps += 1;
        running.loss += taken.loss;
        let Taken {
            loss,
            terms,
            grad_norm,
        } = taken;
        let seconds = wait + began.elapsed().as_secs_f64();
        self.learner.state_mut().progress.running.seconds += seconds;
        let record = StepRecord {
            step,
            epoch,
            lr,
            loss,
            terms: terms
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            grad_norm,
            samples: samples * self.team.size(),
            seconds,
            wait,
        };
        self.output.step(&record)?;
        self.events.step(&record);
        if (step + 1).is_multiple_of(self.recipe.train.save_every) {
            self.save_state()?;
        }
        Ok(())
    }

    fn lr(&self, step: usize) -> f64 {
        let peak = self
            .recipe
            .optim
            .peak_lr(self.recipe.train.batch_size * self.team.size());
        self.recipe
            .schedule
            .lr(peak, self.recipe.train.epochs, self.steps_per_epoch, step)
    }

    /// A batch as it is learned from: mixed (each process's part by itself), with target probabilities.
    fn lesson(&self, step: usize, batch: Batch) -> Result<Lesson> {
        let labels = batch.classes(self.loader.data())?;
        let Batch {
            mut images, shape, ..
        } = batch;
        let classes = self.learner.state().spec.num_classes;
        let mut key = Key::new(self.recipe.train.seed).with("mix").at(step as u64);
        if !self.team.leads() {
            key = key.at(self.team.rank() as u64);
        }
        let smoothing = self.recipe.train.smoothing;
        let targets = self
            .recipe
            .augment
            .mix(&mut images, shape, &labels, classes, smoothing, key)?;
        Lesson::new(images, shape, targets, classes, &self.learner.device())
    }

    /// The first few names of a batch.
    fn names(&self, indices: &[usize]) -> String {
        const SHOWN: usize = 8;
        let names: Vec<String> = indices
            .iter()
            .take(SHOWN)
            .map(|&i| self.loader.data().name(i))
            .collect();
        let more = indices.len().saturating_sub(SHOWN);
        names.join(", ")
            + &if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            }
    }

    fn interrupted(&mut self) -> Result<()> {
        self.save_state()?;
        Err(Error::Interrupted)
    }

    /// Saves the state, having made sure that all processes have the same.
    fn save_state(&mut self) -> Result<()> {
        if self.team.size() > 1 {
            let state = self.learner.state();
            self.team.agree([
                ("weights", state.checksum()),
                ("number of steps behind it", state.progress.step as u64),
                ("number of epochs behind it", state.progress.epochs as u64),
                ("number of processes", self.team.size() as u64),
            ])?;
        }
        self.output.state(self.learner.state())
    }
}

fn check(state: &State, train: &DataSet, recipe: &Recipe) -> Result<()> {
    let classes = state.spec.num_classes;
    if classes == 0 {
        return Err(Error::NoClasses {
            architecture: state.spec.architecture.clone(),
        });
    }
    if train.is_empty() {
        return Err(Error::Empty {
            what: "the training set",
        });
    }
    if train.class_names().len() > classes {
        return Err(Error::Label {
            label: train.class_names().len() - 1,
            classes,
        });
    }
    if recipe.train.use_ema && state.slots.iter().any(|slot| slot.ema.is_none()) {
        return Err(Error::recipe(
            "train.use_ema",
            &true,
            "false, unless `train.ema_decay` is set",
        ));
    }
    Ok(())
}
