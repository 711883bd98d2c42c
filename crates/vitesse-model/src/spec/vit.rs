//! Vision transformers: ViT and DeiT, plain, distilled, pruned or with shared blocks.
//!
//! Paper: Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021. The network is a list of **cores** (the matrices
//! of a block) and a list of **layers** (norms, ops, drop path), each of which names its core. A plain model has one
//! core a layer; MiniViT's weight sharing lets several layers name the same one.

use serde::{Deserialize, Serialize};

use super::{Cost, Init, TensorSpec};
use crate::ops::{OpKind, OpSpec};
use crate::site::Site;
use crate::{Error, Result};

/// A vision transformer of one width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitSpec {
    /// Image height and width in pixels; both multiples of the patch size.
    pub img_size: [usize; 2],
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Image channels.
    pub in_chans: usize,
    /// Width of the token stream.
    pub embed_dim: usize,
    /// The learned tokens before the patches, in order.
    pub prefix: Vec<PrefixToken>,
    /// Whether prefix tokens have rows of their own in the position embedding (timm's `no_embed_class` negated).
    pub embed_prefix: bool,
    /// Epsilon of every layer norm.
    pub norm_eps: f64,
    /// What the head sees.
    pub pool: Pool,
    /// The matrices of the blocks.
    pub cores: Vec<BlockSpec>,
    /// The blocks in the order of the forward pass.
    pub layers: Vec<LayerSpec>,
    /// What stands at which site, in the order in which ops at one site are applied.
    #[serde(default)]
    pub ops: Vec<OpSpec>,
}

/// A learned token before the patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixToken {
    /// `cls_token`, which the class head reads.
    Class,
    /// `dist_token`, which the distillation head reads.
    Distillation,
    /// One of the rows of `reg_token`, which nothing reads.
    Register,
}

/// How the token stream becomes the vector that the head sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// Final norm over all tokens, then the class token (and the distillation token for its own head).
    Token,
    /// Final norm over all tokens, then the mean of the patch tokens.
    Avg,
    /// The mean of the patch tokens, then a norm (`fc_norm`); no final norm before.
    AvgThenNorm,
}

/// The matrices of one block; a sub-layer that is `None` is absent together with its norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// Multi-head self-attention.
    pub attn: Option<AttentionSpec>,
    /// The two-layer perceptron.
    pub mlp: Option<MlpSpec>,
}

/// Attention whose heads may differ in width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Query and key width of each head.
    pub qk_dims: Vec<usize>,
    /// Value width of each head.
    pub v_dims: Vec<usize>,
    /// What `q·kᵀ` is multiplied by. A constant of the original model: pruning a head's width leaves it.
    pub scale: f64,
    /// Whether `qkv` has a bias.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// The residual channels that `proj` writes, ascending; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_idx: Option<Vec<usize>>,
}

/// The perceptron of a block, with the exact GELU between its layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpSpec {
    /// Hidden units.
    pub hidden: usize,
    /// The residual channels that `fc2` writes, ascending; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_idx: Option<Vec<usize>>,
}

/// One block of the forward pass: private norms around a core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Index into [`VitSpec::cores`].
    pub core: usize,
}

/// A projection of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The prefix of its tensors, such as `blocks.3.attn.qkv`.
    pub name: String,
    /// Rows of its weight.
    pub outputs: usize,
    /// Columns of its weight.
    pub inputs: usize,
}

fn yes() -> bool {
    true
}

impl AttentionSpec {
    /// Equal heads of width `dim / heads` and the scale that belongs to it.
    pub fn uniform(dim: usize, heads: usize) -> Self {
        let width = dim / heads.max(1);
        AttentionSpec {
            qk_dims: vec![width; heads],
            v_dims: vec![width; heads],
            scale: (width as f64).powf(-0.5),
            qkv_bias: true,
            out_idx: None,
        }
    }

    /// Number of heads.
    pub fn num_heads(&self) -> usize {
        self.qk_dims.len()
    }

    /// Total query width, which is the total key width too.
    pub fn qk_width(&self) -> usize {
        self.qk_dims.iter().sum()
    }

    /// Total value width.
    pub fn v_width(&self) -> usize {
        self.v_dims.iter().sum()
    }

