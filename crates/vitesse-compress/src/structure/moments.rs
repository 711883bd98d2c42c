//! First and second moments of what a projection reads and of what it should write: all that least squares need.

use burn::tensor::Tensor;

use vitesse_model::Tensors;

use crate::Error;
use crate::linalg::{Cholesky, add, dot};

/// Sums over rows of `x` `[rows, inputs]` and `y` `[rows, outputs]`. Products are summed within a batch in single precision, over
/// batches in double.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    rows: f64,
    x: Vec<f64>,
    y: Vec<f64>,
    /// `[inputs, inputs]`
    xx: Vec<f64>,
    /// `[outputs, inputs]`
    yx: Vec<f64>,
    yy: f64,
}

/// A linear map: `[outputs, inputs]` and `[outputs]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Map {
    pub(super) weight: Vec<f64>,
    pub(super) bias: Vec<f64>,
}

impl Map {
    /// A module's weight and bias; a bias that it does not have is zero.
    pub(super) fn of(tensors: &Tensors, module: &str) -> crate::Result<Map> {
        let wide = |name: String| -> crate::Result<Vec<f64>> {
            let values = tensors.get(&name)?.to_f32();
            Ok(values.iter().map(|value| f64::from(*value)).collect())
        };
        let weight = wide(format!("{module}.weight"))?;
        let rows = tensors.get(&format!("{module}.weight"))?.shape().first().copied();
        let bias = format!("{module}.bias");
        let bias = match tensors.contains(&bias) {
            true => wide(bias)?,
            false => vec![0.0; rows.unwrap_or(0)],
        };
        Ok(Map { weight, bias })
    }
}

impl Moments {
    pub(super) fn new(inputs: usize, outputs: usize) -> Moments {
        Moments {
            rows: 0.0,
            x: vec![0.0; inputs],
            y: vec![0.0; outputs],
            xx: vec![0.0; inputs * inputs],
            yx: vec![0.0; outputs * inputs],
            yy: 0.0,
        }
    }

    pub(super) fn inputs(&self) -> usize {
        self.x.len()
    }

    /// Adds `x` `[batch, tokens, inputs]`, where nothing is to be written.
    pub(super) fn see(&mut self, x: Tensor<3>) {
        let x = rows(x);
        self.rows += x.dims()[0] as f64;
        sum(&mut self.x, &x.clone().sum_dim(0));
        sum(&mut self.xx, &x.clone().transpose().matmul(x));
    }

    /// Adds rows of zeros, where nothing is to be written.
    pub(super) fn see_zeros(&mut self, rows: usize) {
        self.rows += rows as f64;
    }

    /// Adds `x` `[batch, tokens, inputs]` and `y` `[batch, tokens, outputs]`.
    pub(super) fn add(&mut self, x: Tensor<3>, y: Tensor<3>) {
        let y = rows(y);
        sum(&mut self.y, &y.clone().sum_dim(0));
        sum(&mut self.yx, &y.clone().transpose().matmul(rows(x.clone())));
        let mut squares = [0.0];
        sum(&mut squares, &y.powi_scalar(2).sum_dim(0).sum_dim(1));
        self.yy += squares[0];
        self.see(x);
    }

    /// Of some inputs only.
    #[cfg(test)]
    pub(super) fn part(&self, kept: &[usize]) -> Moments {
        let some = |row: &[f64]| -> Vec<f64> { kept.iter().map(|&input| row[input]).collect() };
        let n = self.inputs();
        Moments {
            x: some(&self.x),
            xx: kept
                .iter()
                .flat_map(|&input| some(&self.xx[input * n..(input + 1) * n]))
                .collect(),
            yx: self.yx.chunks(n).flat_map(some).collect(),
            ..self.clone()
        }
    }

    /// The mean of `x`.
    pub(super) fn seen(&self) -> Vec<f64> {
        self.x.iter().map(|x| x / self.rows).collect()
    }

    /// The mean of `y`.
    fn mean(&self) -> Vec<f64> {
        self.y.iter().map(|y| y / self.rows).collect()
    }

    /// The mean of `[x 1]ᵀ[x 1]`, `[inputs + 1, inputs + 1]`.
    pub(super) fn second(&self) -> Vec<f64> {
        let n = self.inputs();
        let mut out = Vec::with_capacity((n + 1) * (n + 1));
        for (row, x) in self.xx.chunks(n.max(1)).zip(&self.x) {
            out.extend(row);
            out.push(*x);
        }
        out.extend(&self.x);
        out.push(self.rows);
        out.iter_mut().for_each(|value| *value /= self.rows);
        out
    }

