//! Making a model smaller.
//!
//! | idea | module |
//! | --- | --- |
//! | structures cut out of a model: heads, their widths, hidden units, channels, sub-layers, blocks | [`structure`] |
//! | layers that share their matrices (MiniViT), and what they learn from a teacher | [`share`] |
//! | fewer tokens from layer to layer: ToMe, EViT, CAIT's merging | [`tokens`] |
//!
//! What comes out is a model like any other: a description and its tensors, with no mask and nothing around it.

mod error;
#[cfg(feature = "train")]
mod linalg;
pub mod share;
pub mod structure;
pub mod tokens;

pub use error::{Error, Result};

#[cfg(feature = "train")]
use share::minivit;

#[cfg(feature = "train")]
vitesse_train::methods! {
    /// The methods of this crate that train, with their settings.
    pub enum Method {
        /// Layers that share their matrices, and what they learn from a teacher's relations.
        Minivit(minivit),
    }
}
