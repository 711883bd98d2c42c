//! `to-dense`: a pruned model is filled up with zeros until timm can load it, and the result is proved.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::measure::dense::{Fill, Filled};
use vitesse::measure::transform::Transform;

use super::Console;
use super::args::ThreadsArgs;
use super::args::model::{ReadArgs, WhichArgs};
use super::failure::Result;
use super::outcome::{Outcome, pairs};
use super::show::Show;
use super::transform::{self, OutputArgs, Written};

/// Fill a pruned model up with zeros, until all its blocks are alike and timm can load it
///
/// For programs that know only plain vision transformers. The result gives the same logits, which is proved on images before
/// anything is written. Every head comes back, and perceptrons become as wide as the widest that is left, so it is slower again, and at most
/// as large as the model was before it was pruned. Blocks that are gone stay gone; in a Swin a dropped block stays as an empty one, and
/// `to-dense` fills it up again. Models that lost hidden units alone, as many in each block, are plain timm folders as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse to-dense ./smaller -o ./for-timm
  vitesse to-dense ./smaller --data ./flowers-images -o ./for-timm")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Data set whose images are compared [default: the built-in `shapes`]
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Images that are compared
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images: u32,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// What was done, and its proof; or what would be.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    written: Written,
    model: String,
    step: &'static str,
    #[serde(flatten)]
    transform: Transform,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.threads.start()?;
        let written = self.output.look()?;
        let mut show = Show::new(console);
        let model = self.which.trained(&self.read, "nothing of it was pruned")?;
        let fill = Fill::open(&model, &self.read.options(), &mut show)?;
        let (filled, exit) = if self.output.dry_run {
            (fill.plan()?, written.exit(true))
        } else {
            let filled = fill.run(
                self.data.as_deref(),
                self.images as usize,
                console.stop(),
                &mut show,
            )?;
            self.output.save(&filled.checkpoint, &filled.transform)?;
            let exit = written.exit(filled.transform.is_proved());
            (filled, exit)
        };
        let Filled {
            checkpoint,
            transform,
        } = filled;
        let report = Report {
            written,
            model: checkpoint.spec.architecture,
            step: "to-dense",
            transform,
        };
        Ok(Outcome::new(&report)?.with_exit(exit))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![("model", self.model.clone())];
        rows.extend(transform::rows(&self.transform));
        rows.push(self.written.row(&self.transform));
        f.write_str(&pairs(rows))?;
        if self.written.dry_run {
            f.write_str(&transform::tensors(&self.transform.plan))?;
        }
        Ok(())
    }
}
