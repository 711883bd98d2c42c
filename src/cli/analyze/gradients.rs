//! `analyze gradients`: norms of gradients, layer by layer.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::data::{OpenOptions, Split, open};
use vitesse::measure::Events;
use vitesse::measure::Weights;
use vitesse::measure::gradients::{GradientNorms, How, LayerNorms, gradient_norms};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};
use vitesse_train::metrics::Spread;

use crate::cli::Console;
use crate::cli::args::model::{ModelArgs, ReadArgs};
use crate::cli::args::output::PageArgs;
use crate::cli::args::{ComputeArgs, DecodeArgs, LabelsBy, positive, split};
use crate::cli::failure::Result;
use crate::cli::outcome::{Outcome, pairs};
use crate::cli::show::Show;

use super::page;

/// Norms of gradients, layer by layer: of a layer's matrices, and of what each layer that shares them contributes
///
/// The loss on the labels, the mean over a batch, is differentiated with respect to the matrices of each layer (biases and a Swin's table of
/// relative positions with them). Where layers share matrices two norms are told: that of the sum over all these layers, which is the
/// gradient that training follows, and that of what each layer alone contributes. Without sharing both are the same.
///
/// The model stays as it is, and the batches show how far norms differ from batch to batch; with --lr it learns from each of them, so that
/// they are the norms of its first steps. Images are not augmented, and nothing is dropped. MiniViT's authors find that plain sharing makes norms
/// large and uneven, and that transformations make them small and even again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse analyze gradients ./shared --data shapes
  vitesse analyze gradients ./base ./shared ./multiplexed --data ./photos -o gradients.html
  vitesse analyze gradients deit_nano_patch8_32 --data shapes --lr 1e-3 --batches 50 -b 64 --json")]
pub(super) struct Args {
    /// Checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Labelled images: a folder, a `.csv` list, or `shapes[:TASK]`, the built-in set
    #[arg(long, alias = "data-dir", value_name = "DATA", help_heading = "Data")]
    data: PathBuf,
    /// Part of the data set: train, validation, trainval, test or all
    #[arg(long, value_name = "SPLIT", value_parser = split, default_value = "train", help_heading = "Data")]
    split: Split,
    /// How classes of the data and of each model find each other
    #[arg(long, value_enum, default_value_t, value_name = "HOW", help_heading = "Data")]
    labels_by: LabelsBy,
    #[command(flatten)]
    decode: DecodeArgs,
    /// Batches that are looked at
    #[arg(long, value_name = "N", default_value = "8", value_parser = positive)]
    batches: NonZeroUsize,
    /// Learn from each batch after it was looked at, at this rate, by AdamW [default: the model stays as it is]
    #[arg(long, value_name = "RATE", value_parser = rate)]
    lr: Option<f64>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    page: PageArgs,
}

/// A learning rate.
fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("expected a number above 0, such as 5e-4".to_owned()),
    }
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.compute.start()?;
        self.page.look()?;
        let options = OpenOptions {
            split: Some(self.split),
            decode: self.decode.options(),
            ..OpenOptions::default()
        };
        let data = open(&self.data, &options)?;
        let name = self.data.display().to_string();
        // Images without labels are refused later, by name.
        let classes = Some(data.class_names().len()).filter(|&classes| classes > 0);
        let load = |name: &String| self.model.load(name, &ReadArgs::default(), classes, console);
        let models = self.models.iter().map(load).collect::<Result<Vec<_>>>()?;
        let how = How {
            batches: self.batches.get(),
            batch_size: self.compute.batch_size.get(),
            lr: self.lr,
            labels_by: self.labels_by.into(),
        };
        let (stop, mut show) = (console.stop(), Show::new(console));
        let mut results = Vec::new();
        for (model, checkpoint) in self.models.iter().zip(&models) {
            show.say("step", &format!("gradients of `{model}`"));
            let norms = gradient_norms(checkpoint, (&data, &name), how, stop, &mut show)?;
            results.push(Found {
                model: model.clone(),
                architecture: checkpoint.spec.architecture.clone(),
                weights: Weights::of(checkpoint),
                param_count: checkpoint.spec.costs()?.parameters(),
                norms,
            });
        }
        let report = Report {
            data: name,
            split: data.split().to_string(),
            batches: how.batches,
            lr: how.lr,
            results,
            page: self.page.name(),
        };
        self.page.save(|| page::gradients(&report))?;
        Outcome::new(&report)
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    data: String,
    split: String,
    pub(super) batches: usize,
    /// The rate at which models learned; absent for models that stayed as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lr: Option<f64>,
    pub(super) results: Vec<Found>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
}

