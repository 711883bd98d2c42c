//! The vision transformer's forward pass.
//!
//! ```text
//! images ─[patch embedding]─ patch.out ─ (+ prefix tokens, + positions) ─ blocks ─ final norm ─ heads
//! block:  block.in ─ x + drop(proj(attention(norm1 x))) ─ mid ─ x + drop(mlp(norm2 x)) ─ block.out
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Logits;
use super::attention::Attention;
use super::ctx::{Ctx, Stream};
use super::fused::{self, Before, Compute, Residual};
use super::layers::{LayerNorm, Linear};
use super::params::Parameters;
use super::stations::{at, cut, project};
use crate::Result;
use crate::ops::Op;
use crate::site::Site;
use crate::spec::{MlpSpec, ModelSpec, Pool, PrefixToken, VitSpec};

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
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    spec: MlpSpec,
}

impl Vit {
    pub(super) fn new(spec: &VitSpec, model: &ModelSpec, parameters: &Parameters<'_>) -> Result<Self> {
        let num_classes = model.num_classes;
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
            let here = model.ops.iter().enumerate().filter(|(_, op)| op.layer == layer);
            here.map(|(i, op)| Op::new(op, i, model, parameters)).collect()
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
        let x = self.tokens(images, ctx);
        self.classify(x, [self.head.as_ref(), self.head_dist.as_ref()], ctx)
    }

    /// What the heads read, in the place of what they say.
    pub(super) fn features(&self, images: Tensor<4>, ctx: &mut Ctx) -> Logits {
        let x = self.tokens(images, ctx);
        self.classify(x, [None, None], ctx)
    }

    /// What the heads say about such features.
    pub(super) fn heads(&self, features: Logits, ctx: &Ctx) -> Logits {
        let read = |head: Option<&Linear>, x| self.read(head, x, false, ctx.compute);
        Logits {
            class: read(self.head.as_ref(), features.class),
            distillation: features.distillation.map(|x| read(self.head_dist.as_ref(), x)),
        }
    }

    /// The stream after the last block, `[batch, tokens, dim]`.
    fn tokens(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<3> {
        ctx.layer = None;
        ctx.stream = Stream {
            prefix: self.spec.prefix.len(),
            prompts: 0,
            grid: self.spec.grid(),
        };
        let x = self.embed_patches(images, ctx.compute);
        let x = at(Site::PatchOut, x, &self.ops, ctx);
        let mut x = self.add_tokens(x);
        for (i, layer) in self.layers.iter().enumerate() {
            ctx.layer = Some(i);
            ctx.attention = None;
            ctx.held.clear();
            // The spec was validated: every layer names a core that exists.
            if let Some(core) = self.spec.layers.get(i).and_then(|spec| self.cores.get(spec.core)) {
                let depth = self.layers.len();
                let again = !ctx.trace.wants_block(i) && !layer.ops.iter().any(Op::changes_stream);
                x = if ctx.compute.grad_checkpointing && again {
                    layer.recomputed(core, x, depth, ctx)
                } else {
                    layer.forward(core, x, depth, ctx)
                };
            }
        }
        ctx.layer = None;
        x
    }

    /// The patch convolution, as a product over flattened patches: `[batch, patches, dim]`.
    fn embed_patches(&self, images: Tensor<4>, compute: Compute) -> Tensor<3> {
        let [batch, channels, _, _] = images.dims();
        let ([rows, columns], side) = (self.spec.grid(), self.spec.patch_size);
        let width = channels * side * side;
        let patches = images
            .reshape([batch, channels, rows, side, columns, side])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, width]);
        let weight = self.patch_weight.val().reshape([self.spec.embed_dim, width]);
        let bias = Some(self.patch_bias.val());
        fused::linear(patches, Before::Nothing, weight, bias, None, compute)
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

