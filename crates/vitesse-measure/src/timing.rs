//! Times of an engine's runs, and numbers for it to run on.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use vitesse_engine::{Engine, Output};
use vitesse_rng::Key;

use crate::Result;
use crate::error::check;

/// The fewest runs before the first that counts.
const WARM_RUNS: usize = 3;
/// How long to warm up at most, where runs are short: caches, clock and the system's page tables settle.
const WARM: Duration = Duration::from_millis(300);

/// Normalised images of noise, `count` of them, the same every time.
pub fn noise(size: [usize; 3], count: usize) -> Vec<f32> {
    let mut rng = Key::new(0).with("bench").rng();
    (0..count * size.iter().product::<usize>())
        .map(|_| rng.normal() as f32)
        .collect()
}

/// How long to measure: until both have been reached.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// So long.
    pub time: Duration,
    /// So often.
    pub runs: usize,
}

/// Runs on the first `count` of `images`, `[images, channels, height, width]`, until the engine is warm, then takes the time
/// of each run, in seconds.
///
/// # Errors
/// Fewer images; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
pub fn measure(
    engine: &Engine,
    images: &[f32],
    count: usize,
    budget: Budget,
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let warm = Budget {
        time: WARM.min(budget.time / 4),
        runs: WARM_RUNS,
    };
    times(engine, images, count, warm, stop)?;
    times(engine, images, count, budget, stop)
}

/// As [`measure`], without warming up.
pub(crate) fn times(
    engine: &Engine,
    images: &[f32],
    count: usize,
    budget: Budget,
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let images = batch(engine, images, count);
    let mut out = Output::default();
    repeat(budget, stop, || Ok(engine.run_into(images, count, &mut out)?))
}

/// Runs `work` until the budget is spent; the time of each run, in seconds.
pub(crate) fn repeat(
    budget: Budget,
    stop: &AtomicBool,
    mut work: impl FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    let begun = Instant::now();
    while seconds.len() < budget.runs || begun.elapsed() < budget.time {
        check(stop)?;
        let started = Instant::now();
        work()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// The first `count` images. Where there are fewer, the engine will say so.
pub(crate) fn batch<'a>(engine: &Engine, images: &'a [f32], count: usize) -> &'a [f32] {
    let numbers = count * engine.spec().input_size().iter().product::<usize>();
    images.get(..numbers).unwrap_or(images)
}

/// Times of one run, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// What nine of ten runs stay below.
    pub p90: f64,
    /// What 99 of 100 runs stay below.
    pub p99: f64,
    /// The fastest.
    pub min: f64,
}

impl Latency {
    /// Of runs that took so many seconds.
    pub fn of(seconds: &[f64]) -> Latency {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| 1e3 * quantile(&sorted, share);
        Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            min: at(0.0),
        }
    }
}

/// The value below which a share of `sorted` lies, between two values in a straight line; NaN of nothing.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let value = |i: f64| sorted.get(i as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (value(at.floor()), value(at.ceil()));
    low + (high - low) * at.fract()
}

/// The middle of some values; NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 8.0);
        assert!((quantile(&values, 0.9) - 6.8).abs() < 1e-12);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn noise_is_normalised_and_the_same_every_time() {
        let images = noise([3, 8, 8], 20);
        let mean = images.iter().sum::<f32>() / images.len() as f32;
        assert!(images.len() == 3840 && mean.abs() < 0.1);
        assert_eq!(images[..192], noise([3, 8, 8], 1));
    }
}
