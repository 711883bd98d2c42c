//! What was measured on this machine and is worth keeping: tables of latencies, in the user's cache folder.

use std::fs;
use std::path::PathBuf;

use crate::{Error, Result};

/// Where the user's tables of latencies are; `None` where the system has no such place.
pub fn folder() -> Option<PathBuf> {
    let named = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = || named("HOME");
    let caches = if cfg!(windows) {
        named("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Caches"))
    } else {
        named("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join("vitesse").join("latency"))
}

/// Forgets all tables; how many there were.
///
/// # Errors
/// A folder that cannot be read, a file that cannot be removed.
pub fn clear() -> Result<usize> {
    let Some(folder) = folder().filter(|folder| folder.is_dir()) else {
        return Ok(0);
    };
    let failed = |source| Error::Io {
        action: "clear",
        path: folder.clone(),
        source,
    };
    let tables = tables();
    for table in &tables {
        fs::remove_file(table).map_err(failed)?;
    }
    Ok(tables.len())
}

/// The tables that there are.
pub fn tables() -> Vec<PathBuf> {
    let files = folder().and_then(|folder| fs::read_dir(folder).ok());
    let paths = files
        .into_iter()
        .flatten()
        .filter_map(|file| Some(file.ok()?.path()));
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect()
}
