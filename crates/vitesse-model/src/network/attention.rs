//! Multi-head self-attention: fused, with what ops at the maps do where that is known, or composed from the maps where something needs them.
//!
//! Composed, the order is: products of queries and keys, relative bias, the ops at `attn.logits`, the mask of shifted
//! windows, softmax by the stream's policy, the ops at `attn.probs`.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use super::ctx::Ctx;
use super::fused::{self, Before, Between, MapChange};
use super::layers::Linear;
use super::params::Parameters;
use super::stations::{at, at_map, project, taken};
use crate::Result;
use crate::ops::{AttentionPart, Op, QkvPart};
use crate::site::Site;
use crate::spec::AttentionSpec;

/// The matrices of self-attention.
#[derive(Module, Debug)]
pub(super) struct SelfAttention {
    qkv: Linear,
    pub(super) proj: Linear,
    #[module(skip)]
    pub(super) spec: AttentionSpec,
}

/// What a family adds to the logits, spread over `[batch, heads, tokens, tokens]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Terms {
    /// Before the ops at `attn.logits`: relative positions.
    pub(super) bias: Option<Tensor<4>>,
    /// After them: what keeps tokens of a shifted window apart.
    pub(super) mask: Option<Mask>,
}

/// What is added to the logits of windows, the samples of an image, in turn: 0, or a number so small that a token is not seen.
#[derive(Debug, Clone)]
pub(super) struct Mask {
    /// `[windows, tokens, tokens]`
    pub(super) values: Arc<[f32]>,
    pub(super) windows: usize,
}

impl Mask {
    /// For the samples of `like`, `[batch, 1, tokens, tokens]`.
    fn spread(&self, like: &Tensor<4>) -> Tensor<4> {
        let [batch, _, _, tokens] = like.dims();
        let shape = [self.windows, 1, tokens, tokens];
        let mask = TensorData::new(self.values.to_vec(), shape);
        Tensor::from_data(mask, &like.device()).repeat_dim(0, batch / self.windows.max(1))
    }
}

/// What the attention of a block computes.
#[derive(Debug, Clone)]
pub struct AttentionState {
    /// Queries, keys and values as they left `attn.qkv`: `[batch, tokens, Σ(2·qk + v)]`.
    pub qkv: Tensor<3>,
    /// The maps as they left `attn.probs`, `[batch, heads, tokens, tokens]`, once they are there.
    pub probs: Option<Tensor<4>>,
    spec: AttentionSpec,
}

impl AttentionState {
    /// Of attention with such heads, before there are maps.
    pub fn new(qkv: Tensor<3>, spec: &AttentionSpec) -> Self {
        AttentionState {
            qkv,
            probs: None,
            spec: spec.clone(),
        }
    }

    /// What queries are multiplied by.
    pub fn scale(&self) -> f32 {
        self.spec.scale as f32
    }

    /// A part of all heads, `[batch, heads, tokens, width]`; queries are not scaled. `None` where heads differ in width.
    pub fn heads(&self, part: QkvPart) -> Option<Tensor<4>> {
        let (heads, qk, v) = self.spec.uniform_heads()?;
        let [batch, tokens, _] = self.qkv.dims();
        let (start, width) = match part {
            QkvPart::Q => (0, qk),
            QkvPart::K => (heads * qk, qk),
            QkvPart::V => (2 * heads * qk, v),
        };
        let part = self.qkv.clone().narrow(2, start, heads * width);
        Some(part.reshape([batch, tokens, heads, width]).swap_dims(1, 2))
    }

    /// A part of one head, `[batch, tokens, width]`; queries are not scaled.
    pub fn head(&self, part: QkvPart, head: usize) -> Tensor<3> {
        let (first, widths) = match part {
            QkvPart::Q => (0, &self.spec.qk_dims),
            QkvPart::K => (self.spec.qk_width(), &self.spec.qk_dims),
            QkvPart::V => (2 * self.spec.qk_width(), &self.spec.v_dims),
        };
        let start = first + widths.iter().take(head).sum::<usize>();
        self.qkv.clone().narrow(2, start, widths[head])
    }
}

