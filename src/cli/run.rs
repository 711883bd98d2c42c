//! `run`: raw tensors in, raw logits out, to compare with other programs or to feed them.

use std::fmt;
use std::path::PathBuf;

use vitesse::measure::raw::{Images, Report};
use vitesse::report::format::{self, counted};

use super::Console;
use super::args::RunArgs;
use super::args::model::{ModelArgs, ReadArgs, WhichArgs};
use super::args::output::may_write;
use super::args::preprocess::Joint;
use super::failure::Result;
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
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
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

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        may_write(&self.output, self.force)?;
        let checkpoint = self.model.load(self.which.name(), &self.read, None, console)?;
        let images = Images::read(&self.input, &checkpoint.spec)?;
        let mut show = Show::new(console);
        let mut runner = self.run.runner(&checkpoint, &mut show)?;
        let how = (self.run.compute.batch_size.get(), self.joint.fusion());
        let report = images.classify(&mut runner, how, &self.output, console.stop(), &mut show)?;
        Outcome::of(&report, &Text(&report))
    }
}

/// What was written, for people.
struct Text<'a>(&'a Report);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let (names, [images, classes]) = (report.tensors.join("`, `"), report.shape);
        writeln!(
            f,
            "`{names}` [{images}, {classes}] written to `{}`",
            report.output
        )?;
        let seconds = format::duration(report.seconds);
        writeln!(
            f,
            "{} in {seconds}, {:.1} images/s",
            counted(images, "image"),
            report.images_per_s
        )
    }
}
