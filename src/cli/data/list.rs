//! `data list`: every picture and its class, as a list that can itself be a data set.

use std::fmt;

use serde::Serialize;
use vitesse::report::{Table, left, right};

use crate::cli::args::DataArgs;
use crate::cli::failure::Result;
use crate::cli::outcome::Outcome;

/// List the pictures of a data set and their classes, as CSV
///
/// The columns are those of a `labels.csv`: saved under that name in the data set's folder, the list is a data set that
/// holds the rows you leave in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse data list --data ./photos > ./photos/labels.csv
  vitesse data list --data shapes:count --split test --json")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
}

impl Args {
    pub(super) fn run(self) -> Result<Outcome> {
        let data = self.data.open()?;
        let row = |sample| {
            let class_index = data.label(sample);
            let name = class_index
                .and_then(|label| data.class_names().get(label))
                .cloned();
            Row {
                filename: data.name(sample),
                class_index,
                name,
            }
        };
        Outcome::new(&Report {
            images: (0..data.len()).map(row).collect(),
        })
    }
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
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([left("filename"), right("class_index"), left("name")]);
        for row in &self.images {
            let index = row.class_index.map(|index| index.to_string()).unwrap_or_default();
            table.push([row.filename.clone(), index, row.name.clone().unwrap_or_default()]);
        }
        f.write_str(&table.to_csv())
    }
}
