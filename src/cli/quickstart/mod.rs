//! `quickstart`: the chain from data to a report on the built-in set, without a download.
//!
//! | file | what |
//! | --- | --- |
//! | `experiment` | which runs there are, and their recipes |
//! | `learn` | one run: trained, reloaded, tested |
//! | `adapt` | a student adapted to three other tasks, merged, measured |
//! | `prune` | a student with a share of its arithmetic |
//! | `report` | what was found: the JSON document and the text |
//! | `page` | the same as `report.html` |

mod adapt;
mod experiment;
mod learn;
mod page;
mod prune;
mod report;

use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vitesse::data::{DataSet, OpenOptions, Split, export, open};
use vitesse::measure::machine::{peak_memory, processor, start_threads};
use vitesse::measure::predict::guess;
use vitesse::measure::taught::tokens_of;
use vitesse::model::storage::AtomicDir;
use vitesse::report::Thumbnail;
use vitesse_train::evaluate::EvalOptions;
use vitesse_train::run::BEST;

use super::Console;
use super::args::thread_count;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::show::Show;
use experiment::{Method, Size};
use report::{Prediction, Report, Run};

/// Show the whole chain on the built-in data set, without a download, in a few minutes
///
/// Draws pictures, trains a small CNN on them and, with and without it as a teacher, the same small DeiT four times: on the
/// labels alone, with soft, with hard distillation, and with a distillation token. Adapts a student to three other tasks and
/// merges the adapters. Prunes a student to a share of its arithmetic. Tests everything and writes report.html, one file that needs no network. Needs up to five minutes and 2 GB of memory on two cores. The same seed gives the same
/// numbers, times aside, with any number of threads.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse quickstart
  vitesse quickstart --short
  vitesse quickstart --seed 7 -o ./first-steps --json")]
pub(super) struct Args {
    /// Folder to write
    #[arg(short, long, value_name = "DIR", default_value = "vitesse-quickstart")]
    output: PathBuf,
    /// Replace a folder that this verb wrote before
    #[arg(long)]
    force: bool,
    /// Take every step in seconds, on so few pictures that little is learned
    #[arg(long)]
    short: bool,
    /// Decides first weights, order and augmentation; the pictures are the same for every seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
    /// Threads that compute and read images [default: one a core]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<NonZeroUsize>,
}

/// The data set and its task: the one that is learned in minutes.
const TASK: &str = "shapes:silhouette";
/// What the folder holds besides a folder for each run.
const IMAGES: &str = "images";
const PAGE: &str = "report.html";
const DOCUMENT: &str = "quickstart.json";
/// Test pictures that the similarity of the tokens is a mean over.
const TOKEN_IMAGES: usize = 500;

/// How all models are tested.
fn test_options(workers: usize) -> EvalOptions {
    EvalOptions {
        batch_size: 64,
        workers,
        ..EvalOptions::default()
    }
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        start_threads(self.threads)?;
        let began = Instant::now();
        let folder = AtomicDir::create(&self.output, self.force, DOCUMENT)?;
        let quickstart = Quickstart {
            size: if self.short { Size::SHORT } else { Size::FULL },
            workers: self.threads.map_or(0, NonZeroUsize::get),
            folder: folder.path(),
            console,
            args: &self,
        };
        let report = quickstart.run(began)?;
        let outcome = Outcome::new(&report)?;
        folder.commit()?;
        Ok(outcome)
    }
}

/// What is meant, and where it happens: a temporary folder that gets its name when everything is in it.
struct Quickstart<'a> {
    args: &'a Args,
    size: Size,
    workers: usize,
    folder: &'a Path,
    console: &'a Console,
}

