//! `data check`: decode every picture, and say which files cannot be read, and which are no pictures.

use std::fmt;

use serde::Serialize;
use vitesse::data::{Ignored, Split, ignored};
use vitesse::measure::accuracy::Unreadable;
use vitesse::measure::images::unreadable;
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left};

use super::PartsArgs;
use crate::cli::Console;
use crate::cli::failure::{Exit, Result};
use crate::cli::outcome::Outcome;
use crate::cli::show::Show;

/// Read every picture of a data set, list the files that cannot be read, and name what is passed over
///
/// Exit status 3 when there are any that cannot be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse data check --data ./photos
  vitesse data check --data ./photos --split train --json")]
pub(super) struct Args {
    #[command(flatten)]
    data: PartsArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        let sets = self.data.open()?;
        let mut report = Report {
            images: sets.iter().map(|set| set.len()).sum(),
            skipped: 0,
            splits: Vec::new(),
            unreadable: Vec::new(),
            ignored: ignored(&sets),
            notes: Vec::new(),
        };
        for set in &sets {
            let split = set.split();
            report.splits.push(Part {
                split,
                images: set.len(),
            });
            report.skipped += set.skipped();
            for note in set.class_notes() {
                if !report.notes.contains(note) {
                    report.notes.push(note.clone());
                }
            }
            let failed = unreadable(set, console.stop(), &mut Show::new(console))?;
            let row = |Unreadable { name, reason }| Row { split, name, reason };
            report.unreadable.extend(failed.into_iter().map(row));
        }
        let exit = if report.unreadable.is_empty() {
            Exit::Done
        } else {
            Exit::CheckNotMet
        };
        Ok(Outcome::new(&report)?.with_exit(exit))
    }
}

#[derive(Debug, Serialize)]
struct Report {
    images: usize,
    /// Files of formats that are not supported.
    skipped: usize,
    splits: Vec<Part>,
    unreadable: Vec<Row>,
    ignored: Vec<Ignored>,
    /// What is odd about the classes, in sentences.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Part {
    split: Split,
    images: usize,
}

/// A file that cannot be read.
#[derive(Debug, Serialize)]
struct Row {
    split: Split,
    name: String,
    reason: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Rows of what is passed over; more would hide the rest.
        const SHOWN: usize = 40;
        let images = counted(self.images, "image");
        let parts = self.splits.iter().filter(|part| part.split != Split::All);
        let parts = parts.map(|part| format!("{} in {}", format::count(part.images as u64), part.split));
        let parts: Vec<String> = parts.collect();
        // Of data that are one whole there is nothing to list.
        let images = match &parts[..] {
            [] => images,
            parts => format!("{images} ({})", parts.join(", ")),
        };
        if self.unreadable.is_empty() {
            writeln!(f, "{images}: all can be read")?;
        } else {
            let mut table = Table::new([left("split"), left("file"), left("why it cannot be read")]);
            for file in &self.unreadable {
                table.push([&file.split.to_string(), &file.name, &file.reason]);
            }
            let count = self.unreadable.len();
            writeln!(f, "{table}\n{images}: {count} cannot be read")?;
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        if !self.ignored.is_empty() {
            let mut table = Table::new([left("left out"), left("why")]);
            for file in self.ignored.iter().take(SHOWN) {
                table.push([file.name.clone(), file.reason.to_string()]);
            }
            write!(f, "\n{table}")?;
        }
        if self.ignored.len() > SHOWN {
            writeln!(f, "… and {} more; --json lists all", self.ignored.len() - SHOWN)?;
        }
        Ok(())
    }
}
