//! How large a model is believed to be. A spec may come from a file that strangers wrote: beyond these sizes products of
//! sizes could overflow, and no model has them.

use super::Sites;
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
/// The most pairs of tokens in the attention maps of a layer of which tables are made, and the most neighbours of its tokens.
pub(crate) const PAIRS: usize = 1 << 26;
/// The most classes.
pub(crate) const CLASSES: usize = 1 << 24;

/// Refuses attention maps of `layer` that are too large for what looks at each pair of tokens.
pub(crate) fn check_pairs(layer: Option<usize>, sites: &dyn Sites) -> Result<()> {
    let pairs = sites.pairs_at(layer.unwrap_or(0));
    within("the number of pairs of tokens in attention maps", pairs, PAIRS)
}

/// Refuses a size that no model has.
pub(crate) fn within(what: &str, size: usize, limit: usize) -> Result<()> {
    if size <= limit {
        return Ok(());
    }
    Err(Error::invalid_spec(format!(
        "{what} is {size}, but at most {limit} is supported"
    )))
}
