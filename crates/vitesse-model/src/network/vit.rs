//! The vision transformer's forward pass.
//!
//! ```text
//! images ─[patch embedding]─ patch.out ─ (+ prefix tokens, + positions) ─ blocks ─ final norm ─ heads
//! block:  block.in ─ x + drop(proj(attention(norm1 x))) ─ mid ─ x + drop(mlp(norm2 x)) ─ block.out
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, softmax};

use super::Logits;
use super::ctx::{Attention as AttentionState, Ctx, Stream};
use super::layers::{LayerNorm, Linear};
use super::params::Parameters;
use crate::Result;
use crate::ops::Op;
use crate::site::Site;
use crate::spec::{AttentionSpec, MlpSpec, Pool, PrefixToken, VitSpec};

/// ViT and DeiT.
#[derive(Module, Debug)]
pub struct Vit {
    patch_weight: Param<Tensor<4>>,
    patch_bias: Param<Tensor<1>>,
    cls_token: Option<Param<Tensor<3>>>,
    dist_token: Option<Param<Tensor<3>>>,
    reg_token: Option<Param<Tensor<3>>>,
    pos_embed: Param<Tensor<3>>,
    cores: Vec<Core>,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Option<Linear>,
    head_dist: Option<Linear>,
    /// The ops outside blocks.
    ops: Vec<Op>,
    #[module(skip)]
    spec: VitSpec,
}

/// The matrices of a block.
#[derive(Module, Debug)]
struct Core {
    attn: Option<Attention>,
    mlp: Option<Mlp>,
}

/// What a block keeps for itself.
#[derive(Module, Debug)]
struct Layer {
    norm1: Option<LayerNorm>,
    norm2: Option<LayerNorm>,
    ops: Vec<Op>,
}

#[derive(Module, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    #[module(skip)]
    spec: AttentionSpec,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    spec: MlpSpec,
}

impl Vit {
    pub(super) fn new(spec: &VitSpec, num_classes: usize, parameters: &Parameters<'_>) -> Result<Self> {
        let token = |kind, name| -> Result<Option<Param<Tensor<3>>>> {
            if spec.prefix.contains(&kind) {
                parameters.parameter(name).map(Some)
            } else {
                Ok(None)
            }
        };
        let head = |name, wanted| -> Result<Option<Linear>> {
            if wanted {
                Linear::new(name, true, parameters).map(Some)
            } else {
                Ok(None)
            }
        };
        let ops = |layer: Option<usize>| -> Result<Vec<Op>> {
            let here = spec.ops.iter().enumerate().filter(|(_, op)| op.layer == layer);
            here.map(|(i, op)| Op::new(op, i, spec, parameters)).collect()
        };
        let cores = spec.cores.iter().enumerate().map(|(i, core)| {
            let name = spec.core_name(i);
            let attn = core
                .attn
                .as_ref()
                .map(|attn| Attention::new(attn, &name, parameters))
                .transpose()?;
            let mlp = core
                .mlp
                .as_ref()
                .map(|mlp| Mlp::new(mlp, &name, parameters))
                .transpose()?;
            Ok(Core { attn, mlp })
        });
        let layers = (0..spec.layers.len()).map(|i| {
            let norm = |which, present: bool| -> Result<Option<LayerNorm>> {
                let name = spec.norm_name(i, which);
                if present {
                    LayerNorm::new(&name, spec.norm_eps, parameters).map(Some)
                } else {
                    Ok(None)
                }
            };
            let block = spec.block(i);
            Ok(Layer {
                norm1: norm(1, block.is_some_and(|block| block.attn.is_some()))?,
                norm2: norm(2, block.is_some_and(|block| block.mlp.is_some()))?,
                ops: ops(Some(i))?,
            })
        });
        Ok(Vit {
            patch_weight: parameters.parameter("patch_embed.proj.weight")?,
            patch_bias: parameters.parameter("patch_embed.proj.bias")?,
            cls_token: token(PrefixToken::Class, "cls_token")?,
            dist_token: token(PrefixToken::Distillation, "dist_token")?,
            reg_token: token(PrefixToken::Register, "reg_token")?,
            pos_embed: parameters.parameter("pos_embed")?,
            cores: cores.collect::<Result<_>>()?,
            layers: layers.collect::<Result<_>>()?,
            norm: LayerNorm::new(spec.final_norm_name(), spec.norm_eps, parameters)?,
            head: head("head", num_classes > 0)?,
            head_dist: head("head_dist", num_classes > 0 && spec.is_distilled())?,
            ops: ops(None)?,
            spec: spec.clone(),
        })
    }

