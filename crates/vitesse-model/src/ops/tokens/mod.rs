//! Ops that make tokens fewer: what they have in common.
//!
//! | kind | paper | site | decides by |
//! | --- | --- | --- | --- |
//! | [`BipartiteMatching`] | ToMe | `mid` | similar keys; merges |
//! | [`AttentiveTokens`] | EViT | `mid` | the class token's attention; drops, or fuses what it drops |
//! | [`TokenPredictor`] | DynamicViT | `block.in` | a learned score; drops |
//! | [`TokenSelector`] | SPViT | `block.in` | learned scores of each head; drops into a package |
//! | [`GridMerging`] | CAIT | `block.in` | nothing: neighbours merge |
//! | [`StaticTokens`] | – | `block.in` | nothing: a fixed set stays |
//!
//! Tokens before the patches (class and distillation tokens, registers, prompts) are protected: no op takes them away, merges
//! them or moves them. Counts follow from the description alone ([`LayerTokens`](crate::spec::LayerTokens)), but for a selector
//! that decides by image how many stay. A model has one kind of them, at most one op a layer.

mod attentive;
mod grid;
mod matching;
mod predictor;
mod scores;
mod selector;
mod set;

pub use attentive::AttentiveTokens;
pub use grid::{Direction, GridMerging, MergeValue};
pub use matching::{BipartiteMatching, Matching};
pub use predictor::TokenPredictor;
pub use selector::{Package, TokenSelector};
pub use set::StaticTokens;

#[cfg(feature = "train")]
pub(super) use {
    attentive::AttentiveTokensOp, grid::GridMergingOp, matching::BipartiteMatchingOp,
    predictor::TokenPredictorOp, selector::TokenSelectorOp, set::StaticTokensOp,
};

use super::{OpKind, OpSpec};
use crate::site::Site;
use crate::spec::{Sites, TokenSet};
use crate::{Error, Result};

/// The epsilon of the layer norms of predictors and selectors.
pub const SCORE_NORM_EPS: f64 = 1e-5;

/// What is left, or why it cannot be done.
pub(crate) type Leaves = std::result::Result<TokenSet, String>;

impl OpKind {
    /// What an op of this kind leaves of `set`, where the model began with `patches`; `None` for one that changes nothing of it.
    pub(crate) fn leaves(&self, set: TokenSet, patches: usize) -> Option<Leaves> {
        Some(match self {
            OpKind::BipartiteMatching(op) => op.leaves(set),
            OpKind::AttentiveTokens(op) => op.leaves(set),
            OpKind::TokenPredictor(op) => op.leaves(set, patches),
            OpKind::TokenSelector(op) => op.leaves(set, patches),
            OpKind::GridMerging(op) => op.leaves(set),
            OpKind::StaticTokens(op) => op.leaves(set),
            _ => return None,
        })
    }

    /// Whether ops of this kind make tokens fewer.
    pub fn reduces_tokens(&self) -> bool {
        self.token_site().is_some()
    }

    /// Whether ops of this kind take tokens away, so that some cells of the patches' map have none any more.
    pub fn drops_tokens(&self) -> bool {
        self.reduces_tokens() && !matches!(self, OpKind::BipartiteMatching(_) | OpKind::GridMerging(_))
    }

    /// Where an op of this kind stands, if it makes tokens fewer.
    fn token_site(&self) -> Option<Site> {
        match self {
            OpKind::BipartiteMatching(_) | OpKind::AttentiveTokens(_) => Some(Site::Mid),
            OpKind::TokenPredictor(_)
            | OpKind::TokenSelector(_)
            | OpKind::GridMerging(_)
            | OpKind::StaticTokens(_) => Some(Site::BlockIn),
            _ => None,
        }
    }
}

/// Refuses an op that makes tokens fewer where it cannot, as number `index`.
pub(super) fn validate(op: &OpSpec, index: usize, sites: &dyn Sites) -> Result<()> {
    let name = op.kind.name();
    let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
    let Some(site) = op.kind.token_site() else {
        return Ok(());
    };
    if op.site != site {
        return fail(format!("{name} must stand at `{site}`, not at `{}`", op.site));
    }
    if let Some(why) = sites.fixed_tokens() {
        return fail(format!("{name} cannot make tokens fewer: {why}"));
    }
    for (other, standing) in sites.ops().iter().enumerate() {
        if other == index || !standing.kind.reduces_tokens() {
            continue;
        }
        if standing.kind.name() != name {
            return fail(format!(
                "{name} and {} (ops[{other}]) both make tokens fewer; a model has one kind of such ops: remove the others",
                standing.kind.name()
            ));
        }
        if standing.layer == op.layer {
            return fail(format!(
                "ops[{other}] makes the tokens of this layer fewer already; a layer has one such op: move one to another layer"
            ));
        }
    }
    let Some((layer, tokens)) = op
        .layer
        .and_then(|layer| Some((layer, *sites.token_counts().get(layer)?)))
    else {
        return fail(format!("{name} stands in a layer, and this names none"));
    };
    let reads_across = |other: &OpSpec| {
        let from = match &other.kind {
            OpKind::Bottleneck(bottleneck) => bottleneck.from,
            _ => None,
        };
        let across = from == Some(Site::BlockIn) && other.site == Site::MlpOut;
        site == Site::Mid && other.layer == op.layer && across
    };
    if let Some(other) = sites.ops().iter().position(reads_across) {
        return fail(format!(
            "ops[{other}] reads the tokens at `{}`, of which {name} leaves fewer at `{site}`",
            Site::BlockIn
        ));
    }
    match &op.kind {
        OpKind::BipartiteMatching(op) => op.validate(index, layer, sites)?,
        OpKind::AttentiveTokens(op) => op.validate(index, layer, sites)?,
        OpKind::TokenPredictor(op) => op.validate(index, layer, sites)?,
        OpKind::TokenSelector(op) => op.validate(index, layer, sites)?,
        _ => {}
    }
    let met = match site {
        Site::Mid => tokens.attention,
        _ => tokens.entering,
    };
    match op.kind.leaves(met, first_patches(sites)) {
        Some(Err(why)) => fail(format!("layer {layer}: {why}")),
        _ => Ok(()),
    }
}

/// The patches with which the model begins.
fn first_patches(sites: &dyn Sites) -> usize {
    let counts = sites.token_counts();
    counts.first().map_or(0, |first| first.entering.patches)
}

/// How many patches stay in `layer` by this share of the whole image's; `None` where all do.
#[cfg(feature = "train")]
fn kept_in(ratio: f64, layer: usize, sites: &dyn Sites) -> Option<usize> {
    let met = sites.token_counts().get(layer)?.entering;
    let kept = share_of(ratio, first_patches(sites), met).ok()?;
    (kept < met.patches).then_some(kept)
}

/// What a setting is that nobody wrote down.
fn yes() -> bool {
    true
}

/// Refuses a share that is none.
fn check_share(name: &str, share: f64) -> std::result::Result<(), String> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(format!("`{name}` must be above 0 and at most 1, but is {share}"))
}

/// The patches that a share of those of the whole image is, of which `set` still has some.
fn share_of(ratio: f64, patches: usize, set: TokenSet) -> std::result::Result<usize, String> {
    check_share("ratio", ratio)?;
    let kept = (patches as f64 * ratio) as usize;
    if kept == 0 {
        return Err(format!(
            "{ratio} of {patches} patches is none, which would leave only the tokens before the patches; keep more"
        ));
    }
    Ok(kept.min(set.patches))
}
