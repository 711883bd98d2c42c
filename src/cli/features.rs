//! `features`: feature maps of images into a file, for detection and segmentation heads.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use vitesse::engine::Options;
use vitesse::measure::features::{Features, Images, Report};
use vitesse::measure::predict::pictures;
use vitesse::measure::raw;
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};

use super::Console;
use super::args::model::CheckpointArgs;
use super::args::output::may_write;
use super::args::preprocess::PreprocessArgs;
use super::args::{DecodeArgs, RunArgs, positive};
use super::failure::Result;
use super::outcome::Outcome;
use super::show::Show;

/// Write the feature maps of images to a file: one per stage for Swin and RegNet, the grid of patches for ViT
///
/// The output holds a tensor `[images, channels, height, width]` in f32 for each map: one per stage of Swin and RegNet
/// (`stage1`, `stage2`, …; strides 4 to 32 in the published models); `layer12` of a vision transformer of twelve layers, the class
/// token and other tokens that are no patches left out. A map is what leaves the block, before any norm that follows: timm's `features_only`, or
/// `forward_intermediates` with `norm=False`. Metadata says strides, timm's names of the modules, and files.
///
/// Images are files, prepared as `predict` does, or a tensor, taken as `run` does. They are computed and written batch by
/// batch. If a file cannot be read, the command fails, and nothing is written.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse features --model swin_tiny_patch4_window7_224 -o maps.safetensors photo.jpg
  vitesse features --model ./deit_tiny --layers 3,6,9,12 -o maps.safetensors photos
  vitesse features --model ./deit_tiny --input x.safetensors -o maps.safetensors

In Python, safetensors.torch.load_file(\"maps.safetensors\")[\"layer12\"] is one of them")]
pub(super) struct Args {
    #[command(flatten)]
    model: CheckpointArgs,
    /// Layers of a vision transformer after which maps are taken, counted from 1 [default: the last]
    ///
    /// timm counts its blocks from 0: its indices 2,5,8,11 are the layers 3,6,9,12. A network with stages has a map for each.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = positive, help_heading = "Model")]
    layers: Vec<NonZeroUsize>,
    /// Image files: JPEG, PNG, WebP, BMP or GIF; of a folder, all that it holds
    #[arg(required_unless_present = "input", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File of images already prepared (resized and normalised): safetensors with `pixel_values`
    #[arg(
        short,
        long,
        value_name = "FILE",
        conflicts_with_all = ["files", "crop_pct", "interpolation", "max_pixels", "exif"]
    )]
    input: Option<PathBuf>,
    /// File to write: safetensors with one tensor per map
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        may_write(&self.output, self.force)?;
        let mut checkpoint = self.model.load(console)?;
        let mut show = Show::new(console);
        let layers: Vec<usize> = self.layers.iter().map(|layer| layer.get()).collect();
        let (backend, precision) = self.run.computed();
        let options = Options {
            precision,
            ..Options::default()
        };
        let (tensor, files, decode, preprocess);
        let images = match &self.input {
            Some(input) => {
                tensor = raw::Images::read(input, &checkpoint.spec)?;
                Images::Tensor(&tensor)
            }
            None => {
                preprocess = self.preprocess.plan(&mut checkpoint)?;
                (files, decode) = (pictures(&self.files, &mut show)?, self.decode.options());
                Images::Pictures {
                    files: &files,
                    decode: &decode,
                    preprocess: &preprocess,
                }
            }
        };
        let features = Features::new(&checkpoint, &layers, backend, options, &mut show)?;
        let batch_size = self.run.compute.batch_size.get();
        let report = features.write(images, batch_size, &self.output, console.stop(), &mut show)?;
        Outcome::of(&report, &Text(&report))
    }
}

/// What was written, for people.
struct Text<'a>(&'a Report);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let mut table = Table::new([
            left("map"),
            right("shape"),
            right("stride"),
            left("timm's module"),
        ]);
        for map in &report.maps {
            let [height, width] = map.size;
            let shape = format!("[{}, {}, {height}, {width}]", report.images, map.channels);
            table.push([&map.name, &shape, &map.stride.to_string(), &map.module]);
        }
        write!(f, "{table}")?;
        let seconds = format::duration(report.seconds);
        writeln!(
            f,
            "{} in {seconds}, {} images/s; written to `{}`",
            counted(report.images, "image"),
            format::number(report.images_per_s),
            report.output
        )
    }
}
