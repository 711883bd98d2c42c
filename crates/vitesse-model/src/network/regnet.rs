//! RegNetY's forward pass.
//!
//! ```text
//! images ─[stem]─ blocks ─ mean over positions ─ head
//! block:  relu(shortcut(x) + drop(conv3(gate(relu(conv2(relu(conv1 x)))))))
//! ```
//!
//! Values are `[channels, batch, height, width]`, channels first of all: a 1×1 convolution is then one matrix product
//! over all pixels of the batch, and a batch norm reads each channel in one run. On a CPU a forward and backward pass
//! through either takes about a third of the time it takes with the batch first.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::{relu, sigmoid};

use super::batch_norm::BatchNorm;
use super::ctx::{Ctx, Mode};
use super::fused::{self, Compute, Convolution, Layout};
use super::layers::Linear;
use super::params::Parameters;
use crate::Result;
use crate::site::Site;
use crate::spec::RegNetSpec;
use crate::spec::regnet::{ConvNormSpec, RegNetBlock};

/// RegNetY.
#[derive(Module, Debug)]
pub struct RegNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
    head: Option<Linear>,
}

#[derive(Module, Debug)]
struct Block {
    conv1: ConvNorm,
    conv2: ConvNorm,
    gate: SqueezeExcite,
    conv3: ConvNorm,
    downsample: Option<ConvNorm>,
}

/// A convolution without bias and its batch norm.
#[derive(Module, Debug)]
struct ConvNorm {
    weight: Param<Tensor<4>>,
    norm: BatchNorm,
    #[module(skip)]
    spec: ConvNormSpec,
}

/// Squeeze and excitation (Hu et al., CVPR 2018): every channel of every image is scaled by a number between 0 and 1
/// that two dense layers compute from the means of all channels.
#[derive(Module, Debug)]
struct SqueezeExcite {
    fc1_weight: Param<Tensor<4>>,
    fc1_bias: Param<Tensor<1>>,
    fc2_weight: Param<Tensor<4>>,
    fc2_bias: Param<Tensor<1>>,
}

impl RegNet {
    pub(super) fn new(spec: &RegNetSpec, num_classes: usize, parameters: &Parameters<'_>) -> Result<Self> {
        let conv = |conv: &ConvNormSpec| ConvNorm::new(conv, spec.bn_eps, parameters);
        let block = |block: &RegNetBlock| {
            Ok(Block {
                conv1: conv(&block.conv1)?,
                conv2: conv(&block.conv2)?,
                gate: SqueezeExcite::new(&block.name, parameters)?,
                conv3: conv(&block.conv3)?,
                downsample: block.downsample.as_ref().map(conv).transpose()?,
            })
        };
        Ok(RegNet {
            stem: conv(&spec.stem())?,
            blocks: spec.blocks().iter().map(block).collect::<Result<_>>()?,
            head: if num_classes > 0 {
                Some(Linear::new("head.fc", true, parameters)?)
            } else {
                None
            },
        })
    }

    /// Logits `[batch, classes]`, or pooled features `[batch, width]` without a head, of `images`
    /// `[batch, channels, height, width]`. In training the context receives the new running statistics.
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
        let mut x = relu(self.stem.forward(images.swap_dims(0, 1), ctx));
        for (i, block) in self.blocks.iter().enumerate() {
            ctx.layer = Some(i);
            x = recorded(block.forward(x, self.blocks.len(), ctx), ctx);
        }
        ctx.layer = None;
        mean_by_image(x).transpose()
    }
}

impl Block {
    fn forward(&self, x: Tensor<4>, depth: usize, ctx: &mut Ctx) -> Tensor<4> {
        let branch = relu(self.conv1.forward(x.clone(), ctx));
        let branch = relu(self.conv2.forward(branch, ctx));
        let branch = self.conv3.forward(self.gate.forward(branch), ctx);
        let [channels, batch, height, width] = branch.dims();
        let branch = branch.reshape([channels, batch, height * width]).swap_dims(0, 1);
        let branch = fused::scaled(branch, ctx.drop_path(batch, depth, 0))
            .swap_dims(0, 1)
            .reshape([channels, batch, height, width]);
        let shortcut = match &self.downsample {
            Some(conv) => conv.forward(x, ctx),
            None => x,
        };
        relu(branch + shortcut)
    }
}

