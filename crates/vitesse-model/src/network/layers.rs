//! The linear map and the layer norm, with the checkpoint's shapes.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::module;

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

    /// `[.., in]` to `[.., out]`.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        module::linear(
            x,
            self.weight.val().transpose(),
            self.bias.as_ref().map(Param::val),
        )
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
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        module::layer_norm(x, self.weight.val(), Some(self.bias.val()), self.eps)
    }
}
