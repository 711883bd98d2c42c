//! Weight multiplexing: layers that share their matrices, small transformations that keep them different, and distillation that keeps
//! the accuracy.
//!
//! Paper: Zhang et al., *MiniViT: Compressing Vision Transformers with Weight Multiplexing*, CVPR 2022. What shares is a matter of the
//! description ([`ModelSpec::share`](vitesse_model::ModelSpec::share)), and the transformations are ops
//! ([`Transformation`](vitesse_model::ops::Transformation)). Parameters become fewer; what is computed does not, so that time does not either.
//!
//! | idea | module |
//! | --- | --- |
//! | from a pretrained model to one that shares | [`multiplex`] |
//! | relations between tokens in two networks, compared | `relations` |
//! | the loss of weight distillation | `distill` |
//! | which layers it compares, where nobody says | `layers` |
//! | the method: sharing and weight distillation as a recipe says them | `minivit` |
//! | what each layer contributes to the gradients of matrices that it shares | [`uses`] |

#[cfg(feature = "train")]
pub mod distill;
#[cfg(feature = "train")]
pub mod layers;
#[cfg(feature = "train")]
pub mod minivit;
pub mod multiplex;
#[cfg(feature = "train")]
pub mod relations;
pub mod uses;
