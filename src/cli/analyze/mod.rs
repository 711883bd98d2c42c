//! `analyze`: look inside models. One file for each analysis; the pages of those that draw are in `page`.

mod cka;
mod gradients;
mod page;
mod tokens;

use clap::Subcommand;

use super::Console;
use super::failure::Result;
use super::outcome::Outcome;

/// Look inside a model: what its parts do on real images
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    analysis: Analysis,
}

#[derive(Debug, Subcommand)]
enum Analysis {
    Tokens(tokens::Args),
    Cka(cka::Args),
    Gradients(gradients::Args),
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        match self.analysis {
            Analysis::Tokens(args) => args.run(console),
            Analysis::Cka(args) => args.run(console),
            Analysis::Gradients(args) => args.run(console),
        }
    }
}
