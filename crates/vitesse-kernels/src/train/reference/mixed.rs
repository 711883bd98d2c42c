//! Attention with mixed heads and relative positions.

use super::super::{Attention, MixedAttention, MixedGradients, Mixing, MixingGradients};
use super::{dot, log_sum_exp};

/// Maps of all heads, `[heads][tokens · tokens]`.
type Maps = Vec<Vec<f64>>;

/// What a sample's forward pass goes through.
struct Sample {
    logits: Maps,
    /// Of each head and query.
    logs: Vec<f64>,
    probs: Maps,
    weighed: Maps,
}

/// A token's part of a head in `qkv`: queries, keys or values.
fn part<'a>(of: &Attention<'a>, sample: usize, token: usize, which: usize, head: usize) -> &'a [f32] {
    let start = (sample * of.tokens + token) * width(of) + column(of, which, head);
    &of.qkv[start..][..if which == 2 { of.v[head] } else { of.qk[head] }]
}

fn width(of: &Attention<'_>) -> usize {
    of.qk.len() * (2 * of.qk[0] + of.v[0])
}

fn column(of: &Attention<'_>, which: usize, head: usize) -> usize {
    let (heads, qk) = (of.qk.len(), of.qk[0]);
    which * heads * qk + head * if which == 2 { of.v[0] } else { qk }
}

fn mix(mixing: Option<Mixing<'_>>, maps: &Maps) -> Maps {
    let Some(mixing) = mixing else { return maps.clone() };
    let heads = maps.len();
    let of = |h: usize, pair: usize| -> f64 {
        let sum: f64 = (0..heads)
            .map(|g| f64::from(mixing.weight[h * heads + g]) * maps[g][pair])
            .sum();
        sum + mixing.bias.get(h).map_or(0.0, |bias| f64::from(*bias))
    };
    (0..heads)
        .map(|h| (0..maps[0].len()).map(|pair| of(h, pair)).collect())
        .collect()
}

/// Gradients of the maps before mixing from those after it, and the weights'.
fn unmix(mixing: Option<Mixing<'_>>, old: &Maps, gradients: Maps, sums: &mut [Vec<f64>; 2]) -> Maps {
    let Some(mixing) = mixing else { return gradients };
    let (heads, pairs) = (old.len(), old[0].len());
    let mut back = vec![vec![0.0; pairs]; heads];
    for (h, gradients) in gradients.iter().enumerate() {
        sums[1][h] += gradients.iter().sum::<f64>();
        for (g, back) in back.iter_mut().enumerate() {
            for ((to, gradient), old) in back.iter_mut().zip(gradients).zip(&old[g]) {
                *to += f64::from(mixing.weight[h * heads + g]) * gradient;
                sums[0][h * heads + g] += gradient * old;
            }
        }
    }
    back
}

/// Column `c` of a head's table, for a bucket, if the pair has one.
fn entry(of: &MixedAttention<'_>, head: usize, channel: usize, pair: usize) -> Option<usize> {
    let (positions, width) = (of.positions?, of.attention.qk[0]);
    let bucket = usize::from(positions.buckets[pair]);
    let table = if positions.table.len() == width * positions.count {
        0
    } else {
        head
    };
    (bucket < positions.count).then(|| (table * width + channel) * positions.count + bucket)
}

fn run(of: &MixedAttention<'_>, sample: usize) -> Sample {
    let attention = &of.attention;
    let Attention { tokens, scale, .. } = *attention;
    let (heads, area) = (attention.qk.len(), tokens * tokens);
    let logit = |head: usize, pair: usize| {
        let q = part(attention, sample, pair / tokens, 0, head);
        let k = part(attention, sample, pair % tokens, 1, head);
        let looked_up: f64 = q
            .iter()
            .enumerate()
            .map(|(channel, q)| {
                let entry = entry(of, head, channel, pair);
                let value = of
                    .positions
                    .zip(entry)
                    .map_or(0.0, |(positions, at)| positions.table[at]);
                f64::from(*q) * f64::from(value)
            })
            .sum();
        let bias = attention
            .terms
            .map_or(0.0, |terms| terms.bias[head * area + pair]);
        f64::from(scale) * (dot(q, k) + looked_up) + f64::from(bias)
    };
    let logits: Maps = (0..heads)
        .map(|head| (0..area).map(|pair| logit(head, pair)).collect())
        .collect();
    let mut probs = mix(of.before, &logits);
    let mut logs = Vec::new();
    for map in &mut probs {
        for (query, row) in map.chunks_exact_mut(tokens).enumerate() {
            if let Some(terms) = attention.terms.filter(|terms| !terms.mask.is_empty()) {
                let window = sample % (terms.mask.len() / area);
                let mask = &terms.mask[window * area + query * tokens..];
                row.iter_mut()
                    .zip(mask)
                    .for_each(|(x, mask)| *x += f64::from(*mask));
            }
            let log = log_sum_exp(row);
            row.iter_mut().for_each(|x| *x = (*x - log).exp());
            logs.push(log);
        }
    }
    let weighed = mix(of.after, &probs);
    Sample {
        logits,
        logs,
        probs,
        weighed,
    }
}

