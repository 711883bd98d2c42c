//! Small pictures inside the page: PNG in a `data:` address.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::ReportError;
use crate::escape::Escaped;

/// A picture with a caption, ready to stand in a page's image grid.
#[derive(Debug, Clone)]
pub struct Thumbnail {
    caption: String,
    width: u32,
    height: u32,
    data: String,
}

impl Thumbnail {
    /// Encodes `rgb` (`[height, width, 3]` bytes in row order) under `caption`, which may have several lines.
    ///
    /// # Errors
    /// [`ReportError::PixelCount`] where the bytes do not fill the picture, [`ReportError::Png`] where the encoder refuses.
    pub fn new(caption: impl Into<String>, width: u32, height: u32, rgb: &[u8]) -> Result<Self, ReportError> {
        let caption = caption.into();
        let expected = (u64::from(width) * u64::from(height)).saturating_mul(3);
        if rgb.len() as u64 != expected {
            return Err(ReportError::PixelCount {
                caption,
                width,
                height,
                expected,
                found: rgb.len(),
            });
        }
        let mut png = Vec::new();
        let encoder = PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Adaptive);
        match encoder.write_image(rgb, width, height, ExtendedColorType::Rgb8) {
            Ok(()) => Ok(Thumbnail {
                caption,
                width,
                height,
                data: base64(&png),
            }),
            Err(source) => Err(ReportError::Png { caption, source }),
        }
    }

    /// The side on screen, in CSS pixels: a whole multiple of the picture's own, so that every pixel is equally large.
    pub(crate) fn shown_width(&self) -> u32 {
        const AIM: u32 = 96;
        self.width * (AIM / self.width.max(1)).max(1)
    }

    /// A `figure` element.
    pub(crate) fn to_html(&self) -> String {
        let (caption, width) = (Escaped(&self.caption), self.shown_width());
        let height = u64::from(self.height) * u64::from(width) / u64::from(self.width.max(1));
        let data = &self.data;
        format!(
            "<figure style=\"width:{width}px\"><img src=\"data:image/png;base64,{data}\" width=\"{width}\" \
             height=\"{height}\" alt=\"{caption}\"/><figcaption>{caption}</figcaption></figure>\n"
        )
    }
}

/// Base 64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .zip([16, 8, 0])
            .fold(0u32, |word, (&byte, shift)| word | u32::from(byte) << shift);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_test_vectors() {
        // RFC 4648, section 10.
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn a_picture_and_its_wrong_sizes() {
        let thumbnail = Thumbnail::new("a <cat>", 2, 1, &[255, 0, 0, 0, 255, 0]).unwrap();
        let html = thumbnail.to_html();
        assert!(html.contains("data:image/png;base64,iVBORw0KGgo"));
        assert!(html.contains("alt=\"a &lt;cat&gt;\"") && html.contains("width=\"96\" height=\"48\""));
        let message = Thumbnail::new("cat", 2, 2, &[0; 5]).unwrap_err().to_string();
        assert!(
            message.contains("2 × 2 RGB pixels has 12 bytes, but 5 were given"),
            "{message}"
        );
        assert!(Thumbnail::new("huge", u32::MAX, u32::MAX, &[]).is_err());
        // An empty picture is refused by one of the two, and shows nothing.
        assert!(Thumbnail::new("empty", 0, 0, &[]).is_err());
    }

    #[test]
    fn small_pictures_grow_by_whole_factors() {
        for (width, shown) in [(16, 96), (28, 84), (32, 96), (64, 64), (224, 224)] {
            let rgb = vec![0; width as usize * 3];
            assert_eq!(Thumbnail::new("", width, 1, &rgb).unwrap().shown_width(), shown);
        }
    }
}