    /// What `heads`, the class head and that of distillation, say about the stream.
    fn classify(&self, x: Tensor<3>, [head, head_dist]: [Option<&Linear>; 2], ctx: &mut Ctx) -> Logits {
        let [batch, tokens, dim] = x.dims();
        let (prefix, compute) = (ctx.stream.prefix, ctx.compute);
        let mean = |x: Tensor<3>| {
            x.narrow(1, prefix, tokens - prefix)
                .mean_dim(1)
                .reshape([batch, dim])
        };
        if self.spec.pool == Pool::AvgThenNorm {
            return Logits {
                class: self.read(head, mean(x), true, compute),
                distillation: None,
            };
        }
        // The norm acts on each token by itself: only those that the heads read need it, unless something else wants all.
        let all = self.spec.pool == Pool::Avg || cut(Site::FinalNorm, &self.ops, ctx);
        let x = if all {
            at(Site::FinalNorm, self.norm.forward(x, compute), &self.ops, ctx)
        } else {
            x
        };
        if self.spec.pool == Pool::Avg {
            return Logits {
                class: self.read(head, mean(x), false, compute),
                distillation: None,
            };
        }
        let token = |i, head| {
            let token = x.clone().narrow(1, i, 1).reshape([batch, dim]);
            self.read(head, token, !all, compute)
        };
        Logits {
            class: token(0, head),
            distillation: self.spec.is_distilled().then(|| token(1, head_dist)),
        }
    }

    /// What a head says about `x` `[batch, dim]`, after the final norm if `norm` is set.
    fn read(&self, head: Option<&Linear>, x: Tensor<2>, norm: bool, compute: Compute) -> Tensor<2> {
        match (head, norm) {
            (Some(head), true) => head.segment(x, self.norm.before(), None, compute),
            (Some(head), false) => head.forward(x, compute),
            (None, true) => self.norm.forward(x, compute),
            (None, false) => x,
        }
    }
}

/// How a residual branch ends.
#[derive(Clone, Copy)]
struct End<'a> {
    /// The map that writes to the residual stream.
    map: &'a Linear,
    /// Where ops on it stand.
    projection: Site,
    /// The channels that it writes; all when `None`.
    out_idx: Option<&'a [usize]>,
    /// The station after it.
    site: Site,
    /// 0 for attention, 1 for the MLP.
    branch: u64,
}

impl Layer {
    fn forward(&self, core: &Core, x: Tensor<3>, depth: usize, ctx: &mut Ctx) -> Tensor<3> {
        let mut x = at(Site::BlockIn, x, &self.ops, ctx);
        if let (Some(norm), Some(attn)) = (&self.norm1, &core.attn) {
            let (input, before) = self.normed(norm, Site::AttnIn, x.clone(), ctx);
            let heads = attn.heads(input, before, &self.ops, ctx);
            let end = End {
                map: &attn.proj,
                projection: Site::Proj,
                out_idx: attn.spec.out_idx.as_deref(),
                site: Site::AttnOut,
                branch: 0,
            };
            x = self.add(x, (heads, Before::Nothing), end, depth, ctx);
        }
        x = at(Site::Mid, x, &self.ops, ctx);
        if let (Some(norm), Some(mlp)) = (&self.norm2, &core.mlp) {
            if let Some(y) = self.perceptron(norm, mlp, &x, depth, ctx) {
                return at(Site::BlockOut, y, &self.ops, ctx);
            }
            let (input, before) = self.normed(norm, Site::MlpIn, x.clone(), ctx);
            let hidden = mlp.hidden(input, before, &self.ops, ctx);
            let end = End {
                map: &mlp.fc2,
                projection: Site::Fc2,
                out_idx: mlp.spec.out_idx.as_deref(),
                site: Site::MlpOut,
                branch: 1,
            };
            x = self.add(x, hidden, end, depth, ctx);
        }
        at(Site::BlockOut, x, &self.ops, ctx)
    }

