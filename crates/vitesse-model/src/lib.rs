//! What a model *is*: its description, its tensors, its checkpoint folder, and the network built from them.
//!
//! | view | type | for |
//! | --- | --- | --- |
//! | description + weights | [`ModelSpec`] + [`Tensors`] | load, save, convert names, count, inspect: all that is algebra |
//! | network | `network::Network` (feature `train`) | everything that needs gradients or traces |
//!
//! The network is built only from the two, on one path for fresh, loaded, resumed and pruned models.

pub mod checkpoint;
pub mod config;
pub mod error;
mod fusion;
mod import;
pub mod init;
#[cfg(feature = "train")]
pub mod network;
pub mod ops;
pub mod pos_embed;
pub mod site;
pub mod spec;
pub mod storage;
pub mod tensors;
pub mod zoo;

pub use checkpoint::{Checkpoint, LoadOptions};
pub use config::{Config, PretrainedCfg};
pub use error::{Error, Result};
pub use fusion::Fusion;
pub use import::{
    Heads, Target, minivit as minivit_names, swin as swin_names, tokens as token_names, transformers_targets,
    transformers_unread,
};
pub use site::Site;
pub use spec::{ModelSpec, NetworkSpec, Sites};
pub use tensors::{DType, Tensor, Tensors};
