//! Affine maps with bicubic sampling: Pillow's `Image.transform`.
//!
//! Pillow computes in `f64`, and so must this. A pixel is treated as four lanes, its three channels and the byte behind it,
//! so that every step is one vector instruction; and where a coordinate falls on a pixel's centre, as for whole rows and
//! columns of shears and shifts, the cubic is that pixel and is not computed.

use crate::Image;
use crate::image::RGB;

/// Output pixel centre `(x, y)` is read at `(a x + b y + c, d x + e y + f)`; what falls outside the picture gets `fill`.
pub(super) fn affine(image: &Image, matrix: [f64; 6], fill: [u8; 3]) -> Image {
    let (width, height) = (image.width(), image.height());
    // The last pixel is read as four bytes too.
    let mut data = Vec::with_capacity(image.data().len() + 1);
    data.extend_from_slice(image.data());
    data.push(0);
    let source = Source {
        data: &data,
        width,
        height,
    };
    let data = pulp::Arch::new().dispatch(Affine { source, matrix, fill });
    Image::new(width, height, data).unwrap_or_else(|_| Image::filled(width, height, fill))
}

struct Affine<'a> {
    source: Source<'a>,
    matrix: [f64; 6],
    fill: [u8; 3],
}

impl pulp::NullaryFnOnce for Affine<'_> {
    type Output = Vec<u8>;

    // Inlined with everything below it into code compiled for the machine's instructions.
    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let Affine { source, matrix, fill } = self;
        let [a, b, c, d, e, f] = matrix;
        let (width, height) = (source.width as f64, source.height as f64);
        let outside = [fill[0], fill[1], fill[2], 0];
        let mut out = vec![0; source.data.len()];
        for row in 0..source.height {
            let y = row as f64 + 0.5;
            let start = row * source.width * RGB;
            let out = &mut out[start..][..source.width * RGB + 1];
            for column in 0..source.width {
                let x = column as f64 + 0.5;
                let (x, y) = (a * x + b * y + c, d * x + e * y + f);
                let inside = x >= 0.0 && x < width && y >= 0.0 && y < height;
                let pixel = if inside {
                    source.sample(x - 0.5, y - 0.5)
                } else {
                    outside
                };
                // The fourth byte is the next pixel's, which is written after it.
                out[column * RGB..column * RGB + 4].copy_from_slice(&pixel);
            }
        }
        out.pop();
        out
    }
}

/// A value for each channel, and one that nobody reads.
type Lanes = [f64; 4];

/// The picture that is read, with one byte more at its end.
struct Source<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
}

impl Source<'_> {
    /// Cubic convolution with a = -1, cut (not rounded) to 8 bits. Columns outside the picture repeat its border, rows outside
    /// repeat the row before them.
    #[inline(always)]
    fn sample(&self, x: f64, y: f64) -> [u8; 4] {
        let (left, top) = (x.floor(), y.floor());
        let (dx, dy) = (x - left, y - top);
        let (left, top) = (left as i32 - 1, top as i32 - 1);
        let last = self.width as i32 - 1;
        let mut columns = [0; 4];
        for (tap, column) in (left..).zip(&mut columns) {
            *column = tap.clamp(0, last) as usize * RGB;
        }
        // Only the first row can be above the picture, and then it is its border.
        let last = self.height as i32 - 1;
        let row = |tap: i32| self.across((top + tap).clamp(0, last) as usize, columns, dx);
        let value = if dy == 0.0 {
            row(1)
        } else {
            let above = row(0);
            let here = row(1);
            let below = if top + 2 > last { here } else { row(2) };
            let next = if top + 3 > last { below } else { row(3) };
            cubic([above, here, below, next], dy)
        };
        // Cut at both ends first, the cast cuts what is left of a level: a double holds it below 2^52 in its lowest bits.
        let mut levels = [0; 4];
        for (out, level) in levels.iter_mut().zip(value) {
            *out = (level.clamp(0.0, 255.0).floor() + (1u64 << 52) as f64).to_bits() as u8;
        }
        levels
    }

    /// The cubic along row `y`, whose four pixels begin at the bytes `columns`.
    #[inline(always)]
    fn across(&self, y: usize, columns: [usize; 4], dx: f64) -> Lanes {
        let stride = self.width * RGB;
        let row = &self.data[y * stride..][..stride + 1];
        let [before, here, next, after] = columns;
        if dx == 0.0 {
            return lanes(row, here);
        }
        let pixels = [
            lanes(row, before),
            lanes(row, here),
            lanes(row, next),
            lanes(row, after),
        ];
        cubic(pixels, dx)
    }
}

/// The pixel that begins at byte `at`.
#[inline(always)]
fn lanes(row: &[u8], at: usize) -> Lanes {
    let mut out = [0.0; 4];
    for (out, &level) in out.iter_mut().zip(&row[at..at + 4]) {
        *out = f64::from(level);
    }
    out
}

/// The cubic through four neighbours, at `d` past the second.
#[inline(always)]
fn cubic([v1, v2, v3, v4]: [Lanes; 4], d: f64) -> Lanes {
    let mut out = [0.0; 4];
    for lane in 0..4 {
        let (v1, v2, v3, v4) = (v1[lane], v2[lane], v3[lane], v4[lane]);
        let linear = v3 - v1;
        let square = 2.0 * (v1 - v2) + v3 - v4;
        let cube = -v1 + v2 - v3 + v4;
        out[lane] = v2 + d * (linear + d * (square + d * cube));
    }
    out
}

/// Turns counter-clockwise around the centre.
pub(super) fn rotate(image: &Image, degrees: f64, fill: [u8; 3]) -> Image {
    if degrees == 0.0 {
        return image.clone();
    }
    let angle = -degrees * std::f64::consts::PI / 180.0;
    // The reference rounds to 15 digits, which makes right angles exact.
    let round = |x: f64| (x * 1e15).round() / 1e15;
    let (cos, sin) = (round(libm::cos(angle)), round(libm::sin(angle)));
    let (x, y) = (image.width() as f64 / 2.0, image.height() as f64 / 2.0);
    affine(
        image,
        [cos, sin, -cos * x - sin * y + x, -sin, cos, sin * x - cos * y + y],
        fill,
    )
}
