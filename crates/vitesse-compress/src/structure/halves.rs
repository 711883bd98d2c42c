//! The two halves of a block: attention and the perceptron, each of which ends in a projection that adds to the stream.

use vitesse_model::Site;
use vitesse_model::spec::VitSpec;

/// The two halves of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Attn,
    Mlp,
}

impl Half {
    pub(super) const BOTH: [Half; 2] = [Half::Attn, Half::Mlp];

    /// The stream before the half and after it.
    pub(super) fn stream(self) -> [Site; 2] {
        match self {
            Half::Attn => [Site::BlockIn, Site::Mid],
            Half::Mlp => [Site::Mid, Site::BlockOut],
        }
    }

    /// What its projection reads, and what the half adds to the stream.
    pub(super) fn sites(self) -> [Site; 2] {
        match self {
            Half::Attn => [Site::AttnHeads, Site::AttnOut],
            Half::Mlp => [Site::MlpHidden, Site::MlpOut],
        }
    }

    pub(super) fn projection(self) -> &'static str {
        match self {
            Half::Attn => "attn.proj",
            Half::Mlp => "mlp.fc2",
        }
    }

    /// Of a layer that has this half: the inputs of its projection, and the channels that it writes.
    pub(super) fn of(self, vit: &VitSpec, layer: usize) -> Option<(usize, Option<&[usize]>)> {
        let block = vit.block(layer)?;
        match self {
            Half::Attn => block
                .attn
                .as_ref()
                .map(|attn| (attn.v_width(), attn.out_idx.as_deref())),
            Half::Mlp => block.mlp.as_ref().map(|mlp| (mlp.hidden, mlp.out_idx.as_deref())),
        }
    }
}