    /// The covariance of `x`, `[inputs, inputs]`.
    pub(super) fn covariance(&self) -> Vec<f64> {
        let n = self.inputs();
        let mut out = self.xx.clone();
        for (row, x) in out.chunks_mut(n.max(1)).zip(&self.x) {
            add(row, -x / self.rows, &self.x);
        }
        out.iter_mut().for_each(|value| *value /= self.rows);
        out
    }

    /// The covariance of `x`, with `damping` times its mean diagonal on the diagonal, and what that is. Where rounding leaves it not positive
    /// definite, ten times as much is added, until it is; `None` where inputs never move at all.
    pub(super) fn damped(&self, damping: f64) -> Option<(Cholesky, f64)> {
        let n = self.inputs();
        let covariance = self.covariance();
        let mean = covariance.iter().step_by(n + 1).sum::<f64>() / n.max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        let more = std::iter::successors(Some(damping), |damping| Some((10.0 * damping).max(1e-9)));
        more.take_while(|damping| *damping <= 1e3).find_map(|damping| {
            let mut a = covariance.clone();
            a.iter_mut()
                .step_by(n + 1)
                .for_each(|diagonal| *diagonal += damping * mean);
            Some((Cholesky::new(a, n)?, damping * mean))
        })
    }

    /// That of `y` with `x`, `[outputs, inputs]`.
    fn across(&self) -> Vec<f64> {
        let mut out = self.yx.clone();
        for (row, y) in out.chunks_mut(self.inputs().max(1)).zip(&self.y) {
            add(row, -y / self.rows, &self.x);
        }
        out.iter_mut().for_each(|value| *value /= self.rows);
        out
    }

    /// The mean square of `y` around its mean, summed over outputs.
    pub(super) fn variance(&self) -> f64 {
        self.yy / self.rows - self.mean().iter().map(|mean| mean * mean).sum::<f64>()
    }

    /// The mean of `‖y − (W·x + b)‖²`.
    pub(super) fn error(&self, map: &Map) -> f64 {
        let n = self.inputs().max(1);
        let (covariance, across) = (self.covariance(), self.across());
        let mut error = self.variance();
        for (row, across) in map.weight.chunks(n).zip(across.chunks(n)) {
            let image: Vec<f64> = covariance.chunks(n).map(|line| dot(line, row)).collect();
            error += dot(row, &image) - 2.0 * dot(row, across);
        }
        let off = self.offset(&map.weight);
        error += map
            .bias
            .iter()
            .zip(off)
            .map(|(bias, off)| (bias - off).powi(2))
            .sum::<f64>();
        error.max(0.0)
    }

    /// The bias that leaves no mean error behind a weight.
    fn offset(&self, weight: &[f64]) -> Vec<f64> {
        let means = self.mean().into_iter().zip(weight.chunks(self.inputs().max(1)));
        means
            .map(|(mean, row)| mean - dot(row, &self.x) / self.rows)
            .collect()
    }

    /// The map with the least mean of `‖y − (W·x + b)‖² + λ·‖W − W₀‖²`, where `λ` is `damping` times the mean variance of an input:
    /// directions in which `x` hardly moves keep what they had. Where inputs never move at all, only the bias is new.
    pub(super) fn fit(&self, before: &Map, damping: f64) -> Map {
        let weight = match self.damped(damping) {
            Some((system, lambda)) => {
                let mut weight = self.across();
                add(&mut weight, lambda, &before.weight);
                system.solve(&mut weight);
                weight
            }
            None => before.weight.clone(),
        };
        let bias = self.offset(&weight);
        Map { weight, bias }
    }

    /// Refuses sums that are no numbers, of what `module` reads and writes.
    ///
    /// # Errors
    /// [`Error::Unsuited`].
    pub(super) fn check(&self, module: &str) -> crate::Result<()> {
        let mut sums = self.xx.iter().chain(&self.yx).chain([&self.yy]);
        if sums.all(|sum| sum.is_finite()) {
            return Ok(());
        }
        Err(Error::Unsuited(format!(
            "what `{module}` reads or should write is not finite on these images, so nothing can be learned from it; look whether the model's \
             weights are, with `vitesse eval`"
        )))
    }
}

/// `[batch, tokens, width]` as `[batch · tokens, width]`.
fn rows(x: Tensor<3>) -> Tensor<2> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch * tokens, width])
}

fn sum(to: &mut [f64], from: &Tensor<2>) {
    let from = from.to_data();
    for (to, from) in to.iter_mut().zip(from.iter::<f32>()) {
        *to += f64::from(from);
    }
}
