//! The network: a Burn module built only from a [`ModelSpec`] and its [`Tensors`].
//!
//! One path serves fresh, loaded, resumed, pruned and merged models. Parameters keep exactly the checkpoint's shapes
//! (linear weights are `[out, in]`); their ids are hashes of the tensors' names, so that what is keyed by parameter
//! (gradients, moments, averages) survives a reload. Every method that acts inside a forward pass stands as an op at a
//! site; [`Ctx`] carries what ops and traces need.

mod attention;
mod batch_norm;
mod block;
mod ctx;
pub mod fused;
pub(crate) mod layers;
mod maps;
mod pack;
mod params;
pub mod profile;
mod regnet;
mod stations;
mod stream;
mod swin;
#[cfg(test)]
mod tests;
mod tokens;
mod trace;
mod vit;
mod windows;

pub use attention::{AttentionState, policy_softmax};
pub use ctx::{Ctx, Draws, DropPath, Leaving, Mode, Noise};
pub use fused::{Compute, Precision};
pub(crate) use fused::{MOST_BUCKETS, MapChange, Mixing, Positions};
pub use params::{Parameters, param_id};
pub use regnet::RegNet;
pub use stream::Stream;
pub use swin::Swin;
pub use tokens::Places;
pub(crate) use tokens::rows_of;
pub use trace::{Trace, Value};
pub use vit::Vit;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

pub use crate::fusion::Fusion;
use crate::spec::{ModelSpec, NetworkSpec};
use crate::tensors::Tensors;
use crate::{Error, Result};

/// A model that computes: `[batch, channels, height, width]` images to logits.
#[derive(Module, Debug)]
pub struct Network {
    body: Body,
    #[module(skip)]
    spec: ModelSpec,
}

// One network holds one body: what the smaller variant wastes does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
enum Body {
    Vit(Vit),
    RegNet(RegNet),
    Swin(Swin),
}

/// What the heads say. A model without classes returns its pooled features as `class`.
#[derive(Debug, Clone)]
pub struct Logits {
    /// The class head: `[batch, classes]`.
    pub class: Tensor<2>,
    /// The distillation head, for distilled models: `[batch, classes]`.
    pub distillation: Option<Tensor<2>>,
}

impl Logits {
    /// Those of a model with one head.
    fn one(class: Tensor<2>) -> Self {
        Logits {
            class,
            distillation: None,
        }
    }

    /// One prediction from both heads: `[batch, classes]`. With one head it is that head's logits, or their softmax
    /// for [`Fusion::SoftmaxMean`].
    pub fn joint(self, fusion: Fusion) -> Tensor<2> {
        use burn::tensor::activation::softmax;
        match (fusion, self.distillation) {
            (Fusion::LogitMean, Some(other)) => (self.class + other) / 2.0,
            (Fusion::SoftmaxMean, Some(other)) => (softmax(self.class, 1) + softmax(other, 1)) / 2.0,
            (Fusion::SoftmaxMean, None) => softmax(self.class, 1),
            (Fusion::Distillation, Some(other)) => other,
            _ => self.class,
        }
    }
}

impl Network {
    /// Builds the network on `device`. On an autodiff device every trained parameter asks for its gradient.
    ///
    /// The tensors are checked strictly against the spec first; `source` names their file in an error.
    pub fn new(spec: &ModelSpec, tensors: &Tensors, source: &str, device: &Device) -> Result<Self> {
        fused::check()?;
        spec.check(tensors, source)?;
        let parameters = Parameters::new(tensors, device);
        let body = match &spec.network {
            NetworkSpec::Vit(vit) => Body::Vit(Vit::new(vit, spec, &parameters)?),
            NetworkSpec::RegNet(regnet) => Body::RegNet(RegNet::new(regnet, spec.num_classes, &parameters)?),
            NetworkSpec::Swin(swin) => Body::Swin(Swin::new(swin, spec, &parameters)?),
        };
        Ok(Network {
            body,
            spec: spec.clone(),
        })
    }

