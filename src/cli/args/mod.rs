//! Arguments that several verbs share, as typed.
//!
//! | file | what |
//! | --- | --- |
//! | `model` | which model |
//! | `preprocess` | how its images are prepared and its heads answer |
//! | `output` | where a file may be written |

pub(super) mod model;
pub(super) mod output;
pub(super) mod preprocess;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use vitesse::data::{DataSet, DecodeLimits, DecodeOptions, OpenOptions, Split, open};
use vitesse::engine::{Options, Precision};
use vitesse::measure::classify::{self, Runner};
use vitesse::measure::machine::{cores, most_threads, start_threads};
use vitesse::model::Checkpoint;
use vitesse_train::classes;

use super::failure::Result;
use super::show::Show;

/// How the work is spread over the machine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(super) struct ComputeArgs {
    /// Images in one forward pass
    #[arg(short, long, value_name = "N", default_value = "16", value_parser = batch_size)]
    pub(super) batch_size: NonZeroUsize,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// How many threads compute.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(super) struct ThreadsArgs {
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<NonZeroUsize>,
}

/// In what numbers and how many at once models are measured.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(super) struct FormsArgs {
    /// Images in one forward pass; several, separated by commas, are measured one after the other
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,16", value_parser = batch_size)]
    batch_size: Vec<NonZeroUsize>,
    /// Number formats of the arithmetic; with several, each model is measured in each of them
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT,…",
        value_delimiter = ',',
        default_value = "f32"
    )]
    precision: Vec<Number>,
}

/// How a model is run: on what, in what numbers.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) compute: ComputeArgs,
    /// Number format of the arithmetic
    #[arg(long, value_enum, default_value_t = Number::F32)]
    precision: Number,
    /// What computes [default: vitesse, and burn for networks that it does not know]
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Option<Backend>,
}

/// Number formats that models are run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Number {
    /// 32-bit floating point
    F32,
    /// 16-bit floating point with the range of 32 bits; sums in 32 bits
    Bf16,
    /// 8-bit integers in the projections, bf16 elsewhere
    Int8,
}

/// What can run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The engine of this program: vision transformers, compiled for this processor
    Vitesse,
    /// The network that training uses: every model, f32 only, slower
    #[cfg(feature = "train")]
    Burn,
}

/// How the classes of data and model find each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LabelsBy {
    /// By name where both have names, by position otherwise
    #[default]
    Name,
    /// By position, whatever the names are
    Index,
}

impl From<LabelsBy> for classes::LabelsBy {
    fn from(by: LabelsBy) -> classes::LabelsBy {
        match by {
            LabelsBy::Name => classes::LabelsBy::Name,
            LabelsBy::Index => classes::LabelsBy::Index,
        }
    }
}

impl Number {
    pub(super) fn precision(self) -> Precision {
        match self {
            Number::F32 => Precision::F32,
            Number::Bf16 => Precision::Bf16,
            Number::Int8 => Precision::Int8,
        }
    }
}

impl RunArgs {
    /// The model, ready to classify.
    pub(super) fn runner(&self, checkpoint: &Checkpoint, show: &mut Show<'_>) -> Result<Runner> {
        let (backend, precision) = self.computed();
        let options = Options {
            precision,
            ..Options::default()
        };
        Ok(Runner::new(checkpoint, backend, options, show)?)
    }

    /// What computes, and in what numbers.
    pub(super) fn computed(&self) -> (Option<classify::Backend>, Precision) {
        let backend = self.engine.map(|engine| match engine {
            Backend::Vitesse => classify::Backend::Engine,
            #[cfg(feature = "train")]
            Backend::Burn => classify::Backend::Network,
        });
        (backend, self.precision.precision())
    }
}

impl ComputeArgs {
    /// Starts the threads that everything after it computes on. Before anything else, because the first computation would
    /// start as many as there are cores.
    pub(super) fn start(&self) -> Result<()> {
        self.threads.start()
    }
}

impl ThreadsArgs {
    /// Starts that many.
    pub(super) fn start(&self) -> Result<()> {
        Ok(start_threads(self.threads)?)
    }

    /// How many are meant.
    pub(super) fn count(&self) -> usize {
        self.threads.map_or_else(cores, NonZeroUsize::get)
    }
}

impl FormsArgs {
    pub(super) fn batches(&self) -> Vec<usize> {
        self.batch_size.iter().map(|size| size.get()).collect()
    }

    pub(super) fn precisions(&self) -> impl Iterator<Item = Precision> {
        self.precision.iter().map(|number| number.precision())
    }
}

/// A whole number from 1.
pub(super) fn positive(text: &str) -> std::result::Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "expected a whole number from 1".to_owned())
}

/// A number of threads.
pub(super) fn thread_count(text: &str) -> std::result::Result<NonZeroUsize, String> {
    let (cores, most) = (cores(), most_threads());
    text.parse()
        .ok()
        .filter(|threads: &NonZeroUsize| threads.get() <= most)
        .ok_or_else(|| {
            format!("expected a whole number from 1 to {most}; more than the cores of this machine, {cores}, gain nothing")
        })
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

/// A share above 0, up to 1.
pub(super) fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a share above 0, up to 1, such as 0.875".to_owned()),
    }
}

/// How files become pictures, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct DecodeArgs {
    /// Refuse pictures of more pixels than this [default: 67108864]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_pixels: Option<u64>,
    /// Turn pictures as their EXIF rotation flag says; without it they are taken as they lie, as by torchvision
    #[arg(long)]
    exif: bool,
}

impl DecodeArgs {
    /// What is meant.
    pub(super) fn options(&self) -> DecodeOptions {
        DecodeOptions {
            limits: self.max_pixels.map(DecodeLimits::of_pixels).unwrap_or_default(),
            exif_rotation: self.exif,
        }
    }
}

/// Which pictures, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct DataArgs {
    /// Data set: a folder, a `.csv` list, or `shapes[:TASK]`, the built-in set
    ///
    /// A folder is recognised by what is in it: `train/`, `val/`, `test/` with a folder a class; a `labels.csv` with the
    /// columns `filename,class_index` (and `name`); VTAB-1k's lists (`train800.txt`, …); IDX files (MNIST); CIFAR binaries; a
    /// folder a class; plain pictures. The tasks of `shapes` are shape (the default), silhouette, count, orientation and
    /// location, and plain-count, plain-orientation and plain-location.
    #[arg(long, alias = "data-dir", value_name = "DATA")]
    pub(super) data: PathBuf,
    /// Part of the data set: train, validation, trainval, test or all [default: test, else validation, else all]
    ///
    /// Where no validation part is stored, a tenth of train is held back for it.
    #[arg(long, value_name = "SPLIT", value_parser = split)]
    pub(super) split: Option<Split>,
    #[command(flatten)]
    pub(super) decode: DecodeArgs,
}

impl DataArgs {
    /// Opens what is meant.
    pub(super) fn open(&self) -> Result<DataSet> {
        Ok(open(
            &self.data,
            &OpenOptions {
                split: self.split,
                decode: self.decode.options(),
                ..OpenOptions::default()
            },
        )?)
    }
}

/// A part of a data set.
pub(super) fn split(text: &str) -> std::result::Result<Split, String> {
    text.parse()
        .map_err(|_| "expected train, validation, trainval, test or all".to_owned())
}
