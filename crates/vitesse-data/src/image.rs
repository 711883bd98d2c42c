//! The one picture type of the crate: 8-bit RGB, rows from top to bottom.

use crate::{Error, Result};

/// Bytes a pixel.
pub(crate) const RGB: usize = 3;

/// An 8-bit RGB picture, `[height, width, 3]` bytes, at least one pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Image {
    /// Takes `data` as `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::ImageSize`] when a side is zero or `data` has another length.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Image> {
        let expected = width
            .checked_mul(height)
            .and_then(|pixels| pixels.checked_mul(RGB));
        if width == 0 || height == 0 || expected != Some(data.len()) {
            return Err(Error::ImageSize {
                width,
                height,
                found: data.len(),
            });
        }
        Ok(Image { width, height, data })
    }

    /// A picture of one colour. A side of zero counts as one.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Image {
        let (width, height) = (width.max(1), height.max(1));
        Image {
            width,
            height,
            data: colour.repeat(width * height),
        }
    }

    /// Turns grey levels, `[height, width]`, into RGB.
    ///
    /// # Errors
    /// [`Error::ImageSize`] when a side is zero or `grey` has another length.
    pub fn from_grey(width: usize, height: usize, grey: &[u8]) -> Result<Image> {
        Image::new(
            width,
            height,
            grey.iter().flat_map(|&level| [level; RGB]).collect(),
        )
    }

    /// Pixels a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The pixels, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The pixels, `[height, width, 3]`, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// One pixel; coordinates outside the picture give its nearest border pixel.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y.min(self.height - 1) * self.width + x.min(self.width - 1)) * RGB;
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// One row of pixels, `[width, 3]`; `y` must be below the height.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        let stride = self.width * RGB;
        &self.data[y * stride..(y + 1) * stride]
    }

    /// The rectangle of `width` x `height` pixels whose upper left corner is `(left, top)`. What lies outside the picture has
    /// the colour `fill`, so a negative corner pads.
    pub fn crop(&self, left: isize, top: isize, width: usize, height: usize, fill: [u8; 3]) -> Image {
        let mut out = Image::filled(width, height, fill);
        // The columns of `out` that lie inside `self`.
        let first = left.min(0).unsigned_abs().min(out.width);
        let source = left.max(0) as usize;
        let count = (out.width - first).min(self.width.saturating_sub(source));
        if count == 0 {
            return out;
        }
        let stride = out.width * RGB;
        for (y, row) in out.data.chunks_exact_mut(stride).enumerate() {
            let Ok(from) = usize::try_from(top + y as isize) else {
                continue;
            };
            if from < self.height {
                row[first * RGB..(first + count) * RGB]
                    .copy_from_slice(&self.row(from)[source * RGB..(source + count) * RGB]);
            }
        }
        out
    }

    /// The luminance of every pixel (ITU-R 601-2), as a grey picture. Equal to Pillow's `convert("L")`.
    #[must_use]
    pub fn luminance(&self) -> Image {
        let mut grey = self.clone();
        let (pixels, _) = grey.data.as_chunks_mut::<RGB>();
        for pixel in pixels {
            let [red, green, blue] = pixel.map(u32::from);
            *pixel = [((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8; RGB];
        }
        grey
    }

    /// Left and right exchanged.
    pub fn flip_horizontal(&mut self) {
        let stride = self.width * RGB;
        for row in self.data.chunks_exact_mut(stride) {
            let (pixels, _) = row.as_chunks_mut::<RGB>();
            pixels.reverse();
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert!(Image::new(2, 1, vec![0; 6]).is_ok());
        assert!(Image::new(0, 1, vec![]).is_err());
        assert!(Image::new(usize::MAX, 2, vec![0; 6]).is_err());
        let error = Image::new(2, 2, vec![0; 6]).unwrap_err().to_string();
        assert_eq!(error, "an image of 2 x 2 pixels needs 12 bytes of RGB, found 6");
    }

    #[test]
    fn crops_pad_on_every_side() {
        let image = Image::new(2, 2, (1..=12).collect()).unwrap();
        let padded = image.crop(-1, -1, 4, 4, [0; 3]);
        assert_eq!(padded.pixel(0, 0), [0; 3]);
        assert_eq!(padded.pixel(1, 1), [1, 2, 3]);
        assert_eq!(padded.pixel(2, 2), [10, 11, 12]);
        assert_eq!(padded.pixel(3, 3), [0; 3]);
        assert_eq!(padded.crop(1, 1, 2, 2, [9; 3]), image);
        assert_eq!(image.crop(5, 0, 2, 2, [7; 3]), Image::filled(2, 2, [7; 3]));
        assert_eq!(image.crop(-9, 0, 2, 2, [7; 3]), Image::filled(2, 2, [7; 3]));
    }

    #[test]
    fn luminance_is_pillows() {
        let colours = [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255; 3],
            [1, 2, 3],
            [200, 100, 50],
            [17; 3],
        ];
        let image = Image::new(7, 1, colours.concat()).unwrap();
        let grey = [76u8, 150, 29, 255, 2, 124, 17];
        assert_eq!(image.luminance(), Image::from_grey(7, 1, &grey).unwrap());
        assert_eq!(image.luminance().luminance(), image.luminance());
    }

    #[test]
    fn flipping_twice_changes_nothing() {
        let image = Image::new(3, 2, (1..=18).collect()).unwrap();
        let mut flipped = image.clone();
        flipped.flip_horizontal();
        assert_eq!(flipped.pixel(0, 1), image.pixel(2, 1));
        flipped.flip_horizontal();
        assert_eq!(flipped, image);
    }
}
