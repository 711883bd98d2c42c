//! Ops at attention maps, and local convolutions.

use std::sync::Arc;

use vitesse_kernels::{MOST_BUCKETS, PairBuckets, Real, panels_of};
use vitesse_model::ops::relative_positions::{Method, Mode};
use vitesse_model::ops::{HeadMixing, NORM_EPS, OpKind, QkvPart, RelativePositions};
use vitesse_model::site::Site;
use vitesse_model::spec::{AttentionSpec, Windows};

use super::Compiler;
use crate::profile::Stage;
use crate::steps::{AttendMixed, Buckets, Head, Local, masks, padded};
use crate::weights::{NormRows, rows};
use crate::{Error, Result};

impl<T: Real> Compiler<'_, T> {
    /// Whether something stands at the attention maps of a layer.
    pub(super) fn changes_maps(&self, layer: usize) -> bool {
        let mut ops = [Site::AttnLogits, Site::AttnProbs]
            .into_iter()
            .flat_map(|site| self.sites.ops_at(site, Some(layer)));
        ops.next().is_some()
    }

    /// The attention of a layer whose maps ops change. What is not known here stays to be refused.
    pub(super) fn mixed(
        &mut self,
        layer: usize,
        spec: &AttentionSpec,
        windows: Option<&Windows>,
        (heads, panels): (Arc<[Head]>, usize),
    ) -> Result<AttendMixed<T>> {
        let area = windows.map_or(self.sites.tokens_at(layer), Windows::area);
        let stride = area.next_multiple_of(32);
        let mut attend = AttendMixed {
            panels,
            area,
            stride,
            kinds: vec![0; windows.map_or(1, Windows::count)],
            masks: Vec::new(),
            bias: None,
            buckets: None,
            before: None,
            after: None,
            heads,
        };
        if let Some(windows) = windows {
            let (table, relative, heads) = (self.window_table(layer)?, windows.relative(), spec.num_heads());
            let bias = |head| padded(area, stride, 0.0, |pair| table[relative[pair] * heads + head]);
            attend.bias = Some((0..heads).map(bias).collect());
            let (kinds, masks) = masks(windows);
            attend.kinds = kinds;
            let mask = |mask: &Vec<f32>| padded(area, stride, 0.0, |pair| mask[pair]);
            attend.masks = masks.iter().map(mask).collect();
        }
        for (index, op) in self.sites.ops_at(Site::AttnLogits, Some(layer)) {
            let prefix = op.prefix(index);
            match &op.kind {
                OpKind::RelativePositions(positions)
                    if attend.before.is_none() && attend.buckets.is_none() && reads_keys(positions) =>
                {
                    attend.buckets = Some(self.buckets(positions, &prefix, layer)?);
                }
                OpKind::HeadMixing(mixing) if attend.before.is_none() => {
                    attend.before = Some(self.mixing(mixing, &prefix, spec.num_heads())?);
                }
                _ => continue,
            }
            self.consumed[index] = true;
        }
        for (index, op) in self.sites.ops_at(Site::AttnProbs, Some(layer)) {
            if let (OpKind::HeadMixing(mixing), None) = (&op.kind, &attend.after) {
                attend.after = Some(self.mixing(mixing, &op.prefix(index), spec.num_heads())?);
                self.consumed[index] = true;
            }
        }
        Ok(attend)
    }

    /// `[heads + 1, heads]`
    fn mixing(&self, mixing: &HeadMixing, prefix: &str, heads: usize) -> Result<Vec<f32>> {
        // `[results, heads]`
        let weight = self.get(&format!("{prefix}.weight"))?;
        let bias = match mixing.bias {
            true => self.get(&format!("{prefix}.bias"))?.into_owned(),
            false => vec![0.0; heads],
        };
        let pairs = (0..heads).flat_map(|head| (0..heads).map(move |result| result * heads + head));
        Ok(pairs.map(|pair| weight[pair]).chain(bias).collect())
    }

    fn buckets(&self, positions: &RelativePositions, prefix: &str, layer: usize) -> Result<Buckets<T>> {
        let grid = self.sites.grid_at(layer).unwrap_or([0; 2]);
        let mut tables = positions.tables(grid);
        let Some((end, buckets)) = tables.pop() else {
            return Err(Error::Unsupported(format!(
                "relative positions of layer {layer} have no table"
            )));
        };
        let values = self.tensors.get(&format!("{prefix}.{end}"))?;
        let (shape, values) = (values.shape().to_vec(), values.to_f32());
        let &[_, width, count] = &shape[..] else {
            return Err(Error::Unsupported(format!(
                "`{prefix}.{end}` should have three dimensions, but has shape {shape:?}"
            )));
        };
        let table = |table: &[f32]| {
            // A row for each bucket.
            let turned: Vec<f32> = (0..count)
                .flat_map(|bucket| (0..width).map(move |channel| table[channel * count + bucket]))
                .collect();
            let row = |bucket: usize| &turned[bucket * width..(bucket + 1) * width];
            T::pack(&row, &panels_of([count]), &panels_of([width]))
        };
        let (tokens, patches) = (self.sites.tokens_at(layer), grid[0] * grid[1]);
        let pairs = buckets.pairs(tokens - patches, 0);
        Ok(Buckets {
            tables: values.chunks_exact(width * count).map(table).collect(),
            pairs: PairBuckets::new(count, &pairs, tokens),
        })
    }

    /// The local convolution between the sub-layers of a layer, where one is next.
    pub(super) fn local(&mut self, layer: usize, windows: Option<&Windows>) -> Result<()> {
        let mut ops = self.sites.ops_at(Site::Mid, Some(layer));
        let next = ops.find(|(index, _)| !self.consumed[*index]);
        let Some((index, kind, prefix)) = next.and_then(|(index, op)| match &op.kind {
            OpKind::LocalConvolution(kind) if kind.norm && kind.residual => {
                Some((index, kind, op.prefix(index)))
            }
            _ => None,
        }) else {
            return Ok(());
        };
        let columns = panels_of([self.body.dim(layer)]);
        let get = |end: &str| self.get(&format!("{prefix}.{end}"));
        let (gain, shift) = (get("norm.weight")?, get("norm.bias")?);
        let (weight, bias) = (get("conv.weight")?, get("conv.bias")?);
        let taps = kind.kernel * kind.kernel;
        let weights = columns.iter().map(|columns| {
            let tap = |tap| {
                let of = |channel: usize| weight[channel * taps + tap];
                rows(std::slice::from_ref(columns), of)
            };
            (0..taps).flat_map(tap).collect()
        });
        let grid = self.sites.grid_at(layer).unwrap_or([0; 2]);
        let (tokens, patches) = (self.sites.tokens_at(layer), grid[0] * grid[1]);
        // Which patch each token of the stream is.
        let order = match windows {
            Some(windows) => windows.tokens(),
            None => (0..tokens)
                .map(|token| token.checked_sub(tokens - patches))
                .collect(),
        };
        let step = Local {
            norm: NormRows {
                gain: rows(&columns, |n| gain[n]),
                bias: rows(&columns, |n| shift[n]),
                eps: NORM_EPS as f32,
                dim: gain.len(),
            },
            weights: weights.collect(),
            bias: rows(&columns, |n| bias[n]),
            neighbours: neighbours(&order, grid, kind.kernel),
            apart: (0..order.len()).filter(|&token| order[token].is_none()).collect(),
            tokens: order.len(),
        };
        self.consumed[index] = true;
        self.push(Stage::Fc1, step);
        Ok(())
    }

    /// Whether patches of a layer see those beside them.
    pub(super) fn convolves(&self, layer: usize) -> bool {
        let mut ops = self.sites.ops_at(Site::Mid, Some(layer));
        ops.any(|(_, op)| matches!(op.kind, OpKind::LocalConvolution(_)))
    }

    /// Whether tokens still need each other behind the attention of a layer, or of a later one.
    pub(super) fn looks_around(&self, layer: usize) -> bool {
        let mut ops = self.sites.ops().iter().filter(|op| op.layer >= Some(layer));
        ops.any(|op| matches!(op.kind, OpKind::LocalConvolution(_)))
    }
}

