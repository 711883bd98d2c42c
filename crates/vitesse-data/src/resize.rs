//! Antialiased resizing, equal to Pillow's to the last bit.
//!
//! Reference accuracies were measured behind Pillow's resize, so its arithmetic is part of every checkpoint. For
//! `n → m` pixels along one axis, with `q = n/m` and `t = max(q, 1)`, output `i` has its centre at `c = (i + ½) q` and the
//! weights `f((k + ½ - c) / t)` over the inputs `k` within `t · support` of it, divided by their sum. The weights are rounded to
//! 22 fractional bits, the sums are integers. Columns first, rounded to 8 bits, then rows; rows first where the picture loses more
//! than twice as many rows as columns.
//!
//! Both passes are written so that the compiler sees independent lanes: the rows of a band (horizontal pass), the bytes of
//! a row (vertical pass). The widest instructions of the machine are chosen at run time; integers do not depend on it.

use serde::{Deserialize, Serialize};

use crate::Image;
use crate::image::RGB;

/// How pixels are weighed when a picture changes its size. Names as timm and Pillow spell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
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
    let horizontal = Axis::new(image.width(), width, columns.clone(), interpolation);
    let vertical = Axis::new(image.height(), height, rows.clone(), interpolation);
    // Pillow 13's choice; before it, columns always came first, which differs by a level or two where it differs.
    let lost_rows = image.height().saturating_sub(height);
    let vertical_first = lost_rows > 2 * image.width().saturating_sub(width);
    let (out_width, out_height) = (columns.len(), rows.len());
    let data = pulp::Arch::new().dispatch(TwoPasses {
        image,
        horizontal,
        vertical,
        vertical_first,
    });
    Image::new(out_width, out_height, data).unwrap_or_else(|_| Image::filled(out_width, out_height, [0; RGB]))
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

#[inline(always)]
fn round_to_byte(sum: i32) -> u32 {
    (sum >> PRECISION).clamp(0, 255) as u32
}

/// The weighted sums of as many vectors as there are weights, lane by lane, from [`HALF`] on.
#[inline(always)]
fn weigh<'a>(sums: &mut [i32], weights: &[i32], vector: impl Fn(usize) -> &'a [u8]) {
    sums.fill(HALF);
    let last = weights.len().saturating_sub(1);
    for (group, weights) in weights.chunks(GROUP).enumerate() {
        // Vectors that are not there weigh nothing.
        let mut padded = [0; GROUP];
        padded[..weights.len()].copy_from_slice(weights);
        let vector = |tap: usize| vector((GROUP * group + tap).min(last)).iter();
        let bytes = vector(0).zip(vector(1)).zip(vector(2).zip(vector(3)));
        for (sum, ((&a, &b), (&c, &d))) in sums.iter_mut().zip(bytes) {
            add_product(sum, padded[0], a);
            add_product(sum, padded[1], b);
            add_product(sum, padded[2], c);
            add_product(sum, padded[3], d);
        }
    }
}

/// The weights of an output sum to one and their magnitudes to less than two, so that the sum fits; wrapping says so to the compiler.
#[inline(always)]
fn add_product(sum: &mut i32, weight: i32, byte: u8) {
    *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(byte)));
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
/// Inputs that are added at a time: all that a bicubic enlargement needs.
const GROUP: usize = 4;

struct TwoPasses<'a> {
    image: &'a Image,
    horizontal: Axis,
    vertical: Axis,
    vertical_first: bool,
}

impl pulp::NullaryFnOnce for TwoPasses<'_> {
    type Output = Vec<u8>;

    // Inlined with everything below it into code compiled for the machine's instructions.
    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let TwoPasses {
            image,
            horizontal,
            vertical,
            vertical_first,
        } = self;
        let source = Part {
            data: image.data(),
            stride: image.width() * RGB,
            row: 0,
            column: 0,
        };
        if vertical_first {
            let columns = horizontal.inputs();
            let data = vertical_pass(source, &vertical, columns.clone());
            let shortened = Part {
                data: &data,
                stride: columns.len() * RGB,
                row: 0,
                column: columns.start,
            };
            horizontal_pass(shortened, &horizontal, 0..vertical.taps.len())
        } else {
            let rows = vertical.inputs();
            let data = horizontal_pass(source, &horizontal, rows.clone());
            let stride = horizontal.taps.len() * RGB;
            let narrowed = Part {
                data: &data,
                stride,
                row: rows.start,
                column: 0,
            };
            vertical_pass(narrowed, &vertical, 0..horizontal.taps.len())
        }
    }
}

/// Pixels of a picture from its row `row` and its column `column` on.
#[derive(Clone, Copy)]
struct Part<'a> {
    data: &'a [u8],
    stride: usize,
    row: usize,
    column: usize,
}

impl<'a> Part<'a> {
    /// The bytes of some columns of a row, both counted in the whole picture.
    #[inline(always)]
    fn row(&self, row: usize, columns: std::ops::Range<usize>) -> &'a [u8] {
        let start = (row - self.row) * self.stride;
        &self.data[start + (columns.start - self.column) * RGB..start + (columns.end - self.column) * RGB]
    }
}

