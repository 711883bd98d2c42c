//! TOME — similar tokens merge in every layer: how many in which.
//!
//! Paper: Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023, section 3 and appendix C. After the attention of each block the `r`
//! most similar pairs of tokens, by their keys, become their mean, weighted by how many patches each stands for; attention in the blocks that
//! follow counts a token as often as that.
//!
//! When to use it: first, where nothing is to be trained. Changes nothing in the tensors of a checkpoint: the ops learn nothing. Costs
//! `n²/4 · d` products and a sort in each block. Deviations: where fewer tokens are left than would merge, half of them do, as in the original
//! program; a block that lost its attention merges none.

use std::fmt;

use serde::Serialize;
use vitesse_model::ops::{BipartiteMatching, OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Sites};

use super::op;
use crate::{Error, Result};

/// How many pairs merge, and what attention makes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// How many pairs merge in each block. The paper's for ViT-S and ViT-B at 224 pixels: 13 in each.
    pub schedule: Schedule,
    /// Whether attention counts a token as often as it stands for patches. The paper's: yes, but for models of masked autoencoders
    /// that are not trained again.
    pub proportional: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            schedule: Schedule::Constant(13),
            proportional: true,
        }
    }
}

impl Config {
    pub(super) fn ops(&self, spec: &ModelSpec) -> Result<Vec<OpSpec>> {
        self.schedule.ops(spec, self.proportional)
    }

    /// The largest `r` of a schedule of this shape with which no more than half of the tokens would merge at once in the first block.
    pub(super) fn strongest(&self, spec: &ModelSpec) -> Result<usize> {
        if let Schedule::List(_) = self.schedule {
            return Err(Error::Unsuited(
                "a list says how many tokens merge in each block, and leaves nothing to find for a budget; give no list, or no budget".into(),
            ));
        }
        let first = spec.token_counts().first().map(|tokens| tokens.attention);
        let Some(first) = first else { return Ok(0) };
        let most = BipartiteMatching::most(first.count(), first.prefix);
        let mut strongest = 0;
        for r in 1..=first.behind_prefix() {
            let counts = self.with(r).schedule.counts(spec.depth())?;
            if counts.first().is_some_and(|&count| count > most) {
                break;
            }
            strongest = r;
        }
        Ok(strongest)
    }

    /// The same with another mean.
    pub(super) fn with(&self, mean: usize) -> Config {
        Config {
            schedule: match &self.schedule {
                Schedule::Constant(_) => Schedule::Constant(mean),
                Schedule::Sloped { shape, .. } => Schedule::Sloped {
                    r: mean,
                    shape: *shape,
                },
                list @ Schedule::List(_) => list.clone(),
            },
            ..self.clone()
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schedule {
            Schedule::Constant(r) => write!(f, "r {r} in each block")?,
            Schedule::Sloped { r, shape } => write!(f, "r {r} in the mean, with the slope {shape}")?,
            Schedule::List(list) => write!(f, "r {} block by block", vitesse_words::listed(list))?,
        }
        f.write_str(match self.proportional {
            true => ", attention proportional to sizes",
            false => ", plain attention",
        })
    }
}

/// How many pairs of tokens merge, layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// As many in each.
    Constant(usize),
    /// `r` on average: from `r (1 - shape)` in the first layer to `r (1 + shape)` in the last, rounded towards zero. −1 falls from twice
    /// `r` to none, 1 rises.
    Sloped {
        /// The mean.
        r: usize,
        /// From −1 to 1.
        shape: f64,
    },
    /// These, and none in the layers that follow.
    List(Vec<usize>),
}

impl Schedule {
    /// One number a layer.
    ///
    /// # Errors
    /// A slope outside of −1 to 1, a list that is longer than the model is deep.
    pub fn counts(&self, layers: usize) -> Result<Vec<usize>> {
        match self {
            Schedule::Constant(r) => Ok(vec![*r; layers]),
            Schedule::Sloped { r, shape } => {
                if !(-1.0..=1.0).contains(shape) {
                    return Err(Error::Unsuited(format!(
                        "the shape of a merging schedule must be from -1 to 1, but is {shape}"
                    )));
                }
                let first = (*r as f64 * (1.0 - shape)).trunc();
                let last = 2.0 * *r as f64 - first;
                let step = (last - first) / layers.saturating_sub(1).max(1) as f64;
                Ok((0..layers)
                    .map(|layer| (first + step * layer as f64) as usize)
                    .collect())
            }
            Schedule::List(list) => {
                if list.len() > layers {
                    return Err(Error::Unsuited(format!(
                        "the merging schedule has {} numbers, but the model has {layers} layers",
                        list.len()
                    )));
                }
                let mut counts = list.clone();
                counts.resize(layers, 0);
                Ok(counts)
            }
        }
    }

    /// From as many in each to as many on average, along a slope of this shape.
    pub fn sloped(self, shape: f64) -> Schedule {
        match self {
            Schedule::Constant(r) => Schedule::Sloped { r, shape },
            other => other,
        }
    }

    /// The ops of this schedule, to be added to those of `spec`. `proportional` attention counts a token as often as it stands for
    /// patches: for models that were trained with supervision, and not for those of masked autoencoders.
    ///
    /// # Errors
    /// As [`Schedule::counts`]; in the first block more merges than half of its tokens allow; a model whose tokens cannot become fewer.
    pub fn ops(&self, spec: &ModelSpec, proportional: bool) -> Result<Vec<OpSpec>> {
        let mut merged = spec.clone();
        for (layer, r) in self.counts(spec.depth())?.into_iter().enumerate() {
            let met = merged.token_counts().get(layer).map(|tokens| tokens.attention);
            let most = met.map_or(0, |met| BipartiteMatching::most(met.count(), met.prefix));
            if layer == 0 && r > most {
                return Err(Error::Unsuited(format!(
                    "{r} pairs of tokens are to merge in the first block, but of its tokens that are not protected at most half, {most}, can merge; choose a smaller r"
                )));
            }
            let r = r.min(most);
            if r > 0 && spec.attention(layer).is_some() {
                let kind = BipartiteMatching { r, proportional };
                merged
                    .ops
                    .push(op(Site::Mid, layer, OpKind::BipartiteMatching(kind)));
            }
        }
        merged.validate()?;
        Ok(merged.ops.split_off(spec.ops.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::zoo;

    #[test]
    fn what_cannot_merge_does_not_and_what_is_asked_too_much_at_once_is_refused() {
        let spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let merges = |schedule: &Schedule| -> Vec<usize> {
            let ops = schedule.ops(&spec, true).unwrap();
            ops.iter()
                .map(|op| match &op.kind {
                    OpKind::BipartiteMatching(op) => op.r,
                    _ => 0,
                })
                .collect()
        };
        let found = merges(&Schedule::Constant(16));
        assert_eq!(found[..11], [16; 11]);
        assert_eq!(found[11], 10);
        assert_eq!(merges(&Schedule::List(vec![0, 3])), [3]);
        let error = |schedule: Schedule| schedule.ops(&spec, true).unwrap_err().to_string();
        assert!(error(Schedule::Constant(99)).contains("at most half, 98, can merge"));
        assert!(error(Schedule::List(vec![1; 13])).contains("has 12 layers"));
        assert!(error(Schedule::Sloped { r: 3, shape: 2.0 }).contains("from -1 to 1"));
    }
}
