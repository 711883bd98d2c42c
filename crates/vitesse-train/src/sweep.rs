//! A study: several recipes that differ in a few keys, each with several seeds, evaluated alike.
//!
//! One file says it all: a `base` recipe, what is trained once before (`first`, teachers), the arms with the keys in which
//! they differ, the seeds, the data that everything is tested on once at the end, and a budget. Runs go seed by seed, so
//! that whatever is finished when the budget ends compares all arms. A sweep that is killed is resumed by running it
//! again: finished runs are kept, the one that was under way goes on where it was.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use vitesse_data::{OpenOptions, Split, open};
use vitesse_model::storage::atomic_write;
use vitesse_model::network::Network;
use vitesse_model::{Checkpoint, LoadOptions};

use crate::evaluate::{EvalOptions, Evaluated, evaluate};
use crate::metrics::Spread;
use crate::prepare::preprocess;
use crate::recipe::Recipe;
use crate::run::Existing;
use crate::tokens::{TokenSimilarity, token_similarity};
use crate::trainer::Events;
use crate::{Error, Result, start};

/// A study, as its file says it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// What the study is called.
    pub name: String,
    /// The seeds of every arm.
    pub seeds: Vec<u64>,
    /// No run is begun once the finished ones took so many hours together.
    pub budget_hours: f64,
    /// The data set whose test split every finished model is evaluated on, once.
    pub test: PathBuf,
    /// The recipe that all have in common.
    pub base: Table,
    /// What is trained once, with the first seed, before the arms; by name, keys that differ from `base`.
    #[serde(default)]
    pub first: BTreeMap<String, Table>,
    /// The arms, in the order of the table.
    pub arm: Vec<Arm>,
}

/// One arm of a study.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name: a folder, and a row of the table.
    pub name: String,
    /// Keys that differ from `base`. A value `@NAME` is the checkpoint of what `first` trained under that name.
    #[serde(default)]
    pub set: Table,
}

/// One finished run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// The arm, or the name in `first`.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// Test accuracy in percent: both heads together by the mean of logits, or the one head there is.
    pub top1: f64,
    /// The class head alone.
    pub class_top1: Option<f64>,
    /// The distillation head alone.
    pub distillation_top1: Option<f64>,
    /// Epochs trained.
    pub epochs: usize,
    /// Seconds of training and testing, all resumed parts together.
    pub seconds: f64,
    /// How alike the two tokens are, in a distilled model.
    pub tokens: Option<TokenSimilarity>,
}

/// Is told how a study goes.
pub trait SweepEvents: Events {
    /// A run begins, or goes on.
    fn run(&mut self, _arm: &str, _seed: u64, _index: usize, _of: usize) {}
    /// A run is finished, perhaps long ago.
    fn finished(&mut self, _: &Finished) {}
}

impl SweepEvents for () {}

/// What a study came to.
#[derive(Debug, Clone, Serialize)]
pub struct Study {
    /// Every finished run, teachers first.
    pub runs: Vec<Finished>,
    /// Runs for which the budget did not last, as `arm/seed`.
    pub missing: Vec<String>,
}

/// What stands beside a finished run.
const RESULT: &str = "result.json";

