//! What a selection leaves of a model, core by core, once all it says is met.

use std::ops::Range;

use vitesse_model::spec::{AttentionSpec, BlockSpec, MlpSpec, Transformer};
use vitesse_model::{ModelSpec, Tensors};

use super::criteria::{Criterion, magnitude::Magnitude};
use super::selection::Selection;
use super::units::{Group, Id, Kind, groups, prunable, ranges};
use crate::{Error, Result};

/// A unit that came back because its sub-layer, or the queries and keys of its head, would have had none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readmitted {
    /// Of which group.
    pub group: Id,
    /// Which unit: the one with the largest weights.
    pub unit: usize,
}

/// What is kept of a model; all numbers are the source's.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// Channels of the stream; all where `None`.
    pub(super) embed: Option<Vec<usize>>,
    /// Layers of the source that are layers of the smaller model; in a Swin all, since emptied blocks keep their place.
    pub(super) layers: Vec<usize>,
    /// One for each core of the source, with nothing in it where no layer uses it any more.
    pub(super) cores: Vec<KeptCore>,
    pub(super) readmitted: Vec<Readmitted>,
}

#[derive(Debug, Clone)]
pub(super) struct KeptCore {
    pub(super) attn: Option<KeptAttention>,
    pub(super) mlp: Option<KeptMlp>,
}

#[derive(Debug, Clone)]
pub(super) struct KeptAttention {
    pub(super) heads: Vec<KeptHead>,
    /// Rows of `proj`.
    pub(super) out: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct KeptHead {
    /// Which head it was.
    pub(super) index: usize,
    /// Of all queries, or all keys.
    pub(super) qk: Vec<usize>,
    /// Of all values.
    pub(super) v: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct KeptMlp {
    pub(super) hidden: Vec<usize>,
    /// Rows of `fc2`.
    pub(super) out: Vec<usize>,
}

impl Kept {
    /// # Errors
    /// What [`Selection::check`] refuses, and a selection that leaves no embedding channel.
    pub(super) fn of(spec: &ModelSpec, tensors: &Tensors, selection: &Selection) -> Result<Kept> {
        let body = prunable(spec)?;
        selection.check(spec)?;
        let embed = selection
            .of(Kind::Embed, None)
            .filter(|kept| kept.len() < body.dim(0));
        if embed.is_some_and(<[usize]>::is_empty) {
            return Err(Error::Selection(
                "a selection without any embedding channel leaves no model; keep at least one".into(),
            ));
        }
        let all: Vec<usize> = (0..body.layers().len()).collect();
        let stay = selection.of(Kind::Block, None).unwrap_or(&all);
        let used = |core: usize| stay.iter().any(|&layer| body.core(layer) == Some(core));
        let layers = match body {
            Transformer::Vit(_) => stay.to_vec(),
            // The windows of every second block are shifted, so each keeps its place.
            Transformer::Swin(_) => all.clone(),
        };
        let halved =
            |layer: &&usize| stay.binary_search(layer).is_err() && body.core(**layer).is_some_and(used);
        if let (Transformer::Swin(_), Some(layer)) = (body, all.iter().find(halved)) {
            return Err(Error::Selection(format!(
                "block {layer} shares its matrices with a block that stays; a dropped block of a Swin stays as an empty one and needs \
                 matrices of its own: drop all blocks that share them"
            )));
        }
        let mut cutter = Cutter {
            tensors,
            selection,
            groups: groups(spec)?,
            embed,
            readmitted: Vec::new(),
        };
        let mut cores = Vec::with_capacity(body.cores().len());
        for (core, block) in body.cores().iter().enumerate() {
            cores.push(match used(core) {
                true => cutter.core(core, block)?,
                false => KeptCore {
                    attn: None,
                    mlp: None,
                },
            });
        }
        let readmitted = cutter.readmitted;
        Ok(Kept {
            embed: embed.map(<[usize]>::to_vec),
            layers,
            cores,
            readmitted,
        })
    }

    /// The channels that are kept of a stream so wide.
    pub(super) fn stream(&self, dim: usize) -> Vec<usize> {
        self.embed.clone().unwrap_or_else(|| (0..dim).collect())
    }
}

struct Cutter<'a> {
    tensors: &'a Tensors,
    selection: &'a Selection,
    groups: Vec<Group>,
    embed: Option<&'a [usize]>,
    readmitted: Vec<Readmitted>,
}

impl Cutter<'_> {
    fn core(&mut self, core: usize, block: &BlockSpec) -> Result<KeptCore> {
        let dropped = |kind| {
            self.selection
                .of(kind, Some(core))
                .is_some_and(<[usize]>::is_empty)
        };
        let (no_attn, no_mlp) = (dropped(Kind::Attn), dropped(Kind::Mlp));
        let attn = match &block.attn {
            Some(attn) if !no_attn => self.attention(core, attn)?,
            _ => None,
        };
        let mlp = match &block.mlp {
            Some(mlp) if !no_mlp => self.perceptron(core, mlp)?,
            _ => None,
        };
        Ok(KeptCore { attn, mlp })
    }

