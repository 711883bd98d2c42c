//! What a student knows, put to other uses: three tasks that it was not trained for, from few pictures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use toml::Value;
use vitesse::adapt::Method as Way;
use vitesse::data::{OpenOptions, Split, open};
use vitesse::measure::merge::{Folded, fold};
use vitesse::measure::timing::Budget;
use vitesse::measure::trial::{Latency, Merged, Setup, Trial, defaults, table};
use vitesse::report::{Content, Table, format, left, right};
use vitesse_train::Recipe;

use super::experiment::{Method, Size};
use super::report::points;
use crate::cli::Console;
use crate::cli::failure::Result;
use crate::cli::shell::word;
use crate::cli::show::ShowRuns;

/// Where a merged model is put beside its adapter.
const MERGED: &str = "merged";
/// The folder, and the key in the JSON document.
pub(super) const FOLDER: &str = "adapted";
/// The student that is adapted: the one that learned from labels alone.
pub(super) const BASE: Method = Method::None;
/// What it has never been asked.
const TASKS: [&str; 3] = ["plain-location", "plain-count", "plain-orientation"];
/// Rounds in which the models take turns where latency is measured, and how long a turn is.
const ROUNDS: usize = 15;
const TURN: Budget = Budget {
    time: Duration::from_millis(20),
    runs: 3,
};

/// What adapting came to.
#[derive(Debug, Serialize)]
pub(super) struct Adapted {
    /// The student that was adapted.
    base: Method,
    pub(super) train_images: usize,
    pub(super) tasks: Vec<Task>,
    /// Measured on the last task's models.
    latency: Option<Latency>,
}

/// One task.
#[derive(Debug, Serialize)]
pub(super) struct Task {
    pub(super) task: String,
    /// Accuracy of guessing, in percent.
    pub(super) chance: f64,
    /// With nothing but a new head, on the test split.
    pub(super) linear_top1: f64,
    /// With RepAdapter, merged.
    pub(super) repadapter_top1: f64,
    parameters: usize,
    share: f64,
    pub(super) adapter_bytes: u64,
    /// Of the logits before and after merging, as a share of the largest.
    largest_difference: f64,
    /// Within the output folder.
    adapter: String,
    pub(super) merged: String,
}

/// Adapts the student in `folder`, of an experiment that will be in the folder `output`.
pub(super) fn adapt(
    size: Size,
    seed: u64,
    workers: usize,
    (folder, output): (&Path, &Path),
    console: &Console,
) -> Result<Adapted> {
    let (stop, mut show) = (console.stop(), ShowRuns::new(console));
    let mut tasks = Vec::new();
    let mut last = None;
    for task in TASKS {
        let data = format!("shapes:{task}");
        let options = OpenOptions {
            split: Some(Split::Test),
            ..OpenOptions::default()
        };
        let test = open(&data, &options)?.limit(size.test, 0);
        let mut run = |way: Way| -> Result<(Setup, Trial)> {
            let place = Path::new(FOLDER).join(task).join(way.name());
            let setup = Setup {
                label: way.name().to_owned(),
                recipe: recipe(&way, &data, size, seed, workers, output)?,
                method: way.into(),
                folder: folder.join(place),
                base: Some(student(folder)),
                memory: false,
            };
            let trial = setup
                .train(stop, &mut show)
                .and_then(|trial| setup.test(trial, &test, stop, &mut show));
            // Nothing stays of a quickstart that is interrupted, so there is nothing to go on with.
            console.check()?;
            Ok((setup, trial?))
        };
        let (_, linear) = run(Way::parse("linear", &[])?)?;
        let (setup, trial) = run(Way::parse("repadapter", &[])?)?;
        let place = Path::new(FOLDER).join(task);
        if let Folded::Whole(merged) = fold(&*setup.method, &setup.trained()?)? {
            merged.save(&folder.join(&place).join(MERGED), false)?;
        }
        let top1 = |trial: &Trial| trial.test.as_ref().map_or(f64::NAN, |test| test.top1);
        let merged = trial.test.as_ref().and_then(|test| test.merged.as_ref());
        let found = Task {
            chance: 100.0 / test.class_names().len() as f64,
            linear_top1: top1(&linear),
            repadapter_top1: top1(&trial),
            parameters: trial.method_parameters,
            share: trial.method_parameters as f64 / trial.total_parameters as f64,
            adapter_bytes: trial.adapter_bytes,
            largest_difference: match merged {
                Some(Merged::Folded {
                    largest_difference, ..
                }) => *largest_difference,
                _ => f64::NAN,
            },
            adapter: place.join("repadapter").join("adapter").display().to_string(),
            merged: place.join(MERGED).display().to_string(),
            task: data,
        };
        let text = format!(
            "{}: top-1 {} with a new head alone, {} with RepAdapter, merged",
            found.task,
            points(found.linear_top1),
            points(found.repadapter_top1)
        );
        console.say("tested", &text);
        tasks.push(found);
        last = Some(setup);
    }
    let latency = match last {
        Some(setup) => setup.latency((ROUNDS, TURN), stop, &mut show)?,
        None => None,
    };
    Ok(Adapted {
        base: BASE,
        train_images: size.adapt,
        tasks,
        latency,
    })
}

