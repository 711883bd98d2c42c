//! Sixteen lanes: AVX-512.

use std::arch::x86_64::*;

use super::Simd;
use crate::panels::Bf16;

/// 512-bit vectors. `LEVEL` says what there is besides: 0 nothing, 1 VNNI, 2 bf16 too, 3 AMX too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const LEVEL: u8>;

/// The places of two vectors' numbers, one of the first, one of the second.
static PAIRS: [u16; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    places
};

/// The upper half of a number's bits.
const UPPER: i32 = 0xffff_0000_u32.cast_signed();

/// The bits of `x`, of which the upper half is the nearest bf16.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn rounded(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_mov_epi32(up, nan, quiet)
}

// SAFETY (of every block here): `Isa::run` is the only user of `Avx512` and made sure of AVX-512 F, BW, DQ and VL, and of
// what `LEVEL` stands for; slices are checked to hold a vector before their pointers are used.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const LEVEL: u8> Simd for Avx512<LEVEL> {
    type F = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn prefetch(bytes: &[u8]) {
        for line in bytes.chunks(64) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
        }
    }
    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(from: &[f32]) -> __m512 {
        assert!(from.len() >= 16);
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(x: __m512, to: &mut [f32]) {
        assert!(to.len() >= 16);
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn load_bf16(from: &[Bf16]) -> __m512 {
        assert!(from.len() >= 16);
        unsafe {
            let bits = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
    }
    #[inline(always)]
    fn store_bf16(x: __m512, to: &mut [Bf16]) {
        assert!(to.len() >= 16);
        unsafe {
            let narrow = if LEVEL >= 2 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
            } else {
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(x)))
            };
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }
    #[inline(always)]
    fn near_bf16(x: __m512) -> __m512 {
        unsafe {
            let up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
            _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(UPPER)))
        }
    }
    #[inline(always)]
    fn to_bf16(x: __m512) -> __m512 {
        unsafe {
            if LEVEL >= 2 {
                let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
            } else {
                _mm512_castsi512_ps(_mm512_and_si512(rounded(x), _mm512_set1_epi32(UPPER)))
            }
        }
    }
    #[inline(always)]
    fn pair(low: __m512, high: __m512) -> __m512 {
        unsafe {
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
            // Bits of `high` where the mask has them, else of `low`.
            const CHOOSE: i32 = 0xca;
            let mask = _mm512_set1_epi32(UPPER);
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<CHOOSE>(
                mask,
                _mm512_castps_si512(high),
                low,
            ))
        }
    }
    #[inline(always)]
    fn bf16_pairs(low: __m512, high: __m512) -> __m512 {
        if LEVEL < 2 {
            return Self::pair(Self::to_bf16(low), Self::to_bf16(high));
        }
        unsafe {
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(
                _mm512_loadu_si512(PAIRS.as_ptr().cast()),
                both,
            ))
        }
    }
    #[inline(always)]
    fn store_biased(x: __m512, to: &mut [u8]) {
        assert!(to.len() >= 16);
        unsafe {
            let wide = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(wide));
        }
    }
    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn abs(x: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(x) }
    }
    #[inline(always)]
    fn recip(x: __m512) -> __m512 {
        unsafe {
            // One Newton step from 14 bits; a division takes as long as eight multiply-adds.
            let r = _mm512_rcp14_ps(x);
            _mm512_fmadd_ps(_mm512_fnmadd_ps(x, r, _mm512_set1_ps(1.0)), r, r)
        }
    }
    #[inline(always)]
    fn round(x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn ldexp(x: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    fn where_less(x: __m512, y: __m512, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, y), a) }
    }
    #[inline(always)]
    fn evens(a: __m512, b: __m512) -> __m512 {
        unsafe {
            let places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_ps(a, places, b)
        }
    }
    #[inline(always)]
    fn look_up(numbers: &[[f32; 32]; 2], places: &[u8]) -> __m512 {
        assert!(places.len() >= 16);
        unsafe {
            let places = _mm512_cvtepu8_epi32(_mm_loadu_si128(places.as_ptr().cast()));
            let (a, b) = (Self::load(&numbers[0]), Self::load(&numbers[0][16..]));
            let (c, d) = (Self::load(&numbers[1]), Self::load(&numbers[1][16..]));
            // Five bits of a place choose among two vectors.
            let low = _mm512_permutex2var_ps(a, places, b);
            let high = _mm512_permutex2var_ps(c, places, d);
            let upper = _mm512_test_epi32_mask(places, _mm512_set1_epi32(32));
            _mm512_mask_mov_ps(low, upper, high)
        }
    }
    #[inline(always)]
    fn sum(x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    fn greatest(x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    fn transpose(rows: &[f32], width: usize, to: &mut [f32]) -> bool {
        assert!(width.is_multiple_of(16) && rows.len() >= 32 * width && to.len() >= 32 * width);
        for column in (0..width).step_by(16) {
            for row in [0, 16] {
                // SAFETY: 16 rows and columns from here on are inside both.
                unsafe {
                    transpose_16(
                        rows.as_ptr().add(row * width + column),
                        width,
                        to.as_mut_ptr().add(column * 32 + row),
                    );
                }
            }
        }
        true
    }
}

/// 16 rows of 16, `stride` apart, to 16 rows 32 apart.
///
/// # Safety
/// All are readable and writable.
#[target_feature(enable = "avx512f")]
unsafe fn transpose_16(from: *const f32, stride: usize, to: *mut f32) {
    // SAFETY: the caller's.
    let rows: [__m512; 16] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * stride)) });
    // Pairs of rows, then fours, inside each quarter of a vector; then the quarters.
    let mut pairs = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|j| _mm512_castps_pd(pairs[4 * i + j]));
        fours[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        fours[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        fours[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        fours[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for j in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| fours[4 * i + j]);
        let low = (
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0x88>(c, d),
        );
        let high = (
            _mm512_shuffle_f32x4::<0xdd>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(c, d),
        );
        let quarters = [
            _mm512_shuffle_f32x4::<0x88>(low.0, low.1),
            _mm512_shuffle_f32x4::<0x88>(high.0, high.1),
            _mm512_shuffle_f32x4::<0xdd>(low.0, low.1),
            _mm512_shuffle_f32x4::<0xdd>(high.0, high.1),
        ];
        for (q, quarter) in quarters.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_ps(to.add((4 * q + j) * 32), quarter) };
        }
    }
}
