//! How large a model is believed to be. A spec may come from a file that strangers wrote: beyond these sizes products of
//! sizes could overflow, and no model has them.

use super::{ModelSpec, NetworkSpec};
use crate::{Error, Result};

/// The longest image side that is believed, and the most channels or tokens besides patches.
pub(crate) const SIDE: usize = 4096;
/// The most patches.
pub(crate) const PATCHES: usize = 1 << 20;
/// The widest stream, and the widest attention, all heads together.
pub(crate) const WIDTH: usize = 1 << 14;
/// The most hidden units.
pub(crate) const HIDDEN: usize = 1 << 18;
/// The deepest model.
pub(crate) const DEPTH: usize = 256;
/// The most classes.
pub(crate) const CLASSES: usize = 1 << 24;

/// Refuses sizes that no model has, and a norm that would divide by nothing, before anything is computed or allocated from them.
pub(super) fn check(spec: &ModelSpec) -> Result<()> {
    let within = |what: &str, size: usize, limit: usize| {
        if size <= limit {
            return Ok(());
        }
        Err(Error::invalid_spec(format!(
            "{what} is {size}, but at most {limit} is believed"
        )))
    };
    within("the number of classes", spec.num_classes, CLASSES)?;
    // A RegNet's spec looks after the rest itself.
    let NetworkSpec::Vit(vit) = &spec.network else {
        return Ok(());
    };
    let total = |widths: &[usize]| {
        widths
            .iter()
            .fold(0, |sum: usize, width| sum.saturating_add(*width))
    };
    if !(vit.norm_eps.is_finite() && vit.norm_eps > 0.0) {
        let eps = vit.norm_eps;
        return Err(Error::invalid_spec(format!(
            "the epsilon of the layer norms must be a positive number, but is {eps}"
        )));
    }
    within("the image height", vit.img_size[0], SIDE)?;
    within("the image width", vit.img_size[1], SIDE)?;
    within("the patch size", vit.patch_size, SIDE)?;
    within("the number of patches", vit.patches(), PATCHES)?;
    within("the number of channels", vit.in_chans, SIDE)?;
    within("the number of prefix tokens", vit.prefix.len(), SIDE)?;
    within("the width", vit.embed_dim, WIDTH)?;
    within(
        "the number of blocks",
        vit.cores.len().max(vit.layers.len()),
        DEPTH,
    )?;
    for core in &vit.cores {
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
