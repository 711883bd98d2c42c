//! From spec and tensors to a plan: weights packed, ops folded, rows that no one reads left out.

mod kept;
mod outline;

use std::borrow::Cow;
use std::ops::Range;

use vitesse_kernels::{Linear, Norm, Packed, Panels, Real, Weight, panels_of};
use vitesse_model::ops::OpKind;
use vitesse_model::site::Site;
use vitesse_model::spec::{AttentionSpec, MlpSpec, Pool, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Sites, Tensors};

use crate::kept::Step;
use crate::ops::{Affine, Rows, rows};
use crate::{Error, Result};
use kept::Beside;
use outline::step_bytes;

/// The most products of 8-bit integers whose sum surely fits 32 bits. Streams and heads are never that wide.
const MOST_INT8: usize = 1 << 16;

/// A model ready to run. Activations between layers are of type `T`; the residual stream is always `f32`.
#[derive(Debug)]
pub(crate) struct Plan<T: Real> {
    pub(crate) img_size: [usize; 3],
    pub(crate) patch_size: usize,
    pub(crate) dim: usize,
    pub(crate) tokens: usize,
    pub(crate) prefix: usize,
    pub(crate) classes: usize,
    pub(crate) pool: Pool,
    /// How many of the first tokens the heads read; all, where they read the mean.
    pub(crate) read: usize,
    /// The last layer with attention: after its keys and values, only the tokens that are read go on.
    pub(crate) last_attention: Option<usize>,
    pub(crate) patch: Dense<T>,
    /// What the residual stream starts from, `[tokens, dim]`: prefix tokens with their positions, and the positions of the
    /// patches.
    pub(crate) start: Panels<f32>,
    pub(crate) cores: Vec<Core<T>>,
    pub(crate) layers: Vec<Layer<T>>,
    pub(crate) norm: NormRows,
    /// `head` and `head_dist`.
    pub(crate) heads: Vec<Dense<T>>,
}

/// The matrices of a block.
#[derive(Debug)]
pub(crate) struct Core<T: Real> {
    pub(crate) attn: Option<AttentionCore<T>>,
    pub(crate) mlp: Option<MlpCore<T>>,
}

#[derive(Debug)]
pub(crate) struct AttentionCore<T: Real> {
    pub(crate) qkv: Matrix<T>,
    pub(crate) proj: Matrix<T>,
    pub(crate) heads: Vec<Head>,
    /// Panels of queries; the panels of keys and values follow.
    pub(crate) q_panels: usize,
    /// Panels of all heads' results.
    pub(crate) v_panels: usize,
    /// What makes the inputs beside those of `qkv` and of `proj`, for low-rank updates.
    pub(crate) qkv_beside: Option<Dense<T>>,
    pub(crate) proj_beside: Option<Dense<T>>,
}

/// Where a head's columns lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) qk: usize,
    pub(crate) v: usize,
    /// First panel of its queries, among those of the queries.
    pub(crate) q_at: usize,
    /// First panel of its keys and of its values, among those of both.
    pub(crate) k_at: usize,
    pub(crate) v_at: usize,
    /// First panel of its result.
    pub(crate) out_at: usize,
}

#[derive(Debug)]
pub(crate) struct MlpCore<T: Real> {
    pub(crate) fc1: Matrix<T>,
    pub(crate) fc2: Matrix<T>,
    /// What makes the inputs beside those of `fc1` and of `fc2`, for low-rank updates.
    pub(crate) fc1_beside: Option<Dense<T>>,
    pub(crate) fc2_beside: Option<Dense<T>>,
}

/// Packed weights: of the activations' type, or 8-bit integers.
#[derive(Debug)]
pub(crate) enum Matrix<T: Real> {
    Real(Packed<T>),
    Int8(Packed<u8>),
}

impl<T: Real> Matrix<T> {
    /// Panels of outputs.
    pub(crate) fn panels(&self) -> usize {
        match self {
            Matrix::Real(packed) => packed.panels(),
            Matrix::Int8(packed) => packed.panels(),
        }
    }
}

