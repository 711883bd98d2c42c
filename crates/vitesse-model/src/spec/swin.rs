//! Swin: vision transformers whose attention stays inside windows, in stages of falling resolution.
//!
//! Paper: Liu et al., *Swin Transformer: Hierarchical Vision Transformer using Shifted Windows*, ICCV 2021. Patches of 4
//! pixels, then stages; between two of them patch merging halves the map and doubles the width. A block is a ViT's, but
//! attention sees the tokens of one window only, with a learned bias for each relative position; in every second block the
//! map is rolled before it is cut into windows. Like a ViT it is a list of **cores** and a list of **layers**.

mod family;
mod sites;
mod validate;
mod windows;

pub(crate) use family::merging;
pub use windows::Windows;

use serde::{Deserialize, Serialize};

use super::{AttentionSpec, BlockSpec, LayerSpec, MlpSpec};

/// A Swin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinSpec {
    /// Image height and width in pixels; multiples of the patch size, and the map can be halved before every later stage.
    pub img_size: [usize; 2],
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Image channels.
    pub in_chans: usize,
    /// Width of the first stage; each later one is twice as wide as the one before.
    pub embed_dim: usize,
    /// Number of layers of each stage.
    pub depths: Vec<usize>,
    /// Height and width of a window in tokens, where the map is larger.
    pub window_size: [usize; 2],
    /// What becomes of maps that are no larger than a window, or no multiple of one.
    #[serde(default)]
    pub window_rule: WindowRule,
    /// Whether a layer that is not shifted has the mask of a shifted one with the same matrices, as in MiniViT's code, with which the
    /// published weights were trained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mask_unshifted: bool,
    /// Layers that have the mask of a shifted one, whatever shares their matrices: those that have it through `mask_unshifted` in the
    /// model of which this one is the [untied copy](super::ModelSpec::untie).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<usize>,
    /// Epsilon of every layer norm.
    pub norm_eps: f64,
    /// The matrices of the blocks, those of the first stage first.
    pub cores: Vec<BlockSpec>,
    /// The blocks in the order of the forward pass, those of the first stage first.
    pub layers: Vec<LayerSpec>,
}

/// How the windows of a map are chosen. On square maps that are multiples of the window both rules say the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowRule {
    /// timm's: an axis no longer than the window is one window and is not shifted, whatever the other axis is; a map that is
    /// no multiple of the window is filled up with zeros at the right and at the bottom.
    #[default]
    PerAxis,
    /// The original code's: where the shorter axis is no longer than the window, windows are squares of that length and
    /// nothing is shifted; a map that is no multiple of the window is refused.
    Joint,
}

/// Where a layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of its stage.
    pub stage: usize,
    /// Its number inside the stage.
    pub within: usize,
}

impl SwinSpec {
    /// The plain model for RGB images: `depths` equal blocks with `heads` in each stage, each its own core.
    pub fn plain(
        img_size: usize,
        patch_size: usize,
        window_size: usize,
        embed_dim: usize,
        depths: &[usize],
        heads: &[usize],
    ) -> Self {
        let mut cores = Vec::new();
        for (stage, (&depth, &heads)) in depths.iter().zip(heads).enumerate() {
            let dim = doubled(embed_dim, stage);
            let block = BlockSpec {
                attn: Some(AttentionSpec::uniform(dim, heads)),
                mlp: Some(MlpSpec {
                    hidden: dim.saturating_mul(4),
                    out_idx: None,
                }),
            };
            cores.resize(cores.len().saturating_add(depth), block);
        }
        SwinSpec {
            img_size: [img_size; 2],
            patch_size,
            in_chans: 3,
            embed_dim,
            depths: depths.to_vec(),
            window_size: [window_size; 2],
            window_rule: WindowRule::PerAxis,
            mask_unshifted: false,
            masked: Vec::new(),
            norm_eps: 1e-5,
            layers: (0..cores.len()).map(LayerSpec::of).collect(),
            cores,
        }
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.depths.len()
    }

    /// Width of the token stream in a stage.
    pub fn stage_dim(&self, stage: usize) -> usize {
        doubled(self.embed_dim, stage)
    }

    /// Rows and columns of the map in a stage.
    pub fn stage_map(&self, stage: usize) -> [usize; 2] {
        self.img_size.map(|side| {
            (side / self.patch_size.max(1))
                .checked_shr(stage as u32)
                .unwrap_or(0)
        })
    }

    /// The number of the first layer of a stage; that of the layer after the last one for a stage that is not there.
    pub fn first_layer(&self, stage: usize) -> usize {
        self.depths.iter().take(stage).sum()
    }

    /// Where a layer stands; `None` if there is no such layer.
    pub fn place(&self, layer: usize) -> Option<Place> {
        let mut within = layer;
        for (stage, &depth) in self.depths.iter().enumerate() {
            if within < depth {
                return Some(Place { stage, within });
            }
            within -= depth;
        }
        None
    }

    /// Width of the token stream in a layer.
    pub fn dim(&self, layer: usize) -> Option<usize> {
        Some(self.stage_dim(self.place(layer)?.stage))
    }

    /// The stage of the first layer that uses a core.
    pub fn core_stage(&self, core: usize) -> Option<usize> {
        let layer = self.layers.iter().position(|layer| layer.core == core)?;
        Some(self.place(layer)?.stage)
    }

