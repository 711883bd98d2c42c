//! What a vision transformer has at its sites.

use super::{AttentionSpec, MlpSpec, Pool, VitSpec};
use crate::site::Site;
use crate::spec::{Activation, Projection, Sites};

/// The prefix of the patch embedding's tensors.
pub(crate) const PATCH_EMBED: &str = "patch_embed.proj";

impl Sites for VitSpec {
    fn depth(&self) -> usize {
        self.layers.len()
    }

    fn tokens_at(&self, _layer: usize) -> usize {
        self.prefix.len() + self.patches()
    }

    fn width_at(&self, site: Site, layer: Option<usize>) -> Option<usize> {
        let dim = self.embed_dim;
        match site {
            Site::PatchNorm | Site::MergeIn => return None,
            Site::PatchOut | Site::Embed => return layer.is_none().then_some(dim),
            // Where the mean of the tokens is normed, no token is.
            Site::FinalNorm => return (layer.is_none() && self.pool != Pool::AvgThenNorm).then_some(dim),
            site if site.is_projection() => return Some(self.projection(site, layer?)?.outputs),
            _ => {}
        }
        let block = self.block(layer?)?;
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
        let block = self.block(layer)?;
        match site {
            Site::Qkv | Site::Proj => Some(self.of_attention(site, &core, block.attn.as_ref()?)),
            Site::Fc1 | Site::Fc2 => Some(self.of_perceptron(site, &core, block.mlp.as_ref()?)),
            _ => None,
        }
    }

    fn norm(&self, site: Site, layer: Option<usize>) -> Option<String> {
        if site == Site::FinalNorm {
            return layer.is_none().then(|| self.final_norm_name().to_owned());
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
        self.activation
    }
}

impl VitSpec {
    fn of_attention(&self, site: Site, core: &str, attn: &AttentionSpec) -> Projection {
        let (qk, v) = (attn.qk_width(), attn.v_width());
        match site {
            Site::Qkv => Projection {
                name: format!("{core}.attn.qkv"),
                outputs: qkv_rows(attn),
                inputs: self.embed_dim,
                parts: Some([qk, qk, v]),
                written: None,
            },
            _ => Projection {
                name: format!("{core}.attn.proj"),
                outputs: self.written(attn.out_idx.as_deref()),
                inputs: v,
                parts: None,
                written: attn.out_idx.clone(),
            },
        }
    }

    fn of_perceptron(&self, site: Site, core: &str, mlp: &MlpSpec) -> Projection {
        match site {
            Site::Fc1 => Projection {
                name: format!("{core}.mlp.fc1"),
                outputs: mlp.hidden,
                inputs: self.embed_dim,
                parts: None,
                written: None,
            },
            _ => Projection {
                name: format!("{core}.mlp.fc2"),
                outputs: self.written(mlp.out_idx.as_deref()),
                inputs: mlp.hidden,
                parts: None,
                written: mlp.out_idx.clone(),
            },
        }
    }

    /// How many residual channels a projection writes.
    pub(super) fn written(&self, out_idx: Option<&[usize]>) -> usize {
        out_idx.map_or(self.embed_dim, <[usize]>::len)
    }
}

/// Rows of the fused projection.
pub(super) fn qkv_rows(attn: &AttentionSpec) -> usize {
    2 * attn.qk_width() + attn.v_width()
}
