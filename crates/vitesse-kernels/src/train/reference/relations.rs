//! Relations of tokens, compared.

use super::super::Relations;
use super::{dot, log_sum_exp};

/// As [`Relations::cross_entropy`].
pub fn relation_cross_entropy(of: &Relations<'_>) -> (f32, Vec<f32>) {
    let Relations {
        student,
        teacher,
        samples,
        tokens,
        parts,
        heads,
    } = *of;
    let width = |x: &[f32]| x.len() / (samples * tokens * parts * heads);
    let (own, other) = (width(student), width(teacher));
    let at = |sample: usize, token: usize, part: usize, head: usize, width: usize| {
        (((sample * tokens + token) * parts + part) * heads + head) * width
    };
    let rows = (parts * parts * samples * heads * tokens) as f64;
    let (mut loss, mut gradient) = (0.0, vec![0.0f64; student.len()]);
    for sample in 0..samples {
        for head in 0..heads {
            for pair in 0..parts * parts {
                let (i, j) = (pair / parts, pair % parts);
                for query in 0..tokens {
                    let row = |x: &[f32], width: usize| -> Vec<f64> {
                        let q = &x[at(sample, query, i, head, width)..][..width];
                        let keys = (0..tokens).map(|key| &x[at(sample, key, j, head, width)..][..width]);
                        keys.map(|key| dot(q, key) / (width as f64).sqrt()).collect()
                    };
                    let (logits, wanted) = (row(student, own), row(teacher, other));
                    let (log, log_wanted) = (log_sum_exp(&logits), log_sum_exp(&wanted));
                    for (key, (logit, wanted)) in logits.iter().zip(&wanted).enumerate() {
                        let wanted = (wanted - log_wanted).exp();
                        loss += wanted * (log - logit) / rows;
                        let slope = ((logit - log).exp() - wanted) / rows / (own as f64).sqrt();
                        let (q, k) = (at(sample, query, i, head, own), at(sample, key, j, head, own));
                        for channel in 0..own {
                            gradient[q + channel] += slope * f64::from(student[k + channel]);
                            gradient[k + channel] += slope * f64::from(student[q + channel]);
                        }
                    }
                }
            }
        }
    }
    (loss as f32, gradient.into_iter().map(|x| x as f32).collect())
}
