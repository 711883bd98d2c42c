//! `doctor`: what this machine offers, and how fast its memory and its arithmetic are.

use std::fmt;
use std::num::NonZeroUsize;

use serde::Serialize;
use vitesse::engine::Isa;
use vitesse::measure::machine::{Machine, Peak, advice, cache, start_threads};
use vitesse::report::format::counted;
use vitesse::report::{Table, format, right};

use super::Console;
use super::args::thread_count;
use super::failure::{Failure, Result};
use super::outcome::{Outcome, pairs};

/// Tell what this machine offers: cores, memory, instruction sets, measured peaks
///
/// Two peaks bound everything a model can do: how many bytes a second come out of memory (a triad, `a = b + s·c`, over
/// arrays larger than the caches) and how many multiply-adds a second the cores do in registers, in each number format of
/// the engine. Each is measured with one thread and with more. Takes a few seconds; other programs running meanwhile make
/// it worse. VITESSE_ISA=avx2 (or scalar, avx512, avx512-vnni, avx512-bf16, amx) makes the engine use less than there is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse doctor
  vitesse doctor --threads 4
  vitesse doctor --clear-cache
  vitesse doctor --json > machine.json")]
pub(super) struct Args {
    /// The most threads to measure with [default: one a core]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<NonZeroUsize>,
    /// Forget the latencies that `prune --latency` measured on this machine, and measure nothing
    #[arg(long, conflicts_with = "threads")]
    clear_cache: bool,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        if self.clear_cache {
            return Outcome::new(&Cleared {
                cleared_tables: cache::clear()?,
            });
        }
        start_threads(self.threads)?;
        Outcome::new(&examine(rayon::current_num_threads(), console)?)
    }
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// What can run a model: the engine, and in a build that trains, the network's backend.
    backends: Vec<&'static str>,
    /// The instructions that the engine uses.
    isa: &'static str,
    machine: Machine,
    /// With one thread, then with more.
    peaks: Vec<Peak>,
    advice: String,
    latency_tables: LatencyTables,
}

/// What `prune --latency` has measured so far.
#[derive(Debug, Serialize)]
struct LatencyTables {
    /// `None` where the system has no place for them.
    folder: Option<String>,
    count: usize,
}

/// What became of the tables.
#[derive(Debug, Serialize)]
struct Cleared {
    cleared_tables: usize,
}

impl fmt::Display for Cleared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} forgotten", counted(self.cleared_tables, "latency table"))
    }
}

fn examine(threads: usize, console: &Console) -> Result<Report> {
    let machine = Machine::look();
    let isa = Isa::choose().map_err(Failure::usage)?;
    let mut peaks = Vec::new();
    for threads in powers_of_two_up_to(threads) {
        console.check()?;
        peaks.push(Peak::measure(threads, isa, &machine)?);
    }
    let advice = advice(&machine, isa, &peaks);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        backends: backends(),
        isa: isa.name(),
        machine,
        peaks,
        advice,
        latency_tables: LatencyTables {
            folder: cache::folder().map(|folder| folder.display().to_string()),
            count: cache::tables().len(),
        },
    })
}

/// 1, 2, 4, … and the number itself.
fn powers_of_two_up_to(threads: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2))
        .take_while(|&n| n < threads)
        .collect();
    counts.push(threads);
    counts
}

fn backends() -> Vec<&'static str> {
    let mut all = vec!["vitesse"];
    if cfg!(feature = "train") {
        all.push("burn 0.22.1, flex");
    }
    all
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let unknown = || "not known".to_owned();
        let mut rows = vec![
            ("vitesse", self.version.to_owned()),
            ("computes with", self.backends.join(", ")),
            ("engine uses", self.isa.to_owned()),
            ("system", format!("{} {}", machine.os, machine.arch)),
            ("processor", machine.processor.clone().unwrap_or_else(unknown)),
            ("cores", machine.cores.to_string()),
            (
                "largest cache",
                machine.largest_cache_bytes.map_or_else(unknown, format::bytes),
            ),
            ("memory", machine.memory_bytes.map_or_else(unknown, format::bytes)),
            (
                "available",
                machine.available_bytes.map_or_else(unknown, format::bytes),
            ),
        ];
        rows.push(("instructions", machine.instructions.join(" ")));
        if let Some(folder) = &self.latency_tables.folder {
            rows.push((
                "latency tables",
                format!("{} in {folder}", self.latency_tables.count),
            ));
        }
        f.write_str(&pairs(rows))?;
        let mut table = Table::new([
            right("threads"),
            right("memory"),
            right("f32"),
            right("bf16"),
            right("int8"),
        ]);
        for peak in &self.peaks {
            table.push([
                peak.threads.to_string(),
                format::si(peak.memory_bytes_per_s, "B/s"),
                format::si(peak.f32_flops, "FLOP/s"),
                format::si(peak.bf16_flops, "FLOP/s"),
                format::si(peak.int8_ops, "OP/s"),
            ]);
        }
        write!(f, "\n{table}\n{}\n", capitalised(&self.advice))
    }
}

fn capitalised(sentence: &str) -> String {
    let mut chars = sentence.chars();
    let first = chars
        .next()
        .map(|c| c.to_uppercase().to_string())
        .unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}
