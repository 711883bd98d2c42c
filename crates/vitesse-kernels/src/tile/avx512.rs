//! AVX-512: a whole panel at a time, two vectors wide.
//!
//! Twelve rows of two vectors are 24 of the 32 registers. Without bf16 or byte products the same is done as in AVX2.

// Rows are counted, not iterated: each count is a register.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::{Operands, Scratch, Tile, by_rows, starts};
use crate::panels::Bf16;
use crate::simd::Avx512;

impl<const LEVEL: u8> Tile for Avx512<LEVEL> {
    const TURNS: bool = LEVEL < 3;
    const ASKS: bool = LEVEL < 3;
    const ROWS_F32: usize = 12;
    const ROWS_BF16: usize = if LEVEL >= 3 { 32 } else { 12 };
    const ROWS_I8: usize = if LEVEL >= 3 { 32 } else { 12 };

    #[inline(always)]
    fn tile_f32(of: Operands<'_, f32>, out: &mut [[f32; 32]]) {
        of.check(Self::ROWS_F32, Self::TURNS, out.len());
        // SAFETY: reads were checked, writes stay below `of.rows`; the processor has the instructions.
        unsafe {
            match (of.half, of.turned) {
                (true, false) => {
                    by_rows!(of.rows, f32_rows::<_, 1, false>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
                (false, false) => {
                    by_rows!(of.rows, f32_rows::<_, 2, false>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
                (true, true) => {
                    by_rows!(of.rows, f32_rows::<_, 1, true>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
                (false, true) => {
                    by_rows!(of.rows, f32_rows::<_, 2, true>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
            }
        }
    }

    #[inline(always)]
    fn tile_bf16(of: Operands<'_, Bf16>, out: &mut [[f32; 32]]) {
        of.check(Self::ROWS_BF16, Self::TURNS, out.len());
        // SAFETY: as above.
        unsafe {
            match LEVEL {
                #[cfg(target_os = "linux")]
                3.. => match out.first_chunk_mut() {
                    Some(out) => super::amx::bf16(of, out),
                    None => unreachable!("AMX writes 32 rows"),
                },
                2 if of.turned => {
                    by_rows!(of.rows, bf16_rows::<_, true>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
                2 => by_rows!(of.rows, bf16_rows::<_, false>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]),
                _ if of.turned => {
                    by_rows!(of.rows, widened_bf16_rows::<_, true>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
                _ => by_rows!(of.rows, widened_bf16_rows::<_, false>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]),
            }
        }
    }

    #[inline(always)]
    fn tile_i8(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
        of.check(Self::ROWS_I8, false, out.len());
        // SAFETY: as above.
        unsafe {
            match LEVEL {
                #[cfg(target_os = "linux")]
                3.. => super::amx::i8(of, out),
                1.. => by_rows!(of.rows, i8_rows::<_>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]),
                _ => by_rows!(of.rows, widened_i8_rows::<_>(of, out), [1 2 3 4 5 6 7 8 9 10 11 12]),
            }
        }
    }

    #[inline(always)]
    fn tile_split(a: &[Bf16], b: &[Bf16], [tall, wide]: [bool; 2], ahead: &[Bf16], out: &mut Scratch<f32>) {
        assert!(LEVEL >= 3 && a.len() == b.len() && a.len().is_multiple_of(3 * 1024) && !a.is_empty());
        // SAFETY: whole blocks, as many of one operand as of the other; the processor has AMX.
        #[cfg(target_os = "linux")]
        unsafe {
            super::amx::split(
                a.as_ptr(),
                b.as_ptr(),
                a.len() / (3 * 1024),
                tall,
                wide,
                ahead,
                out,
            );
        }
    }

    #[inline(always)]
    fn begin() {
        #[cfg(target_os = "linux")]
        if LEVEL >= 3 {
            // SAFETY: the processor has AMX, and the process the permission.
            unsafe { super::amx::begin() }
        }
    }

    #[inline(always)]
    fn awake() {
        #[cfg(target_os = "linux")]
        if LEVEL >= 3 {
            // SAFETY: as above, and the caller has begun.
            unsafe { super::amx::awake() }
        }
    }

    #[inline(always)]
    fn end() {
        #[cfg(target_os = "linux")]
        if LEVEL >= 3 {
            // SAFETY: as above.
            unsafe { super::amx::end() }
        }
    }
}

/// `V` vectors wide.
///
/// # Safety
/// `R` is `of.rows`, `T` is `of.turned`, and `of` was checked.
#[target_feature(enable = "avx512f")]
unsafe fn f32_rows<const R: usize, const V: usize, const T: bool>(
    of: Operands<'_, f32>,
    out: &mut [[f32; 32]],
) {
    let (first, row, step) = starts::<T>(of.row, 32);
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: `Operands::check`.
    unsafe {
        let mut a = of.a.as_ptr().cast::<f32>().add(first);
        let mut block = of.b.as_ptr();
        let mut ahead = of.ahead.as_ptr().cast::<u8>();
        for &depth in of.depths {
            for line in 0..of.lines {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast());
            }
            ahead = ahead.wrapping_add(64 * of.lines);
            for k in 0..depth {
                let b: [__m512; V] = std::array::from_fn(|c| _mm512_loadu_ps(block.add(32 * k + 16 * c)));
                for r in 0..R {
                    let x = _mm512_set1_ps(*a.add(row * r + step * k));
                    for c in 0..V {
                        sums[r][c] = _mm512_fmadd_ps(x, b[c], sums[r][c]);
                    }
                }
            }
            a = a.wrapping_add(32 * of.stride);
            block = block.wrapping_add(32 * 32);
        }
        // So many rows as the compiler knows, or sums would go through memory first.
        for (sums, out) in sums.iter().zip(out.first_chunk_mut::<R>().into_iter().flatten()) {
            for (c, &sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(out.as_mut_ptr().add(16 * c), sum);
            }
        }
    }
}

/// Rows of sums of 32-bit lanes to memory.
///
/// # Safety
/// There are at least `R` rows in `out`.
#[target_feature(enable = "avx512f")]
unsafe fn store_rows<const R: usize, N>(sums: [[__m512i; 2]; R], out: &mut [[N; 32]]) {
    const { assert!(size_of::<N>() == 4) };
    for (sums, out) in sums.iter().zip(out.first_chunk_mut::<R>().into_iter().flatten()) {
        // SAFETY: a row is two vectors.
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), sums[0]);
            _mm512_storeu_si512(out.as_mut_ptr().add(16).cast(), sums[1]);
        }
    }
}

/// The loop that all kinds with 32-bit groups share: for each row, `step(sum, group of a, groups of b)`.
macro_rules! grouped {
    ($of:ident, $out:ident, $group:literal, $turned:expr, $prepare:expr, $step:expr) => {{
        let (first, row, step) = starts::<{ $turned }>($of.row, 16);
        let mut sums = [[_mm512_setzero_si512(); 2]; R];
        // SAFETY: `Operands::check`; groups are read whole, and a panel's row is 16 of them.
        unsafe {
            let mut a = $of.a.as_ptr().cast::<i32>().add(first);
            let mut block = $of.b.as_ptr().cast::<i32>();
            let mut ahead = $of.ahead.as_ptr().cast::<u8>();
            for &depth in $of.depths {
                for line in 0..$of.lines {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast());
                }
                ahead = ahead.wrapping_add(64 * $of.lines);
                for k in 0..depth.div_ceil($group) {
                    let b = [0, 16].map(|c| $prepare(_mm512_loadu_si512(block.add(32 * k + c).cast())));
                    for r in 0..R {
                        let x = _mm512_set1_epi32(*a.add(row * r + step * k));
                        for c in 0..2 {
                            sums[r][c] = $step(sums[r][c], x, b[c]);
                        }
                    }
                }
                a = a.wrapping_add(16 * $of.stride);
                block = block.wrapping_add(16 * 32);
            }
            store_rows(sums, $out);
        }
    }};
}

/// # Safety
/// `R` is `of.rows`, `T` is `of.turned`, and `of` was checked.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn bf16_rows<const R: usize, const T: bool>(of: Operands<'_, Bf16>, out: &mut [[f32; 32]]) {
    grouped!(of, out, 2, T, |b| b, |sum, x, b| {
        let (x, b) = (
            std::mem::transmute::<__m512i, __m512bh>(x),
            std::mem::transmute::<__m512i, __m512bh>(b),
        );
        _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), x, b))
    });
}

