//! One block of a transformer: what ViT and Swin describe alike, whatever stands around it.

mod sites;
mod tensors;
mod validate;

pub(super) use tensors::{TRUNC, linear, norm};
pub(super) use validate::check_layer;

use serde::{Deserialize, Serialize};

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

/// The perceptron of a block, with an activation between its layers.
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
    /// Index into the cores of its model.
    pub core: usize,
    /// The earlier layer whose norms this one uses; its own when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norms: Option<usize>,
}

fn yes() -> bool {
    true
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

    /// Rows of the fused projection.
    pub(super) fn qkv_rows(&self) -> usize {
        2 * self.qk_width() + self.v_width()
    }

    /// How many of the `dim` residual channels `proj` writes.
    pub(super) fn written(&self, dim: usize) -> usize {
        self.out_idx.as_ref().map_or(dim, Vec::len)
    }

    /// `Some((heads, qk, v))` when all heads are alike.
    pub fn uniform_heads(&self) -> Option<(usize, usize, usize)> {
        let (&qk, &v) = (self.qk_dims.first()?, self.v_dims.first()?);
        let alike = self.qk_dims.iter().all(|&d| d == qk) && self.v_dims.iter().all(|&d| d == v);
        alike.then_some((self.num_heads(), qk, v))
    }
}

impl MlpSpec {
    /// How many of the `dim` residual channels `fc2` writes.
    pub(super) fn written(&self, dim: usize) -> usize {
        self.out_idx.as_ref().map_or(dim, Vec::len)
    }
}
