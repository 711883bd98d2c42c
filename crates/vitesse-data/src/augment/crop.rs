//! Random crops: where in the picture to look.

use vitesse_rng::Rng;

use crate::Image;
use crate::preprocess::shorter_side_to;
use crate::resize::{Interpolation, Window, resize, resize_window};

/// Attempts to find a crop that fits before the central one is taken.
const ATTEMPTS: usize = 10;

/// A rectangle of uniform area share in `scale` and log-uniform aspect ratio in `ratio`, as (left, top, width, height). When none of
/// ten draws fits, the largest central rectangle whose aspect ratio is in `ratio` (Szegedy et al., 2015; timm's rounding).
pub(super) fn draw_resized_crop(
    (width, height): (usize, usize),
    scale: [f64; 2],
    ratio: [f64; 2],
    rng: &mut Rng,
) -> (usize, usize, usize, usize) {
    let (w, h) = (width as f64, height as f64);
    let log = ratio.map(libm::log);
    for _ in 0..ATTEMPTS {
        let area = rng.uniform_in(scale[0], scale[1]) * w * h;
        let aspect = libm::exp(rng.uniform_in(log[0], log[1]));
        let crop_width = (area * aspect).sqrt().round_ties_even() as usize;
        let crop_height = (area / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let top = rng.below(height - crop_height + 1);
            let left = rng.below(width - crop_width + 1);
            return (left, top, crop_width, crop_height);
        }
    }
    let (mut crop_width, mut crop_height) = (width, height);
    if w / h < ratio[0] {
        crop_height = ((w / ratio[0]).round_ties_even() as usize).clamp(1, height);
    } else if w / h > ratio[1] {
        crop_width = ((h * ratio[1]).round_ties_even() as usize).clamp(1, width);
    }
    (
        (width - crop_width) / 2,
        (height - crop_height) / 2,
        crop_width,
        crop_height,
    )
}

/// Cuts a rectangle out and resizes it to `target` (width, height). Nothing outside the rectangle has a say, as in the reference.
pub(super) fn resized_crop(
    image: &Image,
    (left, top, width, height): (usize, usize, usize, usize),
    target: (usize, usize),
    interpolation: Interpolation,
) -> Image {
    let cut = image.crop(left as isize, top as isize, width, height, [0; 3]);
    resize(&cut, target.0, target.1, interpolation)
}

/// Resizes the picture until its shorter side is the target's longer, as evaluation does, pads every side with `padding` black
/// pixels, and cuts `target` (width, height) out at a uniform place. A picture that has that size already keeps its pixels.
pub(super) fn padded_crop(
    image: &Image,
    target: (usize, usize),
    padding: usize,
    interpolation: Interpolation,
    rng: &mut Rng,
) -> Image {
    let size = shorter_side_to(image.width(), image.height(), target.0.max(target.1));
    let mut offset =
        |have: usize, want: usize| rng.below(have + 2 * padding - want + 1) as isize - padding as isize;
    let top = offset(size.1, target.1);
    let left = offset(size.0, target.0);
    // Only what is inside the crop is computed: a picture of one pixel's height becomes very wide.
    let seen = |offset: isize, have: usize, want: usize| {
        let first = offset.clamp(0, have as isize) as usize;
        let end = offset.saturating_add_unsigned(want).clamp(0, have as isize) as usize;
        (first, end - first)
    };
    let (x, width) = seen(left, size.0, target.0);
    let (y, height) = seen(top, size.1, target.1);
    if width == 0 || height == 0 {
        return Image::filled(target.0, target.1, [0; 3]);
    }
    let window = Window {
        left: x,
        top: y,
        width,
        height,
    };
    let cut = resize_window(image, size, window, interpolation);
    cut.crop(left - x as isize, top - y as isize, target.0, target.1, [0; 3])
}

#[cfg(test)]
mod tests {
    use vitesse_rng::Key;

    use super::*;
    use crate::Preprocess;
    use crate::testing::picture;

    #[test]
    fn crops_fit_and_cover_the_stated_ranges() {
        let mut rng = Key::new(1).rng();
        let (mut least, mut most) = (1.0f64, 0.0f64);
        for _ in 0..2_000 {
            let (left, top, width, height) =
                draw_resized_crop((200, 150), [0.08, 1.0], [0.75, 4.0 / 3.0], &mut rng);
            assert!(left + width <= 200 && top + height <= 150);
            let share = (width * height) as f64 / 30_000.0;
            (least, most) = (least.min(share), most.max(share));
            let aspect = width as f64 / height as f64;
            assert!((0.7..1.43).contains(&aspect), "{aspect}");
        }
        assert!(least < 0.1 && most > 0.9, "{least} {most}");
    }

    #[test]
    fn pictures_too_long_fall_back_to_the_centre() {
        let mut rng = Key::new(1).rng();
        // All of the area at an aspect ratio that does not exist in it.
        let crop = draw_resized_crop((1_000, 10), [1.0, 1.0], [0.75, 4.0 / 3.0], &mut rng);
        assert_eq!(crop, (493, 0, 13, 10));
        let crop = draw_resized_crop((10, 1_000), [1.0, 1.0], [0.75, 4.0 / 3.0], &mut rng);
        assert_eq!(crop, (0, 493, 10, 13));
        assert_eq!(
            draw_resized_crop((1, 1), [0.08, 1.0], [0.75, 4.0 / 3.0], &mut rng).2,
            1
        );
    }

    #[test]
    fn padded_crops_reach_every_offset() {
        let image = Image::new(2, 2, vec![255; 12]).unwrap();
        let mut rng = Key::new(1).rng();
        let places: std::collections::BTreeSet<Vec<u8>> = (0..400)
            .map(|_| padded_crop(&image, (2, 2), 1, Interpolation::Bicubic, &mut rng).into_data())
            .collect();
        assert_eq!(places.len(), 9);
        // Padding beyond the picture can leave nothing of it, and is no error.
        let lost: Vec<Image> = (0..50)
            .map(|_| padded_crop(&image, (2, 2), 40, Interpolation::Bicubic, &mut rng))
            .collect();
        assert!(lost.contains(&Image::filled(2, 2, [0; 3])));
    }

    #[test]
    fn padded_crops_scale_as_evaluation_does() {
        let evaluation = Preprocess {
            input_size: [3, 32, 32],
            crop_pct: 1.0,
            ..Preprocess::default()
        };
        let mut rng = Key::new(1).rng();
        for side in [28, 32, 45] {
            let image = picture(side, side);
            let crop = padded_crop(&image, (32, 32), 0, Interpolation::Bicubic, &mut rng);
            assert_eq!(crop, evaluation.resize_and_crop(&image).unwrap(), "{side}");
        }
        for (width, height) in [(90, 70), (3, 2), (50_000, 1), (1, 50_000)] {
            let white = Image::filled(width, height, [255; 3]);
            let crop = padded_crop(&white, (9, 7), 0, Interpolation::Bicubic, &mut rng);
            assert_eq!(crop, Image::filled(9, 7, [255; 3]), "{width} x {height}");
        }
    }
}