/// What was found of one model.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub(super) model: String,
    architecture: String,
    weights: Weights,
    param_count: usize,
    #[serde(flatten)]
    pub(super) norms: GradientNorms,
}

impl Report {
    /// What was differentiated.
    pub(super) fn about(&self) -> Vec<(&'static str, String)> {
        let sizes: Vec<usize> = self.results.iter().map(|found| found.norms.batch_size).collect();
        let images = sizes
            .first()
            .map_or(String::new(), |&size| counted(size, "image"));
        let how = match self.lr {
            Some(lr) => format!("each is learned from, by AdamW at {}", format::number(lr)),
            None => "the model stays as it is".to_owned(),
        };
        vec![
            ("data", format!("{}, {}", self.data, self.split)),
            ("batches", format!("{} of {images}; {how}", self.batches)),
        ]
    }

    /// What the numbers are, in a sentence.
    pub(super) fn explanation(&self) -> &'static str {
        match self.batches {
            1 => {
                "Norms of the gradients of each layer's matrices: of what all layers that share them contribute together, and of what this layer \
                 alone does."
            }
            _ => {
                "Norms of the gradients of each layer's matrices, mean over the batches, the least and the greatest: of what all layers that share \
                 them contribute together, and of what this layer alone does."
            }
        }
    }
}

impl Found {
    /// The norms of each layer.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new([
            left("layer"),
            left("shares with"),
            right("summed"),
            right("this layer alone"),
        ]);
        for layer in &self.norms.layers {
            let others: Vec<String> = layer
                .group
                .iter()
                .filter(|&&other| other != layer.layer)
                .map(usize::to_string)
                .collect();
            table.push([
                layer.layer.to_string(),
                others.join(", "),
                cell(&layer.summed),
                cell(&layer.per_use),
            ]);
        }
        table
    }

    /// Of each layer that has matrices, its number and what its norms came to.
    pub(super) fn spreads(&self, norms: fn(&LayerNorms) -> &[f64]) -> Vec<(f64, Spread)> {
        let layers = self.norms.layers.iter();
        let spreads = layers.filter_map(|layer| Some((layer.layer as f64, Spread::of(norms(layer))?)));
        spreads.collect()
    }
}

fn cell(norms: &[f64]) -> String {
    let number = format::number;
    match Spread::of(norms) {
        None => format::MISSING.to_owned(),
        Some(spread) if norms.len() == 1 => number(spread.mean),
        Some(Spread { mean, min, max, .. }) => {
            format!("{} ({} to {})", number(mean), number(min), number(max))
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&pairs(self.about()))?;
        for found in &self.results {
            let all = cell(&found.norms.grad_norm);
            let parameters = format::count(found.param_count as u64);
            write!(
                f,
                "\n{}: {parameters} parameters, norm of all gradients {all}",
                found.model
            )?;
            if let [first, .., last] = found.norms.loss[..] {
                write!(f, ", loss {} to {}", format::number(first), format::number(last))?;
            }
            write!(f, "\n{}", found.table())?;
        }
        writeln!(f, "{}", self.explanation())?;
        match &self.page {
            Some(page) => writeln!(f, "\n`{page}` shows it with charts"),
            None => Ok(()),
        }
    }
}
