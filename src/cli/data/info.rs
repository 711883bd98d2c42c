//! `data info`: the parts and classes of a data set.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vitesse::data::{self, DataSet, OpenOptions, Split, form, open};
use vitesse::report::{Table, format, left, right};

use crate::cli::failure::Result;
use crate::cli::outcome::{Outcome, pairs};

/// Show the form and the parts of a data set, its classes, and how many pictures each has
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse data info --data shapes:count
  vitesse data info --data ./cifar10 --json")]
pub(super) struct Args {
    /// Data set: a folder, a `.csv` list, or `shapes[:TASK]`
    #[arg(long, alias = "data-dir", value_name = "DATA")]
    data: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> Result<Outcome> {
        Outcome::new(&Report::of(&self.data)?)
    }
}

#[derive(Debug, Serialize)]
struct Report {
    data: String,
    /// What was recognised, in words.
    form: &'static str,
    parts: Vec<Part>,
    classes: Vec<Class>,
    /// Height and width of the first picture.
    first_picture: [usize; 2],
}

#[derive(Debug, Serialize)]
struct Part {
    split: Split,
    images: usize,
    unlabelled: usize,
    /// Taken out of train, because no validation part is stored.
    held_back: bool,
    /// Files of formats that are not supported.
    skipped: usize,
}

#[derive(Debug, Serialize)]
struct Class {
    index: usize,
    name: String,
    /// Pictures in each of the parts.
    images: Vec<usize>,
}

impl Report {
    fn of(path: &Path) -> Result<Report> {
        let sets = parts(path)?;
        let names = sets
            .iter()
            .map(|(set, _)| set.class_names())
            .max_by_key(|names| names.len());
        let mut classes: Vec<Class> = names
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(index, name)| Class {
                index,
                name: name.clone(),
                images: vec![0; sets.len()],
            })
            .collect();
        let mut parts = Vec::new();
        for (part, (set, held_back)) in sets.iter().enumerate() {
            let mut unlabelled = 0;
            for sample in 0..set.len() {
                let class = set.label(sample).and_then(|label| classes.get_mut(label));
                match class.and_then(|class| class.images.get_mut(part)) {
                    Some(images) => *images += 1,
                    None => unlabelled += 1,
                }
            }
            let (split, images, skipped) = (set.split(), set.len(), set.skipped());
            parts.push(Part {
                split,
                images,
                unlabelled,
                held_back: *held_back,
                skipped,
            });
        }
        let first = match sets.first() {
            Some((set, _)) => set.load(0)?,
            None => open(path, &OpenOptions::default())?.load(0)?,
        };
        Ok(Report {
            data: path.display().to_string(),
            form: form(path)?,
            parts,
            classes,
            first_picture: [first.height(), first.width()],
        })
    }
}

/// The parts that can be asked for, and whether they were held back from another. A set without parts is one whole.
fn parts(path: &Path) -> Result<Vec<(DataSet, bool)>> {
    let ask = |split, val_fraction| {
        open(
            path,
            &OpenOptions {
                split: Some(split),
                val_fraction,
                ..OpenOptions::default()
            },
        )
    };
    let stored = |split| match ask(split, 0.0) {
        Ok(set) => Ok(Some(set)),
        Err(data::Error::NoSplit { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let test = stored(Split::Test)?;
    // With nothing held back, a validation part that is not stored would be empty, which is an error.
    let validation = stored(Split::Validation).ok().flatten();
    if test.is_none() && validation.is_none() {
        return Ok(vec![(ask(Split::All, 0.0)?, false)]);
    }
    let fraction = OpenOptions::default().val_fraction;
    let (train, held_back) = match validation {
        Some(set) => (stored(Split::Train)?, Some((set, false))),
        None => match ask(Split::Train, fraction) {
            Ok(train) => (Some(train), Some((ask(Split::Validation, fraction)?, true))),
            Err(data::Error::NoSplit { .. }) => (None, None),
            Err(error) => return Err(error.into()),
        },
    };
    let test = test.map(|set| (set, false));
    Ok(train
        .map(|set| (set, false))
        .into_iter()
        .chain(held_back)
        .chain(test)
        .collect())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Classes shown; more would hide the rest.
        const SHOWN: usize = 40;
        let [height, width] = self.first_picture;
        let mut rows = vec![
            ("data".to_owned(), self.data.clone()),
            ("form".to_owned(), self.form.to_owned()),
        ];
        for part in &self.parts {
            let mut text = format!("{} images", format::count(part.images as u64));
            let marks = [
                (part.held_back, "held back from train".to_owned()),
                (
                    part.unlabelled > 0,
                    format!("{} without a label", part.unlabelled),
                ),
                (
                    part.skipped > 0,
                    format!("{} files of unsupported formats", part.skipped),
                ),
            ];
            for (_, mark) in marks.iter().filter(|(marked, _)| *marked) {
                text += &format!(", {mark}");
            }
            rows.push((part.split.to_string(), text));
        }
        rows.push(("classes".to_owned(), self.classes.len().to_string()));
        rows.push(("first picture".to_owned(), format!("{width} x {height} pixels")));
        f.write_str(&pairs(rows))?;
        if self.classes.is_empty() {
            return Ok(());
        }
        let columns = self.parts.iter().map(|part| right(part.split.to_string()));
        let mut table = Table::new([right("index"), left("class")].into_iter().chain(columns));
        for class in self.classes.iter().take(SHOWN) {
            let counts = class.images.iter().map(ToString::to_string);
            table.push(
                [class.index.to_string(), class.name.clone()]
                    .into_iter()
                    .chain(counts),
            );
        }
        write!(f, "\n{table}")?;
        if self.classes.len() > SHOWN {
            writeln!(f, "… and {} more; --json lists all", self.classes.len() - SHOWN)?;
        }
        Ok(())
    }
}
