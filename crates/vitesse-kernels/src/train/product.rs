//! The product of two matrices, which everything in training comes down to.
//!
//! The depth is cut into chunks. Of a chunk the right operand is packed whole, by all threads; then each thread takes some
//! rows of the left operand, packs them, and multiplies tile by tile: the tile's block of 32 columns of the right operand
//! stays in the innermost caches while rows pass by it. After the last chunk the sums of a tile go through
//! [`Finish::tile`] on their way to memory.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::blocks::{Block, Full, Half, Kind, MOST_DEPTH, Matrix, Room, SIDE, Split, share, whole};
use super::{Math, Precision};
use crate::Isa;
use crate::isa::Kernel;
use crate::simd::Simd;
use crate::tile::Scratch;

/// An operand: a matrix, or its transpose.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operand<'a> {
    Upright(Matrix<'a>),
    Transposed(Matrix<'a>),
}

impl<'a> Operand<'a> {
    fn shape(&self) -> [usize; 2] {
        match self {
            Operand::Upright(matrix) => [matrix.rows, matrix.columns],
            Operand::Transposed(matrix) => [matrix.columns, matrix.rows],
        }
    }

    /// See [`Matrix::known`].
    #[inline(always)]
    fn known<'b, S: Simd>(self, rows: Range<usize>, room: &'b mut Vec<[f32; 2]>) -> Operand<'b>
    where
        'a: 'b,
    {
        match self {
            Operand::Upright(matrix) => Operand::Upright(matrix.known::<S>(rows, room)),
            Operand::Transposed(_) => self,
        }
    }

    #[inline(always)]
    pub(super) fn block<S: Simd>(&self, row: usize, column: usize, to: &mut Block) {
        match self {
            Operand::Upright(matrix) => matrix.block::<S>(row, column, to),
            Operand::Transposed(matrix) => matrix.transposed::<S>(row, column, to),
        }
    }
}

/// What happens to the sums of a product.
pub(super) trait Finish: Sync {
    /// How many numbers each group of rows may leave behind for all, in [`Finish::rows`].
    fn parts(&self) -> usize {
        0
    }

    /// Changes the sums of one row, those of the columns from `column` on: 32, of which the first `width` count.
    #[inline(always)]
    fn row<S: Simd>(&self, _row: usize, _column: usize, _width: usize, _sums: &mut [f32; SIDE]) {}

    /// Changes whole finished rows, the first of which is `first`. `part` begins as zeros.
    #[inline(always)]
    fn rows<S: Simd>(&self, _first: usize, _rows: &mut [f32], _part: &mut [f32]) {}
}

/// The sums as they are.
pub(super) struct Plain;
impl Finish for Plain {}

/// `a · b`, finished, and what the groups of rows left behind, in order.
pub(super) fn product<F: Finish>(
    math: Math,
    a: Operand<'_>,
    b: Operand<'_>,
    finish: &F,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    match (math.precision, math.isa) {
        (Precision::Bf16, _) => of_kind::<Half, F>(math.isa, a, b, finish),
        (Precision::F32, Isa::Amx) => of_kind::<Split, F>(math.isa, a, b, finish),
        (Precision::F32, _) => of_kind::<Full, F>(math.isa, a, b, finish),
    }
}

/// The deepest chunk in blocks. Two tiles' rows of the left operand and a block column of the right one fit the second
/// cache.
const CHUNK: usize = 24;

/// How many rows one thread takes at a time: many, for each costs a pass over the right operand, but not so many that
/// few threads have work. It depends on the shape alone.
pub(super) fn group(rows: usize) -> usize {
    match rows {
        1024.. => 160,
        512.. => 64,
        _ => 32,
    }
}

