//! Where a file may be written.

use std::path::{Path, PathBuf};

use vitesse::model::storage::atomic_write;

use crate::cli::failure::{Failure, Result};

/// A page to write, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(in crate::cli) struct PageArgs {
    /// HTML page to write
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the page if it exists
    #[arg(long)]
    force: bool,
}

impl PageArgs {
    /// Refuses a place where it may not be written, before any work is done.
    pub(in crate::cli) fn look(&self) -> Result<()> {
        match &self.output {
            Some(path) => may_write(path, self.force),
            None => Ok(()),
        }
    }

    /// Where it is written, if it is.
    pub(in crate::cli) fn name(&self) -> Option<String> {
        self.output.as_ref().map(|path| path.display().to_string())
    }

    /// Writes it, if it was asked for.
    pub(in crate::cli) fn save(&self, page: impl FnOnce() -> String) -> Result<()> {
        if let Some(path) = &self.output {
            let page = page();
            atomic_write(path, |file| file.write_all(page.as_bytes()))?;
        }
        Ok(())
    }
}

/// Whether `path` may become the output: a new file in a folder that exists, or with `force` in the place of a file.
pub(in crate::cli) fn may_write(path: &Path, force: bool) -> Result<()> {
    let refuse = |sentence: String, hint: &str| Err(Failure::new("E_EXISTS", sentence).hint(hint));
    match path.symlink_metadata() {
        Ok(found) if !found.is_file() => refuse(
            format!("`{}` exists and is not a regular file", path.display()),
            "choose another name",
        ),
        Ok(_) if !force => refuse(
            format!("`{}` exists already", path.display()),
            "choose another name, or replace it with --force",
        ),
        Ok(_) => Ok(()),
        Err(_) => {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            // Known before any work is done.
            if folder.is_dir() {
                Ok(())
            } else {
                Err(Failure::io("write", path, "its folder does not exist"))
            }
        }
    }
}
