//! Where a file may be written.

use std::path::Path;

use crate::cli::failure::{Failure, Result};

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
