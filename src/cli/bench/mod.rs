//! `bench`: how fast models are on this machine.
//!
//! | file | what |
//! | --- | --- |
//! | `measure` | times of runs, quantiles; `compare` measures with it too |
//! | `profile` | times by layer and by stage |
//! | `report` | what was found: the JSON document, the text, timm's table |
//! | `train` | steps of training instead of runs of the engine |

pub(super) mod measure;
mod profile;
mod report;
#[cfg(feature = "train")]
mod train;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vitesse::engine::{Engine, Isa, Options, Precision};
use vitesse::model::Checkpoint;
use vitesse::model::storage::atomic_write;
use vitesse_kernels::{Arithmetic, peak};

use super::Console;
use super::args::{Number, positive};
use super::classify::origin;
use super::doctor::machine::peak_memory;
use super::failure::{Failure, Result};
use super::model::{ModelsArgs, Weights};
use super::outcome::Outcome;
use super::run::may_write;
use measure::{Budget, Latency, measure, noise};
use profile::Profiled;
pub(super) use report::threads;
use report::{Report, Row};

/// Measure latency and throughput of models on this machine
///
/// Runs the engine on images of noise: first to warm up, then until both --seconds and --min-runs have passed, for every
/// combination of model, precision, threads and batch size. Latency is the time of one run with a whole batch; images/s are
/// all images over all of that time. `of peak` compares with what the same threads reach, just before, in a loop of nothing
/// but multiply-adds of the same precision. To tell two models apart on a machine that does other things too, use
/// `vitesse compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse bench --model deit_tiny_patch16_224
  vitesse bench --model ./my-run --batch-size 1,16 --precision f32,bf16,int8 --threads 2
  vitesse bench --model deit_tiny_patch16_224 deit_small_patch16_224 --csv bench.csv
  vitesse bench --model ./my-run --batch-size 1 --profile
  vitesse bench --model ./my-run --isa avx2,avx512 --json
  vitesse bench --train --model deit_tiny_patch16_224 --batch-size 16

A name from `vitesse inspect --list` needs no file: fresh weights take as long as trained ones.")]
pub(super) struct Args {
    /// Checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`
    #[arg(long, required = true, num_args = 1.., value_name = "MODEL", help_heading = "Model")]
    model: Vec<String>,
    #[command(flatten)]
    models: ModelsArgs,
    /// Images in one forward pass; several, separated by commas, are measured one after the other
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,16", value_parser = batch_size,
          help_heading = "Computing")]
    batch_size: Vec<NonZeroUsize>,
    /// Number formats of the arithmetic
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT,…",
        value_delimiter = ',',
        default_value = "f32",
        help_heading = "Computing"
    )]
    precision: Vec<Number>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = positive, help_heading = "Computing")]
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
          conflicts_with_all = ["precision", "isa", "profile", "csv"])]
    train: Option<train::Trained>,
    /// Show where the time goes, by layer and by stage
    #[arg(long, help_heading = "Measuring")]
    profile: bool,
    /// Write the results as CSV too, with the columns of timm's benchmark
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    csv: Option<PathBuf>,
    /// Replace the CSV file if it exists
    #[arg(long, help_heading = "Output")]
    force: bool,
}

/// A batch size.
pub(super) fn batch_size(text: &str) -> std::result::Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|size: &NonZeroUsize| size.get() <= 4096)
        .ok_or_else(|| "expected a whole number from 1 to 4096".to_owned())
}

/// A time in seconds.
pub(super) fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds from 0 to 3600, such as 0.5".to_owned()),
    }
}

/// One a core, unless told.
pub(super) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What is meant: models opened, everything else checked.
struct Plan<'a> {
    args: &'a Args,
    models: Vec<(String, Checkpoint)>,
    batches: Vec<usize>,
    engines: Vec<Options>,
    console: &'a Console,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        #[cfg(feature = "train")]
        if let Some(trained) = self.train {
            return Outcome::new(&train::run(&self, trained, console)?);
        }
        if let Some(csv) = &self.csv {
            may_write(csv, self.force)?;
        }
        let plan = self.plan(console)?;
        let report = Report { results: plan.run()? };
        if let Some(path) = &self.csv {
            atomic_write(path, |file| file.write_all(report.csv().as_bytes()))?;
        }
        Outcome::new(&report)
    }

    /// Numbers of threads, as meant.
    fn threads(&self) -> Vec<usize> {
        if self.threads.is_empty() {
            vec![default_threads()]
        } else {
            self.threads.iter().map(|threads| threads.get()).collect()
        }
    }

    fn plan<'a>(&'a self, console: &'a Console) -> Result<Plan<'a>> {
        let mut engines = Vec::new();
        let isas: Vec<Option<Isa>> = if self.isa.is_empty() {
            vec![None]
        } else {
            self.isa.iter().copied().map(Some).collect()
        };
        if let Some(isa) = self.isa.iter().find(|isa| !isa.is_supported()) {
            let failure = Failure::usage(format!("this processor does not have `{isa}`"));
            return Err(failure.hint(format!("its highest is `{}`", Isa::detect())));
        }
        let threads = self.threads();
        for &isa in &isas {
            for precision in &self.precision {
                for &threads in &threads {
                    engines.push(Options {
                        threads,
                        precision: precision.precision(),
                        isa,
                    });
                }
            }
        }
        let load = |model: &String| Ok((model.clone(), self.models.load(model, None, console)?));
        Ok(Plan {
            args: self,
            models: self.model.iter().map(load).collect::<Result<_>>()?,
            batches: self.batch_size.iter().map(|size| size.get()).collect(),
            engines,
            console,
        })
    }
}

