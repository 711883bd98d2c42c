//! Adapting a pretrained model to a new task, and folding what was learned into its weights.
//!
//! | idea | module |
//! | --- | --- |
//! | what is added or trained: one file a published method | [`methods`] |
//! | which tensors learn, by an explicit rule, with counts | [`trainable`] |
//! | which modules a pattern means | [`pattern`] |
//! | adapters on disk, interchangeable with PEFT where PEFT has the method | [`peft`] |
//! | folding adapters into the weights, and taking them out again | [`merge`] |
//!
//! A **method** puts ops at sites of a [`ModelSpec`](vitesse_model::ModelSpec) and names the tensors that learn. The
//! result trains like any model, with vitesse-train; it is saved as an **adapter**, a folder with nothing in it but what
//! was learned; and **merge** turns base and adapter back into a plain model where the algebra allows it.
//!
//! ```
//! use vitesse_adapt::{Method, merge};
//! use vitesse_model::Checkpoint;
//!
//! let base = Checkpoint::fresh("deit_micro_patch4_32", Some(5), None, 0)?;
//! let method = Method::parse("repadapter", &[("scale", "0.5".into())])?;
//! let adapted = method.apply(&base.spec, &base.tensors, 0)?;
//! println!("{}", adapted.trainable);
//! // … train `adapted` …
//! let merged = merge::merge(&adapted.spec, &adapted.tensors, merge::Options::default())?;
//! assert_eq!(merged.spec, base.spec);
//! # Ok::<(), vitesse_adapt::Error>(())
//! ```

mod error;
pub mod merge;
pub mod methods;
pub mod pattern;
pub mod peft;
#[cfg(test)]
#[path = "../../vitesse-model/tests/pyramid/mod.rs"]
mod pyramid;
pub mod trainable;

pub use error::{Error, Result};
pub use methods::{Adapted, Method};
pub use trainable::Trainable;
