//! Where the time of an inference goes.

use std::time::{Duration, Instant};

/// A part of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Patch embedding.
    Embed,
    /// Norm and the projection to queries, keys and values, and their packing.
    Qkv,
    /// Waiting for the other threads.
    Wait,
    /// Products with keys, softmax, products with values.
    Attention,
    /// The projection after attention.
    Proj,
    /// Norm, first projection and GELU.
    Fc1,
    /// Second projection.
    Fc2,
    /// Tokens that leave or merge: which, and their rows.
    Tokens,
    /// Final norm, pooling and heads; feature maps.
    Head,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; 9] = [
        Stage::Embed,
        Stage::Qkv,
        Stage::Wait,
        Stage::Attention,
        Stage::Proj,
        Stage::Fc1,
        Stage::Fc2,
        Stage::Tokens,
        Stage::Head,
    ];
}

/// The time that the first thread spent in each stage of each layer.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// By layer; what is in no layer stands in the first and the last.
    pub layers: Vec<[Duration; Stage::ALL.len()]>,
}

/// Measures, or does nothing.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Option<Instant>,
    pub(crate) profile: Profile,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Clock {
            last: None,
            profile: Profile::default(),
        }
    }

    /// Starts to measure a model with so many layers.
    pub(crate) fn start(&mut self, layers: usize) {
        self.profile
            .layers
            .resize(layers.max(1), [Duration::ZERO; Stage::ALL.len()]);
        self.last = Some(Instant::now());
    }

    pub(crate) fn stop(&mut self) -> Profile {
        self.last = None;
        std::mem::take(&mut self.profile)
    }

    /// What was done since the last call was `stage` of `layer`; what is in no layer counts to the first or the last.
    #[inline]
    pub(crate) fn mark(&mut self, layer: Option<usize>, stage: Stage) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            let layers = self.profile.layers.len();
            let end = if stage == Stage::Head { layers - 1 } else { 0 };
            let layer = layer.unwrap_or(end);
            self.profile.layers[layer][stage as usize] += now - *last;
            *last = now;
        }
    }
}
