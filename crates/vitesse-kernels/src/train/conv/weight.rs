//! The gradient of the weight.

use std::ops::Range;

use rayon::prelude::*;

use super::convolve::Pass;
use super::{Conv, TASKS, WORTH_A_TASK, tile};
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;

/// Places of a run: so many that adding up the lanes of a vector at the end costs little.
const PLACES: usize = 2048;
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
    pub fn backward_weight(&self, isa: Isa, input: &[f32], grad: &[f32]) -> Vec<f32> {
        self.check(input.len() == self.input_len() && grad.len() == self.output_len());
        let pass = Pass::forward(self);
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
        let [area_in, area_out] = [self.size, self.size_out()].map(|[height, width]| height * width);
        tasks.into_par_iter().with_min_len(worth).for_each_init(
            || (Vec::new(), Vec::new()),
            |(copy, grads), task| {
                for run in &runs[task.runs] {
                    let phase = &run.phases[0];
                    let input = |channel: usize, image: usize| {
                        let channel = task.group * pass.inner + channel;
                        let plane = self.plane(self.channels_in, run.images.start + image, channel);
                        &input[plane * area_in..][..area_in]
                    };
                    run.planes.fill(copy, pass.inner, self.size[1], input);
                    let [height, width] = phase.count;
                    let outputs = run
                        .planes
                        .of_outputs(phase.first[0]..phase.first[0] + height, width);
                    let grad = |channel: usize, image: usize| {
                        let channel = task.group * pass.outer + task.first + channel;
                        let plane = self.plane(self.channels_out, run.images.start + image, channel);
                        &grad[plane * area_out..][..area_out]
                    };
                    outputs.fill(grads, task.sums.len() / depth, width, grad);
                    isa.run(Dot {
                        grads,
                        stride: outputs.start(1, 0, 0),
                        copy,
                        offsets: &phase.offsets,
                        used: run.planes.places(phase.count),
                        to: task.sums,
                    });
                }
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

/// [`tile::dot`] for each instruction set.
struct Dot<'a> {
    grads: &'a [f32],
    stride: usize,
    copy: &'a [f32],
    offsets: &'a [usize],
    used: usize,
    to: &'a mut [f32],
}

impl Kernel for Dot<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        // Behind the last output both copies go on, the gradients' with zeros.
        let used = self.used.next_multiple_of(S::LANES);
        tile::dot::<S>(self.grads, self.stride, self.copy, self.offsets, used, self.to);
    }
}
