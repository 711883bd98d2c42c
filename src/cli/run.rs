//! `run`: raw tensors in, raw logits out, to compare with other programs or to feed them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use vitesse::measure::classify::{Arithmetic, Runner};
use vitesse::model::storage::safetensors::{self, Metadata};
use vitesse::model::{Checkpoint, Fusion, Tensor, Tensors};
use vitesse::report::format;

use super::Console;
use super::args::RunArgs;
use super::args::model::ModelArgs;
use super::args::output::may_write;
use super::args::preprocess::Joint;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::show::Show;

/// Run a model on tensors from a file and write its logits to a file
///
/// The input holds one tensor `pixel_values` [images, channels, height, width] of a floating-point type, normalised as the
/// checkpoint says: nothing is resized, cropped or normalised here. The output holds `logits` [images, classes] in f32, and
/// for a distilled model also `logits_class` and `logits_distill`, its heads; a model without classes writes its features.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse run --model ./deit_tiny_patch16_224.fb_in1k --input x.safetensors --output y.safetensors

In Python, x.safetensors is made by
  safetensors.torch.save_file({\"pixel_values\": x}, \"x.safetensors\")")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File to read: safetensors with `pixel_values`
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// File to write: safetensors with `logits`
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// How the two heads of a distilled model answer together
    #[arg(long, value_enum, default_value_t = Joint::LogitMean, help_heading = "Model")]
    joint: Joint,
    #[command(flatten)]
    run: RunArgs,
}

/// The name of the input tensor.
const PIXELS: &str = "pixel_values";

/// What is meant: everything opened and checked.
struct Plan {
    checkpoint: Checkpoint,
    runner: Runner,
    /// Normalised images, in one piece, read as they are needed.
    images: Tensor,
    /// `[images, channels, height, width]`.
    shape: [usize; 4],
    output: PathBuf,
    fusion: Fusion,
    batch_size: usize,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        may_write(&self.output, self.force)?;
        let checkpoint = self.model.load(None, console)?;
        let (images, shape) = read_images(&self.input, checkpoint.spec.input_size())?;
        let plan = Plan {
            runner: self.run.runner(&checkpoint, &mut Show::new(console))?,
            checkpoint,
            images,
            shape,
            output: self.output,
            fusion: self.joint.fusion(),
            batch_size: self.run.compute.batch_size.get(),
        };
        Outcome::new(&plan.execute(console)?)
    }
}

/// The images of a file, for a model that takes images of `size`.
fn read_images(path: &Path, size: [usize; 3]) -> Result<(Tensor, [usize; 4])> {
    let [channels, height, width] = size;
    let expected = format!("[images, {channels}, {height}, {width}]");
    let bad = |found: String| {
        let sentence = format!(
            "`{}`: tensor `{PIXELS}` should have shape {expected}, but {found}",
            path.display()
        );
        Err(Failure::new("E_TENSOR_SHAPE", sentence))
    };
    let (tensors, _) = safetensors::read(path)?;
    let Ok(tensor) = tensors.get(PIXELS) else {
        let names: Vec<&str> = tensors.names().take(5).collect();
        let found = if names.is_empty() {
            "no tensor".to_owned()
        } else {
            format!("`{}`", names.join("`, `"))
        };
        let sentence = format!(
            "`{}` has no tensor `{PIXELS}` {expected}; it has {found}",
            path.display()
        );
        return Err(Failure::new("E_TENSOR_MISSING", sentence));
    };
    if !tensor.dtype().is_float() {
        let dtype = tensor.dtype();
        let sentence = format!(
            "`{}`: tensor `{PIXELS}` should be of type F32, but is {dtype}",
            path.display()
        );
        return Err(Failure::new("E_TENSOR_TYPE", sentence).hint("scale and normalise the pixels first"));
    }
    match *tensor.shape() {
        [0, ..] => bad("holds no image".to_owned()),
        [images, c, h, w] if [c, h, w] == size => Ok((tensor.clone(), [images, c, h, w])),
        ref other => bad(format!("has {other:?}")),
    }
}

impl Plan {
    fn execute(mut self, console: &Console) -> Result<Report> {
        let images = self.shape[0];
        let begun = Instant::now();
        let pixels = self.images.to_f32();
        let how = (self.batch_size, self.fusion);
        let logits = self
            .runner
            .logits(&pixels, self.shape, how, console.stop(), &mut Show::new(console))?;
        let seconds = begun.elapsed().as_secs_f64();

        let shape = [images, logits.joint.len() / images];
        let mut tensors = Tensors::new();
        tensors.insert_f32("logits", &shape, logits.joint)?;
        if !logits.distillation.is_empty() {
            tensors.insert_f32("logits_class", &shape, logits.class)?;
            tensors.insert_f32("logits_distill", &shape, logits.distillation)?;
        }
        safetensors::write(&self.output, &tensors, &Metadata::new())?;
        Ok(Report {
            model: self.checkpoint.spec.architecture.clone(),
            output: self.output.display().to_string(),
            tensors: tensors.names().map(str::to_owned).collect(),
            shape,
            seconds,
            images_per_second: images as f64 / seconds,
            arithmetic: self.runner.arithmetic(),
        })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    output: String,
    tensors: Vec<String>,
    /// `[images, classes]`, of each of the tensors.
    shape: [usize; 2],
    seconds: f64,
    images_per_second: f64,
    #[serde(flatten)]
    arithmetic: Arithmetic,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (names, [images, classes]) = (self.tensors.join("`, `"), self.shape);
        writeln!(f, "`{names}` [{images}, {classes}] written to `{}`", self.output)?;
        let seconds = format::duration(self.seconds);
        writeln!(
            f,
            "{images} images in {seconds}, {:.1} images/s",
            self.images_per_second
        )
    }
}
