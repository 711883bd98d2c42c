//! TOKEN SELECTOR — every head scores its part of the tokens; those that leave become one package (SPViT).
//!
//! Paper: Kong et al., *SPViT: Enabling Faster Vision Transformers via Latency-Aware Soft Token Pruning*, ECCV 2022, equations 3 to 11.
//! A small network scores each head's channels; a second one weighs the heads for every token. In inference the best
//! `⌊ratio · N⌋` of the `N` patches of the whole image stay, or, without a ratio, those that are more probable to stay than to leave:
//! then images keep different numbers, and always at least one. In training decisions are drawn, as those of a
//! [`TokenPredictor`](super::TokenPredictor).
//!
//! Tokens that leave at a stage make a package: their sum weighted by how probable it was that they stay, divided by the sum of
//! the weights ([`Package::Normalised`], the paper's equation) or not (`Sum`, the released program's). It stands after all other tokens,
//! never leaves, and is zero where none left. The paper has a network a head; the released program shares one (`shared`).

use serde::{Deserialize, Serialize};

use super::{Leaves, scores, share_of};
use crate::site::Site;
use crate::spec::{Sites, TensorSpec, TokenSet};
use crate::{Error, Result};

/// A selector, its decision and its package, at `block.in`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSelector {
    /// Into how many heads the channels are cut.
    pub heads: usize,
    /// Whether one network scores all heads.
    #[serde(default = "super::yes")]
    pub shared: bool,
    /// What a package is.
    #[serde(default)]
    pub package: Package,
    /// The share of the whole image's patches that stay, rounded down. Without it each image keeps as many as it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// What the tokens that leave become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Package {
    /// Their weighted mean.
    #[default]
    Normalised,
    /// Their weighted sum.
    Sum,
}

impl TokenSelector {
    pub(super) fn validate(&self, index: usize, layer: usize, sites: &dyn Sites) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        let width = sites.width_at(Site::BlockIn, Some(layer)).unwrap_or(0);
        if self.heads < 2 || !width.is_multiple_of(self.heads) {
            return fail(format!(
                "a token selector weighs heads against each other: `heads` must be at least 2 and divide the width {width}, but is {}",
                self.heads
            ));
        }
        let differs = |op: &crate::ops::OpSpec| match &op.kind {
            crate::ops::OpKind::TokenSelector(other) => other.ratio.is_some() != self.ratio.is_some(),
            _ => false,
        };
        if let Some(other) = sites.ops().iter().position(differs) {
            return fail(format!(
                "of this and of ops[{other}] one has a `ratio` and one has none; images keep equal numbers in all layers, or in none"
            ));
        }
        let each = width / self.heads;
        if each < 4 || !each.is_multiple_of(2) {
            return fail(format!(
                "a token selector halves the width of a head twice, which must be an even number from 4, but is {each}"
            ));
        }
        Ok(())
    }

    pub(super) fn leaves(&self, set: TokenSet, patches: usize) -> Leaves {
        let kept = match self.ratio {
            Some(ratio) => share_of(ratio, patches, set)?,
            None => set.patches,
        };
        if self.ratio.is_some() && kept == set.patches {
            return Ok(set);
        }
        Ok(TokenSet {
            tail: set.tail + 1,
            grid: None,
            ..set.with_patches(kept)
        })
    }

    /// How many networks score heads.
    fn networks(&self) -> usize {
        if self.shared { 1 } else { self.heads }
    }

    pub(in crate::ops) fn tensors(&self, prefix: &str, width: usize) -> Vec<TensorSpec> {
        let (each, narrow) = (width / self.heads.max(1), self.heads / 2);
        let networks = (0..self.networks()).flat_map(|i| scores::tensors(&names(prefix, i), each));
        let weighing = [
            ("senet.0", [narrow, self.heads]),
            ("senet.2", [self.heads, narrow]),
        ];
        let weighing = weighing
            .into_iter()
            .flat_map(|(name, shape)| scores::linear(&format!("{prefix}.{name}"), shape));
        networks.chain(weighing).collect()
    }

    /// Multiply-accumulates for an image of which `met` is there and `left` stays.
    pub(in crate::ops) fn macs(&self, width: usize, met: TokenSet, left: TokenSet) -> usize {
        if met == left {
            return 0;
        }
        let scoring = self.heads * scores::macs(width / self.heads.max(1));
        met.behind_prefix() * (scoring + 2 * self.heads * (self.heads / 2))
    }
}

