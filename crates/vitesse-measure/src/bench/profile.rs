//! Where the time goes: by layer and by stage.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use vitesse_engine::{Engine, Stage};

use crate::Result;
use crate::error::check;
use crate::timing::{batch, median};

/// How long runs are profiled.
const TIME: Duration = Duration::from_secs(1);
/// How many there are at least and at most.
const RUNS: std::ops::RangeInclusive<usize> = 5..=500;

/// Milliseconds of the first thread in each stage.
#[derive(Debug, Clone)]
pub struct Stages(pub [f64; Stage::ALL.len()]);

/// Medians over some runs.
#[derive(Debug, Serialize)]
pub struct Profiled {
    /// How many.
    pub runs: usize,
    /// The whole model.
    pub stages: Stages,
    /// In the order of the forward pass. What is in no layer stands in the first and the last.
    pub layers: Vec<Stages>,
}

impl Profiled {
    /// Profiles runs on the first `count` of `images` for `time`, a second at most.
    ///
    /// # Errors
    /// Fewer images; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn measure(
        engine: &Engine,
        images: &[f32],
        count: usize,
        time: Duration,
        stop: &AtomicBool,
    ) -> Result<Profiled> {
        let images = batch(engine, images, count);
        let begun = Instant::now();
        let mut runs = Vec::new();
        while runs.len() < *RUNS.start() || (begun.elapsed() < TIME.min(time) && runs.len() < *RUNS.end()) {
            check(stop)?;
            runs.push(engine.profile(images, count)?.layers);
        }
        let layers = runs.first().map_or(0, Vec::len);
        let cell = |layer: usize, stage: usize| {
            let of = |run: &Vec<[Duration; Stage::ALL.len()]>| {
                run.get(layer).map(|stages| milliseconds(stages[stage]))
            };
            median(runs.iter().filter_map(of))
        };
        let sum = |stage: usize| {
            let of = |run: &Vec<[Duration; Stage::ALL.len()]>| {
                milliseconds(run.iter().map(|stages| stages[stage]).sum())
            };
            median(runs.iter().map(of))
        };
        Ok(Profiled {
            runs: runs.len(),
            stages: Stages(std::array::from_fn(sum)),
            layers: (0..layers)
                .map(|layer| Stages(std::array::from_fn(|stage| cell(layer, stage))))
                .collect(),
        })
    }
}

fn milliseconds(duration: Duration) -> f64 {
    1e3 * duration.as_secs_f64()
}

/// What a stage is called.
pub fn name(stage: Stage) -> String {
    format!("{stage:?}").to_lowercase()
}

impl Stages {
    /// All stages together.
    pub fn sum(&self) -> f64 {
        self.0.iter().sum()
    }
}

impl Serialize for Stages {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (stage, value) in Stage::ALL.into_iter().zip(&self.0) {
            map.serialize_entry(&name(stage), value)?;
        }
        map.end()
    }
}