fn student(folder: &Path) -> PathBuf {
    folder.join(BASE.key()).join("best")
}

fn recipe(way: &Way, data: &str, size: Size, seed: u64, workers: usize, output: &Path) -> Result<Recipe> {
    let whole = |n: usize| Value::Integer(n as i64);
    let mut keys = defaults(&**way);
    // Epochs over features that are computed once cost nothing.
    let epochs = match way {
        Way::Linear(_) => 5 * size.adapt_epochs,
        _ => size.adapt_epochs,
    };
    keys.extend([
        (
            "model.checkpoint",
            Value::String(student(output).display().to_string()),
        ),
        ("data.path", Value::String(data.to_owned())),
        ("data.limit", whole(size.adapt)),
        ("data.validation_limit", whole(size.validation)),
        ("train.epochs", whole(epochs)),
        ("train.batch_size", whole(size.batch_size)),
        ("train.seed", Value::Integer(seed as i64)),
        ("train.workers", whole(workers)),
        ("train.eval_every", whole(epochs)),
        ("schedule.warmup_epochs", Value::Float(0.5)),
        ("schedule.per", Value::String("step".to_owned())),
    ]);
    keys.push(("method", table(&**way)?));
    if !matches!(way, Way::Linear(_)) {
        keys.push(("optim.lr", Value::Float(5e-3)));
    }
    Ok(Recipe::parse("", "quickstart", &keys)?)
}

impl Adapted {
    /// What merging leaves, in a sentence.
    pub(super) fn finding(&self) -> String {
        let Some(latency) = &self.latency else {
            return "the adapter could not be merged".into();
        };
        format!(
            "one picture takes {:.2} times as long with the adapter beside the student, {:.2} times merged{}",
            latency.with_ops.median,
            latency.merged.median,
            if latency.same_plan {
                ", with the plain student's plan step for step"
            } else {
                ""
            }
        )
    }

    /// The section of the page.
    pub(super) fn section(&self, output: &str) -> Content {
        let mut table = Table::new([
            left("task"),
            right("guessing"),
            right("new head alone"),
            right("RepAdapter, merged"),
            right("adapter's parameters"),
            right("share %"),
            right("adapter's files"),
            right("logits moved by merging"),
        ]);
        for task in &self.tasks {
            table.push([
                task.task.clone(),
                points(task.chance),
                points(task.linear_top1),
                points(task.repadapter_top1),
                format::count(task.parameters as u64),
                format!("{:.2}", 100.0 * task.share),
                format::bytes(task.adapter_bytes),
                format!("{:.0e}", task.largest_difference),
            ]);
        }
        let text = format!(
            "The student that learned from labels alone was asked three things it was never taught, with {} pictures each. Its \
             own weights stay as they are: a new head learns, alone or with RepAdapter's bottlenecks, which are folded into the \
             weights afterwards. Then {}.",
            format::count(self.train_images as u64),
            self.finding()
        );
        let mut content = Content::new().text(&text).table(&table);
        if let Some(task) = self.tasks.first() {
            let inside = |path: &str| word(&format!("{output}/{path}")).into_owned();
            let merged = format!(
                "vitesse eval --model {} --data {} --split test",
                inside(&task.merged),
                task.task
            );
            let again = format!(
                "vitesse merge --model {} --adapter {} -o merged",
                inside(&format!("{}/best", self.base.key())),
                inside(&task.adapter)
            );
            content = content.command(&merged).command(&again);
        }
        content
    }
}
