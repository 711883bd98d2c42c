//! BIPARTITE MATCHING — the most similar tokens merge, pair by pair (ToMe).
//!
//! Paper: Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023, section 3.2 and appendix D. After the attention of a block the
//! tokens are dealt to two sets in turn; each of the first is compared with all of the second by the keys of the attention, averaged
//! over heads; the `r` most similar pairs merge into means weighted by how many patches each stands for. Later attention may
//! count a merged token as often as that (`proportional`): `softmax(q·kᵀ + log size)`. Needs no training and learns nothing; merging
//! indices get no gradient, what is merged does. The products of the matching, `n²/4 · d`, are not counted among the MACs, as in
//! the paper.
//!
//! Tokens change their order: those that did not merge, then the second set. That deals them anew in the next block, and is
//! better than keeping the order.

use serde::{Deserialize, Serialize};

use super::Leaves;
use crate::spec::{AttentionSpec, Sites, TokenSet};
use crate::{Error, Result};

/// Merging of similar tokens, at `mid`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BipartiteMatching {
    /// How many pairs merge.
    pub r: usize,
    /// Whether attention in the blocks that follow counts a token as often as it stands for patches. The same for all of a model.
    #[serde(default = "super::yes")]
    pub proportional: bool,
}

impl BipartiteMatching {
    /// The most pairs that can merge among `tokens` of which the first `prefix` are protected: half of the others.
    pub fn most(tokens: usize, prefix: usize) -> usize {
        tokens.saturating_sub(prefix) / 2
    }

    pub(super) fn validate(&self, index: usize, layer: usize, sites: &dyn Sites) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        let heads = sites.attention(layer).map(AttentionSpec::uniform_heads);
        match heads {
            None => {
                return fail(format!(
                    "layer {layer} has no attention by whose keys tokens could match"
                ));
            }
            Some(None) => {
                return fail(format!(
                    "tokens match by the mean key of all heads, and the heads of layer {layer} differ in width"
                ));
            }
            Some(Some(_)) => {}
        }
        let differs = |op: &crate::ops::OpSpec| match &op.kind {
            crate::ops::OpKind::BipartiteMatching(other) => other.proportional != self.proportional,
            _ => false,
        };
        if let Some(other) = sites.ops().iter().position(differs) {
            return fail(format!(
                "`proportional` is {} here and not in ops[{other}]; it is the same for all of a model",
                self.proportional
            ));
        }
        Ok(())
    }

    pub(super) fn leaves(&self, set: TokenSet) -> Leaves {
        let most = BipartiteMatching::most(set.count(), set.prefix).min(set.patches);
        if self.r == 0 {
            return Err("`r` must be at least 1; leave the op out where nothing merges".into());
        }
        if self.r > most {
            return Err(format!(
                "`r` is {}, but of {} tokens besides the {} protected ones at most half, {most}, can merge",
                self.r,
                set.behind_prefix(),
                set.prefix
            ));
        }
        Ok(set.with_patches(set.patches - self.r))
    }
}

/// Which tokens of an image merge. Those at even positions are the first set, those at odd ones the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matching {
    /// Of the first set those that do not merge: ascending where tokens are protected, else the most similar first.
    pub unmerged: Vec<usize>,
    /// Of the first set those that merge, the most similar first, each with its partner in the second set.
    pub merged: Vec<(usize, usize)>,
    tokens: usize,
    prefix: usize,
}

impl Matching {
    /// Matches tokens by `metric` `[tokens, width]`: the `r` most similar pairs, or as many as there can be. The first `prefix`
    /// tokens are protected. `None` where the metric holds something that is no number.
    pub fn new(metric: &[f32], width: usize, prefix: usize, r: usize) -> Option<Matching> {
        let rows = metric.chunks_exact(width.max(1));
        let unit = |row: &[f32]| {
            let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let by = if norm > 0.0 { norm.recip() } else { 0.0 };
            row.iter().map(|&x| f64::from(x) * by).collect::<Vec<f64>>()
        };
        let rows: Vec<Vec<f64>> = rows.map(unit).collect();
        if rows.iter().flatten().any(|x| !x.is_finite()) {
            return None;
        }
        let tokens = rows.len();
        let r = r.min(BipartiteMatching::most(tokens, prefix));
        let similar = |a: usize, b: usize| -> f64 { rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum() };
        let partner = |a: usize| {
            let mut found = (f64::NEG_INFINITY, 0);
            if a < prefix {
                return found;
            }
            for b in (1..tokens).step_by(2).filter(|&b| b >= prefix) {
                let score = similar(a, b);
                if score > found.0 {
                    found = (score, b / 2);
                }
            }
            found
        };
        let best: Vec<(f64, usize)> = (0..tokens).step_by(2).map(partner).collect();
        let mut order: Vec<usize> = (0..best.len()).collect();
        order.sort_by(|&a, &b| best[b].0.total_cmp(&best[a].0));
        let mut unmerged = order.split_off(r.min(order.len()));
        if prefix > 0 {
            unmerged.sort_unstable();
        }
        Some(Matching {
            unmerged,
            merged: order.into_iter().map(|a| (a, best[a].1)).collect(),
            tokens,
            prefix,
        })
    }

