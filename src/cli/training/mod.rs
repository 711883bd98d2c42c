//! What `train`, `distill` and `adapt` have in common: flags → recipe → plan → run → report.
//!
//! Which verb a recipe is given to decides nothing: where it has a `[method]`, the run is one by that method.

mod by_method;
mod flags;
mod report;
mod watch;

use std::path::Path;

use burn::tensor::Device;
use vitesse::data::DataSet;
use vitesse::measure::accuracy::{self, open_test};
use vitesse::measure::taught;
use vitesse::measure::trial::Entry;
use vitesse_train::events::Outcome as Learned;
use vitesse_train::run::RunFolder;
use vitesse_train::{Error, Recipe, run_together};

use super::Console;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::shell::word;
use super::show::Show;
pub(super) use flags::{RecipeArgs, RunArgs};
use report::DryRun;
pub(super) use report::Report;
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
        let test = args
            .test
            .then(|| open_test(&recipe.data.path, &recipe.data.decode()))
            .transpose()?;
        Ok(Training {
            verb,
            recipe,
            args,
            test,
            console,
        })
    }

    pub(super) fn run(&self) -> Result<Outcome> {
        if let Some(table) = &self.recipe.method {
            return self.run_by(&*Entry::of(table).method()?);
        }
        if self.args.dry_run {
            return Outcome::new(&self.dry_run()?);
        }
        Outcome::new(&self.learn()?)
    }

    /// Trains a model, by the recipe's method if it has one.
    pub(super) fn learn(&self) -> Result<Report> {
        if let Some(table) = &self.recipe.method {
            return Ok(self.learn_by(&*Entry::of(table).method()?)?.run);
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
        self.finish(&learned, watch)
    }

    /// What would be done, as a report.
    fn dry_run(&self) -> Result<DryRun> {
        let mut watch = Watch::new(self.console);
        let plan = self
            .recipe
            .plan(self.console.team(), &Device::flex(), &mut watch)?;
        DryRun::new(&self.recipe, plan)
    }

    /// What comes after a run: the test, if it was asked for, and the report.
    fn finish(&self, learned: &Learned, watch: Watch<'_>) -> Result<Report> {
        let plan = watch.into_plan();
        let checkpoint = RunFolder::checkpoint_in(&self.args.output);
        let test = self.test(&checkpoint)?;
        Report::new(&self.args.output, plan, learned, &checkpoint, test)
    }

    /// One evaluation on the test split, after which nothing is chosen any more.
    fn test(&self, path: &Path) -> Result<Option<accuracy::Report>> {
        let Some(data) = &self.test else { return Ok(None) };
        let folders = (self.args.output.as_path(), path);
        let mut show = Show::new(self.console);
        let (team, stop) = (self.console.team(), self.console.stop());
        match taught::test(&self.recipe, folders, data, team, stop, &mut show) {
            Err(_) if self.console.check().is_err() => {
                let sentence = "interrupted while testing; the run itself is finished";
                Err(Failure::stopped(sentence).hint(format!("test it with `{} --test`", self.resume())))
            }
            found => Ok(Some(found?)),
        }
    }

    fn failure(&self, error: Error) -> Failure {
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
