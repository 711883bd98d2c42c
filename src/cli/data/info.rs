//! `data info`: the parts and classes of a data set.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::data::Inventory;
use vitesse::report::format::counted;
use vitesse::report::{Table, left, right};

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
        Outcome::new(&Report {
            data: self.data.display().to_string(),
            found: Inventory::of(&self.data)?,
        })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    data: String,
    #[serde(flatten)]
    found: Inventory,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Classes shown; more would hide the rest.
        const SHOWN: usize = 40;
        let [height, width] = self.found.first_picture;
        let mut rows = vec![
            ("data".to_owned(), self.data.clone()),
            ("form".to_owned(), self.found.form.to_owned()),
        ];
        for part in &self.found.parts {
            let mut text = counted(part.images, "image");
            let marks = [
                (part.held_back, "held back from train".to_owned()),
                (
                    part.unlabelled > 0,
                    format!("{} without a label", part.unlabelled),
                ),
                (
                    part.skipped > 0,
                    format!("{} of unsupported formats", counted(part.skipped, "file")),
                ),
            ];
            for (_, mark) in marks.iter().filter(|(marked, _)| *marked) {
                text += &format!(", {mark}");
            }
            rows.push((part.split.to_string(), text));
        }
        rows.push(("classes".to_owned(), self.found.classes.len().to_string()));
        rows.push(("first picture".to_owned(), format!("{width} x {height} pixels")));
        rows.extend(
            self.found
                .notes
                .iter()
                .map(|note| ("note".to_owned(), note.clone())),
        );
        f.write_str(&pairs(rows))?;
        if self.found.classes.is_empty() {
            return Ok(());
        }
        let columns = self.found.parts.iter().map(|part| right(part.split.to_string()));
        let mut table = Table::new([right("index"), left("class")].into_iter().chain(columns));
        for class in self.found.classes.iter().take(SHOWN) {
            let counts = class.images.iter().map(ToString::to_string);
            table.push(
                [class.index.to_string(), class.name.clone()]
                    .into_iter()
                    .chain(counts),
            );
        }
        write!(f, "\n{table}")?;
        if self.found.classes.len() > SHOWN {
            writeln!(
                f,
                "… and {} more; --json lists all",
                self.found.classes.len() - SHOWN
            )?;
        }
        Ok(())
    }
}
