//! The segments of a training step of DeiT-Tiny, 16 images at a time, forward and backward.

#[cfg(not(feature = "train"))]
fn main() {
    println!("needs the feature `train`");
}

#[cfg(feature = "train")]
fn main() -> Result<(), String> {
    use std::time::Instant;
    use vitesse_kernels::Isa;
    use vitesse_kernels::train::{Attention, Before, Linear, Math, Precision, Wanted, keep_memory};

    keep_memory();
    let isa = Isa::choose()?;
    println!("{isa}, {} threads", rayon::current_num_threads());
    let (batch, tokens, dim) = (16, 197, 192);
    let rows = batch * tokens;
    let numbers = |count: usize| -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 400.0)
            .collect()
    };
    let time = |name: &str, flops: f64, work: &mut dyn FnMut()| {
        let mut seconds: Vec<f64> = (0..9)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[4];
        println!(
            "  {name:<28} {:7.2} ms {:7.0} GFLOP/s",
            median * 1e3,
            flops / median / 1e9
        );
        median
    };
    let only = std::env::args().nth(1);
    for precision in [Precision::F32, Precision::Bf16] {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{precision:?}"))
        {
            continue;
        }
        println!("{precision:?}");
        let math = Math { isa, precision };
        let (gain, shift) = (numbers(dim), numbers(dim));
        let norm = Before::Norm {
            gain: &gain,
            shift: &shift,
            eps: 1e-6,
        };
        let mut total = 0.0;
        for (name, before, inputs, outputs) in [
            ("norm, qkv", norm, dim, 3 * dim),
            ("proj", Before::Nothing, dim, dim),
            ("norm, fc1", norm, dim, 4 * dim),
            ("gelu, fc2", Before::Gelu, 4 * dim, dim),
        ] {
            let (input, weight, bias) = (
                numbers(rows * inputs),
                numbers(inputs * outputs),
                numbers(outputs),
            );
            let grad = numbers(rows * outputs);
            let linear = Linear {
                input: &input,
                before,
                weight: &weight,
                bias: Some(&bias),
                factors: None,
                outputs,
                inputs,
            };
            let flops = 2.0 * (rows * inputs * outputs) as f64;
            let norm = matches!(before, Before::Norm { .. });
            let [parts, input] = [false, true].map(|input| Wanted {
                input,
                weight: !input,
                bias: !input,
                gain: input && norm,
                shift: input && norm,
            });
            total += time(name, flops, &mut || drop(linear.forward(math, None)));
            total += time("  gradient of the input", flops, &mut || {
                drop(linear.backward(math, &grad, input));
            });
            total += time("  gradient of the weights", flops, &mut || {
                drop(linear.backward(math, &grad, parts));
            });
        }
        let (qkv, grad) = (numbers(rows * 3 * dim), numbers(rows * dim));
        let attention = Attention {
            qkv: &qkv,
            batch,
            tokens,
            qk: &[64; 3],
            v: &[64; 3],
            scale: 0.125,
        };
        let flops = 2.0 * (2 * rows * tokens * dim) as f64;
        let (out, lse) = attention.forward(math);
        total += time("attention", flops, &mut || drop(attention.forward(math)));
        total += time("  gradient", 2.5 * flops, &mut || {
            drop(attention.backward(math, &out, &lse, &grad));
        });
        println!("  twelve blocks: {:.0} ms", 12e3 * total);
    }
    Ok(())
}