/// As [`MixedAttention::forward`].
pub fn mixed_attention(of: &MixedAttention<'_>) -> (Vec<f32>, Vec<f32>) {
    let attention = &of.attention;
    let tokens = attention.tokens;
    let (mut out, mut logs) = (Vec::new(), Vec::new());
    for sample in 0..attention.batch {
        let found = run(of, sample);
        for query in 0..tokens {
            for (head, map) in found.weighed.iter().enumerate() {
                for channel in 0..attention.v[0] {
                    let sum: f64 = (0..tokens)
                        .map(|key| {
                            let value = part(attention, sample, key, 2, head)[channel];
                            map[query * tokens + key] * f64::from(value)
                        })
                        .sum();
                    out.push(sum as f32);
                }
            }
        }
        logs.extend(found.logs.iter().map(|log| *log as f32));
    }
    (out, logs)
}

/// As [`MixedAttention::backward`].
pub fn mixed_attention_backward(of: &MixedAttention<'_>, grad: &[f32]) -> MixedGradients {
    let attention = &of.attention;
    let Attention { tokens, scale, .. } = *attention;
    let (heads, area) = (attention.qk.len(), tokens * tokens);
    let mut qkv = vec![0.0f64; attention.qkv.len()];
    let mut bias = vec![0.0f64; heads * area];
    let mut table = vec![0.0f64; of.positions.map_or(0, |positions| positions.table.len())];
    let mut mixings = [(); 2].map(|()| [vec![0.0f64; heads * heads], vec![0.0f64; heads]]);
    for sample in 0..attention.batch {
        let found = run(of, sample);
        let at = |token: usize, which: usize, head: usize| {
            (sample * tokens + token) * width(attention) + column(attention, which, head)
        };
        let mut gradients = vec![vec![0.0f64; area]; heads];
        for (head, gradients) in gradients.iter_mut().enumerate() {
            let v = attention.v[head];
            for (pair, to) in gradients.iter_mut().enumerate() {
                let (query, key) = (pair / tokens, pair % tokens);
                let grad = &grad[((sample * tokens + query) * heads + head) * v..][..v];
                *to = dot(grad, part(attention, sample, key, 2, head));
                for (channel, grad) in grad.iter().enumerate() {
                    qkv[at(key, 2, head) + channel] += found.weighed[head][pair] * f64::from(*grad);
                }
            }
        }
        let [before, after] = &mut mixings;
        let mut gradients = unmix(of.after, &found.probs, gradients, after);
        for (map, probs) in gradients.iter_mut().zip(&found.probs) {
            for (row, probs) in map.chunks_exact_mut(tokens).zip(probs.chunks_exact(tokens)) {
                let sum: f64 = row.iter().zip(probs).map(|(g, p)| g * p).sum();
                row.iter_mut().zip(probs).for_each(|(g, p)| *g = p * (*g - sum));
            }
        }
        let gradients = unmix(of.before, &found.logits, gradients, before);
        for (head, gradients) in gradients.iter().enumerate() {
            for (pair, gradient) in gradients.iter().enumerate() {
                bias[head * area + pair] += gradient;
                let slope = f64::from(scale) * gradient;
                let (query, key) = (pair / tokens, pair % tokens);
                let (q, k) = (
                    part(attention, sample, query, 0, head),
                    part(attention, sample, key, 1, head),
                );
                for (channel, (q, k)) in q.iter().zip(k).enumerate() {
                    let mut other = f64::from(*k);
                    if let Some((positions, entry)) = of.positions.zip(entry(of, head, channel, pair)) {
                        other += f64::from(positions.table[entry]);
                        table[entry] += slope * f64::from(*q);
                    }
                    qkv[at(query, 0, head) + channel] += slope * other;
                    qkv[at(key, 1, head) + channel] += slope * f64::from(*q);
                }
            }
        }
    }
    let rounded = |values: &Vec<f64>| values.iter().map(|x| *x as f32).collect();
    let [before, after] = mixings.each_ref().map(|[weight, bias]| MixingGradients {
        weight: rounded(weight),
        bias: rounded(bias),
    });
    MixedGradients {
        qkv: rounded(&qkv),
        bias: attention.terms.map(|_| rounded(&bias)),
        table: of.positions.map(|_| rounded(&table)),
        before: of.before.map(|_| before),
        after: of.after.map(|_| after),
    }
}
