//! What becomes of the ops of a model: the one place that knows each kind.
//!
//! Ops that are linear and per token are folded into the matrix or the norm beside them, so that they cost nothing. The
//! rest stays: low-rank updates with their projection, the others as steps of their own.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::{Panels, Real, panels_of};
use vitesse_model::Tensors;
use vitesse_model::ops::{Bottleneck, NORM_EPS, NormPlace, OpKind, OpSpec, Prompts, ScaleShift};
use vitesse_model::site::Site;

use super::Compiler;
use crate::member::Operand;
use crate::profile::Stage;
use crate::steps::{self, Narrow, Op};
use crate::weights::{Format, NormRows, Outputs, Product, Weights, rows};
use crate::{Error, Result};

/// `y = x · scale + shift`, by channel: some ops in one.
pub(super) struct Folded {
    scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl Folded {
    /// One op, whose tensors begin with `prefix`.
    fn of(kind: &ScaleShift, prefix: &str, tensors: &Tensors) -> Result<Folded> {
        let scale = tensors.get(&format!("{prefix}.scale"))?.to_f32().into_owned();
        let shift = if kind.shift {
            tensors.get(&format!("{prefix}.shift"))?.to_f32().into_owned()
        } else {
            vec![0.0; scale.len()]
        };
        Ok(Folded { scale, shift })
    }

    /// First this, then `next`.
    fn then(&self, next: &Folded) -> Folded {
        let pairs = next.scale.iter().zip(&next.shift);
        Folded {
            scale: self.scale.iter().zip(&next.scale).map(|(a, b)| a * b).collect(),
            shift: self
                .shift
                .iter()
                .zip(pairs)
                .map(|(t, (scale, shift))| t * scale + shift)
                .collect(),
        }
    }
}

/// Scale and shift, or those that change nothing.
pub(super) fn folded(op: Option<&Folded>) -> (impl Fn(usize) -> f32 + '_, impl Fn(usize) -> f32 + '_) {
    (
        move |n| op.map_or(1.0, |op| op.scale[n]),
        move |n| op.map_or(0.0, |op| op.shift[n]),
    )
}

impl<T: Real> Compiler<'_, T> {
    /// The first ops at `site` of `layer`, as long as they scale and shift, and their numbers; `None` where there are none.
    /// (Prompts, which come first of all, are not among them.)
    pub(super) fn leading(&self, site: Site, layer: Option<usize>) -> Result<Option<(Folded, Vec<usize>)>> {
        let mut whole: Option<(Folded, Vec<usize>)> = None;
        for (index, op) in self.sites.ops_at(site, layer) {
            let next = match &op.kind {
                OpKind::ScaleShift(kind) => Folded::of(kind, &op.prefix(index), self.tensors)?,
                OpKind::Prompts(_) => continue,
                OpKind::LowRank(_)
                | OpKind::Bottleneck(_)
                | OpKind::HeadMixing(_)
                | OpKind::RelativePositions(_)
                | OpKind::LocalConvolution(_)
                | OpKind::BipartiteMatching(_)
                | OpKind::AttentiveTokens(_)
                | OpKind::TokenPredictor(_)
                | OpKind::TokenSelector(_)
                | OpKind::GridMerging(_)
                | OpKind::StaticTokens(_) => break,
            };
            whole = Some(match whole {
                Some((before, mut indices)) => {
                    indices.push(index);
                    (before.then(&next), indices)
                }
                None => (next, vec![index]),
            });
        }
        Ok(whole)
    }

    /// The same, to be folded into a neighbour.
    pub(super) fn fold(&mut self, site: Site, layer: Option<usize>) -> Result<Option<Folded>> {
        Ok(self.leading(site, layer)?.map(|(folded, indices)| {
            indices.into_iter().for_each(|index| self.consumed[index] = true);
            folded
        }))
    }

    /// What scales and shifts the stream at `site` of `layer`, and keeps it where a later op of the block reads it.
    pub(super) fn station(&mut self, stage: Stage, site: Site, layer: usize) -> Result<()> {
        self.scaled(stage, site, layer)?;
        self.hold(stage, site, layer);
        Ok(())
    }

    /// What scales and shifts the stream at `site` of `layer`.
    pub(super) fn scaled(&mut self, stage: Stage, site: Site, layer: usize) -> Result<()> {
        if let Some(op) = self.fold(site, Some(layer))? {
            let columns = panels_of([op.scale.len()]);
            let (scale, shift) = (rows(&columns, |n| op.scale[n]), rows(&columns, |n| op.shift[n]));
            self.push(stage, steps::ScaleShift { site, scale, shift });
        }
        Ok(())
    }

    /// Keeps the stream at `site` of `layer` where a later op of the block reads it.
    pub(super) fn hold(&mut self, stage: Stage, site: Site, layer: usize) {
        let mut ops = self.sites.ops().iter().filter(|op| op.layer == Some(layer));
        if ops.any(|op| matches!(&op.kind, OpKind::Bottleneck(kind) if kind.from == Some(site))) {
            self.push(stage, steps::Hold(site));
        }
    }

    /// The prompts of a layer, where they are not yet in the stream.
    pub(super) fn prompts(&mut self, layer: usize, dim: usize) -> Result<Option<Panels<f32>>> {
        let mut ops = self.sites.ops_at(Site::BlockIn, Some(layer));
        let new =
            |&(index, op): &(usize, &OpSpec)| matches!(op.kind, OpKind::Prompts(_)) && !self.consumed[index];
        let Some((index, op)) = ops.find(new) else {
            return Ok(None);
        };
        self.consumed[index] = true;
        let values = self.widened(self.get(&format!("{}.tokens", op.prefix(index)))?)?;
        let mut out = Panels::zeros(values.len() / dim, Panels::<f32>::needed(dim));
        for (row, token) in values.chunks_exact(dim).enumerate() {
            for (channel, &value) in token.iter().enumerate() {
                out.set(row, channel, value);
            }
        }
        Ok(Some(out))
    }

