//! Blocks of 32 × 32: how matrices are read, and how they are packed for the inner loops.
//!
//! The left operand of a product is packed as `[depth block][term][32 rows][32]`, the right one as
//! `[depth block][term][32 deep][32 columns]`, where bf16 are stored in pairs of the depths `p` and `p + 16`: both
//! operands agree on the pairs, so any would do, and these need no shuffling.

use std::cell::RefCell;
use std::ops::Range;

use bytemuck::Pod;

use super::norm::row_stats;
use crate::math::{self, gelu};
use crate::panels::{Bf16, Buffer};
use crate::simd::Simd;
use crate::tile::{Operands, Scratch};

/// Rows and columns of a block.
pub(super) const SIDE: usize = 32;
/// Numbers in a block.
pub(super) const AREA: usize = SIDE * SIDE;

/// A block in `f32`, row by row, aligned to a cache line.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[f32; SIDE]; SIDE]);

impl Block {
    pub(super) const ZERO: Block = Block([[0.0; SIDE]; SIDE]);

    /// Adds each column to its sum, row by row.
    #[inline(always)]
    pub(super) fn add_columns<S: Simd>(&self, sums: &mut [f32]) {
        for at in (0..SIDE).step_by(S::LANES) {
            let sum = S::load(&sums[at..]);
            let sum = self
                .0
                .iter()
                .fold(sum, |sum, row| S::add(sum, S::load(&row[at..])));
            S::store(sum, &mut sums[at..]);
        }
    }

    /// Rows become columns.
    #[inline(always)]
    pub(super) fn transpose<S: Simd>(&self, to: &mut Block) {
        if S::transpose(self.0.as_flattened(), SIDE, to.0.as_flattened_mut()) {
            return;
        }
        for (i, to) in to.0.iter_mut().enumerate() {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = from[i];
            }
        }
    }
}

/// What happens to a matrix while it is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    Nothing,
    /// Each row times the factor of its sample, of so many rows.
    Factors(&'a [f32], usize),
    /// `(x − mean) · rstd · gain + shift`; gain and shift for each column. Mean and rstd of each row from `first` on are
    /// in `stats`, for which [`Matrix::known`] is there.
    Norm {
        gain: &'a [f32],
        shift: &'a [f32],
        eps: f32,
        stats: &'a [[f32; 2]],
        first: usize,
    },
    Gelu(math::Gelu),
}

/// A matrix in memory, row by row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// From one row to the next.
    pub(super) stride: usize,
    pub(super) change: Change<'a>,
}

impl<'a> Matrix<'a> {
    /// A contiguous matrix.
    pub(super) fn new(data: &'a [f32], columns: usize) -> Self {
        let rows = data.len() / columns.max(1);
        assert!(rows * columns == data.len());
        Matrix {
            data,
            rows,
            columns,
            stride: columns,
            change: Change::Nothing,
        }
    }

    /// Some columns of `rows` rows of `stride` numbers.
    pub(super) fn part(data: &'a [f32], rows: usize, stride: usize, first: usize, columns: usize) -> Self {
        assert!(rows > 0 && first + columns <= stride && data.len() >= rows * stride);
        Matrix {
            data: &data[first..],
            rows,
            columns,
            stride,
            change: Change::Nothing,
        }
    }

    pub(super) fn with(self, change: Change<'a>) -> Self {
        match change {
            Change::Factors(factors, each) => assert!(factors.len() * each >= self.rows),
            Change::Norm { gain, shift, .. } => {
                assert!(gain.len() == self.columns && shift.len() == self.columns);
            }
            Change::Nothing | Change::Gelu(_) => {}
        }
        Matrix { change, ..self }
    }

