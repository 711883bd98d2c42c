//! The steps of which plans are made.

mod attention;
mod embed;
mod head;
mod local;
mod maps;
mod mixed;
mod mlp;
mod ops;
mod predict;
mod regroup;
mod stream;
mod tokens;
mod windows;

use std::ops::Range;

pub(crate) use attention::{Attend, Head, KeysValues, Meet, Queries, padded};
pub(crate) use embed::Embed;
pub(crate) use head::{Heads, Mean};
pub(crate) use local::Local;
pub(crate) use maps::Take;
pub(crate) use mixed::{AttendMixed, Buckets};
pub(crate) use mlp::{Add, ByRows, Hidden};
pub(crate) use ops::{Narrow, NarrowRoom, Op, Ops, gelu};
pub(crate) use predict::{Predict, PredictRoom};
pub(crate) use regroup::Regroup;
pub(crate) use stream::{Hold, Norm, NormStream, Prompts, ScaleShift};
pub(crate) use tokens::{Attentions, Choose, Match, Move, Rearrange, ShowClass, TokenRoom};
pub(crate) use windows::{Arrange, AttendInWindows, Blank, Merge, Order, WindowBias, masks};

/// How many bytes the hidden rows of a perceptron may take: they should stay in the second cache with the weights'
/// panel that is being used.
pub(crate) const HIDDEN_BYTES: usize = 1024 << 10;

/// `range` in the fewest parts of at most `most` (and at least 12), as equal as can be.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(most.max(12)).max(1);
    let (start, len) = (range.start, range.len());
    (0..count)
        .map(move |i| start + i * len / count..start + (i + 1) * len / count)
        .filter(|part| !part.is_empty())
}
