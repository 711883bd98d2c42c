//! `prune`: structures are cut out of a model until it meets a budget, what is left is corrected, and the result is proved.

mod page;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use toml::{Table, Value};
use vitesse::compress::structure::Kind;
use vitesse::compress::structure::rank::Scope;
use vitesse::measure::prune::{self, Prune, Pruned, Quantity, Settings};
use vitesse::measure::transform::At;
use vitesse::model::storage::atomic_write;

use super::Console;
use super::args::model::{ReadArgs, WhichArgs};
use super::args::output::may_write;
use super::args::{LabelsBy, Number, ThreadsArgs, batch_size, positive, share};
use super::failure::{Exit, Failure, Result};
use super::outcome::Outcome;
use super::recovery::Recovery;
use super::show::Show;
use super::training::RunArgs;
use super::transform::OutputArgs;
use report::{Remedy, Report, ResultOf};

/// What every unit was worth, beside the model, so that the choice can be explained and made again.
const RANKING: &str = "ranking.json";

/// Cut heads and hidden units out of a vision transformer, until it meets a budget
///
/// The result is a smaller model in a folder of its own, with no mask and nothing to load it by. Some hundred images, without
/// labels, say which units matter (`--method obs`), and by them every projection behind a cut is solved anew, without training, so that
/// most of what was lost comes back. Before anything is written, the same images go through the result and through its masked twin, a model as
/// large as before with zeros where something was cut, and logits must agree; then model and result take turns and are timed.
/// A few epochs with the old model as the teacher (`--finetune`) win back part of what a deep cut lost; after a light cut so short a training
/// can cost a little.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse prune ./flowers --macs 0.7 --data ./flowers-images -o smaller
  vitesse prune ./flowers --macs 0.8,0.65,0.5 --data ./flowers-images --html budgets.html -o budgets
  vitesse prune ./flowers --latency 0.6 --batch-size 1 --precision bf16 --data ./flowers-images -o faster
  vitesse prune ./deit_tiny --method magnitude --macs 0.5 --dry-run -o half
  vitesse prune ./flowers --macs 0.5 --data ./flowers-images --finetune 2 -o half")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    choice: ChoiceArgs,
    #[command(flatten)]
    images: ImagesArgs,
    /// Test the model with half of one group's units after the other, too: which blocks bear it
    #[arg(long, requires = "data", conflicts_with = "dry_run", help_heading = "Output")]
    sensitivity: bool,
    /// Train what is left for so many epochs with the model as its teacher, by the preset `recover`, in the folder `recovered` inside -o
    #[arg(long, value_name = "EPOCHS", value_parser = positive, requires = "data", conflicts_with = "dry_run", help_heading = "Recovery")]
    finetune: Option<NonZeroUsize>,
    #[command(flatten)]
    output: OutputArgs,
    /// Write what was found as an HTML page, too
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// How small it has to be, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Budget")]
#[group(skip)]
struct BudgetArgs {
    /// Share of the multiply-accumulates that is left; several, such as 0.8,0.65,0.5, make as many models in folders of -o
    #[arg(long, value_name = "SHARE", value_delimiter = ',', value_parser = share, required_unless_present_any = ["params", "bytes", "latency"])]
    macs: Vec<f64>,
    /// Share of the parameters that is left
    #[arg(long, value_name = "SHARE", value_delimiter = ',', value_parser = share, conflicts_with = "macs")]
    params: Vec<f64>,
    /// Share of the bytes of the weights that is left
    #[arg(long, value_name = "SHARE", value_delimiter = ',', value_parser = share, conflicts_with_all = ["macs", "params"])]
    bytes: Vec<f64>,
    /// Share of the time of a forward pass that is left, on this machine
    ///
    /// How long each width takes is measured once and kept in the user's cache folder; `vitesse doctor` shows and clears it. The
    /// result is measured against the model, and cut further if it is slower than the table said.
    #[arg(long, value_name = "SHARE", value_delimiter = ',', value_parser = share, conflicts_with_all = ["macs", "params", "bytes"])]
    latency: Vec<f64>,
    /// Images in a forward pass whose latency counts [default: 1]
    #[arg(short, long, value_name = "N", value_parser = batch_size)]
    batch_size: Option<NonZeroUsize>,
    /// Number format in which latency counts [default: f32]
    #[arg(long, value_enum, value_name = "FORMAT")]
    precision: Option<Number>,
}

