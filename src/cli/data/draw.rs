//! `data draw`: pictures of a data set as PNG files, to look at.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vitesse::data::{DataSet, LIST, OpenOptions, ShapesConfig, Split, export, open};
use vitesse::model::storage::AtomicDir;
use vitesse::report::format::counted;

use crate::cli::Console;
use crate::cli::args::{positive, split};
use crate::cli::failure::Result;
use crate::cli::outcome::Outcome;

/// Write pictures of a data set as PNG files, a folder a class
///
/// Made for the built-in set, which has no files of its own; works with any. The folder holds a `labels.csv` and is itself
/// a data set. Classes come in the proportions they have.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse data draw shapes -o look
  vitesse data draw shapes:orientation -o arrows --count 800")]
pub(super) struct Args {
    /// Data set: `shapes[:TASK]` with a TASK of shape, count, orientation, location, silhouette, plain-count …; or a folder or `.csv` list
    #[arg(value_name = "DATA", default_value = "shapes")]
    data: PathBuf,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Part of the data set: train, validation, trainval, test or all
    #[arg(long, value_name = "SPLIT", default_value = "train", value_parser = split)]
    split: Split,
    /// Pictures to write
    #[arg(long, value_name = "N", default_value = "80", value_parser = positive)]
    count: NonZeroUsize,
    /// Replace a folder that this verb wrote before
    #[arg(long)]
    force: bool,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        let count = self.count.get();
        // The built-in set has as many training pictures as are asked for.
        let defaults = ShapesConfig::default();
        let shapes = ShapesConfig {
            train: count.max(defaults.train),
            ..defaults
        };
        let options = OpenOptions {
            split: Some(self.split),
            shapes,
            ..OpenOptions::default()
        };
        let data = open(&self.data, &options)?.limit(count, 0);
        Outcome::new(&draw(&data, &self.output, self.force, console)?)
    }
}

#[derive(Debug, Serialize)]
struct Report {
    output: String,
    images: usize,
    classes: Vec<String>,
}

/// Draws into the folder `output`, which is written as a whole or not at all.
fn draw(data: &DataSet, output: &Path, force: bool, console: &Console) -> Result<Report> {
    let folder = AtomicDir::create(output, force, LIST)?;
    let mut progress = console.progress("images", data.len());
    export(data, folder.path(), &mut |done| match progress.at(done) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    })?;
    console.check()?;
    folder.commit()?;
    Ok(Report {
        output: output.display().to_string(),
        images: data.len(),
        classes: data.class_names().to_vec(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} of {} in `{}`",
            counted(self.images, "picture"),
            counted(self.classes.len(), "class"),
            self.output
        )?;
        writeln!(f, "\nNext: vitesse data info --data {}", self.output)
    }
}
