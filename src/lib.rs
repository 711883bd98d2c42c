//! Vitesse makes Vision Transformers small, adapts them to new tasks and runs them fast.
//!
//! This crate is the facade: each part is a crate of its own and re-exported here.

pub use vitesse_adapt as adapt;
pub use vitesse_compress as compress;
pub use vitesse_data as data;
pub use vitesse_engine as engine;
pub use vitesse_measure as measure;
pub use vitesse_model as model;
pub use vitesse_report as report;
pub use vitesse_rng as rng;
pub use vitesse_train as train;

/// The README's examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