/// Whether one product of queries with a table is all that these need.
fn reads_keys(positions: &RelativePositions) -> bool {
    positions.method != Method::Cross
        && positions.of == QkvPart::K
        && positions.mode == Mode::Contextual
        && positions.count() <= MOST_BUCKETS
}

/// Which token of the stream each tap of each token reads; the number of tokens where it reads past the map, or is no patch itself.
fn neighbours(order: &[Option<usize>], [height, width]: [usize; 2], kernel: usize) -> Vec<u32> {
    let none = order.len() as u32;
    let mut at = vec![none; height * width];
    for (token, patch) in order.iter().enumerate() {
        if let Some(to) = patch.and_then(|patch| at.get_mut(patch)) {
            *to = token as u32;
        }
    }
    let reach = kernel / 2;
    let tap = |patch: Option<usize>, tap: usize| {
        let patch = patch?;
        let y = (patch / width + tap / kernel).checked_sub(reach)?;
        let x = (patch % width + tap % kernel).checked_sub(reach)?;
        (y < height && x < width).then(|| at[y * width + x])
    };
    let taps = order
        .iter()
        .flat_map(|&patch| (0..kernel * kernel).map(move |number| (patch, number)));
    taps.map(|(patch, number)| tap(patch, number).unwrap_or(none))
        .collect()
}
