//! Picture files with labels: the samples of class folders and of lists.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::walk::shown;
use super::{Contents, Samples};
use crate::{DecodeOptions, Error, Image, Result, decode_file};

/// Picture files below a folder, or anywhere, with labels.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Path below `root`, and label.
    files: Vec<(PathBuf, Option<usize>)>,
    decode: DecodeOptions,
}

impl Files {
    pub(super) fn new(root: &Path, decode: &DecodeOptions) -> Files {
        Files {
            root: root.to_path_buf(),
            files: Vec::new(),
            decode: decode.clone(),
        }
    }

    /// Adds a file, by its path from `root`.
    pub(super) fn push(&mut self, file: PathBuf, label: Option<usize>) {
        self.files.push((file, label));
    }

    pub(super) fn into_contents(self, classes: Vec<String>) -> Contents {
        Contents {
            samples: Arc::new(self),
            classes,
            ignored: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl Samples for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.files[index].1
    }

    fn name(&self, index: usize) -> String {
        shown(self.files[index].0.as_os_str())
    }

    fn load(&self, index: usize) -> Result<Image> {
        let path = self.root.join(&self.files[index].0);
        // A list can name anything; opening a pipe that nobody writes to waits for ever.
        let found = std::fs::metadata(&path).map_err(Error::io(&path))?;
        if !found.is_file() {
            let what = if found.is_dir() {
                "a folder"
            } else {
                "a pipe, socket or device"
            };
            return Err(Error::decode(
                &path.display().to_string(),
                &format!("expected a file, found {what}"),
            ));
        }
        decode_file(&path, &self.decode)
    }
}
