//! The forward pass, and the input's gradient, which is one too.

use std::ops::Range;

use rayon::prelude::*;

use super::geometry::{Geometry, Planes};
use super::tile::{self, Packed};
use super::{Conv, TASKS, WORTH_A_TASK};
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;

/// Most numbers in the copy of a group's maps that a task works on: a megabyte, half of a processor's second cache.
const LARGEST_COPY: usize = 1 << 18;
/// Fewest places of a task, where the batch has them: two tiles of the widest vectors.
const FEWEST_PLACES: usize = 96;

/// What one pass computes: the maps of a group, `inner` of size `from`, become `outer` of size `to`.
pub(super) struct Pass {
    pub(super) inner: usize,
    pub(super) outer: usize,
    from: [usize; 2],
    to: [usize; 2],
    /// Geometry of a side for some of its outputs.
    side: fn(&Conv, usize, Range<usize>) -> Geometry,
    /// Index in a group's weights of channel 0's weight for an inner channel and a tap, and its distance to channel 1's.
    weight: fn(&Conv, usize, usize) -> usize,
    weight_stride: usize,
}

/// Some images, or some rows of one, with all that is the same for every group.
pub(super) struct Run {
    pub(super) images: Range<usize>,
    pub(super) planes: Planes,
    pub(super) phases: Vec<Phase>,
}

/// Outputs that read the same taps: all of a forward pass, every `stride`-th of the input's gradient.
pub(super) struct Phase {
    /// First output row and column, distance of the next, and how many.
    pub(super) first: [usize; 2],
    step: [usize; 2],
    pub(super) count: [usize; 2],
    /// Where in the copy the first place of each (inner channel, tap) is.
    pub(super) offsets: Vec<usize>,
    /// The same (inner channel, tap)'s place among a group's weights.
    weights: Vec<usize>,
}

impl Pass {
    /// The output from the input.
    pub(super) fn forward(conv: &Conv) -> Pass {
        Pass {
            inner: conv.channels_in / conv.groups,
            outer: conv.channels_out / conv.groups,
            from: conv.size,
            to: conv.size_out(),
            side: |conv, side, outputs| {
                let [size, kernel, stride, padding] =
                    [conv.size, conv.kernel, conv.stride, conv.padding].map(|pair| pair[side]);
                Geometry::forward(size, kernel, stride, padding, outputs)
            },
            weight: |conv, channel, tap| channel * conv.taps() + tap,
            weight_stride: conv.weights_of_channel(),
        }
    }

    /// The input's gradient from the output's.
    pub(super) fn backward(conv: &Conv) -> Pass {
        Pass {
            inner: conv.channels_out / conv.groups,
            outer: conv.channels_in / conv.groups,
            from: conv.size_out(),
            to: conv.size,
            side: |conv, side, inputs| {
                let [size, kernel, stride, padding] =
                    [conv.size_out(), conv.kernel, conv.stride, conv.padding].map(|pair| pair[side]);
                Geometry::backward(size, kernel, stride, padding, inputs)
            },
            weight: |conv, channel, tap| channel * conv.weights_of_channel() + tap,
            weight_stride: conv.taps(),
        }
    }
}

impl Conv {
    /// The batch in runs of at most about `places` places, each with its geometry.
    pub(super) fn runs(&self, pass: &Pass, places: usize) -> Vec<Run> {
        let [height, width] = pass.to;
        if self.batch * height * width == 0 {
            return Vec::new();
        }
        let one = Planes::new((pass.side)(self, 0, 0..height), (pass.side)(self, 1, 0..width), 1);
        let (area, copy) = (one.image(), one.len(pass.inner));
        let run = |images, rows| Run::new(self, pass, images, rows);
        if copy <= LARGEST_COPY && area <= 2 * places {
            let images = (LARGEST_COPY / copy)
                .min(places / area)
                .max(FEWEST_PLACES.div_ceil(area));
            let starts = (0..self.batch).step_by(images);
            return starts
                .map(|first| run(first..self.batch.min(first + images), 0..height))
                .collect();
        }
        let rows = (LARGEST_COPY * height / copy)
            .min(places * height / area)
            .max((FEWEST_PLACES * height).div_ceil(area));
        // Bands of equal height.
        let rows = height.div_ceil(height.div_ceil(rows));
        let bands = (0..self.batch).flat_map(|image| (0..height).step_by(rows).map(move |row| (image, row)));
        bands
            .map(|(image, row)| run(image..image + 1, row..height.min(row + rows)))
            .collect()
    }

