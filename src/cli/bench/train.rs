//! `bench --train`: steps of training instead of runs of the engine.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;
use vitesse::measure::bench::segments::Profiled;
use vitesse::measure::bench::steps::{self, Quartiles, Row, Steps};
use vitesse::report::format::counted;
use vitesse::report::{Table, format, left, right};
use vitesse_kernels::train::keep_memory;
use vitesse_train::recipe::{self, TrainConfig};

use super::Args;
use crate::cli::Console;
use crate::cli::args::model::ReadArgs;
use crate::cli::failure::Result;
use crate::cli::outcome::Outcome;
use crate::cli::show::Show;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Trained {
    /// Every weight
    All,
    /// The classifier alone; the rest of the model is computed forward only
    Head,
    /// LoRA's updates of rank 8 on qkv, and the classifier
    Lora,
}

/// The format of mixed precision.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Amp {
    /// Products round their inputs to bf16
    Bf16,
}

#[derive(Debug, Serialize)]
struct Report {
    results: Vec<Row>,
}

/// Measures every model with every number of threads and every batch size.
pub(super) fn run(args: &Args, trained: Trained, console: &Console) -> Result<Outcome> {
    keep_memory();
    let load = |model: &str| {
        let checkpoint = args.load.load(model, &ReadArgs::default(), None, console)?;
        Ok((model.to_owned(), checkpoint))
    };
    let compute = TrainConfig {
        amp: args.amp.map(|Amp::Bf16| recipe::Amp::Bf16),
        grad_checkpointing: args.grad_checkpointing,
        ..TrainConfig::default()
    };
    let steps = Steps {
        models: args.models().map(load).collect::<Result<_>>()?,
        trained: match trained {
            Trained::All => steps::Trained::All,
            Trained::Head => steps::Trained::Head,
            Trained::Lora => steps::Trained::Lora,
        },
        batches: args.forms.batches(),
        threads: args.threads(),
        compute: compute.compute(),
        budget: args.budget(),
        profile: args.profile,
    };
    Outcome::new(&Report {
        results: steps.run(console.stop(), &mut Show::new(console))?,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            left("model"),
            right("batch"),
            left("ISA"),
            right("threads"),
            right("median ms"),
            right("p25 ms"),
            right("p75 ms"),
            right("images/s"),
            right("parameters"),
            right("trained"),
        ]);
        for row in &self.results {
            let Quartiles { median, p25, p75 } = row.step_ms;
            table.push([
                row.model.clone(),
                row.batch.to_string(),
                row.isa.to_owned(),
                row.threads.to_string(),
                format!("{median:.1}"),
                format!("{p25:.1}"),
                format!("{p75:.1}"),
                format::number(row.images_per_s),
                format::count(row.param_count as u64),
                format::count(row.trained_param_count as u64),
            ]);
        }
        write!(f, "steps of training\n{table}")?;
        if let Some(bytes) = self.results.iter().filter_map(|row| row.peak_memory_bytes).max() {
            writeln!(f, "\nthe process used {} of memory at most", format::bytes(bytes))?;
        }
        for row in &self.results {
            if let Some(profile) = &row.profile {
                let (model, threads) = (&row.model, counted(row.threads, "thread"));
                let precision = row.amp.unwrap_or("f32");
                write!(
                    f,
                    "\n{model}, {precision}, {threads}, {}, batches of {}: {}",
                    row.isa,
                    row.batch,
                    profiled(profile)
                )?;
            }
        }
        Ok(())
    }
}

/// Where the time goes.
fn profiled(profile: &Profiled) -> String {
    let Profiled {
        steps,
        peak_gflops,
        memory_gbytes_per_s,
        parts,
    } = profile;
    let mut table = Table::new([
        left("pass"),
        left("segment"),
        right("runs"),
        right("ms"),
        right("share"),
        right("GFLOP/s"),
        right("of peak"),
        right("GB/s"),
    ]);
    let whole = parts.last().map_or(0.0, |all| all.time_ms);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let spell = |value: Option<f64>, spell: &dyn Fn(f64) -> String| {
        value.map_or_else(|| format::MISSING.to_owned(), spell)
    };
    for part in parts {
        table.push([
            part.pass.to_owned(),
            part.name.clone(),
            part.runs.to_string(),
            format!("{:.2}", part.time_ms),
            percent(part.time_ms / whole),
            spell(part.gflops, &|gflops| format!("{gflops:.0}")),
            spell(part.gflops, &|gflops| percent(gflops / peak_gflops)),
            spell(part.gbytes_per_s, &|gbytes| format!("{gbytes:.1}")),
        ]);
    }
    format!(
        "medians of {}; the peak is {peak_gflops:.0} GFLOP/s, memory gives {memory_gbytes_per_s:.1} GB/s\n{table}",
        counted(*steps, "step"),
    )
}
