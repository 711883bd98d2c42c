//! How large a model is believed to be. A spec may come from a file that strangers wrote: beyond these sizes products of
//! sizes could overflow, and no model has them.

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

/// Refuses a size that no model has.
pub(super) fn within(what: &str, size: usize, limit: usize) -> Result<()> {
    if size <= limit {
        return Ok(());
    }
    Err(Error::invalid_spec(format!(
        "{what} is {size}, but at most {limit} is supported"
    )))
}