impl ConvNorm {
    fn new(spec: &ConvNormSpec, eps: f64, parameters: &Parameters<'_>) -> Result<Self> {
        let name = &spec.name;
        Ok(ConvNorm {
            weight: parameters.parameter(&format!("{name}.conv.weight"))?,
            norm: BatchNorm::new(format!("{name}.bn"), eps, parameters)?,
            spec: spec.clone(),
        })
    }

    /// `x` `[in, batch, height, width]` to `[out, batch, height / stride, width / stride]`, sides rounded up.
    fn forward(&self, x: Tensor<4>, ctx: &mut Ctx) -> Tensor<4> {
        let (out, batch, [height, width]) = (self.spec.out_chans, x.dims()[1], self.spec.out_size());
        let y = match ctx.mode {
            Mode::Eval => {
                // The norm is a scale and a shift: the weights take the scale.
                let (scale, shift) = self.norm.affine();
                let weight = self.weight.val() * scale.reshape([out, 1, 1, 1]);
                self.convolve(x, weight, ctx.compute) + shift.reshape([out, 1])
            }
            Mode::Train { .. } => self
                .norm
                .by_batch(self.convolve(x, self.weight.val(), ctx.compute), ctx),
        };
        y.reshape([out, batch, height, width])
    }

    /// `x` `[in, batch, height, width]` to `[out, batch · height / stride · width / stride]`.
    fn convolve(&self, x: Tensor<4>, weight: Tensor<4>, compute: Compute) -> Tensor<2> {
        let ConvNormSpec {
            out_chans,
            kernel,
            stride,
            groups,
            ..
        } = self.spec;
        let pixels = x.dims()[1] * self.spec.out_size().iter().product::<usize>();
        let convolution = Convolution {
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            groups,
            layout: Layout::ChannelsFirst,
        };
        fused::conv2d(x, weight, None, convolution, compute).reshape([out_chans, pixels])
    }
}

impl SqueezeExcite {
    fn new(block: &str, parameters: &Parameters<'_>) -> Result<Self> {
        Ok(SqueezeExcite {
            fc1_weight: parameters.parameter(&format!("{block}.se.fc1.weight"))?,
            fc1_bias: parameters.parameter(&format!("{block}.se.fc1.bias"))?,
            fc2_weight: parameters.parameter(&format!("{block}.se.fc2.weight"))?,
            fc2_bias: parameters.parameter(&format!("{block}.se.fc2.bias"))?,
        })
    }

    /// `[channels, batch, height, width]` to the same shape.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [channels, batch, ..] = x.dims();
        let dense = |x: Tensor<2>, weight: &Param<Tensor<4>>, bias: &Param<Tensor<1>>| {
            let [out, inner, ..] = weight.dims();
            weight.val().reshape([out, inner]).matmul(x) + bias.val().reshape([out, 1])
        };
        let hidden = relu(dense(mean_by_image(x.clone()), &self.fc1_weight, &self.fc1_bias));
        let gate = sigmoid(dense(hidden, &self.fc2_weight, &self.fc2_bias));
        x * gate.reshape([channels, batch, 1, 1])
    }
}

/// Records what leaves a block `[channels, batch, height, width]`, its positions as tokens, if the trace wants it, and hands it on.
fn recorded(x: Tensor<4>, ctx: &mut Ctx) -> Tensor<4> {
    if !ctx.trace.wants(Site::BlockOut, ctx.layer) {
        return x;
    }
    let [channels, batch, height, width] = x.dims();
    let tokens = x.reshape([channels, batch, height * width]).permute([1, 2, 0]);
    let tokens = ctx.record(Site::BlockOut, tokens);
    tokens
        .permute([2, 0, 1])
        .reshape([channels, batch, height, width])
}

/// The mean over positions: `[channels, batch, height, width]` to `[channels, batch]`.
fn mean_by_image(x: Tensor<4>) -> Tensor<2> {
    let [channels, batch, height, width] = x.dims();
    x.reshape([channels, batch, height * width])
        .mean_dim(2)
        .reshape([channels, batch])
}
