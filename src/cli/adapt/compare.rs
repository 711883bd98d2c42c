//! Several methods with one budget: searched on validation, trained seed by seed, tested once, measured in turns.
//!
//! Runs go seed by seed, so that whatever is finished when a comparison is broken off compares all methods; the same command
//! with `--resume` goes on where it was, and takes in what was added to it.

use std::path::PathBuf;
use std::time::Duration;

use toml::Value;
use vitesse::adapt::peft::Adapter;
use vitesse::data::Split;
use vitesse::engine::Precision;
use vitesse::model::Checkpoint;
use vitesse::model::storage::atomic_write;
use vitesse_train::Recipe;
use vitesse_train::run::RunFolder;

use super::Args;
use super::entry::{Entry, Search};
use super::job::ADAPTER;
use super::page;
use super::report::{Candidate, Chosen, Latency, Report, Speeds};
use super::trial::{Plan, Trial, fold};
use crate::cli::Console;
use crate::cli::bench::measure::Budget;
use crate::cli::compare::contest::{Contest, Contestant};
use crate::cli::doctor::machine::processor;
use crate::cli::failure::{Failure, Result};
use crate::cli::outcome::Outcome;
use crate::cli::training::open_test;

/// What the folder holds besides a folder for each entry.
const DOCUMENT: &str = "compare.json";
const TABLE: &str = "compare.csv";
const PAGE: &str = "compare.html";
/// Images in one forward pass, where latency is measured.
const BATCHES: [usize; 3] = [1, 4, 16];
/// How long a model has its turn, and how many runs at least.
const TURN: Budget = Budget {
    time: Duration::from_millis(200),
    runs: 3,
};

/// A comparison as meant.
pub(super) struct Comparison<'a> {
    pub(super) args: &'a Args,
    pub(super) entries: Vec<Entry>,
    pub(super) seeds: Vec<u64>,
    /// Instead of what the recipe says.
    pub(super) data: Option<String>,
    pub(super) output: PathBuf,
    /// Whether what was chosen by validation learns again, from the validation images too.
    pub(super) retrain: bool,
    /// Whether latency is measured.
    pub(super) measured: bool,
    pub(super) console: &'a Console,
}

