//! How fast models are, one after the other: latency, throughput, and the share of what the processor can do.
//!
//! | file | what |
//! | --- | --- |
//! | `profile` | times by layer and by stage |
//! | `steps` | steps of training instead of runs of the engine |
//! | `segments` | where the time of a step goes |

pub mod profile;
#[cfg(feature = "train")]
pub mod segments;
#[cfg(feature = "train")]
pub mod steps;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vitesse_engine::{Engine, Options, Precision};
use vitesse_model::Checkpoint;

use crate::error::check;
use crate::machine::{Peaks, peak_memory};
use crate::timing::{Budget, Latency, measure, noise};
use crate::{Events, Result, Weights, origin};
use profile::Profiled;
use vitesse_words::counted;

/// What is measured: every model with all options and batch sizes.
#[derive(Debug)]
pub struct Bench {
    /// What each model is called, and the model.
    pub models: Vec<(String, Checkpoint)>,
    /// How they are compiled.
    pub engines: Vec<Options>,
    /// Images in one forward pass.
    pub batches: Vec<usize>,
    /// For each of the configurations.
    pub budget: Budget,
    /// Whether it is also measured where the time goes.
    pub profile: bool,
}

/// One configuration.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What the model is called.
    pub model: String,
    /// Images in one forward pass.
    pub batch: usize,
    /// The number format.
    pub precision: Precision,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set.
    pub isa: &'static str,
    /// Of one run with the whole batch, the median.
    pub latency_ms: f64,
    /// Its quantiles.
    pub latency_quantiles_ms: Latency,
    /// All images over all of the measured time.
    pub images_per_s: f64,
    /// Nominal multiply-accumulates of one image.
    pub macs: u64,
    /// Twice the executed multiply-accumulates a second over `peak_gops`; absent where that is more than 1, because other
    /// programs must have used the cores whenever the peak was measured.
    pub peak_fraction: Option<f64>,
    /// Those that the engine does: it leaves out what nobody reads.
    pub macs_executed: u64,
    /// What the threads reach in registers alone, 10⁹ operations a second: the best seen before and after the samples.
    pub peak_gops: f64,
    /// The architecture.
    pub architecture: String,
    /// Where the weights come from.
    pub weights: Weights,
    /// Height and width.
    pub img_size: [usize; 2],
    /// Parameters.
    pub param_count: usize,
    /// As they came: in the file, or as drawn.
    pub weight_bytes: usize,
    /// As the engine holds them.
    pub packed_bytes: usize,
    /// Of the process so far, all models and images included.
    pub peak_memory_bytes: Option<u64>,
    /// How long compiling took.
    pub compile_ms: f64,
    /// Timed runs.
    pub runs: usize,
    /// The mean latency, which `images_per_s` comes from.
    pub mean_latency_ms: f64,
    /// Where the time goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profiled>,
}

impl Bench {
    /// Measures everything.
    ///
    /// # Errors
    /// A model that the engine does not run; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn run(&self, stop: &AtomicBool, events: &mut dyn Events) -> Result<Vec<Row>> {
        let (mut rows, mut keys) = (Vec::new(), Vec::new());
        let mut peaks = Peaks::default();
        let most = self.batches.iter().copied().max().unwrap_or(1);
        for (model, checkpoint) in &self.models {
            let images = noise(checkpoint.spec.input_size(), most);
            for &options in &self.engines {
                check(stop)?;
                let begun = Instant::now();
                let engine = Engine::new(
                    &checkpoint.spec,
                    &checkpoint.tensors,
                    &origin(checkpoint),
                    options,
                )?;
                let compiled = Compiled {
                    model,
                    checkpoint,
                    milliseconds: 1e3 * begun.elapsed().as_secs_f64(),
                    engine,
                };
                peaks.measure(&compiled.engine)?;
                for &batch in &self.batches {
                    let total = self.models.len() * self.engines.len() * self.batches.len();
                    let at = rows.len() + 1;
                    events.say(
                        "step",
                        &format!("{at} of {total}: {}, batches of {batch}", compiled.name()),
                    );
                    rows.push(self.row(&compiled, &images, batch, stop)?);
                    keys.push(peaks.measure(&compiled.engine)?);
                }
            }
        }
        for (row, key) in rows.iter_mut().zip(keys) {
            row.peak_gops = peaks.best(key) / 1e9;
            let fraction = 2.0 * row.macs_executed as f64 * row.images_per_s / (1e9 * row.peak_gops);
            row.peak_fraction = Some(fraction).filter(|&fraction| fraction <= 1.0);
        }
        Ok(rows)
    }

    fn row(&self, compiled: &Compiled<'_>, images: &[f32], batch: usize, stop: &AtomicBool) -> Result<Row> {
        let Compiled {
            engine, checkpoint, ..
        } = compiled;
        let times = measure(engine, images, batch, self.budget, stop)?;
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let images_per_s = batch as f64 / mean;
        let profile = self
            .profile
            .then(|| Profiled::measure(engine, images, batch, self.budget.time, stop))
            .transpose()?;
        let costs = checkpoint.spec.costs()?;
        let [_, height, width] = checkpoint.spec.input_size();
        let quantiles = Latency::of(&times);
        Ok(Row {
            model: compiled.model.to_owned(),
            batch,
            precision: engine.precision(),
            threads: engine.threads(),
            isa: engine.isa().name(),
            latency_ms: quantiles.p50,
            latency_quantiles_ms: quantiles,
            images_per_s,
            macs: costs.macs(),
            peak_fraction: None,
            macs_executed: engine.macs(),
            peak_gops: 0.0,
            architecture: checkpoint.spec.architecture.clone(),
            weights: Weights::of(checkpoint),
            img_size: [height, width],
            param_count: costs.parameters(),
            weight_bytes: checkpoint.tensors.total_bytes(),
            packed_bytes: engine.packed_bytes(),
            peak_memory_bytes: peak_memory(),
            compile_ms: compiled.milliseconds,
            runs: times.len(),
            mean_latency_ms: 1e3 * mean,
            profile,
        })
    }
}

/// A model ready to be measured.
struct Compiled<'a> {
    model: &'a str,
    checkpoint: &'a Checkpoint,
    engine: Engine,
    milliseconds: f64,
}

impl Compiled<'_> {
    fn name(&self) -> String {
        let threads = counted(self.engine.threads(), "thread");
        format!(
            "{}, {}, {threads}, {}",
            self.model,
            self.engine.precision(),
            self.engine.isa()
        )
    }
}
