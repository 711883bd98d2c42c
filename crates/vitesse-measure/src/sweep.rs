//! A study: several recipes that differ in a few keys, each with several seeds, evaluated alike.
//!
//! One file says it all: a `base` recipe, what is trained once before (`first`, teachers), the arms with the keys in which
//! they differ, the seeds, the data that everything is tested on once at the end, and a budget. Runs go seed by seed, so
//! that whatever is finished when the budget ends compares all arms. A sweep that is killed is resumed by running it
//! again: finished runs are kept, the one that was under way goes on where it was. A recipe with a `[method]` is followed by that
//! method.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use vitesse_data::{DataSet, DecodeOptions, OpenOptions, Split, open};
use vitesse_model::network::Network;
use vitesse_model::spec::VitSpec;
use vitesse_model::storage::atomic_write;
use vitesse_model::{Checkpoint, LoadOptions};

use vitesse_train::classes::ClassNames;
use vitesse_train::evaluate::{EvalOptions, Evaluated, evaluate};
use vitesse_train::metrics::Spread;
use vitesse_train::parallel::Team;
use vitesse_train::recipe::{DataConfig, set};
use vitesse_train::run::{Existing, FINAL, RESULT, RunFolder};
use vitesse_train::tokens::{TokenSimilarity, token_similarity};
use vitesse_train::{Error as TrainError, Recipe, run};

use crate::trial::{Entry, Job};
use crate::{Error, Result, TrainEvents};

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
    pub test: String,
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
    /// Keys that differ from `base`. A value `@NAME` is the checkpoint of what `first` trained under that name. Several values
    /// in a list, for a key that takes one, here or in `base`, make an arm for each: `arm, optim.lr=1e-3`.
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
    /// Parameters of the model, shared ones counted once; absent in results of earlier versions.
    pub param_count: Option<usize>,
    /// Bytes of its tensors; absent likewise.
    pub weight_bytes: Option<usize>,
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

/// One run of a study, before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The arm, or the name in `first`.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// How far it is.
    pub state: Progress,
}

/// How far a run of a study is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// Trained and tested.
    Finished,
    /// Under way; it goes on where it was.
    Begun,
    /// Not begun.
    New,
}

/// What a study came to.
#[derive(Debug, Clone, Serialize)]
pub struct Study {
    /// Every finished run, teachers first.
    pub runs: Vec<Finished>,
    /// Runs for which the budget did not last, as `ARM, seed N`.
    pub missing: Vec<String>,
}

/// Samples a batch of the final test.
const TEST_BATCH: usize = 128;

