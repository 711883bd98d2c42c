//! Symmetric positive definite systems, in double precision: what closed forms end in.
//!
//! Matrices are row-major. Sizes are those of a layer, some thousands at most.

use rayon::prelude::*;

/// Rows that are factorised one after the other before those below them, which go in parallel.
const BLOCK: usize = 48;

/// The factor `L` of `A = L·Lᵀ`.
#[derive(Debug)]
pub(crate) struct Cholesky {
    side: usize,
    /// `[side, side]`; what is above the diagonal is not read.
    lower: Vec<f64>,
}

impl Cholesky {
    /// Of a symmetric matrix `[side, side]`, of which only the lower half is read; `None` if it is not positive definite.
    pub(crate) fn new(mut a: Vec<f64>, side: usize) -> Option<Cholesky> {
        debug_assert_eq!(a.len(), side * side);
        for start in (0..side).step_by(BLOCK) {
            let end = (start + BLOCK).min(side);
            for row in start..end {
                let (above, own) = a.split_at_mut(row * side);
                let own = &mut own[..side];
                for column in start..row {
                    reduce(own, above, column, side);
                }
                let diagonal = own[row] - dot(&own[..row], &own[..row]);
                if !(diagonal > 0.0 && diagonal.is_finite()) {
                    return None;
                }
                own[row] = diagonal.sqrt();
            }
            let (above, below) = a.split_at_mut(end * side);
            below.par_chunks_mut(side).for_each(|own| {
                (start..end).for_each(|column| reduce(own, above, column, side));
            });
        }
        Some(Cholesky { side, lower: a })
    }

    /// Solves `A·x = b` for every row of `rows`, `[any, side]`, in place.
    pub(crate) fn solve(&self, rows: &mut [f64]) {
        let side = self.side;
        rows.par_chunks_mut(side.max(1)).for_each(|x| {
            for i in 0..side {
                let row = &self.lower[i * side..=i * side + i];
                x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
            }
            for i in (0..side).rev() {
                let row = &self.lower[i * side..=i * side + i];
                x[i] /= row[i];
                let (before, own) = x.split_at_mut(i);
                add(before, -own[0], &row[..i]);
            }
        });
    }

    /// `A⁻¹`, `[side, side]`.
    pub(crate) fn inverse(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.side * self.side];
        out.iter_mut()
            .step_by(self.side + 1)
            .for_each(|diagonal| *diagonal = 1.0);
        self.solve(&mut out);
        out
    }
}

/// One entry of a row of the factor, from those before it and the finished rows `above`.
fn reduce(own: &mut [f64], above: &[f64], column: usize, side: usize) {
    let other = &above[column * side..=column * side + column];
    own[column] = (own[column] - dot(&own[..column], &other[..column])) / other[column];
}

/// In eight partial sums, so that it does not wait for one.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8
        .remainder()
        .iter()
        .zip(b8.remainder())
        .map(|(a, b)| a * b)
        .sum();
    let mut sums = [0.0; 8];
    for (a, b) in a8.zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `to += factor · from`
pub(crate) fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_rng::Key;

    #[test]
    fn solutions_solve_and_inverses_invert() {
        for side in [1, 2, 7, 48, 49, 130] {
            let mut rng = Key::new(side as u64).rng();
            let factor: Vec<f64> = (0..side * (side + 3)).map(|_| rng.normal()).collect();
            let rows: Vec<&[f64]> = factor.chunks(side + 3).collect();
            let a: Vec<f64> = (0..side * side)
                .map(|i| dot(rows[i / side], rows[i % side]))
                .collect();
            let cholesky = Cholesky::new(a.clone(), side).unwrap();
            let wanted: Vec<f64> = (0..2 * side).map(|_| rng.normal()).collect();
            let times = |x: &[f64]| -> Vec<f64> { a.chunks(side).map(|row| dot(row, x)).collect() };
            let mut found: Vec<f64> = wanted.chunks(side).flat_map(times).collect();
            cholesky.solve(&mut found);
            let inverse = cholesky.inverse();
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!((found - wanted).abs() < 1e-6, "{side}: {found} {wanted}");
            }
            for (row, inverse) in inverse.chunks(side).enumerate() {
                for (column, found) in times(inverse).into_iter().enumerate() {
                    assert!((found - f64::from(u8::from(row == column))).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        assert!(Cholesky::new(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(Cholesky::new(vec![f64::NAN], 1).is_none());
    }
}
