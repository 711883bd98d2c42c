//! The blocks of a transformer, whichever family it is of: what pruning and the engine have to know besides sites.

use super::swin::merging;
use super::{BlockSpec, LayerSpec, ModelSpec, NetworkSpec, SwinSpec, VitSpec, Windows};
use crate::{Error, Result};

/// A network of transformer blocks.
#[derive(Debug, Clone, Copy)]
pub enum Transformer<'a> {
    /// One width from end to end, one set of tokens.
    Vit(&'a VitSpec),
    /// Attention in windows, in stages of different width.
    Swin(&'a SwinSpec),
}

impl<'a> Transformer<'a> {
    /// The matrices of the blocks.
    pub fn cores(self) -> &'a [BlockSpec] {
        match self {
            Transformer::Vit(vit) => &vit.cores,
            Transformer::Swin(swin) => &swin.cores,
        }
    }

    /// The blocks in the order of the forward pass.
    pub fn layers(self) -> &'a [LayerSpec] {
        match self {
            Transformer::Vit(vit) => &vit.layers,
            Transformer::Swin(swin) => &swin.layers,
        }
    }

    /// Whether several layers share a core.
    pub fn is_shared(self) -> bool {
        self.layers().len() > self.cores().len()
    }

    /// The number of the core that a layer uses.
    pub fn core(self, layer: usize) -> Option<usize> {
        self.layers().get(layer).map(|layer| layer.core)
    }

    /// The core of a layer.
    pub fn block(self, layer: usize) -> Option<&'a BlockSpec> {
        self.cores().get(self.core(layer)?)
    }

    /// Width of the stream in a layer; 0 if there is no such layer.
    pub fn dim(self, layer: usize) -> usize {
        match self {
            Transformer::Vit(vit) => vit.embed_dim,
            Transformer::Swin(swin) => swin.dim(layer).unwrap_or(0),
        }
    }

    /// Width of the stream in the layers that use a core; 0 if there is no such core.
    pub fn core_dim(self, core: usize) -> usize {
        let layer = self.layers().iter().position(|layer| layer.core == core);
        layer.map_or(0, |layer| self.dim(layer))
    }

    /// The prefix of a core's tensors, such as `blocks.3` or `layers.2.blocks.5`.
    pub fn core_name(self, core: usize) -> String {
        match self {
            Transformer::Vit(vit) => vit.core_name(core),
            Transformer::Swin(swin) => swin.core_name(core),
        }
    }

    /// The prefix of one of the norms (1 or 2) that a layer uses, such as `blocks.3.norm1`.
    pub fn norm_name(self, layer: usize, norm: usize) -> String {
        match self {
            Transformer::Vit(vit) => vit.norm_name(layer, norm),
            Transformer::Swin(swin) => swin.norm_name(layer, norm),
        }
    }

    /// The windows in which a layer attends; `None` where all tokens see each other.
    pub fn windows(self, layer: usize) -> Option<Windows> {
        match self {
            Transformer::Vit(_) => None,
            Transformer::Swin(swin) => swin.windows(layer),
        }
    }

    /// The name of the biases that attention of a core adds to its logits, `[relative positions, heads]`; `None` where it adds none.
    pub fn bias_table(self, core: usize) -> Option<String> {
        match self {
            Transformer::Vit(_) => None,
            Transformer::Swin(swin) => Some(swin.bias_table(core)),
        }
    }

    /// The prefix of the tensors of the patch merging with which the stage of a layer begins; `None` where none does.
    pub fn merging(self, layer: usize) -> Option<String> {
        match self {
            Transformer::Vit(_) => None,
            Transformer::Swin(swin) => {
                let stage = swin.place(layer)?.stage;
                (stage > 0).then(|| merging(stage))
            }
        }
    }

    /// Epsilon of every layer norm.
    pub fn norm_eps(self) -> f64 {
        match self {
            Transformer::Vit(vit) => vit.norm_eps,
            Transformer::Swin(swin) => swin.norm_eps,
        }
    }
}

impl ModelSpec {
    /// The transformer inside.
    ///
    /// # Errors
    /// A convolutional network.
    pub fn transformer(&self) -> Result<Transformer<'_>> {
        match &self.network {
            NetworkSpec::Vit(vit) => Ok(Transformer::Vit(vit)),
            NetworkSpec::Swin(swin) => Ok(Transformer::Swin(swin)),
            NetworkSpec::RegNet(_) => Err(Error::invalid_spec(format!(
                "`{}` is a convolutional network; this needs a vision transformer, such as ViT, DeiT or Swin",
                self.architecture
            ))),
        }
    }
}
