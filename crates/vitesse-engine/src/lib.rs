//! Fast inference on CPUs.
//!
//! An [`Engine`] is compiled once from a model's spec and tensors: weights are packed in the order in which the kernels
//! read them, ops that are linear and per token are folded into their neighbours, and memory for all intermediates is set
//! aside. Running it allocates nothing.
//!
//! A [`FeatureExtractor`] is the same for feature maps in the place of logits; it allocates the maps that it returns.
//!
//! A plan is a list of steps (`plan`, `steps`), made in one walk over the model (`compile`); running, describing and counting
//! walk that list.
//!
//! How a batch is shared by the threads: every thread takes whole images as long as there is one for each; the images
//! that are left are computed by all together, each thread a part of the rows, with one meeting a layer, where keys and
//! values have to be known to all.

// The reference that integration tests compare with names this crate.
#[cfg(test)]
extern crate self as vitesse_engine;

mod compile;
mod engine;
mod error;
mod features;
mod member;
mod plan;
mod profile;
mod session;
mod steps;
mod team;
#[cfg(test)]
mod tests;
mod weights;

pub use engine::{Engine, Options, Output, Precision, check_images};
pub use error::{Error, Result};
pub use features::FeatureExtractor;
pub use profile::{Profile, Stage};
pub use vitesse_kernels::Isa;
