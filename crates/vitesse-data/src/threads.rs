//! How many threads there can be.

/// Logical cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The most threads that can be asked for: four for each core, for nothing is gained beyond one and thousands on a few cores
/// keep a machine from everything else. 64 in any case, so that what was set for a larger machine is understood on a small one.
pub fn most_threads() -> usize {
    (4 * cores()).max(64)
}
