//! What `train` and `distill` report: what a run came to, or what it would be.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vitesse::measure::accuracy;
use vitesse::report::format::{self, counted};
use vitesse_train::Recipe;
use vitesse_train::events::{Outcome as Learned, Plan};
use vitesse_train::run::{ADAPTER, FINAL, RunFolder};

use crate::cli::failure::Result;
use crate::cli::outcome::pairs;
use crate::cli::shell::word;

/// What is learned from what. Keys as in `eval` where it has them.
#[derive(Debug, Serialize)]
struct Facts {
    model: String,
    param_count: usize,
    num_classes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<String>,
    train_images: usize,
    validation_images: usize,
    epochs: usize,
    steps_per_epoch: usize,
    /// Images of an epoch that are no whole batch; others in each epoch.
    images_left_over: usize,
    /// Of all processes together.
    batch_size: usize,
    processes: usize,
}

impl From<Plan> for Facts {
    fn from(plan: Plan) -> Facts {
        Facts {
            model: plan.model,
            param_count: plan.parameters,
            num_classes: plan.classes,
            teacher: plan.teacher,
            train_images: plan.train_samples,
            validation_images: plan.validation_samples,
            epochs: plan.epochs,
            steps_per_epoch: plan.steps_per_epoch,
            images_left_over: plan
                .train_samples
                .saturating_sub(plan.steps_per_epoch * plan.batch_size),
            batch_size: plan.batch_size,
            processes: plan.processes,
        }
    }
}

impl Facts {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let count = |n: usize| format::count(n as u64);
        let mut rows = vec![
            ("model", self.model.clone()),
            ("parameters", format::si(self.param_count as f64, "")),
            ("classes", count(self.num_classes)),
        ];
        rows.extend(self.teacher.clone().map(|teacher| ("teacher", teacher)));
        rows.push((
            "images",
            format!(
                "{} to learn from, {} to validate on",
                count(self.train_images),
                count(self.validation_images)
            ),
        ));
        rows.push((
            "steps",
            format!(
                "{} = {} of {}, {} each{}",
                count(self.epochs * self.steps_per_epoch),
                counted(self.epochs, "epoch"),
                count(self.steps_per_epoch),
                counted(self.batch_size, "image"),
                match self.images_left_over {
                    0 => String::new(),
                    n => format!("; {n} left over, others each time"),
                }
            ),
        ));
        rows
    }
}

/// What would be done.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct DryRun {
    recipe: Recipe,
    plan: Facts,
    #[serde(skip)]
    toml: String,
}

impl DryRun {
    pub(super) fn new(recipe: &Recipe, plan: Plan) -> Result<DryRun> {
        Ok(DryRun {
            recipe: recipe.clone(),
            plan: plan.into(),
            toml: recipe.to_toml()?,
        })
    }
}

impl fmt::Display for DryRun {
    /// The recipe can be taken from here into a file: the rest is comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in pairs(self.plan.rows()).lines() {
            writeln!(f, "# {line}")?;
        }
        write!(f, "\n{}", self.toml)
    }
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Report {
    output: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Facts>,
    /// Epochs finished.
    epochs: usize,
    /// Optimiser steps taken.
    steps: usize,
    stopped_early: bool,
    /// Of all epochs, evaluation included, however often the run was resumed.
    seconds: f64,
    /// The best evaluation on the validation split, if there was one.
    best: Option<Best>,
    /// The best checkpoint, or the last where nothing was evaluated.
    checkpoint: String,
    /// The checkpoint after the last step.
    last_checkpoint: String,
    /// The one evaluation on the test split, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<accuracy::Report>,
    /// The next command.
    next: String,
    #[serde(skip)]
    data: String,
}

#[derive(Debug, Serialize)]
struct Best {
    /// Counted from 0, as in `summary.csv`.
    epoch: usize,
    top1: f64,
    loss: f64,
}

impl Report {
    pub(super) fn new(
        output: &Path,
        plan: Option<Plan>,
        learned: &Learned,
        checkpoint: &Path,
        test: Option<accuracy::Report>,
    ) -> Result<Report> {
        let recipe = RunFolder::recipe(output)?;
        let checkpoint = checkpoint.display().to_string();
        let verb = if test.is_some() { "inspect" } else { "eval" };
        let mut next = format!("vitesse {verb} --model {}", word(&checkpoint));
        let base = recipe.model.checkpoint.as_deref();
        let adapter = output.join(ADAPTER);
        let mut merged = output.as_os_str().to_owned();
        merged.push("-merged");
        let merged = Path::new(&merged);
        if let Some(base) = base.filter(|_| adapter.is_dir()) {
            let [base, adapter, merged] =
                [base, &adapter, merged].map(|path| word(&path.display().to_string()).into_owned());
            next = format!("vitesse merge --model {base} --adapter {adapter} -o {merged}");
        } else if test.is_none() {
            next.push_str(&format!(" --data {}", word(&recipe.data.path)));
        }
        Ok(Report {
            output: output.display().to_string(),
            plan: plan.map(Facts::from),
            epochs: learned.epochs,
            steps: learned.steps,
            stopped_early: learned.stopped_early,
            seconds: RunFolder::earlier_seconds(output)?,
            best: learned.best.map(|best| Best {
                epoch: best.epoch,
                top1: best.top1,
                loss: best.loss,
            }),
            checkpoint,
            last_checkpoint: output.join(FINAL).display().to_string(),
            test,
            next,
            data: recipe.data.path,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.plan.as_ref().map(Facts::rows).unwrap_or_default();
        let early = if self.stopped_early {
            ", stopped early: no better epoch for long"
        } else {
            ""
        };
        rows.push((
            "trained",
            format!(
                "{} in {}{early}",
                counted(self.epochs, "epoch"),
                format::duration(self.seconds)
            ),
        ));
        match &self.best {
            Some(best) => rows.push((
                "best",
                format!(
                    "epoch {} of {}: validation top-1 {:.3} %, loss {:.4}",
                    best.epoch + 1,
                    self.epochs,
                    best.top1,
                    best.loss
                ),
            )),
            None => rows.push(("best", "unknown: there was nothing to validate on".to_owned())),
        }
        rows.push(("checkpoint", self.checkpoint.clone()));
        if let Some(test) = &self.test {
            rows.push((
                "test",
                format!(
                    "top-1 {:.3} %, balanced accuracy {:.3} %, on {} of {}; nothing was chosen by them",
                    test.joint.top1,
                    test.joint.balanced_accuracy,
                    counted(test.images, "image"),
                    self.data
                ),
            ));
        }
        write!(f, "{}\nNext:\n  {}\n", pairs(rows), self.next)
    }
}
