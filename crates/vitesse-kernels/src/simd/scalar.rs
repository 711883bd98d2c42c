//! One lane: plain Rust.

use super::Simd;
use crate::panels::Bf16;

/// Portable code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type F = f32;
    const LANES: usize = 1;

    #[inline(always)]
    fn splat(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load(from: &[f32]) -> f32 {
        from[0]
    }
    #[inline(always)]
    fn store(x: f32, to: &mut [f32]) {
        to[0] = x;
    }
    #[inline(always)]
    fn load_bf16(from: &[Bf16]) -> f32 {
        from[0].to_f32()
    }
    #[inline(always)]
    fn store_bf16(x: f32, to: &mut [Bf16]) {
        to[0] = Bf16::from_f32(x);
    }
    #[inline(always)]
    fn near_bf16(x: f32) -> f32 {
        f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000)
    }
    #[inline(always)]
    fn to_bf16(x: f32) -> f32 {
        Bf16::from_f32(x).to_f32()
    }
    #[inline(always)]
    fn pair(low: f32, high: f32) -> f32 {
        f32::from_bits(low.to_bits() >> 16 | high.to_bits() & 0xffff_0000)
    }
    #[inline(always)]
    fn store_biased(x: f32, to: &mut [u8]) {
        to[0] = (x.round_ties_even() as i32 + 128) as u8;
    }
    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        // Not fused: without FMA instructions a fused one is a slow function call.
        a * b + c
    }
    #[inline(always)]
    fn min(a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn abs(x: f32) -> f32 {
        x.abs()
    }
    #[inline(always)]
    fn recip(x: f32) -> f32 {
        1.0 / x
    }
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x.round_ties_even()
    }
    #[inline(always)]
    fn ldexp(x: f32, n: f32) -> f32 {
        // In two steps, because 2^n itself need not be a normal number.
        let n = n as i32;
        let half = n >> 1;
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        x * power(half) * power(n - half)
    }
    #[inline(always)]
    fn where_less(x: f32, y: f32, a: f32, b: f32) -> f32 {
        if x < y { a } else { b }
    }
    #[inline(always)]
    fn evens(a: f32, _: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn look_up(numbers: &[[f32; 32]; 2], places: &[u8]) -> f32 {
        numbers.as_flattened()[usize::from(places[0])]
    }
    #[inline(always)]
    fn sum(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn greatest(x: f32) -> f32 {
        x
    }
}
