//! Softmax attention, forward and backward, without its maps in memory.
//!
//! Forward, 32 queries at a time: products with all keys, softmax over the whole row, product with the values. What is
//! kept is the log of each row's sum of exponentials, `l`.
//!
//! Backward, 32 keys at a time, so that each product finds its operand the right way round: with logits `s`, result `o`,
//! its gradient `g` and `d = Σ g·o` for each query,
//!
//! ```text
//! pᵀ = exp(sᵀ − l)    rᵀ = scale · pᵀ ∘ (v·gᵀ − d)    gradients: v: pᵀ·g    k: rᵀ·q    qᵀ: kᵀ·rᵀ
//! ```

mod mixed;
mod terms;

use std::mem::MaybeUninit;

use rayon::prelude::*;

pub use self::mixed::{MOST_BUCKETS, MixedAttention, MixedGradients, Mixing, MixingGradients, Positions};
pub use self::terms::Terms;
use self::terms::{Added, Padded};
use super::blocks::{Block, Full, Half, Kind, Matrix, Room, SIDE, Split, counted, product};
use super::memory::{put, unwritten, written};
use super::norm::fold;
use super::product::Operand;
use super::{Math, Precision};
use crate::Isa;
use crate::isa::Kernel;
use crate::math::exp;
use crate::simd::Simd;
use crate::tile::Scratch;

/// Softmax attention of all heads, from the fused projection: q, then k, then v, each head after head.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[batch, tokens, Σ(2·qk + v)]`
    pub qkv: &'a [f32],
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Each head's width of queries and keys.
    pub qk: &'a [usize],
    /// Each head's width of values.
    pub v: &'a [usize],
    /// What logits are multiplied by.
    pub scale: f32,
    /// What is added to them.
    pub terms: Option<Terms<'a>>,
}

/// The gradients of an attention's inputs.
#[derive(Debug, Clone)]
pub struct AttentionGradients {
    /// As the fused projection.
    pub qkv: Vec<f32>,
    /// As the biases, where there are some.
    pub bias: Option<Vec<f32>>,
}

/// Where a head's columns begin.
#[derive(Debug, Clone, Copy)]
struct Head {
    index: usize,
    q: usize,
    k: usize,
    v: usize,
    qk_width: usize,
    v_width: usize,
    /// In the result.
    out: usize,
}

