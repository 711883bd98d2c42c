//! Antialiased resizing, equal to Pillow's to the last bit.
//!
//! Reference accuracies were measured behind Pillow's resize, so its arithmetic is part of every checkpoint. For
//! `n → m` pixels along one axis, with `q = n/m` and `t = max(q, 1)`, output `i` has its centre at `c = (i + ½) q` and the
//! weights `f((k + ½ - c) / t)` over the inputs `k` within `t · support` of it, divided by their sum. The weights are rounded to
//! 22 fractional bits, the sums are integers. Columns first, rounded to 8 bits, then rows.
//!
//! Both passes are written so that the compiler sees independent lanes: the rows of a band (horizontal pass), the bytes of
//! a row (vertical pass). The widest instructions of the machine are chosen at run time; integers do not depend on it.

use serde::{Deserialize, Serialize};

use crate::Image;
use crate::image::RGB;

/// How pixels are weighed when a picture changes its size. Names as timm and Pillow spell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The pixel under the centre.
    Nearest,
    /// Mean over a box.
    Box,
    /// Triangle.
    Bilinear,
    /// Hamming-windowed sinc, support 1.
    Hamming,
    /// Cubic convolution with a = -0.5.
    #[default]
    Bicubic,
    /// Lanczos-windowed sinc, support 3.
    Lanczos,
}

impl Interpolation {
    /// Half the width of the filter in source pixels, before it is widened for shrinking.
    fn support(self) -> f64 {
        match self {
            Interpolation::Nearest | Interpolation::Box => 0.5,
            Interpolation::Bilinear | Interpolation::Hamming => 1.0,
            Interpolation::Bicubic => 2.0,
            Interpolation::Lanczos => 3.0,
        }
    }

    /// The filter's value at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { libm::sin(x) / x }
        };
        let distance = x.abs();
        match self {
            Interpolation::Nearest | Interpolation::Box => f64::from(x > -0.5 && x <= 0.5),
            Interpolation::Bilinear => (1.0 - distance).max(0.0),
            Interpolation::Hamming if distance >= 1.0 => 0.0,
            Interpolation::Hamming => {
                sinc(distance) * (0.54 + 0.46 * libm::cos(distance * std::f64::consts::PI))
            }
            Interpolation::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Interpolation::Bicubic if distance < 2.0 => {
                (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
            }
            Interpolation::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Interpolation::Bicubic | Interpolation::Lanczos => 0.0,
        }
    }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Resizes to `width` x `height` pixels (at least 1 x 1). A picture that has this size already is copied.
pub fn resize(image: &Image, width: usize, height: usize, interpolation: Interpolation) -> Image {
    resize_window(
        image,
        (width, height),
        Window {
            left: 0,
            top: 0,
            width,
            height,
        },
        interpolation,
    )
}

/// The pixels of `window` in the picture resized to `size` (width, height), without computing the others: what a centre
/// crop after a resize needs. The window is cut to the resized picture and keeps at least one pixel.
pub fn resize_window(
    image: &Image,
    size: (usize, usize),
    window: Window,
    interpolation: Interpolation,
) -> Image {
    let (width, height) = (size.0.max(1), size.1.max(1));
    let left = window.left.min(width - 1);
    let top = window.top.min(height - 1);
    let columns = left..left + window.width.clamp(1, width - left);
    let rows = top..top + window.height.clamp(1, height - top);
    if interpolation == Interpolation::Nearest {
        return nearest(image, (width, height), columns, rows);
    }
    let horizontal = Axis::new(image.width(), width, columns, interpolation);
    let vertical = Axis::new(image.height(), height, rows, interpolation);
    pulp::Arch::new().dispatch(TwoPasses {
        image,
        horizontal,
        vertical,
    })
}

/// Pillow's nearest neighbour: the source coordinate is the first centre plus a running sum of steps, cut to an integer.
fn nearest(
    image: &Image,
    (width, height): (usize, usize),
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
) -> Image {
    let sources = |input: usize, output: usize, range: std::ops::Range<usize>| -> Vec<usize> {
        let step = input as f64 / output as f64;
        let mut at = step * 0.5;
        (0..range.end)
            .map(|_| {
                let source = (at as usize).min(input - 1);
                at += step;
                source
            })
            .skip(range.start)
            .collect()
    };
    let columns = sources(image.width(), width, columns);
    let rows = sources(image.height(), height, rows);
    let mut out = Image::filled(columns.len(), rows.len(), [0; RGB]);
    let stride = columns.len() * RGB;
    for (out, &y) in out.data_mut().chunks_exact_mut(stride).zip(&rows) {
        for (out, &x) in out.chunks_exact_mut(RGB).zip(&columns) {
            out.copy_from_slice(&image.pixel(x, y));
        }
    }
    out
}

/// Fractional bits of a weight: 32 less 8 for the pixel less 2 for the sum.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

fn round_to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// One axis of a resize: which inputs each wanted output is made of, and how much of each.
struct Axis {
    /// For each output, its first input and the place of its weights in `weights`.
    taps: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i32>,
    /// Nothing to do: every output is the input of the same index (shifted by the window).
    copy: bool,
}

