//! Copies of maps in which a tap is a shift.
//!
//! Let the kernel be `k`, the stride `s` and the padding `p`. Output `o` reads, for tap `j`, input `o·s + j − p`. With the
//! padded input sorted by phase `f = j mod s`, place `t` of phase `f` holding input `t·s + f − p` (zero outside), tap `j`
//! of output `o` is place `o + j div s`: the outputs of one tap are consecutive places. So are, with rows a fixed pitch
//! apart, those of consecutive rows, between which lie a few places that are no outputs.
//!
//! The gradient of input `i = u·s + f − p` is the sum over taps `j = f + m·s` of weight × the output's gradient at `u − m`:
//! for each `f` the same thing with stride one.
//!
//! A row's padding on the right is the next row's on the left, so it is stored once; and so it is between the images of a
//! run, from top to bottom.

use std::ops::Range;

use crate::simd::Simd;

/// One side, height or width, of the copy, and what is computed along it.
#[derive(Debug)]
pub(super) struct Geometry {
    /// Places from one row (or image) to the next.
    pitch: usize,
    /// Distance in the original between two places.
    step: usize,
    /// What each phase's places hold.
    sources: Vec<Source>,
    /// The outputs, sorted by which taps they read.
    pub(super) outputs: Vec<Outputs>,
}

/// What the places of one phase hold: zeros, then the original from `first` on, then zeros.
#[derive(Debug)]
struct Source {
    lead: usize,
    first: usize,
    end: usize,
}

/// Outputs `first + n·step` for `n < count`. The `n`-th reads place `n + tap.place` of every tap.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) first: usize,
    pub(super) step: usize,
    pub(super) count: usize,
    pub(super) taps: Vec<Tap>,
}

/// A row or column of the kernel.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) index: usize,
    source: usize,
    place: usize,
}

impl Geometry {
    /// For some outputs of a side of `size` pixels.
    pub(super) fn forward(
        size: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        outputs: Range<usize>,
    ) -> Geometry {
        let start = signed(outputs.start * stride) - signed(padding);
        let phases = (0..stride.min(kernel)).map(|phase| {
            let needed = outputs.len() + (kernel - 1 - phase) / stride;
            (start + signed(phase), needed)
        });
        let taps = (0..kernel).map(|index| Tap {
            index,
            source: index % stride,
            place: index / stride,
        });
        let all = Outputs {
            first: outputs.start,
            step: 1,
            count: outputs.len(),
            taps: taps.collect(),
        };
        Geometry::new(size, stride, phases, vec![all])
    }

    /// For the gradients of some inputs, from a side of `size` output gradients.
    pub(super) fn backward(
        size: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        inputs: Range<usize>,
    ) -> Geometry {
        // Phases that have taps, each with its range of `u`.
        let ranges: Vec<(usize, Range<usize>)> = (0..stride.min(kernel))
            .map(|phase| {
                let bound = |input: usize| (input + padding).saturating_sub(phase).div_ceil(stride);
                (phase, bound(inputs.start)..bound(inputs.end))
            })
            .filter(|(_, range)| !range.is_empty())
            .collect();
        let taps = |phase: usize| (kernel - phase).div_ceil(stride);
        let low = |(phase, range): &(usize, Range<usize>)| signed(range.start) + 1 - signed(taps(*phase));
        let start = ranges.iter().map(low).min().unwrap_or(0);
        let end = ranges.iter().map(|(_, range)| range.end).max().unwrap_or(0);
        let outputs = (0..stride.min(kernel)).map(|phase| {
            let range = ranges.iter().find(|(of, _)| *of == phase);
            let range = range.map_or(0..0, |(_, range)| range.clone());
            let tap = |m| Tap {
                index: phase + m * stride,
                source: 0,
                place: (signed(range.start) - signed(m) - start).max(0).unsigned_abs(),
            };
            Outputs {
                first: (range.start * stride + phase).saturating_sub(padding),
                step: stride,
                count: range.len(),
                taps: (0..taps(phase)).map(tap).collect(),
            }
        });
        let needed = (signed(end) - start).max(0).unsigned_abs();
        Geometry::new(size, 1, [(start, needed)].into_iter(), outputs.collect())
    }

    /// Of each phase: which original its place 0 holds, and how many places are read.
    fn new(
        size: usize,
        step: usize,
        phases: impl Iterator<Item = (isize, usize)>,
        outputs: Vec<Outputs>,
    ) -> Geometry {
        let mut pitch = outputs.iter().map(|outputs| outputs.count).max().unwrap_or(0);
        let mut sources = Vec::new();
        for (start, needed) in phases {
            let lead = (-start).max(0).unsigned_abs().div_ceil(step);
            let end = (signed(size) - start).max(0).unsigned_abs().div_ceil(step);
            // What is read behind the last place is the lead of the next row.
            pitch = pitch.max(end.min(needed)).max(needed.saturating_sub(lead));
            let first = (start + signed(lead * step)).max(0).unsigned_abs();
            sources.push(Source { lead, first, end });
        }
        Geometry {
            pitch,
            step,
            sources,
            outputs,
        }
    }

    /// The side as it is, `kept` of it and zeros elsewhere, with the pitch of another.
    pub(super) fn plain(kept: Range<usize>, pitch: usize) -> Geometry {
        let source = Source {
            lead: 0,
            first: kept.start,
            end: kept.len(),
        };
        Geometry {
            pitch,
            step: 1,
            sources: vec![source],
            outputs: Vec::new(),
        }
    }

    fn lead(&self) -> usize {
        self.sources.iter().map(|source| source.lead).max().unwrap_or(0)
    }
}

