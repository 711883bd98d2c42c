//! What `bench` found: for people, and as timm writes it.

use std::fmt;

use vitesse::engine::Stage;
use vitesse::measure::bench::Row;
use vitesse::measure::bench::profile::{Profiled, Stages, name};
use vitesse::measure::timing::Latency;
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};

use super::Report;

/// timm's columns and ours.
pub(super) fn csv(results: &[Row]) -> String {
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
    for row in results {
        let [height, width] = row.img_size;
        table.push([
            row.model.clone(),
            format!("{:.2}", row.images_per_s),
            format!("{:.3}", row.mean_latency_ms),
            row.batch.to_string(),
            // timm's images are square.
            if height == width {
                height.to_string()
            } else {
                format!("{height}x{width}")
            },
            format!("{:.4}", row.macs as f64 / 1e9),
            format!("{:.4}", row.param_count as f64 / 1e6),
            row.precision.to_string(),
            row.threads.to_string(),
            row.isa.to_owned(),
        ]);
    }
    table.to_csv()
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
            let Latency { p50, p90, p99, min } = row.latency_quantiles_ms;
            let [p50, p90, p99, min] = [p50, p90, p99, min].map(|ms| format::significant(ms, 3));
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
                format::number(row.images_per_s),
                format!("{:.3}", row.macs as f64 / 1e9),
                row.peak_fraction
                    .map_or_else(|| "void".to_owned(), |share| format!("{:.1} %", 100.0 * share)),
            ]);
        }
        writeln!(f, "{table}")?;
        if self.results.iter().any(|row| row.peak_fraction.is_none()) {
            writeln!(
                f,
                "void: faster than the peak, so other programs used the cores whenever the peak was measured; measure again on a \
                 quiet machine\n"
            )?;
        }
        write!(f, "{}", sizes(&self.results))?;
        if let Some(bytes) = self.results.iter().filter_map(|row| row.peak_memory_bytes).max() {
            writeln!(f, "\nthe process used {} of memory at most", format::bytes(bytes))?;
        }
        for row in &self.results {
            if let Some(profile) = &row.profile {
                let (model, threads) = (&row.model, counted(row.threads, "thread"));
                write!(
                    f,
                    "\n{model}, {}, {threads}, {}, batches of {}: {}",
                    row.precision,
                    row.isa,
                    row.batch,
                    profiled(profile)
                )?;
            }
        }
        Ok(())
    }
}

/// What does not depend on the batch.
fn sizes(results: &[Row]) -> Table {
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
    for row in results {
        let key = (&row.model, row.precision, row.isa, row.threads);
        if before.replace(key) == Some(key) {
            continue;
        }
        table.push([
            row.model.clone(),
            row.precision.to_string(),
            format::count(row.param_count as u64),
            format::bytes(row.weight_bytes as u64),
            format::bytes(row.packed_bytes as u64),
            format::duration(row.compile_ms / 1e3),
            format!("{:.3}", row.macs_executed as f64 / 1e9),
            format::si(row.peak_gops * 1e9, "OP/s"),
        ]);
    }
    table
}

/// Where the time goes.
fn profiled(profile: &Profiled) -> String {
    let columns = Stage::ALL.into_iter().map(name).chain(["sum".to_owned()]);
    let mut table = Table::new([left("layer")].into_iter().chain(columns.map(right)));
    let spell = |value: f64| {
        if value > 0.0 {
            format!("{value:.3}")
        } else {
            format::MISSING.to_owned()
        }
    };
    for (i, layer) in profile.layers.iter().enumerate() {
        table.push([i.to_string()].into_iter().chain(cells(layer, spell)));
    }
    table.push(
        ["all".to_owned()]
            .into_iter()
            .chain(cells(&profile.stages, spell)),
    );
    let whole = profile.stages.sum();
    let share = |value: f64| format!("{:.1} %", 100.0 * value / whole);
    table.push(
        ["share".to_owned()]
            .into_iter()
            .chain(cells(&profile.stages, share)),
    );
    format!(
        "first thread, ms, medians of {}\n{table}",
        counted(profile.runs, "run")
    )
}

/// Cells of a table, and the sum.
fn cells(stages: &Stages, spell: impl Fn(f64) -> String) -> impl Iterator<Item = String> {
    stages.0.into_iter().chain([stages.sum()]).map(spell)
}
