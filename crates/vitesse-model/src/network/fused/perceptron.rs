//! The perceptron of a block with its norm and its residual sum, `x + factor · (gelu(norm(x)·W1ᵀ + b1)·W2ᵀ + b2)`. Only
//! `x` is kept: the backward pass computes the hidden values again.

use std::sync::Arc;

use burn::tensor::Tensor;
use vitesse_kernels::Gelu;
use vitesse_kernels::train::{self, Math, PerceptronWanted};

use super::segment::{Gradient, Input, Segment, apply};
use super::{Before, Compute, math};
use crate::network::layers::LinearValues;

/// `x` `[samples, .., dim]` to the same shape, from the norm, the two maps with the form of the GELU between them, and what each sample's branch is multiplied by
/// (drop path). `None` where it is not fused, and the caller goes piece by piece.
pub(crate) fn perceptron<const D: usize>(
    x: &Tensor<D>,
    norm: &Before,
    ([first, second], gelu): ([&LinearValues; 2], Gelu),
    factors: Option<Vec<f32>>,
    compute: Compute,
) -> Option<Tensor<D>> {
    let Before::Norm { gain, shift, eps } = norm else {
        return None;
    };
    if !compute.fused {
        return None;
    }
    let segment = Perceptron {
        math: math(compute.precision),
        eps: *eps as f32,
        gelu,
        factors: factors.map(Arc::from),
    };
    let parents = [
        Input::of(x)?,
        Input::of(gain)?,
        Input::of(shift)?,
        Input::of(&first.weight)?,
        Input::of(first.bias.as_ref()?)?,
        Input::of(&second.weight)?,
        Input::of(second.bias.as_ref()?)?,
    ];
    Some(apply(segment, parents, x.dims()))
}

/// The segment; its inputs are x, gain, shift, the first map's weight and bias, and the second's.
#[derive(Debug, Clone)]
struct Perceptron {
    math: Math,
    eps: f32,
    gelu: Gelu,
    factors: Option<Arc<[f32]>>,
}

impl Perceptron {
    fn kernel<'a>(
        &'a self,
        [input, gain, shift, weight1, bias1, weight2, bias2]: [&'a [f32]; 7],
    ) -> train::Perceptron<'a> {
        train::Perceptron {
            input,
            gain,
            shift,
            eps: self.eps,
            weight1,
            bias1,
            gelu: self.gelu,
            weight2,
            bias2,
            factors: self.factors.as_deref(),
        }
    }
}

impl Segment<7> for Perceptron {
    const KEEPS: [bool; 7] = [true; 7];
    type Saved = ();

    fn name(&self) -> String {
        "perceptron".into()
    }

    fn flops(&self, [input, _, _, _, bias1, ..]: [&[f32]; 7], wanted: Option<[bool; 7]>) -> f64 {
        let products = wanted.map_or(2, |[input, gain, shift, weight1, bias1, weight2, _]| {
            let normed = input || gain || shift;
            let hidden = normed || weight1 || bias1;
            // The first map is computed again for whatever lies before or in the second.
            [hidden || weight2, hidden, normed, weight1, weight2]
                .into_iter()
                .filter(|&product| product)
                .count()
        });
        2.0 * (products * input.len() * bias1.len()) as f64
    }

    fn forward(&self, inputs: [&[f32]; 7]) -> (Vec<f32>, ()) {
        (self.kernel(inputs).forward(self.math), ())
    }

    fn backward(
        &self,
        inputs: [&[f32]; 7],
        _: &[f32],
        (): &(),
        grad: &[f32],
        [input, gain, shift, weight1, bias1, weight2, bias2]: [bool; 7],
    ) -> [Option<Gradient>; 7] {
        let wanted = PerceptronWanted {
            input,
            gain,
            shift,
            weight1,
            bias1,
            weight2,
            bias2,
        };
        let found = self.kernel(inputs).backward(self.math, grad, wanted);
        [
            found.input,
            found.gain,
            found.shift,
            found.weight1,
            found.bias1,
            found.weight2,
            found.bias2,
        ]
        .map(|values| values.map(Gradient::Values))
    }
}
