//! `data`: look at data sets.

mod check;
mod draw;
mod info;
mod list;

use std::path::PathBuf;

use clap::Subcommand;
use vitesse::data::{DataSet, OpenOptions, Split, open, open_splits};

use super::Console;
use super::args::{DecodeArgs, split};
use super::failure::Result;
use super::outcome::Outcome;

/// Look at data sets: what they hold, whether their files can be read, what the built-in set looks like
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Info(info::Args),
    List(list::Args),
    Check(check::Args),
    Draw(draw::Args),
}

/// A data set to look at, as typed: all of it, unless one part is asked for.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
struct PartsArgs {
    /// Data set: a folder, a `.csv` list, or `shapes[:TASK]`, the built-in set
    #[arg(long, alias = "data-dir", value_name = "DATA")]
    data: PathBuf,
    /// Part of the data set: train, validation, trainval or test [default: all, part by part]
    ///
    /// Where no validation part is stored, a tenth of train is held back for it if either is asked for.
    #[arg(long, value_name = "SPLIT", value_parser = split)]
    split: Option<Split>,
    #[command(flatten)]
    decode: DecodeArgs,
}

impl PartsArgs {
    /// Opens what is meant.
    fn open(&self) -> Result<Vec<DataSet>> {
        match self.split {
            None | Some(Split::All) => Ok(open_splits(&self.data, &self.decode.options())?),
            split => {
                let options = OpenOptions {
                    split,
                    decode: self.decode.options(),
                    ..OpenOptions::default()
                };
                Ok(vec![open(&self.data, &options)?])
            }
        }
    }
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        match self.verb {
            Verb::Info(args) => args.run(),
            Verb::List(args) => args.run(console),
            Verb::Check(args) => args.run(console),
            Verb::Draw(args) => args.run(console),
        }
    }
}
