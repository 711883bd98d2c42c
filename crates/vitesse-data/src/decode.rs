//! Files to pictures. The format is read from the content, never from the file's name; the header is checked against the
//! limits before a pixel is decoded; every colour model becomes RGB the way `convert("RGB")` does in Pillow.
//!
//! Formats: JPEG, PNG, WebP, BMP, GIF (first frame). Alpha is dropped, not blended. Rotation flags are ignored unless asked
//! for, as in torchvision.
//!
//! JPEG pixels are those of Pillow to the bit (`jpeg/`), whose transform, chroma and colours published accuracies were
//! measured behind. A difference: 16-bit grey keeps its high byte, where Pillow makes everything above 255 white.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};

use crate::{Error, Image, Result, jpeg, png};

/// How large a picture may be. A file of a few bytes can promise gigapixels; these are checked on what it promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeLimits {
    /// Most pixels. Default 64 · 2²⁰.
    pub max_pixels: u64,
    /// Most pixels along a side. Default 16,384.
    pub max_side: u32,
    /// Most bytes of decoded pixels, in the file's own colour model; also of the encoded file, and of the
    /// coefficients of a progressive JPEG. Default 256 MiB.
    pub max_bytes: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        DecodeLimits {
            max_pixels: 64 << 20,
            max_side: 16_384,
            max_bytes: 256 << 20,
        }
    }
}

/// How files become pictures.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// The largest picture accepted.
    pub limits: DecodeLimits,
    /// Whether to turn the picture as its EXIF rotation flag says. Off by default: the reference accuracies ignore it.
    pub exif_rotation: bool,
}

/// File extensions of the supported formats, for finding pictures in a folder.
pub(crate) const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "gif"];

/// Decodes one file.
///
/// # Errors
/// [`Error::Io`], [`Error::Decode`] or [`Error::TooLarge`], each naming the file.
pub fn decode_file(path: &Path, options: &DecodeOptions) -> Result<Image> {
    let name = path.display().to_string();
    let most = options.limits.max_bytes;
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    if !metadata.is_file() {
        // A pipe would be waited for, a device never ends.
        return Err(Error::decode(
            &name,
            &"expected a file, found a folder, a pipe or a device",
        ));
    }
    let length = metadata.len();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    if length <= most {
        // What is no file has no length that says where it ends.
        let capacity = usize::try_from(length).unwrap_or_default();
        bytes.reserve_exact(capacity.saturating_add(1));
        let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(Error::io(path))?;
    }
    let found = length.max(bytes.len() as u64);
    if found > most {
        return Err(too_large(&name, found, most, "bytes"));
    }
    decode(&bytes, &name, options)
}

