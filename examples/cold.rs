//! Latency of one image from cold caches: between runs something else went through memory, as in a program that classifies now and then.
//!
//! `cargo run --release --example cold -- [--precision f32|bf16|int8] MODEL [MODEL …]` (folders or names of the zoo). Models take turns; ratios are
//! medians, over rounds, of a model's time to the first model's.

use std::time::Instant;

use vitesse::Result;
use vitesse::engine::{Engine, Options, Precision};
use vitesse::model::{Checkpoint, LoadOptions};

/// Rounds; in each, every model runs from cold caches and then once more.
const ROUNDS: usize = 31;
/// More than the caches of any machine that this is meant for.
const SWEEP: usize = 512 << 20;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Writes to every cache line of the room, so that what the caches held before is gone.
fn sweep(room: &mut [u8], round: usize) {
    for byte in room.iter_mut().step_by(64) {
        *byte = byte.wrapping_add(round as u8 | 1);
    }
}

fn main() -> Result<()> {
    let mut models: Vec<String> = std::env::args().skip(1).collect();
    let mut precision = Precision::F32;
    if models.first().is_some_and(|first| first == "--precision") {
        let name = models.drain(..models.len().min(2)).nth(1).unwrap_or_default();
        precision = match name.as_str() {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            "int8" => Precision::Int8,
            other => {
                eprintln!("--precision: `{other}` is none of f32, bf16, int8");
                std::process::exit(2);
            }
        };
    }
    if models.is_empty() {
        eprintln!("usage: cold [--precision f32|bf16|int8] MODEL…");
        std::process::exit(2);
    }
    let mut engines = Vec::new();
    for model in &models {
        let checkpoint = match std::path::Path::new(model).exists() {
            true => Checkpoint::load(model, &LoadOptions::default())?,
            false => Checkpoint::fresh(model, None, None, 0)?,
        };
        let options = Options {
            precision,
            ..Options::default()
        };
        let engine = Engine::new(&checkpoint.spec, &checkpoint.tensors, model, options)?;
        let numbers: usize = checkpoint.spec.input_size().iter().product();
        engines.push((engine, vec![0.5; numbers]));
    }
    let mut room = vec![0u8; SWEEP];
    let mut times = vec![[Vec::new(), Vec::new()]; engines.len()];
    for round in 0..ROUNDS {
        for turn in 0..engines.len() {
            let at = (turn + round) % engines.len();
            let (engine, images) = &engines[at];
            sweep(&mut room, round);
            for times in &mut times[at] {
                let start = Instant::now();
                engine.run(images, 1)?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    println!("model, packed MiB, cold ms, warm ms, cold and warm as times of the first model's");
    for (i, (name, (engine, _))) in models.iter().zip(&engines).enumerate() {
        let mib = engine.packed_bytes() as f64 / f64::from(1 << 20);
        let [cold, warm] = [0, 1].map(|kind| median(times[i][kind].clone()));
        let ratio = |kind: usize| {
            let pairs = times[i][kind].iter().zip(&times[0][kind]);
            median(pairs.map(|(time, first)| time / first).collect())
        };
        println!(
            "{name}, {mib:.1}, {cold:.2}, {warm:.2}, {:.3}, {:.3}",
            ratio(0),
            ratio(1)
        );
    }
    Ok(())
}
