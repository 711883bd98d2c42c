//! `bench`: how fast models are on this machine.
//!
//! | file | what |
//! | --- | --- |
//! | `text` | what was found: the text, timm's table |
//! | `train` | steps of training instead of runs of the engine |

mod text;
#[cfg(feature = "train")]
mod train;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use vitesse::engine::{Isa, Options};
use vitesse::measure::bench::{Bench, Row};
use vitesse::measure::machine::cores;
use vitesse::measure::timing::Budget;
use vitesse::model::storage::atomic_write;

use super::Console;
use super::args::model::ModelArgs;
use super::args::output::may_write;
use super::args::{FormsArgs, positive, seconds, thread_count};
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::show::Show;

/// Measure latency and throughput of models on this machine
///
/// Runs the engine on images of noise: first to warm up, then until both --seconds and --min-runs have passed, for every
/// combination of model, precision, threads and batch size. Latency is the time of one run with a whole batch; images/s are
/// all images over all of that time. `of peak` compares with what the same threads reach, before and after, in a loop of
/// nothing but multiply-adds of the same precision. To tell two models apart on a machine that does other things too, use
/// `vitesse compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse bench deit_tiny_patch16_224
  vitesse bench ./my-run --batch-size 1,16 --precision f32,bf16,int8 --threads 2
  vitesse bench deit_tiny_patch16_224 deit_small_patch16_224 --csv bench.csv
  vitesse bench ./my-run --batch-size 1 --profile
  vitesse bench ./my-run --isa avx2,avx512 --json
  vitesse bench deit_tiny_patch16_224 --train --batch-size 16 --profile

A name from `vitesse inspect --list` needs no file: fresh weights take as long as trained ones.")]
pub(super) struct Args {
    /// Checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`; as `--model`
    #[arg(
        value_name = "MODEL",
        required_unless_present = "model",
        help_heading = "Model"
    )]
    first: Vec<String>,
    /// Checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`
    #[arg(long, num_args = 1.., value_name = "MODEL", conflicts_with = "first", help_heading = "Model")]
    model: Vec<String>,
    #[command(flatten)]
    load: ModelArgs,
    #[command(flatten)]
    forms: FormsArgs,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = thread_count, help_heading = "Computing")]
    threads: Vec<NonZeroUsize>,
    /// Instruction sets: scalar, avx2, avx512, avx512-vnni, avx512-bf16 or amx [default: VITESSE_ISA, else the highest]
    #[arg(long, value_name = "ISA,…", value_delimiter = ',', help_heading = "Computing")]
    isa: Vec<Isa>,
    /// Measure each configuration for at least so long
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds, help_heading = "Measuring")]
    seconds: Duration,
    /// Measure each configuration at least so often
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive, help_heading = "Measuring")]
    min_runs: NonZeroUsize,
    /// Measure steps of training instead: forward, cross-entropy, backward and AdamW, for all weights or the head's alone
    ///
    /// They are the steps of `vitesse train`, on one batch of noise with smoothed labels, again and again. The JSON document has
    /// the loss of every step from the first on.
    #[cfg(feature = "train")]
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, default_missing_value = "all", help_heading = "Measuring",
          conflicts_with_all = ["precision", "isa", "csv"])]
    train: Option<train::Trained>,
    /// With --train: mixed precision, as `vitesse train --amp bf16`
    #[cfg(feature = "train")]
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        help_heading = "Measuring",
        requires = "train"
    )]
    amp: Option<train::Amp>,
    /// With --train: compute blocks again in the backward pass, for less memory
    #[cfg(feature = "train")]
    #[arg(long, help_heading = "Measuring", requires = "train")]
    grad_checkpointing: bool,
    /// Show where the time goes: by layer and by stage; with --train by segment, beside the peak of the processor
    #[arg(long, help_heading = "Measuring")]
    profile: bool,
    /// Write the results as CSV too, with the columns of timm's benchmark
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    csv: Option<PathBuf>,
    /// Replace the CSV file if it exists
    #[arg(long, help_heading = "Output")]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    results: Vec<Row>,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        #[cfg(feature = "train")]
        if let Some(trained) = self.train {
            return train::run(&self, trained, console);
        }
        if let Some(csv) = &self.csv {
            may_write(csv, self.force)?;
        }
        let bench = self.bench(console)?;
        let report = Report {
            results: bench.run(console.stop(), &mut Show::new(console))?,
        };
        if let Some(path) = &self.csv {
            let csv = text::csv(&report.results);
            atomic_write(path, |file| file.write_all(csv.as_bytes()))?;
        }
        Outcome::new(&report)
    }

    /// The models, as typed.
    fn models(&self) -> impl Iterator<Item = &str> {
        self.first.iter().chain(&self.model).map(String::as_str)
    }

    /// Numbers of threads, as meant.
    fn threads(&self) -> Vec<usize> {
        if self.threads.is_empty() {
            vec![cores()]
        } else {
            self.threads.iter().map(|threads| threads.get()).collect()
        }
    }

    fn budget(&self) -> Budget {
        Budget {
            time: self.seconds,
            runs: self.min_runs.get(),
        }
    }

    fn bench(&self, console: &Console) -> Result<Bench> {
        let isas: Vec<Option<Isa>> = if self.isa.is_empty() {
            vec![None]
        } else {
            self.isa.iter().copied().map(Some).collect()
        };
        if let Some(isa) = self.isa.iter().find(|isa| !isa.is_supported()) {
            let failure = Failure::usage(format!("this processor does not have `{isa}`"));
            return Err(failure.hint(format!("its highest is `{}`", Isa::detect())));
        }
        let mut engines = Vec::new();
        for isa in isas {
            for precision in self.forms.precisions() {
                engines.extend(self.threads().into_iter().map(|threads| Options {
                    threads,
                    precision,
                    isa,
                }));
            }
        }
        let load = |model: &str| {
            let checkpoint = self.load.load_for_engine(model, None, console)?;
            Ok((model.to_owned(), checkpoint))
        };
        Ok(Bench {
            models: self.models().map(load).collect::<Result<_>>()?,
            engines,
            batches: self.forms.batches(),
            budget: self.budget(),
            profile: self.profile,
        })
    }
}
