//! EVIT — those patches stay to which the class token attends most.
//!
//! Paper: Liang et al., *Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations*, ICLR 2022.
//! In a few blocks, after attention, the attention that the class token pays to each patch (equation 4, mean over heads) says which `⌈keep · n⌉`
//! of the `n` patches stay; the others leave, or become one token, their sum weighted by that attention (equation 7). When trained from
//! scratch all tokens stay at first; then the share falls along a half cosine to the one of the finished model (section 4.1).
//!
//! When to use it: models with a class token, at a mild share without training. Below about 0.6 it loses more than ToMe, until trained.
//! Changes nothing in the tensors of a checkpoint: the ops learn nothing. Costs the class token's row of the attention in these blocks.
//! Deviations: in a model that is not twelve blocks deep, the published blocks stand at the same share of the depth. Distillation
//! tokens, registers and prompts are never dropped, and only the class token's attention counts.

use std::f64::consts::PI;
use std::fmt;

use serde::Serialize;
use vitesse_model::ops::{AttentiveTokens, OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Sites};

use super::{check_blocks, check_keep, op, scaled, spell};
use crate::Result;

/// How many patches stay, and where the others leave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The share of the patches that are there which stays at each of the blocks, above 0 and at most 1. The paper's: 0.7.
    pub keep: f64,
    /// The blocks after whose attention the others leave, from 0. The paper's: 3, 6 and 9 of 12.
    pub blocks: Vec<usize>,
    /// Whether those that leave become one token. The paper's: yes.
    pub fuse: bool,
}

impl Config {
    /// The paper's, for a model of so many blocks.
    pub fn of(depth: usize) -> Config {
        Config {
            keep: 0.7,
            blocks: scaled(&[3, 6, 9], depth),
            fuse: true,
        }
    }

    pub(super) fn ops(&self, spec: &ModelSpec) -> Result<Vec<OpSpec>> {
        check_keep(self.keep)?;
        check_blocks(self.blocks.iter().copied(), spec.depth())?;
        if self.keep == 1.0 {
            return Ok(Vec::new());
        }
        let kind = OpKind::AttentiveTokens(AttentiveTokens {
            keep: self.keep,
            fuse: self.fuse,
        });
        let blocks = self.blocks.iter();
        Ok(blocks.map(|&block| op(Site::Mid, block, kind.clone())).collect())
    }
}

impl Default for Config {
    fn default() -> Self {
        Config::of(12)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = if self.fuse { "fused" } else { "dropped" };
        write!(
            f,
            "keep {} in {}, the others {others}",
            self.keep,
            spell(&self.blocks)
        )
    }
}

/// The share of tokens that stays, by epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeepRate {
    /// The share at the end.
    pub base: f64,
    /// The epoch in which it begins to fall.
    pub start: usize,
    /// The epoch from which it is `base`.
    pub end: usize,
}

impl KeepRate {
    /// The share at `step`, where an epoch has `steps_per_epoch`.
    pub fn at(&self, step: usize, steps_per_epoch: usize) -> f64 {
        let steps_per_epoch = steps_per_epoch.max(1);
        let epoch = step / steps_per_epoch;
        if epoch < self.start {
            return 1.0;
        }
        if epoch >= self.end {
            return self.base;
        }
        let done = (step - self.start * steps_per_epoch) as f64;
        let all = ((self.end - self.start) * steps_per_epoch) as f64;
        self.base + (1.0 - self.base) * ((PI * done / all).cos() + 1.0) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_from_all_to_the_base() {
        let rate = KeepRate {
            base: 0.6,
            start: 1,
            end: 3,
        };
        let at = |step| rate.at(step, 4);
        assert_eq!((at(0), at(3), at(4)), (1.0, 1.0, 1.0));
        assert!((at(8) - 0.8).abs() < 1e-12, "{}", at(8));
        assert_eq!((at(12), at(100)), (0.6, 0.6));
    }

    #[test]
    fn it_costs_what_the_paper_says() {
        let spec = vitesse_model::zoo::get("deit_small_patch16_224").unwrap().spec;
        let cost = |keep, fuse| {
            let config = Config {
                keep,
                fuse,
                ..Config::default()
            };
            let mut reduced = spec.clone();
            reduced.ops = config.ops(&spec).unwrap();
            reduced.costs().unwrap().macs() as f64 / 1e9
        };
        for (keep, fuse, published) in [
            (0.7, true, 3.0),
            (0.5, true, 2.3),
            (0.7, false, 3.0),
            (0.9, true, 4.0),
        ] {
            assert!(
                (cost(keep, fuse) - published).abs() < 0.06,
                "{keep} {fuse}: {}",
                cost(keep, fuse)
            );
        }
        let zero = Config {
            keep: 0.0,
            ..Config::default()
        };
        assert!(zero.ops(&spec).unwrap_err().to_string().contains("above 0"));
    }
}
