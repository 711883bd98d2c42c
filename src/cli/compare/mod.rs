//! `compare`: several models side by side, measured in turns.
//!
//! | file | what |
//! | --- | --- |
//! | `report` | what was found: the JSON document and the text |
//! | `page` | the same as an HTML page with charts |

mod page;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vitesse::data::{DataSet, OpenOptions, Split, open};
use vitesse::engine::Precision;
use vitesse::measure::contest::{Contest, Contestant};
use vitesse::measure::machine::{peak_memory, processor};
use vitesse::measure::timing::Budget;

use super::Console;
use super::args::model::{ModelArgs, named_precision};
use super::args::output::PageArgs;
use super::args::{DecodeArgs, FormsArgs, LabelsBy, ThreadsArgs, positive, seconds, split};
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::show::Show;
use report::{Evaluated, Report};

/// Compare several models on this machine: latency in turns, sizes, and with --data accuracy and agreement
///
/// All models are compiled first. Then they take turns, in rounds: everything that happens to the machine meanwhile happens
/// to all of them. Each round gives every model a median latency and its ratio to the first model's in the same round; of
/// these ratios the median, the least and the greatest are shown. Two models are told apart where all rounds agree which is
/// faster. A model that is given twice shows how far equal things seem to differ.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse compare deit_tiny_patch16_224 deit_small_patch16_224
  vitesse compare ./my-run ./my-run@bf16 ./my-run@int8 --data shapes:count --split test
  vitesse compare ./teacher ./student --data ./imagenet/val --limit 1000 -o compared.html
  vitesse compare ./a ./b --precision f32,int8 --batch-size 1 --rounds 20 --json")]
pub(super) struct Args {
    /// Checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`; `@int8` after one
    /// overrides --precision for it
    ///
    /// The first is what the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    model: Vec<String>,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    forms: FormsArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// How often each model has its turn
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive, help_heading = "Measuring")]
    rounds: NonZeroUsize,
    /// How long one turn takes with each batch size; three runs at least
    #[arg(long, value_name = "S", default_value = "0.2", value_parser = seconds, help_heading = "Measuring")]
    seconds: Duration,
    /// Data set to compare accuracy and predictions on: a folder, a `.csv` list, or `shapes[:TASK]`
    #[arg(long, alias = "data-dir", value_name = "DATA", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Part of the data set: train, validation, trainval, test or all [default: test, else validation, else all]
    #[arg(long, value_name = "SPLIT", value_parser = split, requires = "data", help_heading = "Data")]
    split: Option<Split>,
    /// Use this many images only, drawn with the classes in the proportions they have [default: all]
    #[arg(long, value_name = "N", value_parser = positive, requires = "data", help_heading = "Data")]
    limit: Option<NonZeroUsize>,
    /// How classes of the data and of each model find each other
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "HOW",
        requires = "data",
        help_heading = "Data"
    )]
    labels_by: LabelsBy,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    page: PageArgs,
}

/// The fewest timed runs in a turn.
const RUNS: usize = 3;
/// Images a batch, where predictions are compared.
const EVAL_BATCH: usize = 16;

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.threads.start()?;
        self.page.look()?;
        let entries = self.entries()?;
        let data = self.data.as_deref().map(|path| self.open(path)).transpose()?;
        let (stop, mut show) = (console.stop(), Show::new(console));
        let (threads, batches) = (self.threads.count(), self.forms.batches());
        let load = |model: &str, classes| self.models.load_for_engine(model, classes, console);
        let contestants = Contestant::all(&entries, data.as_ref(), threads, stop, load)?;
        let turn = Budget {
            time: self.seconds,
            runs: RUNS,
        };
        let contest = Contest::new(contestants, batches, turn, threads);
        let matched = match (&self.data, &data) {
            (Some(path), Some(data)) => {
                let named = (data, &*path.display().to_string());
                contest.matched(named, self.labels_by.into(), &mut show)?
            }
            _ => Vec::new(),
        };
        let batches = contest.turns(self.rounds.get(), stop, &mut show)?;
        let models = contest.models();
        let evaluated = match (&self.data, &data) {
            (Some(path), Some(data)) => Some(Evaluated {
                data: path.display().to_string(),
                split: data.split().to_string(),
                results: contest.evaluate(&matched, EVAL_BATCH, stop, &mut show)?,
            }),
            _ => None,
        };
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            processor: processor(),
            threads: contest.threads,
            rounds: self.rounds.get(),
            models,
            batches,
            evaluated,
            peak_memory_bytes: peak_memory(),
            page: self.page.name(),
        };
        self.page.save(|| page::page(&report))?;
        Outcome::new(&report)
    }

    /// Who takes part, as typed, in their order.
    fn entries(&self) -> Result<Vec<(String, Precision)>> {
        let mut entries = Vec::new();
        for text in &self.model {
            match named_precision(text)? {
                (model, Some(precision)) => entries.push((model.to_owned(), precision)),
                (model, None) => {
                    let each = self.forms.precisions();
                    entries.extend(each.map(|precision| (model.to_owned(), precision)));
                }
            }
        }
        if entries.len() < 2 {
            let failure =
                Failure::usage("there is only one model in one precision, and nothing to compare it with");
            return Err(failure.hint("name another model, or several precisions: `--precision f32,int8`"));
        }
        Ok(entries)
    }

    fn open(&self, path: &Path) -> Result<DataSet> {
        let options = OpenOptions {
            split: self.split,
            decode: self.decode.options(),
            ..OpenOptions::default()
        };
        let data = open(path, &options)?;
        Ok(match self.limit {
            Some(limit) => data.limit(limit.get(), 0),
            None => data,
        })
    }
}
