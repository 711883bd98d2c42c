//! Which instructions compute.
//!
//! Every kernel is written once, generic over [`Simd`], and compiled for each [`Isa`]. The choice is made at run time,
//! once, from what the processor has; `VITESSE_ISA` forces a lower one. Each level has everything of those before it.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Scalar, Simd};

/// A level of instructions, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable code without vector instructions: readable, always there, the oracle of the others.
    Scalar,
    /// 256-bit vectors: AVX2 with FMA.
    Avx2,
    /// 512-bit vectors: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same, with products of 8-bit integers (VNNI).
    Avx512Vnni,
    /// The same, with products of bf16.
    Avx512Bf16,
    /// The same, with tiles of bf16 and 8-bit integers (AMX).
    Amx,
}

impl Isa {
    /// Every level, weakest first.
    pub const ALL: [Isa; 6] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::Avx512,
        Isa::Avx512Vnni,
        Isa::Avx512Bf16,
        Isa::Amx,
    ];

    /// The name, as in `VITESSE_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Amx => "amx",
        }
    }

    /// The highest level that this processor and its operating system have.
    pub fn detect() -> Isa {
        Isa::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.is_supported())
            .unwrap_or(Isa::Scalar)
    }

    /// The level to use: the one that the environment variable `VITESSE_ISA` names, or the highest.
    ///
    /// # Errors
    /// A sentence, where the variable names no level or one that this processor lacks.
    pub fn choose() -> Result<Isa, String> {
        let Some(wanted) = std::env::var_os("VITESSE_ISA").filter(|value| !value.is_empty()) else {
            return Ok(Isa::detect());
        };
        let isa: Isa = wanted
            .to_string_lossy()
            .parse()
            .map_err(|error| format!("VITESSE_ISA: {error}"))?;
        if isa.is_supported() {
            return Ok(isa);
        }
        Err(format!(
            "VITESSE_ISA asks for `{isa}`, which this processor does not have; its highest is `{}`",
            Isa::detect()
        ))
    }

    /// Whether this processor has it. AMX also needs the operating system's permission, which is asked for here.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            // Under Miri only portable code runs.
            if cfg!(miri) {
                return self == Isa::Scalar;
            }
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
                Isa::Avx512 => {
                    Isa::Avx2.is_supported()
                        && has!("avx512f")
                        && has!("avx512bw")
                        && has!("avx512dq")
                        && has!("avx512vl")
                }
                Isa::Avx512Vnni => Isa::Avx512.is_supported() && has!("avx512vnni"),
                Isa::Avx512Bf16 => Isa::Avx512Vnni.is_supported() && has!("avx512bf16"),
                Isa::Amx => Isa::Avx512Bf16.is_supported() && crate::tile::amx_permitted(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Scalar
        }
    }

    /// Runs `kernel` with the instructions of this level.
    ///
    /// # Panics
    /// Where the processor lacks them; an [`Isa`] from [`Isa::detect`] or [`Isa::choose`] is always there.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Scalar => kernel.run::<Scalar>(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `checked` made sure that the processor has the instructions.
            _ => unsafe {
                match self.checked() {
                    Isa::Scalar | Isa::Avx2 => avx2(kernel),
                    Isa::Avx512 => avx512(kernel),
                    Isa::Avx512Vnni => avx512_vnni(kernel),
                    Isa::Avx512Bf16 => avx512_bf16(kernel),
                    Isa::Amx => amx(kernel),
                }
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unsupported(self),
        }
    }

    /// Itself, after a look at the processor; the first answer is remembered.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn checked(self) -> Isa {
        use std::sync::OnceLock;
        static HIGHEST: OnceLock<Isa> = OnceLock::new();
        if self > *HIGHEST.get_or_init(Isa::detect) {
            unsupported(self);
        }
        self
    }
}

#[cold]
fn unsupported(isa: Isa) -> ! {
    panic!("this processor does not have `{isa}`");
}

/// A computation generic over the instructions it is compiled for.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Computes. Must be `#[inline(always)]`, so that it is compiled with the caller's instructions.
    fn run<S: Simd>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<0>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<1>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<2>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn amx<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<3>>()
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == text)
            .ok_or_else(|| {
                let names: Vec<&str> = Isa::ALL.iter().map(|isa| isa.name()).collect();
                format!("unknown instruction set `{text}`; there are {}", names.join(", "))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
        }
        assert!("avx1024".parse::<Isa>().unwrap_err().contains("avx512-bf16"));
    }

    #[test]
    fn levels_below_the_highest_are_there_too() {
        let highest = Isa::detect();
        assert!(
            Isa::ALL
                .into_iter()
                .all(|isa| isa.is_supported() == (isa <= highest))
        );
    }
}
