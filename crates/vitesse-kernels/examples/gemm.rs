//! Products of one layer of DeiT-Tiny with weights that lie in the cache, and with weights that do not.

use std::time::Instant;
use vitesse_kernels::*;

fn main() -> Result<(), String> {
    let isa = Isa::choose()?;
    println!("{isa}");
    for (m, k, n) in [
        (99, 192, 576),
        (99, 192, 768),
        (99, 768, 192),
        (197, 192, 576),
        (197, 192, 768),
        (197, 768, 192),
    ] {
        let w: Vec<f32> = (0..k * n).map(|i| (i % 17) as f32 * 0.01).collect();
        let bias = vec![[0.1f32; 32]; n / 32];
        let one = || <f32 as Weight>::pack(&|i| &w[i * k..(i + 1) * k], &panels_of([n]), &panels_of([k]));
        let packed: Vec<_> = (0..40).map(|_| one()).collect();
        let a = Panels::<f32>::zeros(m, k / 32);
        let mut out = Panels::<f32>::zeros(m, n / 32);
        for copies in [1, 40] {
            let mut best = f64::MAX;
            for _ in 0..12 {
                let t = Instant::now();
                for i in 0..40 {
                    let l = Linear {
                        weights: &packed[i % copies],
                        scale: None,
                        bias: &bias,
                    };
                    linear(isa, &a, 0..m, l, 0..n / 32, &mut out);
                }
                best = best.min(t.elapsed().as_secs_f64() / 40.0);
            }
            println!(
                "{m}x{k}x{n}, {copies} copies: {:.1} GFLOP/s  {:.1} us",
                2.0 * (m * k * n) as f64 / best / 1e9,
                best * 1e6
            );
        }
    }
    Ok(())
}
