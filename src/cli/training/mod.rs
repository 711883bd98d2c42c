//! What `train` and `distill` have in common: flags → recipe → plan → run → report.

mod flags;
mod report;
pub(super) mod study;
mod watch;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use vitesse::data::{DataSet, Loader, LoaderOptions};
use vitesse::engine::Precision;
use vitesse::measure::accuracy::{self, Exam, open_test};
use vitesse::measure::classify::Runner;
use vitesse::model::{Checkpoint, LoadOptions};
use vitesse_train::evaluate::EvalOptions;
use vitesse_train::events::{Outcome as Learned, Plan};
use vitesse_train::prepare::preprocess;
use vitesse_train::run::RunFolder;
use vitesse_train::teacher::Teacher;
use vitesse_train::{Error, Recipe, run_together};

use super::Console;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::shell::word;
use super::show::Show;
pub(super) use flags::{RecipeArgs, RunArgs};
use report::Report;
pub(super) use report::{DryRun, Report as RunReport};
pub(super) use watch::Watch;

/// A run as meant: the recipe is whole, the folder may be written, the test split is there if it is asked for.
pub(super) struct Training<'a> {
    verb: &'static str,
    recipe: Recipe,
    args: RunArgs,
    test: Option<DataSet>,
    console: &'a Console,
}

impl<'a> Training<'a> {
    /// Checks what can be checked before anything is computed.
    pub(super) fn new(
        verb: &'static str,
        recipe: Recipe,
        args: RunArgs,
        console: &'a Console,
    ) -> Result<Training<'a>> {
        // The other processes may look when the first has begun to write.
        if console.team().leads() {
            RunFolder::check(&args.output, &recipe, args.existing())?;
        }
        let test = args.test.then(|| open_test(&recipe.data.path)).transpose()?;
        Ok(Training {
            verb,
            recipe,
            args,
            test,
            console,
        })
    }

    pub(super) fn run(&self) -> Result<Outcome> {
        self.recipe.refuse_method()?;
        if self.args.dry_run {
            return Outcome::new(&self.dry_run()?);
        }
        let mut watch = Watch::new(self.console);
        let learned = run_together(
            self.console.team(),
            &self.recipe,
            &self.args.output,
            self.args.existing(),
            &Device::flex(),
            self.console.stop(),
            &mut watch,
        )
        .map_err(|error| self.failure(error))?;
        Outcome::new(&self.finish(&learned, watch)?)
    }

    /// What would be done, as a report.
    pub(super) fn dry_run(&self) -> Result<DryRun> {
        DryRun::new(&self.recipe, self.plan()?)
    }

    /// What comes after a run: the test, if it was asked for, and the report.
    pub(super) fn finish(&self, learned: &Learned, watch: Watch<'_>) -> Result<Report> {
        let plan = watch.into_plan();
        let checkpoint = self.checkpoint(learned);
        let test = self.test(&checkpoint)?;
        Report::new(&self.args.output, plan, learned, &checkpoint, test)
    }

    /// What would be done.
    fn plan(&self) -> Result<Plan> {
        let recipe = &self.recipe;
        let (learn, validation) = recipe.data.open()?;
        let student = recipe.model.checkpoint(&learn, recipe.train.seed)?;
        student
            .source
            .notes
            .iter()
            .for_each(|note| self.console.note(note));
        let processes = self.console.team().size();
        recipe
            .warnings(processes)
            .iter()
            .chain(&recipe.data.shortfall(&learn))
            .chain(&learn.notes())
            .for_each(|text| self.console.note(text));
        let prepared = preprocess(&student.spec, &student.config.pretrained_cfg)?;
        let teacher = match &recipe.distill.teacher {
            Some(path) if recipe.distill.distils() => {
                Some(Teacher::load(path, &student.spec, &prepared, &Device::flex())?)
            }
            _ => None,
        };
        let options = LoaderOptions {
            batch_size: recipe.train.batch_size * processes,
            order: recipe.augment.order(),
            drop_last: true,
            ..LoaderOptions::default()
        };
        let (train_samples, classes) = (learn.len(), student.spec.num_classes);
        let steps_per_epoch = Loader::new(learn, recipe.augment.transform(&prepared)?, options)?.batches()?;
        if steps_per_epoch == 0 {
            return Err(Failure::from(Error::Recipe {
                key: "train.batch_size".to_owned(),
                found: recipe.train.batch_size.to_string(),
                expected: format!("at most the {train_samples} images there are to learn from"),
            }));
        }
        let parameters = student.spec.costs()?.parameters();
        Ok(Plan {
            model: student.spec.architecture.clone(),
            parameters,
            trained: parameters,
            teacher: teacher.map(|teacher| teacher.name().to_owned()),
            classes,
            train_samples,
            validation_samples: validation.as_ref().map_or(0, DataSet::len),
            epochs: recipe.train.epochs,
            steps_per_epoch,
            batch_size: recipe.train.batch_size * processes,
            processes,
            done: 0,
        })
    }

    /// The checkpoint that a finished run is known by: the best, or the last where nothing was evaluated.
    pub(super) fn checkpoint(&self, learned: &Learned) -> PathBuf {
        let folder = if learned.best.is_some() { "best" } else { "final" };
        self.args.output.join(folder)
    }

    /// One evaluation on the test split, after which nothing is chosen any more.
    fn test(&self, path: &Path) -> Result<Option<accuracy::Report>> {
        let Some(data) = &self.test else { return Ok(None) };
        let checkpoint = Checkpoint::load(path, &LoadOptions::default())?;
        let exam = Exam {
            preprocess: preprocess(&checkpoint.spec, &checkpoint.config.pretrained_cfg)?,
            checkpoint,
            data: data.clone(),
            data_name: self.recipe.data.path.clone(),
            options: EvalOptions {
                workers: self.recipe.train.workers,
                fusion: self.recipe.distill.joint,
                ..EvalOptions::default()
            },
        };
        let mut show = Show::new(self.console);
        let mut runner = Runner::new(&exam.checkpoint, None, Precision::F32, &mut show)?;
        match exam.run(&mut runner, self.console.team(), self.console.stop(), &mut show) {
            Err(_) if self.console.check().is_err() => {
                let sentence = "interrupted while testing; the run itself is finished";
                Err(Failure::stopped(sentence).hint(format!("test it with `{} --test`", self.resume())))
            }
            found => {
                let found = found?;
                if self.console.team().leads() {
                    RunFolder::save_test(&self.args.output, &found)?;
                }
                Ok(Some(found))
            }
        }
    }

    pub(super) fn failure(&self, error: Error) -> Failure {
        match error {
            Error::Interrupted => {
                let sentence = format!(
                    "interrupted; the state is saved in `{}`",
                    self.args.output.display()
                );
                Failure::stopped(sentence).hint(format!("continue with `{}`", self.resume()))
            }
            error @ (Error::Peer { .. } | Error::Lost) => {
                let state = RunFolder::state_in(&self.args.output);
                let failure = Failure::from(error);
                if state.is_file() {
                    let hint = format!(
                        "the state is saved in `{}`; continue with `{}`",
                        self.args.output.display(),
                        self.resume()
                    );
                    failure.hint(hint)
                } else {
                    failure
                }
            }
            other => other.into(),
        }
    }

    /// The command that continues the run.
    fn resume(&self) -> String {
        let launcher = match self.console.team().size() {
            1 => String::new(),
            processes => format!("mpirun -n {processes} "),
        };
        let output = self.args.output.display().to_string();
        format!("{launcher}vitesse {} --resume -o {}", self.verb, word(&output))
    }
}
