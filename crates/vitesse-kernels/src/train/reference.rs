//! The segments of training written plainly, one number at a time and summed in `f64`: what the fast ones are tested
//! against.

mod mixed;
mod relations;

pub use mixed::{mixed_attention, mixed_attention_backward};
pub use relations::relation_cross_entropy;

use super::{
    Attention, AttentionGradients, Before, Linear, LinearGradients, NormGradients, Perceptron,
    PerceptronGradients, Wanted,
};
use crate::Gelu;

/// As [`Linear::forward`].
pub fn linear(map: &Linear<'_>, residual: Option<&[f32]>) -> Vec<f32> {
    let input = prepared(map);
    let rows = input.len() / map.inputs;
    let mut out = Vec::with_capacity(rows * map.outputs);
    for row in 0..rows {
        for n in 0..map.outputs {
            let weight = &map.weight[n * map.inputs..][..map.inputs];
            let bias = map.bias.map_or(0.0, |bias| f64::from(bias[n]));
            let y = bias + dot(&input[row * map.inputs..][..map.inputs], weight);
            let kept = residual.map_or(0.0, |residual| f64::from(residual[row * map.outputs + n]));
            out.push((kept + factor(map, row, rows) * y) as f32);
        }
    }
    out
}

/// As [`Linear::backward`].
pub fn linear_backward(map: &Linear<'_>, grad: &[f32], wanted: Wanted) -> LinearGradients {
    let (inputs, outputs) = (map.inputs, map.outputs);
    let input = prepared(map);
    let rows = input.len() / inputs;
    // What reaches the product, after the factors.
    let grad: Vec<f32> = (0..rows * outputs)
        .map(|i| (factor(map, i / outputs, rows) * f64::from(grad[i])) as f32)
        .collect();
    let over_rows = |n: usize, other: &dyn Fn(usize) -> f64| -> f32 {
        (0..rows)
            .map(|row| f64::from(grad[row * outputs + n]) * other(row))
            .sum::<f64>() as f32
    };
    let weight = wanted.weight.then(|| {
        let pairs = (0..outputs).flat_map(|n| (0..inputs).map(move |k| (n, k)));
        pairs
            .map(|(n, k)| over_rows(n, &|row| f64::from(input[row * inputs + k])))
            .collect()
    });
    let bias = wanted
        .bias
        .then(|| (0..outputs).map(|n| over_rows(n, &|_| 1.0)).collect());
    let mut found = LinearGradients {
        weight,
        bias,
        ..LinearGradients::default()
    };
    if !(wanted.input || wanted.gain || wanted.shift) {
        return found;
    }
    let mut through = Vec::with_capacity(rows * inputs);
    for row in 0..rows {
        for k in 0..inputs {
            let column = |n: usize| f64::from(map.weight[n * inputs + k]);
            let sum: f64 = (0..outputs)
                .map(|n| f64::from(grad[row * outputs + n]) * column(n))
                .sum();
            through.push(sum as f32);
        }
    }
    match map.before {
        Before::Nothing => found.input = wanted.input.then_some(through),
        Before::Gelu(form) => found.input = wanted.input.then(|| gelu_backward(form, map.input, &through)),
        Before::Norm { gain, eps, .. } => {
            let wanted = [wanted.input, wanted.gain, wanted.shift];
            let norm = layer_norm_backward(map.input, gain, eps, &through, wanted);
            (found.input, found.gain, found.shift) = (norm.input, norm.gain, norm.shift);
        }
    }
    found
}

/// A linear map's input after what happens to it first.
fn prepared(map: &Linear<'_>) -> Vec<f32> {
    match map.before {
        Before::Nothing => map.input.to_vec(),
        Before::Norm { gain, shift, eps } => layer_norm(map.input, gain, shift, eps),
        Before::Gelu(form) => gelu(form, map.input),
    }
}