fn of_kind<K: Kind, F: Finish>(
    isa: Isa,
    a: Operand<'_>,
    b: Operand<'_>,
    finish: &F,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let ([rows, depth], [deep, columns]) = (a.shape(), b.shape());
    assert!(depth == deep, "a product of {rows}x{depth} and {deep}x{columns}");
    assert!(rows > 0 && columns > 0 && depth > 0);
    let mut out: Vec<f32> = Vec::with_capacity(rows * columns);
    let group = group(rows);
    let mut parts = vec![vec![0f32; finish.parts()]; rows.div_ceil(group)];
    let blocks = depth.div_ceil(SIDE);
    let chunks = blocks.div_ceil(CHUNK);
    const { assert!(CHUNK <= MOST_DEPTH) };
    for chunk in 0..chunks {
        let first = blocks * chunk / chunks;
        let deep = blocks * (chunk + 1) / chunks - first;
        let panels = columns.div_ceil(SIDE);
        let mut room = Room::new(panels * deep * K::PACKED * size_of::<K::Element>());
        let packed: &mut [K::Element] = room.elements();
        pack_right::<K>(isa, b, first, deep, packed);
        let packed = &*packed;
        let whole = &mut out.spare_capacity_mut()[..rows * columns];
        whole
            .par_chunks_mut(group * columns)
            .zip(&mut parts)
            .enumerate()
            .for_each(|(i, (out, part))| {
                isa.run(Group::<K, F> {
                    a,
                    row: i * group,
                    first,
                    deep,
                    columns,
                    packed,
                    begun: chunk > 0,
                    finish: (chunk + 1 == chunks).then_some(finish),
                    out,
                    part,
                });
            });
    }
    // SAFETY: every chunk of the depth writes every element, and there is at least one.
    unsafe { out.set_len(rows * columns) };
    (out, parts)
}

/// Packs all columns of a right operand, `deep` blocks of its depth from the block `first` on.
pub(super) fn pack_right<K: Kind>(
    isa: Isa,
    b: Operand<'_>,
    first: usize,
    deep: usize,
    to: &mut [K::Element],
) {
    to.par_chunks_mut(deep * K::PACKED)
        .enumerate()
        .for_each(|(panel, to)| isa.run(PackRight::<K> { b, first, panel, to }));
}

/// Packs 32 columns of the right operand.
struct PackRight<'a, K: Kind> {
    b: Operand<'a>,
    /// The first block of the depth.
    first: usize,
    panel: usize,
    to: &'a mut [K::Element],
}

impl<K: Kind> Kernel for PackRight<'_, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut block = Block::ZERO;
        for (i, to) in self.to.chunks_exact_mut(K::PACKED).enumerate() {
            self.b
                .block::<S>((self.first + i) * SIDE, self.panel * SIDE, &mut block);
            K::right::<S>(&block, to);
        }
    }
}

/// Some rows of a product over a chunk of the depth.
struct Group<'a, K: Kind, F> {
    a: Operand<'a>,
    row: usize,
    first: usize,
    deep: usize,
    columns: usize,
    packed: &'a [K::Element],
    /// Whether there are sums of an earlier chunk already.
    begun: bool,
    /// Of the last chunk.
    finish: Option<&'a F>,
    out: &'a mut [MaybeUninit<f32>],
    part: &'a mut [f32],
}

impl<K: Kind, F: Finish> Kernel for Group<'_, K, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let rows = self.out.len() / self.columns;
        let tiles = rows.div_ceil(SIDE);
        let tile = self.deep * K::PACKED;
        // SAFETY: they are written before they are read: sums by the first chunk, whole rows before `Finish::rows`.
        let out = unsafe { &mut *(std::ptr::from_mut(self.out) as *mut [f32]) };
        let mut room = Room::new(tiles * tile * size_of::<K::Element>());
        let left: &mut [K::Element] = room.elements();
        let mut stats = Vec::new();
        let a = self.a.known::<S>(self.row..self.row + rows, &mut stats);
        let mut block = Block::ZERO;
        for (i, to) in left.chunks_exact_mut(K::PACKED).enumerate() {
            let (row, depth) = (self.row + i / self.deep * SIDE, self.first + i % self.deep);
            a.block::<S>(row, depth * SIDE, &mut block);
            K::left::<S>(&block, to);
        }
        let mut sums: Scratch<f32> = [[0.0; SIDE]; SIDE];
        S::begin();
        for (panel, right) in self.packed.chunks_exact(tile).enumerate() {
            let column = panel * SIDE;
            let width = SIDE.min(self.columns - column);
            let next = self.packed.get((panel + 1) * tile..).unwrap_or_default();
            for (i, left) in left.chunks_exact(tile).enumerate() {
                let count = SIDE.min(rows - i * SIDE);
                let next = share::<K>(next, i, self.deep);
                K::tile::<S>(left, right, whole(self.deep), [count, width], next, &mut sums);
                for (r, sums) in sums[..count].iter_mut().enumerate() {
                    let row = i * SIDE + r;
                    let to = &mut out[row * self.columns + column..][..width];
                    finish_row::<S, F>(self.finish, self.begun, self.row + row, column, sums, to);
                }
            }
        }
        S::end();

        if let Some(finish) = self.finish {
            finish.rows::<S>(self.row, out, self.part);
        }
    }
}

