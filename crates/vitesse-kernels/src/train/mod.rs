//! The arithmetic of training: segments of a transformer, forward and backward.
//!
//! All matrices are row-major contiguous `f32` slices. Work is spread over rayon's current pool; results are
//! bit-identical for any number of threads.

pub mod conv;
pub mod reference;

use crate::Isa;

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// In `f32` throughout.
    #[default]
    F32,
    /// Inputs of products rounded to bf16, sums in `f32`.
    Bf16,
}

/// With which instructions, and how, a segment computes.
#[derive(Debug, Clone, Copy)]
pub struct Math {
    /// The instructions.
    pub isa: Isa,
    /// How products are computed.
    pub precision: Precision,
}

/// What happens to the input of a linear map first.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// Nothing.
    Nothing,
    /// Layer norm over the last axis, with biased variance.
    Norm {
        /// `[inputs]`
        gain: &'a [f32],
        /// `[inputs]`
        shift: &'a [f32],
        /// Added to the variance.
        eps: f32,
    },
    /// GELU, the exact one.
    Gelu,
}

/// `y = residual + factor[sample] · (before(x) · Wᵀ + b)`
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// `[rows, inputs]`
    pub input: &'a [f32],
    /// What happens to it first.
    pub before: Before<'a>,
    /// `[outputs, inputs]`
    pub weight: &'a [f32],
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
    /// `[samples]`, of which the number of rows is a multiple: drop path.
    pub factors: Option<&'a [f32]>,
    /// Width of the output.
    pub outputs: usize,
    /// Width of the input.
    pub inputs: usize,
}

/// Which gradients of a linear map are wanted. Those of gain and shift exist only after a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Of the input, before what happens to it first.
    pub input: bool,
    /// Of the weight.
    pub weight: bool,
    /// Of the bias.
    pub bias: bool,
    /// Of the norm's gain.
    pub gain: bool,
    /// Of the norm's shift.
    pub shift: bool,
}

/// The gradients that were wanted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LinearGradients {
    /// `[rows, inputs]`
    pub input: Option<Vec<f32>>,
    /// `[outputs, inputs]`
    pub weight: Option<Vec<f32>>,
    /// `[outputs]`
    pub bias: Option<Vec<f32>>,
    /// `[inputs]`
    pub gain: Option<Vec<f32>>,
    /// `[inputs]`
    pub shift: Option<Vec<f32>>,
}

impl Linear<'_> {
    /// The output, `[rows, outputs]`.
    pub fn forward(&self, _math: Math, residual: Option<&[f32]>) -> Vec<f32> {
        reference::linear(self, residual)
    }

    /// The gradients that `wanted` names, from the output's, `[rows, outputs]`. The residual's is the output's itself.
    pub fn backward(&self, _math: Math, grad: &[f32], wanted: Wanted) -> LinearGradients {
        reference::linear_backward(self, grad, wanted)
    }
}

/// Softmax attention of all heads, from the fused projection: the queries of all heads, then the keys, then the values.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[batch, tokens, Σ(2·qk + v)]`
    pub qkv: &'a [f32],
    /// Samples.
    pub batch: usize,
    /// Tokens of a sample.
    pub tokens: usize,
    /// Each head's width of queries and keys.
    pub qk: &'a [usize],
    /// Each head's width of values.
    pub v: &'a [usize],
    /// What the products of queries and keys are multiplied by.
    pub scale: f32,
}

impl Attention<'_> {
    /// The heads' outputs `[batch, tokens, Σv]`, and the log of the sum of exponentials of each row of logits
    /// `[batch, heads, tokens]`, from which the backward pass computes the maps again.
    pub fn forward(&self, _math: Math) -> (Vec<f32>, Vec<f32>) {
        reference::attention(self)
    }

    /// The gradient of `qkv`, from what the forward pass gave and the gradient of the heads' outputs.
    pub fn backward(&self, _math: Math, out: &[f32], lse: &[f32], grad: &[f32]) -> Vec<f32> {
        reference::attention_backward(self, out, lse, grad)
    }
}

/// Layer norm of `[rows, gain.len()]`, with biased variance.
pub fn layer_norm(_isa: Isa, x: &[f32], gain: &[f32], shift: &[f32], eps: f32) -> Vec<f32> {
    reference::layer_norm(x, gain, shift, eps)
}

/// The gradients of a layer norm that were wanted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NormGradients {
    /// `[rows, width]`
    pub input: Option<Vec<f32>>,
    /// `[width]`
    pub gain: Option<Vec<f32>>,
    /// `[width]`
    pub shift: Option<Vec<f32>>,
}

/// The gradients of [`layer_norm`]: of its input, gain and shift, each if wanted.
pub fn layer_norm_backward(
    _isa: Isa,
    x: &[f32],
    gain: &[f32],
    eps: f32,
    grad: &[f32],
    wanted: [bool; 3],
) -> NormGradients {
    reference::layer_norm_backward(x, gain, eps, grad, wanted)
}

/// The exact GELU `x·Φ(x)`.
pub fn gelu(_isa: Isa, x: &[f32]) -> Vec<f32> {
    reference::gelu(x)
}

/// The gradient of [`gelu`]'s input.
pub fn gelu_backward(_isa: Isa, x: &[f32], grad: &[f32]) -> Vec<f32> {
    reference::gelu_backward(x, grad)
}

/// Mean over rows of `−Σ t·log softmax(z)`; targets need not sum to 1.
pub fn soft_cross_entropy(logits: &[f32], targets: &[f32], classes: usize) -> f32 {
    reference::soft_cross_entropy(logits, targets, classes)
}

/// The gradient of the logits, `grad · (softmax(z)·Σt − t) / rows`.
pub fn soft_cross_entropy_backward(logits: &[f32], targets: &[f32], classes: usize, grad: f32) -> Vec<f32> {
    reference::soft_cross_entropy_backward(logits, targets, classes, grad)
}