/// What a layer keeps for itself.
#[derive(Debug)]
pub(crate) struct Layer<T: Real> {
    pub(crate) core: usize,
    /// Prompts that take the place of those before, `[prompts, dim]`.
    pub(crate) prompts: Option<Panels<f32>>,
    /// Whether a later op of the block reads the stream at `block.in`, and at `mid`.
    pub(crate) holds: [bool; 2],
    pub(crate) block_in: Option<(Rows, Rows)>,
    pub(crate) attn: Option<AttentionLayer<T>>,
    pub(crate) mid: Option<(Rows, Rows)>,
    pub(crate) mlp: Option<MlpLayer<T>>,
    pub(crate) block_out: Option<(Rows, Rows)>,
}

#[derive(Debug)]
pub(crate) struct AttentionLayer<T: Real> {
    pub(crate) norm: NormRows,
    /// What stays at `attn.in`, `attn.heads` and `attn.out`.
    pub(crate) kept_in: Vec<Step<T>>,
    pub(crate) kept_heads: Vec<Step<T>>,
    pub(crate) kept_out: Vec<Step<T>>,
    pub(crate) qkv: AffineRows,
    pub(crate) proj: AffineRows,
    pub(crate) into: Option<Vec<usize>>,
}

#[derive(Debug)]
pub(crate) struct MlpLayer<T: Real> {
    pub(crate) norm: NormRows,
    /// What stays at `mlp.in`, `mlp.hidden` and `mlp.out`.
    pub(crate) kept_in: Vec<Step<T>>,
    pub(crate) kept_hidden: Vec<Step<T>>,
    pub(crate) kept_out: Vec<Step<T>>,
    pub(crate) fc1: AffineRows,
    /// What follows the GELU.
    pub(crate) hidden: Option<(Rows, Rows)>,
    pub(crate) fc2: AffineRows,
    pub(crate) into: Option<Vec<usize>>,
}

/// A linear layer with weights of its own.
#[derive(Debug)]
pub(crate) struct Dense<T: Real> {
    weights: Packed<T>,
    affine: AffineRows,
}

/// What follows a product: a scale (`None` for 1) and a bias for each output.
#[derive(Debug)]
pub(crate) struct AffineRows {
    scale: Option<Rows>,
    bias: Rows,
}

impl AffineRows {
    fn new(columns: &[Range<usize>], scale: impl Fn(usize) -> f32, bias: impl Fn(usize) -> f32) -> Self {
        let scales = rows(columns, &scale);
        let ones = columns
            .iter()
            .all(|columns| columns.clone().all(|n| scale(n) == 1.0));
        AffineRows {
            scale: (!ones).then_some(scales),
            bias: rows(columns, bias),
        }
    }

    pub(crate) fn of<'a, W: Weight>(&'a self, weights: &'a Packed<W>) -> Linear<'a, W> {
        Linear {
            weights,
            scale: self.scale.as_deref(),
            bias: &self.bias,
        }
    }
}

impl<T: Real> Dense<T> {
    pub(crate) fn linear(&self) -> Linear<'_, T> {
        self.affine.of(&self.weights)
    }

    pub(crate) fn panels(&self) -> usize {
        self.weights.panels()
    }
}

/// A layer norm's vectors.
#[derive(Debug)]
pub(crate) struct NormRows {
    gain: Rows,
    bias: Rows,
    eps: f32,
    dim: usize,
}

impl NormRows {
    pub(crate) fn norm(&self) -> Norm<'_> {
        Norm {
            gain: &self.gain,
            bias: &self.bias,
            eps: self.eps,
            dim: self.dim,
        }
    }
}

/// Reads tensors and packs them.
struct Compiler<'a> {
    sites: &'a dyn Sites,
    vit: &'a VitSpec,
    tensors: &'a Tensors,
    int8: bool,
}