impl Sweep {
    /// Reads a study's file.
    ///
    /// # Errors
    /// A file that cannot be read or is no study, and recipes in it that are none.
    pub fn read(path: &Path) -> Result<Sweep> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        let sweep: Sweep = toml::from_str(&text)
            .map_err(|error| Error::Recipe { path: path.to_owned(), detail: error.to_string() })?;
        if sweep.seeds.is_empty() || sweep.arm.is_empty() {
            return Err(Error::Recipe {
                path: path.to_owned(),
                detail: "a study needs at least one seed and one arm".into(),
            });
        }
        for (name, seed, keys) in sweep.runs() {
            sweep.recipe(keys, seed, Path::new(&name))?.validate()?;
        }
        Ok(sweep)
    }

    /// Every run: what comes first, then the arms, seed by seed.
    fn runs(&self) -> Vec<(String, u64, &Table)> {
        let seed = self.seeds.first().copied().unwrap_or_default();
        let first = self.first.iter().map(|(name, keys)| (name.clone(), seed, keys));
        let arms = self.seeds.iter().flat_map(|&seed| self.arm.iter().map(move |arm| (arm.name.clone(), seed, &arm.set)));
        first.chain(arms).collect()
    }

    /// The recipe of one run, with teachers looked up in `out`.
    fn recipe(&self, keys: &Table, seed: u64, out: &Path) -> Result<Recipe> {
        let mut table = self.base.clone();
        merge(&mut table, keys);
        let train = table.entry("train").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(train) = train {
            train.insert("seed".into(), Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX)));
        }
        let first_seed = self.seeds.first().copied().unwrap_or_default();
        resolve(&mut Value::Table(table.clone()), &|name| folder(out, name, first_seed).join("last"), &mut table);
        Recipe::from_table(table)
    }

    /// Runs the study in the folder `out`, or goes on with it.
    ///
    /// # Errors
    /// Whatever keeps a run from being finished; [`Error::Interrupted`] when `stop` was set.
    pub fn run(&self, out: &Path, device: &Device, stop: &AtomicBool, events: &mut dyn SweepEvents) -> Result<Study> {
        let runs = self.runs();
        let mut study = Study { runs: Vec::new(), missing: Vec::new() };
        for (index, (name, seed, keys)) in runs.iter().enumerate() {
            let path = folder(out, name, *seed);
            let result = path.join(RESULT);
            let finished = if result.is_file() {
                read_result(&result)?
            } else if study.runs.iter().map(|run| run.seconds).sum::<f64>() > self.budget_hours * 3600.0 {
                study.missing.push(format!("{name}/{seed}"));
                continue;
            } else {
                events.run(name, *seed, index, runs.len());
                let recipe = self.recipe(keys, *seed, out)?;
                self.one(name, *seed, &recipe, &path, device, stop, events)?
            };
            events.finished(&finished);
            study.runs.push(finished);
        }
        Ok(study)
    }

    #[allow(clippy::too_many_arguments)]
    fn one(
        &self,
        name: &str,
        seed: u64,
        recipe: &Recipe,
        path: &Path,
        device: &Device,
        stop: &AtomicBool,
        events: &mut dyn SweepEvents,
    ) -> Result<Finished> {
        let begin = Instant::now();
        let existing = if path.exists() { Existing::Resume } else { Existing::Refuse };
        let outcome = start::run(recipe, path, existing, device, stop, events)?;
        let checkpoint = Checkpoint::load(path.join("last"), &LoadOptions::default())?;
        let plain = Device::flex();
        let network = Network::new(&checkpoint.spec, &checkpoint.tensors, name, &plain)?;
        let prepared = preprocess(&checkpoint.spec, &checkpoint.config.pretrained_cfg)?;
        let test = open(&self.test, &OpenOptions { split: Some(Split::Test), ..OpenOptions::default() })?;
        let options = EvalOptions { batch_size: 128, ..EvalOptions::default() };
        let go_on = |_| if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let mut model = Evaluated { network: &network, device: &plain };
        let found = evaluate(&mut model, &test, &prepared, options, &mut { go_on })?;
        let distilled = checkpoint.spec.vit().is_ok_and(|vit| vit.is_distilled());
        let tokens = distilled
            .then(|| token_similarity(&network, &plain, &test, &prepared, options, &mut { go_on }))
            .transpose()?;
        let before: f64 = crate::run::RunFolder::earlier_seconds(path)?;
        let finished = Finished {
            arm: name.to_owned(),
            seed,
            top1: found.joint.top1,
            class_top1: found.heads.as_ref().map(|heads| heads.class.top1),
            distillation_top1: found.heads.as_ref().map(|heads| heads.distillation.top1),
            epochs: outcome.epochs,
            seconds: before.max(begin.elapsed().as_secs_f64()),
            tokens,
        };
        let text = serde_json::to_string_pretty(&finished).map_err(|e| Error::Backend(e.to_string()))?;
        atomic_write(&path.join(RESULT), |writer| writer.write_all(text.as_bytes()))?;
        Ok(finished)
    }
}
