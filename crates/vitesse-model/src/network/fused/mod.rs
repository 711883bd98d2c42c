//! Segments of the forward pass, each one function with a backward pass of its own.
//!
//! A segment begins and ends at stations: `linear` takes in the norm or the GELU before a projection, and the residual
//! sum after it; `attention` goes from the fused projection to the heads' outputs; `perceptron` is the second half of a
//! block; `relations` compares tokens of two models; `arrange` puts tokens into windows. Something that stands at a station in between cuts the segment there, and only there: the network then asks for
//! the pieces. What attention does at its maps itself (mixed heads, relative positions of keys) cuts nothing.
//!
//! On the CPU a segment is computed by `vitesse_kernels::train`, which keeps nothing where no gradient is asked for. Most segments
//! compute only the gradients that their inputs ask for; attention computes all or none, and `relations` finds its gradient with
//! the loss, always. On other backends, and with [`Compute::fused`] off, the same functions are
//! composed of Burn's operations, and precision is the tensors' own.

mod arrange;
mod attention;
mod conv;
mod cross_entropy;
mod linear;
mod perceptron;
mod recompute;
mod relations;
mod rows;
mod segment;
#[cfg(test)]
mod tests;

pub(crate) use arrange::{Order, arrange};
pub(crate) use attention::{Between, MOST_BUCKETS, MapChange, Mixing, Positions, attention};
pub(crate) use conv::{Convolution, Layout, conv2d};
pub use cross_entropy::soft_cross_entropy;
pub(crate) use linear::{Before, Residual, linear, scaled};
pub(crate) use perceptron::perceptron;
pub(crate) use recompute::recompute;
pub use relations::relation_cross_entropy;
pub(crate) use rows::{composed_gelu, gelu, layer_norm};
#[cfg(test)]
pub(super) use segment::log;

use std::sync::OnceLock;

use vitesse_kernels::Isa;
use vitesse_kernels::train::Math;
pub use vitesse_kernels::train::Precision;

use crate::{Error, Result};

/// How a forward pass, and the backward pass after it, compute. None of it is a property of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// How the products of fused segments are computed. Default: in `f32`.
    pub precision: Precision,
    /// Whether a transformer block keeps only its input for the backward pass, and is computed again there. Same
    /// gradients to the bit (to rounding, where tokens are masked: sums go another way), less memory, a third more work. Default: no.
    pub grad_checkpointing: bool,
    /// Whether segments are fused where the backend has them. Default: yes, unless the environment variable
    /// `VITESSE_FUSED` is `0`, which is there for comparisons.
    pub fused: bool,
}

impl Default for Compute {
    fn default() -> Self {
        static FUSED: OnceLock<bool> = OnceLock::new();
        Compute {
            precision: Precision::F32,
            grad_checkpointing: false,
            fused: *FUSED.get_or_init(|| std::env::var_os("VITESSE_FUSED").is_none_or(|value| value != "0")),
        }
    }
}

/// Whether this processor multiplies bf16 by instructions of its own; otherwise bf16 is right, but not faster.
pub fn has_bf16() -> bool {
    isa() >= Isa::Avx512Bf16
}

/// Refuses a `VITESSE_ISA` that names nothing this processor has.
pub(super) fn check() -> Result<()> {
    match Isa::choose() {
        Ok(_) => Ok(()),
        Err(why) => Err(Error::Unsupported {
            what: "the chosen instruction set".into(),
            why,
        }),
    }
}

/// The instructions that segments use.
fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    // A wrong choice was refused by `check` when the network was built.
    *ISA.get_or_init(|| Isa::choose().unwrap_or_else(|_| Isa::detect()))
}

fn math(precision: Precision) -> Math {
    Math {
        isa: isa(),
        precision,
    }
}
