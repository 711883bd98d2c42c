//! `analyze cka`: how similar models are to one, layer by layer.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::measure::images::Source;
use vitesse::measure::similarity::{Compared, Features, similarity};
use vitesse::report::{Table, format, left, right};

use crate::cli::Console;
use crate::cli::args::model::{ModelArgs, ReadArgs};
use crate::cli::args::output::PageArgs;
use crate::cli::args::{ComputeArgs, positive};
use crate::cli::failure::Result;
use crate::cli::outcome::{Outcome, pairs};
use crate::cli::show::Show;

use super::page;

/// How similar models are to one, layer by layer: linear CKA of what leaves each block
///
/// 1 for features that differ by a rotation and a scale, 0 for features that have nothing in common, or are the same for all images. Of a
/// layer's tokens the mean is compared, or all of them with --flatten. Models whose layers share matrices are said to be least similar in the last
/// layers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse analyze cka ./base ./shared --data shapes
  vitesse analyze cka ./base ./shared ./multiplexed -o cka.html
  vitesse analyze cka ./base ./shared --flatten --json")]
pub(super) struct Args {
    /// Checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`
    ///
    /// The first is what the others are compared with. All must have the same number of layers and take the same images.
    #[arg(required = true, num_args = 2.., value_names = ["BASE", "MODEL"])]
    models: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Data set whose images are compared [default: the built-in `shapes`]
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Images that are compared
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    images: NonZeroUsize,
    /// Compare all tokens, one after the other, and not their mean
    #[arg(long)]
    flatten: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    page: PageArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.compute.start()?;
        self.page.look()?;
        let load = |name: &String| self.model.load(name, &ReadArgs::default(), None, console);
        let models = self.models.iter().map(load).collect::<Result<Vec<_>>>()?;
        let features = match self.flatten {
            true => Features::Flattened,
            false => Features::Mean,
        };
        let counts = (self.images.get(), self.compute.batch_size.get());
        let (stop, mut show) = (console.stop(), Show::new(console));
        let [base, others @ ..] = &models[..] else {
            unreachable!("two models are asked for")
        };
        let found = similarity(
            base,
            others,
            self.data.as_deref(),
            counts,
            features,
            stop,
            &mut show,
        )?;
        let results = self.models.iter().skip(1).zip(found.others);
        let report = Report {
            images: found.images,
            data: found.data,
            source: found.source,
            features,
            constant: found.constant,
            results: results
                .map(|(model, found)| Beside {
                    model: model.clone(),
                    found,
                })
                .collect(),
            models: self.models,
            page: self.page.name(),
        };
        self.page.save(|| page::cka(&report))?;
        Outcome::new(&report)
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// As typed; the first is what the others are compared with.
    pub(super) models: Vec<String>,
    images: usize,
    data: String,
    source: Source,
    features: Features,
    /// Layers of the first model whose features are the same for all images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    constant: Vec<usize>,
    pub(super) results: Vec<Beside>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
}

/// One of the others.
#[derive(Debug, Serialize)]
pub(super) struct Beside {
    pub(super) model: String,
    #[serde(flatten)]
    pub(super) found: Compared,
}

impl Report {
    /// What was compared with what.
    pub(super) fn about(&self) -> Vec<(&'static str, String)> {
        let what = match self.features {
            Features::Mean => "mean over the tokens of each image",
            Features::Flattened => "all tokens of each image",
        };
        let images = format::count(self.images as u64);
        let mut rows = vec![
            ("models", self.models.join(", ")),
            ("images", format!("{images} of {} ({})", self.data, self.source)),
            ("features", what.to_owned()),
        ];
        let constant = [&self.constant].into_iter();
        let constant = constant.chain(self.results.iter().map(|result| &result.found.constant));
        for (model, layers) in self.models.iter().zip(constant) {
            if !layers.is_empty() {
                let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
                let told = format!(
                    "the features of `{model}` are the same for all images in layers {}; CKA is 0 there by definition",
                    numbers.join(", ")
                );
                rows.push(("warning", told));
            }
        }
        rows
    }

    /// CKA with the first model, a column for each of the others.
    pub(super) fn table(&self) -> Table {
        let heads = self.results.iter().map(|result| match self.results.len() {
            1 => right("CKA"),
            _ => right(result.model.clone()),
        });
        let mut table = Table::new([left("layer")].into_iter().chain(heads));
        let depth = self.results.first().map_or(0, |result| result.found.layers.len());
        for layer in 0..depth {
            let cka = self
                .results
                .iter()
                .filter_map(|result| result.found.layers.get(layer));
            let cells = cka.map(|cka| format!("{cka:.4}"));
            table.push([layer.to_string()].into_iter().chain(cells));
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&pairs(self.about()))?;
        write!(f, "\n{}", self.table())?;
        match &self.page {
            Some(page) => writeln!(f, "\n`{page}` shows it with a chart"),
            None => Ok(()),
        }
    }
}
