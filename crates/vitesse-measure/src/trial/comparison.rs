//! Several methods with one budget: searched on validation, trained seed by seed, tested once, measured in turns.
//!
//! Runs go seed by seed, so that whatever is finished when a comparison is broken off compares all methods; the same command
//! with `--resume` goes on where it was, and takes in what was added to it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use toml::{Table, Value};
use vitesse_adapt::peft::Adapter;
use vitesse_data::{DataSet, Split};
use vitesse_engine::Precision;
use vitesse_model::Checkpoint;
use vitesse_train::{Error as TrainError, Recipe};

use super::found::{Candidate, Chosen, Latency, Report, Speeds};
use super::{ADAPTER, Entry, Search, Setup, Trial, defaults, keep};
use crate::accuracy::open_test;
use crate::contest::{Contest, Contestant};
use crate::machine::processor;
use crate::merge::{Folded, fold};
use crate::timing::Budget;
use crate::{Error, Events, Result, TrainEvents};

/// What a comparison leaves in its folder: the document, the table of its runs, the page with charts.
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

/// A comparison.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What all recipes are made from, without what follows from the methods, and where it is from.
    pub recipe: (String, Table),
    /// Who takes part; the first is what the others are compared with. One at least.
    pub entries: Vec<Entry>,
    /// The setting that is searched for.
    pub search: Option<Search>,
    /// Every entry is trained with each of them. One at least.
    pub seeds: Vec<u64>,
    /// The data set, instead of the one that the recipe says.
    pub data: Option<String>,
    /// The folder.
    pub output: PathBuf,
    /// Whether what was chosen by validation learns again, from the validation images too.
    pub retrain: bool,
    /// How often each model has its turn where latency is measured; `None` where it is not.
    pub rounds: Option<usize>,
}

impl Comparison {
    /// Everything: searches, runs, tests, latencies. In a folder that was [`check`](Comparison::check)ed.
    ///
    /// # Errors
    /// A recipe, a method or a run that is there and cannot be used, known before anything is computed; as [`Setup::train`] and
    /// [`Setup::test`]; [`Error::Stopped`] once `stop` was set.
    pub fn run(&self, stop: &AtomicBool, events: &mut dyn TrainEvents) -> Result<Report> {
        let recipe = self.recipe(self.first()?, None)?;
        let test = match open_test(&recipe.data.path, &recipe.data.decode()) {
            // One method that is searched through is judged by validation images, and need not be compared with another.
            Err(Error::Data(vitesse_data::Error::NoSplit { .. })) if self.is_single() => None,
            found => Some(found?),
        };
        // Every method and recipe is read, and every run that is there is one of these, before anything is computed.
        for entry in &self.entries {
            let candidates = self.candidates(entry).into_iter().map(|(_, candidate)| candidate);
            for entry in candidates.chain([entry.clone()]) {
                for &seed in &self.seeds {
                    self.setup(&entry, &entry.label, Some(seed))?.check()?;
                }
                self.candidate(&entry, &entry.label)?.check()?;
            }
        }
        fs::create_dir_all(&self.output).map_err(Error::io("create", &self.output))?;
        self.followed(&recipe, test.as_ref(), stop, events)
            .map_err(|error| match error {
                // Runs are there now, whatever was under way.
                Error::Interrupted | Error::Train(TrainError::Interrupted) => Error::Stopped,
                other => other,
            })
    }

    /// Whether nothing is compared but the values of a setting.
    fn is_single(&self) -> bool {
        self.search.is_some() && self.entries.len() == 1 && self.seeds.len() == 1
    }

