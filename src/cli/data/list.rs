//! `data list`: every picture and its class, as a list that can itself be a data set.

use std::fmt;

use serde::Serialize;
use vitesse::data::{DataSet, Split};
use vitesse::report::{Table, left, right};

use super::PartsArgs;
use crate::cli::Console;
use crate::cli::failure::Result;
use crate::cli::outcome::Outcome;

/// List the pictures of a data set and their classes, as CSV
///
/// The columns are those of a `labels.csv`: saved in the data set's folder, and given by its path, the list is a data set that
/// holds the rows you leave in it. Where the data set has splits, a column names each picture's.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse data list --data ./photos > ./photos/list.csv
  vitesse data list --data shapes:count --split test --json")]
pub(super) struct Args {
    #[command(flatten)]
    data: PartsArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        let sets = self.data.open()?;
        for set in &sets {
            set.notes().iter().for_each(|note| console.note(note));
        }
        Outcome::new(&Report {
            images: sets.iter().flat_map(rows).collect(),
        })
    }
}

fn rows(set: &DataSet) -> impl Iterator<Item = Row> {
    (0..set.len()).map(|sample| {
        let class_index = set.label(sample);
        let name = class_index
            .and_then(|label| set.class_names().get(label))
            .cloned();
        Row {
            filename: set.name(sample),
            class_index,
            name,
            split: set.split(),
        }
    })
}

#[derive(Debug, Serialize)]
struct Report {
    images: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    filename: String,
    class_index: Option<usize>,
    name: Option<String>,
    split: Split,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divided = self.images.iter().any(|row| row.split != Split::All);
        let split = divided.then(|| left("split"));
        let columns = [left("filename"), right("class_index"), left("name")];
        let mut table = Table::new(columns.into_iter().chain(split));
        for row in &self.images {
            let index = row.class_index.map(|index| index.to_string()).unwrap_or_default();
            let fields = [row.filename.clone(), index, row.name.clone().unwrap_or_default()];
            let split = divided.then(|| row.split.to_string());
            table.push(fields.into_iter().chain(split));
        }
        f.write_str(&table.to_csv())
    }
}
