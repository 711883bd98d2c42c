//! Swin's forward pass.
//!
//! ```text
//! images ─[patch embedding]─ patch.out ─ norm ─ stage ─[patch merging]─ stage ─ … ─ final norm ─ mean over tokens ─ head
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::block::{Blocks, Core, Layer, Norms, Place};
use super::ctx::Ctx;
use super::fused::{Before, Order, arrange};
use super::layers::{LayerNorm, Linear, LinearValues};
use super::params::Parameters;
use super::stations::{at, cut, project};
use super::stream::Stream;
use super::windows::{Division, RelativeBias};
use crate::Result;
use crate::ops::Op;
use crate::site::Site;
use crate::spec::swin::merging;
use crate::spec::{Activation, ModelSpec, Sites, SwinSpec};

/// Swin.
#[derive(Module, Debug)]
pub struct Swin {
    patch_weight: Param<Tensor<4>>,
    patch_bias: Param<Tensor<1>>,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Option<Linear>,
    /// The ops outside blocks.
    ops: Vec<Op>,
    #[module(skip)]
    spec: SwinSpec,
}

/// Blocks of one width, and what leads to them.
#[derive(Module, Debug)]
struct Stage {
    merging: Option<Merging>,
    blocks: Blocks,
}

/// Of a layer's ops, those of the patch merging before it, or the others.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Merging,
    Rest,
}

/// Patch merging: 2 by 2 tokens become one of twice the width.
#[derive(Module, Debug)]
struct Merging {
    norm: LayerNorm,
    reduction: Linear,
    /// The ops after the norm.
    ops: Vec<Op>,
    /// The tokens of each neighbourhood, column by column.
    #[module(skip)]
    order: Order,
}

impl Swin {
    pub(super) fn new(spec: &SwinSpec, model: &ModelSpec, parameters: &Parameters<'_>) -> Result<Self> {
        let ops = |layer: Option<usize>, part: Part| -> Result<Vec<Op>> {
            let merging = part == Part::Merging;
            let here = model.ops.iter().enumerate();
            let here = here.filter(|(_, op)| op.layer == layer && (op.site == Site::MergeIn) == merging);
            here.map(|(i, op)| Op::new(op, i, model, parameters)).collect()
        };
        let norm = |name: &str| LayerNorm::new(name, spec.norm_eps, parameters);
        let stage = |stage| {
            Ok(Stage {
                merging: if stage > 0 {
                    Some(Merging::new(spec, stage, ops, parameters)?)
                } else {
                    None
                },
                blocks: blocks(spec, stage, ops, parameters)?,
            })
        };
        Ok(Swin {
            patch_weight: parameters.parameter("patch_embed.proj.weight")?,
            patch_bias: parameters.parameter("patch_embed.proj.bias")?,
            patch_norm: norm("patch_embed.norm")?,
            stages: (0..spec.stages()).map(stage).collect::<Result<_>>()?,
            norm: norm("norm")?,
            head: if model.num_classes > 0 {
                Some(Linear::new("head.fc", true, parameters)?)
            } else {
                None
            },
            ops: ops(None, Part::Rest)?,
            spec: spec.clone(),
        })
    }