    /// The forward pass, or that of the input's gradient.
    pub(super) fn convolve(
        &self,
        isa: Isa,
        pass: &Pass,
        from: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let (inner, outer) = (pass.inner, pass.outer);
        let mut out = vec![0.0; self.batch * self.groups * outer * pass.to[0] * pass.to[1]];
        let runs = self.runs(pass, (8192 / inner).clamp(1024, 4096));
        let Some(run) = runs.first() else {
            return out;
        };
        let blocks = tile::blocks(isa, outer);
        let packed: Vec<_> = run
            .phases
            .iter()
            .map(|phase| Packed::new(weight, self.groups, &phase.weights, pass.weight_stride, &blocks))
            .collect();
        let parts = self.parts(runs.len(), outer);
        let each = blocks.len().div_ceil(parts);
        let tasks: Vec<(usize, usize, usize)> = (0..runs.len())
            .flat_map(|run| (0..self.groups).map(move |group| (run, group)))
            .flat_map(|(run, group)| {
                (0..blocks.len())
                    .step_by(each)
                    .map(move |block| (run, group, block))
            })
            .collect();
        let worth = (WORTH_A_TASK * tasks.len() / self.macs().max(1)).max(1);
        let rows = Rows {
            first: out.as_mut_ptr(),
            len: out.len(),
        };
        tasks.par_iter().with_min_len(worth).for_each_init(
            || (Vec::new(), Vec::new()),
            |(copy, places), &(run, group, block)| {
                let run = &runs[run];
                let plane = |channel: usize, image: usize| {
                    let area = pass.from[0] * pass.from[1];
                    let (channel, image) = (group * inner + channel, run.images.start + image);
                    &from[self.plane(self.groups * inner, image, channel) * area..][..area]
                };
                run.planes.fill(copy, inner, pass.from[1], plane);
                let blocks = &blocks[block..blocks.len().min(block + each)];
                for (phase, packed) in run.phases.iter().zip(&packed) {
                    let used = run.planes.places(phase.count);
                    if used == 0 || phase.offsets.is_empty() {
                        continue;
                    }
                    for block in blocks {
                        isa.run(Block {
                            copy,
                            offsets: &phase.offsets,
                            weights: packed.block(group, block),
                            width: block.width,
                            used,
                            places,
                        });
                        for lane in 0..block.range.len() {
                            let channel = group * outer + block.range.start + lane;
                            let bias = bias.map_or(0.0, |bias| bias[channel]);
                            let places = &places[lane * tile::pitch(used)..][..used];
                            for image in 0..run.images.len() {
                                let plane =
                                    self.plane(self.groups * outer, run.images.start + image, channel);
                                for row in 0..phase.count[0] {
                                    let y = phase.first[0] + row * phase.step[0];
                                    let at = (plane * pass.to[0] + y) * pass.to[1];
                                    // SAFETY: no other task has this image, these rows and this channel, and no
                                    // other row of this task is borrowed.
                                    let to = unsafe { rows.row(at, pass.to[1]) };
                                    let places = &places[run.planes.place(image, row)..][..phase.count[1]];
                                    write(&mut to[phase.first[1]..], phase.step[1], places, bias);
                                }
                            }
                        }
                    }
                }
            },
        );
        out
    }

    /// In how many parts the output channels of a group are taken where runs and groups alone are few: each part copies
    /// the maps anew, so it must have work enough for that.
    fn parts(&self, runs: usize, outer: usize) -> usize {
        let most = (outer * self.taps() / 512).max(1);
        TASKS.div_ceil((runs * self.groups).max(1)).min(most)
    }
}

impl Run {
    fn new(conv: &Conv, pass: &Pass, images: Range<usize>, rows: Range<usize>) -> Run {
        let (rows, columns) = ((pass.side)(conv, 0, rows), (pass.side)(conv, 1, 0..pass.to[1]));
        let planes = Planes::new(rows, columns, images.len());
        let mut phases = Vec::new();
        for y in &planes.rows.outputs {
            for x in &planes.columns.outputs {
                let mut phase = Phase {
                    first: [y.first, x.first],
                    step: [y.step, x.step],
                    count: [y.count, x.count],
                    offsets: Vec::new(),
                    weights: Vec::new(),
                };
                for channel in 0..pass.inner {
                    for row in &y.taps {
                        for column in &x.taps {
                            let tap = row.index * conv.kernel[1] + column.index;
                            phase.offsets.push(planes.offset(channel, row, column));
                            phase.weights.push((pass.weight)(conv, channel, tap));
                        }
                    }
                }
                phases.push(phase);
            }
        }
        Run {
            images,
            planes,
            phases,
        }
    }
}

/// `places[channel · pitch + q] = Σ_k weights[k][channel] · copy[offsets[k] + q]` for the `used` first places `q`.
struct Block<'a> {
    copy: &'a [f32],
    offsets: &'a [usize],
    weights: &'a [f32],
    width: usize,
    used: usize,
    places: &'a mut Vec<f32>,
}

impl Kernel for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let pitch = tile::pitch(self.used);
        if self.places.len() < self.width * pitch {
            self.places.resize(self.width * pitch, 0.0);
        }
        tile::block::<S>(
            self.copy,
            self.offsets,
            self.weights,
            self.width,
            self.used,
            self.places,
        );
    }
}

/// The rows of an output that tasks write, each row by one task.
struct Rows {
    first: *mut f32,
    len: usize,
}

// SAFETY: whoever calls `row` makes sure that no two threads have the same one.
unsafe impl Sync for Rows {}

impl Rows {
    /// # Safety
    /// While the slice lives no other overlaps it, and the output is not touched otherwise.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len);
        // SAFETY: inside the output, as was just checked; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }
}

/// `values + bias` to every `step`-th number of `to`.
#[inline]
fn write(to: &mut [f32], step: usize, values: &[f32], bias: f32) {
    if step == 1 {
        to.iter_mut()
            .zip(values)
            .for_each(|(to, value)| *to = value + bias);
    } else {
        let to = to.iter_mut().step_by(step);
        to.zip(values).for_each(|(to, value)| *to = value + bias);
    }
}
