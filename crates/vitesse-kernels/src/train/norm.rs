//! Layer norm, forward and backward.
//!
//! With `n = (x − mean) · rstd` and `h = g · gain`, where `g` is the gradient of the result, the gradient of `x` is
//! `rstd · (h − mean(h) − n · mean(h · n))`, that of the gain the sum of `g · n` over rows, that of the shift the sum of `g`.

use rayon::prelude::*;

use super::product::{Finish, sum_parts};
use crate::Isa;
use crate::isa::Kernel;
use crate::simd::Simd;

/// Rows that one thread takes at a time.
const ROWS: usize = 64;

/// Mean and reciprocal deviation, `1 / √(variance + eps)`, of a row.
#[inline(always)]
pub(super) fn row_stats<S: Simd>(x: &[f32], eps: f32) -> [f32; 2] {
    let count = x.len() as f32;
    let mean = fold::<S>(x, x, |x, _, sum| S::add(sum, x)) / count;
    let m = S::splat(mean);
    let square = fold::<S>(x, x, |x, _, sum| {
        let d = S::sub(x, m);
        S::mul_add(d, d, sum)
    });
    // The last numbers of a row are padded with zeros, each of which counted as (0 − mean)².
    let padding = (x.len().next_multiple_of(S::LANES) - x.len()) as f32 * mean * mean;
    [mean, 1.0 / ((square - padding).max(0.0) / count + eps).sqrt()]
}

/// The sum of `f(x, y, sum)` over two rows of one length, by vectors; past the end both are zero.
#[inline(always)]
pub(super) fn fold<S: Simd>(x: &[f32], y: &[f32], f: impl Fn(S::F, S::F, S::F) -> S::F) -> f32 {
    let mut sums = [S::splat(0.0); 2];
    let (mut xs, mut ys) = (x.chunks_exact(2 * S::LANES), y.chunks_exact(2 * S::LANES));
    for (x, y) in xs.by_ref().zip(ys.by_ref()) {
        sums[0] = f(S::load(x), S::load(y), sums[0]);
        sums[1] = f(S::load(&x[S::LANES..]), S::load(&y[S::LANES..]), sums[1]);
    }
    let (x, y) = (xs.remainder(), ys.remainder());
    for (x, y) in x.chunks(S::LANES).zip(y.chunks(S::LANES)) {
        let mut room = [[0f32; 16]; 2];
        room[0][..x.len()].copy_from_slice(x);
        room[1][..y.len()].copy_from_slice(y);
        sums[0] = f(S::load(&room[0]), S::load(&room[1]), sums[0]);
    }
    S::sum(S::add(sums[0], sums[1]))
}

/// Turns rows of gradients of a norm's result into those of its input; the parts are the sums for gain and shift.
pub(super) struct NormBackward<'a> {
    /// The norm's input, as many columns as the gain has numbers.
    pub(super) x: &'a [f32],
    pub(super) gain: &'a [f32],
    pub(super) eps: f32,
}

impl Finish for NormBackward<'_> {
    fn parts(&self) -> usize {
        2 * self.gain.len()
    }

    #[inline(always)]
    fn rows<S: Simd>(&self, first: usize, rows: &mut [f32], part: &mut [f32]) {
        let dim = self.gain.len();
        let (gains, shifts) = part.split_at_mut(dim);
        let mut h = vec![0f32; dim];
        let mut n = vec![0f32; dim];
        for (i, grad) in rows.chunks_exact_mut(dim).enumerate() {
            let row = first + i;
            let x = &self.x[row * dim..(row + 1) * dim];
            let [mean, rstd] = row_stats::<S>(x, self.eps);
            let (m, r) = (S::splat(mean), S::splat(rstd));
            zip::<S>(&mut n, x, x, |_, x, _| S::mul(S::sub(x, m), r));
            zip::<S>(gains, grad, &n, |sum, grad, n| S::mul_add(grad, n, sum));
            zip::<S>(shifts, grad, &n, |sum, grad, _| S::add(sum, grad));
            zip::<S>(&mut h, grad, self.gain, |_, grad, gain| S::mul(grad, gain));
            let count = dim as f32;
            let mean_h = S::splat(fold::<S>(&h, &h, |h, _, sum| S::add(sum, h)) / count);
            let mean_hn = S::splat(fold::<S>(&h, &n, |h, n, sum| S::mul_add(h, n, sum)) / count);
            zip::<S>(grad, &h, &n, |_, h, n| {
                let rest = S::sub(S::sub(h, mean_h), S::mul(n, mean_hn));
                S::mul(rest, r)
            });
        }
    }
}

