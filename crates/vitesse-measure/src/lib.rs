//! What a model does: how good it is, how fast, and whether it still is what it was.
//!
//! | idea | module |
//! | --- | --- |
//! | the machine: what it is, what it can | [`machine`] |
//! | how good it is | [`accuracy`]; what it sees in pictures, [`Classifier`], by likeness to texts too, [`TextFeatures`] |
//! | raw tensors in, raw logits out | [`raw`] |
//! | feature maps of images, into a file | [`features`] |
//! | whether it still is what it was | [`proof`], on [`images`] |
//! | what every transform of a model tells: sizes, proof, speed | [`transform`]; those there are: [`merge`], [`prune`], [`dense`], [`share`], [`tokens`] |
//! | how good a model is before and after a transform | `judge` |
//! | one run of a recipe, trained and tested; the two tokens of a distilled model | `taught` |
//! | trials of methods, compared and chosen; VTAB-1k | `trial` |
//! | a study: several recipes with several seeds, tested alike | `sweep` |
//! | how similar the features of two models are | [`cka`]; layer by layer, `similarity` |
//! | norms of gradients, layer by layer | `gradients` |
//! | times of runs | [`timing`]; one model after the other in [`mod@bench`], several in turns in [`contest`] |
//! | a model ready to classify | [`classify`] |
//!
//! Whatever takes long is given a flag that stops it and somebody to tell ([`Events`]).
//!
//! The feature `train`, on by default, adds what needs the network: steps of training, trials of methods. Without it
//! there is no tensor library.

pub mod accuracy;
pub mod bench;
pub mod cka;
pub mod classify;
pub mod contest;
pub mod dense;
mod error;
mod events;
pub mod features;
mod finite;
#[cfg(feature = "train")]
pub mod gradients;
pub mod images;
#[cfg(feature = "train")]
pub mod judge;
#[cfg(feature = "train")]
mod labelled;
mod labels;
pub mod machine;
pub mod merge;
mod origin;
pub mod predict;
pub mod proof;
#[cfg(feature = "train")]
pub mod prune;
pub mod raw;
pub mod share;
#[cfg(feature = "train")]
pub mod similarity;
#[cfg(feature = "train")]
pub mod sweep;
#[cfg(feature = "train")]
pub mod taught;
pub mod timing;
#[cfg(feature = "train")]
pub mod tokens;
pub mod transform;
#[cfg(feature = "train")]
pub mod trial;
mod zero_shot;

pub use error::{Error, Result};
#[cfg(feature = "train")]
pub use events::TrainEvents;
pub use events::{Events, Progress};
pub use labels::Labels;
pub use origin::{Weights, origin, refuse_what_is_no_name};
pub use predict::{Class, Classifier, ClassifierOptions, Picture};
pub use zero_shot::TextFeatures;