    /// `Some((heads, qk, v))` when all heads are alike.
    pub fn uniform_heads(&self) -> Option<(usize, usize, usize)> {
        let (&qk, &v) = (self.qk_dims.first()?, self.v_dims.first()?);
        let alike = self.qk_dims.iter().all(|&d| d == qk) && self.v_dims.iter().all(|&d| d == v);
        alike.then_some((self.num_heads(), qk, v))
    }
}

impl VitSpec {
    /// The plain model: `depth` equal blocks, each its own core.
    pub fn plain(
        img_size: usize,
        patch_size: usize,
        embed_dim: usize,
        depth: usize,
        heads: usize,
        prefix: Vec<PrefixToken>,
    ) -> Self {
        let block = BlockSpec {
            attn: Some(AttentionSpec::uniform(embed_dim, heads)),
            mlp: Some(MlpSpec {
                hidden: 4 * embed_dim,
                out_idx: None,
            }),
        };
        VitSpec {
            img_size: [img_size; 2],
            patch_size,
            in_chans: 3,
            embed_dim,
            prefix,
            embed_prefix: true,
            norm_eps: 1e-6,
            pool: Pool::Token,
            cores: vec![block; depth],
            layers: (0..depth).map(|core| LayerSpec { core }).collect(),
            ops: Vec::new(),
        }
    }

    /// Rows and columns of the patch grid.
    pub fn grid(&self) -> [usize; 2] {
        self.img_size.map(|side| side / self.patch_size.max(1))
    }

    /// Number of patch tokens.
    pub fn patches(&self) -> usize {
        self.grid().iter().product()
    }

    /// Number of tokens in the stream, prompts included.
    pub fn tokens_count(&self) -> usize {
        self.prefix.len() + self.prompts() + self.patches()
    }

    /// Number of prompts between the prefix tokens and the patches.
    pub fn prompts(&self) -> usize {
        self.ops_at(Site::BlockIn, Some(0))
            .find_map(|(_, op)| match &op.kind {
                OpKind::Prompts(prompts) => Some(prompts.tokens),
                _ => None,
            })
            .unwrap_or(0)
    }

    /// Rows of the position embedding.
    pub fn pos_rows(&self) -> usize {
        self.patches() + if self.embed_prefix { self.prefix.len() } else { 0 }
    }

    /// Whether there is a distillation token, and with it a second head.
    pub fn is_distilled(&self) -> bool {
        self.prefix.contains(&PrefixToken::Distillation)
    }

    /// Whether several layers share a core.
    pub fn is_shared(&self) -> bool {
        self.layers.len() > self.cores.len()
    }

    fn registers(&self) -> usize {
        self.prefix
            .iter()
            .filter(|token| **token == PrefixToken::Register)
            .count()
    }

    /// The name of a core's tensors in the file: `blocks.3`, or `blocks.3.block` in a model that shares.
    pub fn core_name(&self, core: usize) -> String {
        if self.is_shared() {
            format!("blocks.{core}.block")
        } else {
            format!("blocks.{core}")
        }
    }

    /// The name of one of a layer's norms (1 or 2) in the file: `blocks.3.norm1`, or, in a model that shares,
    /// `blocks.1.block.norm1.instances.0` for the first layer that uses core 1 (MiniViT's names).
    pub fn norm_name(&self, layer: usize, norm: usize) -> String {
        let core = self.layers.get(layer).map_or(layer, |spec| spec.core);
        if !self.is_shared() {
            return format!("blocks.{core}.norm{norm}");
        }
        let instance = self
            .layers
            .iter()
            .take(layer)
            .filter(|other| other.core == core)
            .count();
        format!("blocks.{core}.block.norm{norm}.instances.{instance}")
    }