impl<T: Real> Plan<T> {
    /// Compiles. `tensors` were checked against `spec`.
    pub(crate) fn new(spec: &ModelSpec, tensors: &Tensors, int8: bool) -> Result<Plan<T>> {
        let vit = spec.vit().map_err(|_| {
            Error::Unsupported(format!(
                "the engine runs vision transformers, and `{}` is none; use the network (`--engine burn`)",
                spec.architecture
            ))
        })?;
        let sites = spec.sites();
        let compiler = Compiler {
            sites,
            vit,
            tensors,
            int8,
        };
        let last_attention = (0..vit.layers.len())
            .rev()
            .find(|&i| vit.block(i).is_some_and(|block| block.attn.is_some()));
        let read = match vit.pool {
            Pool::Token => 1 + usize::from(vit.is_distilled()),
            Pool::Avg | Pool::AvgThenNorm => sites.tokens_at(0),
        };
        let classifiers = if spec.num_classes > 0 {
            spec.classifiers()
        } else {
            Vec::new()
        };
        let mut cores = Vec::new();
        Ok(Plan {
            img_size: spec.input_size(),
            patch_size: vit.patch_size,
            dim: vit.embed_dim,
            tokens: sites.tokens_at(0),
            prefix: vit.prefix.len() + sites.prompts(),
            classes: spec.num_classes,
            pool: vit.pool,
            read,
            last_attention,
            patch: compiler.patch()?,
            start: compiler.start()?,
            layers: compiler.layers(&mut cores)?,
            cores,
            norm: compiler.norm(
                vit.final_norm_name(),
                // Where the mean comes first, no token is normed, and there is no such site.
                if vit.pool == Pool::AvgThenNorm {
                    None
                } else {
                    compiler.ops(Site::FinalNorm, None)?
                }
                .as_ref(),
            )?,
            heads: classifiers
                .into_iter()
                .map(|name| compiler.head(name))
                .collect::<Result<_>>()?,
        })
    }

    /// How many vectors a model without classes returns for an image.
    pub(crate) fn read_rows(&self) -> usize {
        if self.pool == Pool::Token { self.read } else { 1 }
    }

    /// Bytes of packed weights.
    pub(crate) fn bytes(&self) -> usize {
        let matrix = |matrix: &Matrix<T>| match matrix {
            Matrix::Real(packed) => packed.bytes(),
            Matrix::Int8(packed) => packed.bytes(),
        };
        let cores = self.cores.iter().map(|core| {
            let attn = core
                .attn
                .as_ref()
                .map_or(0, |attn| matrix(&attn.qkv) + matrix(&attn.proj));
            attn + core
                .mlp
                .as_ref()
                .map_or(0, |mlp| matrix(&mlp.fc1) + matrix(&mlp.fc2))
        });
        let heads: usize = self.heads.iter().map(|head| head.weights.bytes()).sum();
        let beside = self.cores.iter().flat_map(|core| {
            let attn = core
                .attn
                .iter()
                .flat_map(|attn| [&attn.qkv_beside, &attn.proj_beside]);
            attn.chain(core.mlp.iter().flat_map(|mlp| [&mlp.fc1_beside, &mlp.fc2_beside]))
        });
        let beside: usize = beside.flatten().map(|dense| dense.weights.bytes()).sum();
        let kept: usize = self.kept().map(|(_, _, step)| step_bytes(step)).sum();
        cores.sum::<usize>() + self.patch.weights.bytes() + heads + beside + kept
    }
}

