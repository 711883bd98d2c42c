//! The command line: what is typed, and how it becomes a run.
//!
//! Every verb is one file or folder of the same shape: `Args`, as typed (clap), become what is meant (checked, with defaults
//! filled in); a library does it; and what it found is printed, at once as a JSON document and as text for people. Documents go
//! to standard output, everything else (notes, progress, errors) to standard error. What several verbs need is in `args` as far
//! as it is typed, and in a library as far as it is work: no verb knows another.

#[cfg(feature = "train")]
mod adapt;
#[cfg(feature = "train")]
mod analyze;
mod args;
mod bench;
mod compare;
mod console;
mod data;
#[cfg(feature = "train")]
mod distill;
mod doctor;
mod eval;
mod failure;
mod features;
mod habits;
mod inspect;
mod merge;
mod outcome;
mod predict;
#[cfg(feature = "train")]
mod prune;
#[cfg(feature = "train")]
mod quickstart;
#[cfg(feature = "train")]
mod recovery;
mod run;
mod share;
#[cfg(feature = "train")]
mod shell;
mod show;
mod to_dense;
#[cfg(feature = "train")]
mod tokens;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod training;
mod transform;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use console::Console;
use failure::{Exit, Failure, Result};
use outcome::Outcome;

/// Makes Vision Transformers small, adapts them to new tasks and runs them fast.
#[derive(Debug, Parser)]
#[command(
    name = "vitesse",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Exit status: 0 done, 1 failed, 2 wrong usage, 3 a check was not met, 130 interrupted.
With --json, standard output holds exactly one JSON document: the result, or
{\"error\": {\"code\", \"message\", \"hint\"}}. Notes and progress go to standard error.

New here? `vitesse quickstart` shows the whole chain without a download.
`vitesse help VERB` explains one verb, with examples."
)]
pub(crate) struct Cli {
    /// Write the result as one JSON document
    #[arg(long, global = true, display_order = 100)]
    pub(crate) json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[cfg(feature = "train")]
    Quickstart(quickstart::Args),
    #[cfg(feature = "train")]
    Train(train::Args),
    #[cfg(feature = "train")]
    Distill(distill::Args),
    #[cfg(feature = "train")]
    Adapt(adapt::Args),
    Merge(merge::Args),
    #[cfg(feature = "train")]
    Prune(prune::Args),
    ToDense(to_dense::Args),
    #[cfg(feature = "train")]
    Tokens(tokens::Args),
    Share(share::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Run(run::Args),
    Features(features::Args),
    #[cfg(feature = "train")]
    Analyze(analyze::Args),
    Bench(bench::Args),
    Compare(compare::Args),
    Inspect(inspect::Args),
    Data(data::Args),
    Doctor(doctor::Args),
}

impl Verb {
    /// Whether several processes can share the work.
    fn is_shared(&self) -> bool {
        match self {
            #[cfg(feature = "train")]
            Verb::Train(_) | Verb::Distill(_) => true,
            Verb::Eval(_) => true,
            _ => false,
        }
    }
}

impl Cli {
    pub(crate) fn run(self, console: &Console) -> Result<Outcome> {
        let processes = console.team().size();
        if processes > 1 && !self.verb.is_shared() {
            let sentence = format!("this verb runs in one process, but {processes} were launched");
            return Err(Failure::usage(sentence).hint("`train`, `distill` and `eval` share theirs"));
        }
        match self.verb {
            #[cfg(feature = "train")]
            Verb::Quickstart(args) => args.run(console),
            #[cfg(feature = "train")]
            Verb::Train(args) => args.run(console),
            #[cfg(feature = "train")]
            Verb::Distill(args) => args.run(console),
            #[cfg(feature = "train")]
            Verb::Adapt(args) => args.run(console),
            Verb::Merge(args) => args.run(console),
            #[cfg(feature = "train")]
            Verb::Prune(args) => args.run(console),
            Verb::ToDense(args) => args.run(console),
            #[cfg(feature = "train")]
            Verb::Tokens(args) => args.run(console),
            Verb::Share(args) => args.run(console),
            Verb::Eval(args) => args.run(console),
            Verb::Predict(args) => args.run(console),
            Verb::Run(args) => args.run(console),
            Verb::Features(args) => args.run(console),
            #[cfg(feature = "train")]
            Verb::Analyze(args) => args.run(console),
            Verb::Bench(args) => args.run(console),
            Verb::Compare(args) => args.run(console),
            Verb::Inspect(args) => args.run(),
            Verb::Data(args) => args.run(console),
            Verb::Doctor(args) => args.run(console),
        }
    }
}

/// The command line. A negative number is a flag's value and no flag, so that it is told which values are meant.
pub(crate) fn parse() -> std::result::Result<Cli, clap::Error> {
    fn values(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| {
                let takes = arg.get_long().is_some() && arg.get_action().takes_values();
                arg.allow_negative_numbers(takes)
            })
            .mut_subcommands(values)
    }
    let mut command = values(Cli::command());
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// What clap has to say instead of a command line: help and the version to standard output, a wrong usage to standard
/// error (and, where JSON is asked for, as a document).
pub(crate) fn refuse(error: clap::Error) -> Exit {
    let error = habits::explain(error);
    // A closed pipe is no one's fault.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Done;
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        // Only the first paragraph says what is wrong; the rest is how to call the program.
        let text = error.render().to_string();
        let sentence = text
            .trim_start_matches("error: ")
            .split("\n\n")
            .next()
            .unwrap_or_default();
        let failure = Failure::usage(sentence.trim_end());
        // Ours or clap's, such as a likely spelling.
        let tip = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("tip: "));
        match tip {
            Some(tip) => failure.hint(tip).print_document(),
            None => failure.print_document(),
        }
    }
    Exit::Usage
}