/// Adds what is `begun` already, finishes, and stores one row of a tile: that of the result, from `column` on.
#[inline(always)]
pub(super) fn finish_row<S: Simd, F: Finish>(
    finish: Option<&F>,
    begun: bool,
    row: usize,
    column: usize,
    sums: &mut [f32; SIDE],
    to: &mut [f32],
) {
    let whole = to.len() == SIDE;
    if begun && whole {
        for at in (0..SIDE).step_by(S::LANES) {
            S::store(S::add(S::load(&sums[at..]), S::load(&to[at..])), &mut sums[at..]);
        }
    } else if begun {
        sums.iter_mut()
            .zip(to.iter())
            .for_each(|(sum, earlier)| *sum += earlier);
    }
    if let Some(finish) = finish {
        finish.row::<S>(row, column, to.len(), sums);
    }
    if whole {
        // By vectors: a copy would be a call.
        for at in (0..SIDE).step_by(S::LANES) {
            S::store(S::load(&sums[at..]), &mut to[at..]);
        }
    } else {
        to.copy_from_slice(&sums[..to.len()]);
    }
}

/// The sums of the columns of a matrix, each row times the factor of its sample.
pub(super) fn column_sums(
    isa: Isa,
    of: &[f32],
    columns: usize,
    factors: Option<(&[f32], usize)>,
) -> Vec<f32> {
    struct Job<'a>(&'a [f32], usize, usize, Option<(&'a [f32], usize)>, &'a mut [f32]);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Job(rows, columns, first, factors, sums) = self;
            for (i, row) in rows.chunks_exact(columns).enumerate() {
                let factor = factors.map_or(1.0, |(factors, each)| factors[(first + i) / each]);
                add_scaled::<S>(sums, row, factor);
            }
        }
    }
    const ROWS: usize = 128;
    let parts: Vec<Vec<f32>> = of
        .par_chunks(ROWS * columns)
        .enumerate()
        .map(|(i, rows)| {
            let mut sums = vec![0f32; columns];
            isa.run(Job(rows, columns, i * ROWS, factors, &mut sums));
            sums
        })
        .collect();
    sum_parts(&parts, 0..columns)
}

/// `sums += row · factor`
#[inline(always)]
pub(super) fn add_scaled<S: Simd>(sums: &mut [f32], row: &[f32], factor: f32) {
    let f = S::splat(factor);
    let (mut sums, mut row) = (sums.chunks_exact_mut(S::LANES), row.chunks_exact(S::LANES));
    for (sum, x) in sums.by_ref().zip(row.by_ref()) {
        S::store(S::mul_add(S::load(x), f, S::load(sum)), sum);
    }
    for (sum, x) in sums.into_remainder().iter_mut().zip(row.remainder()) {
        *sum += x * factor;
    }
}

/// The sum over the parts of their numbers `range`, in order.
pub(super) fn sum_parts(parts: &[Vec<f32>], range: std::ops::Range<usize>) -> Vec<f32> {
    let mut total = vec![0f64; range.len()];
    for part in parts {
        for (total, x) in total.iter_mut().zip(&part[range.clone()]) {
            *total += f64::from(*x);
        }
    }
    total.into_iter().map(|x| x as f32).collect()
}
