//! Names and layouts that are not the ones in memory: the one place that knows them.
//!
//! | file | reads |
//! | --- | --- |
//! | [`bare`] | weight files without a description: original DeiT and RegNetY `.pth`, state dicts of timm |
//! | [`hf`] | folders that transformers saved, for all families |
//! | [`vit`], [`clip`] | ViT and DeiT among them; CLIP's image encoder |
//! | [`openai`] | state dicts of OpenAI's CLIP and of OpenCLIP |
//! | [`swin`] | Swin in folders that transformers saved, and under the original code's names |
//! | [`wrappers`] | names with the prefix of whatever held the network while it was trained |
//! | [`run`] | what a training program wrote down of its model |
//! | [`pruned`] | `vit-pruned/1`, a file that describes itself block by block |
//! | [`sliced`] | state dicts whose blocks were cut smaller, heads given |
//! | [`minivit`] | MiniViT's names of shared blocks, which our own folders have too |
//! | [`tokens`] | DynamicViT's and SPViT's names of what scores tokens |
//!
//! An import ends where a timm folder begins: with a [`ModelSpec`], tensors under timm's names and a [`Config`]. The
//! strict check of names and shapes comes after it and is the same for all.

pub(crate) mod bare;
mod clip;
pub(crate) mod hf;
pub mod minivit;
pub(crate) mod openai;
pub(crate) mod pruned;
pub(crate) mod run;
pub(crate) mod sliced;
pub mod swin;
pub mod tokens;
mod vit;
pub(crate) mod wrappers;

pub use hf::Target;
pub use sliced::Heads;

use crate::Tensors;
use crate::config::Config;
use crate::pos_embed::Flavour;
use crate::spec::ModelSpec;

/// What one of transformers' names, as adapters of PEFT's have them, is called by timm: in a ViT or DeiT, a CLIP, a Swin, where such a
/// model has it. `distilled` is a model with two heads.
pub fn transformers_targets(name: &str, distilled: bool) -> impl Iterator<Item = Target> {
    let targets = [
        vit::target(name, distilled),
        clip::target(name),
        swin::target(name),
    ];
    targets.into_iter().flatten()
}

/// Whether this is one of transformers' tensors that no model here reads.
pub fn transformers_unread(name: &str) -> bool {
    vit::unread(name) || clip::unread(name) || swin::unread(name)
}

/// What an import makes of a file.
pub(crate) struct Imported {
    pub(crate) spec: ModelSpec,
    pub(crate) tensors: Tensors,
    pub(crate) config: Config,
    /// How position embeddings are resized where the file comes from.
    pub(crate) pos_embed: Flavour,
    /// What a person should know about it, a sentence each.
    pub(crate) notes: Vec<String>,
}
