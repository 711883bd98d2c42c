//! `merge`: an adapter is folded into its base, or taken out again, and the result is proved.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::adapt::merge::Report as Folds;
use vitesse::measure::merge::{Merge, Merged, Settings};
use vitesse::measure::transform::Transform;
use vitesse::model::zoo;
use vitesse::report::format::counted;
use vitesse::train::method::Kept;

use super::Console;
use super::args::ThreadsArgs;
use super::args::model::{ReadArgs, is_path, no_base};
use super::failure::{Failure, Result};
use super::outcome::{Outcome, pairs};
use super::show::Show;
use super::transform::{self, OutputArgs, Written};

/// Fold an adapter into the model it was trained on, or take it out again
///
/// The result is a plain checkpoint, as fast as the base, which timm loads: RepAdapter, LoRA and SSF leave no trace but other
/// weights. Before anything is written, the same images go through both models, and logits must agree; then both take turns, and
/// the latency of one image before and after is told. What cannot be folded is refused with the reason; --keep-unfoldable keeps
/// it as ops that the engine runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse merge --model ./deit_tiny --adapter runs/flowers/adapter -o flowers-model
  vitesse merge --model ./deit_tiny --adapter runs/flowers/adapter --dry-run -o flowers-model
  vitesse merge --model ./deit_tiny --adapter ./peft-lora --data ./flowers -o flowers-model
  vitesse merge --model ./flowers --adapter runs/flowers/adapter --unmerge -o base-again
  vitesse merge --model ./vit_base --adapter svhn.pt --scale 10 -o svhn")]
pub(super) struct Args {
    /// The base: a checkpoint folder or weights file; with --unmerge, the merged model
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
    /// The adapter: a folder of ours or PEFT's, or a file of the RepAdapter program
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    /// Take the adapter out of a model it was merged into; the head stays the adapter's
    #[arg(long, conflicts_with = "keep_unfoldable")]
    unmerge: bool,
    /// Keep what cannot be folded as ops, instead of refusing
    #[arg(long)]
    keep_unfoldable: bool,
    /// The scale of a file of the RepAdapter program, which does not hold it
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// Data set whose images are compared [default: the one the adapter learned from, else the built-in `shapes`]
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
    folds: Folds,
    /// Of a dry run: why the merge would be refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Kept>,
    /// Of an adapter that was taken out: the largest condition number of its maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<f64>,
    #[serde(flatten)]
    transform: Transform,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.threads.start()?;
        if self.scale.is_some() && self.adapter.is_dir() {
            let sentence = format!(
                "`{}` is a folder, which holds its scale: --scale is for a file of the RepAdapter program",
                self.adapter.display()
            );
            return Err(Failure::usage(sentence));
        }
        let model = self.model.to_string_lossy();
        if !is_path(&model) && zoo::get(&model).is_ok() {
            return Err(no_base(&model));
        }
        let written = self.output.look()?;
        let mut show = Show::new(console);
        let merge = Merge::open(
            &self.model,
            &self.read.options(),
            &self.adapter,
            self.scale,
            &mut show,
        )?;
        let settings = Settings {
            unmerge: self.unmerge,
            keep_unfoldable: self.keep_unfoldable,
            data: self.data.clone(),
            images: self.images as usize,
        };
        if self.output.dry_run {
            let report = self.report(merge.plan(&settings, &mut show)?, written);
            let exit = report.written.exit(report.refused.is_empty());
            return Ok(Outcome::new(&report)?.with_exit(exit));
        }
        let merged = merge.run(&settings, console.stop(), &mut show)?;
        self.output.save(&merged.checkpoint, &merged.transform)?;
        let exit = written.exit(merged.transform.is_proved());
        Ok(Outcome::new(&self.report(merged, written))?.with_exit(exit))
    }

    fn report(&self, merged: Merged, written: Written) -> Report {
        let mut folds = merged.folds;
        let refused = if written.dry_run && !self.keep_unfoldable {
            std::mem::take(&mut folds.kept)
        } else {
            Vec::new()
        };
        Report {
            written,
            model: merged.checkpoint.spec.architecture,
            step: if self.unmerge { "unmerge" } else { "merge" },
            folds,
            refused,
            condition: merged.condition,
            transform: merged.transform,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![("model", self.model.clone())];
        if self.step == "merge" {
            let (folded, kept) = (self.folds.folded.len(), self.folds.kept.len());
            rows.push(match self.refused.len() {
                0 => ("folded", format!("{}, {kept} kept", counted(folded, "op"))),
                refused => ("folded", format!("{}, {refused} refused", counted(folded, "op"))),
            });
        }
        if self.folds.created_bias {
            rows.push(("biases", "created for queries, keys and values".into()));
        }
        if let Some(condition) = self.condition {
            rows.push(("condition", format!("{condition:.1}")));
        }
        rows.extend(transform::rows(&self.transform));
        rows.push(self.written.row(&self.transform));
        f.write_str(&pairs(rows))?;
        for kept in &self.folds.kept {
            writeln!(f, "kept  {}: {}", kept.op, kept.reason)?;
        }
        for refused in &self.refused {
            writeln!(f, "refused  {}: {}", refused.op, refused.reason)?;
        }
        if self.written.dry_run {
            f.write_str(&transform::tensors(&self.transform.plan))?;
        }
        Ok(())
    }
}