/// `to = f(to, x, y)` for rows of one length.
#[inline(always)]
fn zip<S: Simd>(to: &mut [f32], x: &[f32], y: &[f32], f: impl Fn(S::F, S::F, S::F) -> S::F) {
    let mut wholes = to.chunks_exact_mut(S::LANES);
    let (mut xs, mut ys) = (x.chunks_exact(S::LANES), y.chunks_exact(S::LANES));
    for ((to, x), y) in wholes.by_ref().zip(xs.by_ref()).zip(ys.by_ref()) {
        S::store(f(S::load(to), S::load(x), S::load(y)), to);
    }
    let to = wholes.into_remainder();
    let mut room = [[0f32; 16]; 3];
    room[0][..to.len()].copy_from_slice(to);
    room[1][..to.len()].copy_from_slice(xs.remainder());
    room[2][..to.len()].copy_from_slice(ys.remainder());
    let value = f(S::load(&room[0]), S::load(&room[1]), S::load(&room[2]));
    S::store(value, &mut room[0]);
    to.copy_from_slice(&room[0][..to.len()]);
}

/// `(x − mean) / √(variance + eps) · gain + shift` for each row of as many numbers as `gain` has.
///
/// # Panics
/// Where shapes do not fit.
pub fn layer_norm(isa: Isa, x: &[f32], gain: &[f32], shift: &[f32], eps: f32) -> Vec<f32> {
    struct Job<'a>(&'a mut [f32], &'a [f32], &'a [f32], f32);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Job(rows, gain, shift, eps) = self;
            for row in rows.chunks_exact_mut(gain.len()) {
                let [mean, rstd] = row_stats::<S>(row, eps).map(S::splat);
                zip::<S>(row, gain, shift, |x, gain, shift| {
                    S::mul_add(S::mul(S::sub(x, mean), rstd), gain, shift)
                });
            }
        }
    }
    let dim = gain.len();
    assert!(dim > 0 && shift.len() == dim && x.len().is_multiple_of(dim));
    let mut out = x.to_vec();
    out.par_chunks_mut(ROWS * dim)
        .for_each(|rows| isa.run(Job(rows, gain, shift, eps)));
    out
}

/// The gradients of a layer norm: those that were wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NormGradients {
    /// As `x`.
    pub input: Option<Vec<f32>>,
    /// `[dim]`
    pub gain: Option<Vec<f32>>,
    /// `[dim]`
    pub shift: Option<Vec<f32>>,
}

/// The gradients of [`layer_norm`] from that of its result; `wanted` are input, gain and shift.
///
/// # Panics
/// Where shapes do not fit.
pub fn layer_norm_backward(
    isa: Isa,
    x: &[f32],
    gain: &[f32],
    eps: f32,
    grad: &[f32],
    wanted: [bool; 3],
) -> NormGradients {
    struct Job<'a>(NormBackward<'a>, usize, &'a mut [f32], &'a mut [f32]);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            self.0.rows::<S>(self.1, self.2, self.3);
        }
    }
    let dim = gain.len();
    assert!(dim > 0 && x.len().is_multiple_of(dim) && x.len() == grad.len());
    let mut input = grad.to_vec();
    let parts: Vec<Vec<f32>> = input
        .par_chunks_mut(ROWS * dim)
        .enumerate()
        .map(|(i, rows)| {
            let mut part = vec![0f32; 2 * dim];
            isa.run(Job(NormBackward { x, gain, eps }, i * ROWS, rows, &mut part));
            part
        })
        .collect();
    NormGradients {
        input: wanted[0].then_some(input),
        gain: wanted[1].then(|| sum_parts(&parts, 0..dim)),
        shift: wanted[2].then(|| sum_parts(&parts, dim..2 * dim)),
    }
}
