//! How fast multiply-adds can be at all: loops that touch nothing but registers.
//!
//! What a model reaches is worth little without what the machine could do. Here every multiply-add goes into one of
//! several independent sums, so that none waits for another, and operands stay where they are: no cache and no memory can
//! be in the way. Operands are not zero, because processors spend less power on zeros and then run faster.

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Pool;
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;

/// What is multiplied and added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `f32`, summed in `f32`.
    F32,
    /// bf16, summed in `f32`. Where there are no such products, bf16 is widened, and the peak is that of `f32`.
    Bf16,
    /// 8-bit integers, summed in 32 bits.
    Int8,
}

/// How long one trial should take: long enough for a clock, shorter than the time for which the system gives a core away.
const TRIAL: Duration = Duration::from_millis(1);
/// How many trials there are. The fastest counts, because everything else that happens only slows it down.
const TRIALS: usize = 80;
/// Steps between two looks at the clock.
const STEPS: u64 = 4096;
/// Independent sums: twice as many as two units with a latency of four cycles need, as far as registers go.
const SUMS: usize = 12;

/// Operations a second, a multiply-add being two, that `threads` threads reach together with the instructions of `isa`.
/// Takes a tenth of a second.
///
/// # Errors
/// Where the system has no more threads.
///
/// # Panics
/// Where the processor lacks the instructions; an [`Isa`] from [`Isa::detect`] or [`Isa::choose`] is always there.
pub fn peak(isa: Isa, arithmetic: Arithmetic, threads: usize) -> io::Result<f64> {
    let mut pool = Pool::new(threads)?;
    let mut fastest = 0f64;
    for _ in 0..TRIALS {
        let operations = AtomicU64::new(0);
        let begun = Instant::now();
        pool.run(&|_| {
            let mut done = 0;
            while begun.elapsed() < TRIAL {
                done += steps(isa, arithmetic, STEPS);
            }
            operations.fetch_add(done, Ordering::Relaxed);
        });
        let seconds = begun.elapsed().as_secs_f64();
        fastest = fastest.max(operations.into_inner() as f64 / seconds);
    }
    Ok(fastest)
}

/// Computes some steps; returns how many operations they were.
fn steps(isa: Isa, arithmetic: Arithmetic, steps: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    match (arithmetic, isa) {
        // AMX is there on Linux only.
        #[cfg(target_os = "linux")]
        (Arithmetic::Bf16, Isa::Amx) => return isa.run(x86::Tiles::<false>(steps)),
        #[cfg(target_os = "linux")]
        (Arithmetic::Int8, Isa::Amx) => return isa.run(x86::Tiles::<true>(steps)),
        (Arithmetic::Bf16, Isa::Avx512Bf16) => {
            // SAFETY: the processor has the instructions, or `require` panics.
            return unsafe { x86::bf16(require(isa, steps)) };
        }
        (Arithmetic::Int8, Isa::Avx512Vnni | Isa::Avx512Bf16) => {
            // SAFETY: as above.
            return unsafe { x86::vnni(require(isa, steps)) };
        }
        (Arithmetic::Int8, Isa::Avx512) => {
            // SAFETY: as above.
            return unsafe { x86::madd_512(require(isa, steps)) };
        }
        (Arithmetic::Int8, Isa::Avx2) => {
            // SAFETY: as above.
            return unsafe { x86::madd_256(require(isa, steps)) };
        }
        _ => {}
    }
    match arithmetic {
        Arithmetic::F32 | Arithmetic::Bf16 => isa.run(Floats(steps)),
        Arithmetic::Int8 => integers(steps),
    }
}

/// `steps`, once it is sure that the processor has `isa`.
#[cfg(target_arch = "x86_64")]
fn require(isa: Isa, steps: u64) -> u64 {
    assert!(isa.is_supported(), "this processor does not have `{isa}`");
    steps
}

/// Multiply-adds of `f32`.
struct Floats(u64);

impl Kernel for Floats {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self) -> u64 {
        /// One lane at a time needs as many sums as vectors have lanes in them, because the compiler may put them together.
        const LANES: usize = 48;
        let (x, y) = (S::splat(black_box(0.75)), S::splat(black_box(1.25e-3)));
        if S::LANES == 1 {
            let mut sums = [x; LANES];
            for _ in 0..self.0 {
                sums.iter_mut().for_each(|sum| *sum = S::mul_add(x, y, *sum));
            }
            black_box(sums.map(S::sum));
            return 2 * LANES as u64 * self.0;
        }
        let mut sums = [x; SUMS];
        for _ in 0..self.0 {
            sums.iter_mut().for_each(|sum| *sum = S::mul_add(x, y, *sum));
        }
        black_box(sums.map(S::sum));
        (2 * SUMS * S::LANES) as u64 * self.0
    }
}

