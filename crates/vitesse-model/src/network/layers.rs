//! The linear map, the layer norm and the activations, with the checkpoint's shapes.

use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::{Tensor, TensorData};
use vitesse_kernels::Gelu;

use super::fused::{self, Before, Compute, Residual};
use super::params::Parameters;
use crate::Result;
use crate::ops::Activation;

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

    /// Its weight and bias for one forward pass.
    pub(crate) fn values(&self) -> LinearValues {
        LinearValues {
            weight: self.weight.val(),
            bias: self.bias.as_ref().map(Param::val),
        }
    }

    /// `[.., in]` to `[.., out]`.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>, compute: Compute) -> Tensor<D> {
        self.values().segment(x, Before::Nothing, None, compute)
    }
}

/// What a linear map computes with in one forward pass.
#[derive(Debug, Clone)]
pub(crate) struct LinearValues {
    /// `[out, in]`
    pub(crate) weight: Tensor<2>,
    /// `[out]`
    pub(crate) bias: Option<Tensor<1>>,
}

impl LinearValues {
    /// `[.., in]` to `[.., out]`, with what stands before and after the map.
    pub(crate) fn segment<const D: usize>(
        self,
        x: Tensor<D>,
        before: Before,
        residual: Option<Residual<D>>,
        compute: Compute,
    ) -> Tensor<D> {
        fused::linear(x, before, self.weight, self.bias, residual, compute)
    }
}

/// An activation by Burn's operations, element by element.
pub(crate) fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match (gelu_form(activation), activation) {
        (Some(form), _) => fused::composed_gelu(x, form),
        (None, Activation::Relu) => relu(x),
        (None, _) => x,
    }
}

/// The form of an activation that is a GELU. The others are part of no segment.
pub(crate) fn gelu_form(activation: Activation) -> Option<Gelu> {
    match activation {
        Activation::Gelu => Some(Gelu::Exact),
        Activation::QuickGelu => Some(Gelu::Quick),
        Activation::None | Activation::Relu => None,
    }
}

/// `x` times constants `factors` of shape `shape`, which is spread over that of `x`; in the graph of gradients where `x`
/// is in one, and outside where it is outside.
pub(crate) fn times<const D: usize>(x: Tensor<D>, factors: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let factors = constant(factors, shape, &x);
    x * factors
}

/// Constants; in the graph of gradients where `like` is in one, and outside where it is outside.
pub(crate) fn constant<const D: usize, const E: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    like: &Tensor<E>,
) -> Tensor<D> {
    let device = like.device().without_autodiff();
    let values = Tensor::<D>::from_data(TensorData::new(values, shape), &device);
    if like.is_autodiff() {
        values.autodiff()
    } else {
        values
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
