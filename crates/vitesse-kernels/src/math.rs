//! Functions of one number, over vectors.

use crate::simd::Simd;

/// `e^x` within 2 units in the last place; 0 below −87.3, where the result would not be a normal number, infinity above
/// 88.72.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` is a polynomial of degree 6 (minimax, relative error 3e-9).
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: S::F) -> S::F {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts; the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LEAST: f32 = -87.336_54;
    // In this order of operands what is not a number stays so.
    let clamped = S::max(S::splat(LEAST), S::min(S::splat(89.0), x));
    let n = S::round(S::mul(clamped, S::splat(LOG2_E)));
    let r = S::mul_add(n, S::splat(-LN2_HIGH), clamped);
    let r = S::mul_add(n, S::splat(-LN2_LOW), r);
    let mut p = S::splat(1.381_430_9e-3);
    for c in [8.368_856e-3, 4.166_84e-2, 1.666_652e-1, 0.5, 1.0, 1.0] {
        p = S::mul_add(p, r, S::splat(c));
    }
    S::where_less(x, S::splat(LEAST), S::splat(0.0), S::ldexp(p, n))
}

/// The two forms of the Gaussian error linear unit, both `x·gate(x)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gelu {
    /// The gate is the normal distribution, `Φ(x)`.
    #[default]
    Exact,
    /// The gate is the logistic function, `σ(1.702·x)`: CLIP's.
    Quick,
}

/// Of [`Gelu::Quick`].
const STEEPNESS: f32 = 1.702;

/// The Gaussian error linear unit, within 3e-7·max(1, |x|).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(form: Gelu, x: S::F) -> S::F {
    S::mul(x, gate::<S>(form, x))
}

/// Its slope, `gate(x) + x·gate'(x)`, within 5e-7.
#[cfg(feature = "train")]
#[inline(always)]
pub(crate) fn gelu_slope<S: Simd>(form: Gelu, x: S::F) -> S::F {
    gelu_and_slope::<S>(form, x)[1]
}

/// [`gelu`] and [`gelu_slope`], which share most of their work.
#[cfg(feature = "train")]
#[inline(always)]
pub(crate) fn gelu_and_slope<S: Simd>(form: Gelu, x: S::F) -> [S::F; 2] {
    const ROOT: f32 = 0.398_942_3;
    let gate = gate::<S>(form, x);
    // The gate's slope is `factor · density`.
    let (factor, density) = match form {
        Gelu::Exact => (ROOT, exp::<S>(S::mul(S::mul(x, x), S::splat(-0.5)))),
        Gelu::Quick => (STEEPNESS, S::mul(gate, S::sub(S::splat(1.0), gate))),
    };
    let slope = S::mul_add(S::mul(x, S::splat(factor)), density, gate);
    [S::mul(x, gate), slope]
}

#[inline(always)]
fn gate<S: Simd>(form: Gelu, x: S::F) -> S::F {
    match form {
        Gelu::Exact => normal_below::<S>(x),
        Gelu::Quick => logistic::<S>(S::mul(x, S::splat(STEEPNESS))),
    }
}

/// The logistic function `σ(x) = 1 / (1 + e^−x)`.
#[inline(always)]
fn logistic<S: Simd>(x: S::F) -> S::F {
    // The reciprocal wants a number of moderate size. In this order of operands what is not a number stays so.
    let power = exp::<S>(S::min(S::splat(80.0), S::mul(x, S::splat(-1.0))));
    S::recip(S::add(S::splat(1.0), power))
}

