//! `merge`: an adapter is folded into its base, or taken out again, and the result is proved.

pub(super) mod images;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, json};
use vitesse::adapt::merge::{self, Difference, Options, Report as Folds};
use vitesse::adapt::peft::{Adapter, official};
use vitesse::engine::{Engine, Options as EngineOptions};
use vitesse::model::config::HistoryStep;
use vitesse::model::{Checkpoint, LoadOptions};

use super::Console;
use super::args::{positive, start_threads};
use super::failure::{Exit, Failure, Result};
use super::model::attached;
use super::outcome::{Outcome, pairs};
use images::{Images, Source};

/// Fold an adapter into the model it was trained on, or take it out again
///
/// The result is a plain checkpoint, as fast as the base, which timm loads: RepAdapter, LoRA and SSF leave no trace but other
/// weights. Before anything is written, the same images go through both models, and logits must agree. What cannot be folded
/// is refused with the reason; --keep-unfoldable keeps it as ops that the engine runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse merge --model ./deit_tiny --adapter runs/flowers/adapter -o flowers
  vitesse merge --model ./deit_tiny --adapter ./peft-lora --data ./flowers -o flowers
  vitesse merge --model ./flowers --adapter runs/flowers/adapter --unmerge -o base-again
  vitesse merge --model ./vit_base --adapter svhn.pt --scale 10 -o svhn")]
pub(super) struct Args {
    /// The base: a checkpoint folder or weights file; with --unmerge, the merged model
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// The adapter: a folder of ours or PEFT's, or a file of the RepAdapter program
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Replace the output folder if it holds a checkpoint
    #[arg(long)]
    force: bool,
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
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<NonZeroUsize>,
}

/// What was done, and its proof.
#[derive(Debug, Serialize)]
struct Report {
    output: String,
    model: String,
    step: &'static str,
    folds: Folds,
    /// Of an adapter that was taken out: the largest condition number of its maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<f64>,
    check: Difference,
    images: Source,
    /// The data set they are from.
    data: String,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        start_threads(self.threads)?;
        let model = Checkpoint::load(&self.model, &LoadOptions::default())?;
        model.source.notes.iter().for_each(|note| console.note(note));
        let adapter = if self.adapter.is_dir() {
            Adapter::read(&self.adapter)?
        } else {
            official::read(&self.adapter, self.scale)?
        };
        let report = if self.unmerge {
            self.take_out(&model, &adapter, console)?
        } else {
            self.fold(&model, &adapter, console)?
        };
        let met = report.check.is_met();
        let outcome = Outcome::new(&report)?;
        Ok(if met {
            outcome
        } else {
            outcome.with_exit(Exit::CheckNotMet)
        })
    }

    fn fold(&self, base: &Checkpoint, adapter: &Adapter, console: &Console) -> Result<Report> {
        let attached = attached(base, adapter, console)?;
        let options = Options {
            keep_unfoldable: self.keep_unfoldable,
        };
        let mut result = attached.clone();
        // Methods without ops only have other values for the base's tensors.
        let folds = if attached.spec.ops.is_empty() {
            Folds::default()
        } else {
            let merged = merge::merge(&attached.spec, &attached.tensors, options)?;
            (result.spec, result.tensors) = (merged.spec, merged.tensors);
            merged.report
        };
        let images = Images::find(
            self.data.as_deref(),
            adapter,
            self.images as usize,
            &attached,
            console,
        )?;
        let check = compare(&result, &attached, &images.pixels)?;
        let mut config = Map::new();
        config.insert("adapter_sha256".into(), json!(self.adapter_sha256(adapter)?));
        config.insert("created_bias".into(), json!(folds.created_bias));
        config.insert("method".into(), json!(adapter.record.method));
        let step = HistoryStep {
            step: "merge".into(),
            method: adapter
                .record
                .method
                .as_ref()
                .map(|method| method.name().to_owned()),
            config,
            parent_sha256: base.source_sha256()?,
            metrics: proof(&check),
        };
        result.config.history.push(step);
        result.config.pretrained_cfg.tag = None;
        self.write(&result, &check)?;
        Ok(Report {
            output: self.output.display().to_string(),
            model: result.spec.architecture.clone(),
            step: "merge",
            folds,
            condition: None,
            check,
            images: images.source,
            data: images.data,
        })
    }

    fn take_out(&self, merged: &Checkpoint, adapter: &Adapter, console: &Console) -> Result<Report> {
        let sha256 = self.adapter_sha256(adapter)?;
        let last = merged.config.history.iter().rposition(|step| {
            step.step == "merge" && step.config.get("adapter_sha256") == Some(&json!(sha256))
        });
        let Some(last) = last else {
            let sentence = format!(
                "`{}` was not merged into `{}`, as far as its history says",
                self.adapter.display(),
                self.model.display()
            );
            return Err(Failure::new("E_ADAPTER_BASE", sentence));
        };
        let created = merged
            .config
            .history
            .get(last)
            .and_then(|step| step.config.get("created_bias")?.as_bool())
            .unwrap_or(false);
        let attached = adapter.attach(merged)?;
        let out = merge::unmerge(&attached.spec, &attached.tensors, created)?;
        console.note(
            "the head stays the adapter's; the base's own is in the base, which is exact where this is rounded",
        );
        let mut result = merged.clone();
        (result.spec, result.tensors) = (out.spec, out.tensors);
        result.config.history.remove(last);
        // The proof: with the adapter again, it is what was merged.
        let images = Images::find(
            self.data.as_deref(),
            adapter,
            self.images as usize,
            merged,
            console,
        )?;
        let check = compare(&adapter.attach(&result)?, merged, &images.pixels)?;
        self.write(&result, &check)?;
        Ok(Report {
            output: self.output.display().to_string(),
            model: result.spec.architecture.clone(),
            step: "unmerge",
            folds: Folds::default(),
            condition: Some(out.condition),
            check,
            images: images.source,
            data: images.data,
        })
    }

    /// Nothing is written that is not proved.
    fn write(&self, result: &Checkpoint, check: &Difference) -> Result<()> {
        if check.is_met() {
            result.save(&self.output, self.force)?;
        }
        Ok(())
    }

    fn adapter_sha256(&self, adapter: &Adapter) -> Result<String> {
        if self.adapter.is_dir() {
            return Ok(adapter.sha256()?);
        }
        Ok(vitesse::model::checkpoint::file_sha256(&self.adapter)?)
    }
}