impl Quickstart<'_> {
    /// All steps. What a step leaves in the folder, the later ones read.
    fn run(&self, began: Instant) -> Result<Report> {
        self.step(
            1,
            "draw pictures: the built-in set has no files, every picture is a function of its number",
        );
        let test = self.test_pictures()?;
        let images = self.folder.join(IMAGES);
        fs::create_dir(&images).map_err(|error| Failure::io("create", &images, error))?;
        export(&test.limit(self.size.shown, 0), &images, &mut |_| {
            ControlFlow::Continue(())
        })?;
        let runs = self.runs(&test)?;
        let students = runs.iter().filter(|run| run.method != Method::Teacher);
        let best = report::best_of(students).map_or(Method::None, |run| run.method);
        self.step(
            7,
            "adapt the student that had no teacher to three other tasks: a new head alone, and RepAdapter, which is merged",
        );
        let adapted = adapt::adapt(
            self.size,
            u64::from(self.args.seed),
            self.workers,
            (self.folder, &self.args.output),
            self.console,
        )?;
        self.step(
            8,
            "prune the student that had no teacher: a share of its arithmetic, corrected without training",
        );
        let pruned = prune::prune(self.size, u64::from(self.args.seed), self.folder, self.console)?;
        self.step(
            9,
            "predict pictures and compare tokens with the best of what was learned",
        );
        let (predictions, pictures) = self.predictions(best)?;
        let token = self.folder.join(Method::Token.key()).join(BEST);
        let (test_images, stop) = (test.limit(TOKEN_IMAGES, 0), self.console.stop());
        let tokens = tokens_of(
            &token,
            &test_images,
            test_options(self.workers),
            stop,
            &mut Show::new(self.console),
        )?;
        let output = self.args.output.display().to_string();
        let report = Report {
            report: self.args.output.join(PAGE).display().to_string(),
            output,
            version: env!("CARGO_PKG_VERSION"),
            seed: u64::from(self.args.seed),
            short: self.args.short,
            task: TASK,
            class_names: test.class_names().to_vec(),
            chance: 100.0 / test.class_names().len() as f64,
            train_images: self.size.train,
            validation_images: self.size.validation,
            test_images: test.len(),
            finding: report::finding(&runs, self.args.short),
            runs,
            best_student: best,
            adapted,
            pruned,
            predictions,
            tokens,
            threads: rayon::current_num_threads(),
            processor: processor(),
            seconds: began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory(),
        };
        self.write(&report, &pictures)?;
        self.console.check()?;
        Ok(report)
    }

    fn step(&self, number: usize, text: &str) {
        self.console.say("step", &format!("{number} of 9: {text}"));
    }

    fn test_pictures(&self) -> Result<DataSet> {
        let options = OpenOptions {
            split: Some(Split::Test),
            ..OpenOptions::default()
        };
        Ok(open(TASK, &options)?.limit(self.size.test, 0))
    }

    fn runs(&self, test: &DataSet) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for (i, method) in Method::ALL.into_iter().enumerate() {
            self.step(i + 2, method.why());
            let seed = u64::from(self.args.seed);
            let recipe = self.size.recipe(method, seed, self.workers, &self.args.output);
            runs.push(learn::learn(method, &recipe, self.folder, test, self.console)?);
        }
        Ok(runs)
    }

    /// What the best student says about the pictures that were drawn.
    fn predictions(&self, best: Method) -> Result<(Vec<Prediction>, Vec<Thumbnail>)> {
        let (checkpoint, folder) = (self.folder.join(best.key()).join(BEST), self.folder.join(IMAGES));
        let mut show = Show::new(self.console);
        let (mut predictions, mut pictures) = (Vec::new(), Vec::new());
        for guess in guess(&checkpoint, &folder, self.console.stop(), &mut show)? {
            let prediction = Prediction {
                file: Path::new(IMAGES).join(guess.file).display().to_string(),
                truth: guess.truth,
                name: guess
                    .class
                    .name
                    .unwrap_or_else(|| guess.class.class_index.to_string()),
                score: guess.class.score,
            };
            pictures.push(page::thumbnail(&prediction, &guess.image)?);
            predictions.push(prediction);
        }
        Ok((predictions, pictures))
    }

    /// The page, and the document that is also the mark of a folder that `--force` may replace.
    fn write(&self, report: &Report, pictures: &[Thumbnail]) -> Result<()> {
        let document = serde_json::to_string_pretty(report).map_err(|error| {
            Failure::new(
                "E_INTERNAL",
                format!("the result cannot be written as JSON: {error}"),
            )
        })?;
        for (name, text) in [(PAGE, page::page(report, pictures)), (DOCUMENT, document)] {
            fs::write(self.folder.join(name), text)
                .map_err(|error| Failure::io("write", &self.args.output.join(name), error))?;
        }
        Ok(())
    }
}
