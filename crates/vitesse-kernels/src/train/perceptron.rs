//! The perceptron of a transformer's block in one piece: `x + factor · (gelu(norm(x) · W1ᵀ + b1) · W2ᵀ + b2)`.
//!
//! Work goes by groups of rows. What a group has in between, four times as wide as `x`, stays in the second cache and is
//! never stored: the backward pass keeps nothing but `x` and computes the hidden values again. For one group of rows, with
//! `n = norm(x)`, `h = n·W1ᵀ + b1` and `s = factor · grad`, it goes 32 hidden columns at a time:
//!
//! ```text
//! g = gelu(h)    d = (s·W2) ∘ gelu'(h)    gradients: W2: sᵀ·g    W1ᵀ: nᵀ·d    n: d·W1
//! ```
//!
//! Sums over rows have few parts, cut by the shape alone, each of which is one thread's; see
//! [`over_rows`](super::over_rows).

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::blocks::{AREA, Block, Change, Full, Half, Kind, Matrix, Room, SIDE, Split, padded, share, whole};
use super::linear::Forward as Finished;
use super::memory::{unwritten, written};
use super::norm::NormBackward;
use super::over_rows::{self, gather, parts};
use super::product::{
    Finish, Operand, Plain, add_scaled, column_sums, finish_row, group, pack_right, sum_parts,
};
use super::{Math, Precision};
use crate::Isa;
use crate::isa::Kernel;
use crate::math::{Gelu, gelu, gelu_and_slope};
use crate::simd::Simd;

/// `y = x + factor[sample] · (gelu(norm(x) · W1ᵀ + b1) · W2ᵀ + b2)`
#[derive(Debug, Clone, Copy)]
pub struct Perceptron<'a> {
    /// `[rows, dim]`
    pub input: &'a [f32],
    /// What the normalised input is multiplied by, `[dim]`.
    pub gain: &'a [f32],
    /// What is added to it, `[dim]`.
    pub shift: &'a [f32],
    /// What is added to the variance.
    pub eps: f32,
    /// `[hidden, dim]`
    pub weight1: &'a [f32],
    /// `[hidden]`
    pub bias1: &'a [f32],
    /// The form of the GELU.
    pub gelu: Gelu,
    /// `[dim, hidden]`
    pub weight2: &'a [f32],
    /// `[dim]`
    pub bias2: &'a [f32],
    /// `[samples]`, of which the number of rows is a multiple: drop path.
    pub factors: Option<&'a [f32]>,
}

/// Which gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // As in `Perceptron`.
pub struct PerceptronWanted {
    pub input: bool,
    pub gain: bool,
    pub shift: bool,
    pub weight1: bool,
    pub bias1: bool,
    pub weight2: bool,
    pub bias2: bool,
}

impl PerceptronWanted {
    /// All.
    pub const ALL: PerceptronWanted = PerceptronWanted {
        input: true,
        gain: true,
        shift: true,
        weight1: true,
        bias1: true,
        weight2: true,
        bias2: true,
    };

    /// Whether gradients go through the first map, to its input.
    fn normed(&self) -> bool {
        self.input || self.gain || self.shift
    }

    /// Whether they go through the second one, to the hidden values.
    fn hidden(&self) -> bool {
        self.normed() || self.weight1 || self.bias1
    }
}

/// The gradients of a perceptron, those that were wanted, in the shapes of [`Perceptron`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PerceptronGradients {
    /// Through the perceptron and past it.
    pub input: Option<Vec<f32>>,
    /// Of the norm's gain.
    pub gain: Option<Vec<f32>>,
    /// Of the norm's shift.
    pub shift: Option<Vec<f32>>,
    /// Of the first map's weights.
    pub weight1: Option<Vec<f32>>,
    /// Of the first map's bias.
    pub bias1: Option<Vec<f32>>,
    /// Of the second map's weights.
    pub weight2: Option<Vec<f32>>,
    /// Of the second map's bias.
    pub bias2: Option<Vec<f32>>,
}

/// The most hidden panels that are packed at a time.
const DEEP: usize = 12;

