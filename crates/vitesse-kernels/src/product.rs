//! Products of activations with packed weights, and what happens to each row of the result while it is in the cache.

use std::ops::Range;

use crate::isa::{Isa, Kernel};
use crate::math::{Gelu, gelu};
use crate::packed::{Packed, Weight};
use crate::panels::{Element, Panels};
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::{COLUMNS, MAX_ROWS, Operands, Scratch};

/// Activations of which each row has been scaled to 8 bits: `x ≈ scale · (q − 128)`.
#[derive(Debug, Clone)]
pub struct Quantized {
    pub(crate) values: Panels<u8>,
    pub(crate) scales: Vec<f32>,
}

impl Quantized {
    /// Zeros for `rows` rows of `panels` panels of 64.
    pub fn zeros(rows: usize, panels: usize) -> Self {
        Quantized {
            values: Panels::zeros(rows, panels),
            scales: vec![0.0; rows],
        }
    }

    /// Another shape; what was there has no meaning any more. Memory is kept.
    pub fn reshape(&mut self, rows: usize, panels: usize) {
        self.values.reshape(rows, panels);
        self.scales.resize(rows, 0.0);
    }

    /// The value that an element stands for.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.scales[row] * (f32::from(self.values.at(row, column)) - 128.0)
    }
}

/// The left operand of a product.
pub trait Left: sealed::Rows {}
impl<T: sealed::Rows> Left for T {}

pub(crate) mod sealed {
    use super::*;

    /// Rows that can be multiplied.
    pub trait Rows: Sync {
        /// The type of the weights they are multiplied with.
        type Weight: Weight;
        /// The number of rows.
        fn rows(&self) -> usize;
        /// The number of panels.
        fn panels(&self) -> usize;
        /// The most blocks of the depth of which one sum is made, where a result can be added to bit by bit.
        const BLOCKS: usize;
        #[doc(hidden)]
        fn most_rows<S: Simd>() -> usize;
        #[doc(hidden)]
        fn tile<S: Simd>(
            &self,
            rows: Range<usize>,
            of: &Packed<Self::Weight>,
            panel: usize,
            blocks: Range<usize>,
            ahead: Ahead<'_, Self::Weight>,
            out: &mut Scratch<f32>,
        );
    }
}
use sealed::Rows;

/// What is read later, and how many cache lines of it a tile asks for with each of its blocks.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Ahead<'a, T>(&'a [T], usize);

impl<'a, T> Ahead<'a, T> {
    /// The part of `next` that the tile `index` of `count` asks for, which has so many blocks.
    #[inline(always)]
    fn of(next: &'a [T], index: usize, count: usize, blocks: usize) -> Self {
        let lines = size_of_val(next).div_ceil(64).div_ceil(count * blocks.max(1));
        let start = index * blocks * lines * 64 / size_of::<T>();
        next.get(start..)
            .filter(|rest| !rest.is_empty())
            .map_or(Ahead(&[], 0), |rest| Ahead(rest, lines))
    }
}

/// The blocks `blocks` of the depth of a tile.
#[inline(always)]
fn operands<'a, T: Element>(
    a: &'a Panels<T>,
    rows: Range<usize>,
    of: &'a Packed<T>,
    panel: usize,
    blocks: Range<usize>,
    Ahead(ahead, lines): Ahead<'a, T>,
) -> Operands<'a, T> {
    Operands {
        depths: &of.depths[blocks.clone()],
        b: of.blocks(panel, blocks.clone()),
        ahead,
        lines,
        ..Operands::new((a, blocks.start), rows, of, panel)
    }
}

impl<T: Real> Rows for Panels<T> {
    type Weight = T;
    // 192 rows of `f32` weights, 24 KB, leave the first cache room for the rest.
    const BLOCKS: usize = if size_of::<T>() == 4 { 6 } else { usize::MAX };
    fn rows(&self) -> usize {
        self.rows()
    }
    fn panels(&self) -> usize {
        self.panels()
    }
    #[inline(always)]
    fn most_rows<S: Simd>() -> usize {
        T::most_rows::<S>()
    }
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        rows: Range<usize>,
        of: &Packed<T>,
        panel: usize,
        blocks: Range<usize>,
        ahead: Ahead<'_, T>,
        out: &mut Scratch<f32>,
    ) {
        T::tile::<S>(operands(self, rows, of, panel, blocks, ahead), out);
    }
}