impl Plan<'_> {
    fn run(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut peaks = Peaks::default();
        let most = self.batches.iter().copied().max().unwrap_or(1);
        for (model, checkpoint) in &self.models {
            let images = noise(checkpoint.spec.input_size(), most);
            for &options in &self.engines {
                self.console.check()?;
                let begun = Instant::now();
                let engine = Engine::new(
                    &checkpoint.spec,
                    &checkpoint.tensors,
                    &origin(checkpoint),
                    options,
                )?;
                let compiled = Compiled {
                    model,
                    checkpoint,
                    milliseconds: 1e3 * begun.elapsed().as_secs_f64(),
                    peak: peaks.of(&engine)?,
                    engine,
                };
                for &batch in &self.batches {
                    let total = self.models.len() * self.engines.len() * self.batches.len();
                    let at = rows.len() + 1;
                    self.console.say(
                        "step",
                        &format!("{at} of {total}: {}, batches of {batch}", compiled.name()),
                    );
                    rows.push(self.row(&compiled, &images, batch)?);
                }
            }
        }
        Ok(rows)
    }

    fn row(&self, compiled: &Compiled<'_>, images: &[f32], batch: usize) -> Result<Row> {
        let Compiled {
            engine, checkpoint, ..
        } = compiled;
        let budget = Budget {
            time: self.args.seconds,
            runs: self.args.min_runs.get(),
        };
        let times = measure(engine, images, batch, budget, self.console)?;
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let images_per_s = batch as f64 / mean;
        let profile = if self.args.profile {
            Some(Profiled::measure(
                engine,
                images,
                batch,
                self.args.seconds,
                self.console,
            )?)
        } else {
            None
        };
        let costs = checkpoint.spec.costs()?;
        let [_, height, width] = checkpoint.spec.input_size();
        Ok(Row {
            model: compiled.model.to_owned(),
            batch,
            precision: engine.precision(),
            threads: engine.threads(),
            isa: engine.isa().name(),
            latency_ms: Latency::of(&times),
            images_per_s,
            gmacs: costs.macs() as f64 / 1e9,
            peak_fraction: 2.0 * engine.macs() as f64 * images_per_s / compiled.peak,
            gmacs_executed: engine.macs() as f64 / 1e9,
            peak_gops: compiled.peak / 1e9,
            architecture: checkpoint.spec.architecture.clone(),
            weights: Weights::of(checkpoint),
            img_size: [height, width],
            params: costs.parameters(),
            weight_bytes: checkpoint.tensors.total_bytes(),
            packed_bytes: engine.packed_bytes(),
            peak_memory_bytes: peak_memory(),
            compile_ms: compiled.milliseconds,
            runs: times.len(),
            mean_ms: 1e3 * mean,
            profile,
        })
    }
}

/// A model ready to be measured.
struct Compiled<'a> {
    /// As typed.
    model: &'a str,
    checkpoint: &'a Checkpoint,
    engine: Engine,
    milliseconds: f64,
    /// Operations a second.
    peak: f64,
}

impl Compiled<'_> {
    fn name(&self) -> String {
        let threads = threads(self.engine.threads());
        format!(
            "{}, {}, {threads}, {}",
            self.model,
            self.engine.precision(),
            self.engine.isa()
        )
    }
}

/// Peaks that have been measured.
#[derive(Debug, Default)]
struct Peaks(Vec<((Isa, Precision, usize), f64)>);

impl Peaks {
    /// The peak of an engine's instructions, arithmetic and threads. One that has been measured is not measured again.
    fn of(&mut self, engine: &Engine) -> Result<f64> {
        let key = (engine.isa(), engine.precision(), engine.threads());
        if let Some((_, peak)) = self.0.iter().find(|(known, _)| *known == key) {
            return Ok(*peak);
        }
        let arithmetic = match engine.precision() {
            Precision::F32 => Arithmetic::F32,
            Precision::Bf16 => Arithmetic::Bf16,
            Precision::Int8 => Arithmetic::Int8,
        };
        let found = peak(engine.isa(), arithmetic, engine.threads()).map_err(|error| {
            Failure::new(
                "E_THREADS",
                format!("cannot start {} threads: {error}", engine.threads()),
            )
        })?;
        self.0.push((key, found));
        Ok(found)
    }
}