    /// What follows once all is known to be usable.
    fn followed(
        &self,
        recipe: &Recipe,
        test: Option<&DataSet>,
        stop: &AtomicBool,
        events: &mut dyn TrainEvents,
    ) -> Result<Report> {
        let entries = self.searched(stop, events)?;
        let mut trials = Vec::new();
        for (done, &seed) in self.seeds.iter().enumerate() {
            for (at, (label, entry)) in entries.iter().enumerate() {
                let (run, runs) = (done * entries.len() + at + 1, self.seeds.len() * entries.len());
                events.say("run", &format!("{run} of {runs}: {}, seed {seed}", entry.label));
                let setup = self.setup(entry, label, Some(seed))?;
                let mut trial = setup.train(stop, events)?;
                if let Some(test) = test {
                    trial = setup.test(trial, test, stop, events.as_events())?;
                }
                if let Some(found) = &trial.test {
                    let text = format!("{}, seed {seed}: top-1 {:.2} %", entry.label, found.top1);
                    events.say("tested", &text);
                }
                trials.push(trial);
            }
        }
        let speeds = match self.rounds {
            Some(rounds) => self.speeds(&entries, rounds, stop, events.as_events())?,
            None => Speeds::default(),
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
            train_images: self.setup(self.first()?, "", None)?.recipe.data.open()?.0.len(),
            test_images: test.map_or(0, DataSet::len),
            seeds: self.seeds.clone(),
            entries: entries.iter().map(|(label, _)| label.clone()).collect(),
            chosen: self.chosen(&entries)?,
            trials,
            speeds,
        };
        self.leave_adapter(&entries)?;
        Ok(report)
    }

