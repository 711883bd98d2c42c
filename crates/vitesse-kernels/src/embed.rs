//! Images to rows of patches.

use std::ops::Range;

use crate::isa::{Isa, Kernel};
use crate::panels::Panels;
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::COLUMNS;

/// Writes the patches `range` (counted along the rows of the grid) of an image `[channels, height, width]` to the rows of
/// `out` from 0 on: columns are channel, then line, then pixel of the square patch, as in the weights of a convolution.
///
/// # Panics
/// Where shapes do not fit.
pub fn patches<U: Real>(
    isa: Isa,
    image: &[f32],
    [channels, height, width]: [usize; 3],
    side: usize,
    range: Range<usize>,
    out: &mut Panels<U>,
) {
    struct Job<'a, U: Real> {
        image: &'a [f32],
        size: [usize; 3],
        side: usize,
        range: Range<usize>,
        out: &'a mut Panels<U>,
    }
    impl<U: Real> Kernel for Job<'_, U> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let [channels, height, width] = self.size;
            let side = self.side;
            let grid = width / side;
            // Whole vectors of a line lie in one panel each where both are whole numbers of vectors.
            let vectors = side.is_multiple_of(S::LANES);
            let columns = channels * side * side;
            if !columns.is_multiple_of(COLUMNS) {
                // What another matrix left in the last panel may be anything, NaN times zero included.
                for row in 0..self.range.len() {
                    let last = self.out.panel_mut(columns / COLUMNS)[row].as_mut();
                    last[columns % COLUMNS..].fill(U::from_f32(0.0));
                }
            }
            // Patches that stand beside each other are filled line by line, so that the image is read in the order of its memory.
            let mut patch = self.range.start;
            while patch < self.range.end {
                let beside = (grid - patch % grid).min(self.range.end - patch);
                let (top, left, row) = (patch / grid * side, patch % grid * side, patch - self.range.start);
                for line in 0..channels * side {
                    let (channel, y) = (line / side, top + line % side);
                    let from = &self.image[(channel * height + y) * width + left..][..beside * side];
                    let column = line * side;
                    for (row, from) in (row..).zip(from.chunks_exact(side)) {
                        if vectors {
                            for at in (0..side).step_by(S::LANES) {
                                let to = self.out.panel_mut((column + at) / COLUMNS)[row].as_mut();
                                U::store::<S>(S::load(&from[at..]), &mut to[(column + at) % COLUMNS..]);
                            }
                        } else {
                            for (at, &pixel) in from.iter().enumerate() {
                                self.out.set(row, column + at, U::from_f32(pixel));
                            }
                        }
                    }
                }
                patch += beside;
            }
        }
    }
    assert!(image.len() >= channels * height * width && side > 0);
    assert!(range.end <= (height / side) * (width / side) && range.len() <= out.rows());
    assert!(out.panels() * COLUMNS >= channels * side * side);
    isa.run(Job {
        image,
        size: [channels, height, width],
        side,
        range,
        out,
    });
}
