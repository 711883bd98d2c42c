//! Arguments that several verbs share, as typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use vitesse::data::{DataSet, OpenOptions, Split, open};
use vitesse::engine::Precision;

use super::failure::{Failure, Result};

/// How the work is spread over the machine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(super) struct ComputeArgs {
    /// Images in one forward pass
    #[arg(short, long, value_name = "N", default_value = "16", value_parser = positive)]
    pub(super) batch_size: NonZeroUsize,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<NonZeroUsize>,
}

/// How a model is run: on what, in what numbers.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) compute: ComputeArgs,
    /// Number format of the arithmetic
    #[arg(long, value_enum, default_value_t = Number::F32)]
    pub(super) precision: Number,
    /// What computes [default: vitesse, and burn for networks that it does not know]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(super) engine: Option<Backend>,
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
pub(super) enum Backend {
    /// The engine of this program: vision transformers, compiled for this processor
    Vitesse,
    /// The network that training uses: every model, f32 only, slower
    #[cfg(feature = "train")]
    Burn,
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

impl ComputeArgs {
    /// Starts the threads that everything after it computes on. Before anything else, because the first computation would
    /// start as many as there are cores.
    pub(super) fn start(&self) -> Result<()> {
        start_threads(self.threads)
    }
}

/// Starts the process's computing threads, one a core unless a number is given.
pub(super) fn start_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.map_or(0, NonZeroUsize::get))
        .build_global()
        .map_err(|error| {
            Failure::new(
                "E_THREADS",
                format!("cannot start the computing threads: {error}"),
            )
        })
}

/// A whole number from 1.
pub(super) fn positive(text: &str) -> std::result::Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "expected a whole number from 1".to_owned())
}

/// A share above 0, up to 1.
pub(super) fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a share above 0, up to 1, such as 0.875".to_owned()),
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
}

impl DataArgs {
    /// Opens what is meant.
    pub(super) fn open(&self) -> Result<DataSet> {
        Ok(open(
            &self.data,
            &OpenOptions {
                split: self.split,
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
