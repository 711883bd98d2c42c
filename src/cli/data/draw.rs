//! `data draw`: pictures of a data set as PNG files, to look at.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vitesse::data::{DataSet, OpenOptions, ShapesConfig, Split, open};
use vitesse::model::storage::AtomicDir;
use vitesse::report::{Table, left, right};

use crate::cli::Console;
use crate::cli::args::{positive, split};
use crate::cli::failure::{Failure, Result};
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
pub(in crate::cli) struct Report {
    output: String,
    pub(in crate::cli) images: usize,
    classes: Vec<String>,
}

const LIST: &str = "labels.csv";

pub(in crate::cli) fn draw(data: &DataSet, output: &Path, force: bool, console: &Console) -> Result<Report> {
    let folder = AtomicDir::create(output, force, LIST)?;
    let classes: Vec<String> = data
        .class_names()
        .iter()
        .enumerate()
        .map(|(i, name)| folder_name(i, name))
        .collect();
    for class in &classes {
        let path = folder.path().join(class);
        fs::create_dir(&path).map_err(|error| Failure::io("create", &output.join(class), error))?;
    }
    let mut list = Table::new([left("filename"), right("class_index"), left("name")]);
    // The number of each class's last picture.
    let mut drawn: HashMap<Option<&str>, usize> = HashMap::new();
    let mut progress = console.progress("images", data.len());
    for sample in 0..data.len() {
        let image = data.load(sample)?;
        let label = data.label(sample);
        let class = label.and_then(|label| classes.get(label)).map(String::as_str);
        let number = drawn.entry(class).and_modify(|number| *number += 1).or_insert(0);
        let file = class.map_or_else(String::new, |class| format!("{class}/")) + &format!("{number:05}.png");
        let (width, height) = (image.width() as u32, image.height() as u32);
        image::save_buffer(
            folder.path().join(&file),
            image.data(),
            width,
            height,
            image::ColorType::Rgb8,
        )
        .map_err(|error| Failure::io("write", &output.join(&file), error))?;
        let name = label
            .and_then(|label| data.class_names().get(label))
            .cloned()
            .unwrap_or_default();
        list.push([
            file,
            label.map(|label| label.to_string()).unwrap_or_default(),
            name,
        ]);
        progress.at(sample + 1)?;
    }
    fs::write(folder.path().join(LIST), list.to_csv())
        .map_err(|error| Failure::io("write", &output.join(LIST), error))?;
    folder.commit()?;
    Ok(Report {
        output: output.display().to_string(),
        images: data.len(),
        classes: data.class_names().to_vec(),
    })
}

/// A folder for a class: its index, so that folders sort as labels do and no two are equal, and what of its name a file
/// system takes everywhere.
fn folder_name(index: usize, name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || c == '-' { c } else { '_' };
    format!(
        "{index:03}_{}",
        name.chars().take(60).map(plain).collect::<String>()
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} pictures of {} classes in `{}`",
            self.images,
            self.classes.len(),
            self.output
        )?;
        writeln!(f, "\nNext: vitesse data info --data {}", self.output)
    }
}
