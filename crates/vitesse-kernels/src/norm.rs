//! Layer norm and the scaling of rows to 8 bits.

use std::ops::Range;

use crate::isa::{Isa, Kernel};
use crate::panels::Panels;
use crate::product::Quantized;
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::COLUMNS;

/// Gain and bias of a layer norm in panels, zero past the last channel, and its epsilon.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// What the normalised value is multiplied by.
    pub gain: &'a [[f32; 32]],
    /// What is added to it.
    pub bias: &'a [[f32; 32]],
    /// What is added to the variance.
    pub eps: f32,
    /// The number of channels.
    pub dim: usize,
}

/// `out[row] = (x − mean) / √(variance + eps) · gain + bias` for each of `rows`, which become the rows of `out` from 0 on.
///
/// # Panics
/// Where shapes do not fit.
pub fn layer_norm<U: Real>(
    isa: Isa,
    x: &Panels<f32>,
    rows: Range<usize>,
    norm: Norm<'_>,
    out: &mut Panels<U>,
) {
    struct Job<'a, U: Real>(&'a Panels<f32>, Range<usize>, Norm<'a>, &'a mut Panels<U>);
    impl<U: Real> Kernel for Job<'_, U> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Job(x, rows, norm, out) = self;
            let panels = norm.gain.len();
            for (to, row) in rows.enumerate() {
                let count = norm.dim as f32;
                let mean = sum_of::<S>(x, row, norm.dim, |v| v, |v| v) / count;
                let m = S::splat(mean);
                let square = |v| {
                    let d = S::sub(v, m);
                    S::mul(d, d)
                };
                let variance = sum_of::<S>(x, row, norm.dim, square, |v| (v - mean) * (v - mean)) / count;
                let rstd = S::splat(1.0 / (variance + norm.eps).sqrt());
                for panel in 0..panels {
                    let from = &x.panel(panel)[row];
                    let to = out.panel_mut(panel)[to].as_mut();
                    for at in (0..COLUMNS).step_by(S::LANES) {
                        let v = S::mul(S::sub(S::load(&from[at..]), m), rstd);
                        let v = S::mul_add(
                            v,
                            S::load(&norm.gain[panel][at..]),
                            S::load(&norm.bias[panel][at..]),
                        );
                        U::store::<S>(v, &mut to[at..]);
                    }
                }
            }
        }
    }
    let panels = norm.dim.div_ceil(COLUMNS);
    assert!(norm.gain.len() == panels && norm.bias.len() == panels);
    assert!(x.panels() >= panels && out.panels() >= panels);
    assert!(rows.end <= x.rows() && rows.len() <= out.rows());
    isa.run(Job(x, rows, norm, out));
}

/// The sum of `f(x)` over the first `dim` columns of a row: vectors, and one by one in a last panel that is not full.
#[inline(always)]
fn sum_of<S: Simd>(
    x: &Panels<f32>,
    row: usize,
    dim: usize,
    f: impl Fn(S::F) -> S::F,
    one: impl Fn(f32) -> f32,
) -> f32 {
    let mut sums = [S::splat(0.0); 2];
    for panel in 0..dim / COLUMNS {
        let from = &x.panel(panel)[row];
        for at in (0..COLUMNS).step_by(2 * S::LANES) {
            sums[0] = S::add(sums[0], f(S::load(&from[at..])));
            sums[1] = S::add(sums[1], f(S::load(&from[at + S::LANES..])));
        }
    }
    let mut total = S::sum(S::add(sums[0], sums[1]));
    if !dim.is_multiple_of(COLUMNS) {
        let from = &x.panel(dim / COLUMNS)[row];
        total += from[..dim % COLUMNS].iter().map(|&v| one(v)).sum::<f32>();
    }
    total
}

/// Scales each of `rows` so that its greatest absolute value becomes 127, and rounds; they become the rows of `out` from 0
/// on. Two panels of `x` make one of `out`. A row with an infinity or a NaN gets the scale NaN, and so does every product
/// with it.
///
/// # Panics
/// Where shapes do not fit.
pub fn quantize<U: Real>(isa: Isa, x: &Panels<U>, rows: Range<usize>, out: &mut Quantized) {
    struct Job<'a, U: Real>(&'a Panels<U>, Range<usize>, &'a mut Quantized);
    impl<U: Real> Kernel for Job<'_, U> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Job(x, rows, out) = self;
            for (to, row) in rows.enumerate() {
                let (mut most, mut zero) = (S::splat(0.0), S::splat(0.0));
                for panel in 0..x.panels() {
                    let from = x.panel(panel)[row].as_ref();
                    for at in (0..COLUMNS).step_by(S::LANES) {
                        let v = U::load::<S>(&from[at..]);
                        most = S::max(S::abs(v), most);
                        zero = S::mul_add(v, S::splat(0.0), zero);
                    }
                }
                let most = S::greatest(most);
                let scale = if S::sum(zero).is_nan() {
                    // An infinity, or something that is not a number, makes the whole row so.
                    f32::NAN
                } else if most >= 127.0 * f32::MIN_POSITIVE {
                    most / 127.0
                } else {
                    // Zeros, or so small that one over the step would be infinite.
                    1.0
                };
                out.scales[to] = scale;
                let inverse = S::splat(1.0 / scale);
                for panel in 0..x.panels() {
                    let from = x.panel(panel)[row].as_ref();
                    let to = &mut out.values.panel_mut(panel / 2)[to][panel % 2 * COLUMNS..];
                    for at in (0..COLUMNS).step_by(S::LANES) {
                        let v = S::mul(U::load::<S>(&from[at..]), inverse);
                        let v = S::max(S::min(v, S::splat(127.0)), S::splat(-127.0));
                        S::store_biased(v, &mut to[at..]);
                    }
                }
            }
        }
    }
    assert!(rows.end <= x.rows() && rows.len() <= out.values.rows());
    assert!(x.panels().div_ceil(2) <= out.values.panels());
    isa.run(Job(x, rows, out));
}

/// `x[row] = x[row] · scale + shift`, for all rows.
///
/// # Panics
/// Where shapes do not fit.
pub fn scale_shift(isa: Isa, x: &mut Panels<f32>, scale: &[[f32; 32]], shift: &[[f32; 32]]) {
    struct Job<'a>(&'a mut Panels<f32>, &'a [[f32; 32]], &'a [[f32; 32]]);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Job(x, scale, shift) = self;
            for (panel, (scale, shift)) in scale.iter().zip(shift).enumerate() {
                for row in x.panel_mut(panel) {
                    for at in (0..COLUMNS).step_by(S::LANES) {
                        let v = S::mul_add(S::load(&row[at..]), S::load(&scale[at..]), S::load(&shift[at..]));
                        S::store(v, &mut row[at..]);
                    }
                }
            }
        }
    }
    assert!(scale.len() == shift.len() && scale.len() <= x.panels());
    isa.run(Job(x, scale, shift));
}
