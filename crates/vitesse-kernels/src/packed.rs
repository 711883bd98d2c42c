//! The right operand of a product: weights, packed once, or the keys and values of a head.
//!
//! Blocks lie as [`tile`](crate::tile) describes, depth first: all blocks of the first 32 columns, then of the next.

use std::ops::Range;
use std::sync::OnceLock;

use crate::isa::{Isa, Kernel};
use crate::panels::{Bf16, Buffer, Element};
use crate::simd::Simd;
use crate::tile::COLUMNS;

/// How long the runs of a row are that lie in one panel each: the columns of a matrix, cut into panels of at most 32.
///
/// A plain matrix fills every panel but the last; the heads of an attention begin a new panel each.
pub fn panels_of(widths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut ranges, mut start) = (Vec::new(), 0);
    for width in widths {
        let end = start + width;
        while start < end {
            let next = end.min(start + COLUMNS);
            ranges.push(start..next);
            start = next;
        }
    }
    ranges
}

/// A matrix of `depth` rows and columns in panels of 32, in blocks.
#[derive(Debug, Clone)]
pub struct Packed<T: Element> {
    pub(crate) blocks: Buffer<T>,
    /// The rows of each block that count.
    pub(crate) depths: Vec<usize>,
    /// The columns of each panel that count.
    pub(crate) widths: Vec<usize>,
    /// Of 8-bit weights, for each column: what a step of the integer is worth.
    pub(crate) scales: Vec<[f32; 32]>,
    /// Of 8-bit weights, for each column: 128 times the sum of its integers, which is what the bias of the left
    /// operand adds to every product.
    pub(crate) offsets: Vec<[i32; 32]>,
}

/// Weights that can be packed from rows of `f32`.
pub trait Weight: Element {
    /// Packs the weights of a linear layer.
    ///
    /// `row(n)` gives the weights of output `n`, one for each input. `columns` names the outputs of each panel, `depths`
    /// the inputs of each panel (of 32) of the left operand; see [`panels_of`].
    fn pack<'a>(
        row: &(dyn Fn(usize) -> &'a [f32] + Sync),
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Packed<Self>;
}

impl<T: Element> Packed<T> {
    /// Room for `depth` rows (in panels of `T::WIDTH`) and `columns` columns; all zero.
    pub fn zeros(depth: usize, columns: usize) -> Self {
        let mut packed = Packed {
            blocks: Buffer::zeros(0),
            depths: Vec::new(),
            widths: Vec::new(),
            scales: Vec::new(),
            offsets: Vec::new(),
        };
        packed.reshape(depth, columns);
        packed
    }

    /// Another shape; what was there has no meaning any more. Memory is kept.
    pub(crate) fn reshape(&mut self, depth: usize, columns: usize) {
        fill(&mut self.depths, depth, T::WIDTH);
        fill(&mut self.widths, columns, COLUMNS);
        self.blocks
            .resize(self.depths.len() * self.widths.len() * T::WIDTH * COLUMNS);
    }

    fn with(depths: Vec<usize>, widths: Vec<usize>) -> Self {
        Packed {
            blocks: Buffer::zeros(depths.len() * widths.len() * T::WIDTH * COLUMNS),
            depths,
            widths,
            scales: Vec::new(),
            offsets: Vec::new(),
        }
    }

    /// Panels of 32 columns.
    pub fn panels(&self) -> usize {
        self.widths.len()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice()) + (self.scales.len() + self.offsets.len()) * 128
    }

    /// Some blocks of one panel of columns.
    #[inline]
    pub(crate) fn blocks(&self, panel: usize, blocks: Range<usize>) -> &[T] {
        let len = T::WIDTH * COLUMNS;
        &self.panel(panel)[blocks.start * len..blocks.end * len]
    }