/// The prefixes of the tensors of a head's network before and after the mean.
fn names(prefix: &str, head: usize) -> [String; 2] {
    ["in_conv", "out_conv"].map(|name| format!("{prefix}.{name}.{head}"))
}

#[cfg(feature = "train")]
pub(in crate::ops) use network::TokenSelectorOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;
    use burn::tensor::activation::sigmoid;
    use vitesse_kernels::Gelu;

    use super::super::kept_in;
    use super::super::scores::{Scorer, chosen, log_softmax, sampled, values};
    use super::{Package, TokenSelector, names};
    use crate::Result;
    use crate::network::fused::Before;
    use crate::network::layers::{Linear, constant};
    use crate::network::{Compute, Ctx, Parameters};
    use crate::ops::network::Act;
    use crate::spec::Sites;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct TokenSelectorOp {
        /// One for all heads, or one a head.
        scorers: Vec<Scorer>,
        weigh: [Linear; 2],
        #[module(skip)]
        spec: TokenSelector,
        #[module(skip)]
        stays: Stays,
        #[module(skip)]
        prefix: String,
    }

    /// How many patches stay.
    #[derive(Debug, Clone, Copy)]
    enum Stays {
        All,
        Best(usize),
        /// Those that are more probable to stay than to leave.
        Probable,
    }

    /// What the heads say together of each token, to stay and to leave: `[batch, tokens, 2]` both.
    struct Scores {
        /// Means of logarithms, by which decisions are drawn.
        logs: Tensor<3>,
        /// Means of probabilities, which weigh the package.
        probs: Tensor<3>,
    }

    impl TokenSelectorOp {
        pub(in crate::ops) fn new(
            spec: &TokenSelector,
            prefix: &str,
            layer: usize,
            sites: &dyn Sites,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            // The spec was validated: there is such a layer, and some of its patches stay.
            let stays = match spec.ratio {
                None => Stays::Probable,
                Some(ratio) => kept_in(ratio, layer, sites).map_or(Stays::All, Stays::Best),
            };
            let scorers = (0..spec.networks()).map(|i| Scorer::new(&names(prefix, i), parameters));
            Ok(TokenSelectorOp {
                scorers: scorers.collect::<Result<_>>()?,
                weigh: [
                    Linear::new(&format!("{prefix}.senet.0"), true, parameters)?,
                    Linear::new(&format!("{prefix}.senet.2"), true, parameters)?,
                ],
                spec: spec.clone(),
                stays,
                prefix: prefix.to_owned(),
            })
        }

        /// Of `x` `[batch, tokens, dim]`, of which those with `policy` 1 `[batch, tokens]` are there.
        fn scores(&self, x: &Tensor<3>, policy: &Tensor<2>, compute: Compute) -> Scores {
            let ([batch, tokens, dim], heads) = (x.dims(), self.spec.heads);
            let each = dim / heads;
            let means = x.clone().reshape([batch, tokens, heads, each]).mean_dim(3);
            let [first, second] = &self.weigh;
            let weights = first.forward(means.reshape([batch, tokens, heads]), compute);
            let weights = second
                .values()
                .segment(weights, Before::Gelu(Gelu::Exact), None, compute);
            let weights = sigmoid(weights);
            let total = weights.clone().sum_dim(2);
            let none = || Tensor::<3>::zeros([batch, tokens, 2], &x.device());
            let (mut logs, mut probs) = (none(), none());
            for head in 0..heads {
                let Some(scorer) = self.scorers.get(head).or(self.scorers.first()) else {
                    continue;
                };
                let part = x.clone().narrow(2, head * each, each);
                let log = log_softmax(scorer.forward(part, policy.clone(), compute));
                let weight = weights.clone().narrow(2, head, 1);
                probs = probs + log.clone().exp() * weight.clone();
                logs = logs + log * weight;
            }
            Scores {
                logs: logs / total.clone(),
                probs: probs / total,
            }
        }

        /// Which patches of each image stay, of those that are there by `policy`.
        fn staying(
            &self,
            scores: &Scores,
            policy: &Tensor<2>,
            patches: usize,
            ctx: &mut Ctx,
        ) -> Vec<Vec<usize>> {
            let column = |x: &Tensor<3>, i| x.clone().narrow(1, 0, patches).narrow(2, i, 1);
            let batch = policy.dims()[0];
            let there = policy.clone().narrow(1, 0, patches);
            let mut staying = match self.stays {
                Stays::Best(count) => {
                    let keep = column(&scores.probs, 0).reshape([batch, patches]);
                    chosen(&keep, count, &self.prefix, ctx)
                }
                Stays::All | Stays::Probable => {
                    let lead = column(&scores.logs, 0) - column(&scores.logs, 1);
                    let lead = lead.reshape([batch, patches]);
                    // Those that are not there are the worst.
                    let ranked = lead.clone() + (there.clone() - 1.0) * 1e30;
                    let best = chosen(&ranked, 1, &self.prefix, ctx);
                    let rows = values(&lead).into_iter().zip(values(&there)).zip(best);
                    rows.map(|((lead, there), best)| {
                        let stays = |i: &usize| there[*i] > 0.5 && lead[*i] >= 0.0;
                        let staying: Vec<usize> = (0..patches).filter(stays).collect();
                        if staying.is_empty() { best } else { staying }
                    })
                    .collect()
                }
            };
            staying.iter_mut().for_each(|kept| kept.sort_unstable());
            staying
        }

        /// What the patches of `x` `[batch, tokens, dim]` become that leave, 1 in `leaves` `[batch, patches]`: `[batch, 1, dim]`.
        fn package(&self, x: &Tensor<3>, scores: &Scores, leaves: Tensor<2>) -> Tensor<3> {
            let [batch, patches] = leaves.dims();
            let weights = scores.probs.clone().narrow(1, 0, patches).narrow(2, 0, 1);
            let weights = weights * leaves.reshape([batch, patches, 1]);
            let sum = (x.clone().narrow(1, 0, patches) * weights.clone()).sum_dim(1);
            match self.spec.package {
                Package::Sum => sum,
                // Where none left, the sum is zero, and so is the package.
                Package::Normalised => sum / weights.sum_dim(1).clamp_min(1e-20),
            }
        }
    }

    impl Act for TokenSelectorOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            if matches!(self.stays, Stays::All) {
                return x;
            }
            let ([batch, tokens, _], protected) = (x.dims(), ctx.stream.prefix);
            let others = tokens - protected;
            let patches = others - ctx.stream.tail;
            let policy = ctx.stream.policy_behind_prefix(&x);
            let behind = x.clone().narrow(1, protected, others);
            let scores = self.scores(&behind, &policy, ctx.compute);
            ctx.note_scores(&self.prefix, &scores.logs);
            ctx.note(
                &self.prefix,
                "prob",
                scores.probs.clone().narrow(2, 0, 1).reshape([batch, others]),
            );
            let before = policy.clone().narrow(1, 0, patches);
            if ctx.keeps_places() {
                let stays = sampled(scores.logs.clone(), &self.prefix, ctx).narrow(1, 0, patches);
                let stays = stays * before.clone();
                let package = self.package(&behind, &scores, before - stays.clone());
                ctx.note(&self.prefix, "decision", stays.clone());
                ctx.stream.set_policy(&x, stays);
                return ctx.stream.append(x, package);
            }
            let staying = self.staying(&scores, &policy, patches, ctx);
            let stays: Vec<f32> = staying
                .iter()
                .flat_map(|kept| (0..patches).map(|i| f32::from(u8::from(kept.binary_search(&i).is_ok()))))
                .collect();
            let leaves = before - constant(stays, [batch, patches], &x);
            let package = self.package(&behind, &scores, leaves);
            ctx.note_kept(&self.prefix, &staying, &x);
            let x = ctx.stream.keep(x, &staying);
            ctx.stream.append(x, package)
        }
    }
}