/// The two maps of a perceptron; the second one's input is `hidden`.
fn maps<'a>(of: &'a Perceptron<'_>, hidden: &'a [f32]) -> [Linear<'a>; 2] {
    let (dim, width) = (of.gain.len(), of.bias1.len());
    let first = Linear {
        input: of.input,
        before: Before::Norm {
            gain: of.gain,
            shift: of.shift,
            eps: of.eps,
        },
        weight: of.weight1,
        bias: Some(of.bias1),
        factors: None,
        outputs: width,
        inputs: dim,
    };
    let second = Linear {
        input: hidden,
        before: Before::Gelu(of.gelu),
        weight: of.weight2,
        bias: Some(of.bias2),
        factors: of.factors,
        outputs: dim,
        inputs: width,
    };
    [first, second]
}

/// As [`Perceptron::forward`].
pub fn perceptron(of: &Perceptron<'_>) -> Vec<f32> {
    let hidden = linear(&maps(of, &[])[0], None);
    linear(&maps(of, &hidden)[1], Some(of.input))
}

/// As [`Perceptron::backward`], all of it.
pub fn perceptron_backward(of: &Perceptron<'_>, grad: &[f32]) -> PerceptronGradients {
    let hidden = linear(&maps(of, &[])[0], None);
    let [first, second] = maps(of, &hidden);
    let second = linear_backward(&second, grad, Wanted::ALL);
    let first = linear_backward(&first, second.input.as_deref().unwrap_or_default(), Wanted::ALL);
    let past = |through: Vec<f32>| through.iter().zip(grad).map(|(a, b)| a + b).collect();
    PerceptronGradients {
        input: first.input.map(past),
        gain: first.gain,
        shift: first.shift,
        weight1: first.weight,
        bias1: first.bias,
        weight2: second.weight,
        bias2: second.bias,
    }
}

