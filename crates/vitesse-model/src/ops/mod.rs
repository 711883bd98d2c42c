//! Ops: what can stand at a site.
//!
//! Ops are few and serve many methods, so they live beside the network: one file a kind with its spec, its tensors'
//! names and its forward. The enum is closed. A *method* (RepAdapter, UVC, …) decides which ops stand where, how they
//! start, what trains them and how they end: folded, sliced or kept.
//!
//! An op is called with the value at its site and the context of the forward pass, and returns the value that goes on.

mod bottleneck;
mod head_mixing;
mod local_convolution;
mod low_rank;
#[cfg(feature = "train")]
mod network;
mod prompts;
pub mod relative_positions;
mod scale_shift;
mod tokens;
mod transformation;

pub use crate::spec::Activation;
pub use bottleneck::{Bottleneck, NORM_EPS, NormPlace};
pub use head_mixing::HeadMixing;
pub use local_convolution::LocalConvolution;
pub use low_rank::{LowRank, QkvPart};
pub use prompts::Prompts;
pub use relative_positions::RelativePositions;
pub use scale_shift::ScaleShift;
pub use tokens::{
    AttentiveTokens, BipartiteMatching, Direction, GridMerging, Matching, MergeValue, Package,
    SCORE_NORM_EPS, StaticTokens, TokenPredictor, TokenSelector,
};
pub use transformation::Transformation;

#[cfg(feature = "train")]
pub(crate) use network::AttentionPart;
#[cfg(feature = "train")]
pub use network::Op;
#[cfg(all(test, feature = "train"))]
pub(crate) use network::Probe;

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::{Cost, Sites, TensorSpec, TokenSet};
use crate::{Error, Result};

/// One op at one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpSpec {
    /// Where it stands.
    pub site: Site,
    /// The block, or `None` for the sites outside blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// What it does.
    #[serde(flatten)]
    pub kind: OpKind,
}

/// The kinds of ops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum OpKind {
    /// `y = x · scale + shift`, by channel.
    ScaleShift(ScaleShift),
    /// `y += s · B A x` beside a projection.
    LowRank(LowRank),
    /// `y = x + s · (B σ(A x̃ + a) + β)`.
    Bottleneck(Bottleneck),
    /// Learned tokens before the patches.
    Prompts(Prompts),
    /// `new[h] = Σ_g W[h, g] · old[g] (+ b[h])`, over the heads of attention maps.
    HeadMixing(HeadMixing),
    /// Numbers that depend on the offset between two tokens, in attention.
    RelativePositions(RelativePositions),
    /// `y = x̃ + conv(x̃)`, over the map of the patches.
    LocalConvolution(LocalConvolution),
    /// Similar tokens merge.
    BipartiteMatching(BipartiteMatching),
    /// Tokens stay to which the class token attends.
    AttentiveTokens(AttentiveTokens),
    /// Patches stay that a small network scores best.
    TokenPredictor(TokenPredictor),
    /// Patches stay that small networks of all heads score best; the others become a package.
    TokenSelector(TokenSelector),
    /// Neighbouring patches merge.
    GridMerging(GridMerging),
    /// A fixed set of patches stays.
    StaticTokens(StaticTokens),
}

impl OpKind {
    /// The kind's name in files.
    pub fn name(&self) -> &'static str {
        match self {
            OpKind::ScaleShift(_) => "scale-shift",
            OpKind::LowRank(_) => "low-rank",
            OpKind::Bottleneck(_) => "bottleneck",
            OpKind::Prompts(_) => "prompts",
            OpKind::HeadMixing(_) => "head-mixing",
            OpKind::RelativePositions(_) => "relative-positions",
            OpKind::LocalConvolution(_) => "local-convolution",
            OpKind::BipartiteMatching(_) => "bipartite-matching",
            OpKind::AttentiveTokens(_) => "attentive-tokens",
            OpKind::TokenPredictor(_) => "token-predictor",
            OpKind::TokenSelector(_) => "token-selector",
            OpKind::GridMerging(_) => "grid-merging",
            OpKind::StaticTokens(_) => "static-tokens",
        }
    }
}