/// The wanted columns of `rows`, `[rows, columns, 3]`. A band of rows is turned on its side first, so that the sixteen sums of
/// one output column stand side by side.
#[inline(always)]
fn horizontal_pass(input: Part<'_>, axis: &Axis, rows: std::ops::Range<usize>) -> Vec<u8> {
    let columns = axis.inputs();
    let stride = axis.taps.len() * RGB;
    let mut out = vec![0; rows.len() * stride];
    if axis.copy {
        for (out, row) in out.chunks_exact_mut(stride).zip(rows) {
            out.copy_from_slice(input.row(row, columns.clone()));
        }
        return out;
    }
    // Pixels move between rows and lanes as 32 bits, the cheapest way to carry three bytes.
    let mut packed = vec![[0u32; BAND]; columns.len().max(axis.taps.len())];
    let mut turned = vec![[[0u8; BAND]; RGB]; columns.len()];
    for (band, out) in out.chunks_mut(BAND * stride).enumerate() {
        let top = rows.start + band * BAND;
        for lane in 0..out.len() / stride {
            let bytes = input.row(top + lane, columns.clone());
            // Four bytes are one load; the fourth, which is the next pixel's, is not looked at.
            for (packed, bytes) in packed.iter_mut().zip(bytes.windows(4).step_by(RGB)) {
                packed[lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            if let (Some(packed), Some(&[red, green, blue])) =
                (packed.get_mut(columns.len() - 1), bytes.last_chunk::<RGB>())
            {
                packed[lane] = u32::from_le_bytes([red, green, blue, 0]);
            }
        }
        for (turned, packed) in turned.iter_mut().zip(&packed) {
            for lane in 0..BAND {
                turned[0][lane] = packed[lane] as u8;
                turned[1][lane] = (packed[lane] >> 8) as u8;
                turned[2][lane] = (packed[lane] >> 16) as u8;
            }
        }
        for (packed, (first, weights)) in packed.iter_mut().zip(&axis.taps) {
            let pixels = &turned[first - columns.start..];
            let mut sums = [[HALF; BAND]; RGB];
            weigh(sums.as_flattened_mut(), &axis.weights[weights.clone()], |tap| {
                pixels[tap].as_flattened()
            });
            for lane in 0..BAND {
                let level = |channel: usize| round_to_byte(sums[channel][lane]);
                packed[lane] = level(0) | level(1) << 8 | level(2) << 16;
            }
        }
        for (lane, out) in out.chunks_exact_mut(stride).enumerate() {
            // Four bytes are one store; the fourth, which is the next pixel's, is written after it.
            let last = axis.taps.len() - 1;
            for (at, packed) in packed.iter().take(last).enumerate() {
                out[at * RGB..at * RGB + 4].copy_from_slice(&packed[lane].to_le_bytes());
            }
            out[last * RGB..].copy_from_slice(&packed[last][lane].to_le_bytes()[..RGB]);
        }
    }
    out
}

/// The wanted rows of `columns`, `[rows, columns, 3]`.
#[inline(always)]
fn vertical_pass(input: Part<'_>, axis: &Axis, columns: std::ops::Range<usize>) -> Vec<u8> {
    let stride = columns.len() * RGB;
    let mut out = vec![0; axis.taps.len() * stride];
    let mut sums = vec![HALF; stride];
    for (out, (first, weights)) in out.chunks_exact_mut(stride).zip(&axis.taps) {
        if axis.copy {
            out.copy_from_slice(input.row(*first, columns.clone()));
            continue;
        }
        weigh(&mut sums, &axis.weights[weights.clone()], |tap| {
            input.row(first + tap, columns.clone())
        });
        for (byte, &sum) in out.iter_mut().zip(&sums) {
            *byte = round_to_byte(sum) as u8;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checksum, picture};

    #[test]
    fn pillow_gives_the_same_bytes() {
        // Checksums of Pillow 13.0.0's results on the same picture.
        for (size, interpolation, expected) in [
            ((19, 13), Interpolation::Bicubic, 1_459_693_873),
            ((60, 50), Interpolation::Bicubic, 957_814_289),
            ((30, 9), Interpolation::Bicubic, 3_849_179_054),
            ((19, 13), Interpolation::Bilinear, 367_829_651),
            ((19, 13), Interpolation::Box, 1_131_097_976),
            ((19, 13), Interpolation::Hamming, 256_157_727),
            ((60, 13), Interpolation::Lanczos, 1_647_860_054),
            ((19, 50), Interpolation::Nearest, 1_123_327_880),
        ] {
            let resized = resize(&picture(37, 29), size.0, size.1, interpolation);
            assert_eq!((resized.width(), resized.height()), size);
            assert_eq!(checksum(&resized), expected, "{size:?} {interpolation:?}");
        }
    }

    #[test]
    fn a_constant_stays_constant_and_the_same_size_is_a_copy() {
        let flat = Image::filled(40, 30, [200, 0, 255]);
        for interpolation in [
            Interpolation::Bicubic,
            Interpolation::Lanczos,
            Interpolation::Hamming,
        ] {
            assert_eq!(
                resize(&flat, 17, 70, interpolation),
                Image::filled(17, 70, [200, 0, 255])
            );
            assert_eq!(resize(&picture(8, 9), 8, 9, interpolation), picture(8, 9));
        }
    }

    proptest::proptest! {
        #[test]
        fn a_window_is_a_part_of_the_whole(
            from in (1usize..40, 1usize..40),
            to in (1usize..60, 1usize..60),
            corner in (0usize..60, 0usize..60),
            size in (1usize..60, 1usize..60),
            nearest: bool,
        ) {
            let interpolation = if nearest { Interpolation::Nearest } else { Interpolation::Bicubic };
            let image = picture(from.0, from.1);
            let window = Window {
                left: corner.0.min(to.0 - 1),
                top: corner.1.min(to.1 - 1),
                width: size.0.min(to.0 - corner.0.min(to.0 - 1)),
                height: size.1.min(to.1 - corner.1.min(to.1 - 1)),
            };
            let whole = resize(&image, to.0, to.1, interpolation);
            let part = whole.crop(window.left as isize, window.top as isize, window.width, window.height, [0; 3]);
            assert_eq!(resize_window(&image, to, window, interpolation), part);
        }
    }
}