/// What the product of this row is multiplied by.
fn factor(map: &Linear<'_>, row: usize, rows: usize) -> f64 {
    map.factors
        .map_or(1.0, |factors| f64::from(factors[row / (rows / factors.len())]))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// One head of one sample: where its queries, keys, values and outputs begin.
struct Head {
    q: usize,
    k: usize,
    v: usize,
    out: usize,
    lse: usize,
    qk_width: usize,
    v_width: usize,
}

/// From one token to the next, in `qkv` and in the outputs.
fn strides(map: &Attention<'_>) -> [usize; 2] {
    let (qk, v): (usize, usize) = (map.qk.iter().sum(), map.v.iter().sum());
    [2 * qk + v, v]
}

fn heads(map: &Attention<'_>) -> Vec<Head> {
    let [stride, out_stride] = strides(map);
    let all_qk: usize = map.qk.iter().sum();
    let mut heads = Vec::new();
    for sample in 0..map.batch {
        let (mut qk, mut v) = (0, 0);
        for (head, (&qk_width, &v_width)) in map.qk.iter().zip(map.v).enumerate() {
            let first = sample * map.tokens * stride;
            heads.push(Head {
                q: first + qk,
                k: first + all_qk + qk,
                v: first + 2 * all_qk + v,
                out: sample * map.tokens * out_stride + v,
                lse: (sample * map.qk.len() + head) * map.tokens,
                qk_width,
                v_width,
            });
            qk += qk_width;
            v += v_width;
        }
    }
    heads
}

/// The logits of one query against all keys, with what is added to them.
fn logits(map: &Attention<'_>, head: &Head, query: usize) -> Vec<f64> {
    let [stride, _] = strides(map);
    let q = &map.qkv[head.q + query * stride..][..head.qk_width];
    let area = map.tokens * map.tokens;
    // The logs of sums are `[batch, heads, tokens]`.
    let (sample, number) = (
        head.lse / map.tokens / map.qk.len(),
        head.lse / map.tokens % map.qk.len(),
    );
    let added = |key: usize| {
        let Some(terms) = &map.terms else { return 0.0 };
        let at = query * map.tokens + key;
        let windows = terms.mask.len() / area;
        let mask = if windows > 0 {
            terms.mask[sample % windows * area + at]
        } else {
            0.0
        };
        f64::from(terms.bias[number * area + at]) + f64::from(mask)
    };
    (0..map.tokens)
        .map(|key| {
            let product = dot(q, &map.qkv[head.k + key * stride..][..head.qk_width]);
            f64::from(map.scale) * product + added(key)
        })
        .collect()
}

/// As [`Attention::forward`].
pub fn attention(map: &Attention<'_>) -> (Vec<f32>, Vec<f32>) {
    let [stride, out_stride] = strides(map);
    let mut out = vec![0.0; map.batch * map.tokens * out_stride];
    let mut lse = vec![0.0; map.batch * map.qk.len() * map.tokens];
    for head in heads(map) {
        for query in 0..map.tokens {
            let logits = logits(map, &head, query);
            let log_sum = log_sum_exp(&logits);
            lse[head.lse + query] = log_sum as f32;
            for channel in 0..head.v_width {
                let value = |key: usize| f64::from(map.qkv[head.v + key * stride + channel]);
                let sum: f64 = (0..map.tokens)
                    .map(|key| (logits[key] - log_sum).exp() * value(key))
                    .sum();
                out[head.out + query * out_stride + channel] = sum as f32;
            }
        }
    }
    (out, lse)
}

/// As [`Attention::backward`]: with the map `P`, `δ = Σ grad·out`, and `S = P·(grad·vᵀ − δ)`, the gradients are
/// `scale·S·k`, `scale·Sᵀ·q` and `Pᵀ·grad`, and that of the biases is `S`, summed over samples.
pub fn attention_backward(map: &Attention<'_>, out: &[f32], lse: &[f32], grad: &[f32]) -> AttentionGradients {
    let [stride, out_stride] = strides(map);
    let mut found = vec![0.0f64; map.qkv.len()];
    let mut bias = map.terms.map(|terms| vec![0.0f64; terms.bias.len()]);
    for head in heads(map) {
        for query in 0..map.tokens {
            let logits = logits(map, &head, query);
            let at = head.out + query * out_stride;
            let grad = &grad[at..][..head.v_width];
            let delta = dot(grad, &out[at..][..head.v_width]);
            for (key, logit) in logits.iter().enumerate() {
                let probability = (logit - f64::from(lse[head.lse + query])).exp();
                let v = head.v + key * stride;
                let inner = dot(grad, &map.qkv[v..][..head.v_width]) - delta;
                if let Some(bias) = &mut bias {
                    let row = head.lse / map.tokens % map.qk.len() * map.tokens + query;
                    bias[row * map.tokens + key] += probability * inner;
                }
                let slope = f64::from(map.scale) * probability * inner;
                let (q, k) = (head.q + query * stride, head.k + key * stride);
                for channel in 0..head.qk_width {
                    found[q + channel] += slope * f64::from(map.qkv[k + channel]);
                    found[k + channel] += slope * f64::from(map.qkv[q + channel]);
                }
                for channel in 0..head.v_width {
                    found[v + channel] += probability * f64::from(grad[channel]);
                }
            }
        }
    }
    let rounded = |values: Vec<f64>| values.into_iter().map(|g| g as f32).collect();
    AttentionGradients {
        qkv: rounded(found),
        bias: bias.map(rounded),
    }
}

/// The row's values less their mean, divided by their deviation; and one over that deviation.
fn standardised(row: &[f32], eps: f32) -> (Vec<f64>, f64) {
    let width = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width;
    let centred: Vec<f64> = row.iter().map(|&x| f64::from(x) - mean).collect();
    let variance = centred.iter().map(|x| x * x).sum::<f64>() / width;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    (centred.iter().map(|x| x * scale).collect(), scale)
}

/// As [`super::layer_norm`].
pub fn layer_norm(x: &[f32], gain: &[f32], shift: &[f32], eps: f32) -> Vec<f32> {
    let rows = x.chunks_exact(gain.len());
    rows.flat_map(|row| {
        let (normed, _) = standardised(row, eps);
        let affine = |(n, x): (usize, f64)| (x * f64::from(gain[n]) + f64::from(shift[n])) as f32;
        normed.into_iter().enumerate().map(affine).collect::<Vec<f32>>()
    })
    .collect()
}

/// As [`super::layer_norm_backward`]: with `x̂` the standardised row and `h = gain·grad`, the input's gradient is
/// `(h − mean h − x̂·mean(h·x̂)) / σ`.
pub fn layer_norm_backward(
    x: &[f32],
    gain: &[f32],
    eps: f32,
    grad: &[f32],
    wanted: [bool; 3],
) -> NormGradients {
    let width = gain.len();
    let mut input = Vec::with_capacity(x.len());
    let (mut of_gain, mut of_shift) = (vec![0.0f64; width], vec![0.0f64; width]);
    for (row, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
        let (normed, scale) = standardised(row, eps);
        let through: Vec<f64> = grad
            .iter()
            .zip(gain)
            .map(|(g, a)| f64::from(*g) * f64::from(*a))
            .collect();
        let mean = through.iter().sum::<f64>() / width as f64;
        let along = through.iter().zip(&normed).map(|(h, x)| h * x).sum::<f64>() / width as f64;
        for n in 0..width {
            input.push((scale * (through[n] - mean - normed[n] * along)) as f32);
            of_gain[n] += f64::from(grad[n]) * normed[n];
            of_shift[n] += f64::from(grad[n]);
        }
    }
    let single = |sums: Vec<f64>| sums.into_iter().map(|x| x as f32).collect();
    NormGradients {
        input: wanted[0].then_some(input),
        gain: wanted[1].then(|| single(of_gain)),
        shift: wanted[2].then(|| single(of_shift)),
    }
}

/// The density of the standard normal distribution.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The distribution function of the standard normal distribution: `Φ(x) = ½ + φ(x)·(x + x³/3 + x⁵/(3·5) + …)`.
fn normal(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut odd) = (0.0, x, 1.0);
    while sum + term != sum {
        sum += term;
        odd += 2.0;
        term *= x * x / odd;
    }
    0.5 + sum * density(x)
}