    /// For every token its place among those that are left: protected ones stay where they are; then come those of the first set
    /// that did not merge, then the second set.
    pub fn places(&self) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.tokens).collect();
        let mut next = self.prefix;
        let second = (1..self.tokens).step_by(2);
        for token in self.unmerged.iter().map(|a| 2 * a).chain(second) {
            if token >= self.prefix {
                places[token] = next;
                next += 1;
            }
        }
        for (a, b) in &self.merged {
            places[2 * a] = places[2 * b + 1];
        }
        places
    }
}

#[cfg(feature = "train")]
pub(in crate::ops) use network::BipartiteMatchingOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;

    use super::super::scores::values;
    use super::{BipartiteMatching, Matching};
    use crate::network::Ctx;
    use crate::ops::QkvPart;
    use crate::ops::network::{Act, AttentionPart};

    #[derive(Module, Debug)]
    pub(in crate::ops) struct BipartiteMatchingOp {
        #[module(skip)]
        spec: BipartiteMatching,
        #[module(skip)]
        prefix: String,
    }

    impl BipartiteMatchingOp {
        pub(in crate::ops) fn new(spec: &BipartiteMatching, prefix: &str) -> Self {
            BipartiteMatchingOp {
                spec: spec.clone(),
                prefix: prefix.to_owned(),
            }
        }
    }

    impl Act for BipartiteMatchingOp {
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            // The spec was validated: the block has attention with heads of one width.
            let keys = ctx.attention.as_ref().and_then(|state| state.heads(QkvPart::K));
            let Some(keys) = keys else { return x };
            let ([_, _, tokens, width], protected) = (keys.dims(), ctx.stream.prefix);
            let metrics = values(&keys.mean_dim(1));
            let places = metrics.iter().map(|metric| {
                let matching = Matching::new(metric, width, protected, self.spec.r);
                let matching = matching.or_else(|| {
                    ctx.spoiled.get_or_insert_with(|| self.prefix.clone());
                    Matching::new(&vec![0.0; tokens * width], width, protected, self.spec.r)
                });
                matching.map(|matching| matching.places()).unwrap_or_default()
            });
            let places: Vec<Vec<usize>> = places.collect();
            ctx.stream.counts_by_size = self.spec.proportional;
            ctx.stream.merge(x, &places, true)
        }

        fn reads_attention(&self) -> Option<AttentionPart> {
            Some(AttentionPart::Qkv)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protected_tokens_stay_where_they_are_and_many_may_merge_into_one() {
        // Tokens 2 and 4 both resemble token 3; tokens 0 and 1 are protected, however similar.
        let metric = [
            [1.0, 0.0],
            [1.0, 0.0],
            [0.0, 1.0],
            [0.0, 2.0],
            [0.1, 1.0],
            [-1.0, 0.0],
        ];
        let matching = Matching::new(metric.as_flattened(), 2, 2, 2).unwrap();
        assert_eq!(matching.merged, [(1, 1), (2, 1)]);
        assert_eq!(matching.places(), [0, 1, 2, 2, 2, 3]);
        // No more than half of the others merge.
        assert_eq!(
            Matching::new(metric.as_flattened(), 2, 3, 9)
                .unwrap()
                .merged
                .len(),
            1
        );
        assert!(Matching::new(&[0.0, f32::NAN], 1, 0, 1).is_none());
        // A token without a direction resembles none.
        assert!(Matching::new(&[0.0, 1.0], 1, 0, 1).is_some());
    }
}
