//! ATTENTIVE TOKENS — those stay to which the class token attends most (EViT).
//!
//! Paper: Liang et al., *Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations*, ICLR 2022,
//! equations 5 to 7. After the attention of a block and its residual sum, `⌈keep · n⌉` of the `n` tokens behind the protected ones
//! stay, in the order of the attention that the class token pays them, averaged over heads. The others leave, or (`fuse`) become one
//! token: their sum weighted by that attention, which is not divided by the weights' sum. It stands last and is a token like any other
//! from then on: it may leave or be fused again. Indices get no gradient, kept tokens and the weights of fused ones do.

use serde::{Deserialize, Serialize};

use super::{Leaves, check_share};
use crate::spec::{Sites, TokenSet};
use crate::{Error, Result};

/// A choice by the class token's attention, at `mid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentiveTokens {
    /// The share of the tokens that are there which stays, rounded up.
    pub keep: f64,
    /// Whether those that leave become one token.
    #[serde(default = "super::yes")]
    pub fuse: bool,
}

impl AttentiveTokens {
    pub(super) fn validate(&self, index: usize, layer: usize, sites: &dyn Sites) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        if !sites.has_class_token() {
            return fail(
                "attentive-tokens goes by what the class token attends to, and this model has none".into(),
            );
        }
        if sites.attention(layer).is_none() {
            return fail(format!(
                "layer {layer} has no attention by which tokens could stay"
            ));
        }
        Ok(())
    }

    /// How many of `tokens` stay.
    pub fn kept(&self, tokens: usize) -> usize {
        ((self.keep * tokens as f64).ceil() as usize).min(tokens)
    }

    pub(super) fn leaves(&self, set: TokenSet) -> Leaves {
        check_share("keep", self.keep)?;
        let kept = self.kept(set.behind_prefix());
        if kept == set.behind_prefix() {
            return Ok(set);
        }
        Ok(TokenSet {
            prefix: set.prefix,
            patches: kept,
            tail: usize::from(self.fuse),
            grid: None,
        })
    }
}

#[cfg(feature = "train")]
pub(in crate::ops) use network::AttentiveTokensOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;

    use super::super::scores::chosen;
    use super::AttentiveTokens;
    use crate::network::Ctx;
    use crate::ops::network::{Act, AttentionPart};

    #[derive(Module, Debug)]
    pub(in crate::ops) struct AttentiveTokensOp {
        #[module(skip)]
        spec: AttentiveTokens,
        #[module(skip)]
        prefix: String,
    }

    impl AttentiveTokensOp {
        pub(in crate::ops) fn new(spec: &AttentiveTokens, prefix: &str) -> Self {
            AttentiveTokensOp {
                spec: spec.clone(),
                prefix: prefix.to_owned(),
            }
        }
    }

    impl Act for AttentiveTokensOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            // The spec was validated: the block has attention.
            let probs = ctx.attention.as_ref().and_then(|state| state.probs.clone());
            let Some(probs) = probs else { return x };
            let ([batch, tokens, dim], protected) = (x.dims(), ctx.stream.prefix);
            let others = tokens - protected;
            let kept = self.spec.kept(others);
            if kept == others {
                return x;
            }
            let heads = probs.dims()[1];
            let attention = probs
                .narrow(2, 0, 1)
                .narrow(3, protected, others)
                .reshape([batch, heads, others])
                .mean_dim(1)
                .reshape([batch, others]);
            let order = chosen(&attention, others, &self.prefix, ctx);
            let (staying, leaving): (Vec<Vec<usize>>, Vec<Vec<usize>>) = order
                .iter()
                .map(|order| (order[..kept].to_vec(), order[kept..].to_vec()))
                .unzip();
            let fused = self.spec.fuse.then(|| {
                let weights = attention.reshape([batch, others, 1]);
                let behind = x.clone().narrow(1, protected, others) * weights;
                crate::network::rows_of(behind, &leaving)
                    .sum_dim(1)
                    .reshape([batch, 1, dim])
            });
            ctx.note_kept(&self.prefix, &staying, &x);
            // A token that was fused before is one like any other.
            ctx.stream.tail = 0;
            let x = ctx.stream.keep(x, &staying);
            match fused {
                Some(fused) => ctx.stream.append(x, fused),
                None => x,
            }
        }

        fn reads_attention(&self) -> Option<AttentionPart> {
            Some(AttentionPart::Probs)
        }
    }
}