/// What goes, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Choice")]
struct ChoiceArgs {
    /// By what units are chosen
    #[arg(long, value_enum, default_value_t = Method::Obs)]
    method: Method,
    /// Which units compete: those of each group by themselves, so that all blocks stay alike (local); all of a kind (kind); all (global) [default:
    /// global for obs, local for the others]
    #[arg(long, value_enum, value_name = "SCOPE")]
    scope: Option<ScopeName>,
    /// Cut only groups whose names, such as blocks.3.hidden, this regular expression matches; with scores each pattern is a competition of its own
    #[arg(long, value_name = "REGEX", conflicts_with = "scope")]
    pattern: Vec<String>,
    /// What is cut [default: head,hidden for obs and activation, position,hidden for the others]
    ///
    /// `attn` and `mlp` let obs drop a half of a block altogether.
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    units: Vec<Unit>,
    /// Of what number widths are a multiple: the engine computes 32 columns at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    round_to: u32,
    /// Reach the budget in so many steps, and judge units anew after each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), conflicts_with = "dry_run")]
    steps: u32,
    /// Seed of `random`, and of the images that are drawn
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Leave what was not cut as it is, instead of solving it anew
    #[arg(long)]
    no_correction: bool,
    /// How strongly corrected weights are held to what they were: a share of the mean variance of an input
    #[arg(long, value_name = "SHARE", default_value_t = 3e-3, value_parser = damping)]
    damping: f64,
}

/// By which images, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Images")]
struct ImagesArgs {
    /// Data set: its training images, without labels, choose and correct; some of its images prove the result
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// The most training images by which units are chosen and corrected
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    calibration: u32,
    /// Images on which result and masked twin are compared
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images: u32,
    /// The most validation images on which model and result are tested, where there are labels
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    eval_images: u32,
    /// How the classes of data and model find each other
    #[arg(long, value_enum, default_value_t)]
    labels_by: LabelsBy,
}

/// By what units are chosen, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// What the corrected rest of a block's half is off by without them, on images without labels (optimal brain surgery)
    Obs,
    /// Gradient times weight, over labelled images
    Taylor,
    /// Squared weight times squared gradient, image by image, over labelled images
    Fisher,
    /// What passes them on images without labels, times the weights that read it
    Activation,
    /// The size of the weights
    Magnitude,
    /// At random: what the others must beat
    Random,
}

/// Which units compete, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScopeName {
    /// Each group by itself
    Local,
    /// All groups of a kind
    Kind,
    /// All groups
    Global,
}

/// What is cut, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// Heads
    Head,
    /// The same dimension of all heads of a block: queries, keys and values
    Position,
    /// Dimensions of queries and keys
    QkDim,
    /// Dimensions of values
    VDim,
    /// Hidden units of perceptrons
    Hidden,
    /// Attention, where that costs less than what is left of it
    Attn,
    /// Perceptrons, where that costs less than what is left of them
    Mlp,
}

impl From<Method> for prune::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Obs => prune::Method::Obs,
            Method::Taylor => prune::Method::Taylor,
            Method::Fisher => prune::Method::Fisher,
            Method::Activation => prune::Method::Activation,
            Method::Magnitude => prune::Method::Magnitude,
            Method::Random => prune::Method::Random,
        }
    }
}

impl From<Unit> for Kind {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Head => Kind::Head,
            Unit::Position => Kind::Position,
            Unit::QkDim => Kind::QkDim,
            Unit::VDim => Kind::VDim,
            Unit::Hidden => Kind::Hidden,
            Unit::Attn => Kind::Attn,
            Unit::Mlp => Kind::Mlp,
        }
    }
}

/// A share from 0 to 1.
fn damping(text: &str) -> std::result::Result<f64, String> {
    let found = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    found.ok_or_else(|| "expected a share from 0 to 1, such as 0.01".to_owned())
}

impl BudgetArgs {
    /// Refuses what says how a latency is measured where none is a budget, and the same budget twice.
    fn check(&self) -> Result<()> {
        if self.latency.is_empty() && (self.batch_size.is_some() || self.precision.is_some()) {
            return Err(Failure::usage(
                "--batch-size and --precision say which latency is a budget, but --latency is not given",
            ));
        }
        for shares in [&self.macs, &self.params, &self.bytes, &self.latency] {
            if let Some((_, twice)) = shares
                .iter()
                .enumerate()
                .find(|(i, share)| shares.iter().take(*i).any(|other| other == *share))
            {
                return Err(Failure::usage(format!("the budget {twice} is given twice")));
            }
        }
        Ok(())
    }