/// As [`super::gelu`].
pub fn gelu(form: Gelu, x: &[f32]) -> Vec<f32> {
    let of = |x: &f32| (f64::from(*x) * gate(form, f64::from(*x))[0]) as f32;
    x.iter().map(of).collect()
}

/// As [`super::gelu_backward`]: `gate(x) + x·gate'(x)`.
pub fn gelu_backward(form: Gelu, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let slope = |x: f64| {
        let [gate, slope] = gate(form, x);
        gate + x * slope
    };
    let of = |(x, g): (&f32, &f32)| (f64::from(*g) * slope(f64::from(*x))) as f32;
    x.iter().zip(grad).map(of).collect()
}

/// What a GELU multiplies its argument by, and the slope of that.
fn gate(form: Gelu, x: f64) -> [f64; 2] {
    match form {
        Gelu::Exact => [normal(x), density(x)],
        Gelu::Quick => {
            let gate = 1.0 / (1.0 + (-1.702 * x).exp());
            [gate, 1.702 * gate * (1.0 - gate)]
        }
    }
}

fn log_sum_exp(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// As [`super::soft_cross_entropy`].
pub fn soft_cross_entropy(logits: &[f32], targets: &[f32], classes: usize) -> f32 {
    let rows = logits.chunks_exact(classes).zip(targets.chunks_exact(classes));
    let loss: f64 = rows
        .map(|(logits, targets)| {
            let logits: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
            let log_sum = log_sum_exp(&logits);
            let terms = logits
                .iter()
                .zip(targets)
                .map(|(z, t)| f64::from(*t) * (log_sum - z));
            terms.sum::<f64>()
        })
        .sum();
    (loss * classes as f64 / logits.len() as f64) as f32
}

/// As [`super::soft_cross_entropy_backward`].
pub fn soft_cross_entropy_backward(logits: &[f32], targets: &[f32], classes: usize, grad: f32) -> Vec<f32> {
    let share = f64::from(grad) * classes as f64 / logits.len() as f64;
    let rows = logits.chunks_exact(classes).zip(targets.chunks_exact(classes));
    rows.flat_map(|(logits, targets)| {
        let logits: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        let (log_sum, mass) = (
            log_sum_exp(&logits),
            targets.iter().map(|&t| f64::from(t)).sum::<f64>(),
        );
        let of = |(z, t): (&f64, &f32)| (share * ((z - log_sum).exp() * mass - f64::from(*t))) as f32;
        logits.iter().zip(targets).map(of).collect::<Vec<f32>>()
    })
    .collect()
}
