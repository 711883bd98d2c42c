//! Which vision transformers there can be.

use super::{BlockSpec, Pool, PrefixToken, VitSpec};
use crate::spec::block::check_layer;
use crate::spec::limits::{DEPTH, PATCHES, SIDE, WIDTH, within};
use crate::{Error, Result};

impl VitSpec {
    pub(super) fn check(&self) -> Result<()> {
        self.check_limits()?;
        self.check_parts()
    }

    /// Refuses sizes that no model has, and a norm that would divide by nothing, before anything is computed or allocated
    /// from them.
    fn check_limits(&self) -> Result<()> {
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            let eps = self.norm_eps;
            return Err(Error::invalid_spec(format!(
                "the epsilon of the layer norms must be a positive number, but is {eps}"
            )));
        }
        within("the image height", self.img_size[0], SIDE)?;
        within("the image width", self.img_size[1], SIDE)?;
        within("the patch size", self.patch_size, SIDE)?;
        within("the number of patches", self.patches(), PATCHES)?;
        within("the number of channels", self.in_chans, SIDE)?;
        within("the number of prefix tokens", self.prefix.len(), SIDE)?;
        within("the width", self.embed_dim, WIDTH)?;
        within(
            "the number of blocks",
            self.cores.len().max(self.layers.len()),
            DEPTH,
        )?;
        self.cores.iter().try_for_each(BlockSpec::check_size)
    }

    fn check_parts(&self) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(text));
        let [height, width] = self.img_size;
        if self.patch_size == 0 || height == 0 || width == 0 {
            return fail(format!(
                "the image size {height}x{width} and the patch size {} must be positive",
                self.patch_size
            ));
        }
        if height % self.patch_size != 0 || width % self.patch_size != 0 {
            return fail(format!(
                "image size {height}x{width} must be a multiple of the patch size {}",
                self.patch_size
            ));
        }
        if self.embed_dim == 0 || self.in_chans == 0 {
            return fail("embed_dim and in_chans must be at least 1".into());
        }
        if self.pool == Pool::Token && !self.prefix.contains(&PrefixToken::Class) {
            return fail("pooling by `token` needs a class token; use `avg`".into());
        }
        if self.is_distilled() && (self.pool != Pool::Token || !self.embed_prefix) {
            return fail("a distillation token needs pooling by `token` and its own position".into());
        }
        let order: Vec<PrefixToken> = self.prefix.clone();
        let rank = |token: &PrefixToken| match token {
            PrefixToken::Class => 0,
            PrefixToken::Distillation => 1,
            PrefixToken::Register => 2,
        };
        let doubled = |token| order.iter().filter(|other| **other == token).count() > 1;
        if !order.is_sorted_by_key(rank) || doubled(PrefixToken::Class) || doubled(PrefixToken::Distillation)
        {
            return fail(
                "prefix tokens must be at most one class and one distillation token, then registers".into(),
            );
        }
        for (i, core) in self.cores.iter().enumerate() {
            if !self.layers.iter().any(|layer| layer.core == i) {
                return fail(format!("core {i} is used by no layer"));
            }
            core.check(&self.core_name(i), self.embed_dim)?;
        }
        (0..self.layers.len())
            .try_for_each(|layer| check_layer(layer, &self.layers, &self.cores, (|_, _| true, "")))
    }
}