    /// Prompts as tokens of the stream: those that are narrower pass the map that the first of the model have.
    fn widened<'v>(&self, prompts: Cow<'v, [f32]>) -> Result<Cow<'v, [f32]>> {
        let Some((index, width)) =
            Prompts::first(self.sites).and_then(|(index, first)| Some((index, first.project?)))
        else {
            return Ok(prompts);
        };
        let prefix = self.sites.ops()[index].prefix(index);
        let weight = self.get(&format!("{prefix}.proj.weight"))?;
        let bias = self.get(&format!("{prefix}.proj.bias"))?;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let token = |prompt| {
            let rows = weight.chunks_exact(width).zip(bias.iter());
            rows.map(move |(row, bias)| dot(row, prompt) + bias)
        };
        Ok(prompts.chunks_exact(width).flat_map(token).collect())
    }

    /// What stays at `site` of `layer`, where values lie in panels as `columns` says: all that is not folded. Whether there
    /// is something.
    pub(super) fn kept(
        &mut self,
        stage: Stage,
        (site, layer): (Site, usize),
        operand: Option<Operand>,
        columns: &[Range<usize>],
    ) -> Result<bool> {
        let sites = self.sites;
        let mut ops = Vec::new();
        for (index, op) in sites.ops_at(site, Some(layer)) {
            if self.consumed[index] {
                continue;
            }
            let prefix = op.prefix(index);
            ops.push(match &op.kind {
                OpKind::ScaleShift(kind) => {
                    let op = Folded::of(kind, &prefix, self.tensors)?;
                    Op::ScaleShift(rows(columns, |n| op.scale[n]), rows(columns, |n| op.shift[n]))
                }
                OpKind::Bottleneck(kind) => {
                    Op::Bottleneck(Box::new(self.bottleneck(kind, &prefix, columns)?))
                }
                // These have steps of their own, or belong to one.
                OpKind::LowRank(_)
                | OpKind::Prompts(_)
                | OpKind::HeadMixing(_)
                | OpKind::RelativePositions(_)
                | OpKind::LocalConvolution(_)
                | OpKind::BipartiteMatching(_)
                | OpKind::AttentiveTokens(_)
                | OpKind::TokenPredictor(_)
                | OpKind::TokenSelector(_)
                | OpKind::GridMerging(_)
                | OpKind::StaticTokens(_) => continue,
            });
            self.consumed[index] = true;
        }
        let any = !ops.is_empty();
        if any {
            self.push(stage, steps::Ops { site, operand, ops });
        }
        Ok(any)
    }

    /// Whether something will stay at `site` of `layer` when what leads there is folded.
    pub(super) fn keeps(&self, site: Site, layer: usize) -> bool {
        let mut ops = self.sites.ops_at(site, Some(layer));
        ops.any(|(_, op)| !matches!(op.kind, OpKind::ScaleShift(_)))
    }

    fn bottleneck(&self, kind: &Bottleneck, prefix: &str, columns: &[Range<usize>]) -> Result<Narrow<T>> {
        let get = |end: &str| self.get(&format!("{prefix}.{end}"));
        let width = columns.last().map_or(0, |last| last.end);
        let norm = |place| -> Result<Option<NormRows>> {
            if kind.norm != Some(place) {
                return Ok(None);
            }
            let (gain, bias) = (get("norm.weight")?, get("norm.bias")?);
            Ok(Some(NormRows {
                gain: rows(columns, |n| gain[n]),
                bias: rows(columns, |n| bias[n]),
                eps: NORM_EPS as f32,
                dim: width,
            }))
        };
        let product = |weights: &[f32], inputs, columns: &[_], depths: &[_], outputs| Product {
            weights: Arc::new(Weights::pack(Format::Real, weights, inputs, columns, depths)),
            outputs,
            beside: None,
        };
        let hidden = panels_of([kind.hidden]);
        let (a, beta) = (get("down.bias")?, get("up.bias")?);
        let scale = if kind.learned_scale {
            get("scale")?[0]
        } else {
            kind.scale as f32
        };
        let up = kind.dense_up(&get("up.weight")?, width);
        Ok(Narrow {
            from: kind.from,
            before: norm(NormPlace::Before)?,
            down: product(
                &get("down.weight")?,
                width,
                &hidden,
                columns,
                Outputs::new(&hidden, |_| 1.0, |n| a[n]),
            ),
            activation: kind.activation,
            up: product(
                &up,
                kind.hidden,
                columns,
                &hidden,
                Outputs::new(columns, |_| scale, |n| scale * beta[n]),
            ),
            after: norm(NormPlace::After)?,
        })
    }

    /// Passes over the ops behind the last map, which do nothing to it.
    pub(super) fn pass_over(&mut self) {
        let depth = self.depth();
        for (op, consumed) in self.sites.ops().iter().zip(&mut self.consumed) {
            *consumed |= op
                .layer
                .map_or(op.site == Site::FinalNorm, |layer| layer >= depth);
        }
    }

    /// That every op of the model has found its place.
    pub(super) fn check(&self) -> Result<()> {
        let Some(index) = self.consumed.iter().position(|consumed| !consumed) else {
            return Ok(());
        };
        let op = &self.sites.ops()[index];
        let layer = op
            .layer
            .map_or(String::new(), |layer| format!(" of layer {layer}"));
        Err(Error::Unsupported(format!(
            "ops[{index}]: the engine has no step for `{}` at `{}`{layer}; use the network (`--engine burn`)",
            op.kind.name(),
            op.site
        )))
    }
}