    /// `images` `[batch, channels, height, width]` of the spec's size.
    pub(super) fn forward(&self, images: Tensor<4>, ctx: &mut Ctx) -> Logits {
        ctx.layer = None;
        ctx.stream = Stream {
            prefix: self.spec.prefix.len(),
            prompts: 0,
            grid: self.spec.grid(),
        };
        let x = self.embed_patches(images);
        let x = at(Site::PatchOut, x, &self.ops, ctx);
        let mut x = self.add_tokens(x);
        for (i, layer) in self.layers.iter().enumerate() {
            ctx.layer = Some(i);
            ctx.attention = None;
            ctx.held.clear();
            // The spec was validated: every layer names a core that exists.
            if let Some(core) = self.spec.layers.get(i).and_then(|spec| self.cores.get(spec.core)) {
                x = layer.forward(core, x, self.layers.len(), ctx);
            }
        }
        ctx.layer = None;
        self.classify(x, ctx)
    }

    /// The patch convolution, as a product over flattened patches: `[batch, patches, dim]`.
    fn embed_patches(&self, images: Tensor<4>) -> Tensor<3> {
        let [batch, channels, _, _] = images.dims();
        let ([rows, columns], side) = (self.spec.grid(), self.spec.patch_size);
        let width = channels * side * side;
        let patches = images
            .reshape([batch, channels, rows, side, columns, side])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, width]);
        let weight = self.patch_weight.val().reshape([self.spec.embed_dim, width]);
        burn::tensor::module::linear(patches, weight.transpose(), Some(self.patch_bias.val()))
    }

    /// Prefix tokens before the patches, positions added: `[batch, tokens, dim]`.
    fn add_tokens(&self, patches: Tensor<3>) -> Tensor<3> {
        let batch = patches.dims()[0];
        let pos = self.pos_embed.val();
        let prefix: Vec<Tensor<3>> = [&self.cls_token, &self.dist_token, &self.reg_token]
            .into_iter()
            .flatten()
            .map(|token| token.val().repeat_dim(0, batch))
            .collect();
        let with_prefix = |x: Tensor<3>| {
            let mut parts = prefix.clone();
            parts.push(x);
            if parts.len() == 1 {
                parts.remove(0)
            } else {
                Tensor::cat(parts, 1)
            }
        };
        if self.spec.embed_prefix {
            with_prefix(patches) + pos
        } else {
            with_prefix(patches + pos)
        }
    }

    fn classify(&self, x: Tensor<3>, ctx: &mut Ctx) -> Logits {
        let [batch, tokens, dim] = x.dims();
        let prefix = ctx.stream.prefix;
        let mean = |x: Tensor<3>| {
            x.narrow(1, prefix, tokens - prefix)
                .mean_dim(1)
                .reshape([batch, dim])
        };
        let token = |x: &Tensor<3>, i| x.clone().narrow(1, i, 1).reshape([batch, dim]);
        let apply = |head: &Option<Linear>, x: Tensor<2>| match head {
            Some(head) => head.forward(x),
            None => x,
        };
        if self.spec.pool == Pool::AvgThenNorm {
            let pooled = self.norm.forward(mean(x));
            return Logits {
                class: apply(&self.head, pooled),
                distillation: None,
            };
        }
        let x = at(Site::FinalNorm, self.norm.forward(x), &self.ops, ctx);
        if self.spec.pool == Pool::Avg {
            return Logits {
                class: apply(&self.head, mean(x)),
                distillation: None,
            };
        }
        Logits {
            class: apply(&self.head, token(&x, 0)),
            distillation: self
                .spec
                .is_distilled()
                .then(|| apply(&self.head_dist, token(&x, 1))),
        }
    }
}

/// The ops that stand at `site`, in order, then the trace.
fn at(site: Site, x: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward(x, ctx));
    if ops.iter().any(|op| op.reads() == Some(site)) {
        ctx.held.push((site, x.clone()));
    }
    ctx.record(site, x)
}

/// A projection with the ops on it, in order.
fn project(site: Site, linear: &Linear, x: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
    let mut here = ops.iter().filter(|op| op.site() == site).peekable();
    if here.peek().is_none() {
        return linear.forward(x);
    }
    let y = linear.forward(x.clone());
    here.fold(y, |y, op| op.forward_projection(&x, y, ctx))
}

/// The same for attention maps.
fn at_map(site: Site, x: Tensor<4>, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
    let x = ops
        .iter()
        .filter(|op| op.site() == site)
        .fold(x, |x, op| op.forward_map(x, ctx));
    ctx.record_map(site, x)
}

