use std::time::Instant;
use vitesse_engine::*;
use vitesse_model::{Checkpoint, LoadOptions, storage::safetensors};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let t0 = Instant::now();
    let checkpoint = Checkpoint::load(std::path::Path::new(&args[1]), &LoadOptions::default()).unwrap();
    let (t, _) = safetensors::read(std::path::Path::new(&args[2])).unwrap();
    let x = t.get("pixel_values").unwrap();
    let y = t.get("logits").unwrap().to_f32().into_owned();
    let images = x.to_f32().into_owned();
    let size: usize = x.shape()[1..].iter().product();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let t1 = Instant::now();
        let engine = Engine::new(&checkpoint.spec, &checkpoint.tensors, "x", Options { threads: 2, precision, isa: None }).unwrap();
        let t2 = Instant::now();
        let out = engine.run(&images[..size * 1], 1).unwrap();
        println!("{precision} {} compile {:.1} ms first {:.1} ms", engine.isa(), (t2 - t1).as_secs_f64() * 1e3, t2.elapsed().as_secs_f64() * 1e3);
        let all = engine.run(&images, x.shape()[0]).unwrap();
        let diff = all.class.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let d1 = out.class.iter().zip(&all.class).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("  max diff {diff:e}  batch1 vs batch {d1:e}");
        for b in [1usize, 16] {
            if b > x.shape()[0] { continue; }
            let mut o = Output::default();
            let mut times: Vec<f64> = (0..if b == 1 { 200 } else { 20 }).map(|_| { let t = Instant::now(); engine.run_into(&images[..b * size], b, &mut o).unwrap(); t.elapsed().as_secs_f64() * 1e3 }).collect();
            times.sort_by(f64::total_cmp);
            println!("  batch {b}: min {:.2} p50 {:.2} ms", times[0], times[times.len() / 2]);
        }
        for b in [1usize, 16] {
        engine.profile(&images[..size * b], b).unwrap();
        let p = engine.profile(&images[..size * b], b).unwrap();
        let mut sums = [0.0; 8];
        for l in &p.layers { for (s, d) in sums.iter_mut().zip(l) { *s += d.as_secs_f64() * 1e3; } }
        for (s, stage) in sums.iter().zip(Stage::ALL) { print!(" {stage:?} {s:.2}"); }
        println!();
    }}
    let _ = t0;
}
