//! Ops that make tokens fewer, as steps.

use std::sync::Arc;

use vitesse_kernels::Real;
use vitesse_model::Site;
use vitesse_model::ops::{MergeValue, OpKind};
use vitesse_model::spec::LayerTokens;

use super::Compiler;
use crate::profile::Stage;
use crate::steps::{Attentions, Choose, Head, Match, Move, Rearrange, Regroup, ShowClass};
use crate::{Error, Result};

impl<T: Real> Compiler<'_, T> {
    /// The op that makes tokens fewer at `site` of `layer`, with its number.
    fn reducing(&self, site: Site, layer: usize) -> Option<(usize, &OpKind)> {
        let mut ops = self.sites.ops_at(site, Some(layer));
        let (index, op) = ops.find(|(_, op)| op.kind.reduces_tokens())?;
        Some((index, &op.kind))
    }

    /// A step for it. Where the tokens behind the first ones are gone already, nothing of it is seen. What is not known here stays
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
            perceptron,
        } = tokens;
        if self.is_cut {
            let known = !matches!(kind, OpKind::TokenPredictor(_) | OpKind::TokenSelector(_));
            self.consumed[index] = known;
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
                let by_size = kind.value == MergeValue::Area;
                let before = match self.areas.take() {
                    Some(areas) if by_size => areas,
                    _ => vec![1.0; met.count()],
                };
                let places: Vec<usize> = (0..met.prefix)
                    .chain(cells.iter().map(|cell| met.prefix + cell))
                    .collect();
                let mut after = vec![0.0; attention.count()];
                for (place, size) in places.iter().zip(&before) {
                    after[*place] += size;
                }
                let moves = places.iter().zip(&before).enumerate();
                let moves = moves.map(|(token, (&place, size))| Move {
                    token: token as u32,
                    place: place as u32,
                    weight: size / after[place],
                });
                let step = Rearrange {
                    moves: moves.collect(),
                    count: attention.count(),
                    sizes: if by_size { after.clone() } else { Vec::new() },
                };
                self.areas = by_size.then_some(after);
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
                if perceptron.count() < attention.count() {
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
            _ => return Ok(()),
        }
        self.consumed[index] = true;
        Ok(())
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
