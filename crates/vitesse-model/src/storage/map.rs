//! A file as a slice of memory; the one place outside the kernels where `unsafe` is allowed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A whole file, mapped read-only.
pub(super) struct Map(Mmap);

impl Map {
    /// Maps `path`, which must be a regular file.
    pub(super) fn open(path: &Path) -> Result<Map> {
        let map = || -> io::Result<Mmap> {
            let file = File::open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is not a regular file",
                ));
            }
            // SAFETY: the map is private and read-only, and only bytes and plain numbers are ever read from it, so
            // any content is a valid one. What remains is the world outside: a process that rewrites the file while
            // it is mapped changes the weights, and one that truncates it makes the next access of a lost page end
            // this process with SIGBUS. Our own writers never do either: they replace files by renaming
            // (`atomic.rs`), which leaves the mapped one as it was.
            unsafe { Mmap::map(&file) }
        };
        map().map(Map).map_err(Error::io("read", path))
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
