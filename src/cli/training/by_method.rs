//! A run whose recipe has a method: what would learn and what did, and the adapter that is left.

use std::fmt;

use serde::Serialize;
use vitesse::measure;
use vitesse::measure::trial::Job;
use vitesse_train::method::{Method, MethodPlan, Table, Trainable, named};

use super::report::{DryRun, Report as RunReport};
use super::{Training, Watch};
use crate::cli::failure::Result;
use crate::cli::outcome::Outcome;
use crate::cli::show::Show;

/// What a run came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    method: Table,
    trainable: Trainable,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<String>,
    #[serde(flatten)]
    pub(super) run: RunReport,
}

/// What would be done.
#[derive(Debug, Serialize)]
struct Dry {
    method: Table,
    #[serde(flatten)]
    plan: MethodPlan,
    #[serde(flatten)]
    run: DryRun,
}

impl Training<'_> {
    pub(super) fn run_by(&self, method: &dyn Method) -> Result<Outcome> {
        if !self.args.dry_run {
            return Outcome::new(&self.learn_by(method)?);
        }
        let job = self.job(method);
        let ready = job.ready(&mut Show::new(self.console))?;
        let (plan, run) = job.plan(&ready, self.console.team(), &mut Watch::new(self.console))?;
        Outcome::new(&Dry {
            method: named(method),
            plan,
            run: DryRun::new(&self.recipe, run)?,
        })
    }

    /// Trains by a method.
    pub(super) fn learn_by(&self, method: &dyn Method) -> Result<Report> {
        let job = self.job(method);
        let ready = job.ready(&mut Show::new(self.console))?;
        let mut watch = Watch::new(self.console);
        for note in &ready.base.source.notes {
            self.console.note(note);
        }
        self.console.note(&ready.trainable().to_string());
        let done = job
            .run(ready, self.console.team(), self.console.stop(), &mut watch)
            .map_err(|error| match error {
                measure::Error::Train(error) => self.failure(error),
                other => other.into(),
            })?;
        Ok(Report {
            run: self.finish(&done.outcome, watch)?,
            adapter: done.adapter.map(|folder| folder.display().to_string()),
            trainable: done.trainable,
            method: named(method),
        })
    }

    fn job<'a>(&'a self, method: &'a dyn Method) -> Job<'a> {
        Job {
            method,
            recipe: &self.recipe,
            output: &self.args.output,
            existing: self.args.existing(),
            base: None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(adapter) = &self.adapter {
            writeln!(f, "adapter     {adapter}")?;
        }
        write!(f, "{}", self.run)
    }
}

impl fmt::Display for Dry {
    /// The recipe can be taken from here into a file: the rest is comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.plan.to_string().lines() {
            writeln!(f, "# {line}")?;
        }
        write!(f, "{}", self.run)
    }
}
