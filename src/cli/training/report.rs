//! What `train` and `distill` report: what a run came to, or what it would be.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vitesse::data::{OpenOptions, Split, splits};
use vitesse::measure::accuracy;
use vitesse::measure::merge::{Folded, fold};
use vitesse::measure::trial::Entry;
use vitesse::model::{Checkpoint, LoadOptions};
use vitesse::report::format::{self, counted};
use vitesse_train::Recipe;
use vitesse_train::events::{Outcome as Learned, Plan};
use vitesse_train::recipe::DataConfig;
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
        let next = next(output, &recipe, checkpoint, test.is_some())?;
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
            checkpoint: checkpoint.display().to_string(),
            last_checkpoint: output.join(FINAL).display().to_string(),
            test,
            next,
            data: recipe.data.path,
        })
    }
}

/// The command that leads on: what was learned is folded where it can be, else looked at on pictures it did not learn from.
fn next(output: &Path, recipe: &Recipe, checkpoint: &Path, tested: bool) -> Result<String> {
    let typed = |path: &Path| word(&path.display().to_string()).into_owned();
    let adapter = output.join(ADAPTER);
    let base = recipe.model.checkpoint.as_deref().filter(|_| adapter.is_dir());
    let model = match (base, &recipe.method) {
        (None, _) | (_, None) if tested => {
            return Ok(format!("vitesse inspect --model {}", typed(checkpoint)));
        }
        (Some(base), Some(method)) => {
            let trained = Checkpoint::load(checkpoint, &LoadOptions::default())?;
            let both = format!("--model {} --adapter {}", typed(base), typed(&adapter));
            if !matches!(fold(&*Entry::of(method).method()?, &trained)?, Folded::Refused(_)) {
                let mut merged = output.as_os_str().to_owned();
                merged.push("-merged");
                return Ok(format!("vitesse merge {both} -o {}", typed(Path::new(&merged))));
            }
            both
        }
        _ => format!("--model {}", typed(checkpoint)),
    };
    let data = word(&recipe.data.path);
    Ok(format!(
        "vitesse eval {model} --data {data}{}",
        unseen(&recipe.data)
    ))
}

/// What `eval` has to be told so that it takes pictures that were not learned from: nothing where parts are stored for it.
fn unseen(data: &DataConfig) -> &'static str {
    let stored = splits(&data.path).unwrap_or_default();
    let usual = OpenOptions::default();
    let held_back = data.split == Split::Train && data.validation.is_none();
    let as_usual = (data.val_fraction, data.seed) == (usual.val_fraction, usual.seed);
    let learned_only = stored
        .iter()
        .all(|part| matches!(part, Split::Train | Split::All));
    if learned_only && held_back && as_usual {
        " --split validation"
    } else {
        ""
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
        let validated = self.plan.as_ref().map_or(0, |plan| plan.validation_images);
        match &self.best {
            Some(best) => rows.push((
                "best",
                format!(
                    "epoch {} of {}: validation top-1 {}, loss {:.3}",
                    best.epoch + 1,
                    self.epochs,
                    format::share(best.top1, validated),
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
                    "top-1 {}, balanced accuracy {}, on {} of {}; nothing was chosen by them",
                    format::share(test.joint.top1, test.images),
                    format::share(test.joint.balanced_accuracy, test.images),
                    counted(test.images, "image"),
                    self.data
                ),
            ));
        }
        write!(f, "{}\nNext:\n  {}\n", pairs(rows), self.next)
    }
}