impl OpSpec {
    /// The prefix of the op's tensors: `ops.<index>.<layer>.<site>` with dots in the site, such as
    /// `ops.0.3.attn.in`.
    pub fn prefix(&self, index: usize) -> String {
        match self.layer {
            Some(layer) => format!("ops.{index}.{layer}.{}", self.site),
            None => format!("ops.{index}.{}", self.site),
        }
    }

    /// Why the op is no linear map of each token alone, if it is none: what `merge` cannot fold into a neighbour.
    pub fn nonlinear(&self) -> Option<String> {
        match &self.kind {
            OpKind::ScaleShift(_) | OpKind::LowRank(_) => None,
            OpKind::Bottleneck(op) => op.nonlinear(),
            OpKind::Prompts(_) => Some("it makes the token sequence longer".into()),
            OpKind::HeadMixing(_) => Some("it mixes the attention maps of different heads".into()),
            OpKind::RelativePositions(_) => {
                Some("what it adds depends on the offset between two tokens".into())
            }
            OpKind::LocalConvolution(_) => Some("it mixes tokens that lie beside each other".into()),
            OpKind::BipartiteMatching(_)
            | OpKind::AttentiveTokens(_)
            | OpKind::TokenPredictor(_)
            | OpKind::TokenSelector(_)
            | OpKind::GridMerging(_)
            | OpKind::StaticTokens(_) => Some("it makes the token sequence shorter".into()),
        }
    }

    /// Refuses an op that cannot stand where it does, as number `index` of a model with these sites.
    pub fn validate(&self, index: usize, sites: &dyn Sites) -> Result<()> {
        let Some(width) = sites.width_at(self.site, self.layer) else {
            let layer = self.layer.map_or_else(
                || " outside the blocks".to_owned(),
                |layer| format!(" of layer {layer}"),
            );
            return Err(Error::invalid_spec(format!(
                "ops[{index}]: it stands at `{}`{layer}, which this model does not have",
                self.site
            )));
        };
        match &self.kind {
            OpKind::ScaleShift(op) => op.validate(index, self.site),
            OpKind::LowRank(op) => op.validate(index, self.site),
            OpKind::Bottleneck(op) => op.validate(index, self.site, width),
            OpKind::Prompts(op) => op.validate(index, self.site, self.layer, sites),
            OpKind::HeadMixing(op) => op.validate(index, self.site, self.layer, sites),
            OpKind::RelativePositions(op) => op.validate(index, self.site, self.layer, sites),
            OpKind::LocalConvolution(op) => op.validate(index, self.site, self.layer, sites),
            OpKind::BipartiteMatching(_)
            | OpKind::AttentiveTokens(_)
            | OpKind::TokenPredictor(_)
            | OpKind::TokenSelector(_)
            | OpKind::GridMerging(_)
            | OpKind::StaticTokens(_) => tokens::validate(self, index, sites),
        }
    }

    /// The op's tensors, where it is number `index` of a model with these sites.
    pub fn tensors(&self, index: usize, sites: &dyn Sites) -> Vec<TensorSpec> {
        let (prefix, layer) = (self.prefix(index), self.layer.unwrap_or(0));
        let width = sites.width_at(self.site, self.layer).unwrap_or(0);
        let mut tensors = match &self.kind {
            OpKind::ScaleShift(op) => op.tensors(&prefix, width),
            OpKind::LowRank(op) => op.tensors(&prefix, self.site, layer, sites),
            OpKind::Bottleneck(op) => op.tensors(&prefix, width),
            OpKind::Prompts(op) => op.tensors(index, &prefix, width, sites),
            OpKind::HeadMixing(op) => op.tensors(&prefix, width),
            OpKind::RelativePositions(op) => op.tensors(&prefix, layer, sites),
            OpKind::LocalConvolution(op) => op.tensors(&prefix, width),
            OpKind::TokenPredictor(op) => op.tensors(&prefix, width),
            OpKind::TokenSelector(op) => op.tensors(&prefix, width),
            // These learn nothing.
            OpKind::BipartiteMatching(_)
            | OpKind::AttentiveTokens(_)
            | OpKind::GridMerging(_)
            | OpKind::StaticTokens(_) => Vec::new(),
        };
        let depth = match self.layer {
            Some(layer) => layer + 1,
            None if self.before_blocks() => 0,
            None => sites.depth() + 1,
        };
        tensors.iter_mut().for_each(|tensor| tensor.depth = depth);
        tensors
    }

