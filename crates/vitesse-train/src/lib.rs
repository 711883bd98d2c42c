//! How a model learns.
//!
//! | idea | module |
//! | --- | --- |
//! | what is minimised | an [`objective`], such as those in [`loss`], with a [`teacher`] or without |
//! | how weights follow gradients | [`adamw`], tensors in [`groups`], rates by [`schedule`] |
//! | what a method does besides | [`hooks`] |
//! | gradients without an optimiser | [`mod@gradients`] |
//! | one step, and what it changes | [`learner`], [`state`] |
//! | a whole run | [`recipe`] → [`run()`] → [`trainer`], which reports to [`events`], in the folder of a [`mod@run`] |
//! | how good a model is | [`evaluate`], [`metrics`], [`tokens`] |
//! | what every method is to a trainer | [`method`] |
//! | several processes that do one work | [`parallel`] |
//!
//! Everything random is a function of the seed, the epoch, the step and the sample, and every sum has a fixed order. So
//! a run has no state but its weights, moments, counters and what its hooks remember; it can be killed at any moment and
//! resumed, and ends with the same bits, for any number of threads.
//!
//! The feature `train`, on by default, is everything that learns; without it there is what evaluates a model by other
//! means, and no tensor library.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use burn::tensor::Device;
//! use vitesse_train::run::Existing;
//! use vitesse_train::{Recipe, run};
//!
//! let text = r#"
//!     preset = "small"
//!     [model]
//!     name = "deit_micro_patch4_32"
//!     [data]
//!     path = "shapes"
//! "#;
//! let recipe = Recipe::parse(text, "my.toml", &[])?;
//! let stop = AtomicBool::new(false);
//! let outcome = run(&recipe, Path::new("runs/first"), Existing::Refuse, &Device::flex(), &stop, &mut ())?;
//! println!("best: {:?}", outcome.best);
//! # Ok::<(), vitesse_train::Error>(())
//! ```

#[cfg(feature = "train")]
pub mod adamw;
pub mod classes;
mod error;
pub mod evaluate;
#[cfg(feature = "train")]
pub mod events;
#[cfg(feature = "train")]
mod features;
#[cfg(feature = "train")]
pub mod gradients;
#[cfg(feature = "train")]
pub mod groups;
#[cfg(feature = "train")]
pub mod hooks;
#[cfg(feature = "train")]
pub mod learner;
#[cfg(feature = "train")]
pub mod loss;
pub mod method;
pub mod metrics;
#[cfg(feature = "train")]
pub mod objective;
#[cfg(feature = "train")]
mod output;
pub mod parallel;
#[cfg(feature = "train")]
pub mod recipe;
pub mod restricted;
#[cfg(feature = "train")]
mod resume;
#[cfg(feature = "train")]
pub mod run;
#[cfg(feature = "train")]
pub mod schedule;
#[cfg(feature = "train")]
mod start;
#[cfg(feature = "train")]
pub mod state;
#[cfg(feature = "train")]
pub mod teacher;
#[cfg(test)]
#[cfg(feature = "train")]
mod testing;
#[cfg(feature = "train")]
pub mod tokens;
#[cfg(feature = "train")]
pub mod trainer;
#[cfg(feature = "train")]
pub mod weights;

pub use error::{Error, Result};
#[cfg(feature = "train")]
pub use recipe::Recipe;
#[cfg(feature = "train")]
pub use resume::same_base;
#[cfg(feature = "train")]
pub use start::{run, run_begun, run_together};
