//! Functions of one number, over vectors.

use crate::simd::Simd;

/// `e^x` within 2 units in the last place; 0 below −87.3, where the result would not be a normal number, infinity above
/// 88.72.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: S::F) -> S::F {
    // In this order what is not a number stays so.
    S::where_less(x, S::splat(LEAST), S::splat(0.0), exp_above::<S>(S::min(S::splat(89.0), x)))
}

/// Where `e^x` is the smallest normal number.
const LEAST: f32 = -87.336_54;

/// The same for `x` up to 89; below −87.3 the smallest normal number instead of 0.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` is a polynomial of degree 6 (minimax, relative error 3e-9).
#[inline(always)]
pub(crate) fn exp_above<S: Simd>(x: S::F) -> S::F {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts; the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = S::max(S::splat(LEAST), x);
    let n = S::round(S::mul(x, S::splat(LOG2_E)));
    let r = S::mul_add(n, S::splat(-LN2_HIGH), x);
    let r = S::mul_add(n, S::splat(-LN2_LOW), r);
    let mut p = S::splat(1.381_430_9e-3);
    for c in [8.368_856e-3, 4.166_84e-2, 1.666_652e-1, 0.5, 1.0, 1.0] {
        p = S::mul_add(p, r, S::splat(c));
    }
    S::ldexp(p, n)
}

/// The Gaussian error linear unit `x·Φ(x)`, exact form, within 3e-7·max(1, |x|).
///
/// `Φ(x) = 1/2 + x·P(x²)/Q(x²)`: a rational approximation on ±5.2, fitted to the error of the product; beyond, Φ is 0
/// or 1 to seven digits.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(x: S::F) -> S::F {
    const BOUND: f32 = 5.2;
    const P: [f32; 6] = [
        2.462_624_8e-8,
        6.419_212_2e-6,
        1.582_776_3e-4,
        4.616_979e-3,
        3.268_145_8e-2,
        3.989_422_3e-1,
    ];
    const Q: [f32; 6] = [
        1.256_695_6e-6,
        7.096_337_5e-5,
        1.825_057_1e-3,
        2.800_501_3e-2,
        2.485_863_9e-1,
        1.0,
    ];
    let c = S::max(S::min(x, S::splat(BOUND)), S::splat(-BOUND));
    let u = S::mul(c, c);
    let (mut p, mut q) = (S::splat(P[0]), S::splat(Q[0]));
    for i in 1..6 {
        p = S::mul_add(p, u, S::splat(P[i]));
        q = S::mul_add(q, u, S::splat(Q[i]));
    }
    let phi = S::mul_add(S::mul(c, p), S::recip(q), S::splat(0.5));
    S::mul(x, phi)
}
