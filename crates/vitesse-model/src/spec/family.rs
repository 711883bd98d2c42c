//! What every family's description says of itself besides its sites.

use super::{Cost, FeatureMaps, LayerTokens, Sites, TensorSpec};
use crate::Result;

/// A family of networks: one file in `spec/` implements it, and [`NetworkSpec`](super::NetworkSpec) lists it.
pub(crate) trait Family: Sites {
    /// Checks that sizes are believable and that the parts fit each other; ops are not its business.
    fn validate(&self) -> Result<()>;

    /// Every tensor in timm's order, those of the heads included, but no op's.
    fn tensors(&self, num_classes: usize) -> Vec<TensorSpec>;

    /// The cost of all but ops and heads, where so many tokens pass each layer. A family whose tokens are fixed knows them itself.
    fn costs(&self, tokens: &[LayerTokens]) -> Cost;

    /// Channels, height and width of the images it takes.
    fn input_size(&self) -> [usize; 3];

    /// Width of the features that the heads see.
    fn num_features(&self) -> usize;

    /// The names of the modules that classify.
    fn classifiers(&self) -> Vec<&'static str>;

    /// The feature maps that can be taken, in the order of the forward pass.
    fn maps(&self) -> FeatureMaps;
}
