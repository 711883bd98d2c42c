//! Where the time goes: by layer and by stage.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use vitesse::engine::{Engine, Stage};
use vitesse::report::{Table, format, left, right};

use super::measure::{batch, median};
use crate::cli::Console;
use crate::cli::failure::Result;

/// How long runs are profiled.
const TIME: Duration = Duration::from_secs(1);
/// How many there are at least and at most.
const RUNS: std::ops::RangeInclusive<usize> = 5..=500;

/// Milliseconds of the first thread in each stage.
#[derive(Debug, Clone)]
struct Stages([f64; Stage::ALL.len()]);

/// Medians over some runs.
#[derive(Debug, Serialize)]
pub(super) struct Profiled {
    runs: usize,
    /// The whole model.
    stages: Stages,
    /// In the order of the forward pass. What is in no layer stands in the first and the last.
    layers: Vec<Stages>,
}

impl Profiled {
    pub(super) fn measure(
        engine: &Engine,
        images: &[f32],
        count: usize,
        time: Duration,
        console: &Console,
    ) -> Result<Profiled> {
        let images = batch(engine, images, count);
        let begun = Instant::now();
        let mut runs = Vec::new();
        while runs.len() < *RUNS.start() || (begun.elapsed() < TIME.min(time) && runs.len() < *RUNS.end()) {
            console.check()?;
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

fn name(stage: Stage) -> String {
    format!("{stage:?}").to_lowercase()
}

impl Stages {
    fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    /// Cells of a table, and the sum.
    fn cells(&self, spell: impl Fn(f64) -> String) -> impl Iterator<Item = String> {
        self.0.into_iter().chain([self.sum()]).map(spell)
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

impl fmt::Display for Profiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = Stage::ALL.into_iter().map(name).chain(["sum".to_owned()]);
        let mut table = Table::new([left("layer")].into_iter().chain(columns.map(right)));
        let spell = |value: f64| {
            if value > 0.0 {
                format!("{value:.3}")
            } else {
                format::MISSING.to_owned()
            }
        };
        for (i, layer) in self.layers.iter().enumerate() {
            table.push([i.to_string()].into_iter().chain(layer.cells(spell)));
        }
        table.push(["all".to_owned()].into_iter().chain(self.stages.cells(spell)));
        let whole = self.stages.sum();
        let share = |value: f64| format!("{:.1} %", 100.0 * value / whole);
        table.push(["share".to_owned()].into_iter().chain(self.stages.cells(share)));
        writeln!(f, "first thread, ms, medians of {} runs", self.runs)?;
        write!(f, "{table}")
    }
}
