//! Vectors of `f32`, one type for each instruction set.
//!
//! Kernels are written once over [`Simd`] and reach their vectors through [`Isa::run`](crate::Isa), the only place that
//! names the types below; so a type is used only where the processor has its instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use scalar::Scalar;

use crate::panels::Bf16;
use crate::tile::Tile;

/// Vectors of `LANES` numbers. All functions are `#[inline(always)]` and to be called from [`Isa::run`](crate::Isa) only.
pub trait Simd: Copy + Tile + 'static {
    /// One vector.
    type F: Copy;
    /// Numbers in a vector; a divisor of 16.
    const LANES: usize;

    /// The same number in every lane.
    fn splat(x: f32) -> Self::F;
    /// The first numbers of `from`.
    fn load(from: &[f32]) -> Self::F;
    /// To the first places of `to`.
    fn store(x: Self::F, to: &mut [f32]);
    /// The first numbers of `from`, widened.
    fn load_bf16(from: &[Bf16]) -> Self::F;
    /// To the first places of `to`, rounded to nearest, ties to even.
    fn store_bf16(x: Self::F, to: &mut [Bf16]);
    /// To the first places of `to`, rounded to the nearest integer, plus 128. `x` lies in ±127.
    fn store_biased(x: Self::F, to: &mut [u8]);
    /// `a + b`
    fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a − b`
    fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`
    fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The lesser; `b` where one is not a number.
    fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The greater; `b` where one is not a number.
    fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `|x|`
    fn abs(x: Self::F) -> Self::F;
    /// `1 / x` within one and a half units in the last place, for `x` of moderate size.
    fn recip(x: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(x: Self::F) -> Self::F;
    /// A nearest bf16, as an `f32`, ties away from zero; cheaper than [`Simd::to_bf16`], and not to be relied on for what
    /// is not a number.
    fn near_bf16(x: Self::F) -> Self::F;
    /// The nearest bf16, ties to even, as an `f32`.
    fn to_bf16(x: Self::F) -> Self::F;
    /// In each lane the upper half of `high` and below it that of `low`: pairs of bf16.
    fn pair(low: Self::F, high: Self::F) -> Self::F;
    /// [`Simd::pair`] of [`Simd::to_bf16`] of both.
    #[inline(always)]
    fn bf16_pairs(low: Self::F, high: Self::F) -> Self::F {
        Self::pair(Self::to_bf16(low), Self::to_bf16(high))
    }
    /// `x · 2^n` for an integral `n` in −252 … 254.
    fn ldexp(x: Self::F, n: Self::F) -> Self::F;
    /// `a` where `x < y`, else `b`.
    fn where_less(x: Self::F, y: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// The lanes with even numbers of `a` and then of `b`, as one row of `2 · LANES`.
    fn evens(a: Self::F, b: Self::F) -> Self::F;
    /// For each lane the number at its place, which is below 64.
    fn look_up(numbers: &[[f32; 32]; 2], places: &[u8]) -> Self::F;
    /// The sum of all lanes, in a fixed order.
    fn sum(x: Self::F) -> f32;
    /// The greatest lane.
    fn greatest(x: Self::F) -> f32;

    /// 32 rows of `width` numbers to `width` rows of 32; `false` where there is no better way than one by one.
    #[inline(always)]
    fn transpose(_rows: &[f32], _width: usize, _to: &mut [f32]) -> bool {
        false
    }

    /// Asks for the cache lines of `bytes` to be brought into the second cache.
    #[inline(always)]
    fn prefetch(_bytes: &[u8]) {}
}