    /// The name of the norm before the head, and whether it stands before or after pooling.
    pub fn final_norm_name(&self) -> &'static str {
        if self.pool == Pool::AvgThenNorm {
            "fc_norm"
        } else {
            "norm"
        }
    }

    /// The core of a layer.
    pub fn block(&self, layer: usize) -> Option<&BlockSpec> {
        self.cores.get(self.layers.get(layer)?.core)
    }

    /// The ops at `site` of `layer` (`None` for the sites outside blocks), with their index in [`VitSpec::ops`].
    pub fn ops_at(&self, site: Site, layer: Option<usize>) -> impl Iterator<Item = (usize, &OpSpec)> {
        self.ops
            .iter()
            .enumerate()
            .filter(move |(_, op)| op.site == site && op.layer == layer)
    }

    /// The projection at `site` of `layer`; `None` where the block has none, or `site` is none.
    pub fn projection(&self, site: Site, layer: usize) -> Option<Projection> {
        let block = self.block(layer)?;
        let core = self.core_name(self.layers.get(layer)?.core);
        let dim = self.embed_dim;
        let written = |out_idx: &Option<Vec<usize>>| out_idx.as_ref().map_or(dim, Vec::len);
        let (name, outputs, inputs) = match site {
            Site::Qkv => {
                let attn = block.attn.as_ref()?;
                ("attn.qkv", 2 * attn.qk_width() + attn.v_width(), dim)
            }
            Site::Proj => {
                let attn = block.attn.as_ref()?;
                ("attn.proj", written(&attn.out_idx), attn.v_width())
            }
            Site::Fc1 => ("mlp.fc1", block.mlp.as_ref()?.hidden, dim),
            Site::Fc2 => {
                let mlp = block.mlp.as_ref()?;
                ("mlp.fc2", written(&mlp.out_idx), mlp.hidden)
            }
            _ => return None,
        };
        Some(Projection {
            name: format!("{core}.{name}"),
            outputs,
            inputs,
        })
    }

    /// Width of the value at `site` of `layer`; heads for the attention maps, outputs for the projections.
    pub fn width_at(&self, site: Site, layer: Option<usize>) -> Option<usize> {
        if !site.in_block() {
            return layer.is_none().then_some(self.embed_dim);
        }
        if site.is_projection() {
            return Some(self.projection(site, layer?)?.outputs);
        }
        let block = self.block(layer?)?;
        Some(match site {
            Site::AttnIn => block.attn.as_ref().map(|_| self.embed_dim)?,
            Site::AttnQkv => block.attn.as_ref().map(|a| 2 * a.qk_width() + a.v_width())?,
            Site::AttnLogits | Site::AttnProbs => block.attn.as_ref()?.num_heads(),
            Site::AttnHeads => block.attn.as_ref()?.v_width(),
            Site::AttnOut => block.attn.as_ref().map(|_| self.embed_dim)?,
            Site::MlpIn | Site::MlpOut => block.mlp.as_ref().map(|_| self.embed_dim)?,
            Site::MlpFc1 | Site::MlpHidden => block.mlp.as_ref()?.hidden,
            _ => self.embed_dim,
        })
    }

    pub(super) fn validate(&self) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(text));
        let [height, width] = self.img_size;
        if self.patch_size == 0 || height == 0 || width == 0 {
            return fail(format!(
                "image {height}x{width} with patches of {} pixels has no patch",
                self.patch_size
            ));
        }
        if height % self.patch_size != 0 || width % self.patch_size != 0 {
            return fail(format!(
                "image size {height}x{width} must be a multiple of the patch size {}",
                self.patch_size
            ));
        }
        if self.embed_dim == 0 || self.in_chans == 0 {
            return fail("embed_dim and in_chans must be at least 1".into());
        }
        if self.pool == Pool::Token && !self.prefix.contains(&PrefixToken::Class) {
            return fail("pooling by `token` needs a class token; use `avg`".into());
        }
        if self.is_distilled() && (self.pool != Pool::Token || !self.embed_prefix) {
            return fail("a distillation token needs pooling by `token` and its own position".into());
        }
        let order: Vec<PrefixToken> = self.prefix.clone();
        let rank = |token: &PrefixToken| match token {
            PrefixToken::Class => 0,
            PrefixToken::Distillation => 1,
            PrefixToken::Register => 2,
        };
        let doubled = |token| order.iter().filter(|other| **other == token).count() > 1;
        if !order.is_sorted_by_key(rank) || doubled(PrefixToken::Class) || doubled(PrefixToken::Distillation)
        {
            return fail("prefix tokens are at most one class, one distillation, then registers".into());
        }
        for (i, core) in self.cores.iter().enumerate() {
            if !self.layers.iter().any(|layer| layer.core == i) {
                return fail(format!("core {i} is used by no layer"));
            }
            if let Some(attn) = &core.attn {
                self.validate_attention(i, attn)?;
            }
            if let Some(mlp) = &core.mlp {
                if mlp.hidden == 0 {
                    return fail(format!(
                        "blocks.{i}.mlp has no hidden unit; write `null` to drop the sub-layer"
                    ));
                }
                self.validate_out_idx(i, "mlp", mlp.out_idx.as_deref())?;
            }
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.core >= self.cores.len() {
                return fail(format!(
                    "layer {i} names core {} of {}",
                    layer.core,
                    self.cores.len()
                ));
            }
        }
        self.ops
            .iter()
            .enumerate()
            .try_for_each(|(i, op)| op.validate(i, self))
    }

    fn validate_attention(&self, core: usize, attn: &AttentionSpec) -> Result<()> {
        let fail = |text: &str| Err(Error::invalid_spec(format!("blocks.{core}.attn: {text}")));
        if attn.qk_dims.len() != attn.v_dims.len() {
            return fail("qk_dims and v_dims must have one entry a head each");
        }
        if attn.qk_dims.is_empty() || attn.qk_dims.contains(&0) || attn.v_dims.contains(&0) {
            return fail(
                "every head needs at least one q/k and one v channel; write `null` to drop the sub-layer",
            );
        }
        if !attn.scale.is_finite() {
            return fail("the attention scale must be a finite number");
        }
        self.validate_out_idx(core, "attn", attn.out_idx.as_deref())
    }

    fn validate_out_idx(&self, core: usize, part: &str, idx: Option<&[usize]>) -> Result<()> {
        let Some(idx) = idx else { return Ok(()) };
        let ascending = idx.iter().zip(idx.iter().skip(1)).all(|(a, b)| a < b);
        if idx.is_empty() || !ascending || idx.last().is_some_and(|&last| last >= self.embed_dim) {
            return Err(Error::invalid_spec(format!(
                "blocks.{core}.{part}.out_idx must list residual channels below {} in ascending order",
                self.embed_dim
            )));
        }
        Ok(())
    }

    pub(super) fn tensors(&self, num_classes: usize) -> Vec<TensorSpec> {
        let d = self.embed_dim;
        let trunc = Init::TruncatedNormal { std: 0.02 };
        let fan_in = self.in_chans * self.patch_size * self.patch_size;
        // The reference leaves the patch convolution at its framework's default.
        let conv = Init::Uniform {
            bound: (fan_in as f64).powf(-0.5),
        };
        let mut out = Vec::new();
        let add = |out: &mut Vec<TensorSpec>, name: String, shape: &[usize], init| {
            out.push(TensorSpec::parameter(name, shape, init));
        };
        if self.prefix.contains(&PrefixToken::Class) {
            add(&mut out, "cls_token".into(), &[1, 1, d], trunc);
        }
        if self.registers() > 0 {
            add(&mut out, "reg_token".into(), &[1, self.registers(), d], trunc);
        }
        add(&mut out, "pos_embed".into(), &[1, self.pos_rows(), d], trunc);
        if self.is_distilled() {
            add(&mut out, "dist_token".into(), &[1, 1, d], trunc);
        }
        let side = self.patch_size;
        add(
            &mut out,
            "patch_embed.proj.weight".into(),
            &[d, self.in_chans, side, side],
            conv,
        );
        add(&mut out, "patch_embed.proj.bias".into(), &[d], conv);

        let norm = |out: &mut Vec<TensorSpec>, name: &str| {
            add(out, format!("{name}.weight"), &[d], Init::Ones);
            add(out, format!("{name}.bias"), &[d], Init::Zeros);
        };
        let mut seen = vec![false; self.cores.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(core), Some(seen)) = (self.cores.get(layer.core), seen.get_mut(layer.core)) else {
                continue;
            };
            let name = self.core_name(layer.core);
            let first = !std::mem::replace(seen, true);
            if let Some(attn) = &core.attn {
                norm(&mut out, &self.norm_name(i, 1));
                if first {
                    let rows = 2 * attn.qk_width() + attn.v_width();
                    let written = attn.out_idx.as_ref().map_or(d, Vec::len);
                    add(&mut out, format!("{name}.attn.qkv.weight"), &[rows, d], trunc);
                    if attn.qkv_bias {
                        add(&mut out, format!("{name}.attn.qkv.bias"), &[rows], Init::Zeros);
                    }
                    add(
                        &mut out,
                        format!("{name}.attn.proj.weight"),
                        &[written, attn.v_width()],
                        trunc,
                    );
                    add(
                        &mut out,
                        format!("{name}.attn.proj.bias"),
                        &[written],
                        Init::Zeros,
                    );
                }
            }
            if let Some(mlp) = &core.mlp {
                norm(&mut out, &self.norm_name(i, 2));
                if first {
                    let written = mlp.out_idx.as_ref().map_or(d, Vec::len);
                    add(
                        &mut out,
                        format!("{name}.mlp.fc1.weight"),
                        &[mlp.hidden, d],
                        trunc,
                    );
                    add(
                        &mut out,
                        format!("{name}.mlp.fc1.bias"),
                        &[mlp.hidden],
                        Init::Zeros,
                    );
                    add(
                        &mut out,
                        format!("{name}.mlp.fc2.weight"),
                        &[written, mlp.hidden],
                        trunc,
                    );
                    add(&mut out, format!("{name}.mlp.fc2.bias"), &[written], Init::Zeros);
                }
            }
        }
        norm(&mut out, self.final_norm_name());
        if num_classes > 0 {
            let heads = if self.is_distilled() {
                &["head", "head_dist"][..]
            } else {
                &["head"]
            };
            for head in heads {
                add(&mut out, format!("{head}.weight"), &[num_classes, d], trunc);
                add(&mut out, format!("{head}.bias"), &[num_classes], Init::Zeros);
            }
        }
        for (i, op) in self.ops.iter().enumerate() {
            out.extend(op.tensors(i, self));
        }
        out
    }

    pub(super) fn costs(&self, num_classes: usize) -> Cost {
        let (d, n) = (self.embed_dim, self.tokens_count());
        let pixels = self.in_chans * self.patch_size * self.patch_size;
        let mut cost = Cost { layers: Vec::new() };
        cost.push("patch_embed", pixels * d + d, pixels * d * self.patches());
        cost.push("tokens", (self.prefix.len() + self.pos_rows()) * d, 0);
        let mut seen = vec![false; self.cores.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(core), Some(seen)) = (self.cores.get(layer.core), seen.get_mut(layer.core)) else {
                continue;
            };
            let first = !std::mem::replace(seen, true);
            if let Some(attn) = &core.attn {
                let rows = 2 * attn.qk_width() + attn.v_width();
                let written = attn.out_idx.as_ref().map_or(d, Vec::len);
                let bias = if attn.qkv_bias { rows } else { 0 };
                let matrices = rows * d + bias + written * attn.v_width() + written;
                let products = n * n * (attn.qk_width() + attn.v_width());
                cost.push(
                    format!("blocks.{i}.attn"),
                    2 * d + if first { matrices } else { 0 },
                    n * rows * d + products + n * written * attn.v_width(),
                );
            }
            if let Some(mlp) = &core.mlp {
                let written = mlp.out_idx.as_ref().map_or(d, Vec::len);
                let matrices = mlp.hidden * d + mlp.hidden + written * mlp.hidden + written;
                cost.push(
                    format!("blocks.{i}.mlp"),
                    2 * d + if first { matrices } else { 0 },
                    n * mlp.hidden * (d + written),
                );
            }
        }
        cost.push(self.final_norm_name(), 2 * d, 0);
        for (i, op) in self.ops.iter().enumerate() {
            let parameters = op.tensors(i, self).iter().map(TensorSpec::numel).sum();
            cost.push(format!("ops.{i}"), parameters, op.macs(self));
        }
        if num_classes > 0 {
            cost.push("head", num_classes * (d + 1), num_classes * d);
            if self.is_distilled() {
                cost.push("head_dist", num_classes * (d + 1), num_classes * d);
            }
        }
        cost
    }
}