impl Rows for Quantized {
    type Weight = u8;
    // The offsets belong to the whole sum.
    const BLOCKS: usize = usize::MAX;
    fn rows(&self) -> usize {
        self.values.rows()
    }
    fn panels(&self) -> usize {
        self.values.panels()
    }
    #[inline(always)]
    fn most_rows<S: Simd>() -> usize {
        S::ROWS_I8
    }
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        rows: Range<usize>,
        of: &Packed<u8>,
        panel: usize,
        blocks: Range<usize>,
        ahead: Ahead<'_, u8>,
        out: &mut Scratch<f32>,
    ) {
        // The integers take the place of the sums that they become.
        let sums: &mut Scratch<i32> = bytemuck::cast_mut(out);
        let operands = operands(&self.values, rows.clone(), of, panel, blocks, ahead);
        S::tile_i8(operands, sums);
        let (offsets, steps) = (&of.offsets[panel], &of.scales[panel]);
        let half = of.widths[panel] <= COLUMNS / 2;
        for (out, row) in out.iter_mut().zip(rows) {
            let scale = self.scales[row];
            for ((out, &offset), &step) in out.iter_mut().zip(offsets).zip(steps) {
                *out = (out.to_bits() as i32).wrapping_sub(offset) as f32 * (scale * step);
            }
            if half {
                // Half a tile may leave the other half as it was.
                out[COLUMNS / 2..].fill(0.0);
            }
        }
    }
}

/// What becomes of a row of a product.
pub(crate) trait Finish {
    /// Whether it can take a sum in several parts, one after the other.
    const ADDS: bool = false;

    /// `sums` is the product at `row` (counted from the first row of the product) and the columns of `panel`; for those
    /// that add, a part of it, and `first` says whether it is the first.
    fn row<S: Simd>(&mut self, panel: usize, row: usize, first: bool, sums: &[f32; 32]);
}

/// `finish(a[rows] · of[panels])`, tile by tile: the panels of `of` one after the other, each against all rows, so that a
/// panel is read from memory once. Where results are added to something, deep panels are cut, so that a piece stays in
/// the first cache while all rows pass.
pub(crate) struct Product<'a, A: Rows, F> {
    pub(crate) a: &'a A,
    pub(crate) rows: Range<usize>,
    pub(crate) of: &'a Packed<A::Weight>,
    pub(crate) panels: Range<usize>,
    pub(crate) finish: F,
}

impl<A: Rows, F: Finish> Kernel for Product<'_, A, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut scratch = [[0f32; 32]; MAX_ROWS];
        let depth = self.of.depths.len();
        let most = if F::ADDS { A::BLOCKS } else { usize::MAX };
        let tiles = row_tiles(self.rows.clone(), A::most_rows::<S>());
        let count = tiles.clone().count().max(1);
        let mut pieces = self
            .panels
            .clone()
            .flat_map(|panel| {
                // No depth at all is one piece, too: the result is the bias.
                let none = (depth == 0).then_some(0..0);
                even_parts(0..depth, most)
                    .chain(none)
                    .map(move |blocks| (panel, blocks))
            })
            .peekable();
        S::begin();
        while let Some((panel, blocks)) = pieces.next() {
            if self.of.widths[panel] <= COLUMNS / 2 {
                // Half tiles leave the other half alone. What an earlier panel put there would be taken for this one's
                // padding, which a later product reads.
                scratch.iter_mut().for_each(|row| row[COLUMNS / 2..].fill(0.0));
            }
            // While a piece is used, the next one comes nearer: weights lie in the third cache at best.
            let next: &[A::Weight] = match pieces.peek() {
                Some((panel, blocks)) => self.of.blocks(*panel, blocks.clone()),
                None => &[],
            };
            let bytes: &[u8] = bytemuck::cast_slice(next);
            let mut shares = bytes.chunks((bytes.len() / count).next_multiple_of(64).max(64));
            for (index, tile) in tiles.clone().enumerate() {
                let ahead = if S::ASKS {
                    Ahead::of(next, index, count, blocks.len())
                } else {
                    shares.next().into_iter().for_each(S::prefetch);
                    Ahead(&[], 0)
                };
                self.a
                    .tile::<S>(tile.clone(), self.of, panel, blocks.clone(), ahead, &mut scratch);
                for (row, sums) in tile.zip(&scratch) {
                    self.finish
                        .row::<S>(panel, row - self.rows.start, blocks.start == 0, sums);
                }
            }
        }
        S::end();
    }
}

