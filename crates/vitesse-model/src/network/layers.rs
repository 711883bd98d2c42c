//! The linear map and the layer norm, with the checkpoint's shapes.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use super::fused::{self, Affine, Before, Compute, Residual};
use super::params::Parameters;
use crate::Result;

/// `y = x Wᵀ + b` with `W` stored `[out, in]`.
#[derive(Module, Debug)]
pub(crate) struct Linear {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    pub(crate) fn new(name: &str, bias: bool, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(Linear {
            weight: parameters.parameter(&format!("{name}.weight"))?,
            bias: if bias {
                Some(parameters.parameter(&format!("{name}.bias"))?)
            } else {
                None
            },
        })
    }

    /// Its weight and bias; `None` where there is no bias.
    pub(crate) fn affine(&self) -> Option<Affine> {
        let bias = self.bias.as_ref()?;
        Some((self.weight.val(), bias.val()))
    }

    /// `[.., in]` to `[.., out]`.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>, compute: Compute) -> Tensor<D> {
        self.segment(x, Before::Nothing, None, compute)
    }

    /// The same with what stands before and after it.
    pub(crate) fn segment<const D: usize>(
        &self,
        x: Tensor<D>,
        before: Before,
        residual: Option<Residual<D>>,
        compute: Compute,
    ) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        fused::linear(x, before, self.weight.val(), bias, residual, compute)
    }
}

/// `x` times constants `factors` of shape `shape`, which is spread over that of `x`; in the graph of gradients where `x`
/// is in one, and outside where it is outside.
pub(crate) fn times<const D: usize>(x: Tensor<D>, factors: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let device = x.device().without_autodiff();
    let factors = Tensor::<D>::from_data(TensorData::new(factors, shape), &device);
    if x.is_autodiff() {
        x * factors.autodiff()
    } else {
        x * factors
    }
}

/// Layer norm over the last axis: biased variance, affine.
#[derive(Module, Debug)]
pub(crate) struct LayerNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(name: &str, eps: f64, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(LayerNorm {
            weight: parameters.parameter(&format!("{name}.weight"))?,
            bias: parameters.parameter(&format!("{name}.bias"))?,
            eps,
        })
    }

    /// `[.., dim]` to the same shape.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>, compute: Compute) -> Tensor<D> {
        fused::layer_norm(x, self.weight.val(), self.bias.val(), self.eps, compute)
    }

    /// The norm as the beginning of the linear map that follows it.
    pub(crate) fn before(&self) -> Before {
        Before::Norm {
            gain: self.weight.val(),
            shift: self.bias.val(),
            eps: self.eps,
        }
    }
}
