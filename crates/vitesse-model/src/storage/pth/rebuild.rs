//! From a view of a storage to a tensor.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::object::View;
use crate::error::{Error, Result};
use crate::tensors::{Source, Tensor};

/// Makes tensors of one file's views.
pub(super) struct Rebuild<'a> {
    path: &'a Path,
    source: &'a Source,
    storages: &'a HashMap<String, Range<usize>>,
    /// Bytes that may still be copied. A view may repeat its numbers (stride 0); without a bound, a small file could
    /// fill any memory.
    budget: usize,
}

impl<'a> Rebuild<'a> {
    pub(super) fn new(
        path: &'a Path,
        source: &'a Source,
        storages: &'a HashMap<String, Range<usize>>,
    ) -> Self {
        Rebuild {
            path,
            source,
            storages,
            budget: (**source).as_ref().len(),
        }
    }

    /// The tensor a view shows: a range of the file if its numbers lie in order, else a copy.
    pub(super) fn tensor(&mut self, name: &str, view: &View<'_>) -> Result<Tensor> {
        let refuse = |detail: String| Error::PthTensor {
            path: self.path.to_owned(),
            name: name.to_owned(),
            detail,
        };
        let size = view.storage.dtype.size();
        let storage = self
            .storages
            .get(view.storage.key)
            .cloned()
            .ok_or_else(|| refuse("refers to a storage that is not in the file".to_owned()))?;
        if view
            .storage
            .len
            .checked_mul(size)
            .is_none_or(|bytes| bytes > storage.len())
        {
            let found = storage.len();
            return Err(refuse(format!(
                "wants a storage of {} × {size} bytes, but it has {found}",
                view.storage.len
            )));
        }
        let span = span(view).filter(|span| span.end <= view.storage.len);
        let (Some(span), Some(numel)) = (span, numel(&view.shape)) else {
            return Err(refuse(format!(
                "of shape {:?}, strides {:?} and offset {} leaves its storage of {} numbers",
                view.shape, view.strides, view.offset, view.storage.len
            )));
        };
        // Both ends are inside the storage, which is inside the file.
        let range = storage.start + span.start * size..storage.start + span.end * size;
        if is_contiguous(view) {
            return Tensor::from_source(view.storage.dtype, &view.shape, Arc::clone(self.source), range);
        }
        let bytes = numel.checked_mul(size).filter(|&bytes| bytes <= self.budget);
        let Some(bytes) = bytes else {
            return Err(refuse(format!(
                "of shape {:?} and strides {:?} is an expanded view larger than the file; call `.contiguous()` before saving",
                view.shape, view.strides
            )));
        };
        self.budget -= bytes;
        let shown = (**self.source).as_ref().get(range).unwrap_or_default();
        Tensor::from_bytes(view.storage.dtype, &view.shape, gather(shown, size, view, numel))
    }
}

fn numel(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |numel, &side| numel.checked_mul(side))
}

/// From the first number shown to behind the last, or `None` where that overflows.
fn span(view: &View<'_>) -> Option<Range<usize>> {
    if view.shape.contains(&0) {
        return Some(view.offset..view.offset);
    }
    let reach =
        |last: usize, (&side, &stride): (&usize, &usize)| last.checked_add((side - 1).checked_mul(stride)?);
    let last = view
        .shape
        .iter()
        .zip(&view.strides)
        .try_fold(view.offset, reach)?;
    Some(view.offset..last.checked_add(1)?)
}

/// Whether the numbers lie in row-major order without gaps. The stride of a side of one does not matter.
fn is_contiguous(view: &View<'_>) -> bool {
    let mut step = 1usize;
    view.shape.contains(&0)
        || view
            .shape
            .iter()
            .zip(&view.strides)
            .rev()
            .all(|(&side, &stride)| {
                let in_order = side == 1 || stride == step;
                step = step.saturating_mul(side);
                in_order
            })
}

/// Copies the numbers of a view in row-major order, by counting its indices like an odometer.
fn gather(shown: &[u8], size: usize, view: &View<'_>, numel: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(numel * size);
    let mut index = vec![0usize; view.shape.len()];
    let mut at = 0;
    for _ in 0..numel {
        out.extend_from_slice(shown.get(at * size..(at + 1) * size).unwrap_or_default());
        for ((digit, &side), &stride) in index.iter_mut().zip(&view.shape).zip(&view.strides).rev() {
            *digit += 1;
            at += stride;
            if *digit < side {
                break;
            }
            at -= *digit * stride;
            *digit = 0;
        }
    }
    out
}
