//! `data check`: decode every picture, and say which files cannot be read.

use std::fmt;

use serde::Serialize;
use vitesse::measure::accuracy::Unreadable;
use vitesse::measure::images::unreadable;
use vitesse::report::{Table, format, left};

use crate::cli::Console;
use crate::cli::args::DataArgs;
use crate::cli::failure::{Exit, Result};
use crate::cli::outcome::Outcome;
use crate::cli::show::Show;

/// Read every picture of a data set and list the files that cannot be read
///
/// Exit status 3 when there are any.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse data check --data ./photos --split all")]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        let data = self.data.open()?;
        let report = Report {
            images: data.len(),
            skipped: data.skipped(),
            unreadable: unreadable(&data, console.stop(), &mut Show::new(console))?,
        };
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
    unreadable: Vec<Unreadable>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = format::count(self.images as u64);
        if self.unreadable.is_empty() {
            writeln!(f, "{images} images, all of them can be read")?;
        } else {
            let mut table = Table::new([left("file"), left("why it cannot be read")]);
            for file in &self.unreadable {
                table.push([&file.name, &file.reason]);
            }
            write!(
                f,
                "{table}\n{} of {images} images cannot be read\n",
                self.unreadable.len()
            )?;
        }
        if self.skipped > 0 {
            writeln!(f, "{} files of unsupported formats were left out", self.skipped)?;
        }
        Ok(())
    }
}
