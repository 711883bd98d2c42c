//! Images a second through a RegNet on the CPU, and through a training step without its optimiser, with fused segments
//! and with Burn's own operations, in turn: `regnet [name] [batch]`.

use std::error::Error;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use vitesse_kernels::train::keep_memory;
use vitesse_model::network::{Ctx, DropPath, Network};
use vitesse_model::zoo;
use vitesse_rng::Key;

fn main() -> Result<(), Box<dyn Error>> {
    keep_memory();
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "regnety_nano_32".into());
    let batch: usize = arguments.next().as_deref().unwrap_or("32").parse()?;
    let spec = zoo::get(&name)?.spec;
    let [channels, height, width] = spec.input_size();
    let weights = spec.init(0)?;
    println!(
        "{name}, {height}×{width}, batch {batch}: images/s in evaluation and in training, milliseconds each"
    );
    let mut best = [[f64::MAX; 2]; 2];
    for _ in 0..3 {
        for (best, fused) in best.iter_mut().zip([true, false]) {
            for (best, device) in best.iter_mut().zip([Device::flex(), Device::flex().autodiff()]) {
                let network = Network::new(&spec, &weights, &name, &device)?;
                let images = Tensor::random([batch, channels, height, width], Distribution::Default, &device);
                let train = device.is_autodiff();
                let mut ctx = if train {
                    Ctx::train(DropPath {
                        rate: 0.0,
                        key: Key::new(0),
                        first_sample: 0,
                    })
                } else {
                    Ctx::eval()
                };
                ctx.compute.fused = fused;
                let start = Instant::now();
                let logits = network.forward(images, &mut ctx)?.class;
                if train {
                    logits.sum().backward();
                } else {
                    logits.into_data();
                }
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    for (what, [eval, train]) in ["fused", "Burn"].into_iter().zip(best) {
        let speed = |seconds: f64| batch as f64 / seconds;
        println!(
            "{what:6} {:8.1} ({:.0} ms) {:8.1} ({:.0} ms)",
            speed(eval),
            1e3 * eval,
            speed(train),
            1e3 * train
        );
    }
    Ok(())
}
