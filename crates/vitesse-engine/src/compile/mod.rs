//! From spec and tensors to a plan: weights packed, ops folded, rows that no one reads left out.
//!
//! The compiler walks the model once, in the order of the forward pass, and keeps account of the ops: each is folded or
//! becomes a step (or part of one), and a model with an op that is neither is refused.

mod block;
mod ops;
mod projection;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use vitesse_kernels::{Panels, Real, panels_of};
use vitesse_model::ops::OpKind;
use vitesse_model::site::Site;
use vitesse_model::spec::{Pool, PrefixToken, Projection, VitSpec};
use vitesse_model::{ModelSpec, Sites, Tensors};

use crate::plan::{Placed, Plan, Step};
use crate::profile::Stage;
use crate::steps::{Embed, Heads, Mean, NormStream, Regroup};
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
    /// What the sites do not say: tokens, pooling, heads.
    vit: &'a VitSpec,
    tensors: &'a Tensors,
    formats: Formats<'a>,
    /// Packed weights of projections by name: those that layers share are packed once.
    packed: HashMap<String, Arc<Weights<T>>>,
    /// Which ops have found their place.
    consumed: Vec<bool>,
    layer: Option<usize>,
    steps: Vec<Placed<T>>,
}

impl<T: Real> Plan<T> {
    /// Compiles. `tensors` were checked against `spec`.
    pub(crate) fn new(spec: &ModelSpec, tensors: &Tensors, formats: Formats<'_>) -> Result<Plan<T>> {
        let vit = spec.vit().map_err(|_| {
            Error::Unsupported(format!(
                "the engine runs only vision transformers, and `{}` is another kind of network; run it with `--engine burn`",
                spec.architecture
            ))
        })?;
        let sites = spec.sites();
        let mut compiler = Compiler {
            spec,
            sites,
            vit,
            tensors,
            formats,
            packed: HashMap::new(),
            consumed: vec![false; sites.ops().len()],
            layer: None,
            steps: Vec::new(),
        };
        compiler.model()?;
        let read = compiler.read();
        Ok(Plan {
            steps: compiler.steps,
            pixels: spec.input_size().iter().product(),
            tokens: sites.tokens_at(0),
            layers: sites.depth(),
            answers: match (vit.pool, spec.num_classes) {
                (Pool::Token, 0) => [read, vit.embed_dim],
                (_, 0) => [1, vit.embed_dim],
                (_, classes) => [spec.classifiers().len(), classes],
            },
        })
    }
}

impl<'a, T: Real> Compiler<'a, T> {
    fn model(&mut self) -> Result<()> {
        let embed = self.embed()?;
        self.push(Stage::Embed, embed);
        let layers = self.sites.depth();
        let attends = |i: &usize| self.vit.block(*i).is_some_and(|block| block.attn.is_some());
        let last_attention = (0..layers).rev().find(attends);
        if self.vit.pre_norm {
            let norm = self.norm("norm_pre", None)?;
            self.push(Stage::Embed, NormStream(norm));
        }
        if last_attention.is_none() {
            self.cut(Stage::Embed);
        }
        for layer in 0..layers {
            self.layer = Some(layer);
            self.block(layer, last_attention == Some(layer))?;
        }
        self.layer = None;
        self.end()?;
        self.check()
    }

    fn push(&mut self, stage: Stage, step: impl Step<T> + 'static) {
        self.steps.push(Placed {
            layer: self.layer,
            stage,
            step: Box::new(step),
        });
    }

    /// How many of the first tokens the heads read; all, where they read the mean.
    fn read(&self) -> usize {
        match self.vit.pool {
            Pool::Token => 1 + usize::from(self.vit.is_distilled()),
            Pool::Avg | Pool::AvgThenNorm => self.sites.tokens_at(0),
        }
    }

    /// From here on no token needs another, and only those go on that are read.
    fn cut(&mut self, stage: Stage) {
        let read = self.read();
        if read < self.sites.tokens_at(0) {
            self.push(stage, Regroup::new((0..read).collect()));
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
        let columns = panels_of([self.vit.embed_dim]);
        let (scale, shift) = folded(op);
        Ok(NormRows {
            gain: rows(&columns, |n| gain[n] * scale(n)),
            bias: rows(&columns, |n| bias[n] * scale(n) + shift(n)),
            eps: self.vit.norm_eps as f32,
            dim: self.vit.embed_dim,
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

    fn embed(&mut self) -> Result<Embed<T>> {
        let op = self.fold(Site::PatchOut, None)?;
        Ok(Embed {
            image: self.spec.input_size(),
            side: self.vit.patch_size,
            prefix: self.vit.prefix.len() + self.sites.prompts(),
            start: self.start()?,
            product: self.embedding(op.as_ref())?,
        })
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

    fn start(&mut self) -> Result<Panels<f32>> {
        let (dim, prefix) = (self.vit.embed_dim, self.vit.prefix.len());
        let mut start = Panels::zeros(self.sites.tokens_at(0), Panels::<f32>::needed(dim));
        // A norm that stands between embedding and first block is not theirs: they come after it.
        let prompts = if self.vit.pre_norm { None } else { self.prompts(0)? };
        if let Some(prompts) = prompts {
            for panel in 0..prompts.panels() {
                start.panel_mut(panel)[prefix..prefix + prompts.rows()].copy_from_slice(prompts.panel(panel));
            }
        }
        let pos = self.get("pos_embed")?;
        let prompts = self.sites.prompts();
        let skip = if self.vit.embed_prefix { 0 } else { prefix };
        for row in skip..prefix + self.vit.patches() {
            // Prompts, which have no position, stand before the patches.
            let token = if row < prefix { row } else { row + prompts };
            for channel in 0..dim {
                start.set(token, channel, pos[(row - skip) * dim + channel]);
            }
        }
        let mut registers = 0;
        for (i, token) in self.vit.prefix.iter().enumerate() {
            let (name, row) = match token {
                PrefixToken::Class => ("cls_token", 0),
                PrefixToken::Distillation => ("dist_token", 0),
                PrefixToken::Register => {
                    registers += 1;
                    ("reg_token", registers - 1)
                }
            };
            let values = self.get(name)?;
            for channel in 0..dim {
                start.set(i, channel, start.at(i, channel) + values[row * dim + channel]);
            }
        }
        Ok(start)
    }

    /// Pooling, norm and heads.
    fn end(&mut self) -> Result<()> {
        let norm = self.norm_at(Site::FinalNorm, None)?;
        let mean = Mean {
            prefix: self.vit.prefix.len() + self.sites.prompts(),
            dim: self.vit.embed_dim,
        };
        if self.vit.pool == Pool::AvgThenNorm {
            self.push(Stage::Head, mean);
            self.push(Stage::Head, NormStream(norm));
        } else {
            self.push(Stage::Head, NormStream(norm));
            if self.vit.pool == Pool::Avg {
                self.push(Stage::Head, mean);
            }
        }
        let names = if self.spec.num_classes > 0 {
            self.spec.classifiers()
        } else {
            Vec::new()
        };
        let heads = names.into_iter().map(|name| self.linear(name, None));
        let heads = Heads {
            heads: heads.collect::<Result<_>>()?,
            dim: self.vit.embed_dim,
        };
        self.push(Stage::Head, heads);
        Ok(())
    }
}
