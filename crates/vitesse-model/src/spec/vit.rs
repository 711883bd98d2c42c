//! Vision transformers: ViT, DeiT and CLIP's image encoder, plain, distilled, pruned or with shared blocks.
//!
//! Papers: Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021; Radford et al., ICML 2021. The network is a list of **cores** (the matrices
//! of a block) and a list of **layers** (norms, ops, drop path), each of which names its core. A plain model has one
//! core a layer; MiniViT's weight sharing lets several layers name the same one.

mod family;
mod sites;
mod validate;

use serde::{Deserialize, Serialize};

use super::{Activation, AttentionSpec, BlockSpec, LayerSpec, MlpSpec};

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

fn yes() -> bool {
    true
}

fn gelu() -> Activation {
    Activation::Gelu
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