/// Cuts `rows` into the fewest parts of at most `most`, as equal as can be.
pub(crate) fn even_parts(rows: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = rows.len().div_ceil(most).max(1);
    let (each, more) = (rows.len() / parts, rows.len() % parts);
    let start = rows.start;
    let at = move |part: usize| start + part * each + part.min(more);
    (0..parts)
        .map(move |part| at(part)..at(part + 1))
        .filter(|part| !part.is_empty())
}

/// Cuts `rows` into tiles of at most `most`. Where that is a multiple of 16, tiles are computed in wholes of 16 rows, so as
/// many as can be are full; elsewhere a few rows less in each cost nothing, and equal tiles are the best.
pub(crate) fn row_tiles(rows: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let full = if most.is_multiple_of(16) {
        rows.len() / most * most
    } else {
        0
    };
    let middle = rows.start + full;
    let wholes = (rows.start..middle)
        .step_by(most)
        .map(move |start| start..start + most);
    wholes.chain(even_parts(middle..rows.end, most))
}

/// A linear layer: packed weights, and a scale and a bias for each output, in panels.
#[derive(Debug)]
pub struct Linear<'a, W: Element> {
    /// The weights.
    pub weights: &'a Packed<W>,
    /// What each sum is multiplied by, or nothing for 1.
    pub scale: Option<&'a [[f32; 32]]>,
    /// What is added to it.
    pub bias: &'a [[f32; 32]],
}

impl<W: Element> Clone for Linear<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W: Element> Copy for Linear<'_, W> {}

impl<W: Element> Linear<'_, W> {
    /// `sums · scale + bias`, the lanes from `at` on.
    #[inline(always)]
    fn affine<S: Simd>(&self, panel: usize, sums: &[f32; 32], at: usize) -> S::F {
        let (x, bias) = (S::load(&sums[at..]), S::load(&self.bias[panel][at..]));
        match self.scale {
            Some(scale) => S::mul_add(x, S::load(&scale[panel][at..]), bias),
            None => S::add(x, bias),
        }
    }

    /// The same without the bias.
    #[inline(always)]
    fn scaled<S: Simd>(&self, panel: usize, sums: &[f32; 32], at: usize) -> S::F {
        let x = S::load(&sums[at..]);
        match self.scale {
            Some(scale) => S::mul(x, S::load(&scale[panel][at..])),
            None => x,
        }
    }

    fn check<A: Rows<Weight = W>>(&self, a: &A, rows: &Range<usize>, panels: &Range<usize>)
    where
        W: Weight,
    {
        assert!(rows.end <= a.rows() && self.weights.depths.len() == a.panels());
        assert!(panels.end <= self.weights.panels() && panels.end <= self.bias.len());
        assert!(self.scale.is_none_or(|scale| panels.end <= scale.len()));
    }
}

/// `out[row] = a[row]·W·scale + bias` for the panels `panels` of `W`, which become the panels of `out` from 0 on.
///
/// # Panics
/// Where shapes do not fit.
pub fn linear<A: Left, U: Real>(
    isa: Isa,
    a: &A,
    rows: Range<usize>,
    of: Linear<'_, A::Weight>,
    panels: Range<usize>,
    out: &mut Panels<U>,
) {
    struct Store<'a, W: Element, U: Real> {
        of: Linear<'a, W>,
        first: usize,
        out: &'a mut Panels<U>,
    }
    impl<W: Element, U: Real> Finish for Store<'_, W, U> {
        #[inline(always)]
        fn row<S: Simd>(&mut self, panel: usize, row: usize, _first: bool, sums: &[f32; 32]) {
            let to = self.out.panel_mut(panel - self.first)[row].as_mut();
            for at in (0..32).step_by(S::LANES) {
                U::store::<S>(self.of.affine::<S>(panel, sums, at), &mut to[at..]);
            }
        }
    }
    of.check(a, &rows, &panels);
    assert!(rows.len() <= out.rows() && panels.len() <= out.panels());
    isa.run(Product {
        a,
        rows,
        of: of.weights,
        panels: panels.clone(),
        finish: Store {
            of,
            first: panels.start,
            out,
        },
    });
}

/// A scale and a shift for each output, in panels.
type ScaleShift<'a> = (&'a [[f32; 32]], &'a [[f32; 32]]);

