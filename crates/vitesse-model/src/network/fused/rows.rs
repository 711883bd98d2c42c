//! Layer norm and GELU by themselves, where something stands between them and the product that follows.

use burn::tensor::{Tensor, activation, module};
use vitesse_kernels::{Gelu as Form, train};

use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, isa};

/// Layer norm over the last axis, with biased variance: `x` `[.., width]`, `gain` and `shift` `[width]`.
pub(crate) fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gain: Tensor<1>,
    shift: Tensor<1>,
    eps: f64,
    compute: Compute,
) -> Tensor<D> {
    let inputs = || Some([Input::of(&x)?, Input::of(&gain)?, Input::of(&shift)?]);
    match compute.fused.then(inputs).flatten() {
        Some(inputs) => apply(Norm { eps: eps as f32 }, inputs, x.dims()),
        None => module::layer_norm(x, gain, Some(shift), eps),
    }
}

/// The GELU, element by element.
pub(crate) fn gelu<const D: usize>(x: Tensor<D>, form: Form, compute: Compute) -> Tensor<D> {
    match compute.fused.then(|| Input::of(&x)).flatten() {
        Some(input) => apply(Gelu(form), [input], x.dims()),
        None => composed_gelu(x, form),
    }
}

/// The same by Burn's operations.
pub(crate) fn composed_gelu<const D: usize>(x: Tensor<D>, form: Form) -> Tensor<D> {
    match form {
        Form::Exact => activation::gelu(x),
        Form::Quick => x.clone() * activation::sigmoid(x * 1.702),
    }
}

#[derive(Debug, Clone)]
struct Norm {
    eps: f32,
}

impl Segment<3> for Norm {
    const KEEPS: [bool; 3] = [true, true, false];
    type Saved = ();

    fn name(&self) -> String {
        "norm".into()
    }

    fn flops(&self, _: [&[f32]; 3], _: Option<[bool; 3]>) -> f64 {
        0.0
    }

    fn forward(&self, [x, gain, shift]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        (train::layer_norm(isa(), x, gain, shift, self.eps), ())
    }

    fn backward(
        &self,
        [x, gain, _]: [&[f32]; 3],
        _: &[f32],
        (): &(),
        grad: &[f32],
        wanted: [bool; 3],
    ) -> [Option<Gradient>; 3] {
        let found = train::layer_norm_backward(isa(), x, gain, self.eps, grad, wanted);
        [found.input, found.gain, found.shift].map(|values| values.map(Gradient::Values))
    }
}

#[derive(Debug, Clone)]
struct Gelu(Form);

impl Segment<1> for Gelu {
    const KEEPS: [bool; 1] = [true];
    type Saved = ();

    fn name(&self) -> String {
        "gelu".into()
    }

    fn flops(&self, _: [&[f32]; 1], _: Option<[bool; 1]>) -> f64 {
        0.0
    }

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        (train::gelu(isa(), self.0, x), ())
    }

    fn backward(
        &self,
        [x]: [&[f32]; 1],
        _: &[f32],
        (): &(),
        grad: &[f32],
        [wanted]: [bool; 1],
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| Gradient::Values(train::gelu_backward(isa(), self.0, x, grad)))]
    }
}
