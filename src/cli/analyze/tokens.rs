//! `analyze tokens`: how alike the class and the distillation token of a distilled model are, block by block.

use std::fmt;
use std::num::NonZeroUsize;

use serde::Serialize;
use vitesse::measure::Weights;
use vitesse::measure::taught::tokens;
use vitesse::report::{Table, format, left, right};
use vitesse_train::evaluate::EvalOptions;
use vitesse_train::tokens::TokenSimilarity;

use crate::cli::Console;
use crate::cli::args::model::{ModelArgs, ReadArgs, WhichArgs};
use crate::cli::args::preprocess::PreprocessArgs;
use crate::cli::args::{ComputeArgs, DataArgs, positive};
use crate::cli::failure::Result;
use crate::cli::outcome::{Outcome, pairs};
use crate::cli::show::Show;

/// How alike the class and the distillation token are, from the parameters to the last norm
///
/// Prints cosines, 1 for tokens that point in one direction: of the two learned vectors, and, mean over the images, where the
/// first block begins, after each block and after the final norm. In the published DeiT models the learned vectors are nearly
/// orthogonal (0.06) and the tokens approach each other to 0.93 after the last block.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse analyze tokens --model runs/student/best --data shapes --limit 500")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Measure on this many images only, drawn with the classes in the proportions they have [default: all]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Data")]
    limit: Option<NonZeroUsize>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.compute.start()?;
        let mut data = self.data.open()?;
        if let Some(limit) = self.limit {
            data = data.limit(limit.get(), 0);
        }
        let mut checkpoint = self.model.load(self.which.name(), &self.read, None, console)?;
        let preprocess = self.preprocess.plan(&mut checkpoint)?;
        let options = EvalOptions {
            batch_size: self.compute.batch_size.get(),
            ..EvalOptions::default()
        };
        let (stop, mut show) = (console.stop(), Show::new(console));
        let similarity = tokens(&checkpoint, &data, &preprocess, options, stop, &mut show)?;
        Outcome::new(&Report {
            model: checkpoint.spec.architecture.clone(),
            weights: Weights::of(&checkpoint),
            data: self.data.data.display().to_string(),
            split: data.split().to_string(),
            similarity,
        })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    weights: Weights,
    data: String,
    split: String,
    /// Cosines, and the number of images that they are means over.
    #[serde(flatten)]
    similarity: TokenSimilarity,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TokenSimilarity {
            learned,
            input,
            blocks,
            norm,
            images,
        } = &self.similarity;
        f.write_str(&pairs([
            ("model", self.model.clone()),
            ("data", format!("{}, {}", self.data, self.split)),
            ("images", format::count(*images as u64)),
        ]))?;
        let mut table = Table::new([left("class and distillation token"), right("cosine")]);
        let mut row = |place: String, cosine: f64| table.push([place, format!("{cosine:.4}")]);
        row("as learned".to_owned(), *learned);
        row("input of the first block".to_owned(), *input);
        for (i, &cosine) in blocks.iter().enumerate() {
            row(format!("after block {i}"), cosine);
        }
        row("after the final norm".to_owned(), *norm);
        write!(f, "\n{table}")
    }
}
