//! What a model knows, put to other uses: on tasks that it was not trained for, a new head alone and RepAdapter, merged.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use toml::{Table, Value};
use vitesse_adapt::Method;
use vitesse_data::{DataSet, OpenOptions, Split, open};
use vitesse_train::Recipe;

use super::{Latency, Merged, Setup, Trial, defaults, table};
use crate::merge::{Folded, fold};
use crate::timing::Budget;
use crate::{Result, TrainEvents};

/// Where a merged model is put beside its adapter.
const MERGED: &str = "merged";
/// Epochs over features that are computed once cost nothing: how many times as many the head alone has.
const HEAD_EPOCHS: usize = 5;
/// The rate of RepAdapter in runs this short.
const RATE: f64 = 5e-3;

/// A model and the tasks that it is put to.
#[derive(Debug)]
pub struct Reuse<'a> {
    /// Where the model is.
    pub base: PathBuf,
    /// Where it will be, which is what recipes say.
    pub base_later: PathBuf,
    /// The folder of everything.
    pub folder: &'a Path,
    /// Where in it the tasks have theirs.
    pub place: &'a Path,
    /// The tasks of the set that the program draws.
    pub tasks: &'a [&'a str],
    /// Images to learn from, to validate on and to test on.
    pub images: [usize; 3],
    /// Epochs of RepAdapter.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// The seed.
    pub seed: u64,
    /// Threads that read images.
    pub workers: usize,
    /// How often, and how long, each model has its turn where latency is measured.
    pub turns: (usize, Budget),
}

/// What it came to.
#[derive(Debug, Serialize)]
pub struct Reused {
    /// Images that each task was learned from.
    pub train_images: usize,
    /// Task by task.
    pub tasks: Vec<Task>,
    /// Measured on the last task's models; none where its adapter could not be merged.
    pub latency: Option<Latency>,
}

/// One task.
#[derive(Debug, Serialize)]
pub struct Task {
    /// The data set.
    pub task: String,
    /// Accuracy of guessing, in percent.
    pub chance: f64,
    /// With nothing but a new head, on the test split.
    pub linear_top1: f64,
    /// With RepAdapter, merged.
    pub repadapter_top1: f64,
    /// RepAdapter's.
    pub method_param_count: usize,
    /// Of all the model's parameters.
    pub share: f64,
    /// Size of the adapter's files.
    pub adapter_bytes: u64,
    /// Of the logits before and after merging, as a share of the largest.
    pub largest_difference: f64,
    /// The adapter, within the folder.
    pub adapter: String,
    /// The merged model, within the folder.
    pub merged: String,
}

impl Reuse<'_> {
    /// All of them.
    ///
    /// # Errors
    /// As [`Setup::train`] and [`Setup::test`].
    pub fn run(&self, stop: &AtomicBool, events: &mut dyn TrainEvents) -> Result<Reused> {
        let mut tasks = Vec::new();
        let mut last = None;
        for task in self.tasks {
            let (found, setup) = self.task(task, stop, events)?;
            let text = format!(
                "{}: top-1 {:.1} % with a new head alone, {:.1} % with RepAdapter, merged",
                found.task, found.linear_top1, found.repadapter_top1
            );
            events.say("tested", &text);
            tasks.push(found);
            last = Some(setup);
        }
        let latency = match last {
            Some(setup) => setup.latency(self.turns, stop, events.as_events())?,
            None => None,
        };
        let [train_images, ..] = self.images;
        Ok(Reused {
            train_images,
            tasks,
            latency,
        })
    }

    fn task(&self, task: &str, stop: &AtomicBool, events: &mut dyn TrainEvents) -> Result<(Task, Setup)> {
        let data = format!("shapes:{task}");
        let options = OpenOptions {
            split: Some(Split::Test),
            ..OpenOptions::default()
        };
        let [_, _, test] = self.images;
        let test = open(&data, &options)?.limit(test, 0);
        let place = self.place.join(task);
        let (_, linear) = self.trial("linear", &data, &place, &test, stop, events)?;
        let (setup, trial) = self.trial("repadapter", &data, &place, &test, stop, events)?;
        if let Folded::Whole(merged) = fold(&*setup.method, &setup.trained()?)? {
            merged.save(&self.folder.join(&place).join(MERGED), false)?;
        }
        let top1 = |trial: &Trial| trial.test.as_ref().map_or(f64::NAN, |test| test.top1);
        let merged = trial.test.as_ref().and_then(|test| test.merged.as_ref());
        let within = |path: PathBuf| path.display().to_string();
        let found = Task {
            chance: 100.0 / test.class_names().len() as f64,
            linear_top1: top1(&linear),
            repadapter_top1: top1(&trial),
            method_param_count: trial.method_param_count,
            share: trial.method_param_count as f64 / trial.param_count as f64,
            adapter_bytes: trial.adapter_bytes,
            largest_difference: match merged {
                Some(Merged::Folded {
                    largest_difference, ..
                }) => *largest_difference,
                _ => f64::NAN,
            },
            adapter: within(place.join("repadapter").join(super::ADAPTER)),
            merged: within(place.join(MERGED)),
            task: data,
        };
        Ok((found, setup))
    }

    fn trial(
        &self,
        name: &str,
        data: &str,
        place: &Path,
        test: &DataSet,
        stop: &AtomicBool,
        events: &mut dyn TrainEvents,
    ) -> Result<(Setup, Trial)> {
        let method = Method::parse(name, &[])?;
        let setup = Setup {
            label: name.to_owned(),
            recipe: self.recipe(&method, data)?,
            method: method.into(),
            folder: self.folder.join(place).join(name),
            base: Some(self.base.clone()),
            memory: false,
        };
        let trial = setup.train(stop, events)?;
        let trial = setup.test(trial, test, stop, events.as_events())?;
        Ok((setup, trial))
    }

    fn recipe(&self, method: &Method, data: &str) -> Result<Recipe> {
        let whole = |n: usize| Value::Integer(n as i64);
        let [train, validation, _] = self.images;
        let head_alone = matches!(method, Method::Linear(_));
        let epochs = if head_alone {
            HEAD_EPOCHS * self.epochs
        } else {
            self.epochs
        };
        let mut keys = vec![
            (
                "model.checkpoint",
                Value::String(self.base_later.display().to_string()),
            ),
            ("data.path", Value::String(data.to_owned())),
            ("data.limit", whole(train)),
            ("data.validation_limit", whole(validation)),
            ("train.epochs", whole(epochs)),
            ("train.batch_size", whole(self.batch_size)),
            ("train.seed", Value::Integer(self.seed as i64)),
            ("train.workers", whole(self.workers)),
            ("train.eval_every", whole(epochs)),
            ("schedule.warmup_epochs", Value::Float(0.5)),
            ("schedule.per", Value::String("step".to_owned())),
            ("method", table(&**method)?),
        ];
        if !head_alone {
            keys.push(("optim.lr", Value::Float(RATE)));
        }
        Ok(Recipe::layered(
            &defaults(&**method),
            Table::new(),
            &keys,
            "quickstart",
        )?)
    }
}
