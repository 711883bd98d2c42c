//! Vision transformers: ViT, DeiT and CLIP's image encoder, plain, distilled, pruned or with shared blocks.
//!
//! Papers: Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021; Radford et al., ICML 2021. The network is a list of **cores** (the matrices
//! of a block) and a list of **layers** (norms, ops, drop path), each of which names its core. A plain model has one
//! core a layer; MiniViT's weight sharing lets several layers name the same one.

mod family;
mod sites;
mod validate;

use serde::{Deserialize, Serialize};

use super::Activation;

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
    /// Whether the patch embedding has a bias (CLIP's has none).
    #[serde(default = "yes")]
    pub patch_bias: bool,
    /// Whether a norm, `norm_pre`, stands between the embedding and the first block (CLIP's).
    #[serde(default)]
    pub pre_norm: bool,
    /// What stands between the two projections of every perceptron.
    #[serde(default = "gelu")]
    pub activation: Activation,
    /// Epsilon of every layer norm.
    pub norm_eps: f64,
    /// What the head sees.
    pub pool: Pool,
    /// The matrices of the blocks.
    pub cores: Vec<BlockSpec>,
    /// The blocks in the order of the forward pass.
    pub layers: Vec<LayerSpec>,
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

/// The perceptron of a block, with [`VitSpec::activation`] between its layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpSpec {
    /// Hidden units.
    pub hidden: usize,
    /// The residual channels that `fc2` writes, ascending; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_idx: Option<Vec<usize>>,
}

/// One block of the forward pass: norms around a core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Index into [`VitSpec::cores`].
    pub core: usize,
    /// The earlier layer whose norms this one uses; its own when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norms: Option<usize>,
}

fn yes() -> bool {
    true
}

fn gelu() -> Activation {
    Activation::Gelu
}

impl LayerSpec {
    /// A layer around `core`, with norms of its own.
    pub fn of(core: usize) -> Self {
        LayerSpec { core, norms: None }
    }
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
            patch_bias: true,
            pre_norm: false,
            activation: Activation::Gelu,
            norm_eps: 1e-6,
            pool: Pool::Token,
            cores: vec![block; depth],
            layers: (0..depth).map(LayerSpec::of).collect(),
        }
    }

    /// The same as an image encoder of CLIP: a norm before the blocks, patches without a bias, an epsilon of its own.
    pub fn into_clip(self, activation: Activation) -> Self {
        VitSpec {
            patch_bias: false,
            pre_norm: true,
            activation,
            norm_eps: 1e-5,
            ..self
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

    /// The prefix of a core's tensors, such as `blocks.3`.
    pub fn core_name(&self, core: usize) -> String {
        format!("blocks.{core}")
    }

    /// The prefix of one of the norms (1 or 2) that a layer uses, such as `blocks.3.norm1`: the number is that of the layer
    /// to which it belongs.
    pub fn norm_name(&self, layer: usize, norm: usize) -> String {
        let owner = self
            .layers
            .get(layer)
            .and_then(|spec| spec.norms)
            .unwrap_or(layer);
        format!("blocks.{owner}.norm{norm}")
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
}
