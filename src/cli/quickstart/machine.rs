//! What the system says about this process. Where it says nothing, the report leaves it out.

use std::fs;

/// The processor's name.
pub(super) fn processor() -> Option<String> {
    entry("/proc/cpuinfo", "model name")
}

/// The most memory that this process has had in use at once, in bytes.
pub(super) fn peak_memory() -> Option<u64> {
    let text = entry("/proc/self/status", "VmHWM")?;
    Some(text.strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The first `key: value` of a file of Linux's.
fn entry(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}