/// The most blocks of rows in a group of the backward pass: each group is a pass over all weights and sums, but what it
/// packs has to stay near the second cache.
const fn tall<K: Kind>() -> usize {
    if K::TERMS > 1 { 4 } else { 8 }
}

impl Perceptron<'_> {
    fn dim(&self) -> usize {
        self.gain.len()
    }

    fn hidden(&self) -> usize {
        self.bias1.len()
    }

    fn rows(&self) -> usize {
        self.input.len() / self.dim()
    }

    /// Blocks in a row of the input, and of the hidden values.
    fn blocks(&self) -> [usize; 2] {
        [self.dim().div_ceil(SIDE), self.hidden().div_ceil(SIDE)]
    }

    /// The factors, and how many rows each is for.
    fn factors(&self) -> Option<(&[f32], usize)> {
        self.factors.map(|factors| {
            assert!(!factors.is_empty() && self.rows().is_multiple_of(factors.len()));
            (factors, self.rows() / factors.len())
        })
    }

    fn check(&self) {
        let (dim, hidden) = (self.dim(), self.hidden());
        assert!(dim > 0 && hidden > 0 && self.shift.len() == dim && self.bias2.len() == dim);
        assert!(!self.input.is_empty() && self.input.len().is_multiple_of(dim));
        assert!(self.weight1.len() == hidden * dim && self.weight2.len() == hidden * dim);
    }

    fn weights(&self) -> [Matrix<'_>; 2] {
        [
            Matrix::new(self.weight1, self.dim()),
            Matrix::new(self.weight2, self.hidden()),
        ]
    }

    fn normed(&self) -> Matrix<'_> {
        Matrix::new(self.input, self.dim()).with(Change::Norm {
            gain: self.gain,
            shift: self.shift,
            eps: self.eps,
            stats: &[],
            first: 0,
        })
    }

    /// `[rows, dim]`
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn forward(&self, math: Math) -> Vec<f32> {
        self.check();
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.forward_as::<Half>(isa),
            (Precision::F32, Isa::Amx) => self.forward_as::<Split>(math.isa),
            (Precision::F32, isa) => self.forward_as::<Full>(isa),
        }
    }

    fn forward_as<K: Kind>(&self, isa: Isa) -> Vec<f32> {
        let [wide, hidden] = self.blocks();
        let mut room = Room::of::<K>(&[2 * wide * hidden]);
        let [first, second] = room.parts::<K, 2>([wide * hidden; 2]);
        let [weight1, weight2] = self.weights();
        pack_right::<K>(isa, Operand::Transposed(weight1), 0, wide, first);
        pack_right::<K>(isa, Operand::Transposed(weight2), 0, hidden, second);
        let (first, second) = (&*first, &*second);
        let group = group(self.rows());
        let mut out = unwritten(self.input.len());
        out.par_chunks_mut(group * self.dim())
            .enumerate()
            .for_each(|(i, out)| {
                isa.run(Forward::<K> {
                    of: self,
                    row: i * group,
                    first,
                    second,
                    out,
                });
            });
        // SAFETY: every group writes all of its rows.
        unsafe { written(out) }
    }

    /// The gradients that are wanted, from that of the result, `[rows, dim]`.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward(&self, math: Math, grad: &[f32], wanted: PerceptronWanted) -> PerceptronGradients {
        self.check();
        assert!(grad.len() == self.input.len());
        if !wanted.hidden() && !wanted.weight2 {
            let bias = || column_sums(math.isa, grad, self.dim(), self.factors());
            return PerceptronGradients {
                bias2: wanted.bias2.then(bias),
                ..PerceptronGradients::default()
            };
        }
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.backward_as::<Half>(isa, grad, wanted),
            (Precision::F32, Isa::Amx) => self.backward_as::<Split>(math.isa, grad, wanted),
            (Precision::F32, isa) => self.backward_as::<Full>(isa, grad, wanted),
        }
    }

    fn backward_as<K: Kind>(&self, isa: Isa, grad: &[f32], wanted: PerceptronWanted) -> PerceptronGradients {
        let (dim, [wide, hidden]) = (self.dim(), self.blocks());
        let mut room = Room::of::<K>(&[3 * wide * hidden]);
        let [forth, second, back] = room.parts::<K, 3>([wide * hidden; 3]);
        let [weight1, weight2] = self.weights();
        pack_right::<K>(isa, Operand::Transposed(weight1), 0, wide, forth);
        if wanted.hidden() {
            pack_right::<K>(isa, Operand::Upright(weight2), 0, wide, second);
        }
        if wanted.normed() {
            pack_right::<K>(isa, Operand::Upright(weight1), 0, hidden, back);
        }
        let weights: [&[K::Element]; 3] = [forth, second, back];
        let change = self
            .factors()
            .map_or(Change::Nothing, |(factors, each)| Change::Factors(factors, each));

        let blocks = self.rows().div_ceil(SIDE);
        let parts = parts(blocks, tall::<K>(), 2 * wide * hidden * AREA * size_of::<f32>());
        let mut input = unwritten(if wanted.normed() { grad.len() } else { 0 });
        let mut rest = input.as_mut_slice();
        let jobs: Vec<(Range<usize>, &mut [MaybeUninit<f32>])> = (0..parts)
            .map(|part| {
                let range = blocks * part / parts..blocks * (part + 1) / parts;
                let end = self.rows().min(range.end * SIDE) * dim;
                let len = (end - range.start * SIDE * dim).min(rest.len());
                let (out, after) = std::mem::take(&mut rest).split_at_mut(len);
                rest = after;
                (range, out)
            })
            .collect();
        let found: Vec<Sums> = jobs
            .into_par_iter()
            .map(|(blocks, out)| {
                let mut sums = Sums::new(wide, hidden, dim, wanted);
                isa.run(Backward::<K> {
                    of: self,
                    normed: self.normed(),
                    grad: Matrix::new(grad, dim).with(change),
                    weights,
                    wanted,
                    blocks,
                    out,
                    sums: &mut sums,
                    kind: PhantomData,
                });
                sums
            })
            .collect();

        let mut each: [Vec<Vec<f32>>; 5] = Default::default();
        for part in found {
            let part = [part.first, part.second, part.bias1, part.bias2, part.norm];
            each.iter_mut().zip(part).for_each(|(all, part)| all.push(part));
        }
        let [first, second, bias1, bias2, norm] = each;
        let shape = [dim, self.hidden()];
        PerceptronGradients {
            // SAFETY: the parts are all rows, and each writes its own.
            input: wanted.input.then(|| unsafe { written(input) }),
            gain: wanted.gain.then(|| sum_parts(&norm, 0..dim)),
            shift: wanted.shift.then(|| sum_parts(&norm, dim..2 * dim)),
            weight1: wanted.weight1.then(|| gather(isa, &first, shape, true)),
            bias1: wanted.bias1.then(|| sum_parts(&bias1, 0..self.hidden())),
            weight2: wanted.weight2.then(|| gather(isa, &second, shape, false)),
            bias2: wanted.bias2.then(|| sum_parts(&bias2, 0..dim)),
        }
    }
}

