//! How similar the features of two models are: linear centred kernel alignment (CKA).
//!
//! Paper: Kornblith et al., *Similarity of Neural Network Representations Revisited*, ICML 2019, equations 1 to 3. Features of the same
//! samples, of any two widths; neither a rotation of one of them nor its scale matters. MiniViT's authors look at it layer by layer: of
//! models whose layers share matrices the last layers are least similar to those of the model they come from.

use rayon::prelude::*;

/// What features `X` `[samples, a]` and `Y` `[samples, b]`, columns centred, have in common: `‖YᵀX‖² / (samples − 1)²` and the same of each with
/// itself. Computed in `f64`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alignment {
    /// Of both with each other.
    pub xy: f64,
    /// Of the first with itself; 0 where all samples have the same features.
    pub xx: f64,
    /// Of the second with itself.
    pub yy: f64,
}

impl Alignment {
    /// Of `samples` rows each. Numbers of a row that is not whole are left out; fewer than two samples have nothing in common.
    pub fn of(x: &[f32], y: &[f32], samples: usize) -> Alignment {
        let (x, y) = (Centred::new(x, samples), Centred::new(y, samples));
        let degrees = samples.saturating_sub(1).max(1) as f64;
        let [xy, xx, yy] = if samples < x.width().max(y.width()) {
            // The same numbers by way of samples, where those are fewer than features.
            by_samples(&x, &y)
        } else {
            by_features(&x, &y)
        }
        .map(|sum| sum / (degrees * degrees));
        Alignment { xy, xx, yy }
    }

    /// Linear CKA, from 0 to 1. Features that are the same for all samples have none in common with any: 0.
    pub fn cka(&self) -> f64 {
        match (self.xx * self.yy).sqrt() {
            0.0 => 0.0,
            scale => self.xy / scale,
        }
    }
}

/// Features, and the mean of each column.
struct Centred<'a> {
    rows: &'a [f32],
    samples: usize,
    means: Vec<f64>,
}

impl<'a> Centred<'a> {
    fn new(rows: &'a [f32], samples: usize) -> Self {
        let width = rows.len().checked_div(samples).unwrap_or(0);
        let mut means = vec![0.0; width];
        for row in rows.chunks_exact(width.max(1)).take(samples) {
            for (sum, value) in means.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        means.iter_mut().for_each(|sum| *sum /= samples as f64);
        Centred { rows, samples, means }
    }

    fn width(&self) -> usize {
        self.means.len()
    }

    /// Some columns `[samples, columns]`, their means taken away.
    fn columns(&self, from: usize, count: usize) -> Vec<f64> {
        let means = self.means.iter().skip(from).take(count);
        let rows = self.rows.chunks_exact(self.width().max(1)).take(self.samples);
        let of_row = |row: &'a [f32]| {
            let values = row.iter().skip(from);
            values
                .zip(means.clone())
                .map(|(value, mean)| f64::from(*value) - mean)
        };
        rows.flat_map(of_row).collect()
    }

    /// Products of all pairs of samples, `[samples, samples]`.
    fn gram(&self) -> Vec<f64> {
        /// Columns at a time: of wide features no copy is made.
        const COLUMNS: usize = 512;
        let samples = self.samples;
        let mut out = vec![0.0; samples * samples];
        for from in (0..self.width()).step_by(COLUMNS) {
            let count = COLUMNS.min(self.width() - from);
            let block = self.columns(from, count);
            let rows = out
                .par_chunks_exact_mut(samples)
                .zip(block.par_chunks_exact(count));
            rows.for_each(|(to, own)| {
                for (to, other) in to.iter_mut().zip(block.chunks_exact(count)) {
                    *to += dot(own, other);
                }
            });
        }
        out
    }
}

/// The sum of products, in an order that depends on the length alone.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `‖YᵀX‖²`, `‖XᵀX‖²` and `‖YᵀY‖²` as sums over all pairs of samples of products of `XXᵀ` and `YYᵀ`.
fn by_samples(x: &Centred<'_>, y: &Centred<'_>) -> [f64; 3] {
    let (x, y) = (x.gram(), y.gram());
    [dot(&x, &y), dot(&x, &x), dot(&y, &y)]
}

/// `‖YᵀX‖²`, `‖XᵀX‖²` and `‖YᵀY‖²` as they stand.
fn by_features(x: &Centred<'_>, y: &Centred<'_>) -> [f64; 3] {
    let columns = |of: &Centred<'_>| -> Vec<Vec<f64>> { (0..of.width()).map(|i| of.columns(i, 1)).collect() };
    let (x, y) = (columns(x), columns(y));
    let square = |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 {
        let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
        pairs.map(|(a, b)| dot(a, b).powi(2)).sum()
    };
    [square(&x, &y), square(&x, &x), square(&y, &y)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(samples: usize, width: usize, seed: f64) -> Vec<f32> {
        (0..samples * width)
            .map(|i| (i as f64 * 0.7 + seed).sin() as f32)
            .collect()
    }

    #[test]
    fn neither_rotation_nor_scale_matters() {
        let x = features(9, 2, 0.1);
        let (sin, cos) = 0.6f32.sin_cos();
        let turn = |row: &[f32]| {
            [
                3.0 * (cos * row[0] - sin * row[1]),
                3.0 * (sin * row[0] + cos * row[1]),
            ]
        };
        let turned: Vec<f32> = x.chunks_exact(2).flat_map(turn).collect();
        assert!((Alignment::of(&x, &turned, 9).cka() - 1.0).abs() < 1e-6);
        assert!(Alignment::of(&x, &features(9, 2, 2.0), 9).cka() < 0.999);
    }

    #[test]
    fn by_features_and_by_samples_it_is_the_same() {
        // More columns than are taken at a time.
        let (x, y) = (features(6, 1100, 0.3), features(6, 4, 1.9));
        let (x, y) = (Centred::new(&x, 6), Centred::new(&y, 6));
        for (one, other) in by_features(&x, &y).into_iter().zip(by_samples(&x, &y)) {
            assert!(one > 0.0 && (one - other).abs() < 1e-12 * one, "{one} {other}");
        }
    }

    #[test]
    fn features_that_do_not_vary_have_nothing_in_common_with_any() {
        for width in [2, 20] {
            let constant = vec![0.1; 6 * width];
            let found = Alignment::of(&constant, &features(6, 3, 0.0), 6);
            assert_eq!((found.xx, found.cka()), (0.0, 0.0));
        }
        assert_eq!(Alignment::of(&[], &[], 0).cka(), 0.0);
    }
}
