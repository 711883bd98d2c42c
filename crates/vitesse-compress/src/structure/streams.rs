//! The token streams of calibration images, between two blocks: they lie in a nameless file, so that memory does not grow with the number of
//! images.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use burn::tensor::{Device, Tensor, TensorData};

use crate::{Error, Result};

/// Batches of streams, `[batch, tokens, dim]` each, read and replaced in any order.
#[derive(Debug)]
pub(super) struct Streams {
    file: File,
    shapes: Vec<[usize; 3]>,
    /// Where each batch begins, in numbers, and the end of the last one.
    starts: Vec<usize>,
}

impl Streams {
    pub(super) fn new() -> Result<Streams> {
        Ok(Streams {
            file: tempfile::tempfile().map_err(failed)?,
            shapes: Vec::new(),
            starts: vec![0],
        })
    }

    /// How many batches there are.
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Images of all batches.
    pub(super) fn images(&self) -> usize {
        self.shapes.iter().map(|[batch, ..]| batch).sum()
    }

    /// Tokens of all images.
    pub(super) fn tokens(&self) -> usize {
        self.shapes.iter().map(|[batch, tokens, _]| batch * tokens).sum()
    }

    pub(super) fn push(&mut self, x: &Tensor<3>) -> Result<()> {
        self.starts.push(self.starts[self.len()] + numbers(x.dims()));
        self.shapes.push(x.dims());
        self.put(self.len() - 1, x)
    }

    /// Replaces a batch by one of as many numbers or fewer: patch merging makes of a stream a shorter, wider one.
    pub(super) fn put(&mut self, batch: usize, x: &Tensor<3>) -> Result<()> {
        debug_assert!(numbers(x.dims()) <= self.starts[batch + 1] - self.starts[batch]);
        self.shapes[batch] = x.dims();
        let bytes: Vec<u8> = x.to_data().iter::<f32>().flat_map(f32::to_ne_bytes).collect();
        self.seek(batch)?;
        self.file.write_all(&bytes).map_err(failed)
    }

    pub(super) fn get(&mut self, batch: usize) -> Result<Tensor<3>> {
        let shape = self.shapes[batch];
        let mut bytes = vec![0; 4 * numbers(shape)];
        self.seek(batch)?;
        self.file.read_exact(&mut bytes).map_err(failed)?;
        let value = |bytes: &[u8; 4]| f32::from_ne_bytes(*bytes);
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(value).collect();
        Ok(Tensor::from_data(TensorData::new(values, shape), &Device::flex()))
    }

    fn seek(&mut self, batch: usize) -> Result<()> {
        let start = 4 * self.starts[batch] as u64;
        self.file.seek(SeekFrom::Start(start)).map_err(failed)?;
        Ok(())
    }
}

fn numbers(shape: [usize; 3]) -> usize {
    shape.iter().product()
}

fn failed(error: std::io::Error) -> Error {
    Error::Scratch(error)
}