/// `out[row] = gelu(a[row]·W·scale + bias)` in this form, then times `after.0` plus `after.1` where that is given.
///
/// # Panics
/// Where shapes do not fit.
pub fn linear_gelu<A: Left, U: Real>(
    isa: Isa,
    a: &A,
    rows: Range<usize>,
    of: Linear<'_, A::Weight>,
    (form, after): (Gelu, Option<ScaleShift<'_>>),
    out: &mut Panels<U>,
) {
    struct Activated<'a, W: Element, U: Real> {
        of: Linear<'a, W>,
        form: Gelu,
        after: Option<ScaleShift<'a>>,
        out: &'a mut Panels<U>,
    }
    impl<W: Element, U: Real> Finish for Activated<'_, W, U> {
        #[inline(always)]
        fn row<S: Simd>(&mut self, panel: usize, row: usize, _first: bool, sums: &[f32; 32]) {
            let to = self.out.panel_mut(panel)[row].as_mut();
            for at in (0..32).step_by(S::LANES) {
                let mut x = gelu::<S>(self.form, self.of.affine::<S>(panel, sums, at));
                if let Some((scale, shift)) = self.after {
                    x = S::mul_add(x, S::load(&scale[panel][at..]), S::load(&shift[panel][at..]));
                }
                U::store::<S>(x, &mut to[at..]);
            }
        }
    }
    let panels = 0..of.weights.panels();
    of.check(a, &rows, &panels);
    assert!(rows.len() <= out.rows() && panels.len() <= out.panels());
    assert!(after.is_none_or(|(scale, shift)| scale.len().min(shift.len()) >= panels.len()));
    isa.run(Product {
        a,
        rows,
        of: of.weights,
        panels,
        finish: Activated { of, form, after, out },
    });
}

/// `x[first + row] += a[row]·W·scale + bias`; with `into`, output `n` goes to the channel `into[n]` of `x`.
///
/// # Panics
/// Where shapes do not fit.
pub fn linear_add<A: Left>(
    isa: Isa,
    a: &A,
    rows: Range<usize>,
    of: Linear<'_, A::Weight>,
    into: Option<&[usize]>,
    x: &mut Panels<f32>,
    first: usize,
) {
    struct Add<'a, W: Element> {
        of: Linear<'a, W>,
        x: &'a mut Panels<f32>,
        first: usize,
    }
    impl<W: Element> Finish for Add<'_, W> {
        const ADDS: bool = true;

        #[inline(always)]
        fn row<S: Simd>(&mut self, panel: usize, row: usize, first: bool, sums: &[f32; 32]) {
            let to = &mut self.x.panel_mut(panel)[self.first + row];
            for at in (0..32).step_by(S::LANES) {
                let part = if first {
                    self.of.affine::<S>(panel, sums, at)
                } else {
                    self.of.scaled::<S>(panel, sums, at)
                };
                S::store(S::add(S::load(&to[at..]), part), &mut to[at..]);
            }
        }
    }
    struct Scatter<'a, W: Element> {
        add: Add<'a, W>,
        into: &'a [usize],
    }
    impl<W: Element> Finish for Scatter<'_, W> {
        #[inline(always)]
        fn row<S: Simd>(&mut self, panel: usize, row: usize, _first: bool, sums: &[f32; 32]) {
            let mut values = [0f32; 32];
            for at in (0..32).step_by(S::LANES) {
                S::store(self.add.of.affine::<S>(panel, sums, at), &mut values[at..]);
            }
            let Add { x, first, .. } = &mut self.add;
            for (value, &channel) in values.iter().zip(&self.into[panel * COLUMNS..]) {
                x.panel_mut(channel / COLUMNS)[*first + row][channel % COLUMNS] += value;
            }
        }
    }
    let panels = 0..of.weights.panels();
    of.check(a, &rows, &panels);
    assert!(first + rows.len() <= x.rows());
    let add = Add { of, x, first };
    let weights = of.weights;
    match into {
        None => {
            assert!(panels.len() <= add.x.panels());
            isa.run(Product {
                a,
                rows,
                of: weights,
                panels,
                finish: add,
            });
        }
        Some(into) => {
            assert!(into.len() == weights.widths.iter().sum::<usize>());
            assert!(into.iter().all(|&channel| channel < add.x.panels() * COLUMNS));
            isa.run(Product {
                a,
                rows,
                of: weights,
                panels,
                finish: Scatter { add, into },
            });
        }
    }
}