impl Axis {
    fn new(input: usize, output: usize, window: std::ops::Range<usize>, filter: Interpolation) -> Axis {
        if input == output {
            let taps = window.map(|i| (i, 0..1)).collect();
            return Axis {
                taps,
                weights: vec![1 << PRECISION],
                copy: true,
            };
        }
        let step = input as f64 / output as f64;
        let widened = step.max(1.0);
        let support = filter.support() * widened;
        let mut taps = Vec::with_capacity(window.len());
        let mut weights = Vec::new();
        let mut exact: Vec<f64> = Vec::new();
        for i in window {
            let centre = (i as f64 + 0.5) * step;
            // Casts to unsigned cut at zero, as the reference does by hand.
            let first = (centre - support + 0.5) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((first..last).map(|k| filter.weight((k as f64 - centre + 0.5) * (1.0 / widened))));
            let total: f64 = exact.iter().sum();
            let start = weights.len();
            weights.extend(exact.iter().map(|&weight| {
                let scaled = if total == 0.0 { weight } else { weight / total } * f64::from(1 << PRECISION);
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            taps.push((first, start..weights.len()));
        }
        Axis {
            taps,
            weights,
            copy: false,
        }
    }

    /// The inputs that any output needs.
    fn inputs(&self) -> std::ops::Range<usize> {
        let first = self.taps.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self
            .taps
            .iter()
            .map(|(first, weights)| first + weights.len())
            .max()
            .unwrap_or(0);
        first..end
    }
}

/// Rows treated together by the horizontal pass: one lane each.
const BAND: usize = 16;
/// Bytes of a row treated together by the vertical pass.
const STRIP: usize = 64;

struct TwoPasses<'a> {
    image: &'a Image,
    horizontal: Axis,
    vertical: Axis,
}

impl pulp::NullaryFnOnce for TwoPasses<'_> {
    type Output = Image;

    // Inlined with everything below it into code compiled for the machine's instructions.
    #[inline(always)]
    fn call(self) -> Image {
        let rows = self.vertical.inputs();
        let stride = self.horizontal.taps.len() * RGB;
        let mut narrowed = vec![0; rows.len() * stride];
        if self.horizontal.copy {
            let first = self.horizontal.inputs().start * RGB;
            for (out, y) in narrowed.chunks_exact_mut(stride).zip(rows.clone()) {
                out.copy_from_slice(&self.image.row(y)[first..first + stride]);
            }
        } else {
            horizontal_pass(self.image, rows.clone(), &self.horizontal, &mut narrowed);
        }
        let mut out = Image::filled(self.horizontal.taps.len(), self.vertical.taps.len(), [0; RGB]);
        if self.vertical.copy {
            out.data_mut().copy_from_slice(&narrowed);
        } else {
            vertical_pass(&narrowed, rows.start, &self.vertical, stride, out.data_mut());
        }
        out
    }
}

/// Writes the wanted columns of `rows` into `out`, `[rows, columns, 3]`. A band of rows is turned on its side first, so that the
/// sixteen sums of one output column stand side by side.
#[inline(always)]
fn horizontal_pass(image: &Image, rows: std::ops::Range<usize>, axis: &Axis, out: &mut [u8]) {
    let inputs = axis.inputs();
    let stride = axis.taps.len() * RGB;
    let mut turned = vec![[0u8; BAND]; inputs.len() * RGB];
    for (band, out) in out.chunks_mut(BAND * stride).enumerate() {
        let top = rows.start + band * BAND;
        let lanes = (rows.end - top).min(BAND);
        for lane in 0..lanes {
            let row = &image.row(top + lane)[inputs.start * RGB..inputs.end * RGB];
            for (bytes, &byte) in turned.iter_mut().zip(row) {
                bytes[lane] = byte;
            }
        }
        for (column, (first, weights)) in axis.taps.iter().enumerate() {
            let weights = &axis.weights[weights.clone()];
            let first = first - inputs.start;
            let (pixels, _) = turned[first * RGB..(first + weights.len()) * RGB].as_chunks::<RGB>();
            let mut sums = [[HALF; BAND]; RGB];
            for (pixel, &weight) in pixels.iter().zip(weights) {
                for (sums, bytes) in sums.iter_mut().zip(pixel) {
                    for (sum, &byte) in sums.iter_mut().zip(bytes) {
                        *sum += weight * i32::from(byte);
                    }
                }
            }
            let mut bytes = [[0u8; BAND]; RGB];
            for (bytes, sums) in bytes.iter_mut().zip(&sums) {
                for (byte, &sum) in bytes.iter_mut().zip(sums) {
                    *byte = round_to_byte(sum);
                }
            }
            let [red, green, blue] = bytes;
            for lane in 0..lanes {
                let at = lane * stride + column * RGB;
                out[at..at + RGB].copy_from_slice(&[red[lane], green[lane], blue[lane]]);
            }
        }
    }
}

/// Writes the wanted rows into `out`, `[rows, stride]`; `input` starts with row `first_row` of the source.
#[inline(always)]
fn vertical_pass(input: &[u8], first_row: usize, axis: &Axis, stride: usize, out: &mut [u8]) {
    for (out, (first, weights)) in out.chunks_exact_mut(stride).zip(&axis.taps) {
        let weights = &axis.weights[weights.clone()];
        let start = (first - first_row) * stride;
        let input = &input[start..start + weights.len() * stride];
        let (strips, rest) = out.as_chunks_mut::<STRIP>();
        let whole = strips.len() * STRIP;
        for (index, strip) in strips.iter_mut().enumerate() {
            let mut sums = [HALF; STRIP];
            for (row, &weight) in input.chunks_exact(stride).zip(weights) {
                let bytes = &row[index * STRIP..(index + 1) * STRIP];
                for (sum, &byte) in sums.iter_mut().zip(bytes) {
                    *sum += weight * i32::from(byte);
                }
            }
            for (byte, &sum) in strip.iter_mut().zip(&sums) {
                *byte = round_to_byte(sum);
            }
        }
        for (offset, byte) in rest.iter_mut().enumerate() {
            let column = input.iter().skip(whole + offset).step_by(stride);
            let sum = column
                .zip(weights)
                .fold(HALF, |sum, (&byte, &weight)| sum + weight * i32::from(byte));
            *byte = round_to_byte(sum);
        }
    }
}