    /// The same with what a norm needs of some rows, which alone may be read then.
    #[inline(always)]
    pub(super) fn known<'b, S: Simd>(self, rows: Range<usize>, room: &'b mut Vec<[f32; 2]>) -> Matrix<'b>
    where
        'a: 'b,
    {
        let Change::Norm { gain, shift, eps, .. } = self.change else {
            return self;
        };
        room.clear();
        for row in rows.clone() {
            room.push(row_stats::<S>(
                &self.data[row * self.stride..][..self.columns],
                eps,
            ));
        }
        Matrix {
            change: Change::Norm {
                gain,
                shift,
                eps,
                stats: room,
                first: rows.start,
            },
            ..self
        }
    }

    /// The block whose first element is `(row, column)`, changed; zero past the edges.
    #[inline(always)]
    pub(super) fn block<S: Simd>(&self, row: usize, column: usize, to: &mut Block) {
        let (rows, columns) = (SIDE.min(self.rows - row), SIDE.min(self.columns - column));
        for i in 0..rows {
            let start = (row + i) * self.stride + column;
            let from = &self.data[start..start + columns];
            let to = &mut to.0[i];
            if columns == SIDE {
                self.changed::<S>(row + i, column, from, to);
            } else {
                let mut padded = [0f32; SIDE];
                padded[..columns].copy_from_slice(from);
                self.changed::<S>(row + i, column, &padded, to);
                to[columns..].fill(0.0);
            }
        }
        to.0[rows..].fill([0.0; SIDE]);
    }

    /// The same of the transposed matrix.
    #[inline(always)]
    pub(super) fn transposed<S: Simd>(&self, row: usize, column: usize, to: &mut Block) {
        let mut upright = Block::ZERO;
        self.block::<S>(column, row, &mut upright);
        upright.transpose::<S>(to);
    }

    /// A row of 32 numbers, changed.
    #[inline(always)]
    fn changed<S: Simd>(&self, row: usize, column: usize, from: &[f32], to: &mut [f32; SIDE]) {
        match self.change {
            Change::Nothing => {
                // By vectors: a copy of unknown length would be a call.
                for at in (0..SIDE).step_by(S::LANES) {
                    S::store(S::load(&from[at..]), &mut to[at..]);
                }
            }
            Change::Factors(factors, each) => {
                let factor = S::splat(factors[row / each]);
                for at in (0..SIDE).step_by(S::LANES) {
                    S::store(S::mul(S::load(&from[at..]), factor), &mut to[at..]);
                }
            }
            Change::Norm {
                gain,
                shift,
                stats,
                first,
                ..
            } => {
                let [mean, rstd] = stats[row - first];
                let (mean, rstd) = (S::splat(mean), S::splat(rstd));
                let (mut room, mut more) = ([0f32; SIDE], [0f32; SIDE]);
                let (gain, shift) = (padded(gain, column, &mut room), padded(shift, column, &mut more));
                for at in (0..SIDE).step_by(S::LANES) {
                    let x = S::mul(S::sub(S::load(&from[at..]), mean), rstd);
                    S::store(
                        S::mul_add(x, S::load(&gain[at..]), S::load(&shift[at..])),
                        &mut to[at..],
                    );
                }
            }
            Change::Gelu(form) => {
                for at in (0..SIDE).step_by(S::LANES) {
                    S::store(gelu::<S>(form, S::load(&from[at..])), &mut to[at..]);
                }
            }
        }
    }
}

/// 32 numbers from `at` on, with zeros for those that are not there.
#[inline(always)]
pub(super) fn padded<'a>(from: &'a [f32], at: usize, room: &'a mut [f32; SIDE]) -> &'a [f32] {
    if let Some(whole) = from.get(at..at + SIDE) {
        return whole;
    }
    let rest = &from[at..];
    room[..rest.len()].copy_from_slice(rest);
    room
}

/// A product of packed blocks, of which so many rows and columns are wanted. What is past the last column is zero.
#[inline(always)]
pub(super) fn product<S: Simd, K: Kind>(
    left: &[K::Element],
    right: &[K::Element],
    depths: &[usize],
    [rows, columns]: [usize; 2],
    to: &mut Block,
) {
    if columns <= SIDE / 2 {
        // Half a tile may leave the other half as it was: what is not a number there would stay so.
        to.0[..rows].iter_mut().for_each(|row| row[SIDE / 2..].fill(0.0));
    }
    K::tile::<S>(left, right, depths, [rows, columns], &[], &mut to.0);
}