impl SelfAttention {
    pub(super) fn new(spec: &AttentionSpec, core: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(SelfAttention {
            qkv: Linear::new(&format!("{core}.attn.qkv"), spec.qkv_bias, parameters)?,
            proj: Linear::new(&format!("{core}.attn.proj"), true, parameters)?,
            spec: spec.clone(),
        })
    }

    /// `before(x)` `[batch, tokens, dim]` to what `proj` reads, `[batch, tokens, Σv]`.
    pub(super) fn heads(
        &self,
        x: Tensor<3>,
        before: Before,
        terms: &Terms,
        ops: &[Op],
        ctx: &mut Ctx,
    ) -> Tensor<3> {
        let qkv = project(Site::Qkv, self.qkv.values(), (x, before), ops, ctx);
        let qkv = at(Site::AttnQkv, qkv, ops, ctx);
        let fused = between(terms, ops, ctx)
            .and_then(|between| fused::attention(&qkv, &self.spec, &between, ctx.compute));
        let state = AttentionState::new(qkv, &self.spec);
        let kept = reads(AttentionPart::Qkv, ops) || (fused.is_none() && maps(ops, ctx));
        ctx.attention = kept.then(|| state.clone());
        let heads = match fused {
            Some(heads) => heads,
            None => self.composed(&state, terms, ops, ctx),
        };
        at(Site::AttnHeads, heads, ops, ctx)
    }

    /// By way of the maps: `[batch, tokens, Σv]`.
    fn composed(&self, state: &AttentionState, terms: &Terms, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
        let [batch, tokens, _] = state.qkv.dims();
        let scale = self.spec.scale as f32;
        let all = |part| state.heads(part);
        if let (Some(q), Some(k), Some(v)) = (all(QkvPart::Q), all(QkvPart::K), all(QkvPart::V)) {
            let probs = self.probs((q * scale).matmul(k.swap_dims(2, 3)), terms, ops, ctx);
            let out = probs.matmul(v);
            return out.swap_dims(1, 2).reshape([batch, tokens, self.spec.v_width()]);
        }
        // Heads of different widths go one by one.
        let heads = 0..self.spec.num_heads();
        let logits = heads.clone().map(|head| {
            let (q, k) = (state.head(QkvPart::Q, head), state.head(QkvPart::K, head));
            let logits = (q * scale).matmul(k.swap_dims(1, 2));
            logits.reshape([batch, 1, tokens, tokens])
        });
        let probs = self.probs(Tensor::cat(logits.collect(), 1), terms, ops, ctx);
        let out = heads.map(|head| {
            let weights = probs.clone().narrow(1, head, 1);
            weights
                .reshape([batch, tokens, tokens])
                .matmul(state.head(QkvPart::V, head))
        });
        Tensor::cat(out.collect(), 2)
    }

    /// From products to maps, `[batch, heads, tokens, tokens]` both.
    fn probs(&self, logits: Tensor<4>, terms: &Terms, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
        let logits = match &terms.bias {
            Some(bias) => logits + bias.clone(),
            None => logits,
        };
        let mut logits = at_map(Site::AttnLogits, logits, ops, ctx);
        if let Some(mask) = &terms.mask {
            let mask = mask.spread(&logits);
            logits = logits + mask;
        }
        if let Some(sizes) = ctx.stream.sizes.clone().filter(|_| ctx.stream.counts_by_size) {
            let [batch, tokens] = sizes.dims();
            logits = logits + sizes.log().reshape([batch, 1, 1, tokens]);
        }
        let probs = match ctx.stream.policy.clone() {
            Some(policy) => policy_softmax(logits, policy, ctx.policy_eps()),
            None => softmax(logits),
        };
        let probs = at_map(Site::AttnProbs, probs, ops, ctx);
        if let Some(state) = &mut ctx.attention {
            state.probs = Some(probs.clone());
        }
        probs
    }
}

