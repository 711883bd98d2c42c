//! `y = residual + factor[sample] · (before(x) · Wᵀ + b)`: a linear map with what stands before and after it.

use std::sync::Arc;

use burn::tensor::{Tensor, module};
use vitesse_kernels::Gelu;
use vitesse_kernels::train::{self, Math, Wanted};

use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, math};
use crate::network::layers::times;

/// What happens to the input of a linear map first.
// It lives for one call: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub(crate) enum Before {
    /// Nothing.
    Nothing,
    /// A layer norm.
    Norm {
        /// `[in]`
        gain: Tensor<1>,
        /// `[in]`
        shift: Tensor<1>,
        /// Added to the variance.
        eps: f64,
    },
    /// GELU.
    Gelu(Gelu),
}

impl Before {
    /// `before(x)` by itself.
    pub(crate) fn apply<const D: usize>(self, x: Tensor<D>, compute: Compute) -> Tensor<D> {
        match self {
            Before::Nothing => x,
            Before::Norm { gain, shift, eps } => super::layer_norm(x, gain, shift, eps, compute),
            Before::Gelu(form) => super::gelu(x, form, compute),
        }
    }
}

/// What the output of a linear map is added to.
#[derive(Debug, Clone)]
pub(crate) struct Residual<const D: usize> {
    /// `[.., out]`
    pub(crate) x: Tensor<D>,
    /// What each sample's output is multiplied by first: drop path.
    pub(crate) factors: Option<Vec<f32>>,
}

/// `x` `[.., in]` and a weight `[out, in]` to `[.., out]`. With factors the first axis is the samples'.
pub(crate) fn linear<const D: usize>(
    x: Tensor<D>,
    before: Before,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Residual<D>>,
    compute: Compute,
) -> Tensor<D> {
    if compute.fused
        && let Some(y) = fused(&x, &before, &weight, bias.as_ref(), residual.as_ref(), compute)
    {
        return y;
    }
    composed(x, before, weight, bias, residual)
}

fn fused<const D: usize>(
    x: &Tensor<D>,
    before: &Before,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    residual: Option<&Residual<D>>,
    compute: Compute,
) -> Option<Tensor<D>> {
    let [outputs, inputs] = weight.dims();
    let (first, gain, shift) = match before {
        Before::Nothing => (First::Nothing, None, None),
        Before::Gelu(form) => (First::Gelu(*form), None, None),
        Before::Norm { gain, shift, eps } => (First::Norm(*eps as f32), Some(gain), Some(shift)),
    };
    let segment = Map {
        math: math(compute.precision),
        first,
        factors: residual
            .and_then(|residual| residual.factors.as_deref())
            .map(Arc::from),
        outputs,
        inputs,
    };
    let parents = [
        Input::of(x)?,
        Input::of(weight)?,
        Input::of_option(bias)?,
        Input::of_option(gain)?,
        Input::of_option(shift)?,
        Input::of_option(residual.map(|residual| &residual.x))?,
    ];
    let mut shape = x.dims();
    shape[D - 1] = outputs;
    Some(apply(segment, parents, shape))
}

fn composed<const D: usize>(
    x: Tensor<D>,
    before: Before,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Residual<D>>,
) -> Tensor<D> {
    let x = match before {
        Before::Nothing => x,
        Before::Norm { gain, shift, eps } => module::layer_norm(x, gain, Some(shift), eps),
        Before::Gelu(form) => super::composed_gelu(x, form),
    };
    let y = module::linear(x, weight.transpose(), bias);
    match residual {
        Some(Residual { x, factors }) => x + scaled(y, factors),
        None => y,
    }
}

/// Each sample of `x` `[samples, ..]` times its factor.
pub(crate) fn scaled<const D: usize>(x: Tensor<D>, factors: Option<Vec<f32>>) -> Tensor<D> {
    let Some(factors) = factors else { return x };
    let mut shape = [1; D];
    shape[0] = factors.len();
    times(x, factors, shape)
}

/// The segment; its inputs are x, weight, bias, gain, shift and residual.
#[derive(Debug, Clone)]
struct Map {
    math: Math,
    first: First,
    factors: Option<Arc<[f32]>>,
    outputs: usize,
    inputs: usize,
}

#[derive(Debug, Clone, Copy)]
enum First {
    Nothing,
    Norm(f32),
    Gelu(Gelu),
}

impl Map {
    fn kernel<'a>(&'a self, [input, weight, bias, gain, shift, _]: [&'a [f32]; 6]) -> train::Linear<'a> {
        train::Linear {
            input,
            before: match self.first {
                First::Nothing => train::Before::Nothing,
                First::Gelu(form) => train::Before::Gelu(form),
                First::Norm(eps) => train::Before::Norm { gain, shift, eps },
            },
            weight,
            bias: given(bias),
            factors: self.factors.as_deref(),
            outputs: self.outputs,
            inputs: self.inputs,
        }
    }
}

impl Segment<6> for Map {
    const KEEPS: [bool; 6] = [true, true, false, true, true, false];
    type Saved = ();

    fn name(&self) -> String {
        let before = match self.first {
            First::Nothing => "",
            First::Norm(_) => "norm, ",
            First::Gelu(_) => "gelu, ",
        };
        format!("{before}linear {} to {}", self.inputs, self.outputs)
    }

    fn flops(&self, [input, ..]: [&[f32]; 6], wanted: Option<[bool; 6]>) -> f64 {
        let products = wanted.map_or(1, |[input, weight, _, gain, shift, _]| {
            usize::from(input || gain || shift) + usize::from(weight)
        });
        2.0 * (products * input.len() * self.outputs) as f64
    }

    fn forward(&self, inputs: [&[f32]; 6]) -> (Vec<f32>, ()) {
        (self.kernel(inputs).forward(self.math, given(inputs[5])), ())
    }

    fn backward(
        &self,
        inputs: [&[f32]; 6],
        _: &[f32],
        (): &(),
        grad: &[f32],
        [input, weight, bias, gain, shift, residual]: [bool; 6],
    ) -> [Option<Gradient>; 6] {
        let wanted = Wanted {
            input,
            weight,
            bias,
            gain,
            shift,
        };
        let residual = residual.then_some(Gradient::OfOutput);
        if wanted == Wanted::default() {
            return [None, None, None, None, None, residual];
        }
        let found = self.kernel(inputs).backward(self.math, grad, wanted);
        let [input, weight, bias, gain, shift] =
            [found.input, found.weight, found.bias, found.gain, found.shift]
                .map(|values| values.map(Gradient::Values));
        [input, weight, bias, gain, shift, residual]
    }
}

fn given(values: &[f32]) -> Option<&[f32]> {
    (!values.is_empty()).then_some(values)
}
