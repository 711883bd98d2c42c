//! What a block must be.

use super::{AttentionSpec, BlockSpec, LayerSpec};
use crate::spec::limits::{HIDDEN, WIDTH, within};
use crate::{Error, Result};

fn fail(sentence: String) -> Result<()> {
    Err(Error::invalid_spec(sentence))
}

impl BlockSpec {
    /// Refuses widths that no model has, before anything is computed from them.
    pub(in crate::spec) fn check_size(&self) -> Result<()> {
        let total = |widths: &[usize]| {
            widths
                .iter()
                .fold(0, |sum: usize, width| sum.saturating_add(*width))
        };
        if let Some(attn) = &self.attn {
            within("the width of the queries of a block", total(&attn.qk_dims), WIDTH)?;
            within("the width of the values of a block", total(&attn.v_dims), WIDTH)?;
        }
        match &self.mlp {
            Some(mlp) => within("the number of hidden units of a block", mlp.hidden, HIDDEN),
            None => Ok(()),
        }
    }

    /// Refuses what cannot be computed; `core` is the prefix of the block's matrices, `dim` the width of the stream.
    pub(in crate::spec) fn check(&self, core: &str, dim: usize) -> Result<()> {
        if let Some(attn) = &self.attn {
            check_attention(core, dim, attn)?;
        }
        let Some(mlp) = &self.mlp else { return Ok(()) };
        if mlp.hidden == 0 {
            return fail(format!(
                "{core}.mlp has no hidden unit; write `null` to drop the sub-layer"
            ));
        }
        check_out_idx(core, dim, "mlp", mlp.out_idx.as_deref())
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

/// Refuses a layer that names no core, or norms that it cannot use: those it may use belong to one before it that has its own, for each
/// of its sub-layers. `beside` says whether two layers may share at all, `where_from` how a sentence puts that.
pub(in crate::spec) fn check_layer(
    index: usize,
    layers: &[LayerSpec],
    cores: &[BlockSpec],
    (beside, where_from): (impl Fn(usize, usize) -> bool, &str),
) -> Result<()> {
    let Some(layer) = layers.get(index) else {
        return Ok(());
    };
    if layer.core >= cores.len() {
        return fail(format!(
            "layer {index} names core {} of {}",
            layer.core,
            cores.len()
        ));
    }
    let Some(of) = layer.norms else { return Ok(()) };
    let own = of < index && layers.get(of).is_some_and(|other| other.norms.is_none());
    let parts = |layer: usize| {
        let block = layers.get(layer).and_then(|layer| cores.get(layer.core));
        block.map_or((false, false), |block| {
            (block.attn.is_some(), block.mlp.is_some())
        })
    };
    let ((attn, mlp), (has_attn, has_mlp)) = (parts(index), parts(of));
    if own && beside(of, index) && (!attn || has_attn) && (!mlp || has_mlp) {
        return Ok(());
    }
    fail(format!(
        "layer {index} uses the norms of layer {of}, which must come before it{where_from}, have norms of its own, and have every \
         sub-layer that it has"
    ))
}
