//! Samples that are made of others: with other labels, or of several parts.

use std::sync::Arc;

use super::{Contents, Samples};
use crate::{Error, Image, Result};

/// Samples whose classes have other numbers.
#[derive(Debug)]
pub(super) struct Relabelled {
    pub(super) samples: Arc<dyn Samples>,
    /// The new label for each old one.
    pub(super) labels: Vec<Option<usize>>,
}

impl Samples for Relabelled {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn label(&self, index: usize) -> Option<usize> {
        *self.labels.get(self.samples.label(index)?)?
    }

    fn name(&self, index: usize) -> String {
        self.samples.name(index)
    }

    fn load(&self, index: usize) -> Result<Image> {
        self.samples.load(index)
    }
}

/// Several parts, one after the other. Forms give all their parts the same classes.
#[derive(Debug)]
struct Joined(Vec<Arc<dyn Samples>>);

impl Joined {
    /// The part that a sample is in, and its index there.
    fn find(&self, mut index: usize) -> Option<(&dyn Samples, usize)> {
        for part in &self.0 {
            if index < part.len() {
                return Some((part.as_ref(), index));
            }
            index -= part.len();
        }
        None
    }
}

impl Samples for Joined {
    fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.find(index).and_then(|(part, index)| part.label(index))
    }

    fn name(&self, index: usize) -> String {
        self.find(index)
            .map_or_else(String::new, |(part, index)| part.name(index))
    }

    fn load(&self, index: usize) -> Result<Image> {
        match self.find(index) {
            Some((part, index)) => part.load(index),
            None => Err(Error::setting(
                "index",
                &index,
                format!("a sample below {}", self.len()),
            )),
        }
    }
}

/// Several parts as one.
pub(super) fn joined(mut parts: Vec<Contents>) -> Contents {
    if let [_] = parts.as_slice() {
        return parts.remove(0);
    }
    let classes = parts
        .first_mut()
        .map(|part| std::mem::take(&mut part.classes))
        .unwrap_or_default();
    let (mut samples, mut ignored, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        samples.push(part.samples);
        ignored.extend(part.ignored);
        notes.extend(part.notes);
    }
    notes.dedup();
    Contents {
        samples: Arc::new(Joined(samples)),
        classes,
        ignored,
        notes,
    }
}
