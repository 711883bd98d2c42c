//! Which Swins there can be.

use super::{Place, SwinSpec, WindowRule};
use crate::spec::BlockSpec;
use crate::spec::block::check_layer;
use crate::spec::limits::{DEPTH, PAIRS, PATCHES, SIDE, WIDTH, within};
use crate::{Error, Result};

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
        self.cores.iter().try_for_each(BlockSpec::check_size)
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
            return fail(format!("`layers.{stage}` must have at least one block"));
        }
        for stage in 1..self.stages() {
            let [rows, columns] = self.stage_map(stage - 1);
            if rows % 2 != 0 || columns % 2 != 0 {
                return fail(format!(
                    "images of {height}x{width} give `layers.{}` a map of {rows}x{columns}, and patch merging after it needs \
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
                    "windows of {down}x{across} do not fit the map of {rows}x{columns} that `layers.{stage}` has for images of \
                     {height}x{width}; the original code, whose rule the model has, refuses this, timm fills the map up: choose an image \
                     size that gives multiples of the window, or save the model as a folder and put `\"window_rule\": \"per-axis\"` under \
                     `vitesse` in its config.json"
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
        if let Some(layer) = self.masked.iter().find(|&&layer| layer >= layers) {
            return fail(format!(
                "`masked` names layer {layer}, but layers go from 0 to {}",
                layers.saturating_sub(1)
            ));
        }
        let stage = |layer| self.place(layer).map(|place| place.stage);
        let beside = |a, b| stage(a) == stage(b);
        for (i, layer) in self.layers.iter().enumerate() {
            check_layer(i, &self.layers, &self.cores, (beside, " in the same stage"))?;
            if self.core_stage(layer.core) != stage(i) {
                return fail(format!(
                    "layer {i} names core {}, which belongs to another stage; only layers of one stage can share a core",
                    layer.core
                ));
            }
        }
        let mut stage = 0;
        for (i, core) in self.cores.iter().enumerate() {
            let Some(own) = self.core_stage(i) else {
                return fail(format!("core {i} is used by no layer"));
            };
            if own < stage {
                return fail(format!(
                    "core {i} of `layers.{own}` must stand before those of `layers.{stage}`"
                ));
            }
            stage = own;
            core.check(&self.core_name(i), self.stage_dim(stage))?;
        }
        Ok(())
    }
}
