//! Multi-head self-attention: fused, or composed from the maps where something needs them.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::ctx::{Attention as State, Ctx};
use super::fused::{self, Before};
use super::layers::Linear;
use super::params::Parameters;
use super::stations::{at, at_map, cut, project};
use crate::Result;
use crate::ops::Op;
use crate::site::Site;
use crate::spec::AttentionSpec;

#[derive(Module, Debug)]
pub(super) struct Attention {
    qkv: Linear,
    pub(super) proj: Linear,
    #[module(skip)]
    pub(super) spec: AttentionSpec,
}

impl Attention {
    pub(super) fn new(spec: &AttentionSpec, core: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(Attention {
            qkv: Linear::new(&format!("{core}.attn.qkv"), spec.qkv_bias, parameters)?,
            proj: Linear::new(&format!("{core}.attn.proj"), true, parameters)?,
            spec: spec.clone(),
        })
    }

    /// `before(x)` `[batch, tokens, dim]` to what `proj` reads, `[batch, tokens, Σv]`.
    pub(super) fn heads(&self, x: Tensor<3>, before: Before, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
        let qkv = project(Site::Qkv, &self.qkv, (x, before), ops, ctx);
        let qkv = at(Site::AttnQkv, qkv, ops, ctx);
        let maps_needed = cut(Site::AttnLogits, ops, ctx)
            || cut(Site::AttnProbs, ops, ctx)
            || ops.iter().any(Op::reads_attention);
        let fused = (!maps_needed).then(|| fused::attention(&qkv, &self.spec, ctx.compute));
        let heads = match (fused.flatten(), self.spec.uniform_heads()) {
            (Some(heads), _) => heads,
            (None, Some((heads, qk, v))) => self.uniform(qkv, heads, qk, v, ops, ctx),
            (None, None) => self.ragged(qkv, ops, ctx),
        };
        at(Site::AttnHeads, heads, ops, ctx)
    }

    /// All heads at once: `[batch, tokens, heads·v]`.
    fn uniform(
        &self,
        qkv: Tensor<3>,
        heads: usize,
        qk: usize,
        v: usize,
        ops: &[Op],
        ctx: &mut Ctx,
    ) -> Tensor<3> {
        let [batch, tokens, _] = qkv.dims();
        let split = |start, width| {
            qkv.clone()
                .narrow(2, start, heads * width)
                .reshape([batch, tokens, heads, width])
                .swap_dims(1, 2)
        };
        let (q, k, values) = (split(0, qk), split(heads * qk, qk), split(2 * heads * qk, v));
        let logits = (q * self.spec.scale as f32).matmul(k.swap_dims(2, 3));
        let probs = self.probs(logits, ops, ctx);
        let out = probs.clone().matmul(values);
        ctx.attention = Some(State { qkv, probs });
        out.swap_dims(1, 2).reshape([batch, tokens, heads * v])
    }

    /// Head by head, for heads of different widths: `[batch, tokens, Σv]`.
    fn ragged(&self, qkv: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
        let [batch, tokens, _] = qkv.dims();
        let (qk_width, v_start) = (self.spec.qk_width(), 2 * self.spec.qk_width());
        let mut q_start = 0;
        let mut logits = Vec::with_capacity(self.spec.num_heads());
        for &width in &self.spec.qk_dims {
            let q = qkv.clone().narrow(2, q_start, width) * self.spec.scale as f32;
            let k = qkv.clone().narrow(2, qk_width + q_start, width);
            logits.push(q.matmul(k.swap_dims(1, 2)).reshape([batch, 1, tokens, tokens]));
            q_start += width;
        }
        let probs = self.probs(Tensor::cat(logits, 1), ops, ctx);
        let mut start = v_start;
        let mut out = Vec::with_capacity(self.spec.num_heads());
        for (head, &width) in self.spec.v_dims.iter().enumerate() {
            let weights = probs.clone().narrow(1, head, 1).reshape([batch, tokens, tokens]);
            out.push(weights.matmul(qkv.clone().narrow(2, start, width)));
            start += width;
        }
        ctx.attention = Some(State { qkv, probs });
        Tensor::cat(out, 2)
    }

    /// Softmax over keys, with the ops at both attention maps.
    fn probs(&self, logits: Tensor<4>, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
        let logits = at_map(Site::AttnLogits, logits, ops, ctx);
        at_map(Site::AttnProbs, softmax(logits, 3), ops, ctx)
    }
}