/// The normal distribution `Φ(x) = 1/2 + x·P(x²)/Q(x²)`: a rational approximation on ±5.2, fitted to the error of `x·Φ(x)`; beyond,
/// Φ is 0 or 1 to seven digits.
#[inline(always)]
fn normal_below<S: Simd>(x: S::F) -> S::F {
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
    S::mul_add(S::mul(c, p), S::recip(q), S::splat(0.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel};

    struct Exp<'a>(&'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            for x in self.0.chunks_exact_mut(S::LANES) {
                let y = exp::<S>(S::load(x));
                S::store(y, x);
            }
        }
    }

    struct Activate<'a>(Gelu, &'a mut [f32]);
    impl Kernel for Activate<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            for x in self.1.chunks_exact_mut(S::LANES) {
                let y = gelu::<S>(self.0, S::load(x));
                S::store(y, x);
            }
        }
    }

    /// The function's values at `xs`.
    fn values(function: fn(Isa, &mut [f32]), isa: Isa, xs: &[f32]) -> Vec<f32> {
        let mut values = xs.to_vec();
        values.resize(xs.len().next_multiple_of(16), 0.0);
        function(isa, &mut values);
        values.truncate(xs.len());
        values
    }

    fn supported() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_supported())
    }

    /// `count` numbers from `low` to `high`.
    fn sweep(low: f32, high: f32, count: usize) -> Vec<f32> {
        let step = (f64::from(high) - f64::from(low)) / count as f64;
        (0..=count)
            .map(|i| (f64::from(low) + step * i as f64) as f32)
            .collect()
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut xs = sweep(-87.3, 88.7, 400_000);
        xs.extend(sweep(-1e-3, 1e-3, 20_000));
        for isa in supported() {
            for (&x, y) in xs.iter().zip(values(|isa, x| isa.run(Exp(x)), isa, &xs)) {
                let expected = libm::exp(f64::from(x));
                let unit = f64::from(f32::from_bits((expected as f32).to_bits() + 1) - expected as f32);
                let error = (f64::from(y) - expected).abs() / unit;
                assert!(
                    error <= 2.0,
                    "{isa}: exp({x}) = {y}, {error} units from {expected}"
                );
            }
        }
    }

    #[test]
    fn exp_has_its_edges() {
        let xs = [
            0.0,
            -0.0,
            89.0,
            f32::NAN,
            -87.5,
            -100.0,
            -200.0,
            f32::MIN,
            f32::NEG_INFINITY,
        ];
        for isa in supported() {
            let y = values(|isa, x| isa.run(Exp(x)), isa, &xs);
            assert_eq!(y[..3], [1.0, 1.0, f32::INFINITY], "{isa}");
            assert!(y[3].is_nan(), "{isa}");
            assert_eq!(y[4..], [0.0; 5], "{isa}");
        }
    }

    #[test]
    fn gelu_is_within_its_error() {
        let mut xs = sweep(-30.0, 30.0, 300_000);
        xs.extend(sweep(-6.0, 6.0, 300_000));
        xs.extend(sweep(-1e-3, 1e-3, 10_000));
        xs.extend(
            [5.2f32, 5.2f32.next_down(), 1e30, f32::MAX, 1e-40]
                .into_iter()
                .flat_map(|x| [x, -x]),
        );
        for isa in supported() {
            for (&x, y) in xs
                .iter()
                .zip(values(|isa, x| isa.run(Activate(Gelu::Exact, x)), isa, &xs))
            {
                let z = f64::from(x);
                let expected = 0.5 * z * (1.0 + libm::erf(z * std::f64::consts::FRAC_1_SQRT_2));
                let error = (f64::from(y) - expected).abs();
                assert!(
                    error <= 3e-7 * z.abs().max(1.0),
                    "{isa}: gelu({x}) = {y}, {error:e} from {expected}"
                );
            }
            let y = values(
                |isa, x| isa.run(Activate(Gelu::Exact, x)),
                isa,
                &[f32::NAN, f32::INFINITY, 0.0],
            );
            assert!(
                y[0].is_nan() && y[1] == f32::INFINITY && y[2] == 0.0,
                "{isa} {y:?}"
            );
        }
    }

    #[test]
    fn quick_gelu_is_within_its_error() {
        let mut xs = sweep(-60.0, 60.0, 300_000);
        xs.extend(sweep(-1e-3, 1e-3, 10_000));
        xs.extend([1e30, f32::MAX, 1e-40].into_iter().flat_map(|x| [x, -x]));
        let quick = |isa: Isa, x: &mut [f32]| isa.run(Activate(Gelu::Quick, x));
        for isa in supported() {
            for (&x, y) in xs.iter().zip(values(quick, isa, &xs)) {
                let z = f64::from(x);
                let expected = z / (1.0 + libm::exp(-1.702 * z));
                let error = (f64::from(y) - expected).abs();
                assert!(
                    error <= 3e-7 * z.abs().max(1.0),
                    "{isa}: quick gelu({x}) = {y}, {error:e} from {expected}"
                );
            }
            let y = values(quick, isa, &[f32::NAN, f32::INFINITY, 0.0]);
            assert!(
                y[0].is_nan() && y[1] == f32::INFINITY && y[2] == 0.0,
                "{isa} {y:?}"
            );
        }
    }
}
