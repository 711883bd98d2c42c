//! Subsampled channels to full size, a row at a time: libjpeg's "fancy" upsampling, its default.
//!
//! Where a side is halved, a sample is 3/4 its nearest neighbour and 1/4 the next one. The half-levels are rounded up and
//! down in turn. Beyond the edges of the channel its border is repeated; the border is the picture's, not the last block's.
//! Other ratios, and channels of at most two samples a row, repeat samples.

use super::Plane;
use super::markers::{Component, Frame};

/// How a channel becomes as large as the picture.
enum Method {
    Whole,
    /// Half as wide.
    Wide,
    /// Half as high.
    Tall,
    /// Half as wide and half as high.
    WideAndTall,
    Repeat {
        across: usize,
        down: usize,
    },
}

/// Rows of one channel in the picture's size.
pub(super) struct Upsampler {
    method: Method,
    /// Samples across and down.
    size: (usize, usize),
    /// Sums of two rows, with one more on each side.
    sums: Vec<u16>,
    row: Vec<u8>,
}

impl Upsampler {
    pub(super) fn new(frame: &Frame, component: &Component) -> Upsampler {
        let (across, down) = (
            frame.sampling.0 / component.sampling.0,
            frame.sampling.1 / component.sampling.1,
        );
        let size = component.size;
        let method = match (across, down) {
            (1, 1) => Method::Whole,
            (2, 1) if size.0 > 2 => Method::Wide,
            (1, 2) => Method::Tall,
            (2, 2) if size.0 > 2 => Method::WideAndTall,
            _ => Method::Repeat { across, down },
        };
        Upsampler {
            method,
            size,
            sums: vec![0; size.0 + 2],
            row: vec![0; size.0 * across],
        }
    }

    /// Row `y` of the picture, at least as long as the picture is wide.
    #[inline(always)]
    pub(super) fn row<'a>(&'a mut self, plane: &'a Plane, y: usize) -> &'a [u8] {
        let (width, height) = self.size;
        let source = |y: usize| plane.row(y.min(height - 1), width);
        // Rows are halved: the sample's own row and the nearest other one.
        let near = source(y / 2);
        let far = source(if y.is_multiple_of(2) {
            (y / 2).saturating_sub(1)
        } else {
            y / 2 + 1
        });
        match self.method {
            Method::Whole => return source(y),
            Method::Wide => {
                for (sum, &sample) in self.sums[1..=width].iter_mut().zip(source(y)) {
                    *sum = u16::from(sample);
                }
                widen::<2>(&mut self.sums, [1, 2], &mut self.row);
            }
            Method::Tall => {
                let rounding = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &near), &far) in self.row.iter_mut().zip(near).zip(far) {
                    *out = ((3 * u16::from(near) + u16::from(far) + rounding) >> 2) as u8;
                }
            }
            Method::WideAndTall => {
                for ((sum, &near), &far) in self.sums[1..=width].iter_mut().zip(near).zip(far) {
                    *sum = 3 * u16::from(near) + u16::from(far);
                }
                widen::<4>(&mut self.sums, [8, 7], &mut self.row);
            }
            Method::Repeat { across, down } => {
                for (out, &sample) in self.row.chunks_exact_mut(across).zip(source(y / down)) {
                    out.fill(sample);
                }
            }
        }
        &self.row
    }
}

/// Two samples for each sum: 3/4 of it and 1/4 of the one to the left, then to the right, less `SHIFT` bits.
#[inline(always)]
fn widen<const SHIFT: u32>(sums: &mut [u16], rounding: [u16; 2], row: &mut [u8]) {
    let last = sums.len() - 1;
    sums[0] = sums[1];
    sums[last] = sums[last - 1];
    let neighbours = sums[..last - 1].iter().zip(&sums[1..last]).zip(&sums[2..]);
    for ([even, odd], ((&left, &middle), &right)) in row.as_chunks_mut::<2>().0.iter_mut().zip(neighbours) {
        *even = ((3 * middle + left + rounding[0]) >> SHIFT) as u8;
        *odd = ((3 * middle + right + rounding[1]) >> SHIFT) as u8;
    }
}
