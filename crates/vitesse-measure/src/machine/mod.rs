//! What the machine says about itself, and how fast it is.

mod bandwidth;
pub mod cache;
mod peaks;

use std::fs;
use std::num::NonZeroUsize;

use serde::Serialize;

use crate::{Error, Result};
pub(crate) use peaks::Peaks;
pub use peaks::{Peak, advice};
pub use vitesse_data::{cores, most_threads};

/// The machine as this process sees it: a container's limits count.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The operating system.
    pub os: &'static str,
    /// The processor's architecture.
    pub arch: &'static str,
    /// The processor's name.
    pub processor: Option<String>,
    /// Logical cores this process may use.
    pub cores: usize,
    /// The largest cache of the first core.
    pub largest_cache_bytes: Option<u64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// What of it is free.
    pub available_bytes: Option<u64>,
    /// Instruction sets that matter to arithmetic, weakest first.
    pub instructions: Vec<&'static str>,
}

impl Machine {
    /// Looks around. What is not known on this system is left out.
    pub fn look() -> Machine {
        let container = container_limit();
        let within = |bytes: u64| container.map_or(bytes, |limit| limit.min(bytes));
        Machine {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            processor: processor(),
            cores: cores(),
            largest_cache_bytes: largest_cache(),
            memory_bytes: memory("MemTotal").map(within),
            available_bytes: memory("MemAvailable").map(within),
            instructions: instructions(),
        }
    }

    /// Whether the vector instructions are missing that fast arithmetic needs.
    pub(crate) fn lacks_simd(&self) -> bool {
        let has = |name| self.instructions.contains(&name);
        match self.arch {
            "x86_64" => !(has("avx2") && has("fma")),
            "aarch64" => !has("neon"),
            _ => true,
        }
    }
}

/// Starts the process's computing threads, one a core unless a number is given. Before anything is computed, for the first
/// computation starts as many as there are cores.
///
/// # Errors
/// [`Error::Threads`] where the system gives no more; threads that were started before.
pub fn start_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let wanted = threads.map_or(0, NonZeroUsize::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(wanted);
    pool.build_global().map_err(|error| Error::Threads {
        threads: threads.map_or_else(cores, NonZeroUsize::get),
        reason: error.to_string(),
    })
}

/// The processor's name, where the system tells.
pub fn processor() -> Option<String> {
    cpu_info("model name")
}

/// The most memory that this process has had in use at once, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM")
}

/// Forgets the peak so far, so that [`peak_memory`] tells that of what comes; `false` where the system cannot.
#[cfg(feature = "train")]
pub fn reset_peak_memory() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// A line of Linux's `/proc/meminfo`, in bytes.
fn memory(key: &str) -> Option<u64> {
    kilobytes("/proc/meminfo", key)
}

/// A line `key: … kB` of a file of Linux's, in bytes.
fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The memory a container may use, by the second version of Linux's control groups.
fn container_limit() -> Option<u64> {
    fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// A line of the first processor in Linux's `/proc/cpuinfo`.
fn cpu_info(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// The largest cache of the first core.
fn largest_cache() -> Option<u64> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |entry: std::io::Result<fs::DirEntry>| -> Option<u64> {
        let text = fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        Some(text.trim().strip_suffix('K')?.parse::<u64>().ok()? << 10)
    };
    caches.filter_map(size).max()
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    macro_rules! present {
        ($($name:tt)*) => {{
            let mut found = Vec::new();
            $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })*
            found
        }};
    }
    let mut found = present!(
        "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "f16c" "avx" "fma" "avx2" "avxvnni"
        "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16"
    );
    // The standard library does not detect AMX yet; Linux lists it.
    let flags = cpu_info("flags").unwrap_or_default();
    for (name, flag) in [
        ("amx-tile", "amx_tile"),
        ("amx-int8", "amx_int8"),
        ("amx-bf16", "amx_bf16"),
    ] {
        if flags.split_whitespace().any(|found| found == flag) {
            found.push(name);
        }
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<&'static str> {
    macro_rules! present {
        ($($name:tt)*) => {{
            let mut found = Vec::new();
            $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })*
            found
        }};
    }
    present!("neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}
