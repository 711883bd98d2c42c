//! TOME — similar tokens merge in every layer: how many in which.
//!
//! Paper: Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023, section 3 and appendix C. Without training, or trained with it.
//! Changes nothing in the tensors of a checkpoint: the ops learn nothing. Where fewer tokens are left than would merge, half of them do,
//! as in the original program.

use vitesse_model::ops::{BipartiteMatching, OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Sites};

use crate::{Error, Result};

/// How many pairs of tokens merge, layer by layer.
#[derive(Debug, Clone, PartialEq)]
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

    /// The ops of this schedule, to be added to those of `spec`. `proportional` attention counts a token as often as it stands for
    /// patches: for models that were trained with supervision, and not for those of masked autoencoders.
    ///
    /// # Errors
    /// As [`Schedule::counts`]; in the first layer more merges than half of its tokens allow; a model whose tokens cannot become fewer.
    pub fn ops(&self, spec: &ModelSpec, proportional: bool) -> Result<Vec<OpSpec>> {
        let mut merged = spec.clone();
        for (layer, r) in self.counts(spec.depth())?.into_iter().enumerate() {
            let met = merged.token_counts().get(layer).map(|tokens| tokens.attention);
            let most = met.map_or(0, |met| BipartiteMatching::most(met.count(), met.prefix));
            let r = if layer == 0 { r } else { r.min(most) };
            if r > 0 {
                merged.ops.push(OpSpec {
                    site: Site::Mid,
                    layer: Some(layer),
                    kind: OpKind::BipartiteMatching(BipartiteMatching { r, proportional }),
                });
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