impl Attention<'_> {
    fn heads(&self) -> impl Iterator<Item = Head> {
        let all: usize = self.qk.iter().sum();
        let (mut qk, mut v) = (0, 0);
        self.qk
            .iter()
            .zip(self.v)
            .enumerate()
            .map(move |(index, (&qk_width, &v_width))| {
                let head = Head {
                    index,
                    q: qk,
                    k: all + qk,
                    v: 2 * all + v,
                    qk_width,
                    v_width,
                    out: v,
                };
                (qk, v) = (qk + qk_width, v + v_width);
                head
            })
    }

    /// Numbers of a token: in `qkv`, and in the result.
    fn widths(&self) -> (usize, usize) {
        let (qk, v): (usize, usize) = (self.qk.iter().sum(), self.v.iter().sum());
        (2 * qk + v, v)
    }

    fn check(&self) {
        assert!(self.tokens > 0 && self.qk.len() == self.v.len());
        assert!(self.qk.iter().chain(self.v).all(|&width| width > 0));
        assert!(self.qkv.len() == self.batch * self.tokens * self.widths().0);
        if let Some(terms) = &self.terms {
            let map = self.tokens * self.tokens;
            assert!(terms.bias.len() == self.qk.len() * map);
            assert!(terms.mask.len().is_multiple_of(map));
            assert!(terms.mask.is_empty() || self.batch.is_multiple_of(terms.mask.len() / map));
        }
    }

    /// `[batch, tokens, Σv]`, and the log of the sum of exponentials of each row of logits, `[batch, heads, tokens]`.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn forward(&self, math: Math) -> (Vec<f32>, Vec<f32>) {
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.forward_as::<Half>(isa),
            (Precision::F32, Isa::Amx) => self.forward_as::<Split>(math.isa),
            (Precision::F32, isa) => self.forward_as::<Full>(isa),
        }
    }

    /// The gradients of its inputs from that of the result, with what [`Attention::forward`] returned.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward(&self, math: Math, out: &[f32], lse: &[f32], grad: &[f32]) -> AttentionGradients {
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.backward_as::<Half>(isa, out, lse, grad),
            (Precision::F32, Isa::Amx) => self.backward_as::<Split>(math.isa, out, lse, grad),
            (Precision::F32, isa) => self.backward_as::<Full>(isa, out, lse, grad),
        }
    }

    fn forward_as<K: Kind>(&self, isa: Isa) -> (Vec<f32>, Vec<f32>) {
        self.check();
        let (width, out_width) = self.widths();
        let mut out = unwritten(self.batch * self.tokens * out_width);
        let mut lse = vec![0f32; self.batch * self.qk.len() * self.tokens];
        let terms = self.terms.map(|terms| Padded::by_query(&terms, self.tokens));
        out.par_chunks_mut(self.tokens * out_width)
            .zip(lse.par_chunks_mut(self.qk.len() * self.tokens))
            .zip(self.qkv.par_chunks(self.tokens * width))
            .enumerate()
            .for_each(|(sample, ((out, lse), qkv))| {
                for head in self.heads() {
                    let lse = &mut lse[head.index * self.tokens..][..self.tokens];
                    let added = terms.as_ref().map(|terms| terms.of(sample, head.index));
                    isa.run(Forward::<K>(Job::new(self, qkv, head, added), out, lse));
                }
            });
        // SAFETY: the heads' columns are all there are, and every head writes its own of every token.
        (unsafe { written(out) }, lse)
    }

    fn backward_as<K: Kind>(&self, isa: Isa, out: &[f32], lse: &[f32], grad: &[f32]) -> AttentionGradients {
        self.check();
        let (width, out_width) = self.widths();
        let image = self.tokens * out_width;
        assert!(out.len() == self.batch * image && grad.len() == out.len());
        assert!(lse.len() == self.batch * self.qk.len() * self.tokens);
        let terms = self.terms.map(|terms| Padded::by_key(&terms, self.tokens));
        // Without biases every sample is a part of its own.
        let each = terms
            .as_ref()
            .map_or(1, |_| self.batch.div_ceil(MOST_PARTS))
            .max(1);
        let mut all = unwritten(self.qkv.len());
        let sums: Vec<Vec<f32>> = all
            .par_chunks_mut(each * self.tokens * width)
            .zip(self.qkv.par_chunks(each * self.tokens * width))
            .zip(out.par_chunks(each * image).zip(grad.par_chunks(each * image)))
            .zip(lse.par_chunks(each * self.qk.len() * self.tokens))
            .enumerate()
            .map(|(part, (((to, qkv), (out, grad)), lse))| {
                let mut sums = terms.as_ref().map_or(Vec::new(), Padded::no_sums);
                let samples = to
                    .chunks_mut(self.tokens * width)
                    .zip(qkv.chunks(self.tokens * width))
                    .zip(out.chunks(image).zip(grad.chunks(image)))
                    .zip(lse.chunks(self.qk.len() * self.tokens));
                for (i, (((to, qkv), (out, grad)), lse)) in samples.enumerate() {
                    let sample = part * each + i;
                    for head in self.heads() {
                        let added = terms.as_ref().map(|terms| terms.of(sample, head.index));
                        let sums = terms.as_ref().map(|terms| terms.sums_of(&mut sums, head.index));
                        let lse = &lse[head.index * self.tokens..][..self.tokens];
                        isa.run(Backward::<K> {
                            job: Job::new(self, qkv, head, added),
                            out,
                            lse,
                            grad,
                            to: &mut *to,
                            sums: sums.unwrap_or_default(),
                        });
                    }
                }
                sums
            })
            .collect();
        // SAFETY: as above, for queries, keys and values.
        let qkv = unsafe { written(all) };
        let bias = terms.map(|terms| terms.turned_total(&sums));
        AttentionGradients { qkv, bias }
    }
}

/// Into how many parts the samples are cut at most, each of which sums the gradients of biases by itself.
const MOST_PARTS: usize = 16;

/// One head of one image.
struct Job<'a, K> {
    qkv: &'a [f32],
    head: Head,
    tokens: usize,
    width: usize,
    out_width: usize,
    scale: f32,
    added: Option<Added<'a>>,
    kind: std::marker::PhantomData<K>,
}

impl<'a, K: Kind> Job<'a, K> {
    fn new(of: &Attention<'_>, qkv: &'a [f32], head: Head, added: Option<Added<'a>>) -> Self {
        let (width, out_width) = of.widths();
        Job {
            qkv,
            head,
            tokens: of.tokens,
            width,
            out_width,
            scale: of.scale,
            added,
            kind: std::marker::PhantomData,
        }
    }

