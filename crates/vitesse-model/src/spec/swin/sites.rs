//! What a Swin has at its sites.

use super::{Place, SwinSpec, merging};
use crate::site::Site;
use crate::spec::{Activation, AttentionSpec, Projection, Sites};

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
        self.block(layer?)?.width_at(site, self.dim(layer?)?)
    }

    fn projection(&self, site: Site, layer: usize) -> Option<Projection> {
        let core = self.core_name(self.layers.get(layer)?.core);
        self.block(layer)?.projection(site, &core, self.dim(layer)?)
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
        Some(self.stage_map(self.place(layer)?.stage))
    }

    fn attention(&self, layer: usize) -> Option<&AttentionSpec> {
        self.block(layer)?.attn.as_ref()
    }

    fn pairs_at(&self, layer: usize) -> usize {
        let windows = self.windows(layer);
        windows.map_or(0, |windows| windows.count() * windows.area() * windows.area())
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