    /// The block's second half in one segment, unless something stands inside it.
    fn perceptron(
        &self,
        norm: &LayerNorm,
        mlp: &Mlp,
        x: &Tensor<3>,
        depth: usize,
        ctx: &Ctx,
    ) -> Option<Tensor<3>> {
        const INSIDE: [Site; 6] = [
            Site::MlpIn,
            Site::Fc1,
            Site::MlpFc1,
            Site::MlpHidden,
            Site::Fc2,
            Site::MlpOut,
        ];
        if mlp.spec.out_idx.is_some() || INSIDE.iter().any(|&site| cut(site, &self.ops, ctx)) {
            return None;
        }
        let maps = [&mlp.fc1.affine()?, &mlp.fc2.affine()?];
        let factors = ctx.drop_path(x.dims()[0], depth, 1);
        fused::perceptron(x, &norm.before(), maps, factors, ctx.compute)
    }

    /// As [`Layer::forward`], keeping only `x` for the backward pass. Nothing of the block is recorded.
    fn recomputed(&self, core: &Core, x: Tensor<3>, depth: usize, ctx: &Ctx) -> Tensor<3> {
        let module = (self.clone(), core.clone());
        let (mode, stream, layer, compute) = (ctx.mode, ctx.stream, ctx.layer, ctx.compute);
        fused::recompute(&module, x, move |(this, core), x| {
            let mut ctx = Ctx {
                mode,
                stream,
                layer,
                compute,
                ..Ctx::default()
            };
            this.forward(core, x, depth, &mut ctx)
        })
    }

    /// The branch's input and what is still to be done to it: the norm, unless something stands behind it.
    fn normed(&self, norm: &LayerNorm, site: Site, x: Tensor<3>, ctx: &mut Ctx) -> (Tensor<3>, Before) {
        if cut(site, &self.ops, ctx) {
            let x = at(site, norm.forward(x, ctx.compute), &self.ops, ctx);
            (x, Before::Nothing)
        } else {
            (x, norm.before())
        }
    }

    /// `x + drop(map(before(input)))`, in one segment unless something stands between the map and the sum.
    fn add(
        &self,
        x: Tensor<3>,
        (input, before): (Tensor<3>, Before),
        end: End<'_>,
        depth: usize,
        ctx: &mut Ctx,
    ) -> Tensor<3> {
        let factors = ctx.drop_path(x.dims()[0], depth, end.branch);
        let whole = !cut(end.projection, &self.ops, ctx) && !cut(end.site, &self.ops, ctx);
        if end.out_idx.is_none() && whole {
            let residual = Some(Residual { x, factors });
            return end.map.segment(input, before, residual, ctx.compute);
        }
        let branch = project(end.projection, end.map, (input, before), &self.ops, ctx);
        let branch = scatter(branch, end.out_idx, x.dims()[2]);
        let branch = at(end.site, branch, &self.ops, ctx);
        x + fused::scaled(branch, factors)
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

impl Mlp {
    fn new(spec: &MlpSpec, core: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(Mlp {
            fc1: Linear::new(&format!("{core}.mlp.fc1"), true, parameters)?,
            fc2: Linear::new(&format!("{core}.mlp.fc2"), true, parameters)?,
            spec: spec.clone(),
        })
    }

    /// `before(x)` `[batch, tokens, dim]` to what `fc2` reads, `[batch, tokens, hidden]`, and what is still to be done to
    /// it: the GELU, unless something stands behind it.
    fn hidden(&self, x: Tensor<3>, before: Before, ops: &[Op], ctx: &mut Ctx) -> (Tensor<3>, Before) {
        let hidden = project(Site::Fc1, &self.fc1, (x, before), ops, ctx);
        let hidden = at(Site::MlpFc1, hidden, ops, ctx);
        if cut(Site::MlpHidden, ops, ctx) {
            let hidden = at(Site::MlpHidden, fused::gelu(hidden, ctx.compute), ops, ctx);
            (hidden, Before::Nothing)
        } else {
            (hidden, Before::Gelu)
        }
    }
}
