//! `data check`: decode every picture, and say which files cannot be read.

use std::fmt;

use rayon::prelude::*;
use serde::Serialize;
use vitesse::data::DataSet;
use vitesse::report::{Table, format, left};

use crate::cli::Console;
use crate::cli::args::DataArgs;
use crate::cli::failure::{Exit, Result};
use crate::cli::outcome::Outcome;

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
        let report = check(&self.data.open()?, console)?;
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

#[derive(Debug, Serialize)]
struct Unreadable {
    name: String,
    reason: String,
}

fn check(data: &DataSet, console: &Console) -> Result<Report> {
    /// Pictures between two looks at the clock and at Ctrl-C.
    const STEP: usize = 256;
    let mut progress = console.progress("images", data.len());
    let mut unreadable = Vec::new();
    for start in (0..data.len()).step_by(STEP) {
        let end = (start + STEP).min(data.len());
        let failed = (start..end).into_par_iter().filter_map(|sample| {
            let reason = data.load(sample).err()?.to_string();
            Some(Unreadable {
                name: data.name(sample),
                reason,
            })
        });
        unreadable.par_extend(failed);
        progress.at(end)?;
    }
    Ok(Report {
        images: data.len(),
        skipped: data.skipped(),
        unreadable,
    })
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