/// Some rows of the result.
struct Forward<'a, K: Kind> {
    of: &'a Perceptron<'a>,
    row: usize,
    first: &'a [K::Element],
    second: &'a [K::Element],
    out: &'a mut [MaybeUninit<f32>],
}

impl<K: Kind> Kernel for Forward<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (dim, [wide, all]) = (self.of.dim(), self.of.blocks());
        let rows = self.out.len() / dim;
        let tiles = rows.div_ceil(SIDE);
        // SAFETY: sums are written before they are read.
        let out = unsafe { &mut *(std::ptr::from_mut(self.out) as *mut [f32]) };
        let finish = Finished {
            bias: Some(self.of.bias2),
            factors: self.of.factors(),
            residual: Some(self.of.input),
            outputs: dim,
        };
        let sizes = [tiles * wide, tiles * DEEP.min(all)];
        let mut room = Room::of::<K>(&sizes);
        let [normed, hidden] = room.parts::<K, 2>(sizes);
        let mut stats = Vec::new();
        let matrix = self.of.normed().known::<S>(self.row..self.row + rows, &mut stats);
        let mut block = Block::ZERO;
        for (i, to) in normed.chunks_exact_mut(K::PACKED).enumerate() {
            matrix.block::<S>(self.row + i / wide * SIDE, i % wide * SIDE, &mut block);
            K::left::<S>(&block, to);
        }
        let depth = wide * K::PACKED;
        S::begin();
        for start in (0..all).step_by(DEEP) {
            let deep = DEEP.min(all - start);
            for panel in 0..deep {
                let (right, next) = self.first[(start + panel) * depth..].split_at(depth);
                let mut room = [0f32; SIDE];
                let bias = padded(self.of.bias1, (start + panel) * SIDE, &mut room);
                for (i, left) in normed.chunks_exact(depth).enumerate() {
                    let count = SIDE.min(rows - i * SIDE);
                    let next = share::<K>(next, i, wide);
                    K::tile::<S>(left, right, whole(wide), [count, SIDE], next, &mut block.0);
                    for row in &mut block.0[..count] {
                        for at in (0..SIDE).step_by(S::LANES) {
                            let h = S::add(S::load(&row[at..]), S::load(&bias[at..]));
                            S::store(gelu::<S>(self.of.gelu, h), &mut row[at..]);
                        }
                    }
                    S::awake();
                    let to = (i * deep + panel) * K::PACKED;
                    K::left::<S>(&block, &mut hidden[to..to + K::PACKED]);
                }
            }
            let finish = (start + deep == all).then_some(&finish);
            for panel in 0..wide {
                let right = &self.second[(panel * all + start) * K::PACKED..];
                let next = right.get(all * K::PACKED..).unwrap_or_default();
                let width = SIDE.min(dim - panel * SIDE);
                for (i, left) in hidden.chunks_exact(deep * K::PACKED).take(tiles).enumerate() {
                    let count = SIDE.min(rows - i * SIDE);
                    let next = share::<K>(next, i, deep);
                    K::tile::<S>(left, right, whole(deep), [count, SIDE], next, &mut block.0);
                    for (r, sums) in block.0[..count].iter_mut().enumerate() {
                        let (row, column) = (i * SIDE + r, panel * SIDE);
                        let to = &mut out[row * dim + column..][..width];
                        finish_row::<S, _>(finish, start > 0, self.row + row, column, sums, to);
                    }
                }
            }
        }
        S::end();
    }
}

