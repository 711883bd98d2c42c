//! Which vision transformers there can be.

use super::{AttentionSpec, LayerSpec, Pool, PrefixToken, VitSpec};
use crate::spec::limits::{DEPTH, HIDDEN, PATCHES, SIDE, WIDTH, within};
use crate::{Error, Result};

impl VitSpec {
    pub(super) fn check(&self) -> Result<()> {
        self.check_limits()?;
        self.check_parts()
    }

    /// Refuses sizes that no model has, and a norm that would divide by nothing, before anything is computed or allocated
    /// from them.
    fn check_limits(&self) -> Result<()> {
        let total = |widths: &[usize]| {
            widths
                .iter()
                .fold(0, |sum: usize, width| sum.saturating_add(*width))
        };
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
            if let Some(attn) = &core.attn {
                self.validate_attention(i, attn)?;
            }
            if let Some(mlp) = &core.mlp {
                if mlp.hidden == 0 {
                    return fail(format!(
                        "blocks.{i}.mlp has no hidden unit; write `null` to drop the sub-layer"
                    ));
                }
                self.validate_out_idx(i, "mlp", mlp.out_idx.as_deref())?;
            }
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.core >= self.cores.len() {
                return fail(format!(
                    "layer {i} names core {} of {}",
                    layer.core,
                    self.cores.len()
                ));
            }
            self.check_norms(i, layer)?;
        }
        Ok(())
    }

    /// A layer may use the norms of one before it that has its own, for each of its sub-layers.
    fn check_norms(&self, index: usize, layer: &LayerSpec) -> Result<()> {
        let Some(of) = layer.norms else { return Ok(()) };
        let own = of < index && self.layers.get(of).is_some_and(|other| other.norms.is_none());
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
        Err(Error::invalid_spec(format!(
            "layer {index} uses the norms of layer {of}, which must come before it, have norms of its own, and have every \
             sub-layer that it has"
        )))
    }

    fn validate_attention(&self, core: usize, attn: &AttentionSpec) -> Result<()> {
        let fail = |text: &str| Err(Error::invalid_spec(format!("blocks.{core}.attn: {text}")));
        if attn.qk_dims.len() != attn.v_dims.len() {
            return fail("qk_dims and v_dims must each have one entry for every head");
        }
        if attn.qk_dims.is_empty() || attn.qk_dims.contains(&0) || attn.v_dims.contains(&0) {
            return fail(
                "every head needs at least one q/k and one v channel; write `null` to drop the sub-layer",
            );
        }
        if !attn.scale.is_finite() {
            return fail("the attention scale must be a finite number");
        }
        self.validate_out_idx(core, "attn", attn.out_idx.as_deref())
    }

    fn validate_out_idx(&self, core: usize, part: &str, idx: Option<&[usize]>) -> Result<()> {
        let Some(idx) = idx else { return Ok(()) };
        let ascending = idx.iter().zip(idx.iter().skip(1)).all(|(a, b)| a < b);
        if idx.is_empty() || !ascending || idx.last().is_some_and(|&last| last >= self.embed_dim) {
            return Err(Error::invalid_spec(format!(
                "blocks.{core}.{part}.out_idx must list residual channels below {} in ascending order",
                self.embed_dim
            )));
        }
        Ok(())
    }
}