    /// `width` columns of the fused projection.
    fn columns(&self, first: usize, width: usize) -> Matrix<'a> {
        Matrix::part(self.qkv, self.tokens, self.width, first, width)
    }

    /// Blocks of 32 tokens.
    fn blocks(&self) -> usize {
        self.tokens.div_ceil(SIDE)
    }
}

/// Packs a left operand: tile after tile of 32 rows, each with all its depth.
#[inline(always)]
pub(super) fn pack_left<S: Simd, K: Kind>(of: Operand<'_>, rows: usize, depth: usize, to: &mut [K::Element]) {
    let mut block = Block::ZERO;
    let mut to = to.chunks_exact_mut(K::PACKED);
    for row in (0..rows).step_by(SIDE) {
        for (column, to) in (0..depth).step_by(SIDE).zip(to.by_ref()) {
            of.block::<S>(row, column, &mut block);
            K::left::<S>(&block, to);
        }
    }
}

/// Packs a right operand: panel after panel of 32 columns, each with all its depth.
#[inline(always)]
pub(super) fn pack_right<S: Simd, K: Kind>(
    of: Operand<'_>,
    depth: usize,
    columns: usize,
    to: &mut [K::Element],
) {
    let mut block = Block::ZERO;
    let mut to = to.chunks_exact_mut(K::PACKED);
    for column in (0..columns).step_by(SIDE) {
        for (row, to) in (0..depth).step_by(SIDE).zip(to.by_ref()) {
            of.block::<S>(row, column, &mut block);
            K::right::<S>(&block, to);
        }
    }
}

/// The result, `[tokens, Σv]`, and the logs of sums, `[tokens]`.
struct Forward<'a, K>(Job<'a, K>, &'a mut [MaybeUninit<f32>], &'a mut [f32]);

impl<K: Kind> Kernel for Forward<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Forward(job, out, lse) = self;
        let Job { head, tokens, .. } = job;
        let (n, qk, v) = (
            job.blocks(),
            head.qk_width.div_ceil(SIDE),
            head.v_width.div_ceil(SIDE),
        );
        let sizes = [n * qk, n * qk, n * v, n];
        let [deep, deep_qk] = [tokens, head.qk_width].map(counted::<K>);
        let mut maps = vec![Block::ZERO; n];
        let mut room = Room::of::<K>(&sizes);
        let [queries, keys, values, probs] = room.parts::<K, 4>(sizes);
        pack_left::<S, K>(
            Operand::Upright(job.columns(head.q, head.qk_width)),
            tokens,
            head.qk_width,
            queries,
        );
        pack_right::<S, K>(
            Operand::Transposed(job.columns(head.k, head.qk_width)),
            head.qk_width,
            tokens,
            keys,
        );
        pack_right::<S, K>(
            Operand::Upright(job.columns(head.v, head.v_width)),
            tokens,
            head.v_width,
            values,
        );
        S::begin();
        let mut sums: Scratch<f32> = [[0.0; SIDE]; SIDE];
        for (tile, queries) in queries.chunks_exact(qk * K::PACKED).enumerate() {
            let first = tile * SIDE;
            let rows = SIDE.min(tokens - first);
            for (i, keys) in keys.chunks_exact(qk * K::PACKED).enumerate() {
                let width = SIDE.min(tokens - i * SIDE);
                product::<S, K>(queries, keys, &deep_qk, [rows, width], &mut maps[i]);
            }
            let mut inverse = [0f32; SIDE];
            for row in 0..rows {
                let added = job.added.map(|added| (added, first + row));
                let (most, sum) = softmax::<S>(&mut maps, row, tokens, job.scale, added);
                lse[first + row] = most + sum.ln();
                inverse[row] = 1.0 / sum;
                S::awake();
            }
            for (map, to) in maps.iter().zip(probs.chunks_exact_mut(K::PACKED)) {
                K::left::<S>(map, to);
                S::awake();
            }
            for (panel, values) in values.chunks_exact(n * K::PACKED).enumerate() {
                let width = SIDE.min(head.v_width - panel * SIDE);
                K::tile::<S>(probs, values, &deep, [rows, width], &[], &mut sums);
                for (row, inverse) in inverse[..rows].iter().enumerate() {
                    let at = (first + row) * job.out_width + head.out + panel * SIDE;
                    for (to, sum) in out[at..at + width].iter_mut().zip(&sums[row]) {
                        to.write(sum * inverse);
                    }
                }
            }
        }
        S::end();
    }
}

