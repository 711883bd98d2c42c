//! What becomes of the ops that stay; see [`crate::kept`] for what they do.

use std::borrow::Cow;
use std::ops::Range;

use vitesse_kernels::{Panels, Real, panels_of};
use vitesse_model::ops::{NORM_EPS, NormPlace, OpKind};
use vitesse_model::site::Site;

use super::{AffineRows, Compiler, Dense, NormRows};
use crate::Result;
use crate::kept::{Narrow, Step};
use crate::ops::{Affine, rows};

/// A projection's weights, perhaps with those of more inputs beside them.
pub(super) struct Beside<'a, T: Real> {
    /// `[outputs, inputs]`
    pub(super) weights: Cow<'a, [f32]>,
    pub(super) inputs: usize,
    pub(super) depths: Vec<Range<usize>>,
    /// What makes the inputs beside the projection's own.
    pub(super) down: Option<Dense<T>>,
}

impl Compiler<'_> {
    /// The weights of the projection `name`, whose inputs lie in panels as `depths` says, with the low-rank updates at
    /// `site` of `layer` beside them: `[W | s·B]`.
    pub(super) fn beside<T: Real>(
        &self,
        name: &str,
        inputs: usize,
        depths: Vec<Range<usize>>,
        (site, layer): (Site, Option<usize>),
    ) -> Result<Beside<'_, T>> {
        let weights = self.get(&format!("{name}.weight"))?;
        let mut updates = Vec::new();
        for (index, op) in layer
            .into_iter()
            .flat_map(|layer| self.sites.ops_at(site, Some(layer)))
        {
            if let (OpKind::LowRank(kind), Some(layer)) = (&op.kind, op.layer) {
                updates.push((op.prefix(index), kind, kind.ranges(site, layer, self.sites)));
            }
        }
        if updates.is_empty() {
            return Ok(Beside {
                weights,
                inputs,
                depths,
                down: None,
            });
        }
        let rank: usize = updates
            .iter()
            .map(|(_, kind, ranges)| kind.rank * ranges.len())
            .sum();
        let (outputs, width) = (weights.len() / inputs, inputs + rank);
        let mut wide = vec![0.0; outputs * width];
        for (to, from) in wide.chunks_exact_mut(width).zip(weights.chunks_exact(inputs)) {
            to[..inputs].copy_from_slice(from);
        }
        let (mut a, mut at) = (Vec::with_capacity(rank * inputs), inputs);
        for (prefix, kind, ranges) in updates {
            a.extend_from_slice(&self.get(&format!("{prefix}.a"))?);
            let b = self.get(&format!("{prefix}.b"))?;
            let mut rows = b.chunks_exact(kind.rank);
            for (first, count) in ranges {
                for (output, row) in (first..first + count).zip(rows.by_ref()) {
                    let to = &mut wide[output * width + at..][..kind.rank];
                    for (to, b) in to.iter_mut().zip(row) {
                        *to = kind.factor() as f32 * b;
                    }
                }
                at += kind.rank;
            }
        }
        let columns = panels_of([rank]);
        let down = Dense {
            weights: Self::pack(&a, inputs, &columns, &depths),
            affine: AffineRows::new(&columns, |_| 1.0, |_| 0.0),
        };
        let more = panels_of([rank])
            .into_iter()
            .map(|range| range.start + inputs..range.end + inputs);
        Ok(Beside {
            weights: Cow::Owned(wide),
            inputs: width,
            depths: depths.into_iter().chain(more).collect(),
            down: Some(down),
        })
    }

    /// The prompts of a layer.
    pub(super) fn prompts(&self, layer: usize) -> Result<Option<Panels<f32>>> {
        let mut ops = self.sites.ops_at(Site::BlockIn, Some(layer));
        let Some((index, op)) = ops.find(|(_, op)| matches!(op.kind, OpKind::Prompts(_))) else {
            return Ok(None);
        };
        let (values, dim) = (
            self.get(&format!("{}.tokens", op.prefix(index)))?,
            self.vit.embed_dim,
        );
        let mut out = Panels::zeros(values.len() / dim, Panels::<f32>::needed(dim));
        for (row, token) in values.chunks_exact(dim).enumerate() {
            for (channel, &value) in token.iter().enumerate() {
                out.set(row, channel, value);
            }
        }
        Ok(Some(out))
    }

    /// What stays at `site` of `layer`, where values lie in panels as `columns` says: everything from the first op on that
    /// does not just scale and shift.
    pub(super) fn kept<T: Real>(
        &self,
        site: Site,
        layer: usize,
        columns: &[Range<usize>],
    ) -> Result<Vec<Step<T>>> {
        let ops = self.sites.ops_at(site, Some(layer));
        let rest = ops.skip_while(|(_, op)| matches!(op.kind, OpKind::ScaleShift(_)));
        let mut steps = Vec::new();
        for (index, op) in rest {
            let prefix = op.prefix(index);
            match &op.kind {
                OpKind::ScaleShift(kind) => {
                    let affine = Affine::of(kind, &prefix, self.tensors)?;
                    steps.push(Step::ScaleShift(
                        rows(columns, |n| affine.scale[n]),
                        rows(columns, |n| affine.shift[n]),
                    ));
                }
                OpKind::Bottleneck(kind) => {
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
                    let hidden = panels_of([kind.hidden]);
                    let (a, beta, grouped) = (get("down.bias")?, get("up.bias")?, get("up.weight")?);
                    let scale = if kind.learned_scale {
                        get("scale")?[0]
                    } else {
                        kind.scale as f32
                    };
                    let each = kind.hidden / kind.groups;
                    let mut up = vec![0.0; width * kind.hidden];
                    for (c, row) in up.chunks_exact_mut(kind.hidden).enumerate() {
                        let first = c * kind.groups / width * each;
                        row[first..first + each].copy_from_slice(&grouped[c * each..][..each]);
                    }
                    steps.push(Step::Bottleneck(Box::new(Narrow {
                        from: kind.from,
                        before: norm(NormPlace::Before)?,
                        down: Dense {
                            weights: Self::pack(&get("down.weight")?, width, &hidden, columns),
                            affine: AffineRows::new(&hidden, |_| 1.0, |n| a[n]),
                        },
                        activation: kind.activation,
                        up: Dense {
                            weights: Self::pack(&up, kind.hidden, columns, &hidden),
                            affine: AffineRows::new(columns, |_| scale, |n| scale * beta[n]),
                        },
                        after: norm(NormPlace::After)?,
                    })));
                }
                // Neither can stand there.
                OpKind::LowRank(_) | OpKind::Prompts(_) => {}
            }
        }
        Ok(steps)
    }
}