    /// The description that the network was built from.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The heads' logits for `images` `[batch, channels, height, width]`, normalised as the checkpoint says.
    ///
    /// # Errors
    /// Images of another size than the spec's, and an empty batch; scores that are no numbers, by which tokens would stay.
    pub fn forward(&self, images: Tensor<4>, ctx: &mut Ctx) -> Result<Logits> {
        self.check(&images)?;
        let logits = match &self.body {
            Body::Vit(vit) => vit.forward(images, ctx),
            Body::RegNet(regnet) => Logits::one(regnet.forward(images, ctx)),
            Body::Swin(swin) => Logits::one(swin.forward(images, ctx)),
        };
        self.chosen_by_numbers(ctx)?;
        Ok(logits)
    }

    /// What the heads read of `images`, `[batch, features]` each, in the place of their logits.
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn features(&self, images: Tensor<4>, ctx: &mut Ctx) -> Result<Logits> {
        self.check(&images)?;
        let features = match &self.body {
            Body::Vit(vit) => vit.features(images, ctx),
            Body::RegNet(regnet) => Logits::one(regnet.features(images, ctx)),
            Body::Swin(swin) => Logits::one(swin.features(images, ctx)),
        };
        self.chosen_by_numbers(ctx)?;
        Ok(features)
    }

    /// What the heads say about [`Network::features`].
    pub fn heads(&self, features: Logits, ctx: &Ctx) -> Logits {
        match &self.body {
            Body::Vit(vit) => vit.heads(features, ctx),
            Body::RegNet(regnet) => Logits::one(regnet.classify(features.class, ctx)),
            Body::Swin(swin) => Logits::one(swin.classify(features.class, ctx)),
        }
    }

    /// The token stream of `images` before the first block, `[batch, tokens, dim]`. With [`Network::block`] a forward pass
    /// goes block by block, for what has to look at one block after the other.
    ///
    /// # Errors
    /// As [`Network::forward`]; a network without a token stream.
    pub fn embed(&self, images: Tensor<4>, ctx: &mut Ctx) -> Result<Tensor<3>> {
        self.check(&images)?;
        match &self.body {
            Body::Vit(vit) => Ok(vit.embed(images, ctx)),
            Body::Swin(swin) => Ok(swin.embed(images, ctx)),
            Body::RegNet(_) => Err(self.no_block("the token stream".into())),
        }
    }

    /// What block `layer` makes of the token stream `x` `[batch, tokens, dim]`; `ctx` is that of [`Network::embed`], or one with
    /// the same stream.
    ///
    /// # Errors
    /// A network without such a block; scores in it that are no numbers.
    pub fn block(&self, layer: usize, x: Tensor<3>, ctx: &mut Ctx) -> Result<Tensor<3>> {
        let found = match &self.body {
            Body::Vit(vit) => vit.block(layer, x, ctx),
            Body::Swin(swin) => swin.block(layer, x, ctx),
            Body::RegNet(_) => None,
        };
        self.chosen_by_numbers(ctx)?;
        found.ok_or_else(|| self.no_block(format!("block {layer}")))
    }

    fn no_block(&self, what: String) -> Error {
        Error::Unsupported {
            what,
            why: format!("`{}` has none", self.spec.architecture),
        }
    }

    /// Refuses a choice of tokens that no numbers decided.
    fn chosen_by_numbers(&self, ctx: &mut Ctx) -> Result<()> {
        match ctx.spoiled.take() {
            None => Ok(()),
            Some(prefix) => Err(Error::TokenScores {
                op: prefix,
                architecture: self.spec.architecture.clone(),
            }),
        }
    }

    fn check(&self, images: &Tensor<4>) -> Result<()> {
        let [batch, channels, height, width] = images.dims();
        let [want_channels, want_height, want_width] = self.spec.input_size();
        if [channels, height, width] != [want_channels, want_height, want_width] {
            return Err(Error::Unsupported {
                what: format!("images of {channels}x{height}x{width}"),
                why: format!(
                    "`{}` takes {want_channels}x{want_height}x{want_width}; resize the images, or load the \
                     checkpoint with another image size",
                    self.spec.architecture
                ),
            });
        }
        if batch == 0 {
            return Err(Error::Unsupported {
                what: "an empty batch".into(),
                why: "give at least one image".into(),
            });
        }
        Ok(())
    }

    /// The network's weights as they are now, by tensor name, in `f32`.
    pub fn tensors(&self) -> Result<Tensors> {
        params::export(self, &self.spec)
    }
}