/// What some rows add to the gradients that are sums over rows. Those of weights are blocks, `[hidden][wide]`; empty, but
/// with room.
struct Sums {
    /// Of the first map's weights, transposed.
    first: Vec<f32>,
    second: Vec<f32>,
    bias1: Vec<f32>,
    bias2: Vec<f32>,
    /// Gain and shift.
    norm: Vec<f32>,
}

impl Sums {
    fn new(wide: usize, hidden: usize, dim: usize, wanted: PerceptronWanted) -> Self {
        let blocks = |wanted: bool| Vec::with_capacity(if wanted { wide * hidden * AREA } else { 0 });
        Sums {
            first: blocks(wanted.weight1),
            second: blocks(wanted.weight2),
            bias1: vec![0.0; hidden * SIDE],
            bias2: vec![0.0; wide * SIDE],
            norm: vec![0.0; 2 * dim],
        }
    }
}

/// The gradients from some blocks of rows.
struct Backward<'a, K: Kind> {
    of: &'a Perceptron<'a>,
    normed: Matrix<'a>,
    /// With its factors.
    grad: Matrix<'a>,
    /// `W1ᵀ`, `W2` and `W1` as right operands.
    weights: [&'a [K::Element]; 3],
    wanted: PerceptronWanted,
    blocks: Range<usize>,
    /// These rows of the input's gradient.
    out: &'a mut [MaybeUninit<f32>],
    sums: &'a mut Sums,
    kind: PhantomData<K>,
}

/// Packed operands of a group of rows.
struct Packed<'a, K: Kind> {
    /// `n` and `s` as left operands, `[tile][wide]`.
    normed: &'a mut [K::Element],
    grad: &'a mut [K::Element],
    /// `nᵀ` and `sᵀ`, turned, `[wide][tile]`.
    normed_turned: &'a mut [K::Element],
    grad_turned: &'a mut [K::Element],
    /// 32 columns of `g` and `d` as right operands, `[tile]`.
    active: &'a mut [K::Element],
    slopes: &'a mut [K::Element],
    /// `d` as left operand, `[tile][deep]`.
    slopes_left: &'a mut [K::Element],
}

