//! Softmax attention of all heads, from the fused projection to the heads' outputs. The maps are never stored: the
//! backward pass computes them again from the logarithm of each row's sum.

use std::sync::Arc;

use burn::tensor::Tensor;
use vitesse_kernels::train::{self, Math};

use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, math};
use crate::spec::AttentionSpec;

/// What is added to logits besides ops: biases `[1, heads, tokens, tokens]`, which learn, and what keeps tokens of a shifted
/// window apart.
#[derive(Debug, Clone)]
pub(crate) struct Added<'a> {
    pub(crate) bias: &'a Tensor<4>,
    /// `[windows, tokens, tokens]`, for the samples in turn; empty where nothing is kept apart.
    pub(crate) mask: Arc<[f32]>,
}

/// `qkv` `[batch, tokens, Σ(2·qk + v)]` to `[batch, tokens, Σv]`. `None` where it is not fused, and the caller composes
/// it from the maps.
pub(crate) fn attention(
    qkv: &Tensor<3>,
    spec: &AttentionSpec,
    added: Option<Added<'_>>,
    compute: Compute,
) -> Option<Tensor<3>> {
    if !compute.fused {
        return None;
    }
    let [batch, tokens, _] = qkv.dims();
    let segment = Heads {
        math: math(compute.precision),
        batch,
        tokens,
        qk: spec.qk_dims.as_slice().into(),
        v: spec.v_dims.as_slice().into(),
        scale: spec.scale as f32,
        mask: added.as_ref().map(|added| Arc::clone(&added.mask)),
    };
    let inputs = [Input::of(qkv)?, Input::of_option(added.map(|added| added.bias))?];
    let width = spec.v_dims.iter().sum();
    Some(apply(segment, inputs, [batch, tokens, width]))
}

#[derive(Debug, Clone)]
struct Heads {
    math: Math,
    batch: usize,
    tokens: usize,
    qk: Arc<[usize]>,
    v: Arc<[usize]>,
    scale: f32,
    /// Where there are biases.
    mask: Option<Arc<[f32]>>,
}

impl Heads {
    fn kernel<'a>(&'a self, qkv: &'a [f32], bias: &'a [f32]) -> train::Attention<'a> {
        train::Attention {
            qkv,
            batch: self.batch,
            tokens: self.tokens,
            qk: &self.qk,
            v: &self.v,
            scale: self.scale,
            terms: self.mask.as_ref().map(|mask| train::Terms { bias, mask }),
        }
    }
}

impl Segment<2> for Heads {
    const KEEPS: [bool; 2] = [true, true];
    const KEEPS_OUTPUT: bool = true;
    /// The logarithms of the sums, `[batch, heads, tokens]`.
    type Saved = Vec<f32>;

    fn name(&self) -> String {
        "attention".into()
    }

    fn flops(&self, _: [&[f32]; 2], wanted: Option<[bool; 2]>) -> f64 {
        let [qk, v] = [&self.qk, &self.v].map(|widths| widths.iter().sum::<usize>());
        let widths = if wanted.is_some() { 3 * qk + 2 * v } else { qk + v };
        2.0 * (self.batch * self.tokens * self.tokens * widths) as f64
    }

    fn forward(&self, [qkv, bias]: [&[f32]; 2]) -> (Vec<f32>, Vec<f32>) {
        self.kernel(qkv, bias).forward(self.math)
    }

    fn backward(
        &self,
        [qkv, bias]: [&[f32]; 2],
        output: &[f32],
        sums: &Vec<f32>,
        grad: &[f32],
        wanted: [bool; 2],
    ) -> [Option<Gradient>; 2] {
        if wanted == [false; 2] {
            return [None, None];
        }
        let found = self.kernel(qkv, bias).backward(self.math, output, sums, grad);
        [
            wanted[0].then_some(Gradient::Values(found.qkv)),
            found.bias.filter(|_| wanted[1]).map(Gradient::Values),
        ]
    }
}
