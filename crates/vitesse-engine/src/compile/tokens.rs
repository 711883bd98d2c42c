//! Ops that make tokens fewer, as steps.

use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::{Real, panels_of};
use vitesse_model::Site;
use vitesse_model::ops::{MergeValue, OpKind, SCORE_NORM_EPS};
use vitesse_model::spec::{LayerTokens, TokenSet};

use super::Compiler;
use crate::profile::Stage;
use crate::steps::{Attentions, Choose, Head, Match, Move, Predict, Rearrange, Regroup, ShowClass};
use crate::weights::{Format, NormRows, Outputs, Product, Weights, rows};
use crate::{Error, Result};

impl<T: Real> Compiler<'_, T> {
    /// The op that makes tokens fewer at `site` of `layer`, with its number.
    fn reducing(&self, site: Site, layer: usize) -> Option<(usize, &OpKind)> {
        let mut ops = self.sites.ops_at(site, Some(layer));
        let (index, op) = ops.find(|(_, op)| op.kind.reduces_tokens())?;
        Some((index, &op.kind))
    }

    /// A step for it. Where the tokens behind the first ones are gone already, nothing of it is seen (but a selector is refused in every layer). What is not known here stays
    /// to be refused; so are maps, into which merged tokens would have to be spread.
    pub(super) fn fewer(&mut self, site: Site, layer: usize, heads: Option<&Arc<[Head]>>) -> Result<()> {
        let found = self
            .reducing(site, layer)
            .map(|(index, kind)| (index, kind.clone()));
        let Some((index, kind)) = found.filter(|_| self.maps.is_empty()) else {
            return Ok(());
        };
        let Some(tokens) = self.sites.token_counts().get(layer).copied() else {
            return Ok(());
        };
        let LayerTokens {
            entering: met,
            attention,
            ..
        } = tokens;
        if self.is_cut {
            self.consumed[index] = !matches!(kind, OpKind::TokenSelector(_));
            return Ok(());
        }
        match (&kind, heads) {
            (OpKind::StaticTokens(kind), _) => {
                let kept = kind.keep.iter().map(|patch| met.prefix + patch);
                let kept = (0..met.prefix).chain(kept).collect();
                self.push(Stage::Tokens, Regroup::new(kept));
            }
            (OpKind::GridMerging(kind), _) => {
                let Some(grid) = met.grid else { return Ok(()) };
                let cells = kind.token_of_cell(grid);
                let before = self.areas.take().unwrap_or_else(|| vec![1.0; met.count()]);
                let weights = match kind.value {
                    MergeValue::Area => before.clone(),
                    MergeValue::Mean => vec![1.0; before.len()],
                };
                let places: Vec<usize> = (0..met.prefix)
                    .chain(cells.iter().map(|cell| met.prefix + cell))
                    .collect();
                let sums = |of: &[f32]| {
                    let mut sums = vec![0.0; attention.count()];
                    places.iter().zip(of).for_each(|(&place, x)| sums[place] += x);
                    sums
                };
                let (after, whole) = (sums(&before), sums(&weights));
                let moves = places.iter().zip(&weights).enumerate();
                let moves = moves.map(|(token, (&place, weight))| Move {
                    token: token as u32,
                    place: place as u32,
                    weight: weight / whole[place],
                });
                let step = Rearrange {
                    moves: moves.collect(),
                    count: attention.count(),
                    sizes: after.clone(),
                };
                self.areas = Some(after);
                self.push(Stage::Tokens, step);
            }
            (OpKind::BipartiteMatching(kind), Some(heads)) => {
                let step = Match {
                    heads: Arc::clone(heads),
                    tokens: attention.count(),
                    prefix: attention.prefix,
                    r: kind.r,
                    first: !self.merged,
                };
                self.merged = true;
                self.counts_by_size = kind.proportional;
                self.push(Stage::Tokens, step);
            }
            (OpKind::AttentiveTokens(kind), Some(heads)) => {
                let kept = kind.kept(attention.behind_prefix());
                if kept < attention.behind_prefix() {
                    let step = Choose {
                        heads: heads.len(),
                        tokens: attention.count(),
                        prefix: attention.prefix,
                        kept,
                        fuse: kind.fuse,
                    };
                    self.push(Stage::Tokens, step);
                }
            }
            (OpKind::TokenPredictor(_), _) => {
                if attention.count() < met.count() {
                    let prefix = self.sites.ops()[index].prefix(index);
                    let step = self.predictor(&prefix, met, attention)?;
                    self.push(Stage::Tokens, step);
                }
            }
            _ => return Ok(()),
        }
        self.consumed[index] = true;
        Ok(())
    }

    /// A predictor, whose tensors begin with `prefix`, that leaves `left` of `met`.
    fn predictor(&self, prefix: &str, met: TokenSet, left: TokenSet) -> Result<Predict<T>> {
        let get = |end: &str| self.get(&format!("{prefix}.{end}"));
        let (gain, shift) = (get("in_conv.0.weight")?, get("in_conv.0.bias")?);
        let (width, half, quarter) = (gain.len(), gain.len() / 2, gain.len() / 4);
        let stream = panels_of([width]);
        let product = |weights: &[f32], bias: &[f32], depths: &[Range<usize>]| {
            let columns = panels_of([bias.len()]);
            let inputs = weights.len() / bias.len().max(1);
            Product {
                weights: Arc::new(Weights::pack(Format::Real, weights, inputs, &columns, depths)),
                outputs: Outputs::new(&columns, |_| 1.0, |n| bias[n]),
                beside: None,
            }
        };
        let (first, first_bias) = (get("in_conv.1.weight")?, get("in_conv.1.bias")?);
        let (local, global) = first.split_at(half * width);
        let (local_bias, global_bias) = first_bias.split_at(half);
        // The local half and the mean stand beside each other, each in panels of its own.
        let joined = panels_of([half, width - half]);
        let linear = |name: &str, depths: &[Range<usize>]| -> Result<Product<T>> {
            let (weight, bias) = (get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?);
            Ok(product(&weight, &bias, depths))
        };
        Ok(Predict {
            norm: NormRows {
                gain: rows(&stream, |n| gain[n]),
                bias: rows(&stream, |n| shift[n]),
                eps: SCORE_NORM_EPS as f32,
                dim: width,
            },
            halves: [
                product(local, local_bias, &stream),
                product(global, global_bias, &stream),
            ],
            narrow: [
                linear("out_conv.0", &joined)?,
                linear("out_conv.2", &panels_of([half]))?,
            ],
            last: linear("out_conv.4", &panels_of([quarter]))?,
            prefix: met.prefix,
            patches: met.patches,
            kept: left.patches,
        })
    }

    /// Whether a layer chooses tokens by what the class token attends to.
    pub(super) fn chooses(&self, layer: usize) -> bool {
        let found = self.reducing(Site::Mid, layer);
        matches!(found, Some((_, OpKind::AttentiveTokens(_)))) && !self.is_cut && self.maps.is_empty()
    }

    /// Before the meeting at which keys are shown.
    pub(super) fn show_class(&mut self, layer: usize, heads: &Arc<[Head]>) {
        if self.chooses(layer) {
            let heads = Arc::clone(heads);
            self.push(Stage::Tokens, ShowClass { heads });
        }
    }

    /// After it.
    pub(super) fn attentions(&mut self, layer: usize, heads: &Arc<[Head]>) -> Result<()> {
        if (self.chooses(layer) || self.counts_by_size) && self.changes_maps(layer) {
            return Err(Error::Unsupported(format!(
                "layer {layer}: the engine has no step for ops at attention maps where tokens become fewer by attention, or are counted by \
                 their size; use the network (`--engine burn`)"
            )));
        }
        if self.chooses(layer) {
            let heads = Arc::clone(heads);
            self.push(Stage::Tokens, Attentions { heads });
        }
        Ok(())
    }
}
