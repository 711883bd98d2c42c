//! Adapting a pretrained model to a new task, and folding what was learned into its weights.
//!
//! | idea | module |
//! | --- | --- |
//! | what is added or trained: one file a published method | [`methods`] |
//! | which modules a pattern means | [`pattern`] |
//! | adapters on disk, interchangeable with PEFT where PEFT has the method | [`peft`] |
//! | folding adapters into the weights, and taking them out again | [`merge`] |
//!
//! A **method** puts ops at sites of a [`ModelSpec`](vitesse_model::ModelSpec) and names the tensors that learn
//! ([`vitesse_train::method`] says in which order it is used). The result trains like any model; it is saved as an **adapter**, a folder with nothing in it but what
//! was learned; and **merge** turns base and adapter back into a plain model where the algebra allows it.
//!
//! ```
//! use vitesse_adapt::Method;
//! use vitesse_model::Checkpoint;
//!
//! let base = Checkpoint::fresh("deit_micro_patch4_32", Some(5), None, 0)?;
//! let method = Method::parse("repadapter", &[("scale", "0.5".into())])?;
//! println!("{}", method.plan(&base.spec)?);
//! let begun = method.begin(&base.spec, &base.tensors, 0)?;
//! // … train what `begun.trained` names …
//! let finished = method.finish(&begun.spec, &begun.tensors)?;
//! assert_eq!(finished.spec, base.spec);
//! # Ok::<(), vitesse_train::Error>(())
//! ```

mod error;
pub mod merge;
pub mod methods;
pub mod pattern;
pub mod peft;
#[cfg(test)]
#[path = "../../vitesse-model/tests/pyramid/mod.rs"]
mod pyramid;

pub use error::{Error, Result};
pub use methods::Method;