    /// Whether it stands between the images and the first block.
    fn before_blocks(&self) -> bool {
        matches!(self.site, Site::Embed | Site::PatchOut | Site::PatchNorm)
    }

    /// Multiply-accumulates for one image.
    pub fn macs(&self, sites: &dyn Sites) -> usize {
        let (width, layer) = (
            sites.width_at(self.site, self.layer).unwrap_or(0),
            self.layer.unwrap_or(0),
        );
        let token = match &self.kind {
            OpKind::ScaleShift(_) => width,
            OpKind::LowRank(op) => op.macs(self.site, layer, sites),
            OpKind::Bottleneck(op) => op.macs(width),
            // What the tokens cost stands where they pass.
            OpKind::Prompts(_) => 0,
            OpKind::HeadMixing(_) => return sites.pairs_at(layer) * width * width,
            OpKind::RelativePositions(op) => return op.macs(layer, sites),
            OpKind::LocalConvolution(op) => return op.macs(width, layer, sites),
            OpKind::TokenPredictor(op) => {
                return counts(sites, layer).map_or(0, |(met, left)| op.macs(width, met, left));
            }
            OpKind::TokenSelector(op) => {
                return counts(sites, layer).map_or(0, |(met, left)| op.macs(width, met, left));
            }
            // Choosing, moving and averaging are no products, or are not counted (see `BipartiteMatching`).
            OpKind::BipartiteMatching(_)
            | OpKind::AttentiveTokens(_)
            | OpKind::GridMerging(_)
            | OpKind::StaticTokens(_) => 0,
        };
        let tokens = match self.layer {
            Some(layer) => sites.tokens_passing(self.site, layer),
            None if self.before_blocks() => sites.tokens_at(0),
            None => sites.tokens_at(sites.depth()),
        };
        tokens * token
    }
}

/// The tokens that enter a layer, and those that are left after the op at `block.in`.
fn counts(sites: &dyn Sites, layer: usize) -> Option<(TokenSet, TokenSet)> {
    let tokens = *sites.token_counts().get(layer)?;
    Some((tokens.entering, tokens.attention))
}

/// Refuses ops that cannot stand where they do.
pub fn validate(sites: &dyn Sites) -> Result<()> {
    let mut ops = sites.ops().iter().enumerate();
    ops.try_for_each(|(i, op)| op.validate(i, sites))
}

/// The tensors of all ops, in order.
pub fn tensors(sites: &dyn Sites) -> Vec<TensorSpec> {
    let ops = sites.ops().iter().enumerate();
    ops.flat_map(|(i, op)| op.tensors(i, sites)).collect()
}

/// Adds what each op costs.
pub fn costs(sites: &dyn Sites, cost: &mut Cost) {
    for (i, op) in sites.ops().iter().enumerate() {
        let parameters = op.tensors(i, sites).iter().map(TensorSpec::numel).sum();
        cost.push(format!("ops.{i}"), parameters, op.macs(sites));
    }
}

/// Refuses a probability of dropout that is none.
fn check_dropout(index: usize, dropout: f64) -> Result<()> {
    if (0.0..1.0).contains(&dropout) {
        return Ok(());
    }
    Err(Error::invalid_spec(format!(
        "ops[{index}]: dropout must be at least 0 and below 1, but is {dropout}"
    )))
}