impl Compiler<'_> {
    fn get(&self, name: &str) -> Result<Cow<'_, [f32]>> {
        Ok(self.tensors.get(name)?.to_f32())
    }

    fn ops(&self, site: Site, layer: Option<usize>) -> Result<Option<Affine>> {
        Affine::at(self.sites, self.tensors, site, layer)
    }

    fn op_rows(&self, site: Site, layer: usize) -> Result<Option<(Rows, Rows)>> {
        Ok(self.ops(site, Some(layer))?.map(|op| op.panels()))
    }

    /// A norm with `op` after it.
    fn norm(&self, name: &str, op: Option<&Affine>) -> Result<NormRows> {
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

    /// Weights `[outputs, inputs]` packed.
    fn pack<W: Weight>(
        weights: &[f32],
        inputs: usize,
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Packed<W> {
        W::pack(&|n| &weights[n * inputs..(n + 1) * inputs], columns, depths)
    }

    fn matrix<T: Real>(
        &self,
        weights: &[f32],
        inputs: usize,
        columns: &[Range<usize>],
        depths: &[Range<usize>],
    ) -> Matrix<T> {
        if self.int8 {
            Matrix::Int8(Self::pack(weights, inputs, columns, depths))
        } else {
            Matrix::Real(Self::pack(weights, inputs, columns, depths))
        }
    }

    fn patch<T: Real>(&self) -> Result<Dense<T>> {
        let side = self.vit.patch_size;
        let inputs = self.vit.in_chans * side * side;
        let columns = panels_of([self.vit.embed_dim]);
        let bias = self.get("patch_embed.proj.bias")?;
        let op = self.ops(Site::PatchOut, None)?;
        let (scale, shift) = folded(op.as_ref());
        Ok(Dense {
            weights: Self::pack(
                &self.get("patch_embed.proj.weight")?,
                inputs,
                &columns,
                &panels_of([inputs]),
            ),
            affine: AffineRows::new(&columns, &scale, |n| bias[n] * scale(n) + shift(n)),
        })
    }

    fn head<T: Real>(&self, name: &str) -> Result<Dense<T>> {
        let weights = self.tensors.get(&format!("{name}.weight"))?;
        let (outputs, inputs) = (weights.shape()[0], self.vit.embed_dim);
        let columns = panels_of([outputs]);
        let bias = self.get(&format!("{name}.bias"))?;
        Ok(Dense {
            weights: Self::pack(&weights.to_f32(), inputs, &columns, &panels_of([inputs])),
            affine: AffineRows::new(&columns, |_| 1.0, |n| bias[n]),
        })
    }

    fn start(&self) -> Result<Panels<f32>> {
        let (dim, prefix) = (self.vit.embed_dim, self.vit.prefix.len());
        let pos = self.get("pos_embed")?;
        let mut start = Panels::zeros(self.sites.tokens_at(0), Panels::<f32>::needed(dim));
        let prompts = self.sites.prompts();
        let skip = if self.vit.embed_prefix { 0 } else { prefix };
        for row in skip..prefix + self.vit.patches() {
            // Prompts, which have no position, stand before the patches.
            let token = if row < prefix { row } else { row + prompts };
            for channel in 0..dim {
                start.set(token, channel, pos[(row - skip) * dim + channel]);
            }
        }
        if let Some(prompts) = self.prompts(0)? {
            for panel in 0..prompts.panels() {
                start.panel_mut(panel)[prefix..prefix + prompts.rows()].copy_from_slice(prompts.panel(panel));
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

    /// Whether the op after a branch that writes only some channels adds something to the others too, so that the branch
    /// must write them all.
    fn shifts_all(&self, core: usize, site: Site) -> Result<bool> {
        for (i, layer) in self.vit.layers.iter().enumerate() {
            if layer.core == core
                && let Some(op) = self.ops(site, Some(i))?
                && op.shift.iter().any(|&shift| shift != 0.0)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The weights of a projection into the residual stream; all channels with zeros for those not written, where `all`.
    fn projection<T: Real>(
        &self,
        weights: &Beside<'_, T>,
        out_idx: Option<&[usize]>,
        all: bool,
    ) -> Matrix<T> {
        let Beside {
            weights,
            inputs,
            depths,
            ..
        } = weights;
        let inputs = *inputs;
        let dim = self.vit.embed_dim;
        match out_idx {
            Some(idx) if all => {
                let mut whole = vec![0.0; dim * inputs];
                for (row, &channel) in idx.iter().enumerate() {
                    whole[channel * inputs..][..inputs].copy_from_slice(&weights[row * inputs..][..inputs]);
                }
                self.matrix(&whole, inputs, &panels_of([dim]), depths)
            }
            _ => self.matrix(
                weights,
                inputs,
                &panels_of([out_idx.map_or(dim, <[usize]>::len)]),
                depths,
            ),
        }
    }

    /// What follows such a projection in one layer, with the op at `site`.
    fn after_projection(
        &self,
        name: &str,
        out_idx: Option<&[usize]>,
        all: bool,
        op: Option<&Affine>,
    ) -> Result<(AffineRows, Option<Vec<usize>>)> {
        let bias = self.get(&format!("{name}.bias"))?;
        let (scale, shift) = folded(op);
        let dim = self.vit.embed_dim;
        Ok(match out_idx {
            None => {
                let bias = |n: usize| bias[n] * scale(n) + shift(n);
                (AffineRows::new(&panels_of([dim]), &scale, bias), None)
            }
            Some(idx) if all => {
                let bias =
                    |n: usize| idx.binary_search(&n).map_or(0.0, |row| bias[row]) * scale(n) + shift(n);
                (AffineRows::new(&panels_of([dim]), &scale, bias), None)
            }
            Some(idx) => {
                let bias = |n: usize| bias[n] * scale(idx[n]) + shift(idx[n]);
                let rows = AffineRows::new(&panels_of([idx.len()]), |n| scale(idx[n]), bias);
                (rows, Some(idx.to_vec()))
            }
        })
    }

    /// The layers, and the cores they use: one for all that share it, but for a layer with updates of its own, which has a
    /// copy with these beside it.
    fn layers<T: Real>(&self, cores: &mut Vec<Core<T>>) -> Result<Vec<Layer<T>>> {
        let mut shared = vec![None; self.vit.cores.len()];
        (0..self.vit.layers.len())
            .map(|layer| {
                let core = self.vit.layers[layer].core;
                let on = |site| self.sites.ops_at(site, Some(layer)).next().is_some();
                let place = if Site::PROJECTIONS.into_iter().any(on) {
                    cores.push(self.core(core, Some(layer))?);
                    cores.len() - 1
                } else if let Some(place) = shared[core] {
                    place
                } else {
                    cores.push(self.core(core, None)?);
                    shared[core] = Some(cores.len() - 1);
                    cores.len() - 1
                };
                self.layer(layer, place)
            })
            .collect()
    }

    /// The matrices of a block, with the updates of `layer` beside them.
    fn core<T: Real>(&self, index: usize, layer: Option<usize>) -> Result<Core<T>> {
        let (block, name) = (&self.vit.cores[index], self.vit.core_name(index));
        let attn = |spec: &AttentionSpec| self.attention_core(index, spec, &name, layer);
        let mlp = |spec: &MlpSpec| self.mlp_core(index, spec, &name, layer);
        Ok(Core {
            attn: block.attn.as_ref().map(attn).transpose()?,
            mlp: block.mlp.as_ref().map(mlp).transpose()?,
        })
    }

    fn attention_core<T: Real>(
        &self,
        index: usize,
        spec: &AttentionSpec,
        name: &str,
        layer: Option<usize>,
    ) -> Result<AttentionCore<T>> {
        let dim = self.vit.embed_dim;
        let all = self.shifts_all(index, Site::AttnOut)?;
        let name = format!("{name}.attn");
        let panels = |widths: &[usize]| {
            widths
                .iter()
                .map(|&width| Panels::<T>::needed(width))
                .sum::<usize>()
        };
        let q_panels = panels(&spec.qk_dims);
        let (mut q_at, mut v_at) = (0, 0);
        let heads = spec.qk_dims.iter().zip(&spec.v_dims).map(|(&qk, &v)| {
            let head = Head {
                qk,
                v,
                q_at,
                k_at: q_at,
                v_at: q_panels + v_at,
                out_at: v_at,
            };
            q_at += Panels::<T>::needed(qk);
            v_at += Panels::<T>::needed(v);
            head
        });
        let qkv = self.beside(&format!("{name}.qkv"), dim, panels_of([dim]), (Site::Qkv, layer))?;
        let proj = self.beside(
            &format!("{name}.proj"),
            spec.v_width(),
            panels_of(spec.v_dims.iter().copied()),
            (Site::Proj, layer),
        )?;
        Ok(AttentionCore {
            heads: heads.collect(),
            qkv: self.matrix(&qkv.weights, qkv.inputs, &qkv_columns(spec), &qkv.depths),
            proj: self.projection(&proj, spec.out_idx.as_deref(), all),
            qkv_beside: qkv.down,
            proj_beside: proj.down,
            q_panels,
            v_panels: panels(&spec.v_dims),
        })
    }

    fn mlp_core<T: Real>(
        &self,
        index: usize,
        spec: &MlpSpec,
        name: &str,
        layer: Option<usize>,
    ) -> Result<MlpCore<T>> {
        let dim = self.vit.embed_dim;
        if self.int8 && spec.hidden > MOST_INT8 {
            return Err(Error::Unsupported(format!(
                "{name} has {} hidden units; in 8 bits the engine can sum {MOST_INT8} products, so use `bf16` or `f32`",
                spec.hidden
            )));
        }
        let all = self.shifts_all(index, Site::MlpOut)?;
        let hidden = panels_of([spec.hidden]);
        let fc1 = self.beside(
            &format!("{name}.mlp.fc1"),
            dim,
            panels_of([dim]),
            (Site::Fc1, layer),
        )?;
        let fc2 = self.beside(
            &format!("{name}.mlp.fc2"),
            spec.hidden,
            hidden.clone(),
            (Site::Fc2, layer),
        )?;
        Ok(MlpCore {
            fc1: self.matrix(&fc1.weights, fc1.inputs, &hidden, &fc1.depths),
            fc2: self.projection(&fc2, spec.out_idx.as_deref(), all),
            fc1_beside: fc1.down,
            fc2_beside: fc2.down,
        })
    }

    /// Layer `index`, whose core has the place `place` in the plan.
    fn layer<T: Real>(&self, index: usize, place: usize) -> Result<Layer<T>> {
        let core = self.vit.layers[index].core;
        let (block, name) = (&self.vit.cores[core], self.vit.core_name(core));
        let reads = |site| {
            let mut ops = self.sites.ops().iter().filter(|op| op.layer == Some(index));
            ops.any(|op| matches!(&op.kind, OpKind::Bottleneck(kind) if kind.from == Some(site)))
        };
        Ok(Layer {
            core: place,
            // Those of the first layer are in the stream from the start.
            prompts: if index > 0 { self.prompts(index)? } else { None },
            holds: [reads(Site::BlockIn), reads(Site::Mid)],
            block_in: self.op_rows(Site::BlockIn, index)?,
            attn: block
                .attn
                .as_ref()
                .map(|spec| self.attention_layer(index, core, spec, &format!("{name}.attn")))
                .transpose()?,
            mid: self.op_rows(Site::Mid, index)?,
            mlp: block
                .mlp
                .as_ref()
                .map(|spec| self.mlp_layer(index, core, spec, &format!("{name}.mlp")))
                .transpose()?,
            block_out: self.op_rows(Site::BlockOut, index)?,
        })
    }

    fn attention_layer<T: Real>(
        &self,
        index: usize,
        core: usize,
        spec: &AttentionSpec,
        name: &str,
    ) -> Result<AttentionLayer<T>> {
        let bias = if spec.qkv_bias {
            Some(self.get(&format!("{name}.qkv.bias"))?)
        } else {
            None
        };
        let (qk, at) = (spec.qk_width(), Some(index));
        let (after, heads) = (self.ops(Site::AttnQkv, at)?, self.ops(Site::AttnHeads, at)?);
        let (scale, shift) = folded(after.as_ref());
        // Probabilities sum to 1, so what scales and shifts a head's result can as well do so to its values.
        let (heads_scale, heads_shift) = folded(heads.as_ref());
        let factor = |n: usize| match n {
            n if n < qk => spec.scale as f32,
            n if n < 2 * qk => 1.0,
            n => heads_scale(n - 2 * qk),
        };
        let extra = |n: usize| if n < 2 * qk { 0.0 } else { heads_shift(n - 2 * qk) };
        let bias = |n: usize| bias.as_ref().map_or(0.0, |bias| bias[n]);
        let (proj, into) = self.after_projection(
            &format!("{name}.proj"),
            spec.out_idx.as_deref(),
            self.shifts_all(core, Site::AttnOut)?,
            self.ops(Site::AttnOut, at)?.as_ref(),
        )?;
        let stream = panels_of([self.vit.embed_dim]);
        Ok(AttentionLayer {
            kept_in: self.kept(Site::AttnIn, index, &stream)?,
            kept_heads: self.kept(Site::AttnHeads, index, &panels_of(spec.v_dims.iter().copied()))?,
            kept_out: self.kept(Site::AttnOut, index, &stream)?,
            norm: self.norm(
                &self.vit.norm_name(index, 1),
                self.ops(Site::AttnIn, at)?.as_ref(),
            )?,
            qkv: AffineRows::new(
                &qkv_columns(spec),
                |n| scale(n) * factor(n),
                |n| (bias(n) * scale(n) + shift(n)) * factor(n) + extra(n),
            ),
            proj,
            into,
        })
    }

    fn mlp_layer<T: Real>(
        &self,
        index: usize,
        core: usize,
        spec: &MlpSpec,
        name: &str,
    ) -> Result<MlpLayer<T>> {
        let at = Some(index);
        let stream = panels_of([self.vit.embed_dim]);
        let bias = self.get(&format!("{name}.fc1.bias"))?;
        let after = self.ops(Site::MlpFc1, at)?;
        let (scale, shift) = folded(after.as_ref());
        let (fc2, into) = self.after_projection(
            &format!("{name}.fc2"),
            spec.out_idx.as_deref(),
            self.shifts_all(core, Site::MlpOut)?,
            self.ops(Site::MlpOut, at)?.as_ref(),
        )?;
        Ok(MlpLayer {
            kept_in: self.kept(Site::MlpIn, index, &stream)?,
            kept_hidden: self.kept(Site::MlpHidden, index, &panels_of([spec.hidden]))?,
            kept_out: self.kept(Site::MlpOut, index, &stream)?,
            norm: self.norm(&self.vit.norm_name(index, 2), self.ops(Site::MlpIn, at)?.as_ref())?,
            fc1: AffineRows::new(&panels_of([spec.hidden]), &scale, |n| {
                bias[n] * scale(n) + shift(n)
            }),
            hidden: self.op_rows(Site::MlpHidden, index)?,
            fc2,
            into,
        })
    }
}

/// The panels of queries, keys and values: every head begins new ones.
fn qkv_columns(spec: &AttentionSpec) -> Vec<Range<usize>> {
    let widths = spec.qk_dims.iter().chain(&spec.qk_dims).chain(&spec.v_dims);
    panels_of(widths.copied())
}

/// Scale and shift of an op, or those that change nothing.
fn folded(op: Option<&Affine>) -> (impl Fn(usize) -> f32 + '_, impl Fn(usize) -> f32 + '_) {
    (
        move |n| op.map_or(1.0, |op| op.scale[n]),
        move |n| op.map_or(0.0, |op| op.shift[n]),
    )
}
