//! A picture and a checksum for tests whose expected values come from another program.

use crate::Image;

/// A picture with flat parts, gradients and noise.
pub(crate) fn picture(width: usize, height: usize) -> Image {
    let mut state = 12_345u32;
    let data = (0..width * height * 3).map(|i| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match i / 3 % width / 4 % 3 {
            0 => 255,
            1 => (i % 251) as u8,
            _ => (state >> 24) as u8,
        }
    });
    Image::new(width, height, data.collect()).unwrap()
}

/// Depends on every byte and its place.
pub(crate) fn checksum(image: &Image) -> u32 {
    image.data().iter().fold(0, |sum: u32, &byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    })
}
