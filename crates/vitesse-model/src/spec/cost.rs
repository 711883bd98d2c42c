//! Parameters and multiply-accumulates, layer by layer.
//!
//! A multiply-accumulate (MAC) is counted for every matrix product, the two attention products, the patch
//! embedding, convolutions and heads; norms, activations and softmax are not. The literature calls this "FLOPs".

use serde::Serialize;

/// The cost of one layer for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerCost {
    /// The layer, such as `blocks.3.attn`.
    pub layer: String,
    /// Trained parameters that belong to the layer. A shared matrix is counted where it is first used.
    pub parameters: usize,
    /// Multiply-accumulates for one image.
    pub macs: u64,
}

/// The cost of a model for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Layer by layer, in the order of the forward pass.
    pub layers: Vec<LayerCost>,
}

impl Cost {
    /// Trained parameters of the whole model.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.parameters).sum()
    }

    /// Multiply-accumulates of the whole model for one image.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|layer| layer.macs).sum()
    }

    pub(crate) fn push(&mut self, layer: impl Into<String>, parameters: usize, macs: usize) {
        self.layers.push(LayerCost {
            layer: layer.into(),
            parameters,
            macs: macs as u64,
        });
    }
}
