use std::time::Instant;
use vitesse_kernels::*;
fn main() {
    let isa = Isa::choose().unwrap();
    println!("{isa}");
    unsafe { println!("peak {:.1}", peak()); }
    for (m, k, n) in [(99, 192, 576), (99, 192, 192), (99, 192, 768), (99, 768, 192), (197, 384, 1536), (197, 1536, 384), (197,768,3072)] {
        let w: Vec<f32> = (0..k * n).map(|i| (i % 17) as f32 * 0.01).collect();
        let bias = vec![[0.1f32; 32]; n / 32];
        let run = |name: &str, f: &mut dyn FnMut()| {
            let mut best = f64::MAX;
            for _ in 0..60 {
                let t = Instant::now();
                f();
                best = best.min(t.elapsed().as_secs_f64());
            }
            println!("{name} {m}x{k}x{n}: {:.1} GFLOP/s  {:.1} us", 2.0 * (m * k * n) as f64 / best / 1e9, best * 1e6);
        };
        let ranges = |n: usize| panels_of([n]);
        {
            let p = <f32 as Weight>::pack(&|i| &w[i * k..(i + 1) * k], &ranges(n), &ranges(k));
            let a = Panels::<f32>::zeros(m, k / 32);
            let mut out = Panels::<f32>::zeros(m, n / 32);
            let l = Linear { weights: &p, scale: None, bias: &bias };
            run("f32     ", &mut || linear(isa, &a, 0..m, l, 0..n / 32, &mut out));
            run("f32 gelu", &mut || linear_gelu(isa, &a, 0..m, l, None, &mut out));
            run("f32 add ", &mut || linear_add(isa, &a, 0..m, l, None, &mut out, 0));
        }
        {
            let p = <Bf16 as Weight>::pack(&|i| &w[i * k..(i + 1) * k], &ranges(n), &ranges(k));
            let a = Panels::<Bf16>::zeros(m, k / 32);
            let mut out = Panels::<Bf16>::zeros(m, n / 32);
            let l = Linear { weights: &p, scale: None, bias: &bias };
            run("bf16     ", &mut || linear(isa, &a, 0..m, l, 0..n / 32, &mut out));
            run("bf16 gelu", &mut || linear_gelu(isa, &a, 0..m, l, None, &mut out));
        }
        {
            let p = <u8 as Weight>::pack(&|i| &w[i * k..(i + 1) * k], &ranges(n), &ranges(k));
            let a = Quantized::zeros(m, k / 64);
            let mut out = Panels::<Bf16>::zeros(m, n / 32);
            let l = Linear { weights: &p, scale: None, bias: &bias };
            run("int8     ", &mut || linear(isa, &a, 0..m, l, 0..n / 32, &mut out));
        }
    }
}
#[target_feature(enable = "avx512f")]
unsafe fn peak() -> f64 {
    use std::arch::x86_64::*;
    let mut best = f64::MAX;
    for _ in 0..20 {
        let t = Instant::now();
        let mut s = [_mm512_set1_ps(1.0); 16];
        let x = std::hint::black_box(_mm512_set1_ps(0.5));
        for _ in 0..100000 { for v in &mut s { *v = _mm512_fmadd_ps(*v, x, x); } }
        std::hint::black_box(s);
        best = best.min(t.elapsed().as_secs_f64());
    }
    100000.0 * 16.0 * 32.0 / best / 1e9
}