    /// The blocks of one panel of columns.
    #[inline]
    pub(crate) fn panel(&self, panel: usize) -> &[T] {
        let len = self.depths.len() * T::WIDTH * COLUMNS;
        &self.blocks.as_slice()[panel * len..(panel + 1) * len]
    }
}

/// `total` in parts of at most `most`.
fn fill(parts: &mut Vec<usize>, total: usize, most: usize) {
    parts.clear();
    parts.extend((0..total.div_ceil(most)).map(|part| most.min(total - part * most)));
}

/// How long panels are. None is longer than a panel may be: the inner loops rely on it.
fn lens(ranges: &[Range<usize>]) -> Vec<usize> {
    assert!(ranges.iter().all(|range| range.len() <= COLUMNS));
    ranges.iter().map(Range::len).collect()
}

/// Fills the panels of `blocks`, `len` elements each, side by side on all cores where that is worth it.
fn in_parallel<T: Element>(blocks: &mut Buffer<T>, len: usize, fill: &(dyn Fn(usize, &mut [T]) + Sync)) {
    if len == 0 {
        return;
    }
    let slice = blocks.as_mut_slice();
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let panels = slice.len() / len;
    if cores == 1 || size_of_val(slice) < 1 << 20 || cfg!(miri) {
        for (i, panel) in slice.chunks_exact_mut(len).enumerate() {
            fill(i, panel);
        }
        return;
    }
    let share = panels.div_ceil(cores);
    std::thread::scope(|scope| {
        for (t, part) in slice.chunks_mut(share * len).enumerate() {
            scope.spawn(move || {
                for (i, panel) in part.chunks_exact_mut(len).enumerate() {
                    fill(t * share + i, panel);
                }
            });
        }
    });
}

