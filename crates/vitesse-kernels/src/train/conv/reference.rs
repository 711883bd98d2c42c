//! Convolutions written plainly: what the fast ones are compared with.

use super::Conv;

impl Conv {
    /// Calls `f` for every product of a convolution with the indices of output, input and weight.
    fn for_each_product(&self, mut f: impl FnMut(usize, usize, usize)) {
        let [height, width] = self.size;
        let [height_out, width_out] = self.size_out();
        let (inner, outer) = (self.channels_in / self.groups, self.channels_out / self.groups);
        // The input's row or column under a tap, unless it is padding.
        let under = |side: usize, output: usize, tap: usize| {
            let at = (output * self.stride[side] + tap).checked_sub(self.padding[side])?;
            (at < self.size[side]).then_some(at)
        };
        for image in 0..self.batch {
            for out in 0..self.channels_out {
                let plane_out = self.plane(self.channels_out, image, out);
                for channel in 0..inner {
                    let plane = self.plane(self.channels_in, image, out / outer * inner + channel);
                    for row in 0..self.kernel[0] {
                        for column in 0..self.kernel[1] {
                            let weight =
                                ((out * inner + channel) * self.kernel[0] + row) * self.kernel[1] + column;
                            for y_out in 0..height_out {
                                for x_out in 0..width_out {
                                    if let (Some(y), Some(x)) =
                                        (under(0, y_out, row), under(1, x_out, column))
                                    {
                                        f(
                                            (plane_out * height_out + y_out) * width_out + x_out,
                                            (plane * height + y) * width + x,
                                            weight,
                                        );
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// [`Conv::forward`]
pub fn forward(conv: &Conv, input: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0; conv.output_len()];
    conv.for_each_product(|o, i, w| out[o] += input[i] * weight[w]);
    if let Some(bias) = bias {
        let area = out.len() / (conv.batch * conv.channels_out);
        for (channel, bias) in bias.iter().enumerate() {
            for image in 0..conv.batch {
                let plane = conv.plane(conv.channels_out, image, channel) * area;
                out[plane..plane + area].iter_mut().for_each(|out| *out += bias);
            }
        }
    }
    out
}

/// [`Conv::backward_input`]
pub fn backward_input(conv: &Conv, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; conv.input_len()];
    conv.for_each_product(|o, i, w| out[i] += grad[o] * weight[w]);
    out
}

/// [`Conv::backward_weight`]
pub fn backward_weight(conv: &Conv, input: &[f32], grad: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; conv.weight_len()];
    conv.for_each_product(|o, i, w| out[w] += grad[o] * input[i]);
    out
}

/// [`Conv::backward_bias`]
pub fn backward_bias(conv: &Conv, grad: &[f32]) -> Vec<f32> {
    let area = grad.len() / (conv.batch * conv.channels_out);
    let channel = |channel| -> f32 {
        let planes = (0..conv.batch).map(|image| conv.plane(conv.channels_out, image, channel) * area);
        planes.flat_map(|at| &grad[at..at + area]).sum()
    };
    (0..conv.channels_out).map(channel).collect()
}
