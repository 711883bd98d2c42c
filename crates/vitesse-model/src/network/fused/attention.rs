//! Softmax attention of all heads, from the fused projection to the heads' outputs, with what stands at its maps where that is known here.
//! The maps are never stored: the backward pass computes them again from the logarithm of each row's sum.

mod mixed;

use std::sync::Arc;

use burn::tensor::Tensor;
use vitesse_kernels::train::{self, Math};

use self::mixed::MixedHeads;
use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, math};
use crate::spec::AttentionSpec;

/// What happens to the maps of attention, in this order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Between<'a> {
    /// Numbers that depend on the query and on where the key lies to it, added to the logits.
    pub(crate) positions: Option<Positions>,
    /// Biases that are added, `[1, heads, tokens, tokens]`.
    pub(crate) bias: Option<&'a Tensor<4>>,
    /// Heads mixed.
    pub(crate) before: Option<Mixing>,
    /// What keeps tokens of a shifted window apart, `[windows, tokens, tokens]`, for the samples in turn.
    pub(crate) mask: Option<Arc<[f32]>>,
    /// Heads mixed, behind the softmax.
    pub(crate) after: Option<Mixing>,
}

/// What an op at the maps does that a fused attention can do in its place.
// It lives for one forward pass of a layer: what the smaller variant wastes does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub(crate) enum MapChange {
    Positions(Positions),
    Mixing(Mixing),
}

/// `logit[i, j] += scale · Σ_c q[i, c] · table[c, bucket(i, j)]`
#[derive(Debug, Clone)]
pub(crate) struct Positions {
    /// `[1 | heads, width, buckets]`
    pub(crate) table: Tensor<3>,
    /// `[tokens, tokens]`; 255 for a pair that has none.
    pub(crate) buckets: Arc<[u8]>,
}

/// `new[h] = Σ_g weight[h, g] · old[g] + bias[h]`
#[derive(Debug, Clone)]
pub(crate) struct Mixing {
    pub(crate) weight: Tensor<2>,
    pub(crate) bias: Option<Tensor<1>>,
}

/// The most buckets of a fused table.
pub(crate) const MOST_BUCKETS: usize = train::MOST_BUCKETS;

/// `qkv` `[batch, tokens, Σ(2·qk + v)]` to `[batch, tokens, Σv]`. `None` where it is not fused, and the caller composes
/// it from the maps.
pub(crate) fn attention(
    qkv: &Tensor<3>,
    spec: &AttentionSpec,
    between: &Between<'_>,
    compute: Compute,
) -> Option<Tensor<3>> {
    if !compute.fused || (between.mask.is_some() && between.bias.is_none()) {
        return None;
    }
    let [batch, tokens, _] = qkv.dims();
    let plain = Heads {
        math: math(compute.precision),
        batch,
        tokens,
        qk: spec.qk_dims.as_slice().into(),
        v: spec.v_dims.as_slice().into(),
        scale: spec.scale as f32,
        mask: between
            .bias
            .map(|_| between.mask.clone().unwrap_or_else(|| Arc::from([]))),
    };
    let inputs = [Input::of(qkv)?, Input::of_option(between.bias)?];
    let shape = [batch, tokens, spec.v_dims.iter().sum()];
    if between.positions.is_none() && between.before.is_none() && between.after.is_none() {
        return Some(apply(plain, inputs, shape));
    }
    spec.uniform_heads()?;
    let (segment, inputs) = MixedHeads::new(plain, inputs, between)?;
    Some(apply(segment, inputs, shape))
}

#[derive(Debug, Clone)]
struct Heads {
    math: Math,
    batch: usize,
    tokens: usize,
    qk: Arc<[usize]>,
    v: Arc<[usize]>,
    scale: f32,
    /// Where there are biases; empty where nothing is kept apart.
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

    /// Operations in the products of all pairs of tokens.
    fn flops(&self, backward: bool) -> f64 {
        let [qk, v] = [&self.qk, &self.v].map(|widths| widths.iter().sum::<usize>());
        let widths = if backward { 3 * qk + 2 * v } else { qk + v };
        2.0 * (self.pairs() * widths) as f64
    }

    fn pairs(&self) -> usize {
        self.batch * self.tokens * self.tokens
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
        Heads::flops(self, wanted.is_some())
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
