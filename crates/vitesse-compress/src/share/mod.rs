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
//! | the loss of weight distillation, and which layers it compares | `distill` |
//! | what each layer contributes to the gradients of matrices that it shares | [`uses`] |

#[cfg(feature = "train")]
pub mod distill;
pub mod multiplex;
#[cfg(feature = "train")]
pub mod relations;
pub mod uses;