impl Comparison<'_> {
    /// Everything: searches, runs, tests, latencies, files.
    pub(super) fn run(&self) -> Result<Outcome> {
        self.check()?;
        Outcome::new(&self.report()?)
    }

    /// The same, in a folder that was checked.
    pub(super) fn report(&self) -> Result<Report> {
        let recipe = self.recipe(self.first()?, None)?;
        let test = open_test(&recipe.data.path)?;
        // Every method and recipe is read, and every run that is there is one of these, before anything is computed.
        for entry in &self.entries {
            let candidates = self.candidates(entry).into_iter().map(|(_, candidate)| candidate);
            for entry in candidates.chain([entry.clone()]) {
                for &seed in &self.seeds {
                    self.plan(&entry, &entry.label, Some(seed))?.check()?;
                }
                self.candidate(&entry, &entry.label)?.check()?;
            }
        }
        std::fs::create_dir_all(&self.output).map_err(|error| Failure::io("create", &self.output, error))?;
        let entries = self.search()?;
        let mut trials = Vec::new();
        for (done, &seed) in self.seeds.iter().enumerate() {
            for (at, (label, entry)) in entries.iter().enumerate() {
                let (run, runs) = (done * entries.len() + at + 1, self.seeds.len() * entries.len());
                self.console
                    .say("run", &format!("{run} of {runs}: {}, seed {seed}", entry.label));
                let plan = self.plan(entry, label, Some(seed))?;
                let trial = plan.train(self.console)?;
                let trial = plan.test(trial, &test, self.console)?;
                if let Some(found) = &trial.test {
                    let text = format!("{}, seed {seed}: top-1 {:.2} %", entry.label, found.top1);
                    self.console.say("tested", &text);
                }
                trials.push(trial);
            }
        }
        let speeds = if self.measured {
            self.speeds(&entries)?
        } else {
            Speeds::default()
        };
        let output = &self.output;
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            processor: processor(),
            threads: rayon::current_num_threads(),
            output: output.display().to_string(),
            page: output.join(PAGE).display().to_string(),
            model: match (&recipe.model.checkpoint, &recipe.model.name) {
                (Some(path), _) => path.display().to_string(),
                (None, name) => name.clone().unwrap_or_default(),
            },
            data: recipe.data.path.clone(),
            train_images: self.plan(self.first()?, "", None)?.recipe.data.open()?.0.len(),
            test_images: test.len(),
            seeds: self.seeds.clone(),
            entries: entries.iter().map(|(label, _)| label.clone()).collect(),
            chosen: self.chosen(&entries)?,
            trials,
            speeds,
        };
        self.leave_adapter(&entries)?;
        let document = Outcome::new(&report)?;
        let files = [
            (DOCUMENT, document.json().to_owned()),
            (TABLE, report.csv().to_csv()),
            (PAGE, page::page(&report)),
        ];
        for (name, text) in files {
            atomic_write(&output.join(name), |file| file.write_all(text.as_bytes()))?;
        }
        Ok(report)
    }

    /// What the others are compared with.
    fn first(&self) -> Result<&Entry> {
        let first = self.entries.first();
        first.ok_or_else(|| Failure::usage("there is nothing to compare"))
    }

    /// Where the data are.
    pub(super) fn data_path(&self) -> Result<String> {
        Ok(self.recipe(self.first()?, None)?.data.path)
    }

    /// Refuses a folder that is no place for a comparison.
    pub(super) fn check(&self) -> Result<()> {
        let output = &self.output;
        let occupied = std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
        if occupied && self.args.run.resumed().is_none() {
            let sentence = format!("`{}` exists and is not empty", output.display());
            let hint = "go on with the comparison in it with `--resume`, or choose another folder";
            return Err(Failure::new("E_RUN_EXISTS", sentence).hint(hint));
        }
        if RunFolder::recipe(output).is_ok() {
            let sentence = format!("`{}` holds a run of a single method", output.display());
            return Err(Failure::new("E_RUN_EXISTS", sentence).hint("choose another folder"));
        }
        Ok(())
    }

    /// The recipe of an entry: the method's, under the flags, under the entry's own keys.
    fn recipe(&self, entry: &Entry, seed: Option<u64>) -> Result<Recipe> {
        let defaults = super::defaults(&entry.method()?);
        let seed = seed.or_else(|| self.seeds.first().copied()).unwrap_or_default();
        let mut more = entry.overrides()?;
        more.extend(self.data.clone().map(|data| ("data.path", Value::String(data))));
        more.push(("train.seed", Value::Integer(seed.try_into().unwrap_or(i64::MAX))));
        self.args.recipe.resolve_over(None, defaults, more)
    }

    /// The run of an entry with one seed, by default the first; `label` is its row in the report.
    fn plan(&self, entry: &Entry, label: &str, seed: Option<u64>) -> Result<Plan> {
        let mut recipe = self.recipe(entry, seed)?;
        if self.retrain {
            recipe.data.split = Split::TrainValidation;
        }
        let folder = format!("seed{}", recipe.train.seed);
        Ok(Plan {
            label: label.to_owned(),
            method: entry.method()?,
            folder: self.output.join(entry.folder()).join(folder),
            recipe,
            base: None,
            memory: true,
        })
    }

    /// The run that a value is judged by: with the first seed, and with validation images that it does not learn from.
    fn candidate(&self, entry: &Entry, label: &str) -> Result<Plan> {
        let mut plan = self.plan(entry, label, None)?;
        if self.retrain {
            plan.recipe = self.recipe(entry, None)?;
            plan.folder = self.output.join(entry.folder()).join("search");
        }
        Ok(plan)
    }

    /// The values that are tried for an entry, if it has the setting.
    fn candidates(&self, entry: &Entry) -> Vec<(String, Entry)> {
        match &self.args.search {
            Some(Search { key, values }) if entry.knows(key) && !entry.sets(key) => values
                .iter()
                .map(|value| (value.clone(), entry.with(key, value)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The entries by their labels, with the value that does best on validation where one was searched.
    fn search(&self) -> Result<Vec<(String, Entry)>> {
        let mut found = Vec::new();
        for entry in &self.entries {
            let mut best: Option<(Trial, Entry)> = None;
            let mut diverged = None;
            for (value, candidate) in self.candidates(entry) {
                let text = format!("{} with {value}, on validation", entry.label);
                self.console.say("search", &text);
                let plan = self.candidate(&candidate, &entry.label)?;
                if plan.recipe.data.open()?.1.is_none() {
                    let failure = Failure::usage("there are no validation images to choose a value by");
                    return Err(failure.hint("leave `data.val_fraction` above 0, or name `data.validation`"));
                }
                let trial = match plan.train(self.console) {
                    Ok(trial) => trial,
                    // A value that is much too large is not taken; if all are, there is nothing to take.
                    Err(failure) if failure.code() == "E_DIVERGED" => {
                        self.console.note(&format!("{value} is not taken: {failure}"));
                        diverged = Some(failure);
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                if best.as_ref().is_none_or(|(best, _)| better(&trial, best)) {
                    best = Some((trial, candidate));
                }
            }
            let chosen = match (best, diverged) {
                (Some((_, candidate)), _) => candidate,
                (None, Some(failure)) => return Err(failure),
                (None, None) => entry.clone(),
            };
            found.push((entry.label.clone(), chosen));
        }
        Ok(found)
    }

    /// What the search saw, and what it took.
    fn chosen(&self, entries: &[(String, Entry)]) -> Result<Vec<Chosen>> {
        let mut all = Vec::new();
        for (entry, (label, taken)) in self.entries.iter().zip(entries) {
            let mut candidates = Vec::new();
            for (value, candidate) in self.candidates(entry) {
                let trial = self.candidate(&candidate, label)?.found()?;
                candidates.push(Candidate {
                    taken: candidate == *taken,
                    validation_top1: trial.and_then(|trial| trial.validation_top1),
                    value,
                });
            }
            if let Some(Search { key, .. }) = self.args.search.as_ref().filter(|_| !candidates.is_empty()) {
                all.push(Chosen {
                    label: label.clone(),
                    key: key.clone(),
                    candidates,
                });
            }
        }
        Ok(all)
    }

    /// How long the plain model takes, and each method's, with its ops and merged.
    fn speeds(&self, entries: &[(String, Entry)]) -> Result<Speeds> {
        let threads = rayon::current_num_threads();
        let contestant =
            |label: &str, model: &Checkpoint| Contestant::new(label, Precision::F32, threads, model);
        let plain = self.plan(self.first()?, "", None)?.plain(self.console)?;
        let mut contestants = vec![contestant(Speeds::PLAIN, &plain)?];
        let mut same_plan = Vec::new();
        for (label, entry) in entries {
            let trained = self.plan(entry, label, None)?.trained()?;
            let free = match fold(&trained)? {
                None => Some(contestant(label, &trained)?),
                Some(merged) => {
                    contestants.push(contestant(&Speeds::with_ops(label), &trained)?);
                    merged
                        .ok()
                        .map(|model| contestant(&Speeds::merged(label), &model))
                        .transpose()?
                }
            };
            let outline = |one: &Contestant| one.outline().to_vec();
            let same = free.as_ref().map(outline) == contestants.first().map(outline);
            same_plan.push((label.clone(), same));
            // A method without ops is the plain model with other numbers: there is nothing to measure.
            contestants.extend(free.filter(|_| !trained.spec.ops.is_empty()));
        }
        let contest = Contest::new(contestants, BATCHES.to_vec(), TURN, threads);
        let batches = contest.turns(self.args.rounds.get(), self.console)?;
        let latencies = batches.into_iter().flat_map(|batch| {
            let size = batch.batch;
            batch.results.into_iter().map(move |time| Latency {
                model: time.label,
                batch: size,
                latency_ms: time.latency_ms,
                ratio: time.ratio,
            })
        });
        Ok(Speeds {
            rounds: self.args.rounds.get(),
            same_plan,
            latencies: latencies.collect(),
        })
    }

    /// Of a single method, what was learned, where `merge` is told to look for it.
    fn leave_adapter(&self, entries: &[(String, Entry)]) -> Result<()> {
        if let ([(label, entry)], [_]) = (entries, &self.seeds[..]) {
            let from = self.plan(entry, label, None)?.adapter();
            Adapter::read(&from)?.write(&self.output.join(ADAPTER), true)?;
        }
        Ok(())
    }
}

/// More accurate on validation, or as accurate with a lower loss.
fn better(a: &Trial, b: &Trial) -> bool {
    let loss = |trial: &Trial| trial.validation_loss.unwrap_or(f64::INFINITY);
    match (a.validation_top1, b.validation_top1) {
        (Some(x), Some(y)) => x > y || (x == y && loss(a) < loss(b)),
        (x, y) => x > y,
    }
}
