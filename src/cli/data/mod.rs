//! `data`: look at data sets.

mod check;
mod draw;
mod info;
mod list;

use clap::Subcommand;

use super::Console;
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

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        match self.verb {
            Verb::Info(args) => args.run(),
            Verb::List(args) => args.run(),
            Verb::Check(args) => args.run(console),
            Verb::Draw(args) => args.run(console),
        }
    }
}
