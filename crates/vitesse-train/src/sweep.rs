//! A study: several recipes that differ in a few keys, each with several seeds, evaluated alike.
//!
//! One file says it all: a `base` recipe, what is trained once before (`first`, teachers), the arms with the keys in which
//! they differ, the seeds, the data that everything is tested on once at the end, and a budget. Runs go seed by seed, so
//! that whatever is finished when the budget ends compares all arms. A sweep that is killed is resumed by running it
//! again: finished runs are kept, the one that was under way goes on where it was.

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

use crate::classes::ClassNames;
use crate::evaluate::{EvalOptions, Evaluated, evaluate};
use crate::events::Events;
use crate::metrics::Spread;
use crate::recipe::{DataConfig, Recipe, merge, set};
use crate::run::{Existing, FINAL, RunFolder};
use crate::tokens::{TokenSimilarity, token_similarity};
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

/// Is told how a study goes.
pub trait SweepEvents: Events {
    /// Those of the single runs.
    fn as_events(&mut self) -> &mut dyn Events;
    /// A run begins, or goes on.
    fn run(&mut self, _arm: &str, _seed: u64, _index: usize, _of: usize) {}
    /// A run is finished, perhaps long ago.
    fn finished(&mut self, _: &Finished) {}
}

impl SweepEvents for () {
    fn as_events(&mut self) -> &mut dyn Events {
        self
    }
}

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
        let mut sweep: Sweep = toml::from_str(&text).map_err(|error| Error::RecipeSyntax {
            name: name.clone(),
            detail: error.to_string(),
        })?;
        if sweep.seeds.is_empty() || sweep.arm.is_empty() {
            return Err(Error::recipe(
                "seeds, arm",
                &"nothing",
                "at least one seed and one [[arm]]",
            ));
        }
        sweep.arm = sweep.arm.iter().flat_map(|arm| arm.spread(&sweep.base)).collect();
        let mut names = BTreeSet::new();
        let all = sweep.first.keys().chain(sweep.arm.iter().map(|arm| &arm.name));
        if let Some(twice) = all.into_iter().find(|name| !names.insert(name.as_str())) {
            return Err(Error::recipe("arm.name", twice, "a name of its own for each arm"));
        }
        for (arm, seed, keys) in sweep.runs() {
            let recipe = sweep.recipe(keys, seed, Path::new(arm), &format!("{name}, {arm}"))?;
            recipe.refuse_method()?;
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
        let mut table = self.base.clone();
        merge(&mut table, keys.clone());
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
                    return Err(Error::recipe(
                        value.0,
                        &format!("@{name}"),
                        "a name under [first]",
                    ));
                }
                *value.1 = Value::String(trained(name));
            }
        }
        Recipe::from_table(table, source)
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
    pub fn run(
        &self,
        out: &Path,
        device: &Device,
        stop: &AtomicBool,
        events: &mut dyn SweepEvents,
    ) -> Result<Study> {
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
                    events.run(name, seed, index, runs.len());
                    let recipe = self.recipe(keys, seed, out, name)?;
                    let existing = if path.exists() {
                        Existing::Resume
                    } else {
                        Existing::Refuse
                    };
                    start::run(&recipe, &path, existing, device, stop, events.as_events())?;
                    let finished = self.test((name, seed), &recipe.data, &path, stop)?;
                    let text = serde_json::to_string_pretty(&finished)
                        .map_err(|error| Error::Backend(format!("writing a result: {error}")))?;
                    atomic_write(&path.join(RESULT), |file| file.write_all(text.as_bytes()))?;
                    finished
                }
            };
            events.finished(&finished);
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
        let mut whole = base.clone();
        merge(&mut whole, self.set.clone());
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
    let broken = |error: serde_json::Error| Error::Resume {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_str(&text).map(Some).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUDY: &str = r#"
        name = "two arms"
        seeds = [3, 4]
        budget_hours = 1.0
        test = "shapes"
        [base]
        preset = "small"
        [base.model]
        name = "deit_nano_patch8_32"
        [base.data]
        path = "shapes"
        limit = 64
        validation_limit = 32
        [base.train]
        epochs = 1
        batch_size = 32
        [first.teacher.model]
        name = "regnety_nano_32"
        [[arm]]
        name = "none"
        [[arm]]
        name = "token"
        [arm.set.model]
        name = "deit_nano_distilled_patch8_32"
        [arm.set.distill]
        kind = "hard"
        teacher = "@teacher"
    "#;

    fn study(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("study.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn arms_differ_from_the_base_in_their_keys_alone() {
        let (_folder, path) = study(STUDY);
        let sweep = Sweep::read(&path).unwrap();
        let runs: Vec<(&str, u64)> = sweep.runs().iter().map(|run| (run.0, run.1)).collect();
        assert_eq!(
            runs,
            [
                ("teacher", 3),
                ("none", 3),
                ("token", 3),
                ("none", 4),
                ("token", 4)
            ]
        );
        let of = |index: usize| {
            let (name, seed, keys) = sweep.runs()[index];
            sweep.recipe(keys, seed, Path::new("out"), name).unwrap()
        };
        let (teacher, none, token) = (of(0), of(3), of(4));
        assert_eq!(teacher.model.name.as_deref(), Some("regnety_nano_32"));
        assert_eq!((none.train.seed, none.distill.teacher.is_none()), (4, true));
        let at = Path::new("out/teacher/seed3/final");
        assert_eq!(token.distill.teacher.as_deref(), Some(at));
        assert_eq!(token.optim, none.optim);
    }

    #[test]
    fn lists_where_one_value_should_be_make_arms() {
        let text = STUDY
            .replace("epochs = 1\n", "epochs = [1, 2]\n")
            .replace(
                "[first.teacher.model]",
                "[base.optim]\nbetas = [0.9, 0.98]\n[first.teacher.train]\nepochs = 3\n[first.teacher.model]",
            )
            .replace(
                "name = \"none\"\n",
                "name = \"none\"\n[arm.set.optim]\nlr = [1e-3, 0.5]\n[arm.set.train]\nepochs = 1\n",
            );
        let (_folder, path) = study(&text);
        let sweep = Sweep::read(&path).unwrap();
        let names: Vec<&str> = sweep.arm.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "none, optim.lr=1e-3",
                "none, optim.lr=0.5",
                "token, train.epochs=1",
                "token, train.epochs=2"
            ]
        );
        let of = |name: &str| {
            let arm = sweep.arm.iter().find(|arm| arm.name == name).unwrap();
            sweep.recipe(&arm.set, 3, Path::new("out"), name).unwrap()
        };
        // A list by nature stays one.
        assert_eq!(of("none, optim.lr=0.5").optim.betas, [0.9, 0.98]);
        assert_eq!(of("none, optim.lr=0.5").optim.lr, 0.5);
        assert_eq!(of("token, train.epochs=2").train.epochs, 2);
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        for (from, to, say) in [
            ("@teacher", "@techer", "techer"),
            ("kind = \"hard\"", "kidn = \"hard\"", "kidn"),
            ("seeds = [3, 4]", "seeds = []", "seed"),
            ("budget_hours", "budget", "budget"),
            ("name = \"token\"", "name = \"none\"", "a name of its own"),
        ] {
            let (_folder, path) = study(&STUDY.replace(from, to));
            let error = Sweep::read(&path).unwrap_err().to_string();
            assert!(error.contains(say), "{error}");
        }
    }

    #[test]
    fn finished_runs_are_kept_and_the_budget_ends_a_study() {
        let text = STUDY.replace("seeds = [3, 4]", "seeds = [3]");
        let (folder, path) = study(&text);
        let out = folder.path().join("out");
        let run =
            |sweep: &Sweep| sweep.run(&out, &Device::flex().autodiff(), &AtomicBool::new(false), &mut ());
        let sweep = Sweep::read(&path).unwrap();
        let broke = Sweep {
            budget_hours: 0.0,
            ..sweep.clone()
        };
        let study = run(&broke).unwrap();
        assert_eq!(
            (study.runs.len(), study.missing.len()),
            (1, 2),
            "the first run begins, the others do not"
        );
        let teacher = out.join("teacher/seed3/result.json");
        let before = std::fs::read(&teacher).unwrap();
        let study = run(&sweep).unwrap();
        assert_eq!((study.runs.len(), study.missing.len()), (3, 0));
        assert_eq!(std::fs::read(&teacher).unwrap(), before);
        assert!(study.runs[2].tokens.is_some() && study.runs[2].distillation_top1.is_some());
        assert!(study.spread("token", |run| Some(run.top1)).unwrap().mean > 0.0);
    }
}
