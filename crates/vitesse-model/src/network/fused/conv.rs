//! Convolutions: dense, grouped and depth-wise.

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, module, s};
use vitesse_kernels::train::Math;
use vitesse_kernels::train::conv::Conv;
pub(crate) use vitesse_kernels::train::conv::Layout;

use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, math};

/// What a convolution is besides its weight. Pairs are height, then width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Convolution {
    /// Pixels from one output to the next.
    pub(crate) stride: [usize; 2],
    /// Zeros before and after each side.
    pub(crate) padding: [usize; 2],
    /// Groups of channels that see nothing of each other.
    pub(crate) groups: usize,
    /// The order of the axes of input and output.
    pub(crate) layout: Layout,
}

/// `x`, `[batch, in, height, width]` or with the first two swapped as `layout` says, by a weight
/// `[out, in / groups, kernel height, kernel width]` and a bias `[out]` to `out` channels in the same layout.
pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    convolution: Convolution,
    compute: Compute,
) -> Tensor<4> {
    if compute.fused
        && let Some(y) = fused(&x, &weight, bias.as_ref(), convolution, math(compute.precision))
    {
        return y;
    }
    let Convolution {
        stride,
        padding,
        groups,
        layout,
    } = convolution;
    let [channels_out, channels_in, kernel_height, kernel_width] = weight.dims();
    let dense = groups == 1 && padding == [0, 0] && [kernel_height, kernel_width] == [1, 1];
    if dense && layout == Layout::ChannelsFirst {
        // One product over all pixels.
        let x = x.slice(s![.., .., ..;stride[0], ..;stride[1]]);
        let [_, batch, height, width] = x.dims();
        let x = x.reshape([channels_in, batch * height * width]);
        let y = weight.reshape([channels_out, channels_in]).matmul(x);
        let y = match bias {
            Some(bias) => y + bias.reshape([channels_out, 1]),
            None => y,
        };
        return y.reshape([channels_out, batch, height, width]);
    }
    let options = ConvOptions::new(stride, padding, [1, 1], groups);
    match layout {
        Layout::BatchFirst => module::conv2d(x, weight, bias, options),
        Layout::ChannelsFirst => module::conv2d(x.swap_dims(0, 1), weight, bias, options).swap_dims(0, 1),
    }
}

fn fused(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    convolution: Convolution,
    math: Math,
) -> Option<Tensor<4>> {
    let [first, second, height, width] = x.dims();
    let [channels_out, _, kernel_height, kernel_width] = weight.dims();
    let swap = |pair: [usize; 2]| match convolution.layout {
        Layout::BatchFirst => pair,
        Layout::ChannelsFirst => [pair[1], pair[0]],
    };
    let [batch, channels_in] = swap([first, second]);
    let conv = Conv {
        batch,
        channels_in,
        channels_out,
        groups: convolution.groups,
        kernel: [kernel_height, kernel_width],
        stride: convolution.stride,
        padding: convolution.padding,
        size: [height, width],
        layout: convolution.layout,
    };
    let inputs = [Input::of(x)?, Input::of(weight)?, Input::of_option(bias)?];
    let ([height, width], [first, second]) = (conv.size_out(), swap([batch, channels_out]));
    Some(apply(
        Fused { conv, math },
        inputs,
        [first, second, height, width],
    ))
}

/// The segment; its inputs are x, weight and bias.
#[derive(Debug, Clone)]
struct Fused {
    conv: Conv,
    math: Math,
}

impl Segment<3> for Fused {
    const KEEPS: [bool; 3] = [true, true, false];
    type Saved = ();

    fn name(&self) -> String {
        let [height, width] = self.conv.kernel;
        let Conv {
            channels_in,
            channels_out,
            ..
        } = self.conv;
        format!("convolution {height}x{width}, {channels_in} to {channels_out}")
    }

    fn flops(&self, _: [&[f32]; 3], wanted: Option<[bool; 3]>) -> f64 {
        let products = wanted.map_or(1, |[x, weight, _]| usize::from(x) + usize::from(weight));
        2.0 * (products * self.conv.macs()) as f64
    }

    fn forward(&self, [x, weight, bias]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        let bias = (!bias.is_empty()).then_some(bias);
        (self.conv.forward(self.math, x, weight, bias), ())
    }

    fn backward(
        &self,
        [x, weight, _]: [&[f32]; 3],
        _: &[f32],
        (): &(),
        grad: &[f32],
        [of_x, of_weight, of_bias]: [bool; 3],
    ) -> [Option<Gradient>; 3] {
        [
            of_x.then(|| self.conv.backward_input(self.math, grad, weight)),
            of_weight.then(|| self.conv.backward_weight(self.math, x, grad)),
            of_bias.then(|| self.conv.backward_bias(grad)),
        ]
        .map(|values| values.map(Gradient::Values))
    }
}
