//! Small dense matrices in `f64`: what folding computes with before it rounds once.

/// Row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows × columns` values.
    pub values: Vec<f64>,
}

impl Matrix {
    /// Of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Matrix {
        Matrix {
            rows,
            columns,
            values: vec![0.0; rows * columns],
        }
    }

    /// The identity.
    pub fn identity(side: usize) -> Matrix {
        let mut out = Matrix::zeros(side, side);
        for i in 0..side {
            out.values[i * side + i] = 1.0;
        }
        out
    }

    /// From `rows × columns` numbers.
    pub fn from_f32(rows: usize, columns: usize, values: &[f32]) -> Matrix {
        debug_assert_eq!(values.len(), rows * columns);
        Matrix {
            rows,
            columns,
            values: values.iter().map(|&x| f64::from(x)).collect(),
        }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// `self · other`.
    pub fn times(&self, other: &Matrix) -> Matrix {
        debug_assert_eq!(self.columns, other.rows);
        let mut out = Matrix::zeros(self.rows, other.columns);
        for i in 0..self.rows {
            for (k, &x) in self.row(i).iter().enumerate() {
                add_scaled(out.row_mut(i), x, other.row(k));
            }
        }
        out
    }

    /// `self · x`.
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        (0..self.rows).map(|i| dot(self.row(i), x)).collect()
    }

    /// `self + factor · other`, in place.
    pub fn add(&mut self, factor: f64, other: &Matrix) {
        debug_assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        add_scaled(&mut self.values, factor, &other.values);
    }

    /// Every value times `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Matrix {
        self.values.iter_mut().for_each(|x| *x *= factor);
        self
    }

    /// Largest sum of absolute values of a row.
    fn norm(&self) -> f64 {
        (0..self.rows)
            .map(|i| self.row(i).iter().map(|x| x.abs()).sum())
            .fold(0.0, f64::max)
    }

    /// The inverse of a square matrix and its condition number (in the row-sum norm), by elimination with pivoting; the
    /// condition number alone, infinite, where there is none.
    pub fn inverse(&self) -> (Option<Matrix>, f64) {
        let n = self.rows;
        let (mut left, mut right) = (self.clone(), Matrix::identity(n));
        for column in 0..n {
            let size = |row: &usize| left.row(*row)[column].abs();
            let pivot = (column..n)
                .max_by(|a, b| size(a).total_cmp(&size(b)))
                .unwrap_or(column);
            let value = left.row(pivot)[column];
            if value == 0.0 || !value.is_finite() {
                return (None, f64::INFINITY);
            }
            for matrix in [&mut left, &mut right] {
                for j in 0..n {
                    matrix.values.swap(pivot * n + j, column * n + j);
                    matrix.values[column * n + j] /= value;
                }
            }
            for row in (0..n).filter(|&row| row != column) {
                let factor = left.row(row)[column];
                for matrix in [&mut left, &mut right] {
                    let pivot_row = matrix.row(column).to_vec();
                    add_scaled(matrix.row_mut(row), -factor, &pivot_row);
                }
            }
        }
        let condition = self.norm() * right.norm();
        (Some(right), condition)
    }
}

/// `Σ aᵢ bᵢ`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += factor · from`.
fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to += factor * from);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use vitesse_rng::Key;

    #[test]
    fn an_inverse_undoes_and_a_singular_matrix_has_none() {
        for n in 1..7 {
            let mut rng = Key::new(3).at(n as u64).rng();
            let mut matrix = Matrix::zeros(n, n);
            matrix.values.iter_mut().for_each(|x| *x = rng.normal());
            let (inverse, condition) = matrix.inverse();
            let mut product = matrix.times(&inverse.unwrap());
            product.add(-1.0, &Matrix::identity(n));
            assert!(product.values.iter().all(|x| x.abs() < 1e-9), "{condition}");
            // At least 1, but for rounding.
            assert!(condition > 1.0 - 1e-9);
        }
        let mut twice = Matrix::zeros(2, 2);
        twice.values = vec![1.0, 2.0, 2.0, 4.0];
        assert_eq!(twice.inverse(), (None, f64::INFINITY));
        // A zero in the corner needs a pivot from below.
        twice.values = vec![0.0, 1.0, 1.0, 0.0];
        assert_eq!(twice.inverse().0.unwrap().values, [0.0, 1.0, 1.0, 0.0]);
    }
}