    /// `None` where nothing is written: what adds to no channel adds nothing, not even its bias.
    fn attention(&mut self, core: usize, attn: &AttentionSpec) -> Result<Option<KeptAttention>> {
        let Some(out) = self.written(Kind::AttnOut, core, attn.out_idx.as_deref()) else {
            return Ok(None);
        };
        let widths: Vec<_> = ranges(&attn.qk_dims)
            .into_iter()
            .zip(ranges(&attn.v_dims))
            .collect();
        let head = |(index, (qk, v)): (usize, &(Range<usize>, Range<usize>))| KeptHead {
            index,
            qk: self.dims(Kind::QkDim, core, qk),
            v: self.dims(Kind::VDim, core, v),
        };
        let mut heads: Vec<KeptHead> = widths.iter().enumerate().map(head).collect();
        // A head without values adds nothing, whatever its queries and keys are.
        let kept = |head: &KeptHead| !head.v.is_empty() && self.keeps(Kind::Head, core, head.index);
        if heads.iter().any(kept) {
            heads.retain(kept);
        } else {
            let best = self.readmit(Kind::Head, core, &(0..heads.len()).collect::<Vec<_>>())?;
            heads.retain(|head| head.index == best);
        }
        for head in &mut heads {
            let (qk, v) = &widths[head.index];
            if head.qk.is_empty() {
                head.qk = vec![self.readmit(Kind::QkDim, core, &qk.clone().collect::<Vec<_>>())?];
            }
            if head.v.is_empty() {
                head.v = vec![self.readmit(Kind::VDim, core, &v.clone().collect::<Vec<_>>())?];
            }
        }
        Ok(Some(KeptAttention { heads, out }))
    }

    fn perceptron(&mut self, core: usize, mlp: &MlpSpec) -> Result<Option<KeptMlp>> {
        let Some(out) = self.written(Kind::MlpOut, core, mlp.out_idx.as_deref()) else {
            return Ok(None);
        };
        let all: Vec<usize> = (0..mlp.hidden).collect();
        let kept = all
            .iter()
            .copied()
            .filter(|unit| self.keeps(Kind::Hidden, core, *unit));
        let mut hidden: Vec<usize> = kept.collect();
        if hidden.is_empty() {
            hidden = vec![self.readmit(Kind::Hidden, core, &all)?];
        }
        Ok(Some(KeptMlp { hidden, out }))
    }

    fn keeps(&self, kind: Kind, core: usize, unit: usize) -> bool {
        self.selection
            .of(kind, Some(core))
            .is_none_or(|kept| kept.binary_search(&unit).is_ok())
    }

    /// The dimensions of one head that every kind which speaks of them keeps.
    fn dims(&self, kind: Kind, core: usize, head: &Range<usize>) -> Vec<usize> {
        head.clone()
            .filter(|&dim| {
                self.keeps(kind, core, dim)
                    && self.keeps(Kind::Dim, core, dim)
                    && self.keeps(Kind::Position, core, dim - head.start)
            })
            .collect()
    }

    /// The rows of a projection that write a channel which is kept; `None` where there are none.
    fn written(&self, kind: Kind, core: usize, out_idx: Option<&[usize]>) -> Option<Vec<usize>> {
        let channel = |row: usize| out_idx.map_or(Some(row), |idx| idx.get(row).copied());
        let rows = self.groups.iter().find(|group| {
            group.id
                == Id {
                    kind,
                    core: Some(core),
                }
        })?;
        let kept = (0..rows.units).filter(|&row| {
            let stays = channel(row).is_some_and(|channel| {
                self.embed
                    .is_none_or(|embed| embed.binary_search(&channel).is_ok())
            });
            stays && self.keeps(kind, core, row)
        });
        Some(kept.collect()).filter(|rows: &Vec<usize>| !rows.is_empty())
    }

    /// The candidate with the largest weights, which comes back.
    fn readmit(&mut self, kind: Kind, core: usize, candidates: &[usize]) -> Result<usize> {
        let id = Id {
            kind,
            core: Some(core),
        };
        let missing = || Error::Selection(format!("`{id}` would have no unit left, and none can come back"));
        let group = self
            .groups
            .iter()
            .find(|group| group.id == id)
            .ok_or_else(missing)?;
        let scores = Magnitude::default().scores(self.tensors, group)?;
        let score = |unit: usize| scores.get(unit).copied().unwrap_or(f64::NEG_INFINITY);
        let best = candidates
            .iter()
            .copied()
            .reduce(|best, unit| if score(unit) > score(best) { unit } else { best });
        let unit = best.ok_or_else(missing)?;
        self.readmitted.push(Readmitted { group: id, unit });
        Ok(unit)
    }
}
