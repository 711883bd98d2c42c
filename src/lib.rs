//! Vitesse makes Vision Transformers small, adapts them to new tasks and runs them fast.
//!
//! This crate is the facade: each part is a crate of its own and re-exported here. What most applications want is a [`Classifier`]:
//!
//! ```no_run
//! fn main() -> vitesse::Result<()> {
//!     let classifier = vitesse::Classifier::load("deit_tiny")?;
//!     for class in classifier.classify("cat.jpg")? {
//!         println!("{:.3} {class}", class.score);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Every error of a part becomes an [`Error`] by `?`, and each of them is a sentence, also where `main` returns it.
//!
//! Features, both on by default: `train` is everything that learns, with a tensor library; `cli` is what only the program needs.

pub use vitesse_adapt as adapt;
pub use vitesse_compress as compress;
pub use vitesse_data as data;
pub use vitesse_engine as engine;
pub use vitesse_measure as measure;
pub use vitesse_model as model;
pub use vitesse_report as report;
pub use vitesse_rng as rng;
pub use vitesse_train as train;

pub use vitesse_measure::{Class, Classifier, ClassifierOptions, Error, Picture, Result, TextFeatures};

/// The README's examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So are those of the page on the engine.
#[cfg(doctest)]
#[doc = include_str!("../docs/engine.md")]
struct EnginePage;

/// And of the page on feature maps.
#[cfg(doctest)]
#[doc = include_str!("../docs/features.md")]
struct FeaturesPage;