impl Weight for f32 {
    fn pack<'a>(
        row: &(dyn Fn(usize) -> &'a [f32] + Sync),
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Packed<f32> {
        let mut packed = Packed::with(lens(depths), lens(columns));
        let len = depths.len() * 32 * COLUMNS;
        in_parallel(&mut packed.blocks, len, &|panel, blocks: &mut [f32]| {
            let rows: Vec<&[f32]> = columns[panel].clone().map(row).collect();
            for (block, depth) in blocks.chunks_exact_mut(32 * COLUMNS).zip(depths) {
                if rows.len() == COLUMNS && depth.len() == 32 {
                    transpose_full(block, &rows, depth.start);
                    continue;
                }
                for (column, row) in rows.iter().enumerate() {
                    for (k, &weight) in row[depth.clone()].iter().enumerate() {
                        block[k * COLUMNS + column] = weight;
                    }
                }
            }
        });
        packed
    }
}

/// A whole block of `f32`: eight rows at a time, so that each line that is written is written at once.
fn transpose_full(block: &mut [f32], rows: &[&[f32]], start: usize) {
    for eight in (0..COLUMNS).step_by(8) {
        let rows: [&[f32]; 8] = std::array::from_fn(|i| &rows[eight + i][start..start + 32]);
        for k in 0..32 {
            let to = &mut block[k * COLUMNS + eight..k * COLUMNS + eight + 8];
            for (to, row) in to.iter_mut().zip(rows) {
                *to = row[k];
            }
        }
    }
}

impl Weight for Bf16 {
    fn pack<'a>(
        row: &(dyn Fn(usize) -> &'a [f32] + Sync),
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Packed<Bf16> {
        let mut packed = Packed::with(lens(depths), lens(columns));
        let len = depths.len() * 32 * COLUMNS;
        in_parallel(&mut packed.blocks, len, &|panel, blocks: &mut [Bf16]| {
            for (column, n) in columns[panel].clone().enumerate() {
                let row = row(n);
                for (block, depth) in blocks.chunks_exact_mut(32 * COLUMNS).zip(depths) {
                    for (k, &weight) in row[depth.clone()].iter().enumerate() {
                        block[k / 2 * 2 * COLUMNS + 2 * column + k % 2] = Bf16::from_f32(weight);
                    }
                }
            }
        });
        packed
    }
}

/// What a step of the integers is worth that stand for `row`: its greatest weight becomes 127.
fn step(row: &[f32]) -> f32 {
    let mut greatest = 0f32;
    let mut finite = true;
    for weight in row {
        finite &= weight.is_finite();
        greatest = if weight.abs() > greatest {
            weight.abs()
        } else {
            greatest
        };
    }
    match finite {
        // As the products would be.
        false => f32::NAN,
        true if greatest > 0.0 => greatest / 127.0,
        true => 1.0,
    }
}

/// To the nearest integer, ties to even, for numbers of moderate size: adding what leaves no room for a fraction. The
/// method of `f32` is a function call on processors that lack the instruction.
fn rounded(x: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0;
    (x + NO_FRACTIONS) - NO_FRACTIONS
}

impl Weight for u8 {
    /// Each output has a scale of its own, symmetric: the greatest weight becomes 127. Two panels of 32 inputs make one of
    /// 64.
    fn pack<'a>(
        row: &(dyn Fn(usize) -> &'a [f32] + Sync),
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Packed<u8> {
        let counted = |two: &[Range<usize>]| match two {
            [_, second] => 32 + second.len(),
            _ => two.iter().map(Range::len).sum(),
        };
        assert!(depths.iter().all(|depth| depth.len() <= COLUMNS));
        assert!(
            depths.len() <= 2048,
            "the sums of more than 65536 products may overflow"
        );
        let mut packed = Packed::<u8>::with(depths.chunks(2).map(counted).collect(), lens(columns));
        let len = packed.depths.len() * 64 * COLUMNS;
        let found: Vec<OnceLock<([f32; 32], [i32; 32])>> = columns.iter().map(|_| OnceLock::new()).collect();
        in_parallel(&mut packed.blocks, len, &|panel, blocks: &mut [u8]| {
            let (mut scales, mut sums) = ([1f32; 32], [0i32; 32]);
            for (column, n) in columns[panel].clone().enumerate() {
                let row = row(n);
                scales[column] = step(row);
                let inverse = 1.0 / scales[column];
                for (block, depths) in blocks.chunks_exact_mut(64 * COLUMNS).zip(depths.chunks(2)) {
                    for (half, depth) in depths.iter().enumerate() {
                        for (k, &weight) in row[depth.clone()].iter().enumerate() {
                            let k = 32 * half + k;
                            let q = rounded(weight * inverse).clamp(-127.0, 127.0) as i8;
                            block[k / 4 * 4 * COLUMNS + 4 * column + k % 4] = q as u8;
                            sums[column] += i32::from(q);
                        }
                    }
                }
            }
            // Each panel comes once.
            let _ = found[panel].set((scales, sums.map(|sum| 128 * sum)));
        });
        // Panels without inputs are not filled.
        let found = found
            .into_iter()
            .map(|found| found.into_inner().unwrap_or(([1.0; 32], [0; 32])));
        (packed.scales, packed.offsets) = found.unzip();
        packed
    }
}

/// Up to 32 rows of `W` 32-bit numbers to `W` rows of 32; what is missing becomes zero.
pub(crate) fn transpose<const W: usize>(isa: Isa, rows: &[[f32; W]], to: &mut [f32]) {
    struct Transpose<'a, const W: usize>(&'a [[f32; W]], &'a mut [f32]);
    impl<const W: usize> Kernel for Transpose<'_, W> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Transpose(rows, to) = self;
            if rows.len() == COLUMNS && S::transpose(rows.as_flattened(), W, to) {
                return;
            }
            for (k, to) in to.chunks_exact_mut(COLUMNS).enumerate().take(W) {
                for (t, to) in to.iter_mut().enumerate() {
                    *to = rows.get(t).map_or(0.0, |row| row[k]);
                }
            }
        }
    }
    isa.run(Transpose(rows, to));
}