impl Layer {
    fn forward(&self, core: &Core, x: Tensor<3>, depth: usize, ctx: &mut Ctx) -> Tensor<3> {
        let mut x = at(Site::BlockIn, x, &self.ops, ctx);
        if let (Some(norm), Some(attn)) = (&self.norm1, &core.attn) {
            let branch = at(Site::AttnIn, norm.forward(x.clone()), &self.ops, ctx);
            let branch = attn.forward(branch, &self.ops, ctx);
            let branch = scatter(branch, attn.spec.out_idx.as_deref(), x.dims()[2]);
            let branch = at(Site::AttnOut, branch, &self.ops, ctx);
            x = x + ctx.drop_path(branch, depth, 0);
        }
        x = at(Site::Mid, x, &self.ops, ctx);
        if let (Some(norm), Some(mlp)) = (&self.norm2, &core.mlp) {
            let branch = at(Site::MlpIn, norm.forward(x.clone()), &self.ops, ctx);
            let branch = mlp.forward(branch, &self.ops, ctx);
            let branch = scatter(branch, mlp.spec.out_idx.as_deref(), x.dims()[2]);
            let branch = at(Site::MlpOut, branch, &self.ops, ctx);
            x = x + ctx.drop_path(branch, depth, 1);
        }
        at(Site::BlockOut, x, &self.ops, ctx)
    }
}

/// A branch that writes only some residual channels, widened to all of them with zeros.
fn scatter(branch: Tensor<3>, out_idx: Option<&[usize]>, dim: usize) -> Tensor<3> {
    let Some(idx) = out_idx else { return branch };
    let [batch, tokens, _] = branch.dims();
    let indices: Vec<i64> = idx.iter().map(|&i| i as i64).collect();
    let device = branch.device();
    let indices = Tensor::<1, burn::tensor::Int>::from_data(indices.as_slice(), &device);
    Tensor::zeros([batch, tokens, dim], &device).select_assign(
        2,
        indices,
        branch,
        burn::tensor::IndexingUpdateOp::Add,
    )
}

impl Attention {
    fn new(spec: &AttentionSpec, core: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(Attention {
            qkv: Linear::new(&format!("{core}.attn.qkv"), spec.qkv_bias, parameters)?,
            proj: Linear::new(&format!("{core}.attn.proj"), true, parameters)?,
            spec: spec.clone(),
        })
    }

    /// `x` `[batch, tokens, dim]` to what `proj` writes, `[batch, tokens, written]`.
    fn forward(&self, x: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
        let qkv = at(
            Site::AttnQkv,
            project(Site::Qkv, &self.qkv, x, ops, ctx),
            ops,
            ctx,
        );
        let heads = match self.spec.uniform_heads() {
            Some((heads, qk, v)) => self.uniform(qkv, heads, qk, v, ops, ctx),
            None => self.ragged(qkv, ops, ctx),
        };
        let heads = at(Site::AttnHeads, heads, ops, ctx);
        project(Site::Proj, &self.proj, heads, ops, ctx)
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
        ctx.attention = Some(AttentionState { qkv, probs });
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
        ctx.attention = Some(AttentionState { qkv, probs });
        Tensor::cat(out, 2)
    }

    /// Softmax over keys, with the ops at both attention maps.
    fn probs(&self, logits: Tensor<4>, ops: &[Op], ctx: &mut Ctx) -> Tensor<4> {
        let logits = at_map(Site::AttnLogits, logits, ops, ctx);
        at_map(Site::AttnProbs, softmax(logits, 3), ops, ctx)
    }
}

impl Mlp {
    fn new(spec: &MlpSpec, core: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(Mlp {
            fc1: Linear::new(&format!("{core}.mlp.fc1"), true, parameters)?,
            fc2: Linear::new(&format!("{core}.mlp.fc2"), true, parameters)?,
            spec: spec.clone(),
        })
    }

    /// `x` `[batch, tokens, dim]` to what `fc2` writes, `[batch, tokens, written]`.
    fn forward(&self, x: Tensor<3>, ops: &[Op], ctx: &mut Ctx) -> Tensor<3> {
        let hidden = at(Site::MlpFc1, project(Site::Fc1, &self.fc1, x, ops, ctx), ops, ctx);
        let hidden = at(Site::MlpHidden, gelu(hidden), ops, ctx);
        project(Site::Fc2, &self.fc2, hidden, ops, ctx)
    }
}
