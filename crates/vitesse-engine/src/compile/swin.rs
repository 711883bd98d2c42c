//! Swin: the order of the stream from layer to layer, patch merging, the mean at the end.

use std::borrow::Cow;

use vitesse_kernels::{Panels, Real};
use vitesse_model::Site;
use vitesse_model::spec::{SwinSpec, Windows};

use super::Compiler;
use crate::Result;
use crate::profile::Stage;
use crate::steps::{Arrange, Embed, Mean, Merge, NormStream, Order, WindowBias};

/// The token of the map in each row of the stream; `None` where the map is filled up.
type Rows = Vec<Option<usize>>;

impl<'a, T: Real> Compiler<'a, T> {
    /// All steps; the rows that are left for the head, and their width.
    pub(super) fn swin(&mut self, swin: &SwinSpec) -> Result<[usize; 2]> {
        let op = self.fold(Site::PatchOut, None)?;
        let patches = self.sites.tokens_at(0);
        let embed = Embed {
            image: self.spec.input_size(),
            side: swin.patch_size,
            prefix: 0,
            start: Panels::zeros(patches, Panels::<f32>::needed(swin.embed_dim)),
            product: self.embedding(op.as_ref())?,
        };
        self.push(Stage::Embed, embed);
        let norm = self.norm_at(Site::PatchNorm, None)?;
        self.push(Stage::Embed, NormStream(norm));

        let mut rows: Rows = (0..patches).map(Some).collect();
        // A perceptron takes tokens in any order.
        let attends = |layer| swin.block(layer).is_some_and(|block| block.attn.is_some());
        let ordered: Vec<bool> = (0..self.depth())
            .map(|layer| attends(layer) || self.convolves(layer))
            .collect();
        for layer in 0..self.depth() {
            let (Some(place), Some(windows)) = (swin.place(layer), swin.windows(layer)) else {
                continue;
            };
            self.layer = Some(layer);
            let wanted = windows.tokens();
            if place.stage > 0 && place.within == 0 {
                // Into the order that its first attention or convolution wants.
                let of_stage = layer..swin.first_layer(place.stage + 1);
                let first = of_stage.into_iter().find(|&layer| ordered[layer]);
                let windows = first.and_then(|layer| swin.windows(layer)).unwrap_or(windows);
                self.merge(swin, place.stage, &rows, &windows)?;
                rows = windows.tokens();
            } else if wanted != rows && ordered[layer] {
                let dim = swin.stage_dim(place.stage);
                let order = order(&rows, wanted.iter().copied(), windows.area());
                self.push(Stage::Qkv, Arrange { order, dim });
                rows = wanted;
            }
            self.block(layer, None, Some(&windows))?;
            self.take(layer, rows.iter().copied());
        }
        self.layer = None;
        let dim = swin.stage_dim(swin.stages().saturating_sub(1));
        if !self.maps.is_empty() {
            self.pass_over();
            return Ok([1, dim]);
        }
        if rows.contains(&None) {
            // The mean is that of the map.
            let tokens = self.sites.tokens_at(self.sites.depth());
            let order = order(&rows, (0..tokens).map(Some), 1);
            self.push(Stage::Head, Arrange { order, dim });
        }
        let norm = self.norm_at(Site::FinalNorm, None)?;
        self.push(Stage::Head, NormStream(norm));
        self.push(
            Stage::Head,
            Mean {
                prefix: 0,
                tail: 0,
                dim,
                by_size: false,
            },
        );
        self.heads(dim)?;
        Ok([1, dim])
    }

    /// Patch merging before a stage, whose tokens come out in the order of its first windows.
    fn merge(&mut self, swin: &SwinSpec, stage: usize, rows: &Rows, windows: &Windows) -> Result<()> {
        let merged = swin.merged_tokens(stage);
        let four = windows
            .tokens()
            .into_iter()
            .flat_map(|token| (0..4).map(move |part| token.map(|token| 4 * token + part)));
        let four: Vec<Option<usize>> = four.map(|at| Some(merged[at?])).collect();
        let norm = self.norm_at(Site::MergeIn, Some(swin.first_layer(stage)))?;
        let step = Merge {
            order: Order::new(places(rows, four.into_iter()), 4, windows.area()),
            dim: swin.stage_dim(stage - 1),
            norm,
            product: self.linear(&format!("layers.{stage}.downsample.reduction"), None)?,
        };
        self.push(Stage::Embed, step);
        Ok(())
    }

    /// What is added to the logits of a layer.
    pub(super) fn window_bias(&self, layer: usize, windows: &Windows, heads: usize) -> Result<WindowBias> {
        Ok(WindowBias::new(windows, &self.window_table(layer)?, heads))
    }

    /// The table of relative positions of a layer, `[offsets, heads]`.
    pub(super) fn window_table(&self, layer: usize) -> Result<Cow<'a, [f32]>> {
        let table = self.body.core(layer).and_then(|core| self.body.bias_table(core));
        self.get(&table.unwrap_or_default())
    }
}

fn order(rows: &Rows, wanted: impl Iterator<Item = Option<usize>>, unit: usize) -> Order {
    Order::new(places(rows, wanted), 1, unit)
}

/// In which row each wanted token stands.
fn places(rows: &Rows, wanted: impl Iterator<Item = Option<usize>>) -> Vec<Option<usize>> {
    let mut row_of = vec![None; rows.len()];
    for (row, token) in rows.iter().enumerate() {
        if let Some(to) = token.and_then(|token| row_of.get_mut(token)) {
            *to = Some(row);
        }
    }
    wanted
        .map(|token| row_of.get(token?).copied().flatten())
        .collect()
}