impl Sweep {
    /// Reads a study's file and checks every recipe in it.
    ///
    /// # Errors
    /// A file that cannot be read or is no study, and recipes in it that are none.
    pub fn read(path: &Path) -> Result<Sweep> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let mut sweep: Sweep = toml::from_str(&text).map_err(|error| TrainError::RecipeSyntax {
            name: name.clone(),
            detail: error.to_string(),
        })?;
        if sweep.seeds.is_empty() || sweep.arm.is_empty() {
            return Err(refused(
                "seeds, arm",
                &"nothing",
                "at least one seed and one [[arm]]",
            ));
        }
        sweep.arm = sweep.arm.iter().flat_map(|arm| arm.spread(&sweep.base)).collect();
        let mut names = BTreeSet::new();
        let all = sweep.first.keys().chain(sweep.arm.iter().map(|arm| &arm.name));
        if let Some(twice) = all.into_iter().find(|name| !names.insert(name.as_str())) {
            return Err(refused("arm.name", twice, "a name of its own for each arm"));
        }
        for (arm, seed, keys) in sweep.runs() {
            let recipe = sweep.recipe(keys, seed, Path::new(arm), &format!("{name}, {arm}"))?;
            if let Some(table) = &recipe.method {
                Entry::of(table).method()?;
            }
        }
        Ok(sweep)
    }

    /// Every run: what comes first, then the arms, seed by seed.
    fn runs(&self) -> Vec<(&str, u64, &Table)> {
        let seed = self.first_seed();
        let first = self.first.iter().map(|(name, keys)| (name.as_str(), seed, keys));
        let arms = |seed| {
            self.arm
                .iter()
                .map(move |arm| (arm.name.as_str(), seed, &arm.set))
        };
        first
            .chain(self.seeds.iter().flat_map(|&seed| arms(seed)))
            .collect()
    }

    fn first_seed(&self) -> u64 {
        self.seeds.first().copied().unwrap_or_default()
    }

    /// The recipe of one run, with `@NAME` looked up in `out`; `source` names it in an error.
    fn recipe(&self, keys: &Table, seed: u64, out: &Path, source: &str) -> Result<Recipe> {
        let mut table = over(&self.base, keys);
        set(
            &mut table,
            "train.seed",
            Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX)),
        );
        let trained = |name: &str| {
            run_path(out, name, self.first_seed())
                .join(FINAL)
                .display()
                .to_string()
        };
        for value in table
            .iter_mut()
            .filter_map(|(_, value)| value.as_table_mut())
            .flat_map(|t| t.iter_mut())
        {
            if let Some(name) = value.1.as_str().and_then(|text| text.strip_prefix('@')) {
                if !self.first.contains_key(name) {
                    return Err(refused(value.0, &format!("@{name}"), "a name under [first]"));
                }
                *value.1 = Value::String(trained(name));
            }
        }
        Ok(Recipe::from_table(table, source)?)
    }

    /// Refuses a folder `out` with runs that are not of this study.
    fn check(&self, out: &Path) -> Result<()> {
        for (name, seed, keys) in self.runs() {
            let path = run_path(out, name, seed);
            if path.exists() {
                RunFolder::check(&path, &self.recipe(keys, seed, out, name)?, Existing::Resume)?;
            }
        }
        Ok(())
    }

    /// Every run in its order, and how far it is in the folder `out`; and the seconds that the finished ones took.
    ///
    /// # Errors
    /// As [`Sweep::run`], as far as it shows before anything is trained.
    pub fn plan(&self, out: &Path) -> Result<(Vec<Planned>, f64)> {
        self.check(out)?;
        let (mut runs, mut seconds) = (Vec::new(), 0.0);
        for (arm, seed, _) in self.runs() {
            let path = run_path(out, arm, seed);
            let finished = read_result(&path.join(RESULT))?;
            seconds += finished.as_ref().map_or(0.0, |run| run.seconds);
            let state = match finished {
                Some(_) => Progress::Finished,
                None if path.exists() => Progress::Begun,
                None => Progress::New,
            };
            let arm = arm.to_owned();
            runs.push(Planned { arm, seed, state });
        }
        Ok((runs, seconds))
    }

    /// Runs the study in the folder `out`, or goes on with it.
    ///
    /// # Errors
    /// Whatever keeps a run from being finished; [`Error::Interrupted`] when `stop` was set.
    pub fn run(&self, out: &Path, stop: &AtomicBool, events: &mut dyn TrainEvents) -> Result<Study> {
        let mut study = Study {
            runs: Vec::new(),
            missing: Vec::new(),
        };
        let runs = self.runs();
        // Whatever is there was made by this study, and there is something to test on, or nothing is touched.
        self.check(out)?;
        self.open_test(DecodeOptions::default())?;
        for (index, &(name, seed, keys)) in runs.iter().enumerate() {
            let path = run_path(out, name, seed);
            let spent: f64 = study.runs.iter().map(|run| run.seconds).sum();
            let finished = match read_result(&path.join(RESULT))? {
                Some(finished) => finished,
                None if spent > self.budget_hours * 3600.0 => {
                    study.missing.push(format!("{name}, seed {seed}"));
                    continue;
                }
                None => {
                    let number = index + 1;
                    events.say("run", &format!("{number} of {}: {name}, seed {seed}", runs.len()));
                    let recipe = self.recipe(keys, seed, out, name)?;
                    let existing = if path.exists() {
                        Existing::Resume
                    } else {
                        Existing::Refuse
                    };
                    follow(&recipe, &path, existing, stop, events)?;
                    let finished = self.test((name, seed), &recipe.data, &path, stop)?;
                    let text = serde_json::to_string_pretty(&finished)
                        .map_err(|error| TrainError::Backend(format!("writing a result: {error}")))?;
                    atomic_write(&path.join(RESULT), |file| file.write_all(text.as_bytes()))?;
                    finished
                }
            };
            let top1 = finished.top1;
            events.say("tested", &format!("{name}, seed {seed}: top-1 {top1:.2} %"));
            study.runs.push(finished);
        }
        Ok(study)
    }

    /// What every run is tested on.
    fn open_test(&self, decode: DecodeOptions) -> Result<DataSet> {
        let options = OpenOptions {
            split: Some(Split::Test),
            decode,
            ..OpenOptions::default()
        };
        Ok(open(&self.test, &options)?)
    }

    /// Evaluates the last weights of the run in `path` on the test split.
    fn test(
        &self,
        (arm, seed): (&str, u64),
        learned: &DataConfig,
        path: &Path,
        stop: &AtomicBool,
    ) -> Result<Finished> {
        let begin = Instant::now();
        let device = Device::flex();
        let checkpoint = Checkpoint::load(path.join(FINAL), &LoadOptions::default())?;
        let network = Network::new(&checkpoint.spec, &checkpoint.tensors, arm, &device)?;
        let prepared = checkpoint.preprocess()?;
        let data = self.open_test(learned.decode())?;
        let classes = checkpoint.spec.num_classes;
        let names = ClassNames::of(&checkpoint.config, classes);
        let data = names.matched(&data, classes, learned.labels_by)?.data;
        let options = EvalOptions {
            batch_size: TEST_BATCH,
            ..EvalOptions::default()
        };
        let mut go_on = |_| match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let mut model = Evaluated {
            network: &network,
            device: &device,
        };
        let found = evaluate(&mut model, &data, &prepared, options, &mut go_on)?;
        let distilled = checkpoint.spec.vit().is_ok_and(VitSpec::is_distilled);
        let tokens = distilled
            .then(|| token_similarity(&network, &device, &data, &prepared, options, &mut go_on))
            .transpose()?;
        let epochs = RunFolder::summary(path)?;
        Ok(Finished {
            arm: arm.to_owned(),
            seed,
            param_count: Some(checkpoint.spec.costs()?.parameters()),
            weight_bytes: Some(checkpoint.tensors.total_bytes()),
            top1: found.joint.top1,
            class_top1: found.heads.as_ref().map(|heads| heads.class.top1),
            distillation_top1: found.heads.as_ref().map(|heads| heads.distillation.top1),
            epochs: epochs.len(),
            seconds: epochs.iter().map(|epoch| epoch.seconds).sum::<f64>() + begin.elapsed().as_secs_f64(),
            tokens,
        })
    }
}