/// The copy of some channels of some images.
#[derive(Debug)]
pub(super) struct Planes {
    pub(super) rows: Geometry,
    pub(super) columns: Geometry,
    images: usize,
    /// Numbers from one phase of a channel to the next.
    plane: usize,
}

/// Numbers behind the last plane that a vector may read or write.
const SLACK: usize = 16;

impl Planes {
    pub(super) fn new(rows: Geometry, columns: Geometry, images: usize) -> Planes {
        // Behind the last row and image stands what would be the next one's lead.
        let tail = rows.lead() * columns.pitch + columns.lead();
        let plane = (images * rows.pitch * columns.pitch + tail).next_multiple_of(16);
        // Planes a multiple of a page apart would share their places in the first cache.
        let plane = if plane.is_multiple_of(256) {
            plane + 16
        } else {
            plane
        };
        Planes {
            rows,
            columns,
            images,
            plane,
        }
    }

    /// A copy of maps of the outputs' size in which each lies where [`Planes::place`] has the output.
    pub(super) fn of_outputs(&self, rows: Range<usize>, columns: usize) -> Planes {
        Planes::new(
            Geometry::plain(rows, self.rows.pitch),
            Geometry::plain(0..columns, self.columns.pitch),
            self.images,
        )
    }

    /// Places from one image to the next.
    pub(super) fn image(&self) -> usize {
        self.rows.pitch * self.columns.pitch
    }

    /// The place of the first column of a row of outputs.
    pub(super) fn place(&self, image: usize, row: usize) -> usize {
        image * self.image() + row * self.columns.pitch
    }

    /// The places up to the last output of the last image.
    pub(super) fn places(&self, count: [usize; 2]) -> usize {
        if count.contains(&0) {
            return 0;
        }
        self.place(self.images - 1, count[0] - 1) + count[1]
    }

    /// Numbers in the copy of so many channels.
    pub(super) fn len(&self, channels: usize) -> usize {
        self.start(channels, 0, 0) + SLACK
    }

    /// Where the first place of a tap is.
    pub(super) fn offset(&self, channel: usize, row: &Tap, column: &Tap) -> usize {
        self.start(channel, row.source, column.source) + row.place * self.columns.pitch + column.place
    }

    /// Where a phase of a channel begins.
    pub(super) fn start(&self, channel: usize, row: usize, column: usize) -> usize {
        let (rows, columns) = (self.rows.sources.len(), self.columns.sources.len());
        ((channel * rows + row) * columns + column) * self.plane
    }

    /// Copies `channels` of the maps that `plane(channel, image)` gives, `width` numbers a row, each followed by whatever
    /// follows it in memory. Every number of the copy is written.
    #[inline(always)]
    pub(super) fn fill<'a, S: Simd>(
        &self,
        to: &mut Vec<f32>,
        channels: usize,
        width: usize,
        plane: impl Fn(usize, usize) -> &'a [f32],
    ) {
        to.resize(self.len(channels), 0.0);
        let mut at = 0;
        for channel in 0..channels {
            for rows in &self.rows.sources {
                for columns in &self.columns.sources {
                    for image in 0..self.images {
                        self.fill_map::<S>(
                            &mut to[at + image * self.image()..],
                            rows,
                            columns,
                            width,
                            plane(channel, image),
                        );
                    }
                    let end = at + self.plane;
                    to[at + self.images * self.image()..end].fill(0.0);
                    at = end;
                }
            }
        }
        to[at..].fill(0.0);
    }

    /// One map. Vectors may write behind the end of a row, of the map and of the plane: what belongs there is written
    /// after it, and behind the last plane is slack.
    #[inline(always)]
    fn fill_map<S: Simd>(&self, to: &mut [f32], rows: &Source, columns: &Source, width: usize, from: &[f32]) {
        let pitch = self.columns.pitch;
        let above = rows.lead.min(self.rows.pitch);
        let height = rows.end.min(self.rows.pitch).saturating_sub(above);
        let lead = columns.lead.min(pitch);
        let end = columns.end.clamp(lead, pitch);
        zero::<S>(to, above * pitch);
        for row in 0..height {
            let to = &mut to[(above + row) * pitch..];
            let from = &from[(rows.first + row * self.rows.step) * width..];
            zero::<S>(to, lead);
            if lead < end {
                gather::<S>(
                    &mut to[lead..],
                    end - lead,
                    &from[columns.first..],
                    self.columns.step,
                );
            }
            zero::<S>(&mut to[end..], pitch - end);
        }
        let below = above + height;
        zero::<S>(&mut to[below * pitch..], (self.rows.pitch - below) * pitch);
    }
}

/// Zeros to `to[..count]` and, by whole vectors, behind.
#[inline(always)]
fn zero<S: Simd>(to: &mut [f32], count: usize) {
    for at in (0..count).step_by(S::LANES) {
        S::store(S::splat(0.0), &mut to[at..]);
    }
}

/// `to[n] = from[n · step]` for `n < count`, and anything for what remains of the last vector.
#[inline(always)]
fn gather<S: Simd>(to: &mut [f32], count: usize, from: &[f32], step: usize) {
    match step {
        1 if from.len() >= count.next_multiple_of(S::LANES) => {
            for at in (0..count).step_by(S::LANES) {
                S::store(S::load(&from[at..]), &mut to[at..]);
            }
        }
        2 if from.len() >= 2 * count.next_multiple_of(S::LANES) => {
            for at in (0..count).step_by(S::LANES) {
                let pair = &from[2 * at..][..2 * S::LANES];
                S::store(S::evens(S::load(pair), S::load(&pair[S::LANES..])), &mut to[at..]);
            }
        }
        _ => {
            let from = from.iter().step_by(step);
            to[..count]
                .iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to = *from);
        }
    }
}

fn signed(x: usize) -> isize {
    x as isize
}
