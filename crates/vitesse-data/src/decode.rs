//! Files to pictures. The format is read from the content, never from the file's name; the header is checked against the
//! limits before a pixel is decoded; every colour model becomes RGB the way `convert("RGB")` does in Pillow.
//!
//! Formats: JPEG, PNG, WebP, BMP, GIF (first frame). Alpha is dropped, not blended. Rotation flags are ignored unless asked
//! for, as in torchvision.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};

use crate::{Error, Image, Result};

/// How large a picture may be. A file of a few bytes can promise gigapixels; these are checked on what it promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeLimits {
    /// Most pixels. Default 64 · 2²⁰.
    pub max_pixels: u64,
    /// Most pixels along a side. Default 16,384.
    pub max_side: u32,
    /// Most bytes of decoded pixels, in the file's own colour model; also of the encoded file. Default 256 MiB.
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
pub(crate) const EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif"];

/// Decodes one file.
///
/// # Errors
/// [`Error::Io`], [`Error::Decode`] or [`Error::TooLarge`], each naming the file.
pub fn decode_file(path: &Path, options: &DecodeOptions) -> Result<Image> {
    let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if bytes > options.limits.max_bytes {
        return Err(too_large(
            &path.display().to_string(),
            bytes,
            options.limits.max_bytes,
            "bytes",
        ));
    }
    decode(
        &std::fs::read(path).map_err(Error::io(path))?,
        &path.display().to_string(),
        options,
    )
}

/// Decodes the bytes of a file; `name` is what an error calls them.
///
/// # Errors
/// [`Error::Decode`] for anything that is not a whole picture of a supported format, [`Error::TooLarge`] above the limits.
pub fn decode(bytes: &[u8], name: &str, options: &DecodeOptions) -> Result<Image> {
    if bytes.is_empty() {
        return Err(Error::decode(name, "the file is empty"));
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| Error::decode(name, error))?;
    let supported = "expected a JPEG, PNG, WebP, BMP or GIF file";
    let format = match reader.format() {
        Some(format) if format.reading_enabled() => format,
        Some(format) => return Err(Error::decode(name, format!("{supported}, found {format:?}"))),
        None => return Err(Error::decode(name, format!("{supported}, found something else"))),
    };
    let limits = &options.limits;
    let mut decoder_limits = image::Limits::default();
    decoder_limits.max_alloc = Some(limits.max_bytes);
    reader.limits(decoder_limits);
    let damaged = |error: image::ImageError| Error::decode(name, error);
    let mut decoder = reader.into_decoder().map_err(damaged)?;

    let (width, height) = decoder.dimensions();
    if width.max(height) > limits.max_side {
        return Err(too_large(
            name,
            format!("{width} x {height}"),
            limits.max_side,
            "pixels a side",
        ));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(too_large(
            name,
            format!("{width} x {height}"),
            limits.max_pixels,
            "pixels",
        ));
    }
    let decoded = pixels * u64::from(decoder.color_type().bytes_per_pixel());
    if decoded > limits.max_bytes {
        return Err(too_large(name, decoded, limits.max_bytes, "decoded bytes"));
    }
    // The JPEG decoder fills what is missing with grey and reports success.
    if format == ImageFormat::Jpeg && !jpeg_has_end(bytes) {
        return Err(Error::decode(
            name,
            "the JPEG data ends early, the file is truncated",
        ));
    }

    let orientation = if options.exif_rotation {
        decoder.orientation().ok()
    } else {
        None
    };
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    if let Some(orientation) = orientation {
        decoded.apply_orientation(orientation);
    }
    Image::new(
        decoded.width() as usize,
        decoded.height() as usize,
        to_rgb(decoded),
    )
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

/// Whether an end marker follows the start of the picture's data (an embedded thumbnail has an end of its own before it).
fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    // Segments: 0xFF, a marker, and but for the start of scan (0xDA) a length that includes itself.
    while let [0xff, marker, tail @ ..] = rest {
        match (marker, tail) {
            (0xff, _) => rest = &rest[1..],
            (0xda, _) => return tail.windows(2).rev().any(|pair| pair == [0xff, 0xd9]),
            (0x01 | 0xd0..=0xd9, _) => rest = tail,
            (_, [high, low, ..]) => {
                rest = tail
                    .get(usize::from(u16::from_be_bytes([*high, *low]))..)
                    .unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
}
