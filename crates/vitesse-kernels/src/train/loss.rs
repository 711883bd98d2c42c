//! Cross-entropy against soft targets.

use rayon::prelude::*;

/// Mean over rows of `−Σ t · log softmax(z)`, in `f64` within. The targets of a row need not sum to 1.
///
/// # Panics
/// Where shapes do not fit.
pub fn soft_cross_entropy(logits: &[f32], targets: &[f32], classes: usize) -> f32 {
    check(logits, targets, classes);
    let row = |(z, t): (&[f32], &[f32])| {
        let lse = log_sum_exp(z);
        t.iter()
            .zip(z)
            .map(|(&t, &z)| f64::from(t) * (lse - f64::from(z)))
            .sum::<f64>()
    };
    let rows: Vec<f64> = logits
        .par_chunks(classes)
        .zip(targets.par_chunks(classes))
        .map(row)
        .collect();
    (rows.iter().sum::<f64>() / rows.len() as f64) as f32
}

/// `grad · (softmax(z) · Σt − t) / rows`, as many numbers as there are logits.
///
/// # Panics
/// Where shapes do not fit.
pub fn soft_cross_entropy_backward(logits: &[f32], targets: &[f32], classes: usize, grad: f32) -> Vec<f32> {
    check(logits, targets, classes);
    let scale = f64::from(grad) / (logits.len() / classes) as f64;
    let mut out = logits.to_vec();
    out.par_chunks_mut(classes)
        .zip(targets.par_chunks(classes))
        .for_each(|(z, t)| {
            let (lse, sum) = (log_sum_exp(z), t.iter().map(|&t| f64::from(t)).sum::<f64>());
            for (z, &t) in z.iter_mut().zip(t) {
                let p = (f64::from(*z) - lse).exp();
                *z = (scale * (p * sum - f64::from(t))) as f32;
            }
        });
    out
}

fn check(logits: &[f32], targets: &[f32], classes: usize) {
    assert!(classes > 0 && !logits.is_empty() && logits.len().is_multiple_of(classes));
    assert!(logits.len() == targets.len());
}

/// `log Σ exp(z)`
fn log_sum_exp(z: &[f32]) -> f64 {
    let most = f64::from(z.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + z.iter().map(|&z| (f64::from(z) - most).exp()).sum::<f64>().ln()
}
