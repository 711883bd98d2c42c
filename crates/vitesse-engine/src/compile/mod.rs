//! From spec and tensors to a plan: weights packed, ops folded, rows that no one reads left out.
//!
//! The compiler walks the model once, in the order of the forward pass, and keeps account of the ops: each is folded or
//! becomes a step (or part of one), and a model with an op that is neither is refused.

mod block;
mod mixed;
mod ops;
mod projection;
mod swin;
mod tokens;
mod vit;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use vitesse_kernels::{Real, panels_of};
use vitesse_model::ops::OpKind;
use vitesse_model::site::Site;
use vitesse_model::spec::{FeatureMap, Projection, Transformer};
use vitesse_model::{ModelSpec, Sites, Tensors};

use crate::plan::{Placed, Plan, Step};
use crate::profile::Stage;
use crate::steps::{Heads, Take};
use crate::weights::{Format, NormRows, Outputs, Product, Weights, rows};
use crate::{Error, Result};
use ops::{Folded, folded};

/// In what numbers the weights of each projection are kept.
pub(crate) type Formats<'a> = &'a dyn Fn(&Projection) -> Format;

/// Reads tensors, packs them, and lists steps.
struct Compiler<'a, T: Real> {
    spec: &'a ModelSpec,
    /// Where ops, norms and matrices are, whatever the family.
    sites: &'a dyn Sites,
    /// What the sites do not say.
    body: Transformer<'a>,
    tensors: &'a Tensors,
    /// What is taken of the stream, in the order of the layers; nothing where the heads are computed.
    maps: &'a [FeatureMap],
    formats: Formats<'a>,
    /// Packed weights of projections by name: those that layers share are packed once.
    packed: HashMap<String, Arc<Weights<T>>>,
    /// Which ops have found their place.
    consumed: Vec<bool>,
    layer: Option<usize>,
    /// Whether only the tokens that are read in the end are still there.
    is_cut: bool,
    /// Whether tokens have merged by their keys, and whether attention counts them by their size since.
    merged: bool,
    counts_by_size: bool,
    /// How many patches each token stands for, once neighbours have merged.
    areas: Option<Vec<f32>>,
    steps: Vec<Placed<T>>,
}

impl<T: Real> Plan<T> {
    /// Compiles for what the heads say, or where there are `maps`, for those. `tensors` were checked against `spec`.
    pub(crate) fn new(
        spec: &ModelSpec,
        tensors: &Tensors,
        maps: &[FeatureMap],
        formats: Formats<'_>,
    ) -> Result<Plan<T>> {
        let body = spec.transformer().map_err(|_| {
            Error::Unsupported(format!(
                "the engine runs only vision transformers, and `{}` is another kind of network; run it with `--engine burn`",
                spec.architecture
            ))
        })?;
        let sites = spec.sites();
        let mut compiler = Compiler {
            spec,
            sites,
            body,
            tensors,
            maps,
            formats,
            packed: HashMap::new(),
            consumed: vec![false; sites.ops().len()],
            layer: None,
            is_cut: false,
            merged: false,
            counts_by_size: false,
            areas: None,
            steps: Vec::new(),
        };
        let [rows, width] = match body {
            Transformer::Vit(vit) => compiler.vit(vit)?,
            Transformer::Swin(swin) => compiler.swin(swin)?,
        };
        compiler.check()?;
        Ok(Plan {
            steps: compiler.steps,
            pixels: spec.input_size().iter().product(),
            tokens: sites.tokens_at(0),
            layers: sites.depth(),
            answers: match (maps.is_empty(), spec.num_classes) {
                (false, _) => [1, maps.iter().map(FeatureMap::numel).sum()],
                (true, 0) => [rows, width],
                (true, classes) => [spec.classifiers().len(), classes],
            },
        })
    }
}

impl<'a, T: Real> Compiler<'a, T> {
    fn push(&mut self, stage: Stage, step: impl Step<T> + 'static) {
        self.steps.push(Placed {
            layer: self.layer,
            stage,
            step: Box::new(step),
        });
    }

    /// How many layers are computed: all, or those up to the last map.
    fn depth(&self) -> usize {
        let last = self.maps.last();
        last.map_or(self.sites.depth(), |map| map.layer + 1)
    }

    /// The map after `layer`, where one is taken; of each row of the stream the position in the map that it is, or none.
    fn take(&mut self, layer: usize, positions: impl Iterator<Item = Option<usize>>) {
        let map = self.maps.iter().find(|map| map.layer == layer);
        if let Some(map) = map.cloned() {
            let positions = positions.collect();
            self.push(Stage::Head, Take { map, positions });
        }
    }