impl<K: Kind> Kernel for Backward<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let [wide, all] = self.of.blocks();
        let count = self.blocks.len();
        let groups = count.div_ceil(tall::<K>());
        let mut stats = Vec::new();
        for group in 0..groups {
            let first = self.blocks.start + count * group / groups;
            let tiles = self.blocks.start + count * (group + 1) / groups - first;
            let (each, deep) = (tiles * wide, tiles * DEEP.min(all));
            let sizes = [each, each, each, each, tiles, tiles, deep];
            let mut room = Room::of::<K>(&sizes);
            let [
                normed,
                grad,
                normed_turned,
                grad_turned,
                active,
                slopes,
                slopes_left,
            ] = room.parts::<K, 7>(sizes);
            let packed = Packed {
                normed,
                grad,
                normed_turned,
                grad_turned,
                active,
                slopes,
                slopes_left,
            };
            self.rows::<S>(first * SIDE, tiles, packed, &mut stats);
        }
    }
}

impl<K: Kind> Backward<'_, K> {
    /// A group of rows: `tiles` blocks from the row `first` on.
    #[inline(always)]
    fn rows<S: Simd>(
        &mut self,
        first: usize,
        tiles: usize,
        packed: Packed<'_, K>,
        stats: &mut Vec<[f32; 2]>,
    ) {
        let (dim, [wide, all]) = (self.of.dim(), self.of.blocks());
        let depth = wide * K::PACKED;
        let rows = first..self.normed.rows.min(first + tiles * SIDE);
        let count = |tile: usize| SIDE.min(rows.len() - tile * SIDE);
        let (mut h, mut d, mut sums) = (Block::ZERO, Block::ZERO, Block::ZERO);

        let normed = self.normed.known::<S>(rows.clone(), stats);
        for (i, (to, to_grad)) in packed
            .normed
            .chunks_exact_mut(K::PACKED)
            .zip(packed.grad.chunks_exact_mut(K::PACKED))
            .enumerate()
        {
            let (tile, column) = (i / wide, i % wide);
            let turned = (column * tiles + tile) * K::PACKED;
            let turned = turned..turned + K::PACKED;
            normed.block::<S>(first + tile * SIDE, column * SIDE, &mut h);
            K::left::<S>(&h, to);
            if self.wanted.weight1 {
                K::turned::<S>(&h, &mut packed.normed_turned[turned.clone()]);
            }
            self.grad.block::<S>(first + tile * SIDE, column * SIDE, &mut h);
            K::left::<S>(&h, to_grad);
            if self.wanted.bias2 {
                h.add_columns::<S>(&mut self.sums.bias2[column * SIDE..][..SIDE]);
            }
            if self.wanted.weight2 {
                K::turned::<S>(&h, &mut packed.grad_turned[turned]);
            }
        }

        // SAFETY: sums are written before they are read, and whole rows before the norm's turn.
        let out = unsafe { &mut *(std::ptr::from_mut(&mut *self.out) as *mut [f32]) };
        let begin = (first - self.blocks.start * SIDE) * dim;
        let out = out.get_mut(begin..begin + rows.len() * dim).unwrap_or_default();
        S::begin();
        for start in (0..all).step_by(DEEP) {
            let deep = DEEP.min(all - start);
            for panel in start..start + deep {
                let [(forth, next_forth), (second, next_second)] =
                    [self.weights[0], self.weights[1]].map(|of| of[panel * depth..].split_at(depth));
                let mut room = [0f32; SIDE];
                let bias = padded(self.of.bias1, panel * SIDE, &mut room);
                for tile in 0..tiles {
                    let left = tile * depth..(tile + 1) * depth;
                    let count = count(tile);
                    let size = [count, SIDE];
                    let next = share::<K>(next_forth, tile, wide);
                    K::tile::<S>(
                        &packed.normed[left.clone()],
                        forth,
                        whole(wide),
                        size,
                        next,
                        &mut h.0,
                    );
                    if self.wanted.hidden() {
                        let next = share::<K>(next_second, tile, wide);
                        K::tile::<S>(&packed.grad[left], second, whole(wide), size, next, &mut d.0);
                    }
                    let of_bias = &mut self.sums.bias1[panel * SIDE..][..SIDE];
                    slopes::<S>(self.of.gelu, [&mut h, &mut d], count, bias, of_bias);
                    S::awake();
                    let at = tile * K::PACKED..(tile + 1) * K::PACKED;
                    if self.wanted.weight2 {
                        K::right::<S>(&h, &mut packed.active[at.clone()]);
                        S::awake();
                    }
                    if self.wanted.weight1 {
                        K::right::<S>(&d, &mut packed.slopes[at]);
                        S::awake();
                    }
                    if self.wanted.normed() {
                        let at = (tile * deep + panel - start) * K::PACKED;
                        K::left::<S>(&d, &mut packed.slopes_left[at..at + K::PACKED]);
                    }
                }
                for (wanted, left, right, total) in [
                    (
                        self.wanted.weight2,
                        &*packed.grad_turned,
                        &*packed.active,
                        &mut self.sums.second,
                    ),
                    (
                        self.wanted.weight1,
                        &*packed.normed_turned,
                        &*packed.slopes,
                        &mut self.sums.first,
                    ),
                ] {
                    if !wanted {
                        continue;
                    }
                    for (column, left) in left.chunks_exact(tiles * K::PACKED).enumerate() {
                        over_rows::add::<S, K>(left, right, tiles, total, panel * wide + column, &mut sums);
                    }
                }
            }
            if !self.wanted.normed() {
                continue;
            }
            for panel in 0..wide {
                let right = &self.weights[2][(panel * all + start) * K::PACKED..];
                let next = right.get(all * K::PACKED..).unwrap_or_default();
                let width = SIDE.min(dim - panel * SIDE);
                for tile in 0..tiles {
                    let left = &packed.slopes_left[tile * deep * K::PACKED..][..deep * K::PACKED];
                    let next = share::<K>(next, tile, deep);
                    K::tile::<S>(left, right, whole(deep), [count(tile), SIDE], next, &mut sums.0);
                    for (r, sums) in sums.0[..count(tile)].iter_mut().enumerate() {
                        let (row, column) = (tile * SIDE + r, panel * SIDE);
                        let to = &mut out[row * dim + column..][..width];
                        finish_row::<S, Plain>(None, start > 0, row, column, sums, to);
                    }
                }
            }
        }
        S::end();
        if self.wanted.normed() {
            let norm = NormBackward {
                x: self.of.input,
                gain: self.of.gain,
                eps: self.of.eps,
            };
            norm.rows::<S>(first, out, &mut self.sums.norm);
            let past = &self.grad.data[rows.start * dim..rows.end * dim];
            add_scaled::<S>(out, past, 1.0);
        }
    }
}

/// From products in `h` and `d` of which the first lacks its bias: `gelu(h)` in `h`, `d ∘ gelu'(h)` in `d`, and the sums of
/// the latter's columns added to `sums`. Rows from `rows` on become zeros.
#[inline(always)]
fn slopes<S: Simd>(form: Gelu, [h, d]: [&mut Block; 2], rows: usize, bias: &[f32], sums: &mut [f32]) {
    for at in (0..SIDE).step_by(S::LANES) {
        let bias = S::load(&bias[at..]);
        let mut sum = S::load(&sums[at..]);
        for (h, d) in h.0[..rows].iter_mut().zip(&mut d.0[..rows]) {
            let [active, slope] = gelu_and_slope::<S>(form, S::add(S::load(&h[at..]), bias));
            let slope = S::mul(S::load(&d[at..]), slope);
            sum = S::add(sum, slope);
            S::store(active, &mut h[at..]);
            S::store(slope, &mut d[at..]);
        }
        S::store(sum, &mut sums[at..]);
    }
    for block in [h, d] {
        block.0[rows..].fill([0.0; SIDE]);
    }
}
