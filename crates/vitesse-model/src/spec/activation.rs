//! Activations: what stands between the two projections of a perceptron or of a bottleneck.

use serde::{Deserialize, Serialize};

/// A function of each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Nothing: the two projections are one affine map.
    #[default]
    None,
    /// The exact GELU.
    Gelu,
    /// `z · σ(1.702 z)`, CLIP's approximation of the GELU.
    QuickGelu,
    /// `max(z, 0)`.
    Relu,
}

impl Activation {
    /// The name in files and sentences.
    pub fn name(self) -> &'static str {
        match self {
            Activation::None => "none",
            Activation::Gelu => "gelu",
            Activation::QuickGelu => "quick-gelu",
            Activation::Relu => "relu",
        }
    }
}
