//! Affine maps with bicubic sampling: Pillow's `Image.transform`.

use crate::Image;

/// Output pixel centre `(x, y)` is read at `(a x + b y + c, d x + e y + f)`; what falls outside the picture gets `fill`.
pub(super) fn affine(image: &Image, [a, b, c, d, e, f]: [f64; 6], fill: [u8; 3]) -> Image {
    let (width, height) = (image.width(), image.height());
    let mut out = Image::filled(width, height, fill);
    let (pixels, _) = out.data_mut().as_chunks_mut::<3>();
    for (row, pixels) in pixels.chunks_exact_mut(width).enumerate() {
        let y = row as f64 + 0.5;
        for (column, pixel) in pixels.iter_mut().enumerate() {
            let x = column as f64 + 0.5;
            let (x, y) = (a * x + b * y + c, d * x + e * y + f);
            if (0.0..width as f64).contains(&x) && (0.0..height as f64).contains(&y) {
                *pixel = sample(image, x - 0.5, y - 0.5);
            }
        }
    }
    out
}

/// Cubic convolution with a = -1, cut (not rounded) to 8 bits. Columns outside the picture repeat its border, rows outside repeat
/// the row before them.
fn sample(image: &Image, x: f64, y: f64) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let (left, top) = (left as isize - 1, top as isize - 1);
    let columns: [usize; 4] =
        std::array::from_fn(|tap| (left + tap as isize).clamp(0, image.width() as isize - 1) as usize * 3);
    let mut rows = [[0.0; 3]; 4];
    for tap in 0..4 {
        let wanted = top + tap as isize;
        let inside = wanted.clamp(0, image.height() as isize - 1);
        if tap > 0 && inside != wanted {
            rows[tap] = rows[tap - 1];
            continue;
        }
        let row = image.row(inside as usize);
        rows[tap] =
            std::array::from_fn(|channel| cubic(columns.map(|column| f64::from(row[column + channel])), dx));
    }
    std::array::from_fn(|channel| cubic(rows.map(|row| row[channel]), dy) as u8)
}

/// The cubic through four neighbours, at `d` past the second.
fn cubic([v1, v2, v3, v4]: [f64; 4], d: f64) -> f64 {
    let linear = v3 - v1;
    let square = 2.0 * (v1 - v2) + v3 - v4;
    let cube = -v1 + v2 - v3 + v4;
    v2 + d * (linear + d * (square + d * cube))
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