    fn meant(&self, threads: usize) -> (Quantity, &[f64]) {
        let at = At {
            batch: self.batch_size.map_or(1, NonZeroUsize::get),
            precision: self.precision.unwrap_or(Number::F32).precision(),
            threads,
        };
        let all = [
            (Quantity::Macs, &self.macs),
            (Quantity::Params, &self.params),
            (Quantity::Bytes, &self.bytes),
            (Quantity::Latency(at), &self.latency),
        ];
        let given = all.into_iter().find(|(_, shares)| !shares.is_empty());
        given.map_or((Quantity::Macs, &[]), |(quantity, shares)| (quantity, shares))
    }
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.budget.check()?;
        self.threads.start()?;
        let (quantity, shares) = self.budget.meant(self.threads.count());
        let outputs: Vec<OutputArgs> = shares
            .iter()
            .map(|share| match shares {
                [_] => self.output.clone(),
                _ => self.output.inside(&format!("{}-{share}", quantity.name())),
            })
            .collect();
        let written = outputs.iter().map(OutputArgs::look).collect::<Result<Vec<_>>>()?;
        if let Some(path) = &self.html {
            may_write(path, self.output.forces())?;
        }
        let settings = self.settings(quantity);
        let mut show = Show::new(console);
        let model = self
            .which
            .trained(&self.read, "none of them is worth more than another")?;
        if self.finetune.is_some() {
            self.recovery(&model, self.output.folder())
                .check(Some(&self.read))?;
        }
        let prune = Prune::open(&model, &self.read.options(), &mut show)?;
        let look = prune.look(&settings, console.stop(), &mut show)?;
        let mut report = Report::new(prune.model(), settings.method, quantity);
        if self.sensitivity {
            report.sensitivity = look.sensitivity(&mut show)?;
        }
        let mut places = outputs.iter().zip(written);
        let mut exit = Exit::Done;
        let mut done = |share: f64, pruned: Pruned, report: &mut Report| -> Result<()> {
            let Some((output, written)) = places.next() else {
                return Ok(());
            };
            let proved = pruned.transform.is_proved();
            output.save_with(&pruned.checkpoint, &pruned.transform, |folder| {
                atomic_write(&folder.join(RANKING), |file| file.write_all(&pruned.ranking))
            })?;
            let met = written.exit(self.output.dry_run || proved && pruned.missed.is_none());
            if !matches!(met, Exit::Done) {
                exit = met;
            }
            let mut result = ResultOf::new(share, pruned, written);
            let epochs = self.finetune.filter(|_| proved);
            let recovered = epochs.map(|epochs| {
                let recovery = self.recovery(&model, output.folder());
                let epochs = vec![("train.epochs", Value::Integer(epochs.get() as i64))];
                let recipe = recovery.recipe(Table::new(), epochs, "the preset `recover`", console)?;
                let run = RunArgs::after(recovery.run(), false);
                recovery.learn(recipe, run, console)
            });
            let failed = match recovered.transpose() {
                Ok(recovered) => {
                    result.recovered = recovered;
                    None
                }
                Err(failure) => Some(failure),
            };
            report.results.push(result);
            failed.map_or(Ok(()), Err)
        };
        if self.output.dry_run {
            let remedies = look.remedies().into_iter();
            report.remedies = remedies
                .map(|(units, correction)| Remedy { units, correction })
                .collect();
            for (share, pruned) in shares.iter().zip(look.plan(shares, &mut show)?) {
                done(*share, pruned, &mut report)?;
            }
        } else {
            let ended = look.run(shares, &mut show, |share, pruned, _| {
                done(share, pruned, &mut report)
            });
            ended.map_err(|failure: Failure| match &report.results[..] {
                [] => failure,
                _ => failure.hint(format!("these budgets are written: {}", report.written())),
            })?;
        }
        if let Some(path) = self.html.as_ref().filter(|_| !self.output.dry_run) {
            let text = page::page(&report);
            atomic_write(path, |file| file.write_all(text.as_bytes()))?;
        }
        Ok(Outcome::new(&report)?.with_exit(exit))
    }

    /// What may follow: the model as the teacher of what is left of it in `student`.
    fn recovery<'a>(&'a self, teacher: &'a Path, student: &'a Path) -> Recovery<'a> {
        Recovery {
            flag: "--finetune",
            student,
            folder: "recovered",
            teacher,
            key: self.read.key(),
            data: self.images.data.as_deref(),
            labels_by: self.images.labels_by,
        }
    }

    fn settings(&self, quantity: Quantity) -> Settings {
        let choice = &self.choice;
        let scope = match choice.scope {
            Some(ScopeName::Local) => Some(Scope::Local),
            Some(ScopeName::Kind) => Some(Scope::Kind),
            Some(ScopeName::Global) => Some(Scope::Global),
            None if choice.pattern.is_empty() => None,
            None => Some(Scope::Patterns(choice.pattern.clone())),
        };
        Settings {
            method: choice.method.into(),
            scope,
            units: choice.units.iter().map(|&unit| unit.into()).collect(),
            quantity,
            round_to: choice.round_to as usize,
            steps: choice.steps as usize,
            seed: choice.seed,
            data: self.images.data.clone(),
            labels_by: self.images.labels_by.into(),
            calibration: self.images.calibration as usize,
            correct: !choice.no_correction,
            damping: choice.damping,
            images: self.images.images as usize,
            scored: self.images.eval_images as usize,
            batches: vec![16],
        }
    }
}
