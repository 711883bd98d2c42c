//! LORA — a low-rank update beside projections.
//!
//! **Paper.** E. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen, *LoRA: Low-Rank Adaptation of Large
//! Language Models*, ICLR 2022, section 4.1: `W x + b + (α / r) · B A x`. With `rank_stabilized`, `α / √r` (D.
//! Kalajdzievski, *A Rank Stabilization Scaling Factor*, 2023).
//!
//! **When.** To exchange adapters with PEFT, and wherever several small changes of one base are kept.
//!
//! **Changes** ops `low-rank` on projections; after merging, only the values of their weights.
//!
//! **Cost.** `r · (in + out)` multiply-adds for each token and projection until merged, nothing after.
//!
//! **Deviations.** On the fused projection of a ViT, one update of the whole matrix by default (PEFT's, and NOAH's LoRA in the
//! comparisons on VTAB); `parts` are the original's separate updates of queries, keys or values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{LowRank, OpKind, QkvPart};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};

use super::{Adapted, insert, op};
use crate::Result;
use crate::pattern::{Targets, key_matches};

const NAME: &str = "lora";

/// How LoRA is set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The projections, by PEFT's rules for `target_modules`. Default `qkv`.
    pub targets: Targets,
    /// Rank of each update. Default 8.
    pub rank: usize,
    /// Numerator of the factor. Default 8.
    pub alpha: f64,
    /// Whether the factor is `alpha / √rank` and not `alpha / rank`. Default false.
    pub rank_stabilized: bool,
    /// Probability with which an input of `A` is zeroed in training. Default 0.
    pub dropout: f64,
    /// The parts of fused `qkv` projections that are updated, each with factors of its own: some of `q`, `k`, `v`.
    /// Default: the whole matrix with one pair of factors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<QkvPart>>,
    /// Other ranks for modules whose path's end matches a regular expression; the first that matches counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, in the same way.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            targets: Targets::List(vec!["qkv".into()]),
            rank: 8,
            alpha: 8.0,
            rank_stabilized: false,
            dropout: 0.0,
            parts: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
        let mut ops = Vec::new();
        for (site, layer) in self.targets.projections(spec)? {
            let path = spec
                .projection(site, layer)
                .map_or_else(String::new, |projection| projection.name);
            let kind = OpKind::LowRank(LowRank {
                rank: by_pattern(&self.rank_pattern, &path)?.unwrap_or(self.rank),
                alpha: by_pattern(&self.alpha_pattern, &path)?.unwrap_or(self.alpha),
                rank_stabilized: self.rank_stabilized,
                parts: self.parts.clone().filter(|_| site == Site::Qkv),
                dropout: self.dropout,
            });
            ops.push(op(site, layer, kind));
        }
        insert(NAME, spec, tensors, ops, seed)
    }
}

/// The value of the first key that means the module `path`.
pub(crate) fn by_pattern<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Result<Option<T>> {
    for (key, value) in patterns {
        if key_matches(key, path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{applied, counted, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(counted(NAME, &[]).trainable.method_parameters, 294_912);
        let parts = [("parts", r#"["q","v"]"#)];
        assert_eq!(counted(NAME, &parts).trainable.method_parameters, 294_912);
    }

    #[test]
    fn patterns_change_rank_and_alpha_of_some() {
        let settings = [
            ("targets", "qkv,fc1"),
            ("rank", "2"),
            ("rank_pattern", r#"{"blocks\\.1\\..*": 3}"#),
            ("alpha_pattern", r#"{"fc1": 5.0}"#),
        ];
        let adapted = applied(NAME, &settings);
        let found: Vec<(usize, f64)> = adapted
            .spec
            .ops
            .iter()
            .map(|op| match &op.kind {
                OpKind::LowRank(op) => (op.rank, op.alpha),
                other => unreachable!("{other:?}"),
            })
            .collect();
        assert_eq!(
            found,
            [(2, 8.0), (2, 5.0), (3, 8.0), (3, 5.0), (2, 8.0), (2, 5.0)]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(refusal(NAME, &[("targets", "proj")]).contains("patch_embed.proj"));
        assert!(refusal(NAME, &[("targets", "value")]).contains("names no module"));
        assert!(refusal(NAME, &[("rank", "0")]).contains("rank must be from 1"));
        assert!(refusal(NAME, &[("parts", r#"["v","q"]"#)]).contains("in this order"));
    }
}
