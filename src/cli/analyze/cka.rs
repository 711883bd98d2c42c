//! `analyze cka`: how similar two models are, layer by layer.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::measure::similarity::{Features, Similarity, similarity};
use vitesse::report::{Table, format, left, right};

use crate::cli::Console;
use crate::cli::args::model::{ModelArgs, ReadArgs};
use crate::cli::args::{ComputeArgs, positive};
use crate::cli::failure::Result;
use crate::cli::outcome::{Outcome, pairs};
use crate::cli::show::Show;

/// How similar two models are, layer by layer: linear CKA of what leaves each block
///
/// 1 for features that differ by a rotation and a scale, 0 for features that have nothing in common, or are the same for all images. Of a
/// layer's tokens the mean is compared, or all of them with --flatten. Models whose layers share matrices are said to be least similar in the last
/// layers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse analyze cka ./base ./shared --data shapes
  vitesse analyze cka ./base ./shared --flatten --json")]
pub(super) struct Args {
    /// Two checkpoint folders, `.safetensors` or `.pth` files, or names from `vitesse inspect --list`
    #[arg(required = true, num_args = 2, value_names = ["MODEL", "MODEL"])]
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
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.compute.start()?;
        let load = |name: &String| self.model.load(name, &ReadArgs::default(), None, console);
        let models = self.models.iter().map(load).collect::<Result<Vec<_>>>()?;
        let [a, b] = &models[..] else {
            unreachable!("two models are asked for")
        };
        let features = match self.flatten {
            true => Features::Flattened,
            false => Features::Mean,
        };
        let counts = (self.images.get(), self.compute.batch_size.get());
        let (stop, mut show) = (console.stop(), Show::new(console));
        let found = similarity([a, b], self.data.as_deref(), counts, features, stop, &mut show)?;
        Outcome::new(&Report {
            models: self.models,
            cka: found,
        })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    models: Vec<String>,
    #[serde(flatten)]
    cka: Similarity,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Similarity {
            images,
            data,
            source,
            features,
            layers,
            constant,
        } = &self.cka;
        let what = match features {
            Features::Mean => "mean over the tokens of each image",
            Features::Flattened => "all tokens of each image",
        };
        let mut rows = vec![
            ("models", self.models.join(", ")),
            (
                "images",
                format!("{} of {data} ({source})", format::count(*images as u64)),
            ),
            ("features", what.to_owned()),
        ];
        if !constant.is_empty() {
            let numbers: Vec<String> = constant.iter().map(|layer| layer.to_string()).collect();
            let told = format!(
                "the same for all images in layers {}; 0 by definition",
                numbers.join(", ")
            );
            rows.push(("warning", told));
        }
        f.write_str(&pairs(rows))?;
        let mut table = Table::new([left("layer"), right("CKA")]);
        for (layer, cka) in layers.iter().enumerate() {
            table.push([layer.to_string(), format!("{cka:.4}")]);
        }
        write!(f, "\n{table}")
    }
}
