//! Weights that are not in a folder of ours or timm's.
//!
//! | file | reads |
//! | --- | --- |
//! | [`hf`] | folders that transformers saved: ViT and DeiT |
//! | [`bare`] | weight files without a description: original DeiT and RegNetY `.pth`, state dicts of timm |
//!
//! An import ends where a timm folder begins: with a [`ModelSpec`], tensors under timm's names and a [`Config`]. The
//! strict check of names and shapes comes after it and is the same for all.

pub(crate) mod bare;
pub(crate) mod hf;

use crate::Tensors;
use crate::config::Config;
use crate::spec::ModelSpec;

/// What an import makes of a file.
pub(crate) struct Imported {
    pub(crate) spec: ModelSpec,
    pub(crate) tensors: Tensors,
    pub(crate) config: Config,
    /// What a person should know about it, a sentence each.
    pub(crate) notes: Vec<String>,
}
