//! The gradient of the weight.

use std::ops::Range;

use rayon::prelude::*;

use super::convolve::{Pass, Run};
use super::{Conv, TASKS, WORTH_A_TASK, tile};
use crate::isa::Kernel;
use crate::simd::Simd;
use crate::train::Math;

/// Places of a run: so many that adding up the lanes of a vector at the end costs little.
const PLACES: usize = 2048;
/// Most input channels that are taken at a time, so that the copy of a run's places fits into the cache.
const CHANNELS: usize = 112;
/// Most weights of all parts of the batch together, which are kept until they are added.
const MOST_PARTIALS: usize = 1 << 22;

/// The gradient of some output channels' weights from a part of the batch.
struct Task<'a> {
    runs: Range<usize>,
    group: usize,
    /// First channel in the group.
    first: usize,
    sums: &'a mut [f32],
}

impl Conv {
    /// The weight's gradient from the input and the output's gradient.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward_weight(&self, math: Math, input: &[f32], grad: &[f32]) -> Vec<f32> {
        self.check(input.len() == self.input_len() && grad.len() == self.output_len());
        if self.is_product() {
            return self.product_for_weight(math, input, grad);
        }
        let mut pass = Pass::forward(self);
        pass.inner = pass.inner.min(CHANNELS);
        let runs = self.runs(&pass, PLACES);
        let depth = self.weights_of_channel();
        let channels = (512 / self.taps()).next_multiple_of(8).min(pass.outer);
        // The batch is cut where groups and channels alone are too few tasks.
        let tasks = self.groups * pass.outer.div_ceil(channels);
        let parts = TASKS
            .div_ceil(tasks)
            .min(MOST_PARTIALS / self.weight_len())
            .min(runs.len())
            .max(1);
        let mut partials = vec![0.0; parts * self.weight_len()];
        let mut tasks = Vec::new();
        for (part, partial) in partials.chunks_exact_mut(self.weight_len()).enumerate() {
            for (group, sums) in partial.chunks_exact_mut(pass.outer * depth).enumerate() {
                for (block, sums) in sums.chunks_mut(channels * depth).enumerate() {
                    tasks.push(Task {
                        runs: runs.len() * part / parts..runs.len() * (part + 1) / parts,
                        group,
                        first: block * channels,
                        sums,
                    });
                }
            }
        }
        let worth = (WORTH_A_TASK * tasks.len() / self.macs().max(1)).max(1);
        tasks.into_par_iter().with_min_len(worth).for_each_init(
            || (Vec::new(), Vec::new()),
            |(copy, grads), task| {
                math.isa.run(Sum {
                    conv: self,
                    pass: &pass,
                    runs: &runs[task.runs.clone()],
                    task,
                    input,
                    grad,
                    copy,
                    grads,
                });
            },
        );
        add(partials, self.weight_len())
    }
}

/// The sum of the partial gradients, in their order.
fn add(mut partials: Vec<f32>, len: usize) -> Vec<f32> {
    let (sums, others) = partials.split_at_mut(len);
    sums.par_chunks_mut(4096).enumerate().for_each(|(chunk, sums)| {
        for partial in others.chunks_exact(len) {
            let partial = &partial[chunk * 4096..][..sums.len()];
            sums.iter_mut()
                .zip(partial)
                .for_each(|(sum, partial)| *sum += partial);
        }
    });
    partials.truncate(len);
    partials.shrink_to_fit();
    partials
}

/// The sums of a task.
struct Sum<'a> {
    conv: &'a Conv,
    /// The forward pass of as many input channels as are taken at a time.
    pass: &'a Pass,
    runs: &'a [Run],
    task: Task<'a>,
    input: &'a [f32],
    grad: &'a [f32],
    /// Memory for the copies of the inputs and of the gradients.
    copy: &'a mut Vec<f32>,
    grads: &'a mut Vec<f32>,
}

impl Kernel for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Sum { conv, pass, task, .. } = self;
        let (inner, depth) = (conv.channels_in / conv.groups, conv.weights_of_channel());
        let [area_in, area_out] = [conv.size, conv.size_out()].map(|[height, width]| height * width);
        for first in (0..inner).step_by(pass.inner) {
            let channels = pass.inner.min(inner - first);
            for run in self.runs {
                let phase = &run.phases[0];
                let input = |channel: usize, image: usize| {
                    let channel = task.group * inner + first + channel;
                    let plane = conv.plane(conv.channels_in, run.images.start + image, channel);
                    &self.input[plane * area_in..]
                };
                run.planes.fill::<S>(self.copy, channels, conv.size[1], input);
                let [height, width] = phase.count;
                let outputs = run
                    .planes
                    .of_outputs(phase.first[0]..phase.first[0] + height, width);
                let grad = |channel: usize, image: usize| {
                    let channel = task.group * pass.outer + task.first + channel;
                    let plane = conv.plane(conv.channels_out, run.images.start + image, channel);
                    &self.grad[plane * area_out..]
                };
                outputs.fill::<S>(self.grads, task.sums.len() / depth, width, grad);
                // Behind the last output both copies go on, the gradients' with zeros.
                let used = run.planes.places(phase.count).next_multiple_of(S::LANES);
                let offsets = &phase.offsets[..channels * conv.taps()];
                let sums = &mut task.sums[first * conv.taps()..];
                tile::dot::<S>(
                    self.grads,
                    outputs.start(1, 0, 0),
                    self.copy,
                    offsets,
                    used,
                    sums,
                    depth,
                );
            }
        }
    }
}
