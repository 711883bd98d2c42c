//! How fast memory and arithmetic are: the bounds of everything that a model can do here.

use serde::Serialize;
use vitesse_engine::{Engine, Precision};
use vitesse_kernels::{Arithmetic, Isa, peak};
use vitesse_words::counted;

use super::Machine;
use super::bandwidth::bandwidth;
use crate::{Error, Result};

/// What a number of threads reaches.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    /// How many.
    pub threads: usize,
    /// Of a triad over arrays larger than the caches.
    pub memory_bytes_per_s: f64,
    /// Operations a second, a multiply-add being two.
    pub f32_flops: f64,
    /// The same in bf16.
    pub bf16_flops: f64,
    /// The same in 8-bit integers.
    pub int8_ops: f64,
}

impl Peak {
    /// Measures what `threads` threads reach on `machine` with the instructions of `isa`, in about a second.
    ///
    /// # Errors
    /// Where the system gives no more threads.
    pub fn measure(threads: usize, isa: Isa, machine: &Machine) -> Result<Peak> {
        Ok(Peak {
            threads,
            memory_bytes_per_s: bandwidth(threads, machine),
            f32_flops: operations(isa, Arithmetic::F32, threads)?,
            bf16_flops: operations(isa, Arithmetic::Bf16, threads)?,
            int8_ops: operations(isa, Arithmetic::Int8, threads)?,
        })
    }
}

/// Operations a second.
fn operations(isa: Isa, arithmetic: Arithmetic, threads: usize) -> Result<f64> {
    peak(isa, arithmetic, threads).map_err(|error| Error::Threads {
        threads,
        reason: error.to_string(),
    })
}

/// Peaks of engines, of each the best that was seen: whatever else runs on the machine can only lower one.
#[derive(Debug, Default)]
pub(crate) struct Peaks(Vec<(Key, f64)>);

/// What a peak is of: instructions, arithmetic and threads.
pub(crate) type Key = (Isa, Precision, usize);

impl Peaks {
    /// Measures that of an engine once more.
    pub(crate) fn measure(&mut self, engine: &Engine) -> Result<Key> {
        let key = (engine.isa(), engine.precision(), engine.threads());
        let arithmetic = match engine.precision() {
            Precision::F32 => Arithmetic::F32,
            Precision::Bf16 => Arithmetic::Bf16,
            Precision::Int8 => Arithmetic::Int8,
        };
        let found = operations(engine.isa(), arithmetic, engine.threads())?;
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, best)) => *best = best.max(found),
            None => self.0.push((key, found)),
        }
        Ok(key)
    }

    /// The best seen, in operations a second.
    pub(crate) fn best(&self, key: Key) -> f64 {
        let found = self.0.iter().find(|(known, _)| *known == key);
        found.map_or(0.0, |(_, best)| *best)
    }
}

/// The one thing to know about a machine whose `peaks` were measured with one thread, then with more.
pub fn advice(machine: &Machine, isa: Isa, peaks: &[Peak]) -> String {
    if machine.lacks_simd() {
        return "the processor has none of the vector instructions that make models fast (AVX2 with FMA, or NEON): \
                expect a tenth of the usual speed"
            .to_owned();
    }
    let highest = Isa::detect();
    if isa < highest {
        return format!("VITESSE_ISA holds the engine at `{isa}`; this processor has `{highest}`");
    }
    let (Some(one), Some(all)) = (peaks.first(), peaks.last()) else {
        return String::new();
    };
    let fastest = |peak: &&Peak| peak.f32_flops;
    let best = peaks
        .iter()
        .max_by(|a, b| fastest(a).total_cmp(&fastest(b)))
        .map_or(1, |peak| peak.threads);
    // Less than that is noise.
    let faster = peaks
        .iter()
        .find(|peak| peak.threads == best)
        .is_some_and(|peak| fastest(&peak) > 1.1 * fastest(&all));
    if best < all.threads && faster {
        return format!(
            "{best} of {} threads are fastest here: try `--threads {best}`",
            all.threads
        );
    }
    let gain = fastest(&all) / fastest(&one);
    if all.threads > 1 && gain < 0.6 * all.threads as f64 {
        return format!(
            "{} threads compute only {gain:.1} times as much as one: the cores share units or other programs are running",
            all.threads
        );
    }
    let slow = match isa {
        Isa::Scalar | Isa::Avx2 => "; bf16 and int8 have no instructions here and save memory, not time",
        Isa::Avx512 => "; bf16 and int8 have no instructions of their own here and gain little",
        Isa::Avx512Vnni => "; bf16 has no instructions here, int8 has",
        Isa::Avx512Bf16 | Isa::Amx => "",
    };
    format!(
        "the default of {} suits this machine{slow}",
        counted(all.threads, "thread")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_that_are_slower_are_advised_against() {
        let machine = Machine::look();
        let peak = |threads, f32_flops| Peak {
            threads,
            memory_bytes_per_s: 1e9,
            f32_flops,
            bf16_flops: 1e9,
            int8_ops: 1e9,
        };
        if !machine.lacks_simd() {
            let advice = |last| advice(&machine, Isa::detect(), &[peak(1, 1e9), peak(2, 3e9), last]);
            assert!(advice(peak(4, 2e9)).contains("2 of 4 threads"));
            // A little slower is noise.
            assert!(!advice(peak(4, 2.9e9)).contains("fastest here"));
            assert!(advice(peak(8, 4e9)).contains("only 4.0 times"));
        }
    }
}