    /// The prefix of a core's tensors, such as `layers.2.blocks.5`.
    pub fn core_name(&self, core: usize) -> String {
        let stage = self.core_stage(core).unwrap_or(0);
        let before = (0..core).filter(|&other| self.core_stage(other) == Some(stage));
        format!("layers.{stage}.blocks.{}", before.count())
    }

    /// The prefix of one of the norms (1 or 2) that a layer uses: the number is that of the layer to which it belongs.
    pub fn norm_name(&self, layer: usize, norm: usize) -> String {
        let owner = self
            .layers
            .get(layer)
            .and_then(|spec| spec.norms)
            .unwrap_or(layer);
        let Place { stage, within } = self.place(owner).unwrap_or(Place { stage: 0, within: 0 });
        format!("layers.{stage}.blocks.{within}.norm{norm}")
    }

    /// The core of a layer.
    pub fn block(&self, layer: usize) -> Option<&BlockSpec> {
        self.cores.get(self.layers.get(layer)?.core)
    }

    /// The windows of a layer.
    pub fn windows(&self, layer: usize) -> Option<Windows> {
        let Place { stage, within } = self.place(layer)?;
        let of = |shifted| Windows::of(self.stage_map(stage), self.window_size, shifted, self.window_rule);
        let windows = of(within % 2 == 1);
        if self.has_mask(layer) {
            let masked = of(true).shift;
            return Some(Windows { masked, ..windows });
        }
        Some(windows)
    }

    /// Whether a layer has the mask of a shifted one.
    pub(super) fn has_mask(&self, layer: usize) -> bool {
        self.masked.contains(&layer) || (self.mask_unshifted && self.is_shifted_elsewhere(layer))
    }

    /// Whether a shifted layer has the matrices of this one.
    fn is_shifted_elsewhere(&self, layer: usize) -> bool {
        let Some(own) = self.layers.get(layer) else {
            return false;
        };
        let mut twins = self
            .layers
            .iter()
            .enumerate()
            .filter(|(_, twin)| twin.core == own.core);
        twins.any(|(twin, _)| self.place(twin).is_some_and(|place| place.within % 2 == 1))
    }

    /// The tokens that patch merging puts beside each other before a stage, four for each token after it: those of a 2 by 2
    /// neighbourhood, column by column.
    pub fn merged_tokens(&self, stage: usize) -> Vec<usize> {
        let [rows, columns] = self.stage_map(stage);
        let corners = (0..rows).flat_map(|row| (0..columns).map(move |column| [2 * row, 2 * column]));
        let wide = 2 * columns;
        corners
            .flat_map(|[y, x]| [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(dy, dx)| (y + dy) * wide + x + dx))
            .collect()
    }

    /// The name of the bias table of a core.
    pub fn bias_table(&self, core: usize) -> String {
        format!("{}.attn.relative_position_bias_table", self.core_name(core))
    }

    /// Rows of the bias table of a core: one for each relative position in a window.
    pub fn table_rows(&self, core: usize) -> usize {
        let layer = self.layers.iter().position(|layer| layer.core == core);
        let windows = layer.and_then(|layer| self.windows(layer));
        windows.map_or(0, |windows| windows.relative_positions())
    }

    /// timm's rule for the windows, where it says the same as the rule at hand.
    pub fn settle_rule(&mut self) {
        let timms = SwinSpec {
            window_rule: WindowRule::PerAxis,
            ..self.clone()
        };
        let same = |layer| {
            let windows = timms.windows(layer);
            windows == self.windows(layer) && windows.is_none_or(|windows| !windows.pads())
        };
        if (0..self.layers.len()).all(same) {
            *self = timms;
        }
    }
}

/// `dim · 2^stage`
fn doubled(dim: usize, stage: usize) -> usize {
    let factor = 1usize.checked_shl(stage as u32).unwrap_or(usize::MAX);
    dim.saturating_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::super::Transformer;
    use super::*;

    #[test]
    fn layers_know_their_stage_and_tensors_their_names() {
        let mut swin = SwinSpec::plain(32, 4, 2, 6, &[2, 3], &[1, 2]);
        assert_eq!(swin.place(4), Some(Place { stage: 1, within: 2 }));
        assert_eq!((swin.place(5), swin.first_layer(1)), (None, 2));
        assert_eq!((swin.stage_map(1), swin.dim(3)), ([4, 4], Some(12)));
        assert_eq!(swin.core_name(3), "layers.1.blocks.1");
        assert_eq!(swin.norm_name(4, 2), "layers.1.blocks.2.norm2");
        // Layers of the second stage share one core, which is its first; their norms are their own.
        swin.cores.truncate(3);
        swin.layers = [0, 1, 2, 2, 2].map(LayerSpec::of).to_vec();
        assert_eq!(swin.core_name(2), "layers.1.blocks.0");
        assert_eq!(swin.norm_name(4, 2), "layers.1.blocks.2.norm2");
        assert!(Transformer::Swin(&swin).is_shared());
    }

    #[test]
    fn the_original_rule_is_kept_only_where_it_matters() {
        let mut swin = SwinSpec::plain(64, 4, 4, 6, &[2, 2], &[1, 2]);
        swin.window_rule = WindowRule::Joint;
        let mut wide = swin.clone();
        wide.img_size = [32, 64];
        swin.settle_rule();
        wide.settle_rule();
        assert_eq!(swin.window_rule, WindowRule::PerAxis);
        // Its second map is 4 by 8: one code shifts along the width, the other not at all.
        assert_eq!(wide.window_rule, WindowRule::Joint);
    }
}