/// Whether an op reads this part of its block's attention after the maps.
fn reads(part: AttentionPart, ops: &[Op]) -> bool {
    ops.iter().any(|op| op.reads_attention() == Some(part))
}

/// Whether anything stands at the maps, or needs them.
fn maps(ops: &[Op], ctx: &Ctx) -> bool {
    ops.iter().any(|op| op.site().is_map()) || needs_maps(ops, ctx)
}

/// Whether the maps must exist, whatever the ops at them do.
fn needs_maps(ops: &[Op], ctx: &Ctx) -> bool {
    let takes = |site| taken(site, ops, ctx);
    takes(Site::AttnLogits)
        || takes(Site::AttnProbs)
        || reads(AttentionPart::Probs, ops)
        || ctx.stream.policy.is_some()
        || ctx.stream.counts_by_size
}

/// What happens to the maps where they need not exist. `None` where they must, or where something stands there that no fused attention does,
/// or in another order.
fn between<'a>(terms: &'a Terms, ops: &[Op], ctx: &Ctx) -> Option<Between<'a>> {
    if needs_maps(ops, ctx) {
        return None;
    }
    let mut between = Between {
        bias: terms.bias.as_ref(),
        mask: terms.mask.as_ref().map(|mask| Arc::clone(&mask.values)),
        ..Between::default()
    };
    for op in ops.iter().filter(|op| op.site().is_map()) {
        match (op.site(), op.map_change(ctx)?) {
            (Site::AttnLogits, MapChange::Positions(positions))
                if between.positions.is_none() && between.before.is_none() =>
            {
                between.positions = Some(positions);
            }
            (Site::AttnLogits, MapChange::Mixing(mixing)) if between.before.is_none() => {
                between.before = Some(mixing);
            }
            (Site::AttnProbs, MapChange::Mixing(mixing)) if between.after.is_none() => {
                between.after = Some(mixing);
            }
            _ => return None,
        }
    }
    Some(between)
}

/// Softmax over keys. The tensor library's own rounds differently where there is no graph of gradients, and a block that is computed again must
/// give the same bits.
fn softmax(logits: Tensor<4>) -> Tensor<4> {
    let largest = logits.clone().detach().max_dim(3);
    let weights = (logits - largest).exp();
    let sum = weights.clone().sum_dim(3);
    weights / sum
}