    /// Logits `[batch, classes]`, or pooled features without a head, of `images` `[batch, channels, height, width]` of the
    /// spec's size.
    pub(super) fn forward(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<2> {
        let features = self.features(images, ctx);
        self.classify(features, ctx)
    }

    /// What the head says about features `[batch, features]`.
    pub(super) fn classify(&self, features: Tensor<2>, ctx: &Ctx) -> Tensor<2> {
        match &self.head {
            Some(head) => head.forward(features, ctx.compute),
            None => features,
        }
    }

    /// What the head reads, `[batch, features]`.
    pub(super) fn features(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<2> {
        let mut x = self.embed(images, ctx);
        for (number, stage) in self.stages.iter().enumerate() {
            x = self.enter(number, x, ctx);
            x = stage.blocks.forward(x, ctx);
        }
        let x = at(Site::FinalNorm, self.norm.forward(x, ctx.compute), &self.ops, ctx);
        ctx.stream.mean(x)
    }

    /// The stream before the first block, `[batch, tokens, dim]`.
    pub(super) fn embed(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<3> {
        ctx.layer = None;
        ctx.stream = Stream {
            grid: self.spec.stage_map(0),
            ..Stream::default()
        };
        let x = self.embed_patches(images, ctx);
        let x = at(Site::PatchOut, x, &self.ops, ctx);
        let x = self.patch_norm.forward(x, ctx.compute);
        at(Site::PatchNorm, x, &self.ops, ctx)
    }

    /// What one block makes of the stream, after the patch merging before it if there is one; `None` if there is no such
    /// block.
    pub(super) fn block(&self, layer: usize, x: Tensor<3>, ctx: &mut Ctx) -> Option<Tensor<3>> {
        let place = self.spec.place(layer)?;
        let x = if place.within == 0 {
            self.enter(place.stage, x, ctx)
        } else {
            x
        };
        self.stages.get(place.stage)?.blocks.one(place.within, x, ctx)
    }

    /// The patch merging before a stage, where there is one.
    fn enter(&self, stage: usize, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        ctx.stream.grid = self.spec.stage_map(stage);
        match self.stages.get(stage).and_then(|stage| stage.merging.as_ref()) {
            Some(merging) => {
                ctx.layer = Some(self.spec.first_layer(stage));
                merging.forward(x, ctx)
            }
            None => x,
        }
    }

    /// The patch convolution, as a product over flattened patches: `[batch, patches, dim]`.
    fn embed_patches(&self, images: Tensor<4>, ctx: &mut Ctx) -> Tensor<3> {
        let [batch, channels, _, _] = images.dims();
        let ([rows, columns], side) = (self.spec.stage_map(0), self.spec.patch_size);
        let width = channels * side * side;
        let patches = images
            .reshape([batch, channels, rows, side, columns, side])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, width]);
        let values = LinearValues {
            weight: self.patch_weight.val().reshape([self.spec.embed_dim, width]),
            bias: Some(self.patch_bias.val()),
        };
        project(Site::Embed, values, (patches, Before::Nothing), &self.ops, ctx)
    }
}

impl Merging {
    fn new(
        spec: &SwinSpec,
        stage: usize,
        ops: impl Fn(Option<usize>, Part) -> Result<Vec<Op>>,
        parameters: &Parameters<'_>,
    ) -> Result<Self> {
        let name = merging(stage);
        Ok(Merging {
            norm: LayerNorm::new(&format!("{name}.norm"), spec.norm_eps, parameters)?,
            reduction: Linear::new(&format!("{name}.reduction"), false, parameters)?,
            ops: ops(Some(spec.first_layer(stage)), Part::Merging)?,
            order: spec.merged_tokens(stage).into_iter().map(Some).collect(),
        })
    }

    /// `[batch, tokens, dim]` to `[batch, tokens / 4, 2 · dim]`.
    fn forward(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
        let [batch, tokens, dim] = x.dims();
        let x = arrange(x, &self.order, ctx.compute).reshape([batch, tokens / 4, 4 * dim]);
        let map = self.reduction.values();
        if !cut(Site::MergeIn, &self.ops, ctx) {
            return map.segment(x, self.norm.before(), None, ctx.compute);
        }
        let x = at(Site::MergeIn, self.norm.forward(x, ctx.compute), &self.ops, ctx);
        map.segment(x, Before::Nothing, None, ctx.compute)
    }
}

/// The blocks of a stage, with `ops` in each.
fn blocks(
    spec: &SwinSpec,
    stage: usize,
    ops: impl Fn(Option<usize>, Part) -> Result<Vec<Op>>,
    parameters: &Parameters<'_>,
) -> Result<Blocks> {
    let first = spec.first_layer(stage);
    let (mut cores, mut core_numbers) = (Vec::new(), Vec::new());
    let (mut norms, mut norm_numbers, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    for (i, layer) in spec.layers.iter().enumerate() {
        if spec.place(i).is_none_or(|place| place.stage != stage) {
            continue;
        }
        // What several layers share exists once.
        let core = match core_numbers.iter().position(|&number| number == layer.core) {
            Some(number) => number,
            None => {
                let name = spec.core_name(layer.core);
                if let Some(block) = spec.cores.get(layer.core) {
                    let core = Core::new(block, &name, Activation::Gelu, parameters)?;
                    let attends = block.attn.is_some();
                    let bias = attends
                        .then(|| RelativeBias::new(&spec.bias_table(layer.core), parameters))
                        .transpose()?;
                    cores.push(core.with_bias(bias));
                }
                core_numbers.push(layer.core);
                core_numbers.len() - 1
            }
        };
        let norm = |site| {
            let name = spec.norm(site, Some(i));
            name.map(|name| LayerNorm::new(&name, spec.norm_eps, parameters))
                .transpose()
        };
        let of = layer
            .norms
            .and_then(|owner| norm_numbers.get(owner.checked_sub(first)?));
        let number = match of {
            Some(&number) => number,
            None => {
                norms.push(Norms {
                    attn: norm(Site::AttnIn)?,
                    mlp: norm(Site::MlpIn)?,
                });
                norms.len() - 1
            }
        };
        norm_numbers.push(number);
        let place = Place {
            core,
            norms: number,
            layer: i,
            depth: spec.layers.len(),
        };
        let windows = spec.windows(i).map(|windows| Division::new(&windows));
        layers.push(Layer::new(ops(Some(i), Part::Rest)?, place).inside(windows));
    }
    Ok(Blocks::new(cores, norms, layers))
}
