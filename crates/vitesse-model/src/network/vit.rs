//! The vision transformer's forward pass.
//!
//! ```text
//! images ─[patch embedding]─ patch.out ─ (+ prefix tokens, + positions) ─ (norm_pre) ─ blocks ─ final norm ─ heads
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Logits;
use super::block::{Blocks, Core, Layer, Norms, Place};
use super::ctx::Ctx;
use super::fused::{Before, Compute};
use super::layers::{LayerNorm, Linear, LinearValues};
use super::params::Parameters;
use super::stations::{at, cut, project};
use super::stream::Stream;
use crate::Result;
use crate::ops::Op;
use crate::site::Site;
use crate::spec::{ModelSpec, Pool, PrefixToken, Sites, VitSpec};

/// ViT and DeiT.
#[derive(Module, Debug)]
pub struct Vit {
    patch_weight: Param<Tensor<4>>,
    patch_bias: Option<Param<Tensor<1>>>,
    cls_token: Option<Param<Tensor<3>>>,
    dist_token: Option<Param<Tensor<3>>>,
    reg_token: Option<Param<Tensor<3>>>,
    pos_embed: Param<Tensor<3>>,
    norm_pre: Option<LayerNorm>,
    blocks: Blocks,
    norm: LayerNorm,
    head: Option<Linear>,
    head_dist: Option<Linear>,
    /// The ops outside blocks.
    ops: Vec<Op>,
    #[module(skip)]
    spec: VitSpec,
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
        let outside = ops(None)?;
        let norm = |name: &str| LayerNorm::new(name, spec.norm_eps, parameters);
        Ok(Vit {
            patch_weight: parameters.parameter("patch_embed.proj.weight")?,
            patch_bias: parameters.optional(spec.patch_bias, "patch_embed.proj.bias")?,
            cls_token: token(PrefixToken::Class, "cls_token")?,
            dist_token: token(PrefixToken::Distillation, "dist_token")?,
            reg_token: token(PrefixToken::Register, "reg_token")?,
            pos_embed: parameters.parameter("pos_embed")?,
            norm_pre: spec.pre_norm.then(|| norm("norm_pre")).transpose()?,
            blocks: blocks(spec, ops, parameters)?,
            norm: norm(spec.final_norm_name())?,
            head: head("head", num_classes > 0)?,
            head_dist: head("head_dist", num_classes > 0 && spec.is_distilled())?,
            ops: outside,
            spec: spec.clone(),
        })
    }

    #[cfg(test)]
    pub(super) fn layer_mut(&mut self, layer: usize) -> &mut Layer {
        self.blocks.layer_mut(layer)
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
        let x = self.embed(images, ctx);
        self.blocks.forward(x, ctx)
    }

    /// The stream before the first block, `[batch, tokens, dim]`.
    pub(super) fn embed(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<3> {
        ctx.layer = None;
        ctx.stream = Stream {
            prefix: self.spec.prefix.len(),
            grid: self.spec.grid(),
            ..Stream::default()
        };
        let x = self.embed_patches(images, ctx);
        let x = at(Site::PatchOut, x, &self.ops, ctx);
        let x = self.add_tokens(x);
        match &self.norm_pre {
            Some(norm) => norm.forward(x, ctx.compute),
            None => x,
        }
    }

    /// What one block makes of the stream; `None` if there is no such block.
    pub(super) fn block(&self, layer: usize, x: Tensor<3>, ctx: &mut Ctx) -> Option<Tensor<3>> {
        self.blocks.one(layer, x, ctx)
    }

    /// The patch convolution, as a product over flattened patches: `[batch, patches, dim]`.
    fn embed_patches(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<3> {
        let [batch, channels, _, _] = images.dims();
        let ([rows, columns], side) = (self.spec.grid(), self.spec.patch_size);
        let width = channels * side * side;
        let patches = images
            .reshape([batch, channels, rows, side, columns, side])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, width]);
        let values = LinearValues {
            weight: self.patch_weight.val().reshape([self.spec.embed_dim, width]),
            bias: self.patch_bias.as_ref().map(Param::val),
        };
        project(Site::Embed, values, (patches, Before::Nothing), &self.ops, ctx)
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
        let [batch, _, dim] = x.dims();
        let compute = ctx.compute;
        if self.spec.pool == Pool::AvgThenNorm {
            return Logits {
                class: self.read(head, ctx.stream.mean(x), true, compute),
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
                class: self.read(head, ctx.stream.mean(x), false, compute),
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
            (Some(head), true) => head.values().segment(x, self.norm.before(), None, compute),
            (Some(head), false) => head.forward(x, compute),
            (None, true) => self.norm.forward(x, compute),
            (None, false) => x,
        }
    }
}

/// The blocks of a spec, with `ops` in each.
fn blocks(
    spec: &VitSpec,
    ops: impl Fn(Option<usize>) -> Result<Vec<Op>>,
    parameters: &Parameters<'_>,
) -> Result<Blocks> {
    let core = |(i, core)| Core::new(core, &spec.core_name(i), spec.activation, parameters);
    let cores = spec.cores.iter().enumerate().map(core).collect::<Result<_>>()?;
    let (mut norms, mut numbers, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    for (i, layer) in spec.layers.iter().enumerate() {
        let norm = |site| {
            let name = spec.norm(site, Some(i));
            name.map(|name| LayerNorm::new(&name, spec.norm_eps, parameters))
                .transpose()
        };
        // Norms that several layers share exist once.
        let number = match layer.norms.and_then(|first| numbers.get(first)) {
            Some(&number) => number,
            None => {
                norms.push(Norms {
                    attn: norm(Site::AttnIn)?,
                    mlp: norm(Site::MlpIn)?,
                });
                norms.len() - 1
            }
        };
        numbers.push(number);
        let place = Place {
            core: layer.core,
            norms: number,
            layer: i,
            depth: spec.layers.len(),
        };
        layers.push(Layer::new(ops(Some(i))?, place));
    }
    Ok(Blocks::new(cores, norms, layers))
}
