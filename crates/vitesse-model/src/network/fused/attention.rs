//! Softmax attention of all heads, from the fused projection to the heads' outputs. The maps are never stored: the
//! backward pass computes them again from the logarithm of each row's sum.

use std::sync::Arc;

use burn::tensor::Tensor;
use vitesse_kernels::train::{self, Math};

use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, math};
use crate::spec::AttentionSpec;

/// `qkv` `[batch, tokens, Σ(2·qk + v)]` to `[batch, tokens, Σv]`. `None` where it is not fused, and the caller composes
/// it from the maps.
pub(crate) fn attention(qkv: &Tensor<3>, spec: &AttentionSpec, compute: Compute) -> Option<Tensor<3>> {
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
    };
    let width = spec.v_dims.iter().sum();
    Some(apply(segment, [Input::of(qkv)?], [batch, tokens, width]))
}

#[derive(Debug, Clone)]
struct Heads {
    math: Math,
    batch: usize,
    tokens: usize,
    qk: Arc<[usize]>,
    v: Arc<[usize]>,
    scale: f32,
}

impl Heads {
    fn kernel<'a>(&'a self, qkv: &'a [f32]) -> train::Attention<'a> {
        train::Attention {
            qkv,
            batch: self.batch,
            tokens: self.tokens,
            qk: &self.qk,
            v: &self.v,
            scale: self.scale,
        }
    }
}

impl Segment<1> for Heads {
    const KEEPS: [bool; 1] = [true];
    const KEEPS_OUTPUT: bool = true;
    /// The logarithms of the sums, `[batch, heads, tokens]`.
    type Saved = Vec<f32>;

    fn name(&self) -> String {
        "attention".into()
    }

    fn flops(&self, _: [&[f32]; 1], wanted: Option<[bool; 1]>) -> f64 {
        let [qk, v] = [&self.qk, &self.v].map(|widths| widths.iter().sum::<usize>());
        let widths = if wanted.is_some() { 3 * qk + 2 * v } else { qk + v };
        2.0 * (self.batch * self.tokens * self.tokens * widths) as f64
    }

    fn forward(&self, [qkv]: [&[f32]; 1]) -> (Vec<f32>, Vec<f32>) {
        self.kernel(qkv).forward(self.math)
    }

    fn backward(
        &self,
        [qkv]: [&[f32]; 1],
        output: &[f32],
        sums: &Vec<f32>,
        grad: &[f32],
        [wanted]: [bool; 1],
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| Gradient::Values(self.kernel(qkv).backward(self.math, output, sums, grad)))]
    }
}
