//! Structured pruning: what can be cut out of a vision transformer, ViT or Swin, and what the smaller model is.
//!
//! Everything here speaks of **units**: a head, a dimension of one, a hidden unit, a channel, a sub-layer, a block. Units of
//! one kind that stand side by side are a [`Group`]; the description of the model says which groups there are, and which
//! rows and columns of which tensors belong to each unit, so nothing is traced. A method scores units
//! ([`criteria`]), ranks them ([`rank`]), and ends in a [`Selection`]: for each group the units that are kept. From
//! there on all methods are alike:
//!
//! ```text
//! Selection ──┬─ slice ──▶ a smaller model
//!             └─ mask  ──▶ its twin: the same shapes as before, zeros where something was cut
//! ```
//!
//! Both read one table of what is cut from which tensor, so they cannot disagree about it, and both give the same logits: that is the
//! proof of a pruned model. The one exception are embedding channels, since a layer norm's statistics see zeros too.
//! [`to_dense`] goes back: it fills a pruned model up with zeros until timm can build it.
//!
//! An attention scale is a constant of the original model and stays what it was. A sub-layer that would lose all its units gets its best one back,
//! since an empty one still adds its bias; only a selection of sub-layers drops one. Kept units are always in
//! ascending order, so slicing is deterministic, and slices compose.
//!
//! The cutting is that of DepGraph (Fang et al., CVPR 2023), NViT (Yang et al., CVPR 2023), WDPruning (Yu et al., AAAI 2022),
//! UVC (Yu et al., ICLR 2022), ViT-Slim (Chavan et al., CVPR 2022) and X-Pruner (Yu and Xiang, CVPR 2023).
//!
//! ```
//! use vitesse_compress::structure::{Kind, Selection, slice};
//! use vitesse_model::Checkpoint;
//!
//! let model = Checkpoint::fresh("deit_micro_patch4_32", Some(5), None, 0)?;
//! let mut selection = Selection::default();
//! selection.keep(Kind::Hidden, Some(0), 0..40);
//! let smaller = slice(&model.spec, &model.tensors, &selection)?;
//! smaller.spec.check(&smaller.tensors, "the smaller model")?;
//! # Ok::<(), vitesse_compress::Error>(())
//! ```

pub mod allocate;
pub mod budget;
#[cfg(feature = "train")]
pub mod correct;
pub mod criteria;
mod cut;
#[cfg(feature = "train")]
pub mod damage;
mod dense;
#[cfg(feature = "train")]
mod eliminate;
#[cfg(feature = "train")]
mod halves;
mod kept;
mod mask;
#[cfg(feature = "train")]
mod moments;
#[cfg(feature = "train")]
mod queries;
pub mod rank;
mod selection;
mod slice;
#[cfg(feature = "train")]
mod streams;
mod table;
mod units;
#[cfg(feature = "train")]
mod write;

pub use dense::{Dense, to_dense};
pub use kept::Readmitted;
pub use mask::{mask, widen};
pub use selection::Selection;
pub use slice::{Sliced, outline, slice};
pub use units::{Axis, Group, Id, Kind, Member, groups};
