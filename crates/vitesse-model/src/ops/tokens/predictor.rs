//! TOKEN PREDICTOR — a small network scores the patches, and those with the best scores stay (DynamicViT).
//!
//! Paper: Rao et al., *DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification*, NeurIPS 2021, equations 1 to 5.
//! Each patch sees itself and the mean of all that are there. In inference `⌊ratio · N⌋` of the `N` patches of the whole image
//! stay, best first. In training every patch keeps its place, decisions are drawn (Gumbel-softmax, straight-through), and attention
//! looks away from those that left (the stream's policy). The decisions are an output of the forward pass, for the loss
//! that holds their share.

use serde::{Deserialize, Serialize};

use super::{Leaves, scores, share_of};
use crate::site::Site;
use crate::spec::{Sites, TensorSpec, TokenSet};
use crate::{Error, Result};

/// A predictor and its decision, at `block.in`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPredictor {
    /// The share of the whole image's patches that stay, rounded down.
    pub ratio: f64,
}

impl TokenPredictor {
    pub(super) fn validate(&self, index: usize, layer: usize, sites: &dyn Sites) -> Result<()> {
        let width = sites.width_at(Site::BlockIn, Some(layer)).unwrap_or(0);
        if width.is_multiple_of(4) && width > 0 {
            return Ok(());
        }
        Err(Error::invalid_spec(format!(
            "ops[{index}]: a token predictor halves the width twice, which must be a multiple of 4, but is {width}"
        )))
    }

    pub(super) fn leaves(&self, set: TokenSet, patches: usize) -> Leaves {
        Ok(set.with_patches(share_of(self.ratio, patches, set)?))
    }

    pub(in crate::ops) fn tensors(&self, prefix: &str, width: usize) -> Vec<TensorSpec> {
        scores::tensors(&names(prefix), width)
    }

    /// Multiply-accumulates for an image of which `met` is there and `left` stays.
    pub(in crate::ops) fn macs(&self, width: usize, met: TokenSet, left: TokenSet) -> usize {
        if met == left {
            return 0;
        }
        met.behind_prefix() * scores::macs(width)
    }
}

/// The prefixes of the tensors before and after the mean.
fn names(prefix: &str) -> [String; 2] {
    ["in_conv", "out_conv"].map(|name| format!("{prefix}.{name}"))
}

#[cfg(feature = "train")]
pub(in crate::ops) use network::TokenPredictorOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;

    use super::super::kept_in;
    use super::super::scores::{Scorer, chosen, log_softmax, sampled};
    use super::{TokenPredictor, names};
    use crate::Result;
    use crate::network::{Ctx, Parameters};
    use crate::ops::network::Act;
    use crate::spec::Sites;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct TokenPredictorOp {
        scorer: Scorer,
        /// How many patches stay, where not all do.
        #[module(skip)]
        kept: Option<usize>,
        #[module(skip)]
        prefix: String,
    }

    impl TokenPredictorOp {
        pub(in crate::ops) fn new(
            spec: &TokenPredictor,
            prefix: &str,
            layer: usize,
            sites: &dyn Sites,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            Ok(TokenPredictorOp {
                scorer: Scorer::new(&names(prefix), parameters)?,
                // The spec was validated: there is such a layer, and some of its patches stay.
                kept: kept_in(spec.ratio, layer, sites),
                prefix: prefix.to_owned(),
            })
        }
    }

    impl Act for TokenPredictorOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let Some(kept) = self.kept else { return x };
            let ([batch, tokens, _], protected) = (x.dims(), ctx.stream.prefix);
            let others = tokens - protected;
            let policy = ctx.stream.policy_behind_prefix(&x);
            let behind = x.clone().narrow(1, protected, others);
            let scores = self.scorer.forward(behind, policy.clone(), ctx.compute);
            let scores = log_softmax(scores);
            ctx.note_scores(&self.prefix, &scores);
            if ctx.keeps_places() {
                let stays = sampled(scores, &self.prefix, ctx) * policy;
                ctx.note(&self.prefix, "decision", stays.clone());
                ctx.stream.set_policy(&x, stays);
                return x;
            }
            // By the lead: probabilities that round to 1 would tie.
            let lead = scores.clone().narrow(2, 0, 1) - scores.narrow(2, 1, 1);
            let keep = lead.reshape([batch, others]);
            let staying = chosen(&keep, kept, &self.prefix, ctx);
            ctx.note_kept(&self.prefix, &staying, &x);
            ctx.stream.keep(x, &staying)
        }
    }
}
