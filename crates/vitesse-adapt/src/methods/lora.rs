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

use vitesse_model::ops::{LowRank, OpKind, OpSpec, QkvPart};
use vitesse_model::{ModelSpec, Site, Tensors};
use vitesse_train::method::{Finished, Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{fold, insert, needs_projections};
use crate::pattern::{Targets, key_matches};

/// The name on the command line and in files.
pub const NAME: &str = "lora";

settings! {
    /// How LoRA is set up.
    pub struct Config {
        /// The projections, by PEFT's rules for `target_modules`: ends of module paths, a regular expression, or
        /// `all-linear`.
        pub targets: Targets = Targets::parse("qkv"),
        /// Rank of each update.
        pub rank: usize = 8,
        /// Numerator of the factor.
        pub alpha: f64 = 8.0,
        /// Whether the factor is `alpha / √rank` and not `alpha / rank`.
        pub rank_stabilized: bool = false,
        /// Probability with which an input of `A` is zeroed in training.
        pub dropout: f64 = 0.0,
        /// The parts of fused `qkv` projections that are updated, each with factors of its own, such as `["q","v"]`;
        /// without it, the whole matrix has one pair of factors.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub parts: Option<Vec<QkvPart>> = None,
        /// Other ranks for modules whose path's end matches a regular expression; the first that matches counts.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub rank_pattern: BTreeMap<String, usize> = BTreeMap::new(),
        /// Other alphas, in the same way.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub alpha_pattern: BTreeMap<String, f64> = BTreeMap::new(),
    }
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let mut ops = Vec::new();
        needs_projections(NAME, spec)?;
        for (site, layer) in self.targets.modules(spec)? {
            let path = spec
                .sites()
                .matrix(site, layer.unwrap_or(0))
                .map_or_else(String::new, |projection| projection.name);
            let kind = OpKind::LowRank(LowRank {
                rank: by_pattern(&self.rank_pattern, &path)?.unwrap_or(self.rank),
                alpha: by_pattern(&self.alpha_pattern, &path)?.unwrap_or(self.alpha),
                rank_stabilized: self.rank_stabilized,
                parts: self.parts.clone().filter(|_| site == Site::Qkv),
                dropout: self.dropout,
            });
            ops.push(OpSpec { site, layer, kind });
        }
        insert(NAME, spec, &Site::PROJECTIONS, ops)
    }

    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        fold(spec, tensors)
    }
}

/// The value of the first key that means the module `path`.
fn by_pattern<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> crate::Result<Option<T>> {
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

    use super::super::testing::{begun, planned, refusal};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(planned(NAME, &[]).trainable.method_param_count, 294_912);
        let parts = [("parts", r#"["q","v"]"#)];
        assert_eq!(planned(NAME, &parts).trainable.method_param_count, 294_912);
    }

    #[test]
    fn patterns_change_rank_and_alpha_of_some() {
        let settings = [
            ("targets", "qkv,fc1"),
            ("rank", "2"),
            ("rank_pattern", r#"{"blocks\\.1\\..*": 3}"#),
            ("alpha_pattern", r#"{"fc1": 5.0}"#),
        ];
        let begun = begun(NAME, &settings);
        let found: Vec<(usize, f64)> = begun
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
        // Named by itself, the convolution is adapted.
        let patches = begun(NAME, &[("targets", "patch_embed.proj,qkv"), ("rank", "2")]);
        assert_eq!(patches.tensors.get("ops.0.embed.a").unwrap().shape(), [2, 48]);
        assert!(refusal(NAME, &[("targets", "value")]).contains("names no module"));
        assert!(refusal(NAME, &[("rank", "0")]).contains("rank must be from 1"));
        assert!(refusal(NAME, &[("parts", r#"["v","q"]"#)]).contains("in this order"));
    }
}