/// How the numbers of a product are represented.
pub(super) trait Kind: 'static {
    /// What a block is made of.
    type Element: Pod + Send + Sync;
    /// Blocks that stand for one.
    const TERMS: usize;
    /// Numbers that a packed block takes.
    const PACKED: usize = Self::TERMS * AREA;

    /// Packs a block of the left operand.
    fn left<S: Simd>(block: &Block, to: &mut [Self::Element]);
    /// Packs a block of the right operand.
    fn right<S: Simd>(block: &Block, to: &mut [Self::Element]);
    /// Packs the transpose of a block of the left operand, for [`Kind::tile_turned`]: as a right operand where products can
    /// read it so, which needs no transposing.
    #[inline(always)]
    fn turned<S: Simd>(block: &Block, to: &mut [Self::Element]) {
        if S::TURNS {
            Self::right::<S>(block, to);
        } else {
            let mut turned = Block::ZERO;
            block.transpose::<S>(&mut turned);
            Self::left::<S>(&turned, to);
        }
    }
    /// How deep a product goes in a block of which so many numbers count.
    fn deep(numbers: usize) -> usize;
    /// The product of some blocks of each, which are so [deep](Kind::deep), of which so many rows and columns are wanted. Meanwhile the processor
    /// may be asked for [`share`] of what is `ahead`.
    fn tile<S: Simd>(
        a: &[Self::Element],
        b: &[Self::Element],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[Self::Element],
        out: &mut Scratch<f32>,
    );
    /// The same of a left operand that [`Kind::turned`] packed.
    fn tile_turned<S: Simd>(
        a: &[Self::Element],
        b: &[Self::Element],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[Self::Element],
        out: &mut Scratch<f32>,
    );
}

/// The part of `next` that the `i`th product of so many blocks asks for: four products ask for as many blocks of a right
/// operand.
#[inline(always)]
pub(super) fn share<K: Kind>(next: &[K::Element], i: usize, depth: usize) -> &[K::Element] {
    next.get(i * depth * K::PACKED / 4..).unwrap_or_default()
}

/// `f32`, multiplied as it is.
pub(super) enum Full {}
/// `f32` as three of bf16, for AMX.
pub(super) enum Split {}
/// Rounded to bf16.
pub(super) enum Half {}

impl Kind for Full {
    type Element = f32;
    const TERMS: usize = 1;

    #[inline(always)]
    fn deep(numbers: usize) -> usize {
        numbers
    }

    #[inline(always)]
    fn left<S: Simd>(block: &Block, to: &mut [f32]) {
        to[..AREA].copy_from_slice(block.0.as_flattened());
    }
    #[inline(always)]
    fn right<S: Simd>(block: &Block, to: &mut [f32]) {
        to[..AREA].copy_from_slice(block.0.as_flattened());
    }
    #[inline(always)]
    fn tile<S: Simd>(
        a: &[f32],
        b: &[f32],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[f32],
        out: &mut Scratch<f32>,
    ) {
        full::<S>([a, b, ahead], depths, size, false, out);
    }
    #[inline(always)]
    fn tile_turned<S: Simd>(
        a: &[f32],
        b: &[f32],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[f32],
        out: &mut Scratch<f32>,
    ) {
        full::<S>([a, b, ahead], depths, size, S::TURNS, out);
    }
}

/// What the product of `rows` rows from `row` on asks for of what is `ahead`, and how many cache lines with each of its
/// blocks: all products of a tile together for a quarter of a block.
#[inline(always)]
fn asked<T>(ahead: &[T], row: usize, rows: usize, blocks: usize) -> (&[T], usize) {
    let lines = (AREA * size_of::<T>() / 4 / 64).div_ceil(SIDE.div_ceil(rows));
    let start = row / rows * blocks * lines * 64 / size_of::<T>();
    ahead
        .get(start..)
        .filter(|ahead| !ahead.is_empty())
        .map_or((&[], 0), |ahead| (ahead, lines))
}

