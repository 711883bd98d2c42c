//! Eight lanes: AVX2 with FMA.

use std::arch::x86_64::*;

use super::Simd;
use crate::panels::Bf16;

/// 256-bit vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

/// The upper half of a number's bits.
const UPPER: i32 = 0xffff_0000_u32.cast_signed();

/// The bits of `x`, of which the upper half is the nearest bf16.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn rounded(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    _mm256_blendv_epi8(up, quiet, nan)
}

// SAFETY (of every block here): `Isa::run` is the only user of `Avx2` and made sure of AVX2 and FMA; slices are checked
// to hold a vector before their pointers are used.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn prefetch(bytes: &[u8]) {
        for line in bytes.chunks(64) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
        }
    }
    #[inline(always)]
    fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(from: &[f32]) -> __m256 {
        assert!(from.len() >= 8);
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(x: __m256, to: &mut [f32]) {
        assert!(to.len() >= 8);
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn load_bf16(from: &[Bf16]) -> __m256 {
        assert!(from.len() >= 8);
        unsafe {
            let bits = _mm_loadu_si128(from.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
        }
    }
    #[inline(always)]
    fn store_bf16(x: __m256, to: &mut [Bf16]) {
        assert!(to.len() >= 8);
        unsafe {
            let high = _mm256_srli_epi32::<16>(rounded(x));
            let packed = _mm256_packus_epi32(high, high);
            let packed = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    fn near_bf16(x: __m256) -> __m256 {
        unsafe {
            let up = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(0x8000));
            _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(UPPER)))
        }
    }
    #[inline(always)]
    fn to_bf16(x: __m256) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_and_si256(rounded(x), _mm256_set1_epi32(UPPER))) }
    }
    #[inline(always)]
    fn pair(low: __m256, high: __m256) -> __m256 {
        unsafe {
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(low));
            let high = _mm256_and_si256(_mm256_castps_si256(high), _mm256_set1_epi32(UPPER));
            _mm256_castsi256_ps(_mm256_or_si256(low, high))
        }
    }
    #[inline(always)]
    fn store_biased(x: __m256, to: &mut [u8]) {
        assert!(to.len() >= 8);
        unsafe {
            let wide = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(128));
            let narrow = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_packus_epi16(narrow, narrow));
        }
    }
    #[inline(always)]
    fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn abs(x: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
    }
    #[inline(always)]
    fn recip(x: __m256) -> __m256 {
        unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), x) }
    }
    #[inline(always)]
    fn round(x: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn ldexp(x: __m256, n: __m256) -> __m256 {
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| {
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                    n,
                    _mm256_set1_epi32(127),
                )))
            };
            _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }
    #[inline(always)]
    fn where_less(x: __m256, y: __m256, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LT_OQ>(x, y)) }
    }
    #[inline(always)]
    fn evens(a: __m256, b: __m256) -> __m256 {
        unsafe {
            let halves = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(a, b));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(halves))
        }
    }
    #[inline(always)]
    fn look_up(numbers: &[[f32; 32]; 2], places: &[u8]) -> __m256 {
        assert!(places.len() >= 8);
        unsafe {
            let places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(places.as_ptr().cast()));
            // Three bits of a place choose inside a vector, the others among vectors.
            let among =
                |at: usize| _mm256_permutevar8x32_ps(Self::load(&numbers.as_flattened()[at..]), places);
            let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places));
            let fifth = _mm256_castsi256_ps(_mm256_slli_epi32::<27>(places));
            let sixth = _mm256_castsi256_ps(_mm256_slli_epi32::<26>(places));
            let a = _mm256_blendv_ps(among(0), among(8), fourth);
            let b = _mm256_blendv_ps(among(16), among(24), fourth);
            let c = _mm256_blendv_ps(among(32), among(40), fourth);
            let d = _mm256_blendv_ps(among(48), among(56), fourth);
            let (low, high) = (_mm256_blendv_ps(a, b, fifth), _mm256_blendv_ps(c, d, fifth));
            _mm256_blendv_ps(low, high, sixth)
        }
    }
    #[inline(always)]
    fn sum(x: __m256) -> f32 {
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn greatest(x: __m256) -> f32 {
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
}
