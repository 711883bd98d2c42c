//! The segments of a training step of DeiT-Tiny, 16 images at a time, forward and backward.

#[cfg(not(feature = "train"))]
fn main() {
    println!("needs the feature `train`");
}

#[cfg(feature = "train")]
fn main() -> Result<(), String> {
    use std::time::Instant;

    use rayon::prelude::*;
    use vitesse_kernels::train::{
        Attention, Before, Linear, Math, Perceptron, PerceptronWanted, Precision, Wanted, keep_memory,
    };
    use vitesse_kernels::{Gelu, Isa};

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
            ("gelu, fc2", Before::Gelu(Gelu::Exact), 4 * dim, dim),
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
            terms: None,
        };
        let flops = 2.0 * (2 * rows * tokens * dim) as f64;
        let (out, lse) = attention.forward(math);
        total += time("attention", flops, &mut || drop(attention.forward(math)));
        total += time("  gradient", 2.5 * flops, &mut || {
            drop(attention.backward(math, &out, &lse, &grad));
        });
        println!("  twelve blocks: {:.0} ms", 12e3 * total);

        println!("  perceptrons: in two segments, in one, ms forward and backward, in turn");
        for (name, rows, dim) in [
            ("tiny", 16 * 197, 192),
            ("small", 8 * 197, 384),
            ("32 px", 128 * 64, 96),
        ] {
            let hidden = 4 * dim;
            let [input, grad] = [(); 2].map(|()| numbers(rows * dim));
            let [gain, shift, bias2] = [(); 3].map(|()| numbers(dim));
            let [weight1, weight2] = [(); 2].map(|()| numbers(hidden * dim));
            let bias1 = numbers(hidden);
            let before = Before::Norm {
                gain: &gain,
                shift: &shift,
                eps: 1e-6,
            };
            let first = Linear {
                input: &input,
                before,
                weight: &weight1,
                bias: Some(&bias1),
                factors: None,
                outputs: hidden,
                inputs: dim,
            };
            let perceptron = Perceptron {
                input: &input,
                gain: &gain,
                shift: &shift,
                eps: 1e-6,
                weight1: &weight1,
                bias1: &bias1,
                gelu: Gelu::Exact,
                weight2: &weight2,
                bias2: &bias2,
                factors: None,
            };
            // Larger than the caches: what a step has computed in between.
            let mut others = vec![0f32; 16 << 20];
            let mut seconds: [Vec<f64>; 4] = Default::default();
            for _ in 0..20 {
                let mut timed = |i: usize, work: &mut dyn FnMut()| {
                    others
                        .par_chunks_mut(1 << 14)
                        .for_each(|others| others.iter_mut().for_each(|x| *x += 1.0));
                    let start = Instant::now();
                    work();
                    seconds[i].push(start.elapsed().as_secs_f64());
                };
                let mut kept = Vec::new();
                timed(0, &mut || {
                    kept = first.forward(math, None);
                    drop(second(&kept, &weight2, &bias2).forward(math, Some(&input)));
                });
                timed(1, &mut || {
                    let through = second(&kept, &weight2, &bias2)
                        .backward(math, &grad, Wanted::ALL)
                        .input
                        .unwrap_or_default();
                    let found = first
                        .backward(math, &through, Wanted::ALL)
                        .input
                        .unwrap_or_default();
                    // The residual sum's part, which another operation adds.
                    let sum: Vec<f32> = found.iter().zip(&grad).map(|(a, b)| a + b).collect();
                    drop(sum);
                });
                timed(2, &mut || drop(perceptron.forward(math)));
                timed(3, &mut || {
                    drop(perceptron.backward(math, &grad, PerceptronWanted::ALL));
                });
            }
            let [a, b, c, d] = seconds.map(|mut seconds| {
                seconds.sort_by(f64::total_cmp);
                seconds[seconds.len() / 4] * 1e3
            });
            println!(
                "  {name:<6} {a:6.2} + {b:6.2} = {:6.2}   {c:6.2} + {d:6.2} = {:6.2}   {:5.2}",
                a + b,
                c + d,
                (a + b) / (c + d)
            );
        }
    }
    Ok(())
}

/// The second map of a perceptron, which begins with the GELU.
#[cfg(feature = "train")]
fn second<'a>(hidden: &'a [f32], weight: &'a [f32], bias: &'a [f32]) -> vitesse_kernels::train::Linear<'a> {
    vitesse_kernels::train::Linear {
        input: hidden,
        before: vitesse_kernels::train::Before::Gelu(vitesse_kernels::Gelu::Exact),
        weight,
        bias: Some(bias),
        factors: None,
        outputs: bias.len(),
        inputs: weight.len() / bias.len(),
    }
}
