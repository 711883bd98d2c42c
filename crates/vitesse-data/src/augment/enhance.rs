//! Blends of a picture with a plainer version of itself: Pillow's `ImageEnhance`. A factor of 1 changes nothing, 0 gives the plain
//! version, above 1 moves away from it.

use crate::Image;

/// `plain + factor (image - plain)`, in f32 and cut (not rounded) to 8 bits, as Pillow's `blend`.
fn blend(image: &Image, factor: f64, plain: impl Iterator<Item = u8>) -> Image {
    let factor = factor as f32;
    let mut out = image.clone();
    for (level, plain) in out.data_mut().iter_mut().zip(plain) {
        let difference = f32::from(i16::from(*level) - i16::from(plain));
        *level = (f32::from(plain) + factor * difference) as u8;
    }
    out
}

/// ITU-R 601 luma in 16-bit fixed point.
fn luma(&[red, green, blue]: &[u8; 3]) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16) as u8
}

/// Against black.
pub(super) fn brightness(image: &Image, factor: f64) -> Image {
    blend(image, factor, std::iter::repeat(0))
}

/// Against the mean grey.
pub(super) fn contrast(image: &Image, factor: f64) -> Image {
    let (pixels, _) = image.data().as_chunks::<3>();
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / pixels.len() as f64 + 0.5) as u8;
    blend(image, factor, std::iter::repeat(mean))
}

/// Against grey; saturation in torchvision's words.
pub(super) fn colour(image: &Image, factor: f64) -> Image {
    let (pixels, _) = image.data().as_chunks::<3>();
    blend(image, factor, pixels.iter().flat_map(|pixel| [luma(pixel); 3]))
}

/// Against a smoothed picture: the mean of 3 x 3 pixels, the centre counted five times; border pixels stay.
pub(super) fn sharpness(image: &Image, factor: f64) -> Image {
    let (width, height) = (image.width(), image.height());
    let stride = width * 3;
    let data = image.data();
    let mut smooth = image.clone();
    for y in 1..height.saturating_sub(1) {
        for at in (y * stride + 3)..((y + 1) * stride).saturating_sub(3) {
            let row = |at: usize| u32::from(data[at - 3]) + u32::from(data[at]) + u32::from(data[at + 3]);
            let sum = row(at - stride) + row(at) + row(at + stride) + 4 * u32::from(data[at]);
            // Thirteenths, rounded; a half cannot occur.
            smooth.data_mut()[at] = ((2 * sum + 13) / 26) as u8;
        }
    }
    blend(image, factor, smooth.into_data().into_iter())
}
