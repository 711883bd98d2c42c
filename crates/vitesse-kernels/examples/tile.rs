use std::time::Instant;
use vitesse_kernels::*;
fn main() {
    let isa = Isa::choose().unwrap();
    for (m, k, n) in [(12, 192, 32),(11, 192, 32),(10,192,32), (12, 64, 32), (12, 768, 32), (99,192,32),(96,192,32), (24,192,32), (12,192,768)] {
        let w: Vec<f32> = (0..k * n).map(|i| (i % 17) as f32 * 0.01).collect();
        let bias = vec![[0.1f32; 32]; n / 32];
        let ranges = |n: usize| panels_of([n]);
        let p = <f32 as Weight>::pack(&|i| &w[i * k..(i + 1) * k], &ranges(n), &ranges(k));
        let a = Panels::<f32>::zeros(m, k / 32);
        let mut out = Panels::<f32>::zeros(m, n / 32);
        let l = Linear { weights: &p, scale: None, bias: &bias };
        let mut best = f64::MAX;
        for _ in 0..300 {
            let t = Instant::now();
            for _ in 0..20 { linear(isa, &a, 0..m, l, 0..n / 32, &mut out); }
            best = best.min(t.elapsed().as_secs_f64() / 20.0);
        }
        println!("{m}x{k}x{n}: {:.1} GFLOP/s  {:.2} us", 2.0 * (m * k * n) as f64 / best / 1e9, best * 1e6);
    }
}
