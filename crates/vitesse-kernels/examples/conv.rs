//! Speed of the convolutions of RegNets and ConvNeXts, forward and backward: `conv [batch] [threads] [part of a name]`.

use std::hint::black_box;
use std::time::Instant;

use vitesse_kernels::Isa;
use vitesse_kernels::train::conv::{Conv, Layout};
use vitesse_kernels::train::{Math, Precision, keep_memory};

fn main() -> Result<(), String> {
    keep_memory();
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| match arguments.next() {
        Some(argument) => argument.parse().map_err(|error| format!("{argument}: {error}")),
        None => Ok(default),
    };
    let (batch, threads) = (number(8)?, number(1)?);
    let only = arguments.next().unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| error.to_string())?
        .install(|| table(batch, &only))
}

fn table(batch: usize, only: &str) -> Result<(), String> {
    let isa = Isa::choose()?;
    let math = Math {
        isa,
        precision: Precision::F32,
    };
    println!("{isa}, batch {batch}, GFLOP/s: forward, input's gradient, weight's gradient");
    // Name, channels in and out, groups, kernel, stride, size.
    for (name, [channels_in, channels_out], groups, kernel, stride, size) in [
        ("stem 3x3/2", [3, 32], 1, 3, 2, 224),
        ("160 stage 1, 3x3/2", [224, 224], 2, 3, 2, 112),
        ("160 stage 1, 3x3", [224, 224], 2, 3, 1, 56),
        ("160 stage 2, 3x3", [448, 448], 4, 3, 1, 28),
        ("160 stage 3, 3x3/2", [1232, 1232], 11, 3, 2, 28),
        ("160 stage 3, 3x3", [1232, 1232], 11, 3, 1, 14),
        ("160 stage 4, 3x3/2", [3024, 3024], 27, 3, 2, 14),
        ("160 stage 2, 1x1", [448, 448], 1, 1, 1, 28),
        ("160 stage 3, 1x1", [1232, 1232], 1, 1, 1, 14),
        ("016 stage 1, 3x3", [48, 48], 2, 3, 1, 56),
        ("016 stage 2, 3x3", [120, 120], 5, 3, 1, 28),
        ("016 stage 3, 3x3", [336, 336], 14, 3, 1, 14),
        ("016 stage 4, 3x3/2", [888, 888], 37, 3, 2, 14),
        ("002 stage 3, 3x3", [152, 152], 19, 3, 1, 14),
        ("nano 32, 3x3", [32, 32], 2, 3, 1, 32),
        ("depth-wise 7x7", [96, 96], 96, 7, 1, 56),
        ("depth-wise 7x7", [192, 192], 192, 7, 1, 28),
        ("depth-wise 7x7", [384, 384], 384, 7, 1, 14),
        ("depth-wise 7x7", [768, 768], 768, 7, 1, 7),
        ("depth-wise 3x3", [192, 192], 192, 3, 1, 28),
    ]
    .into_iter()
    .filter(|(name, ..)| name.contains(only))
    {
        let conv = Conv {
            batch,
            channels_in,
            channels_out,
            groups,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            size: [size; 2],
            layout: Layout::ChannelsFirst,
        };
        let numbers = |len: usize| -> Vec<f32> { (0..len).map(|i| (i % 19) as f32 * 0.1 - 0.9).collect() };
        let (input, weight) = (numbers(conv.input_len()), numbers(conv.weight_len()));
        let grad = numbers(conv.output_len());
        let speed = |pass: &dyn Fn() -> Vec<f32>| {
            let time = |_| {
                let start = Instant::now();
                black_box(pass());
                start.elapsed().as_secs_f64()
            };
            let best = (0..5).map(time).fold(f64::MAX, f64::min);
            2e-9 * conv.macs() as f64 / best
        };
        println!(
            "{name:20} {channels_in:5} / {groups:3} at {size:3}: {:6.1} {:6.1} {:6.1}",
            speed(&|| conv.forward(math, &input, &weight, None)),
            speed(&|| conv.backward_input(math, &grad, &weight)),
            speed(&|| conv.backward_weight(math, &input, &grad)),
        );
    }
    Ok(())
}
