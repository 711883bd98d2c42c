//! Names of classes: from the checkpoint, from a file, or ImageNet's.

use std::collections::BTreeMap;
use std::path::Path;

use vitesse_model::Checkpoint;
use vitesse_model::zoo::imagenet;

use crate::{Error, Result};

/// What to call each class.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    names: BTreeMap<usize, String>,
}

/// Of the classes from 0 on.
impl From<Vec<String>> for Labels {
    fn from(names: Vec<String>) -> Labels {
        Labels {
            names: names.into_iter().enumerate().collect(),
        }
    }
}

impl Labels {
    /// Those that stand in a checkpoint. Where names are codes, such as synsets, their descriptions are taken.
    pub fn of(checkpoint: &Checkpoint) -> Labels {
        let (names, words) = checkpoint.config.class_names(checkpoint.spec.num_classes);
        let described = |name: String| words.get(&name).cloned().unwrap_or(name);
        Labels {
            names: names
                .into_iter()
                .map(|(index, name)| (index, described(name)))
                .collect(),
        }
    }

    /// Those of ImageNet-1k, in words.
    pub fn imagenet() -> Labels {
        let words = imagenet::classes().map(|(_, words)| words.to_owned());
        Labels {
            names: words.enumerate().collect(),
        }
    }

    /// Whether no class has a name.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Those of a CSV file with the columns `class_index` and `name`. A `labels.csv` with a line for each image will do:
    /// the first name of a class counts.
    ///
    /// # Errors
    /// A file that cannot be read, or is no such file.
    pub fn read(path: &Path) -> Result<Labels> {
        let bad = |reason: String| Error::Labels {
            path: path.to_owned(),
            reason,
        };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_path(path)
            .map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(error) => Error::io("read", path)(error),
                other => bad(format!("{other:?}")),
            })?;
        let header = reader.headers().map_err(|error| bad(error.to_string()))?.clone();
        let column = |name: &str| header.iter().position(|column| column == name);
        let (Some(index), Some(name)) = (column("class_index"), column("name")) else {
            let found = header.iter().collect::<Vec<_>>().join(",");
            return Err(bad(format!(
                "expected the columns `class_index` and `name`, found `{found}`"
            )));
        };
        let mut names = BTreeMap::new();
        for record in reader.records() {
            let record = record.map_err(|error| bad(error.to_string()))?;
            let (index, name) = (
                record.get(index).unwrap_or_default(),
                record.get(name).unwrap_or_default(),
            );
            let Ok(index) = index.parse() else {
                let line = record.position().map_or(0, csv::Position::line);
                return Err(bad(format!(
                    "line {line}: class_index is `{index}`, expected a whole number from 0"
                )));
            };
            if !name.is_empty() {
                names.entry(index).or_insert_with(|| name.to_owned());
            }
        }
        Ok(Labels { names })
    }

    /// What a class is called, where that is known.
    pub fn name(&self, class: usize) -> Option<&str> {
        self.names.get(&class).map(String::as_str)
    }
}
