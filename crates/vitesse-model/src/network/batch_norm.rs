//! Batch norm, by running statistics in evaluation and by the batch's in training.
//!
//! Nothing is updated in place: a training forward hands the new running statistics to the context, and whoever steps
//! the optimiser stores them.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, module};

use super::ctx::Ctx;
use super::params::Parameters;
use crate::Result;

/// How much of the batch's statistics enters the running ones.
const MOMENTUM: f64 = 0.1;

/// One batch norm over channels.
#[derive(Module, Debug)]
pub(super) struct BatchNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_var: Param<Tensor<1>>,
    #[module(skip)]
    name: String,
    #[module(skip)]
    eps: f64,
}

impl BatchNorm {
    /// `name` is the prefix of its tensors, such as `stem.bn`.
    pub(super) fn new(name: String, eps: f64, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(BatchNorm {
            weight: parameters.parameter(&format!("{name}.weight"))?,
            bias: parameters.parameter(&format!("{name}.bias"))?,
            running_mean: parameters.buffer(&format!("{name}.running_mean"))?,
            running_var: parameters.buffer(&format!("{name}.running_var"))?,
            name,
            eps,
        })
    }

    /// What the norm is in evaluation: `y = x · scale + shift` by channel, `[channels]` each.
    pub(super) fn affine(&self) -> (Tensor<1>, Tensor<1>) {
        let scale = self.weight.val() / (self.running_var.val() + self.eps).sqrt();
        let shift = self.bias.val() - self.running_mean.val() * scale.clone();
        (scale, shift)
    }

    /// Normalises `x` `[channels, samples]` by its own statistics, and leaves the new running ones in the context.
    pub(super) fn by_batch(&self, x: Tensor<2>, ctx: &mut Ctx) -> Tensor<2> {
        let [channels, samples] = x.dims();
        let x = x.reshape([1, channels, samples]);
        let out = module::batch_norm_train(x, self.weight.val(), self.bias.val(), self.eps);
        // The running variance is unbiased. A single sample has none; it counts as 0 and not as NaN.
        let unbiased = out.variance * (samples as f64 / (samples.max(2) - 1) as f64);
        let blend = |running: &Param<Tensor<1>>, batch: Tensor<1>| {
            running.val() * (1.0 - MOMENTUM) + batch * MOMENTUM
        };
        ctx.buffers.push((
            format!("{}.running_mean", self.name),
            blend(&self.running_mean, out.mean),
        ));
        ctx.buffers.push((
            format!("{}.running_var", self.name),
            blend(&self.running_var, unbiased),
        ));
        out.output.reshape([channels, samples])
    }
}