    fn get(&self, name: &str) -> Result<Cow<'a, [f32]>> {
        Ok(self.tensors.get(name)?.to_f32())
    }

    /// A norm of the stream with `op` after it.
    fn norm(&self, name: &str, op: Option<&Folded>) -> Result<NormRows> {
        let (gain, bias) = (
            self.get(&format!("{name}.weight"))?,
            self.get(&format!("{name}.bias"))?,
        );
        let columns = panels_of([gain.len()]);
        let (scale, shift) = folded(op);
        Ok(NormRows {
            gain: rows(&columns, |n| gain[n] * scale(n)),
            bias: rows(&columns, |n| bias[n] * scale(n) + shift(n)),
            eps: self.body.norm_eps() as f32,
            dim: gain.len(),
        })
    }

    /// The norm at `site` of `layer`, with what is folded after it.
    fn norm_at(&mut self, site: Site, layer: Option<usize>) -> Result<NormRows> {
        let op = self.fold(site, layer)?;
        let name = self.sites.norm(site, layer).ok_or_else(|| {
            Error::Unsupported(format!(
                "no norm stands at `{site}`, but something that reads one"
            ))
        })?;
        self.norm(&name, op.as_ref())
    }

    /// A linear layer outside of blocks, with `op` after it.
    fn linear(&self, name: &str, op: Option<&Folded>) -> Result<Product<T>> {
        let weights = self.tensors.get(&format!("{name}.weight"))?;
        self.product(name, &weights.to_f32(), weights.shape()[0], op)
    }

    /// The same with these weights.
    fn product(
        &self,
        name: &str,
        weights: &[f32],
        outputs: usize,
        op: Option<&Folded>,
    ) -> Result<Product<T>> {
        let inputs = weights.len() / outputs.max(1);
        let columns = panels_of([outputs]);
        let bias = self.bias(name)?;
        let (scale, shift) = folded(op);
        let depths = panels_of([inputs]);
        Ok(Product {
            weights: Arc::new(Weights::pack(Format::Real, weights, inputs, &columns, &depths)),
            outputs: Outputs::new(&columns, &scale, |n| bias(n) * scale(n) + shift(n)),
            beside: None,
        })
    }

    /// The bias of a linear layer; zeros where it has none.
    fn bias(&self, name: &str) -> Result<impl Fn(usize) -> f32 + use<'a, T>> {
        let name = format!("{name}.bias");
        let values = match self.tensors.contains(&name) {
            true => Some(self.tensors.get(&name)?.to_f32()),
            false => None,
        };
        Ok(move |n: usize| values.as_ref().map_or(0.0, |values| values[n]))
    }

    /// The product with the patches, into which low-rank updates are folded, and with `op` after it.
    fn embedding(&mut self, op: Option<&Folded>) -> Result<Product<T>> {
        let embedding = self.sites.embedding().ok_or_else(|| {
            Error::Unsupported("the model makes no tokens of patches, which the engine needs".into())
        })?;
        let mut weights = self.get(&format!("{}.weight", embedding.name))?;
        for (index, update) in self.sites.ops_at(Site::Embed, None) {
            let OpKind::LowRank(kind) = &update.kind else {
                continue;
            };
            let prefix = update.prefix(index);
            let (a, b) = (
                self.get(&format!("{prefix}.a"))?,
                self.get(&format!("{prefix}.b"))?,
            );
            let rows = weights.to_mut().chunks_exact_mut(embedding.inputs);
            for (row, b) in rows.zip(b.chunks_exact(kind.rank)) {
                for (b, a) in b.iter().zip(a.chunks_exact(embedding.inputs)) {
                    let factor = kind.factor() as f32 * b;
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
                }
            }
            self.consumed[index] = true;
        }
        self.product(&embedding.name, &weights, embedding.outputs, op)
    }

    /// The heads, which read rows of width `dim`.
    fn heads(&mut self, dim: usize) -> Result<()> {
        let names = if self.spec.num_classes > 0 {
            self.spec.classifiers()
        } else {
            Vec::new()
        };
        let heads = names.into_iter().map(|name| self.linear(name, None));
        let heads = Heads {
            heads: heads.collect::<Result<_>>()?,
            dim,
        };
        self.push(Stage::Head, heads);
        Ok(())
    }
}
