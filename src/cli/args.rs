//! Arguments that several verbs share, as typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use vitesse::data::{DataSet, OpenOptions, Split, open};

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
    /// Number format of the arithmetic
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
}

/// Number formats that models are run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    /// 32-bit floating point
    F32,
}

impl ComputeArgs {
    /// Starts the threads that everything after it computes on. Before anything else, because the first computation would
    /// start as many as there are cores.
    pub(super) fn start(&self) -> Result<()> {
        let Precision::F32 = self.precision;
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
    /// columns `filename,class_index` (and `name`); IDX files (MNIST); CIFAR binaries; a folder a class; plain pictures. The
    /// tasks of `shapes` are shape (the default), count, orientation and location.
    #[arg(long, alias = "data-dir", value_name = "DATA")]
    pub(super) data: PathBuf,
    /// Part of the data set: train, validation, test or all [default: test, else validation, else all]
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
        .map_err(|_| "expected train, validation, test or all".to_owned())
}
