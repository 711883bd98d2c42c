//! The arithmetic of training: the segments of a transformer, forward and backward, over row-major slices.
//!
//! Everything rests on one product of two matrices that are cut into blocks of 32 × 32 while they are packed;
//! what stands before a linear map (a layer norm, a GELU) happens to the blocks on their way, so that its result is never
//! stored, and what comes after it happens to the sums. The backward passes compute such results again.
//!
//! Work is cut into parts by the shapes alone and spread over rayon's threads; each element of a result is summed by one
//! thread in one order. So results are the same bits for any number of threads.
//!
//! The plain versions of its products and segments are in [`mod@reference`].

mod arrange;
mod attention;
mod blocks;
pub mod conv;
mod linear;
mod loss;
mod memory;
mod norm;
mod over_rows;
mod perceptron;
mod product;
pub mod reference;
mod relations;

pub use arrange::{arrange, arrange_backward};
pub use attention::{
    Attention, AttentionGradients, MOST_BUCKETS, MixedAttention, MixedGradients, Mixing, MixingGradients,
    Positions, Terms,
};
pub use linear::{Before, Linear, LinearGradients, Wanted, gelu, gelu_backward};
pub use loss::{soft_cross_entropy, soft_cross_entropy_backward};
pub use memory::{keep_memory, release_memory};
pub use norm::{NormGradients, layer_norm, layer_norm_backward};
pub use perceptron::{Perceptron, PerceptronGradients, PerceptronWanted};
pub use relations::Relations;

use crate::Isa;

/// What the inputs of products are rounded to. Sums are always in `f32`, and so is everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As they are. With [`Isa::Amx`] each number is written as three of bf16, which hold it exactly, and six products of
    /// those stand for one: what is left out is smaller than the rounding of the sum.
    #[default]
    F32,
    /// To bf16, ties to even: mixed precision.
    Bf16,
}

/// With which instructions and in which precision products are computed.
#[derive(Debug, Clone, Copy)]
pub struct Math {
    /// The instructions.
    pub isa: Isa,
    /// What products round their inputs to.
    pub precision: Precision,
}