/// A product of `f32`; of the left operand, the right one, and what is ahead.
#[inline(always)]
fn full<S: Simd>(
    [a, b, ahead]: [&[f32]; 3],
    depths: &[usize],
    [rows, columns]: [usize; 2],
    turned: bool,
    out: &mut Scratch<f32>,
) {
    let mut row = 0;
    while row < rows {
        let count = S::ROWS_F32.min(rows - row);
        let (ahead, lines) = asked(ahead, row, S::ROWS_F32, depths.len());
        let of = Operands {
            a: bytemuck::cast_slice(a),
            stride: SIDE,
            row,
            rows: count,
            turned,
            depths,
            b,
            half: columns <= SIDE / 2,
            ahead,
            lines,
        };
        S::tile_f32(of, &mut out[row..row + count]);
        row += count;
    }
}

impl Kind for Half {
    type Element = Bf16;
    const TERMS: usize = 1;

    #[inline(always)]
    fn deep(numbers: usize) -> usize {
        2 * numbers.min(SIDE / 2)
    }

    #[inline(always)]
    fn left<S: Simd>(block: &Block, to: &mut [Bf16]) {
        let to: &mut [f32] = bytemuck::cast_slice_mut(to);
        for (row, to) in block.0.iter().zip(to.chunks_exact_mut(SIDE / 2)) {
            for at in (0..SIDE / 2).step_by(S::LANES) {
                let (low, high) = (S::load(&row[at..]), S::load(&row[at + SIDE / 2..]));
                S::store(S::bf16_pairs(low, high), &mut to[at..]);
            }
        }
    }
    #[inline(always)]
    fn right<S: Simd>(block: &Block, to: &mut [Bf16]) {
        let to: &mut [f32] = bytemuck::cast_slice_mut(to);
        let (low, high) = block.0.split_at(SIDE / 2);
        for ((low, high), to) in low.iter().zip(high).zip(to.chunks_exact_mut(SIDE)) {
            for at in (0..SIDE).step_by(S::LANES) {
                let (low, high) = (S::load(&low[at..]), S::load(&high[at..]));
                S::store(S::bf16_pairs(low, high), &mut to[at..]);
            }
        }
    }
    #[inline(always)]
    fn tile<S: Simd>(
        a: &[Bf16],
        b: &[Bf16],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[Bf16],
        out: &mut Scratch<f32>,
    ) {
        half::<S>([a, b, ahead], depths, size, false, out);
    }
    #[inline(always)]
    fn tile_turned<S: Simd>(
        a: &[Bf16],
        b: &[Bf16],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[Bf16],
        out: &mut Scratch<f32>,
    ) {
        half::<S>([a, b, ahead], depths, size, S::TURNS, out);
    }
}

/// The same of bf16.
#[inline(always)]
fn half<S: Simd>(
    [a, b, ahead]: [&[Bf16]; 3],
    depths: &[usize],
    [rows, columns]: [usize; 2],
    turned: bool,
    out: &mut Scratch<f32>,
) {
    let mut row = 0;
    while row < rows {
        let count = S::ROWS_BF16.min(rows - row);
        let (ahead, lines) = asked(ahead, row, S::ROWS_BF16, depths.len());
        let of = Operands {
            a: bytemuck::cast_slice(a),
            stride: SIDE,
            row,
            rows: count,
            turned,
            depths,
            b,
            half: columns <= SIDE / 2,
            ahead,
            lines,
        };
        if S::ROWS_BF16 >= SIDE {
            S::tile_bf16(of, out);
        } else {
            S::tile_bf16(of, &mut out[row..row + count]);
        }
        row += count;
    }
}

/// `x` as the sum of three numbers of bf16, exactly: the nearest one to what is left, three times. Eight bits each are the
/// 24 of an `f32`. An infinity becomes what is not a number.
#[inline(always)]
fn split<S: Simd>(x: S::F) -> [S::F; 3] {
    let first = S::near_bf16(x);
    let rest = S::sub(x, first);
    let second = S::near_bf16(rest);
    [first, second, S::sub(rest, second)]
}

impl Kind for Split {
    type Element = Bf16;
    const TERMS: usize = 3;

    #[inline(always)]
    fn deep(_: usize) -> usize {
        SIDE
    }

