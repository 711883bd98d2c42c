//! Which Swins there can be.

use super::{Place, SwinSpec, WindowRule};
use crate::spec::limits::{DEPTH, HIDDEN, PATCHES, SIDE, WIDTH, within};
use crate::spec::{AttentionSpec, LayerSpec};
use crate::{Error, Result};

/// The most pairs of tokens that see each other in the windows of a map.
const PAIRS: usize = 1 << 26;

fn fail<T>(text: String) -> Result<T> {
    Err(Error::invalid_spec(text))
}

impl SwinSpec {
    pub(super) fn check(&self) -> Result<()> {
        self.check_limits()?;
        self.check_maps()?;
        self.check_blocks()
    }

    /// Refuses sizes that no model has, and a norm that would divide by nothing, before anything is computed or allocated
    /// from them.
    fn check_limits(&self) -> Result<()> {
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return fail(format!(
                "the epsilon of the layer norms must be a positive number, but is {}",
                self.norm_eps
            ));
        }
        if self.depths.is_empty() {
            return fail("a Swin needs at least one stage".into());
        }
        within("the image height", self.img_size[0], SIDE)?;
        within("the image width", self.img_size[1], SIDE)?;
        within("the patch size", self.patch_size, SIDE)?;
        within("the number of channels", self.in_chans, SIDE)?;
        within("the height of a window", self.window_size[0], SIDE)?;
        within("the width of a window", self.window_size[1], SIDE)?;
        within("the number of stages", self.stages(), DEPTH)?;
        within("the width of the first stage", self.embed_dim, WIDTH)?;
        within("the width of the last stage", self.last_dim(), WIDTH)?;
        let depth = self
            .depths
            .iter()
            .fold(0, |sum: usize, depth| sum.saturating_add(*depth));
        let blocks = self.cores.len().max(self.layers.len()).max(depth);
        within("the number of blocks", blocks, DEPTH)?;
        within(
            "the number of patches",
            self.stage_map(0).iter().product(),
            PATCHES,
        )?;
        let total = |widths: &[usize]| {
            widths
                .iter()
                .fold(0, |sum: usize, width| sum.saturating_add(*width))
        };
        for core in &self.cores {
            if let Some(attn) = &core.attn {
                within("the width of the queries of a block", total(&attn.qk_dims), WIDTH)?;
                within("the width of the values of a block", total(&attn.v_dims), WIDTH)?;
            }
            if let Some(mlp) = &core.mlp {
                within("the number of hidden units of a block", mlp.hidden, HIDDEN)?;
            }
        }
        Ok(())
    }

    /// Images give whole patches, maps can be halved, and windows fit.
    fn check_maps(&self) -> Result<()> {
        let [height, width] = self.img_size;
        if self.patch_size == 0 || height == 0 || width == 0 || self.window_size.contains(&0) {
            return fail(format!(
                "the image size {height}x{width}, the patch size {} and the window size {}x{} must be positive",
                self.patch_size, self.window_size[0], self.window_size[1]
            ));
        }
        if self.embed_dim == 0 || self.in_chans == 0 {
            return fail("embed_dim and in_chans must be at least 1".into());
        }
        if height % self.patch_size != 0 || width % self.patch_size != 0 {
            return fail(format!(
                "image size {height}x{width} must be a multiple of the patch size {}",
                self.patch_size
            ));
        }
        if let Some(stage) = self.depths.iter().position(|&depth| depth == 0) {
            return fail(format!("stage {stage} must have at least one block"));
        }
        for stage in 1..self.stages() {
            let [rows, columns] = self.stage_map(stage - 1);
            if rows % 2 != 0 || columns % 2 != 0 {
                return fail(format!(
                    "images of {height}x{width} give stage {} a map of {rows}x{columns}, and patch merging after it needs \
                     even sides; with {} stages and patches of {} pixels both sides of the image must be multiples of {}",
                    stage - 1,
                    self.stages(),
                    self.patch_size,
                    self.patch_size << (self.stages() - 1)
                ));
            }
        }
        for layer in 0..self.layers.len() {
            let windows = self.windows(layer);
            let pairs = windows.map_or(0, |windows| {
                let area = windows.area();
                windows.count().saturating_mul(area).saturating_mul(area)
            });
            within("the number of pairs of tokens in windows", pairs, PAIRS)?;
        }
        if self.window_rule == WindowRule::PerAxis {
            return Ok(());
        }
        for layer in 0..self.layers.len() {
            if let (Some(windows), Some(Place { stage, .. })) = (self.windows(layer), self.place(layer))
                && windows.pads()
            {
                let ([rows, columns], [down, across]) = (windows.map, windows.window);
                return fail(format!(
                    "windows of {down}x{across} do not fit the map of {rows}x{columns} that stage {stage} has for images of \
                     {height}x{width}; the original code refuses this, timm fills the map up: choose an image size that \
                     gives multiples of the window, or `\"window_rule\": \"per-axis\"`"
                ));
            }
        }
        Ok(())
    }

    fn check_blocks(&self) -> Result<()> {
        let layers: usize = self.depths.iter().sum();
        if layers != self.layers.len() {
            return fail(format!(
                "the stages have {layers} blocks together, but {} are described",
                self.layers.len()
            ));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.core >= self.cores.len() {
                return fail(format!(
                    "layer {i} names core {} of {}",
                    layer.core,
                    self.cores.len()
                ));
            }
            let stage = self.place(i).map(|place| place.stage);
            if self.core_stage(layer.core) != stage {
                return fail(format!(
                    "layer {i} names core {}, which belongs to another stage; only layers of one stage can share a core",
                    layer.core
                ));
            }
            self.check_norms(i, layer)?;
        }
        let mut stage = 0;
        for (i, core) in self.cores.iter().enumerate() {
            let Some(own) = self.core_stage(i) else {
                return fail(format!("core {i} is used by no layer"));
            };
            if own < stage {
                return fail(format!(
                    "core {i} of stage {own} must stand before those of stage {stage}"
                ));
            }
            stage = own;
            let (name, dim) = (self.core_name(i), self.stage_dim(stage));
            if let Some(attn) = &core.attn {
                check_attention(&name, dim, attn)?;
            }
            if let Some(mlp) = &core.mlp {
                if mlp.hidden == 0 {
                    return fail(format!(
                        "{name}.mlp has no hidden unit; write `null` to drop the sub-layer"
                    ));
                }
                check_out_idx(&name, dim, "mlp", mlp.out_idx.as_deref())?;
            }
        }
        Ok(())
    }

    /// A layer may use the norms of one before it, of its own stage, that has its own, for each of its sub-layers.
    fn check_norms(&self, index: usize, layer: &LayerSpec) -> Result<()> {
        let Some(of) = layer.norms else { return Ok(()) };
        let own = of < index
            && self.layers.get(of).is_some_and(|other| other.norms.is_none())
            && self.place(of).map(|place| place.stage) == self.place(index).map(|place| place.stage);
        let parts = |layer| {
            let block = self.block(layer);
            block.map_or((false, false), |block| {
                (block.attn.is_some(), block.mlp.is_some())
            })
        };
        let ((attn, mlp), (has_attn, has_mlp)) = (parts(index), parts(of));
        if own && (!attn || has_attn) && (!mlp || has_mlp) {
            return Ok(());
        }
        fail(format!(
            "layer {index} uses the norms of layer {of}, which must come before it in the same stage, have norms of its own, \
             and have every sub-layer that it has"
        ))
    }
}

fn check_attention(core: &str, dim: usize, attn: &AttentionSpec) -> Result<()> {
    if attn.qk_dims.len() != attn.v_dims.len() {
        return fail(format!(
            "{core}.attn: qk_dims and v_dims must each have one entry for every head"
        ));
    }
    if attn.qk_dims.is_empty() || attn.qk_dims.contains(&0) || attn.v_dims.contains(&0) {
        return fail(format!(
            "{core}.attn: every head needs at least one q/k and one v channel; write `null` to drop the sub-layer"
        ));
    }
    if !attn.scale.is_finite() {
        return fail(format!(
            "{core}.attn: the attention scale must be a finite number"
        ));
    }
    check_out_idx(core, dim, "attn", attn.out_idx.as_deref())
}

fn check_out_idx(core: &str, dim: usize, part: &str, idx: Option<&[usize]>) -> Result<()> {
    let Some(idx) = idx else { return Ok(()) };
    let ascending = idx.iter().zip(idx.iter().skip(1)).all(|(a, b)| a < b);
    if idx.is_empty() || !ascending || idx.last().is_some_and(|&last| last >= dim) {
        return fail(format!(
            "{core}.{part}.out_idx must list residual channels below {dim} in ascending order"
        ));
    }
    Ok(())
}