/// Added from `SIDE − n` on, it leaves the first `n` logits of a block as they are and makes the others −∞.
static EDGE: [f32; 2 * SIDE] = {
    let mut edge = [0.0; 2 * SIDE];
    let mut i = SIDE;
    while i < 2 * SIDE {
        edge[i] = f32::NEG_INFINITY;
        i += 1;
    }
    edge
};

/// Turns a row of products, cut into blocks, into `exp(scale · x + added − most)` with zeros past the last column; returns the
/// greatest logit and the sum. What is added comes with the number of the query.
#[inline(always)]
pub(super) fn softmax<S: Simd>(
    maps: &mut [Block],
    row: usize,
    columns: usize,
    scale: f32,
    added: Option<(Added<'_>, usize)>,
) -> (f32, f32) {
    let factor = S::splat(scale);
    let mut greatest = S::splat(f32::NEG_INFINITY);
    for (i, map) in maps.iter_mut().enumerate() {
        let row = &mut map.0[row];
        let width = columns - i * SIDE;
        for at in (0..SIDE).step_by(S::LANES) {
            let mut logits = S::mul(S::load(&row[at..]), factor);
            if let Some((added, query)) = added {
                logits = added.to::<S>(query, i * SIDE + at, logits);
            }
            if width < SIDE {
                logits = S::add(logits, S::load(&EDGE[SIDE - width + at..]));
            }
            S::store(logits, &mut row[at..]);
            // What is not a number gets lost here, but not below, where it makes the sum so.
            greatest = S::max(greatest, logits);
        }
    }
    let most = S::greatest(greatest);
    let m = S::splat(most);
    let mut sum = S::splat(0.0);
    for map in maps {
        let row = &mut map.0[row];
        for at in (0..SIDE).step_by(S::LANES) {
            let e = exp::<S>(S::sub(S::load(&row[at..]), m));
            sum = S::add(sum, e);
            S::store(e, &mut row[at..]);
        }
    }
    (most, S::sum(sum))
}

struct Backward<'a, K> {
    job: Job<'a, K>,
    /// `[tokens, Σv]`
    out: &'a [f32],
    /// `[tokens]`
    lse: &'a [f32],
    /// As `out`.
    grad: &'a [f32],
    /// As the fused projection.
    to: &'a mut [MaybeUninit<f32>],
    /// To which the gradients of biases are added, a row for each key; empty where there are none.
    sums: &'a mut [f32],
}

