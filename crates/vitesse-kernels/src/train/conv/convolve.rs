//! The forward pass, and the input's gradient, which is one too.

use std::ops::Range;

use rayon::prelude::*;

use super::geometry::{Geometry, Planes};
use super::tile::{self, Channels, Packed};
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
                isa.run(Task {
                    conv: self,
                    pass,
                    run: &runs[run],
                    group,
                    blocks: &blocks[block..blocks.len().min(block + each)],
                    from,
                    weights: &packed,
                    bias,
                    out: &rows,
                    copy,
                    places,
                });
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

/// Some output channels of a group, for a run.
struct Task<'a> {
    conv: &'a Conv,
    pass: &'a Pass,
    run: &'a Run,
    group: usize,
    blocks: &'a [Channels],
    from: &'a [f32],
    /// Of each phase.
    weights: &'a [Packed],
    bias: Option<&'a [f32]>,
    out: &'a Rows,
    /// Memory for the copy of the inputs, and for the outputs of a block with what lies between them.
    copy: &'a mut Vec<f32>,
    places: &'a mut Vec<f32>,
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Task {
            conv,
            pass,
            run,
            group,
            ..
        } = self;
        let plane = |channel: usize, image: usize| {
            let channel = group * pass.inner + channel;
            let plane = conv.plane(conv.groups * pass.inner, run.images.start + image, channel);
            &self.from[plane * pass.from[0] * pass.from[1]..]
        };
        run.planes.fill::<S>(self.copy, pass.inner, pass.from[1], plane);
        for (phase, weights) in run.phases.iter().zip(self.weights) {
            let used = run.planes.places(phase.count);
            if used == 0 {
                continue;
            }
            let pitch = tile::pitch(used);
            for block in self.blocks {
                if self.places.len() < block.width * pitch {
                    self.places.resize(block.width * pitch, 0.0);
                }
                let weights = weights.block(group, block);
                tile::block::<S>(self.copy, &phase.offsets, weights, block.width, used, self.places);
                for (lane, channel) in block.range.clone().enumerate() {
                    let channel = group * pass.outer + channel;
                    let bias = self.bias.map_or(0.0, |bias| bias[channel]);
                    for image in 0..run.images.len() {
                        let plane = conv.plane(conv.groups * pass.outer, run.images.start + image, channel);
                        let start = (plane * pass.to[0] + phase.first[0]) * pass.to[1];
                        let len = (phase.count[0] - 1) * phase.step[0] * pass.to[1] + pass.to[1];
                        // SAFETY: no other task has this image, these rows and this channel, and this one holds no
                        // other slice of the output.
                        let to = unsafe { self.out.slice(start, len) };
                        let places = &self.places[lane * pitch + run.planes.place(image, 0)..];
                        phase.write::<S>(to, pass.to[1], places, run.planes.place(0, 1), bias);
                    }
                }
            }
        }
    }
}

impl Phase {
    /// Writes its outputs of one map, rows `pitch` apart in `places`, to the rows from the first to the last of them.
    #[inline(always)]
    fn write<S: Simd>(&self, to: &mut [f32], width: usize, places: &[f32], pitch: usize, bias: f32) {
        let count = self.count[1];
        let vectors = count.next_multiple_of(S::LANES);
        let add = S::splat(bias);
        for row in 0..self.count[0] {
            let to = &mut to[row * self.step[0] * width + self.first[1]..];
            let places = &places[row * pitch..];
            if self.step[1] > 1 {
                let to = to.iter_mut().step_by(self.step[1]);
                to.zip(&places[..count])
                    .for_each(|(to, value)| *to = value + bias);
            } else if self.step[0] == 1 && to.len() >= vectors && places.len() >= vectors {
                // What is written behind the row belongs to this task's next rows, which come after it.
                for at in (0..count).step_by(S::LANES) {
                    S::store(S::add(S::load(&places[at..]), add), &mut to[at..]);
                }
            } else {
                let to = to[..count].iter_mut();
                to.zip(&places[..count])
                    .for_each(|(to, value)| *to = value + bias);
            }
        }
    }
}

/// The output, of whose rows each is written by one task.
struct Rows {
    first: *mut f32,
    len: usize,
}

// SAFETY: whoever calls `slice` makes sure that no two threads have the same one.
unsafe impl Sync for Rows {}

impl Rows {
    /// # Safety
    /// While the slice lives no other overlaps it, and the output is not touched otherwise.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len);
        // SAFETY: inside the output, as was just checked; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }
}
