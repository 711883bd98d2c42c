//! Bytes a second between memory and cores: the triad `a = b + s·c` of McCalpin's STREAM.

use std::hint::black_box;
use std::time::Instant;

use super::Machine;

/// How often the triad is run; the fastest counts, because everything else that happens only slows it down.
const ROUNDS: usize = 4;

/// Bytes a second that `threads` threads reach together. Counted as in STREAM: two arrays read, one written.
pub(super) fn bandwidth(threads: usize, machine: &Machine) -> f64 {
    let len = array_bytes(machine) / size_of::<f32>();
    let chunk = len.div_ceil(threads.max(1));
    let mut a = vec![0f32; len];
    let b = vec![1f32; len];
    let c = vec![2f32; len];
    let scale = black_box(3f32);
    // One round more than counts: the first touches the pages of `a`.
    let rounds = (0..=ROUNDS).map(|_| {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for ((a, b), c) in a.chunks_mut(chunk).zip(b.chunks(chunk)).zip(c.chunks(chunk)) {
                scope.spawn(move || {
                    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                        *a = b + scale * c;
                    }
                });
            }
        });
        begun.elapsed().as_secs_f64()
    });
    let fastest = rounds.fold(f64::INFINITY, f64::min);
    black_box(&a);
    (3 * len * size_of::<f32>()) as f64 / fastest
}

/// One array: as large as the largest cache, so that three of them cannot stay in it; together at most a quarter of what
/// memory is free.
fn array_bytes(machine: &Machine) -> usize {
    const LEAST: u64 = 32 << 20;
    const MOST: u64 = 512 << 20;
    let wanted = machine.largest_cache_bytes.unwrap_or(LEAST).clamp(LEAST, MOST);
    let free = machine.available_bytes.unwrap_or(u64::MAX);
    wanted.min(free / 12).max(1 << 20) as usize
}
