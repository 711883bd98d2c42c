//! What a data set holds: its parts, its classes, how many pictures.

use std::path::Path;

use serde::Serialize;

use super::{DataSet, Ignored, OpenOptions, Split, form, ignored, open, splits};
use crate::Result;

/// The form and the parts of a data set, its classes, and how many pictures each has.
#[derive(Debug, Serialize)]
pub struct Inventory {
    /// What was recognised, in words.
    pub form: &'static str,
    /// The parts that can be asked for.
    pub parts: Vec<Part>,
    /// The classes, in the order of their indices.
    pub classes: Vec<Class>,
    /// Height and width of the first picture.
    pub first_picture: [usize; 2],
    /// What lies in the folders and is not among the images.
    pub ignored: Vec<Ignored>,
    /// What else to know, in sentences.
    pub notes: Vec<String>,
}

/// A part.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Which one.
    pub split: Split,
    /// Images.
    pub images: usize,
    /// Those of them that have no label, or one that no class has.
    pub unlabelled: usize,
    /// Taken out of train, because no validation part is stored.
    pub held_back: bool,
    /// Files of formats that are not supported.
    pub skipped: usize,
}

/// A class.
#[derive(Debug, Serialize)]
pub struct Class {
    /// Its index.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Pictures in each of the parts.
    pub images: Vec<usize>,
}

impl Inventory {
    /// Opens every part of the data set in `path`.
    ///
    /// # Errors
    /// No data set, or one whose first picture cannot be read.
    pub fn of(path: &Path) -> Result<Inventory> {
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
        Ok(Inventory {
            form: form(path)?,
            parts,
            classes,
            first_picture: [first.height(), first.width()],
            ignored: ignored(sets.iter().map(|(set, _)| set)),
            notes: notes(sets.iter().map(|(set, _)| set)),
        })
    }
}

/// The notes of several parts, each once.
fn notes<'a>(parts: impl Iterator<Item = &'a DataSet>) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for note in parts.flat_map(DataSet::notes) {
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
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
    let stored = splits(path)?;
    let has = |split| stored.contains(&split);
    let mut parts = Vec::new();
    for &split in &stored {
        if split == Split::Train && !has(Split::Validation) {
            let fraction = OpenOptions::default().val_fraction;
            // Of a few images nothing can be held back.
            if let (Ok(train), Ok(validation)) = (ask(split, fraction), ask(Split::Validation, fraction)) {
                parts.extend([(train, false), (validation, true)]);
                continue;
            }
        }
        // Copies of what is stored besides.
        let twice = split == Split::TrainValidation && has(Split::Train) && has(Split::Validation);
        if !twice {
            parts.push((ask(split, 0.0)?, false));
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_set_has_three_parts() {
        let found = Inventory::of(Path::new("shapes:silhouette")).unwrap();
        let splits: Vec<_> = found.parts.iter().map(|part| part.split).collect();
        assert_eq!(splits, [Split::Train, Split::Validation, Split::Test]);
        for (i, part) in found.parts.iter().enumerate() {
            let sum: usize = found.classes.iter().map(|class| class.images[i]).sum();
            assert_eq!((sum, part.unlabelled), (part.images, 0));
        }
    }
}
