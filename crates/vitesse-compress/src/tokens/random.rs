//! RANDOM — a random set of patches stays, the same for every image.
//!
//! No paper: the baseline that every choice must beat. In the blocks of EViT `⌈keep · n⌉` of the `n` patches that are there stay, before attention; which
//! ones is drawn once, by the seed.
//!
//! When to use it: to see what a method's choice is worth, at the same share or the same budget. Changes nothing in the tensors of a
//! checkpoint. Costs nothing but moving rows. EViT's patches leave after attention, so that at the same share this one costs a little less.

use std::fmt;

use serde::Serialize;
use vitesse_model::ops::{OpKind, OpSpec, StaticTokens};
use vitesse_model::{ModelSpec, Site, Sites};
use vitesse_rng::Key;

use super::{check_blocks, check_keep, op, scaled, spell};
use crate::Result;

/// How many patches stay, and where the others leave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The share of the patches that are there which stays at each of the blocks, above 0 and at most 1. As EViT's: 0.7.
    pub keep: f64,
    /// The blocks before which the others leave, from 0. As EViT's: 3, 6 and 9 of 12.
    pub blocks: Vec<usize>,
    /// The seed of the draw.
    pub seed: u64,
}

impl Config {
    /// The defaults, for a model of so many blocks.
    pub fn of(depth: usize) -> Config {
        Config {
            keep: 0.7,
            blocks: scaled(&[3, 6, 9], depth),
            seed: 0,
        }
    }

    pub(super) fn ops(&self, spec: &ModelSpec) -> Result<Vec<OpSpec>> {
        check_keep(self.keep)?;
        check_blocks(self.blocks.iter().copied(), spec.depth())?;
        if self.keep == 1.0 {
            return Ok(Vec::new());
        }
        let key = Key::new(self.seed).with("tokens").with("random");
        let mut patches = spec
            .token_counts()
            .first()
            .map_or(0, |first| first.entering.patches);
        let mut blocks = self.blocks.clone();
        blocks.sort_unstable();
        let ops = blocks.into_iter().map(|block| {
            let kept = (self.keep * patches as f64).ceil() as usize;
            let mut keep = key.at(block as u64).rng().permutation(patches);
            keep.truncate(kept);
            keep.sort_unstable();
            patches = keep.len();
            op(Site::BlockIn, block, OpKind::StaticTokens(StaticTokens { keep }))
        });
        Ok(ops.collect())
    }
}

impl Default for Config {
    fn default() -> Self {
        Config::of(12)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "keep {} in {}, a fixed set drawn with seed {}",
            self.keep,
            spell(&self.blocks),
            self.seed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::zoo;

    #[test]
    fn sets_are_drawn_by_the_seed_and_shrink() {
        let spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let sets = |keep, seed| -> Vec<Vec<usize>> {
            let config = Config {
                keep,
                seed,
                ..Config::default()
            };
            let ops = config.ops(&spec).unwrap().into_iter();
            ops.filter_map(|op| match op.kind {
                OpKind::StaticTokens(tokens) => Some(tokens.keep),
                _ => None,
            })
            .collect()
        };
        let lengths: Vec<usize> = sets(0.7, 0).iter().map(Vec::len).collect();
        assert_eq!(lengths, [138, 97, 68]);
        assert_eq!(sets(0.7, 0), sets(0.7, 0));
        assert_ne!(sets(0.7, 0), sets(0.7, 1));
        let (wide, narrow) = (sets(0.7, 0), sets(0.3, 0));
        assert!(narrow[0].iter().all(|patch| wide[0].contains(patch)));
        assert!(sets(1.0, 0).is_empty());
    }
}