/// Multiply-adds of integers without vector instructions.
fn integers(steps: u64) -> u64 {
    let mut sums = [0i32; SUMS];
    for i in 0..steps {
        // Not the same each time, or the compiler would multiply once.
        let x = i32::from(black_box(i) as u8);
        for (sum, y) in sums.iter_mut().zip(1..) {
            *sum = sum.wrapping_add(x * y);
        }
    }
    black_box(sums);
    2 * SUMS as u64 * steps
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::SUMS;
    #[cfg(target_os = "linux")]
    use crate::isa::Kernel;
    #[cfg(target_os = "linux")]
    use crate::simd::Simd;

    /// Multiply-adds of bf16: 32 in one instruction.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn bf16(steps: u64) -> u64 {
        // 1.0 in every place.
        let ones = _mm512_set1_epi16(black_box(0x3f80));
        // SAFETY: both are 512 bits of anything.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..steps {
            sums.iter_mut()
                .for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
        }
        black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
        (2 * 32 * SUMS) as u64 * steps
    }

    /// Multiply-adds of bytes: 64 in one instruction.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn vnni(steps: u64) -> u64 {
        let (x, y) = (_mm512_set1_epi8(black_box(93)), _mm512_set1_epi8(black_box(-57)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..steps {
            sums.iter_mut()
                .for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, x, y));
        }
        black_box(sums.map(|sum| _mm512_reduce_add_epi32(sum)));
        (2 * 64 * SUMS) as u64 * steps
    }

    /// Bytes widened to 16 bits, two products and their sum in one instruction, and another to add that. In assembly, as
    /// the compiler would do the products once, which never change.
    macro_rules! madd {
        ($register:ident, $prefix:literal, $steps:ident, $x:ident, $y:ident, $sums:ident) => {
            for _ in 0..$steps {
                for sum in &mut $sums {
                    // SAFETY: arithmetic on registers.
                    unsafe {
                        asm!(
                            "vpmaddwd {product}, {x}, {y}",
                            concat!($prefix, " {sum}, {sum}, {product}"),
                            product = out($register) _, x = in($register) $x, y = in($register) $y,
                            sum = inout($register) *sum,
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                }
            }
        };
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn madd_512(steps: u64) -> u64 {
        let (x, y) = (
            _mm512_set1_epi16(black_box(93)),
            _mm512_set1_epi16(black_box(-57)),
        );
        let mut sums = [_mm512_setzero_si512(); SUMS];
        madd!(zmm_reg, "vpaddd", steps, x, y, sums);
        black_box(sums.map(|sum| _mm512_reduce_add_epi32(sum)));
        (2 * 32 * SUMS) as u64 * steps
    }

    /// # Safety
    /// The processor has the instructions.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn madd_256(steps: u64) -> u64 {
        let (x, y) = (
            _mm256_set1_epi16(black_box(93)),
            _mm256_set1_epi16(black_box(-57)),
        );
        let mut sums = [_mm256_setzero_si256(); SUMS];
        madd!(ymm_reg, "vpaddd", steps, x, y, sums);
        black_box(sums.map(|sum| _mm256_extract_epi32::<0>(sum)));
        (2 * 16 * SUMS) as u64 * steps
    }

    /// Products of AMX tiles: of bytes, or of bf16.
    #[cfg(target_os = "linux")]
    pub(super) struct Tiles<const BYTES: bool>(pub(super) u64);

    /// Six sums and two operands are all eight tiles.
    #[cfg(target_os = "linux")]
    macro_rules! tiles {
        ($instruction:literal, $operand:expr, $steps:expr) => {
            asm!(
                "tileloadd tmm6, [{operand} + {row}*1]",
                "tileloadd tmm7, [{operand} + {row}*1]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
                "2:",
                concat!($instruction, " tmm0, tmm6, tmm7"),
                concat!($instruction, " tmm1, tmm6, tmm7"),
                concat!($instruction, " tmm2, tmm6, tmm7"),
                concat!($instruction, " tmm3, tmm6, tmm7"),
                concat!($instruction, " tmm4, tmm6, tmm7"),
                concat!($instruction, " tmm5, tmm6, tmm7"),
                "dec {n}", "jnz 2b",
                operand = in(reg) $operand, row = in(reg) 64usize, n = inout(reg) $steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            )
        };
    }

    #[cfg(target_os = "linux")]
    impl<const BYTES: bool> Kernel for Tiles<BYTES> {
        type Output = u64;

        #[inline(always)]
        fn run<S: Simd>(self) -> u64 {
            /// One step is 16 times longer than one of vectors.
            const SHARE: u64 = 16;
            let steps = (self.0 / SHARE).max(1);
            let ones = [0x3f80u16; 16 * 32];
            S::begin();
            // SAFETY: only `Isa::Amx` comes here, the tiles are configured, and 1024 bytes can be read. As bytes, 0x3f80
            // are 63 and 128 (or −128), as good as any.
            unsafe {
                if BYTES {
                    tiles!("tdpbusd", ones.as_ptr(), steps);
                } else {
                    tiles!("tdpbf16ps", ones.as_ptr(), steps);
                }
            }
            S::end();
            let products = 16 * 16 * if BYTES { 64 } else { 32 };
            2 * 6 * products * steps
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That it is fast cannot be tested where anything may run beside; that it runs, and is not zero, can.
    #[test]
    fn every_level_has_a_peak() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
                let found = peak(isa, arithmetic, 1).unwrap();
                assert!(found > 1e7, "{isa} {arithmetic:?}: {found:e}");
                println!("{isa:12} {arithmetic:?}: {:.1} G", found / 1e9);
            }
        }
    }
}
