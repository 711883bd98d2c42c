//! The projections of blocks: their weights, the number format of these, and low-rank updates on them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::{Real, panels_of};
use vitesse_model::ops::OpKind;
use vitesse_model::site::Site;
use vitesse_model::spec::Projection;

use super::Compiler;
use crate::weights::{Format, Outputs, Product, Weights};
use crate::{Error, Result};

/// The most products of 8-bit integers whose sum surely fits 32 bits.
const MOST_INT8: usize = 1 << 16;

/// How a projection's weights lie.
pub(super) struct Shape<'a> {
    /// Outputs of each panel.
    pub(super) columns: &'a [Range<usize>],
    /// Inputs of each panel of the operand.
    pub(super) depths: &'a [Range<usize>],
    /// Which output each row of the tensor is, of so many, where the tensor has only some; the others are zero.
    pub(super) rows: Option<(&'a [usize], usize)>,
}

impl<T: Real> Compiler<'_, T> {
    /// The projection at `site` of `layer`, with the low-rank updates on it beside its weights, and with `outputs` after it.
    pub(super) fn projection(
        &mut self,
        site: Site,
        layer: usize,
        shape: &Shape<'_>,
        outputs: Outputs,
    ) -> Result<Product<T>> {
        let projection = self.at(site, layer)?;
        let updates: Vec<_> = self
            .sites
            .ops_at(site, Some(layer))
            .filter_map(|(index, op)| match &op.kind {
                OpKind::LowRank(kind) => Some((
                    index,
                    op.prefix(index),
                    kind,
                    kind.ranges(site, layer, self.sites),
                )),
                _ => None,
            })
            .collect();
        if updates.is_empty() {
            if let Some(shared) = self.packed.get(&projection.name) {
                return Ok(Product {
                    weights: Arc::clone(shared),
                    outputs,
                    beside: None,
                });
            }
            let weights = self.get(&format!("{}.weight", projection.name))?;
            let weights = self.pack(&projection, &weights, projection.inputs, shape, shape.depths)?;
            self.packed.insert(projection.name, Arc::clone(&weights));
            return Ok(Product {
                weights,
                outputs,
                beside: None,
            });
        }
        let weights = self.get(&format!("{}.weight", projection.name))?;
        let inputs = projection.inputs;
        let rank: usize = updates
            .iter()
            .map(|(_, _, kind, ranges)| kind.rank * ranges.len())
            .sum();
        let width = inputs + rank;
        let mut wide = vec![0.0; projection.outputs * width];
        for (to, from) in wide.chunks_exact_mut(width).zip(weights.chunks_exact(inputs)) {
            to[..inputs].copy_from_slice(from);
        }
        let (mut a, mut at) = (Vec::with_capacity(rank * inputs), inputs);
        for (_, prefix, kind, ranges) in &updates {
            a.extend_from_slice(&self.get(&format!("{prefix}.a"))?);
            let b = self.get(&format!("{prefix}.b"))?;
            let mut rows = b.chunks_exact(kind.rank);
            for &(first, count) in ranges {
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
        let down = Product {
            weights: Arc::new(Weights::pack(Format::Real, &a, inputs, &columns, shape.depths)),
            outputs: Outputs::new(&columns, |_| 1.0, |_| 0.0),
            beside: None,
        };
        let more = columns
            .iter()
            .map(|range| range.start + inputs..range.end + inputs);
        let depths: Vec<_> = shape.depths.iter().cloned().chain(more).collect();
        let weights = self.pack(&projection, &wide, width, shape, &depths)?;
        for (index, ..) in updates {
            self.consumed[index] = true;
        }
        Ok(Product {
            weights,
            outputs,
            beside: Some(Box::new(down)),
        })
    }

    fn at(&self, site: Site, layer: usize) -> Result<Projection> {
        self.sites.projection(site, layer).ok_or_else(|| {
            Error::Unsupported(format!(
                "layer {layer} has no `{site}`, but a sub-layer that needs it"
            ))
        })
    }

    /// The prefix of a projection's tensors.
    pub(super) fn name(&self, site: Site, layer: usize) -> Result<String> {
        Ok(self.at(site, layer)?.name)
    }

    /// Packs weights, one row of `width` for each output, in the format of the projection.
    fn pack(
        &self,
        projection: &Projection,
        weights: &[f32],
        width: usize,
        shape: &Shape<'_>,
        depths: &[Range<usize>],
    ) -> Result<Arc<Weights<T>>> {
        let format = (self.formats)(projection);
        if format == Format::Int8 && width > MOST_INT8 {
            return Err(Error::Unsupported(format!(
                "{} sums {width} products; in 8 bits the engine can sum {MOST_INT8}, so use `bf16` or `f32`",
                projection.name
            )));
        }
        let weights = match shape.rows {
            None => Cow::Borrowed(weights),
            Some((rows, all)) => {
                let mut whole = vec![0.0; all * width];
                for (&row, from) in rows.iter().zip(weights.chunks_exact(width)) {
                    whole[row * width..][..width].copy_from_slice(from);
                }
                Cow::Owned(whole)
            }
        };
        Ok(Arc::new(Weights::pack(
            format,
            &weights,
            width,
            shape.columns,
            depths,
        )))
    }
}
