//! Making a model smaller.
//!
//! | idea | module |
//! | --- | --- |
//! | structures cut out of a model: heads, their widths, hidden units, channels, sub-layers, blocks | [`structure`] |
//! | layers that share their matrices (MiniViT), and what they learn from a teacher | [`share`] |
//!
//! What comes out is a model like any other: a description and its tensors, with no mask and nothing around it.

mod error;
#[cfg(feature = "train")]
mod linalg;
pub mod share;
pub mod structure;

pub use error::{Error, Result};
