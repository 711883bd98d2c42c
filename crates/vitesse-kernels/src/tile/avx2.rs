//! AVX2 with FMA: half a panel at a time, because sixteen registers hold no more.
//!
//! There are no products of bf16, so both of a pair are widened by a shift and a mask; nor exact ones of bytes, so
//! those are widened to 16 bits and multiplied in pairs.

// Rows are counted, not iterated: each count is a register.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::{Operands, Scratch, Tile, by_rows, starts};
use crate::panels::Bf16;
use crate::simd::Avx2;

impl Tile for Avx2 {
    const TURNS: bool = true;
    const ROWS_F32: usize = 6;
    const ROWS_BF16: usize = 4;
    const ROWS_I8: usize = 4;

    #[inline(always)]
    fn tile_f32(of: Operands<'_, f32>, out: &mut [[f32; 32]]) {
        of.check(Self::ROWS_F32, Self::TURNS, out.len());
        // SAFETY: reads were checked, writes stay below `of.rows`; the processor has AVX2 and FMA.
        unsafe {
            if of.turned {
                by_rows!(of.rows, f32_rows::<_, true>(of, out), [1 2 3 4 5 6]);
            } else {
                by_rows!(of.rows, f32_rows::<_, false>(of, out), [1 2 3 4 5 6]);
            }
        }
    }

    #[inline(always)]
    fn tile_bf16(of: Operands<'_, Bf16>, out: &mut [[f32; 32]]) {
        of.check(Self::ROWS_BF16, Self::TURNS, out.len());
        // SAFETY: as above.
        unsafe {
            if of.turned {
                by_rows!(of.rows, bf16_rows::<_, true>(of, out), [1 2 3 4]);
            } else {
                by_rows!(of.rows, bf16_rows::<_, false>(of, out), [1 2 3 4]);
            }
        }
    }

    #[inline(always)]
    fn tile_i8(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
        of.check(Self::ROWS_I8, false, out.len());
        // SAFETY: as above.
        unsafe { by_rows!(of.rows, i8_rows::<_>(of, out), [1 2 3 4]) }
    }
}

/// # Safety
/// `R` is `of.rows`, `T` is `of.turned`, and `of` was checked.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_rows<const R: usize, const T: bool>(of: Operands<'_, f32>, out: &mut [[f32; 32]]) {
    let (first, row, step) = starts::<T>(of.row, 32);
    for half in 0..if of.half { 1 } else { 2 } {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        // SAFETY: `Operands::check`.
        unsafe {
            let mut a = of.a.as_ptr().cast::<f32>().add(first);
            let mut block = of.b.as_ptr().add(16 * half);
            for &depth in of.depths {
                for k in 0..depth {
                    let b = [
                        _mm256_loadu_ps(block.add(32 * k)),
                        _mm256_loadu_ps(block.add(32 * k + 8)),
                    ];
                    for r in 0..R {
                        let x = _mm256_broadcast_ss(&*a.add(row * r + step * k));
                        sums[r][0] = _mm256_fmadd_ps(x, b[0], sums[r][0]);
                        sums[r][1] = _mm256_fmadd_ps(x, b[1], sums[r][1]);
                    }
                }
                a = a.wrapping_add(32 * of.stride);
                block = block.wrapping_add(32 * 32);
            }
            // So many rows as the compiler knows, or sums would go through memory first.
            for (sums, out) in sums.iter().zip(out.first_chunk_mut::<R>().into_iter().flatten()) {
                let to = out.as_mut_ptr().add(16 * half);
                _mm256_storeu_ps(to, sums[0]);
                _mm256_storeu_ps(to.add(8), sums[1]);
            }
        }
    }
}

/// # Safety
/// `R` is `of.rows`, `T` is `of.turned`, and `of` was checked.
#[target_feature(enable = "avx2,fma")]
unsafe fn bf16_rows<const R: usize, const T: bool>(of: Operands<'_, Bf16>, out: &mut [[f32; 32]]) {
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let even = |pair| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
    let odd = |pair| _mm256_castsi256_ps(_mm256_and_si256(pair, high));
    let (first, row, step) = starts::<T>(of.row, 16);
    for half in 0..if of.half { 1 } else { 2 } {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        // SAFETY: `Operands::check`; pairs are read whole, and a panel's row has an even length.
        unsafe {
            let mut a = of.a.as_ptr().cast::<i32>().add(first);
            let mut block = of.b.as_ptr().cast::<i32>().add(16 * half);
            for &depth in of.depths {
                for k in 0..depth.div_ceil(2) {
                    let b = [0, 8].map(|c| _mm256_loadu_si256(block.add(32 * k + c).cast()));
                    for r in 0..R {
                        let x = _mm256_set1_epi32(*a.add(row * r + step * k));
                        for c in 0..2 {
                            let sum = _mm256_fmadd_ps(even(x), even(b[c]), sums[r][c]);
                            sums[r][c] = _mm256_fmadd_ps(odd(x), odd(b[c]), sum);
                        }
                    }
                }
                a = a.wrapping_add(16 * of.stride);
                block = block.wrapping_add(16 * 32);
            }
            for (sums, out) in sums.iter().zip(out.first_chunk_mut::<R>().into_iter().flatten()) {
                let to = out.as_mut_ptr().add(16 * half);
                _mm256_storeu_ps(to, sums[0]);
                _mm256_storeu_ps(to.add(8), sums[1]);
            }
        }
    }
}

/// # Safety
/// `R` is `of.rows`, and `of` was checked.
#[target_feature(enable = "avx2")]
unsafe fn i8_rows<const R: usize>(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
    let low = _mm256_set1_epi16(0xff);
    for half in 0..if of.half { 1 } else { 2 } {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        // SAFETY: `Operands::check`; quads are read whole, and a panel's row has a length divisible by four.
        unsafe {
            let mut a = of.a.as_ptr().add(of.row).cast::<i32>();
            let mut block = of.b.as_ptr().cast::<i32>().add(16 * half);
            for &depth in of.depths {
                for k in 0..depth.div_ceil(4) {
                    let b = [0, 8].map(|c| _mm256_loadu_si256(block.add(32 * k + c).cast()));
                    let even = b.map(|b| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
                    let odd = b.map(|b| _mm256_srai_epi16::<8>(b));
                    for r in 0..R {
                        let x = _mm256_set1_epi32(*a.add(16 * r + k));
                        let (x_even, x_odd) = (_mm256_and_si256(x, low), _mm256_srli_epi16::<8>(x));
                        for c in 0..2 {
                            let sum = _mm256_add_epi32(sums[r][c], _mm256_madd_epi16(x_even, even[c]));
                            sums[r][c] = _mm256_add_epi32(sum, _mm256_madd_epi16(x_odd, odd[c]));
                        }
                    }
                }
                a = a.wrapping_add(16 * of.stride);
                block = block.wrapping_add(16 * 32);
            }
            for (sums, out) in sums.iter().zip(out.iter_mut()) {
                let to = out.as_mut_ptr().add(16 * half);
                _mm256_storeu_si256(to.cast(), sums[0]);
                _mm256_storeu_si256(to.add(8).cast(), sums[1]);
            }
        }
    }
}