    #[inline(always)]
    fn left<S: Simd>(block: &Block, to: &mut [Bf16]) {
        let to: &mut [f32] = bytemuck::cast_slice_mut(to);
        for (i, row) in block.0.iter().enumerate() {
            for at in (0..SIDE / 2).step_by(S::LANES) {
                let low = split::<S>(S::load(&row[at..]));
                let high = split::<S>(S::load(&row[at + SIDE / 2..]));
                for term in 0..3 {
                    let start = term * AREA / 2 + i * SIDE / 2 + at;
                    S::store(S::pair(low[term], high[term]), &mut to[start..]);
                }
            }
        }
    }
    #[inline(always)]
    fn right<S: Simd>(block: &Block, to: &mut [Bf16]) {
        let to: &mut [f32] = bytemuck::cast_slice_mut(to);
        let (low, high) = block.0.split_at(SIDE / 2);
        for (i, (low, high)) in low.iter().zip(high).enumerate() {
            for at in (0..SIDE).step_by(S::LANES) {
                let (low, high) = (split::<S>(S::load(&low[at..])), split::<S>(S::load(&high[at..])));
                for term in 0..3 {
                    let start = term * AREA / 2 + i * SIDE + at;
                    S::store(S::pair(low[term], high[term]), &mut to[start..]);
                }
            }
        }
    }
    #[inline(always)]
    fn tile<S: Simd>(
        a: &[Bf16],
        b: &[Bf16],
        depths: &[usize],
        [rows, columns]: [usize; 2],
        ahead: &[Bf16],
        out: &mut Scratch<f32>,
    ) {
        S::tile_split(
            &a[..depths.len() * Self::PACKED],
            &b[..depths.len() * Self::PACKED],
            [rows > SIDE / 2, columns > SIDE / 2],
            ahead,
            out,
        );
    }
    #[inline(always)]
    fn tile_turned<S: Simd>(
        a: &[Bf16],
        b: &[Bf16],
        depths: &[usize],
        size: [usize; 2],
        ahead: &[Bf16],
        out: &mut Scratch<f32>,
    ) {
        Self::tile::<S>(a, b, depths, size, ahead, out);
    }
}

/// The depths of so many whole blocks: what is past an edge is zero.
pub(super) fn whole(blocks: usize) -> &'static [usize] {
    &DEPTHS[..blocks]
}

/// The depths of blocks that hold so many numbers together.
pub(super) fn counted<K: Kind>(numbers: usize) -> Vec<usize> {
    let block = |first| K::deep(SIDE.min(numbers - first));
    (0..numbers).step_by(SIDE).map(block).collect()
}

static DEPTHS: [usize; MOST_DEPTH] = [SIDE; MOST_DEPTH];
/// The most blocks that one product of tiles runs over.
pub(super) const MOST_DEPTH: usize = 512;

thread_local! {
    static KEPT: RefCell<Vec<Buffer<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Memory for packed blocks. Each thread keeps it for the next time, as many as it had at once: one that waits for others
/// may take up work that needs room too.
pub(super) struct Room(Buffer<u8>);

impl Room {
    /// So many bytes of anything.
    pub(super) fn new(bytes: usize) -> Self {
        let mut room = KEPT.with_borrow_mut(Vec::pop).unwrap_or_else(|| Buffer::zeros(0));
        room.resize(bytes);
        Room(room)
    }

    pub(super) fn elements<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.0.as_mut_slice())
    }

    /// Cut into parts of so many packed blocks.
    pub(super) fn parts<K: Kind, const N: usize>(&mut self, blocks: [usize; N]) -> [&mut [K::Element]; N] {
        let mut rest: &mut [K::Element] = self.elements();
        blocks.map(|blocks| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(blocks * K::PACKED);
            rest = after;
            part
        })
    }

    /// Room for so many packed blocks.
    pub(super) fn of<K: Kind>(blocks: &[usize]) -> Self {
        Room::new(blocks.iter().sum::<usize>() * K::PACKED * size_of::<K::Element>())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let room = std::mem::replace(&mut self.0, Buffer::zeros(0));
        KEPT.with_borrow_mut(|kept| kept.push(room));
    }
}
