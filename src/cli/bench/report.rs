//! What was measured: for programs, for people, and as timm writes it.

use std::fmt;

use serde::Serialize;
use vitesse::engine::Precision;
use vitesse::report::{Table, format, left, right};

use super::measure::Latency;
use super::profile::Profiled;
use crate::cli::model::Weights;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) results: Vec<Row>,
}

/// One configuration.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// As typed.
    pub(super) model: String,
    pub(super) batch: usize,
    pub(super) precision: Precision,
    pub(super) threads: usize,
    pub(super) isa: &'static str,
    /// Of one run with the whole batch.
    pub(super) latency_ms: Latency,
    /// All images over all of the measured time.
    pub(super) images_per_s: f64,
    /// Nominal multiply-accumulates of one image, 10⁹.
    pub(super) gmacs: f64,
    /// Twice the executed multiply-accumulates a second over `peak_gops`.
    pub(super) peak_fraction: f64,
    /// Those that the engine does: it leaves out what nobody reads.
    pub(super) gmacs_executed: f64,
    /// What the threads reach in registers alone, 10⁹ operations a second.
    pub(super) peak_gops: f64,
    pub(super) architecture: String,
    pub(super) weights: Weights,
    /// Height and width.
    pub(super) img_size: [usize; 2],
    pub(super) params: usize,
    /// As they came: in the file, or as drawn.
    pub(super) weight_bytes: usize,
    /// As the engine holds them.
    pub(super) packed_bytes: usize,
    /// Of the process so far, all models and images included.
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) compile_ms: f64,
    pub(super) runs: usize,
    /// The mean latency, which `images_per_s` comes from.
    pub(super) mean_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile: Option<Profiled>,
}

/// `1 thread`, `2 threads`.
pub(in crate::cli) fn threads(count: usize) -> String {
    format!("{count} thread{}", if count == 1 { "" } else { "s" })
}

impl Report {
    /// timm's columns and ours.
    pub(super) fn csv(&self) -> String {
        let mut table = Table::new([
            left("model"),
            right("infer_samples_per_sec"),
            right("infer_step_time"),
            right("infer_batch_size"),
            right("infer_img_size"),
            right("infer_gmacs"),
            right("param_count"),
            left("precision"),
            right("threads"),
            left("isa"),
        ]);
        for row in &self.results {
            let [height, width] = row.img_size;
            table.push([
                row.model.clone(),
                format!("{:.2}", row.images_per_s),
                format!("{:.3}", row.mean_ms),
                row.batch.to_string(),
                // timm's images are square.
                if height == width {
                    height.to_string()
                } else {
                    format!("{height}x{width}")
                },
                format!("{:.4}", row.gmacs),
                format!("{:.4}", row.params as f64 / 1e6),
                row.precision.to_string(),
                row.threads.to_string(),
                row.isa.to_owned(),
            ]);
        }
        table.to_csv()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            left("model"),
            left("precision"),
            left("ISA"),
            right("threads"),
            right("batch"),
            right("p50 ms"),
            right("p90 ms"),
            right("p99 ms"),
            right("min ms"),
            right("images/s"),
            right("GMACs"),
            right("of peak"),
        ]);
        for row in &self.results {
            let Latency { p50, p90, p99, min } = row.latency_ms;
            let [p50, p90, p99, min] = [p50, p90, p99, min].map(|ms| format!("{ms:.3}"));
            table.push([
                row.model.clone(),
                row.precision.to_string(),
                row.isa.to_owned(),
                row.threads.to_string(),
                row.batch.to_string(),
                p50,
                p90,
                p99,
                min,
                format!("{:.1}", row.images_per_s),
                format!("{:.3}", row.gmacs),
                format!("{:.1} %", 100.0 * row.peak_fraction),
            ]);
        }
        write!(f, "{table}\n{}", self.sizes())?;
        if let Some(bytes) = self.results.iter().filter_map(|row| row.peak_memory_bytes).max() {
            writeln!(f, "\nthe process used {} of memory at most", format::bytes(bytes))?;
        }
        for row in &self.results {
            if let Some(profile) = &row.profile {
                let (model, threads) = (&row.model, threads(row.threads));
                write!(
                    f,
                    "\n{model}, {}, {threads}, {}, batches of {}: {profile}",
                    row.precision, row.isa, row.batch
                )?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// What does not depend on the batch.
    fn sizes(&self) -> Table {
        let mut table = Table::new([
            left("model"),
            left("precision"),
            right("parameters"),
            right("weights"),
            right("packed"),
            right("compiled in"),
            right("GMACs done"),
            right("peak"),
        ]);
        let mut before = None;
        for row in &self.results {
            let key = (&row.model, row.precision, row.isa, row.threads);
            if before.replace(key) == Some(key) {
                continue;
            }
            table.push([
                row.model.clone(),
                row.precision.to_string(),
                format::count(row.params as u64),
                format::bytes(row.weight_bytes as u64),
                format::bytes(row.packed_bytes as u64),
                format::duration(row.compile_ms / 1e3),
                format!("{:.3}", row.gmacs_executed),
                format::si(row.peak_gops * 1e9, "OP/s"),
            ]);
        }
        table
    }
}