    /// Keeps what was found in the folder: as a document, and as who shows it has made a table (CSV) and a page (HTML) of it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn keep(&self, found: &Report, table: &str, page: &str) -> Result<()> {
        keep(&self.output, (DOCUMENT, found), &[(TABLE, table), (PAGE, page)])
    }

    /// What the others are compared with.
    fn first(&self) -> Result<&Entry> {
        let first = self.entries.first();
        first.ok_or(Error::NothingToCompare)
    }

    /// Where the data are.
    ///
    /// # Errors
    /// A recipe that cannot be used.
    pub fn data_path(&self) -> Result<String> {
        Ok(self.recipe(self.first()?, None)?.data.path)
    }

    /// Refuses a folder that is no place for a comparison; where it is `resumed`, one of its own may be there.
    ///
    /// # Errors
    /// [`Error::Occupied`], [`Error::SingleRun`].
    pub fn check(&self, resumed: bool) -> Result<()> {
        let output = &self.output;
        let occupied = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
        if occupied && !resumed {
            return Err(Error::Occupied(output.clone()));
        }
        // A recipe that cannot be read is one of a run, too.
        if output.join("recipe.toml").exists() {
            return Err(Error::SingleRun(output.clone()));
        }
        Ok(())
    }

    /// The recipe of an entry: the method's, under what all have in common, under the entry's own keys.
    fn recipe(&self, entry: &Entry, seed: Option<u64>) -> Result<Recipe> {
        let defaults = defaults(&*entry.method()?);
        let seed = seed.or_else(|| self.seeds.first().copied()).unwrap_or_default();
        let mut more = entry.overrides()?;
        more.extend(self.data.clone().map(|data| ("data.path", Value::String(data))));
        more.push(("train.seed", Value::Integer(seed.try_into().unwrap_or(i64::MAX))));
        let (name, table) = &self.recipe;
        Ok(Recipe::layered(&defaults, table.clone(), &more, name)?)
    }

    /// The run of an entry with one seed, by default the first; `label` is its row in the report.
    fn setup(&self, entry: &Entry, label: &str, seed: Option<u64>) -> Result<Setup> {
        let mut recipe = self.recipe(entry, seed)?;
        if self.retrain {
            recipe.data.split = Split::TrainValidation;
        }
        let folder = format!("seed{}", recipe.train.seed);
        Ok(Setup {
            label: label.to_owned(),
            method: entry.method()?,
            folder: self.output.join(entry.folder()).join(folder),
            recipe,
            base: None,
            memory: true,
        })
    }

    /// The run that a value is judged by: with the first seed, and with validation images that it does not learn from.
    fn candidate(&self, entry: &Entry, label: &str) -> Result<Setup> {
        let mut setup = self.setup(entry, label, None)?;
        if self.retrain {
            setup.recipe = self.recipe(entry, None)?;
            setup.folder = self.output.join(entry.folder()).join("search");
        }
        Ok(setup)
    }

    /// The values that are tried for an entry, if it has the setting.
    fn candidates(&self, entry: &Entry) -> Vec<(String, Entry)> {
        match &self.search {
            Some(Search { key, values }) if entry.knows(key) && !entry.sets(key) => values
                .iter()
                .map(|value| (value.clone(), entry.with(key, value)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The entries by their labels, with the value that does best on validation where one was searched.
    fn searched(&self, stop: &AtomicBool, events: &mut dyn TrainEvents) -> Result<Vec<(String, Entry)>> {
        let mut found = Vec::new();
        for entry in &self.entries {
            let mut best: Option<(Trial, Entry)> = None;
            let mut diverged = None;
            for (value, candidate) in self.candidates(entry) {
                let text = format!("{} with {value}, on validation", entry.label);
                events.say("search", &text);
                let setup = self.candidate(&candidate, &entry.label)?;
                if setup.recipe.data.open()?.1.is_none() {
                    return Err(Error::NoValidation);
                }
                let trial = match setup.train(stop, events) {
                    Ok(trial) => trial,
                    // A value that is much too large is not taken; if all are, there is nothing to take.
                    Err(error @ Error::Train(TrainError::Diverged { .. })) => {
                        events.say("note", &format!("{value} is not taken: {error}"));
                        diverged = Some(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if best.as_ref().is_none_or(|(best, _)| better(&trial, best)) {
                    best = Some((trial, candidate));
                }
            }
            let chosen = match (best, diverged) {
                (Some((_, candidate)), _) => candidate,
                (None, Some(error)) => return Err(error),
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
            if let Some(Search { key, .. }) = self.search.as_ref().filter(|_| !candidates.is_empty()) {
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
    fn speeds(
        &self,
        entries: &[(String, Entry)],
        rounds: usize,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Speeds> {
        let threads = rayon::current_num_threads();
        let contestant =
            |label: &str, model: &Checkpoint| Contestant::new(label, Precision::F32, threads, model);
        let plain = self.setup(self.first()?, "", None)?.plain(events)?;
        let mut contestants = vec![contestant(Speeds::PLAIN, &plain)?];
        let mut same_plan = Vec::new();
        for (label, entry) in entries {
            let setup = self.setup(entry, label, None)?;
            let trained = setup.trained()?;
            let free = match fold(&*setup.method, &trained)? {
                Folded::Plain => Some(contestant(label, &trained)?),
                Folded::Refused(_) => {
                    contestants.push(contestant(&Speeds::with_ops(label), &trained)?);
                    None
                }
                Folded::Whole(model) => {
                    contestants.push(contestant(&Speeds::with_ops(label), &trained)?);
                    Some(contestant(&Speeds::merged(label), &model)?)
                }
            };
            let outline = |one: &Contestant| one.outline().to_vec();
            let same = free.as_ref().map(outline) == contestants.first().map(outline);
            same_plan.push((label.clone(), same));
            // A method without ops is the plain model with other numbers: there is nothing to measure.
            contestants.extend(free.filter(|_| !trained.spec.ops.is_empty()));
        }
        let contest = Contest::new(contestants, BATCHES.to_vec(), TURN, threads);
        let batches = contest.turns(rounds, stop, events)?;
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
            rounds,
            same_plan,
            latencies: latencies.collect(),
        })
    }

    /// Of a single method, what was learned, where `merge` is told to look for it.
    fn leave_adapter(&self, entries: &[(String, Entry)]) -> Result<()> {
        if let ([(label, entry)], [_]) = (entries, &self.seeds[..]) {
            let from = self.setup(entry, label, None)?.adapter();
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
