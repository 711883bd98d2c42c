//! What a Swin has at its sites.

use super::{Place, SwinSpec, merging};
use crate::site::Site;
use crate::spec::{Activation, AttentionSpec, MlpSpec, Projection, Sites};

/// The prefix of the patch embedding's tensors.
pub(crate) const PATCH_EMBED: &str = "patch_embed.proj";
/// And of the norm after it.
const PATCH_NORM: &str = "patch_embed.norm";

impl Sites for SwinSpec {
    fn depth(&self) -> usize {
        self.layers.len()
    }

    fn tokens_at(&self, layer: usize) -> usize {
        let stage = self
            .place(layer)
            .map_or(self.stages().saturating_sub(1), |place| place.stage);
        self.stage_map(stage).iter().product()
    }

    fn width_at(&self, site: Site, layer: Option<usize>) -> Option<usize> {
        match site {
            Site::PatchOut | Site::PatchNorm | Site::Embed => {
                return layer.is_none().then_some(self.embed_dim);
            }
            Site::MergeIn => return Some(2 * self.stage_dim(self.stage_entered(layer?)?)),
            Site::FinalNorm => return layer.is_none().then(|| self.last_dim()),
            site if site.is_projection() => return Some(self.projection(site, layer?)?.outputs),
            _ => {}
        }
        let (dim, block) = (self.dim(layer?)?, self.block(layer?)?);
        let (attn, mlp) = (block.attn.as_ref(), block.mlp.as_ref());
        match site {
            Site::AttnIn | Site::AttnOut => attn.map(|_| dim),
            Site::AttnQkv => attn.map(qkv_rows),
            Site::AttnLogits | Site::AttnProbs => attn.map(AttentionSpec::num_heads),
            Site::AttnHeads => attn.map(AttentionSpec::v_width),
            Site::MlpIn | Site::MlpOut => mlp.map(|_| dim),
            Site::MlpFc1 | Site::MlpHidden => mlp.map(|mlp| mlp.hidden),
            _ => Some(dim),
        }
    }

    fn projection(&self, site: Site, layer: usize) -> Option<Projection> {
        let core = self.core_name(self.layers.get(layer)?.core);
        let (dim, block) = (self.dim(layer)?, self.block(layer)?);
        match site {
            Site::Qkv | Site::Proj => Some(of_attention(site, &core, dim, block.attn.as_ref()?)),
            Site::Fc1 | Site::Fc2 => Some(of_perceptron(site, &core, dim, block.mlp.as_ref()?)),
            _ => None,
        }
    }

    fn norm(&self, site: Site, layer: Option<usize>) -> Option<String> {
        match (site, layer) {
            (Site::FinalNorm, None) => return Some("norm".to_owned()),
            (Site::PatchNorm, None) => return Some(PATCH_NORM.to_owned()),
            (Site::MergeIn, Some(layer)) => {
                return Some(format!("{}.norm", merging(self.stage_entered(layer)?)));
            }
            _ => {}
        }
        let (layer, block) = (layer?, self.block(layer?)?);
        match site {
            Site::AttnIn => block.attn.as_ref().map(|_| self.norm_name(layer, 1)),
            Site::MlpIn => block.mlp.as_ref().map(|_| self.norm_name(layer, 2)),
            _ => None,
        }
    }

    fn embedding(&self) -> Option<Projection> {
        Some(Projection {
            name: PATCH_EMBED.to_owned(),
            outputs: self.embed_dim,
            inputs: self.in_chans * self.patch_size * self.patch_size,
            parts: None,
            written: None,
        })
    }

    fn activation(&self, _layer: usize) -> Activation {
        Activation::Gelu
    }

    fn fills_up(&self, layer: usize) -> bool {
        self.windows(layer).is_some_and(|windows| windows.pads())
    }

    fn fixed_tokens(&self) -> Option<&'static str> {
        Some("the windows of a Swin hold the tokens of its map and no others")
    }
}

impl SwinSpec {
    /// The stage that begins with patch merging before this layer.
    pub(crate) fn stage_entered(&self, layer: usize) -> Option<usize> {
        let Place { stage, within } = self.place(layer)?;
        (stage > 0 && within == 0).then_some(stage)
    }

    /// Width of the last stage, which the heads see.
    pub(crate) fn last_dim(&self) -> usize {
        self.stage_dim(self.stages().saturating_sub(1))
    }
}

fn of_attention(site: Site, core: &str, dim: usize, attn: &AttentionSpec) -> Projection {
    let (qk, v) = (attn.qk_width(), attn.v_width());
    match site {
        Site::Qkv => Projection {
            name: format!("{core}.attn.qkv"),
            outputs: qkv_rows(attn),
            inputs: dim,
            parts: Some([qk, qk, v]),
            written: None,
        },
        _ => Projection {
            name: format!("{core}.attn.proj"),
            outputs: written(attn.out_idx.as_deref(), dim),
            inputs: v,
            parts: None,
            written: attn.out_idx.clone(),
        },
    }
}

fn of_perceptron(site: Site, core: &str, dim: usize, mlp: &MlpSpec) -> Projection {
    match site {
        Site::Fc1 => Projection {
            name: format!("{core}.mlp.fc1"),
            outputs: mlp.hidden,
            inputs: dim,
            parts: None,
            written: None,
        },
        _ => Projection {
            name: format!("{core}.mlp.fc2"),
            outputs: written(mlp.out_idx.as_deref(), dim),
            inputs: mlp.hidden,
            parts: None,
            written: mlp.out_idx.clone(),
        },
    }
}

/// How many residual channels a projection writes.
pub(super) fn written(out_idx: Option<&[usize]>, dim: usize) -> usize {
    out_idx.map_or(dim, <[usize]>::len)
}

/// Rows of the fused projection.
pub(super) fn qkv_rows(attn: &AttentionSpec) -> usize {
    2 * attn.qk_width() + attn.v_width()
}