/// The metrics of a history step.
fn proof(check: &Difference) -> Map<String, serde_json::Value> {
    let mut metrics = Map::new();
    metrics.insert("check_images".into(), json!(check.images));
    metrics.insert("largest_difference".into(), json!(check.largest));
    metrics
}

/// The same images through both models, on the engine.
pub(super) fn compare(found: &Checkpoint, expected: &Checkpoint, images: &[f32]) -> Result<Difference> {
    let size = expected.spec.input_size().iter().product::<usize>();
    let count = images.len() / size.max(1);
    let run = |checkpoint: &Checkpoint| -> Result<Vec<f32>> {
        let options = EngineOptions {
            threads: rayon::current_num_threads(),
            ..EngineOptions::default()
        };
        let source = origin(checkpoint.source.weights.as_deref());
        let engine = Engine::new(&checkpoint.spec, &checkpoint.tensors, &source, options)?;
        let output = engine.run(images, count)?;
        // Head by head within an image, so that classes can be told apart.
        Ok(if output.distillation.is_empty() {
            output.class
        } else {
            let pairs = output.class.iter().zip(&output.distillation);
            pairs.map(|(a, b)| (a + b) / 2.0).collect()
        })
    };
    Ok(Difference::of(&run(found)?, &run(expected)?, count))
}

fn origin(path: Option<&Path>) -> String {
    path.map_or_else(|| "the model".to_owned(), |path| path.display().to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![("model", self.model.clone())];
        if self.step == "merge" {
            rows.push((
                "folded",
                format!("{} ops, {} kept", self.folds.folded.len(), self.folds.kept.len()),
            ));
        }
        if self.folds.created_bias {
            rows.push(("biases", "created for queries, keys and values".into()));
        }
        if let Some(condition) = self.condition {
            rows.push(("condition", format!("{condition:.1}")));
        }
        rows.push((
            "check",
            format!("{} ({}: `{}`)", self.check, self.images, self.data),
        ));
        let written = if self.check.is_met() {
            self.output.clone()
        } else {
            "nothing was written: the check was not met".into()
        };
        rows.push(("output", written));
        f.write_str(&pairs(rows))?;
        for kept in &self.folds.kept {
            writeln!(f, "kept  {}: {}", kept.op, kept.reason)?;
        }
        Ok(())
    }
}
