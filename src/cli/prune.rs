//! `prune`: structures are cut out of a model until it meets a budget, and the result is proved.

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;
use vitesse::measure::prune::{self, Prune, Pruned, Settings};
use vitesse::measure::transform::Transform;

use super::Console;
use super::args::model::ReadArgs;
use super::args::{ThreadsArgs, share};
use super::failure::Result;
use super::outcome::{Outcome, pairs};
use super::show::Show;
use super::transform::{self, OutputArgs, Written};

/// Cut head dimensions and hidden units out of a vision transformer, until it takes a share of its MACs
///
/// The result is a smaller model in a folder of its own, with no mask and nothing to load it by. Before anything is written, the same images
/// go through it and its masked twin, the model with zeros where something was cut, and logits must agree; then model and result
/// take turns, and the latency of one image before and after is told. All blocks stay alike. What was cut is lost: expect to train the result
/// (`vitesse train`, `vitesse distill`) before it is as good.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse prune --model ./deit_tiny --macs 0.7 -o smaller
  vitesse prune --model ./deit_tiny --method magnitude --macs 0.5 --dry-run -o half
  vitesse prune --model ./flowers --macs 0.5 --round-to 8 --data ./flowers-images -o half")]
pub(super) struct Args {
    /// The model: a checkpoint folder or weights file
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
    /// By what units are chosen
    #[arg(long, value_enum, default_value_t = Method::Magnitude)]
    method: Method,
    /// Share of the multiply-accumulates that is left, above 0 and at most 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    macs: f64,
    /// Of what number the width of heads and of perceptrons is a multiple
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    round_to: u32,
    /// Seed of `random`, and of the images that `taylor` draws
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Data set whose images are compared, and by whose labels `taylor` chooses [default: the built-in `shapes`]
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Images that are compared
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// By what units are chosen, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// The size of the weights
    Magnitude,
    /// Gradient times weight, over up to 640 labelled images
    #[cfg(feature = "train")]
    Taylor,
    /// At random: what the others must beat
    Random,
}

impl From<Method> for prune::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Magnitude => prune::Method::Magnitude,
            #[cfg(feature = "train")]
            Method::Taylor => prune::Method::Taylor,
            Method::Random => prune::Method::Random,
        }
    }
}

/// What was done, and its proof; or what would be.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    written: Written,
    model: String,
    step: &'static str,
    method: prune::Method,
    /// The share of units that went.
    ratio: f64,
    #[serde(flatten)]
    transform: Transform,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.threads.start()?;
        let written = self.output.look()?;
        let mut show = Show::new(console);
        let prune = Prune::open(&self.model, &self.read.options(), &mut show)?;
        let settings = Settings {
            method: self.method.into(),
            macs: self.macs,
            round_to: self.round_to as usize,
            seed: self.seed,
            data: self.data.clone(),
            images: self.images as usize,
        };
        if self.output.dry_run {
            let report = self.report(prune.plan(&settings, console.stop(), &mut show)?, written);
            let exit = report.written.exit(true);
            return Ok(Outcome::new(&report)?.with_exit(exit));
        }
        let pruned = prune.run(&settings, console.stop(), &mut show)?;
        self.output.save(&pruned.checkpoint, &pruned.transform)?;
        let exit = written.exit(pruned.transform.is_proved());
        Ok(Outcome::new(&self.report(pruned, written))?.with_exit(exit))
    }

    fn report(&self, pruned: Pruned, written: Written) -> Report {
        Report {
            written,
            model: pruned.checkpoint.spec.architecture,
            step: "prune",
            method: self.method.into(),
            ratio: pruned.ratio,
            transform: pruned.transform,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = format!("{:.1} % of head dimensions and hidden units", 100.0 * self.ratio);
        let mut rows = vec![("model", self.model.clone()), ("cut", cut)];
        rows.extend(transform::rows(&self.transform));
        rows.push(self.written.row(&self.transform));
        f.write_str(&pairs(rows))?;
        if self.written.dry_run {
            f.write_str(&transform::tensors(&self.transform.plan))?;
        }
        Ok(())
    }
}
