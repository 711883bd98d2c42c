//! The tensors of a block, and how many numbers they hold.

use super::{AttentionSpec, MlpSpec};
use crate::spec::{Init, TensorSpec};

/// How the reference programs draw the weights of linear maps, tokens and positions.
pub(in crate::spec) const TRUNC: Init = Init::TruncatedNormal { std: 0.02 };

impl AttentionSpec {
    /// Its matrices; `core` is the prefix of their names, `dim` the width of the stream.
    pub(in crate::spec) fn tensors(&self, core: &str, dim: usize) -> Vec<TensorSpec> {
        let qkv = linear(&format!("{core}.attn.qkv"), [self.qkv_rows(), dim], self.qkv_bias);
        let proj = linear(
            &format!("{core}.attn.proj"),
            [self.written(dim), self.v_width()],
            true,
        );
        qkv.into_iter().chain(proj).collect()
    }

    /// How many numbers that are.
    pub(in crate::spec) fn parameters(&self, dim: usize) -> usize {
        let (rows, written) = (self.qkv_rows(), self.written(dim));
        let bias = if self.qkv_bias { rows } else { 0 };
        rows * dim + bias + written * self.v_width() + written
    }
}

impl MlpSpec {
    /// Its matrices; `core` is the prefix of their names, `dim` the width of the stream.
    pub(in crate::spec) fn tensors(&self, core: &str, dim: usize) -> Vec<TensorSpec> {
        let fc1 = linear(&format!("{core}.mlp.fc1"), [self.hidden, dim], true);
        let fc2 = linear(&format!("{core}.mlp.fc2"), [self.written(dim), self.hidden], true);
        fc1.into_iter().chain(fc2).collect()
    }

    /// How many numbers that are.
    pub(in crate::spec) fn parameters(&self, dim: usize) -> usize {
        let written = self.written(dim);
        self.hidden * dim + self.hidden + written * self.hidden + written
    }
}

/// A layer norm.
pub(in crate::spec) fn norm(name: &str, width: usize) -> [TensorSpec; 2] {
    [
        TensorSpec::parameter(format!("{name}.weight"), &[width], Init::Ones),
        TensorSpec::parameter(format!("{name}.bias"), &[width], Init::Zeros),
    ]
}

/// A linear map of this shape, `[out, in]`.
pub(in crate::spec) fn linear(name: &str, shape: [usize; 2], bias: bool) -> Vec<TensorSpec> {
    let mut out = vec![TensorSpec::parameter(format!("{name}.weight"), &shape, TRUNC)];
    if bias {
        out.push(TensorSpec::parameter(
            format!("{name}.bias"),
            &shape[..1],
            Init::Zeros,
        ));
    }
    out
}