impl<K: Kind> Kernel for Backward<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Backward {
            job,
            out,
            lse,
            grad,
            to,
            sums: bias_sums,
        } = self;
        let Job { head, tokens, .. } = job;
        let (n, qk, v) = (
            job.blocks(),
            head.qk_width.div_ceil(SIDE),
            head.v_width.div_ceil(SIDE),
        );
        let (q, k) = (
            job.columns(head.q, head.qk_width),
            job.columns(head.k, head.qk_width),
        );
        let values = job.columns(head.v, head.v_width);
        let g = Matrix::part(grad, tokens, job.out_width, head.out, head.v_width);
        // Past the last query `exp(… − ∞)` is zero, and so is all that follows from it.
        let mut logs = vec![f32::INFINITY; n * SIDE];
        logs[..tokens].copy_from_slice(lse);
        let mut dots = vec![0f32; n * SIDE];
        for (token, dot) in dots[..tokens].iter_mut().enumerate() {
            let at = token * job.out_width + head.out;
            let (out, grad) = (&out[at..at + head.v_width], &grad[at..at + head.v_width]);
            *dot = fold::<S>(out, grad, |out, grad, sum| S::mul_add(out, grad, sum));
        }
        let sizes = [n * qk, n * v, n * qk, n * v, n * v, n * qk, qk * n, n, n, n * n];
        let [deep, deep_qk, deep_v] = [tokens, head.qk_width, head.v_width].map(counted::<K>);
        let mut room = Room::of::<K>(&sizes);
        let [keys, vals, q_t, g_t, g_r, q_r, k_t, probs, slopes, slopes_t] = room.parts::<K, 10>(sizes);
        pack_left::<S, K>(Operand::Upright(k), tokens, head.qk_width, keys);
        pack_left::<S, K>(Operand::Upright(values), tokens, head.v_width, vals);
        pack_right::<S, K>(Operand::Transposed(q), head.qk_width, tokens, q_t);
        pack_right::<S, K>(Operand::Transposed(g), head.v_width, tokens, g_t);
        pack_right::<S, K>(Operand::Upright(g), tokens, head.v_width, g_r);
        pack_right::<S, K>(Operand::Upright(q), tokens, head.qk_width, q_r);
        let mut block = Block::ZERO;
        for (i, to) in k_t.chunks_exact_mut(K::PACKED).enumerate() {
            k.block::<S>(i % n * SIDE, i / n * SIDE, &mut block);
            K::turned::<S>(&block, to);
        }
        S::begin();
        let (mut p, mut r) = (Block::ZERO, Block::ZERO);
        for tile in 0..n {
            let first = tile * SIDE;
            let rows = SIDE.min(tokens - first);
            let keys = &keys[tile * qk * K::PACKED..][..qk * K::PACKED];
            let vals = &vals[tile * v * K::PACKED..][..v * K::PACKED];
            for i in 0..n {
                let size = [rows, SIDE.min(tokens - i * SIDE)];
                K::tile::<S>(keys, &q_t[i * qk * K::PACKED..], &deep_qk, size, &[], &mut p.0);
                K::tile::<S>(vals, &g_t[i * v * K::PACKED..], &deep_v, size, &[], &mut r.0);
                let (logs, dots) = (&logs[i * SIDE..][..SIDE], &dots[i * SIDE..][..SIDE]);
                let added = job.added.map(|added| (added, first, i * SIDE, &mut *bias_sums));
                map_gradient::<S>(&mut p, &mut r, rows, logs, dots, job.scale, added);
                S::awake();
                let at = i * K::PACKED..(i + 1) * K::PACKED;
                K::left::<S>(&p, &mut probs[at.clone()]);
                S::awake();
                K::left::<S>(&r, &mut slopes[at]);
                S::awake();
                K::right::<S>(&r, &mut slopes_t[(i * n + tile) * K::PACKED..][..K::PACKED]);
            }
            for (left, right, panels, width, column) in [
                (&*probs, &*g_r, v, head.v_width, head.v),
                (&*slopes, &*q_r, qk, head.qk_width, head.k),
            ] {
                for panel in 0..panels {
                    let wide = SIDE.min(width - panel * SIDE);
                    K::tile::<S>(
                        left,
                        &right[panel * n * K::PACKED..],
                        &deep,
                        [rows, wide],
                        &[],
                        &mut p.0,
                    );
                    for (row, sums) in p.0[..rows].iter().enumerate() {
                        let at = (first + row) * job.width + column + panel * SIDE;
                        put(sums, &mut to[at..at + wide]);
                    }
                }
            }
        }
        for panel in 0..qk {
            let wide = SIDE.min(head.qk_width - panel * SIDE);
            let left = &k_t[panel * n * K::PACKED..][..n * K::PACKED];
            for (i, right) in slopes_t.chunks_exact(n * K::PACKED).enumerate() {
                let count = SIDE.min(tokens - i * SIDE);
                K::tile_turned::<S>(left, right, &deep, [wide, count], &[], &mut p.0);
                p.transpose::<S>(&mut r);
                for (token, row) in r.0[..count].iter().enumerate() {
                    let at = (i * SIDE + token) * job.width + head.q + panel * SIDE;
                    put(row, &mut to[at..at + wide]);
                }
            }
        }
        S::end();
    }
}

/// From products of keys and queries in `p` and of values and gradients in `r`, the probabilities in `p` and the
/// gradients of the products in `r`: a row for each key, a column for each query. What is added to the logits comes with the
/// first key, the first query, and the sums of its gradients.
#[inline(always)]
fn map_gradient<S: Simd>(
    p: &mut Block,
    r: &mut Block,
    rows: usize,
    logs: &[f32],
    dots: &[f32],
    scale: f32,
    mut added: Option<(Added<'_>, usize, usize, &mut [f32])>,
) {
    let factor = S::splat(scale);
    for (row, (p, r)) in p.0[..rows].iter_mut().zip(&mut r.0[..rows]).enumerate() {
        for at in (0..SIDE).step_by(S::LANES) {
            let mut logit = S::mul(S::load(&p[at..]), factor);
            if let Some((added, key, query, _)) = &added {
                logit = added.to::<S>(key + row, query + at, logit);
            }
            let probability = exp::<S>(S::sub(logit, S::load(&logs[at..])));
            S::store(probability, &mut p[at..]);
            let slope = S::mul(probability, S::sub(S::load(&r[at..]), S::load(&dots[at..])));
            if let Some((added, key, query, sums)) = &mut added {
                let sums = &mut sums[added.at(*key + row, *query + at)..];
                S::store(S::add(S::load(sums), slope), sums);
            }
            S::store(S::mul(slope, factor), &mut r[at..]);
        }
    }
    for block in [p, r] {
        block.0[rows..].fill([0.0; SIDE]);
    }
}