/// Decodes the bytes of a file; `name` is what an error calls them.
///
/// # Errors
/// [`Error::Decode`] for anything that is not a whole picture of a supported format, [`Error::TooLarge`] above the limits.
pub fn decode(bytes: &[u8], name: &str, options: &DecodeOptions) -> Result<Image> {
    if bytes.is_empty() {
        return Err(Error::decode(name, &"the file is empty"));
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let reader = reader.map_err(|error| Error::decode(name, &error))?;
    let supported = "expected a JPEG, PNG, WebP, BMP or GIF file";
    let format = match reader.format() {
        Some(format) if format.reading_enabled() => format,
        Some(format) => return Err(Error::decode(name, &format!("{supported}, found {format:?}"))),
        None => return Err(Error::decode(name, &format!("{supported}, found something else"))),
    };
    let limits = &options.limits;
    let wanted = |exif: Option<Vec<u8>>| exif.filter(|_| options.exif_rotation);
    if format == ImageFormat::Jpeg {
        let picture = jpeg::decode(bytes, name, limits)?;
        return match wanted(jpeg::exif(bytes)) {
            None => Ok(picture),
            Some(exif) => {
                let (width, height) = (picture.width() as u32, picture.height() as u32);
                let decoded =
                    image::RgbImage::from_raw(width, height, picture.into_data()).unwrap_or_default();
                rotated(decoded.into(), orientation(&exif))
            }
        };
    }
    let (bytes, exif) = if format == ImageFormat::Png {
        let png::Plain { bytes, exif } = png::plain(bytes);
        (Cow::Owned(bytes), exif)
    } else {
        (Cow::Borrowed(bytes), None)
    };
    let damaged = |error: image::ImageError| Error::decode(name, &error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder_limits = image::Limits::default();
    decoder_limits.max_alloc = Some(limits.max_bytes);
    reader.limits(decoder_limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let pixel_bytes = decoder.color_type().bytes_per_pixel();
    limits.check_size(name, (width.into(), height.into()), pixel_bytes.into())?;
    let exif = wanted(exif.or_else(|| decoder.exif_metadata().unwrap_or_default()));
    let rotation = exif.map_or(Orientation::NoTransforms, |exif| orientation(&exif));
    rotated(DynamicImage::from_decoder(decoder).map_err(damaged)?, rotation)
}

/// How a camera's metadata says that the picture is turned.
fn orientation(exif: &[u8]) -> Orientation {
    // Some programs keep the mark that stands before it in a JPEG.
    let exif = exif.strip_prefix(jpeg::EXIF).unwrap_or(exif);
    Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms)
}

/// Turns a decoded picture and makes it RGB.
fn rotated(mut decoded: DynamicImage, rotation: Orientation) -> Result<Image> {
    decoded.apply_orientation(rotation);
    Image::new(
        decoded.width() as usize,
        decoded.height() as usize,
        to_rgb(decoded),
    )
}

impl DecodeLimits {
    /// Limits that every picture of up to `max_pixels` pixels passes, whatever its shape, colour model and coding.
    pub fn of_pixels(max_pixels: u64) -> DecodeLimits {
        let usual = DecodeLimits::default();
        let widest = u32::try_from(max_pixels).unwrap_or(u32::MAX);
        DecodeLimits {
            max_pixels,
            max_side: usual
                .max_side
                .max(if max_pixels > usual.max_pixels { widest } else { 0 }),
            // 16-bit colour with alpha is the largest.
            max_bytes: usual.max_bytes.max(max_pixels.saturating_mul(8)),
        }
    }

    /// Checks what a header promises: pixels across and down, and bytes a pixel.
    pub(crate) fn check_size(&self, name: &str, (width, height): (u64, u64), pixel_bytes: u64) -> Result<()> {
        if width.max(height) > self.max_side.into() {
            let found = format!("{width} x {height}");
            return Err(too_large(name, found, self.max_side, "pixels a side"));
        }
        // Below 2^32 a side, as every format has it, neither product overflows.
        if width * height > self.max_pixels {
            let found = format!("{width} x {height}");
            return Err(too_large(name, found, self.max_pixels, "pixels"));
        }
        self.check_bytes(name, (width * height).saturating_mul(pixel_bytes))
    }

    /// Checks how many bytes a decoder is about to hold.
    pub(crate) fn check_bytes(&self, name: &str, decoded: u64) -> Result<()> {
        if decoded > self.max_bytes {
            return Err(too_large(name, decoded, self.max_bytes, "decoded bytes"));
        }
        Ok(())
    }
}

fn too_large(name: &str, found: impl std::fmt::Display, limit: impl std::fmt::Display, unit: &str) -> Error {
    Error::TooLarge {
        name: name.to_owned(),
        found: found.to_string(),
        limit: format!("{limit} {unit}"),
    }
}

/// Pillow's `convert("RGB")`: grey is repeated, alpha dropped, 16-bit colour cut to its high byte.
fn to_rgb(image: DynamicImage) -> Vec<u8> {
    let high = |level: u16| (level >> 8) as u8;
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => image.iter().flat_map(|&grey| [grey; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        DynamicImage::ImageLuma16(image) => image.iter().flat_map(|&grey| [high(grey); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.iter().map(|&level| high(level)).collect(),
        DynamicImage::ImageRgba16(image) => image
            .pixels()
            .flat_map(|p| [p.0[0], p.0[1], p.0[2]].map(high))
            .collect(),
        other => other.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn gradient() -> image::RgbImage {
        image::RgbImage::from_fn(20, 10, |x, y| image::Rgb([(x * 12) as u8, (y * 25) as u8, 90]))
    }

    fn read(bytes: &[u8]) -> Result<Image> {
        decode(bytes, "test.jpg", &DecodeOptions::default())
    }

    #[test]
    fn every_format_is_known_by_its_content() {
        let source = gradient();
        for format in [
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Bmp,
            ImageFormat::Gif,
            ImageFormat::Jpeg,
        ] {
            let decoded = read(&encode(&source.clone().into(), format)).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (20, 10), "{format:?}");
            let off = decoded
                .data()
                .iter()
                .zip(source.as_raw())
                .map(|(a, b)| a.abs_diff(*b))
                .max()
                .unwrap();
            let tolerance = if format == ImageFormat::Jpeg { 30 } else { 0 };
            assert!(off <= tolerance, "{format:?} is off by {off}");
        }
    }

    #[test]
    fn colour_models_become_rgb_as_in_pillow() {
        let rgba = image::RgbaImage::from_pixel(2, 1, image::Rgba([10, 20, 30, 0]));
        assert_eq!(
            read(&encode(&rgba.into(), ImageFormat::Png)).unwrap().pixel(1, 0),
            [10, 20, 30]
        );
        let grey_alpha = image::GrayAlphaImage::from_pixel(2, 1, image::LumaA([77, 3]));
        assert_eq!(
            read(&encode(&grey_alpha.into(), ImageFormat::Png))
                .unwrap()
                .pixel(0, 0),
            [77; 3]
        );
        let deep = image::ImageBuffer::from_pixel(2, 1, image::Rgb([0x12ffu16, 0x3400, 0xffff]));
        assert_eq!(
            read(&encode(&deep.into(), ImageFormat::Png)).unwrap().pixel(0, 0),
            [0x12, 0x34, 0xff]
        );
    }

    #[test]
    fn a_promise_of_gigapixels_is_refused_from_the_header() {
        // A PNG signature and header for 60,000 x 60,000 pixels, and nothing else.
        let mut png = encode(&gradient().into(), ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let mut checksum = flate2::Crc::new();
        checksum.update(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
        let error = read(&png).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "`test.jpg` is too large: 60000 x 60000, the limit is 16384 pixels a side; raise it with `--max-pixels`"
        );

        // The same in a JPEG's frame header.
        let mut jpeg = encode(&gradient().into(), ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
        assert!(matches!(read(&jpeg).unwrap_err(), Error::TooLarge { .. }));

        // Whoever asks for more pixels gets them in any shape; fewer leave the other limits as they are.
        let wide = DecodeLimits::of_pixels(100 << 20);
        assert!(wide.check_size("x", (100 << 20, 1), 8).is_ok());
        assert!(wide.check_size("x", (100 << 20, 2), 1).is_err());
        assert_eq!(DecodeLimits::of_pixels(64 << 20).max_side, 16_384);
        assert!(
            DecodeLimits::of_pixels(u64::MAX)
                .check_size("x", (1 << 31, 1 << 31), 8)
                .is_ok()
        );
        let small = DecodeLimits {
            max_pixels: 199,
            ..DecodeLimits::default()
        };
        let options = DecodeOptions {
            limits: small,
            exif_rotation: false,
        };
        let error = decode(&encode(&gradient().into(), ImageFormat::Bmp), "x", &options).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`x` is too large: 20 x 10, the limit is 199 pixels; raise it with `--max-pixels`"
        );
    }

    #[test]
    fn damaged_files_are_sentences() {
        for bytes in [&b""[..], b"hello", b"\xff\xd8\xff", b"GIF89a"] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.starts_with("`test.jpg` cannot be decoded: "), "{error}");
        }
        let source = gradient();
        // However early a file ends, it is an error and never a partly grey picture.
        for format in [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Bmp,
            ImageFormat::Gif,
        ] {
            let whole = encode(&source.clone().into(), format);
            for end in (0..whole.len() - 14).step_by(7) {
                let cut = read(&whole[..end]);
                // Behind the rows of a PNG are only checksums and its end.
                let complete = format == ImageFormat::Png && end > whole.len() - 24;
                assert!(
                    cut.is_err() || complete && cut.is_ok_and(|cut| cut.data() == source.as_raw()),
                    "{format:?} cut to {end} of {} bytes",
                    whole.len()
                );
            }
        }
    }

    #[test]
    fn rotation_flags_are_followed_only_on_request() {
        let jpeg = encode(&gradient().into(), ImageFormat::Jpeg);
        // An EXIF segment with one entry: orientation (0x0112) = 6, a quarter turn.
        let exif =
            b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let flagged = [&jpeg[..2], exif, &jpeg[2..]].concat();
        assert_eq!(read(&flagged).unwrap().width(), 20);
        let options = DecodeOptions {
            exif_rotation: true,
            ..DecodeOptions::default()
        };
        assert_eq!(decode(&flagged, "x", &options).unwrap().width(), 10);
    }

    proptest::proptest! {
        #[test]
        fn damage_anywhere_never_panics(
            format in 0usize..5,
            damage in proptest::collection::vec((proptest::prelude::any::<usize>(), proptest::prelude::any::<u8>()), 1..8),
        ) {
            let formats =
                [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];
            let mut bytes = encode(&gradient().into(), formats[format]);
            for (at, byte) in damage {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let limits = DecodeLimits { max_pixels: 1 << 20, ..DecodeLimits::default() };
            let _ = decode(&bytes, "x", &DecodeOptions { limits, exif_rotation: true });
        }
    }
}
