//! What the compiler has to know of a family besides its sites.

use vitesse_model::ModelSpec;
use vitesse_model::spec::{BlockSpec, NetworkSpec, SwinSpec, VitSpec};

use crate::{Error, Result};

/// The body of a model, of one of the families that the engine runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    Vit(&'a VitSpec),
    Swin(&'a SwinSpec),
}

impl<'a> Body<'a> {
    pub(super) fn of(spec: &'a ModelSpec) -> Result<Self> {
        match &spec.network {
            NetworkSpec::Vit(vit) => Ok(Body::Vit(vit)),
            NetworkSpec::Swin(swin) => Ok(Body::Swin(swin)),
            NetworkSpec::RegNet(_) => Err(Error::Unsupported(format!(
                "the engine runs only vision transformers, and `{}` is another kind of network; run it with `--engine burn`",
                spec.architecture
            ))),
        }
    }

    /// The matrices of a layer.
    pub(super) fn block(self, layer: usize) -> Option<&'a BlockSpec> {
        match self {
            Body::Vit(vit) => vit.block(layer),
            Body::Swin(swin) => swin.block(layer),
        }
    }

    /// Width of the stream in a layer.
    pub(super) fn dim(self, layer: usize) -> usize {
        match self {
            Body::Vit(vit) => vit.embed_dim,
            Body::Swin(swin) => swin.dim(layer).unwrap_or(0),
        }
    }

    /// The number of the core that a layer uses.
    pub(super) fn core(self, layer: usize) -> Option<usize> {
        let layers = match self {
            Body::Vit(vit) => &vit.layers,
            Body::Swin(swin) => &swin.layers,
        };
        layers.get(layer).map(|layer| layer.core)
    }

    pub(super) fn norm_eps(self) -> f64 {
        match self {
            Body::Vit(vit) => vit.norm_eps,
            Body::Swin(swin) => swin.norm_eps,
        }
    }
}