impl Arm {
    /// An arm for each value of the lists, here or in `base`, that stand where one value should.
    fn spread(&self, base: &Table) -> Vec<Arm> {
        let whole = over(base, &self.set);
        let mut arms = vec![self.clone()];
        for (table, keys) in &whole {
            for (key, value) in keys.as_table().into_iter().flatten() {
                let Some(values) = value.as_array().filter(|values| !values.is_empty()) else {
                    continue;
                };
                let alone = |value| Recipe::takes(table, key, value);
                if alone(value) || !values.iter().all(alone) {
                    continue;
                }
                let key = format!("{table}.{key}");
                let with = |arm: &Arm, value: &Value| {
                    let mut arm = arm.clone();
                    arm.name += &format!(", {key}={}", spelt(value));
                    set(&mut arm.set, &key, value.clone());
                    arm
                };
                let each = arms
                    .iter()
                    .flat_map(|arm| values.iter().map(move |value| with(arm, value)));
                arms = each.collect();
            }
        }
        arms
    }
}

/// A value in the name of an arm, which is a folder too: the shorter spelling of a number, and no separators of paths.
fn spelt(value: &Value) -> String {
    let text = match value {
        Value::Float(number) => {
            let (plain, short) = (format!("{number}"), format!("{number:e}"));
            if short.len() < plain.len() { short } else { plain }
        }
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    text.replace(['/', '\\'], "-")
}

impl Study {
    /// Mean and spread over the seeds of one number of an arm's runs.
    pub fn spread(&self, arm: &str, number: impl Fn(&Finished) -> Option<f64>) -> Option<Spread> {
        let values: Vec<f64> = self
            .runs
            .iter()
            .filter(|run| run.arm == arm)
            .filter_map(number)
            .collect();
        Spread::of(&values)
    }
}

/// Follows a recipe, by its method if it has one.
fn follow(
    recipe: &Recipe,
    path: &Path,
    existing: Existing,
    stop: &AtomicBool,
    events: &mut dyn TrainEvents,
) -> Result<()> {
    let Some(table) = &recipe.method else {
        run(recipe, path, existing, &Device::flex(), stop, events.training())?;
        return Ok(());
    };
    let job = Job {
        method: &*Entry::of(table).method()?,
        recipe,
        output: path,
        existing,
        base: None,
    };
    let ready = job.ready(events.as_events())?;
    job.run(ready, &Team::alone(), stop, events.training())?;
    Ok(())
}

/// A recipe's tables with other keys over them; of two keys that exclude each other, the one above stays.
fn over(base: &Table, keys: &Table) -> Table {
    let mut table = base.clone();
    for (name, value) in keys {
        match value {
            Value::Table(inner) => inner
                .iter()
                .for_each(|(key, value)| set(&mut table, &format!("{name}.{key}"), value.clone())),
            value => set(&mut table, name, value.clone()),
        }
    }
    table
}

fn refused(key: &str, found: &impl ToString, expected: &str) -> Error {
    let (key, found, expected) = (key.to_owned(), found.to_string(), expected.to_owned());
    TrainError::Recipe { key, found, expected }.into()
}

/// The folder of one run.
fn run_path(out: &Path, name: &str, seed: u64) -> PathBuf {
    out.join(name).join(format!("seed{seed}"))
}

/// The result of a finished run; `None` if it is not finished.
fn read_result(path: &Path) -> Result<Option<Finished>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let broken = |error: serde_json::Error| Error::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_str(&text).map(Some).map_err(broken)
}

#[cfg(test)]
mod tests;
