//! MiniViT's transformations: small ops, private to each layer, that keep layers with the same matrices different.
//!
//! Paper: Zhang et al., *MiniViT: Compressing Vision Transformers with Weight Multiplexing*, CVPR 2022, section 3.2. What the published
//! models have is said here once, for the zoo and for models that are made to share.

use serde::{Deserialize, Serialize};

use super::{HeadMixing, LocalConvolution, OpKind, OpSpec, RelativePositions};
use crate::site::Site;
use crate::spec::{ModelSpec, NetworkSpec, Sites};

/// A transformation that keeps layers with the same matrices different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transformation {
    /// Relative positions of keys, as Mini-DeiT has them; a Swin has its own already.
    Positions,
    /// Mixing of heads before and after the softmax; in a Swin with biases.
    Mixing,
    /// Mini-Swin's norm and convolution between the sub-layers. It does not start as the identity.
    Local,
}

impl Transformation {
    /// All of them, as they stand in a layer.
    pub const ALL: [Transformation; 3] = [
        Transformation::Positions,
        Transformation::Mixing,
        Transformation::Local,
    ];

    /// Those of the published model of a family, as they stand in a layer.
    pub fn published(spec: &ModelSpec) -> Vec<Transformation> {
        match spec.network {
            NetworkSpec::Swin(_) => vec![Transformation::Mixing, Transformation::Local],
            _ => vec![Transformation::Positions, Transformation::Mixing],
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transformation::Positions => "positions",
            Transformation::Mixing => "mixing",
            Transformation::Local => "local",
        }
    }

    /// Whether it can start so that it changes nothing.
    pub fn starts_as_identity(self) -> bool {
        self != Transformation::Local
    }

    /// Its ops in a layer.
    pub fn ops(self, spec: &ModelSpec, layer: usize) -> Vec<OpSpec> {
        let at = |site, kind| OpSpec {
            site,
            layer: Some(layer),
            kind,
        };
        match self {
            Transformation::Positions => {
                let patches = spec.grid_at(layer).map(|grid| grid.iter().product::<usize>());
                let positions = RelativePositions::published(patches != Some(spec.tokens_at(layer)));
                vec![at(positions.site(), OpKind::RelativePositions(positions))]
            }
            Transformation::Mixing => {
                let bias = matches!(spec.network, NetworkSpec::Swin(_));
                let mixing = |site| at(site, OpKind::HeadMixing(HeadMixing { bias }));
                [Site::AttnLogits, Site::AttnProbs].map(mixing).to_vec()
            }
            Transformation::Local => {
                let local = OpKind::LocalConvolution(LocalConvolution::published());
                vec![at(Site::Mid, local)]
            }
        }
    }
}

impl ModelSpec {
    /// The ops of these transformations in every layer, layer by layer.
    pub fn transformed_by(&self, transformations: &[Transformation]) -> Vec<OpSpec> {
        let of_layer = |layer| transformations.iter().flat_map(move |one| one.ops(self, layer));
        (0..self.depth()).flat_map(of_layer).collect()
    }
}