/// # Safety
/// `R` is `of.rows`, `T` is `of.turned`, and `of` was checked.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widened_bf16_rows<const R: usize, const T: bool>(of: Operands<'_, Bf16>, out: &mut [[f32; 32]]) {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let even = |pair| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
    let odd = |pair| _mm512_castsi512_ps(_mm512_and_si512(pair, high));
    grouped!(
        of,
        out,
        2,
        T,
        |b| (even(b), odd(b)),
        |sum, x, b: (__m512, __m512)| {
            let sum = _mm512_fmadd_ps(even(x), b.0, _mm512_castsi512_ps(sum));
            _mm512_castps_si512(_mm512_fmadd_ps(odd(x), b.1, sum))
        }
    );
}

/// # Safety
/// `R` is `of.rows`, and `of` was checked.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn i8_rows<const R: usize>(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
    grouped!(of, out, 4, false, |b| b, |sum, x, b| _mm512_dpbusd_epi32(
        sum, x, b
    ));
}

/// # Safety
/// `R` is `of.rows`, and `of` was checked.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widened_i8_rows<const R: usize>(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
    let low = _mm512_set1_epi16(0xff);
    let even = |b| _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
    let odd = |b| _mm512_srai_epi16::<8>(b);
    grouped!(of, out, 4, false, |b| (even(b), odd(b)), |sum,
                                                        x,
                                                        b: (
        __m512i,
        __m512i
    )| {
        let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_and_si512(x, low), b.0));
        _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16::<8>(x), b.1))
    });
}