/// Softmax over keys in which a key counts as far as it is there, and every token sees itself (Rao et al., *DynamicViT*,
/// NeurIPS 2021, equations 10 and 11): `logits` `[batch, heads, tokens, tokens]`, `policy` `[batch, tokens]`. `eps` is added to
/// every row, spread over its keys. Without it tokens that are there see what they would see if the others had been removed.
pub fn policy_softmax(logits: Tensor<4>, policy: Tensor<2>, eps: f64) -> Tensor<4> {
    let [batch, _, _, tokens] = logits.dims();
    let itself = Tensor::<2>::eye(tokens, &logits.device()).reshape([1, 1, tokens, tokens]);
    let policy = policy.reshape([batch, 1, 1, tokens]);
    let counts = policy * (itself.clone() * -1.0 + 1.0) + itself;
    // The paper's largest is that of all keys, and `eps` is relative to it. Without `eps` a key that left is out of sight, so that it
    // cannot make all others vanish.
    let logits = if eps > 0.0 {
        logits
    } else {
        logits + counts.clone().detach().equal_elem(0.0).float() * -1e30
    };
    let largest = logits.clone().max_dim(3);
    let weights = (logits - largest).exp() * counts;
    let sum = weights.clone().sum_dim(3);
    (weights + eps / tokens as f64) / (sum + eps)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;

    use super::*;
    use crate::Tensors;
    use crate::network::Leaving;
    use crate::ops::Probe;
    use crate::storage::safetensors;

    /// A tensor of a file, in `f32`.
    fn tensor<const D: usize>(file: &Tensors, name: &str) -> Tensor<D> {
        let tensor = file.get(name).unwrap();
        let data = TensorData::new(tensor.to_f32().into_owned(), tensor.shape().to_vec());
        Tensor::from_data(data, &Device::flex())
    }

    fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).abs().max().into_scalar()
    }

    /// Values that look random, `[batch, ..]`.
    fn values<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i + 3 * seed) as f32 * 0.7 + seed as f32).sin() * 0.5)
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    #[test]
    fn softmax_by_policy_agrees_with_dynamic_vit() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/token/policy_softmax.safetensors");
        let (file, _) = safetensors::read(&path).unwrap();
        let policy: Tensor<3> = tensor(&file, "in.policy");
        let [batch, tokens, _] = policy.dims();
        let found = policy_softmax(
            tensor(&file, "in.attn_logits"),
            policy.reshape([batch, tokens]),
            1e-6,
        );
        let distance = distance(found, tensor(&file, "out.attn"));
        assert!(distance < 1e-6, "{distance}");
    }

    #[test]
    fn bias_ops_mask_policy_and_ops_come_in_this_order() {
        let (heads, width, tokens) = (2, 3, 4);
        let spec = AttentionSpec::uniform(heads * width, heads);
        let mut weights = Tensors::new();
        for (name, shape) in [
            ("blocks.0.attn.qkv.weight", vec![18, 6]),
            ("blocks.0.attn.qkv.bias", vec![18]),
            ("blocks.0.attn.proj.weight", vec![6, 6]),
            ("blocks.0.attn.proj.bias", vec![6]),
        ] {
            let len = shape.iter().product();
            let values = values([len], name.len()).try_to_vec_as().unwrap();
            weights.insert_f32(name, &shape, values).unwrap();
        }
        let device = Device::flex();
        let attention = SelfAttention::new(&spec, "blocks.0", &Parameters::new(&weights, &device)).unwrap();
        let terms = Terms {
            bias: Some(values([1, heads, tokens, tokens], 4)),
            mask: Some(Mask {
                values: values([1, 1, tokens, tokens], 5).try_to_vec_as().unwrap().into(),
                windows: 1,
            }),
        };
        let learned = || Tensor::<1>::from_data([2.0], &device);
        let op = |site, map| {
            Op::probe(
                site,
                Probe {
                    map: Some(map),
                    ..Probe::new(site.name(), learned())
                },
            )
        };
        // Neither change commutes with what stands around it.
        let ops = [
            op(Site::AttnLogits, |_, x, _| x.powf_scalar(2.0)),
            op(Site::AttnProbs, |_, x, _| x.powf_scalar(3.0)),
        ];
        let mut ctx = Ctx::eval();
        ctx.leaving = Leaving::in_training();
        ctx.stream.policy = Some(Tensor::from_data([[1.0, 0.0, 1.0, 0.5]], &device));
        let found = attention.heads(values([1, tokens, 6], 6), Before::Nothing, &terms, &ops, &mut ctx);

        let state = ctx.attention.clone().unwrap();
        let part = |part| state.heads(part).unwrap();
        let products = part(QkvPart::Q).matmul(part(QkvPart::K).swap_dims(2, 3)) * (3f32).powf(-0.5);
        let logits = (products + terms.bias.unwrap()).powf_scalar(2.0);
        let logits = logits.clone() + terms.mask.unwrap().spread(&logits);
        let probs = policy_softmax(logits, ctx.stream.policy.unwrap(), 1e-6).powf_scalar(3.0);
        let expected = probs.clone().matmul(part(QkvPart::V)).swap_dims(1, 2);
        let expected = expected.reshape([1, tokens, heads * width]);
        let distances = [distance(state.probs.unwrap(), probs), distance(found, expected)];
        assert!(distances[0] < 1e-5 && distances[1] < 1e-5, "{distances:?}");
    }
}
