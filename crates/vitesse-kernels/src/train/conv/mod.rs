//! Convolutions of images, forward and backward: dense, grouped and depth-wise.
//!
//! All three passes are products over shifted copies. The maps of a group are copied once, padded with zeros and, where
//! the stride is not one, sorted by what the position leaves when divided by it (`geometry`); there each tap of the kernel
//! is the whole map from another place on. An output is then a sum over taps of weight × shifted map, computed for eight
//! channels and three vectors of pixels at a time (`tile`), and the gradient of a weight is the product of two shifted
//! maps. Rows lie behind one another in the copy, and so do images, so that small maps fill vectors too; what is computed
//! between rows and between images is left out when results are written.
//!
//! The gradient of the input is such a convolution itself: of the output's gradient, with each of the `stride²` parts of
//! the kernel on its own.
//!
//! Dense 1×1 convolutions are products of matrices where the layout allows (`pointwise`): they alone heed the precision,
//! everything else is `f32`.
//!
//! Work is cut into tasks by the shapes alone, and what several tasks add up is added in order: results are bit-identical
//! for any number of threads.

mod convolve;
mod geometry;
mod pointwise;
pub mod reference;
mod tile;
mod weight;

use rayon::prelude::*;

use self::convolve::Pass;
use super::Math;

/// Multiply-adds for which starting a task on another thread is worth while.
const WORTH_A_TASK: usize = 1 << 20;
/// Tasks that a pass over groups too few for many threads is cut into.
const TASKS: usize = 64;

/// How the planes (height × width) of images lie behind one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// `[batch, channels, height, width]`
    #[default]
    BatchFirst,
    /// `[channels, batch, height, width]`
    ChannelsFirst,
}

/// A two-dimensional convolution (cross-correlation) with zero padding, as `conv2d` of every framework.
///
/// The weight is `[channels_out, channels_in / groups, kernel height, kernel width]`. Input, output and their gradients
/// have one layout; pairs are height, then width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Groups of channels that see nothing of each other; divides both numbers of channels.
    pub groups: usize,
    /// Sides of the kernel.
    pub kernel: [usize; 2],
    /// Pixels from one output to the next.
    pub stride: [usize; 2],
    /// Zeros before and after each side of the input.
    pub padding: [usize; 2],
    /// Sides of the input.
    pub size: [usize; 2],
    /// How the planes of input and output lie.
    pub layout: Layout,
}

impl Conv {
    /// Height and width of the output.
    ///
    /// # Panics
    /// Where a stride is zero, or the kernel is larger than the padded input.
    pub fn size_out(&self) -> [usize; 2] {
        [0, 1].map(|side| {
            let padded = self.size[side] + 2 * self.padding[side];
            assert!(self.kernel[side] > 0 && self.kernel[side] <= padded, "{self:?}");
            (padded - self.kernel[side]) / self.stride[side] + 1
        })
    }

    /// Multiply-adds of a forward pass.
    pub fn macs(&self) -> usize {
        self.batch * self.weight_len() * self.size_out().iter().product::<usize>()
    }

    /// Numbers in the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.channels_in * self.size.iter().product::<usize>()
    }

    /// Numbers in the weight.
    pub fn weight_len(&self) -> usize {
        self.channels_out * self.weights_of_channel()
    }

    /// Numbers in the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.channels_out * self.size_out().iter().product::<usize>()
    }

    /// The output.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn forward(&self, math: Math, input: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        self.check(input.len() == self.input_len() && weight.len() == self.weight_len());
        self.check(bias.is_none_or(|bias| bias.len() == self.channels_out));
        if self.is_product() {
            return self.product(math, input, weight, bias);
        }
        self.convolve(math.isa, &Pass::forward(self), input, weight, bias)
    }

    /// The input's gradient from the output's.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward_input(&self, math: Math, grad: &[f32], weight: &[f32]) -> Vec<f32> {
        self.check(grad.len() == self.output_len() && weight.len() == self.weight_len());
        if self.is_product() {
            return self.product_for_input(math, grad, weight);
        }
        self.convolve(math.isa, &Pass::backward(self), grad, weight, None)
    }

    /// The bias's gradient from the output's: the sum over images and pixels of each channel.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward_bias(&self, grad: &[f32]) -> Vec<f32> {
        self.check(grad.len() == self.output_len());
        let area: usize = self.size_out().iter().product();
        let channel = |channel| {
            let planes = (0..self.batch).map(|image| self.plane(self.channels_out, image, channel) * area);
            planes.map(|at| sum(&grad[at..at + area])).sum()
        };
        (0..self.channels_out).into_par_iter().map(channel).collect()
    }

    fn check(&self, fits: bool) {
        let divides = |channels: usize| channels > 0 && channels.is_multiple_of(self.groups);
        assert!(self.groups > 0 && divides(self.channels_in) && divides(self.channels_out));
        assert!(fits, "slices that do not fit {self:?}");
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn weights_of_channel(&self) -> usize {
        self.channels_in / self.groups * self.taps()
    }

    /// Which plane of `channels` is this one.
    fn plane(&self, channels: usize, image: usize, channel: usize) -> usize {
        match self.layout {
            Layout::BatchFirst => image * channels + channel,
            Layout::ChannelsFirst => channel * self.batch + image,
        }
    }
}

/// The sum in 16 lanes, which are then added.
fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
