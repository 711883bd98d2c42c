//! How a model learns.
//!
//! | idea | module |
//! | --- | --- |
//! | what is minimised | [`loss`], with a [`teacher`] or without |
//! | how weights follow gradients | [`adamw`], tensors in [`groups`], rates by [`schedule`] |
//! | one step, and what it changes | [`learner`], [`state`] |
//! | a whole run | [`recipe`] → [`run()`](run) → [`trainer`], which reports to [`events`], in the folder of a [`mod@run`] |
//! | how good a model is | [`evaluate`], [`metrics`], [`tokens`] |
//!
//! Everything random is a function of the seed, the epoch, the step and the sample, and every sum has a fixed order. So
//! a run has no state but its weights, moments and counters; it can be killed at any moment and resumed, and ends with
//! the same bits, for any number of threads.
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

pub mod adamw;
mod error;
pub mod evaluate;
pub mod events;
pub mod groups;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod prepare;
pub mod recipe;
pub mod run;
pub mod schedule;
mod start;
pub mod state;
pub mod sweep;
pub mod teacher;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod trainer;
pub mod weights;

pub use error::{Error, Result};
pub use recipe::Recipe;
pub use start::run;
