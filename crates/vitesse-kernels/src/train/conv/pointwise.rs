//! Dense 1×1 convolutions of maps whose channels come first: one product over all pixels of the batch.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Conv, Layout};
use crate::train::Math;
use crate::train::blocks::Matrix;
use crate::train::product::{Operand, Plain, product};

impl Conv {
    /// Whether this is one.
    pub(super) fn is_product(&self) -> bool {
        let dense = self.kernel == [1, 1] && self.padding == [0, 0] && self.groups == 1;
        dense && self.layout == Layout::ChannelsFirst && self.output_len() > 0
    }

    /// Weight `[out, in]` · input `[in, pixels]`.
    pub(super) fn product(
        &self,
        math: Math,
        input: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let input = self.seen(input);
        let pixels = input.len() / self.channels_in;
        let (weight, input) = (Matrix::new(weight, self.channels_in), Matrix::new(&input, pixels));
        let (mut out, _) = product(math, Operand::Upright(weight), Operand::Upright(input), &Plain);
        if let Some(bias) = bias {
            out.par_chunks_mut(pixels)
                .zip(bias)
                .for_each(|(out, bias)| out.iter_mut().for_each(|out| *out += bias));
        }
        out
    }

    /// Weightᵀ · gradient `[out, pixels]`.
    pub(super) fn product_for_input(&self, math: Math, grad: &[f32], weight: &[f32]) -> Vec<f32> {
        let (weight, grad) = (
            Matrix::new(weight, self.channels_in),
            Matrix::new(grad, grad.len() / self.channels_out),
        );
        let (seen, _) = product(math, Operand::Transposed(weight), Operand::Upright(grad), &Plain);
        if self.stride == [1, 1] {
            return seen;
        }
        let mut out = vec![0.0; self.input_len()];
        let [height, width] = self.size;
        let [height_out, width_out] = self.size_out();
        out.par_chunks_mut(height * width)
            .zip(seen.par_chunks(height_out * width_out))
            .for_each(|(to, from)| {
                let rows = to.chunks_mut(width).step_by(self.stride[0]);
                for (to, from) in rows.zip(from.chunks(width_out)) {
                    let to = to.iter_mut().step_by(self.stride[1]);
                    to.zip(from).for_each(|(to, from)| *to = *from);
                }
            });
        out
    }

    /// Gradient · inputᵀ.
    pub(super) fn product_for_weight(&self, math: Math, input: &[f32], grad: &[f32]) -> Vec<f32> {
        let input = self.seen(input);
        let pixels = input.len() / self.channels_in;
        let (grad, input) = (Matrix::new(grad, pixels), Matrix::new(&input, pixels));
        product(math, Operand::Upright(grad), Operand::Transposed(input), &Plain).0
    }

    /// The pixels of the input that the outputs stand on.
    fn seen<'a>(&self, input: &'a [f32]) -> Cow<'a, [f32]> {
        if self.stride == [1, 1] {
            return Cow::Borrowed(input);
        }
        let [height, width] = self.size;
        let [height_out, width_out] = self.size_out();
        let mut seen = vec![0.0; self.batch * self.channels_in * height_out * width_out];
        seen.par_chunks_mut(height_out * width_out)
            .zip(input.par_chunks(height * width))
            .for_each(|(to, from)| {
                let rows = from.chunks(width).step_by(self.stride[0]);
                for (to, from) in to.chunks_mut(width_out).zip(rows) {
                    let from = from.iter().step_by(self.stride[1]);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
            });
        Cow::Owned(seen)
    }
}
