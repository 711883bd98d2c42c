//! How alike the features of two models are: linear centred kernel alignment (CKA).
//!
//! Paper: Kornblith et al., *Similarity of Neural Network Representations Revisited*, ICML 2019, equations 1 to 3. Features of the same
//! samples, of any two widths; neither a rotation of one of them nor its scale matters. MiniViT's authors look at it layer by layer: of
//! models whose layers share matrices the last layers are least like those of the model they come from.

/// What features `X` `[samples, a]` and `Y` `[samples, b]`, columns centred, have in common: `‖YᵀX‖² / (samples − 1)²` and the same of each with
/// itself.
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
    pub fn of(x: &[f64], y: &[f64], samples: usize) -> Alignment {
        let (x, y) = (centred(x, samples), centred(y, samples));
        let widest = x.width.max(y.width);
        let square = |a: &Columns, b: &Columns| {
            // The same number by way of samples, where those are fewer than features.
            let sum = if samples < widest { gram(a, b) } else { cross(a, b) };
            let degrees = samples.saturating_sub(1).max(1) as f64;
            sum / (degrees * degrees)
        };
        Alignment {
            xy: square(&x, &y),
            xx: square(&x, &x),
            yy: square(&y, &y),
        }
    }

    /// Linear CKA, from 0 to 1. Features that are the same for all samples are like none: 0.
    pub fn cka(&self) -> f64 {
        match (self.xx * self.yy).sqrt() {
            0.0 => 0.0,
            scale => self.xy / scale,
        }
    }
}

/// Features whose means are zero, a column after the other.
struct Columns {
    samples: usize,
    width: usize,
    values: Vec<f64>,
}

impl Columns {
    fn column(&self, number: usize) -> &[f64] {
        let from = number * self.samples;
        self.values.get(from..from + self.samples).unwrap_or_default()
    }
}

fn centred(rows: &[f64], samples: usize) -> Columns {
    let width = rows.len() / samples.max(1);
    let mut values = Vec::with_capacity(samples * width);
    for column in 0..width {
        let own = rows.iter().skip(column).step_by(width).take(samples);
        let mean = own.clone().sum::<f64>() / samples.max(1) as f64;
        values.extend(own.map(|value| value - mean));
    }
    Columns {
        samples,
        width,
        values,
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `‖BᵀA‖²`
fn cross(a: &Columns, b: &Columns) -> f64 {
    let pairs = (0..a.width).flat_map(|i| (0..b.width).map(move |j| (i, j)));
    pairs.map(|(i, j)| dot(a.column(i), b.column(j)).powi(2)).sum()
}

/// The same as the sum over all pairs of samples of the product of `AAᵀ` and `BBᵀ`.
fn gram(a: &Columns, b: &Columns) -> f64 {
    let products = |of: &Columns| {
        let mut out = vec![0.0; of.samples * of.samples];
        for number in 0..of.width {
            let column = of.column(number);
            for (row, value) in out.chunks_exact_mut(of.samples.max(1)).zip(column) {
                row.iter_mut()
                    .zip(column)
                    .for_each(|(to, other)| *to += value * other);
            }
        }
        out
    };
    dot(&products(a), &products(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(samples: usize, width: usize, seed: f64) -> Vec<f64> {
        (0..samples * width)
            .map(|i| (i as f64 * 0.7 + seed).sin())
            .collect()
    }

    #[test]
    fn neither_rotation_nor_scale_matters() {
        let x = features(9, 2, 0.1);
        let (sin, cos) = 0.6f64.sin_cos();
        let turned: Vec<f64> = x
            .chunks_exact(2)
            .flat_map(|row| {
                [
                    3.0 * (cos * row[0] - sin * row[1]),
                    3.0 * (sin * row[0] + cos * row[1]),
                ]
            })
            .collect();
        assert!((Alignment::of(&x, &turned, 9).cka() - 1.0).abs() < 1e-12);
        assert!(Alignment::of(&x, &features(9, 2, 2.0), 9).cka() < 0.999);
    }

    #[test]
    fn by_features_and_by_samples_it_is_the_same() {
        let (x, y) = (centred(&features(6, 5, 0.3), 6), centred(&features(6, 4, 1.9), 6));
        assert!((cross(&x, &y) - gram(&x, &y)).abs() < 1e-12);
    }

    #[test]
    fn features_that_do_not_vary_are_like_none() {
        let constant = vec![0.5; 12];
        assert_eq!(Alignment::of(&constant, &features(6, 3, 0.0), 6).cka(), 0.0);
        assert_eq!(Alignment::of(&[], &[], 0).cka(), 0.0);
    }
}
