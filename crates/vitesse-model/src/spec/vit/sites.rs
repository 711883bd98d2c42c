//! What a vision transformer has at its sites.

use super::{Pool, PrefixToken, VitSpec};
use crate::site::Site;
use crate::spec::{Activation, AttentionSpec, Projection, Sites};

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
        self.block(layer?)?.width_at(site, dim)
    }

    fn projection(&self, site: Site, layer: usize) -> Option<Projection> {
        let core = self.core_name(self.layers.get(layer)?.core);
        self.block(layer)?.projection(site, &core, self.embed_dim)
    }

    fn norm(&self, site: Site, layer: Option<usize>) -> Option<String> {
        if site == Site::FinalNorm {
            return layer.is_none().then(|| self.final_norm_name().to_owned());
        }
        let layer = layer?;
        let norm = self.block(layer)?.norm_before(site)?;
        Some(self.norm_name(layer, norm))
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

    fn grid_at(&self, layer: usize) -> Option<[usize; 2]> {
        (layer < self.layers.len()).then(|| self.grid())
    }

    fn attention(&self, layer: usize) -> Option<&AttentionSpec> {
        self.block(layer)?.attn.as_ref()
    }

    fn has_class_token(&self) -> bool {
        self.prefix.contains(&PrefixToken::Class)
    }

    fn activation(&self, _layer: usize) -> Activation {
        self.activation
    }
}
