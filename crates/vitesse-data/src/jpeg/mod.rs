//! JPEG, to the bit as Pillow reads it.
//!
//! Published accuracies were measured behind libjpeg-turbo, and the standard leaves open how its transform is rounded, how
//! chroma is enlarged and how colours are computed. Each of these is done here as libjpeg does it by default, one file a
//! step, so that every pixel is the one that `PIL.Image.open(...).convert("RGB")` gives:
//!
//! ```text
//! bytes ── markers ── huffman (or progressive) ── idct ── upsample ── colour ── RGB
//!                     one row of blocks at a time  samples   one row of pixels at a time
//! ```
//!
//! Read are baseline, extended sequential and progressive pictures of 8 bits, with Huffman coding, of 1, 3 or 4 components.
//!
//! Differences from Pillow, all of them on files that no encoder means to write: damaged data is refused where libjpeg
//! guesses on; the guesses it makes for a progressive file whose last scans are missing ("block smoothing") are not made;
//! frames without Huffman tables (single pictures cut out of Motion JPEG) are refused.

mod colour;
mod huffman;
mod idct;
mod markers;
mod progressive;
mod scan;
mod upsample;

use std::borrow::Cow;

use colour::Colour;
use markers::{Component, END_OF_IMAGE, Frame, START_OF_FRAME, START_OF_SCAN, Scan, Segments, Tables};
use progressive::Progressive;
use scan::Cursor;
use upsample::Upsampler;

use crate::{DecodeLimits, Error, Image, Result};

/// What a step gives, or a sentence about the file.
type Fallible<T> = std::result::Result<T, Cow<'static, str>>;

/// More scans than any encoder writes; each costs a pass over the picture, however few bytes it has.
const MOST_SCANS: usize = 500;

/// What a segment with a camera's metadata begins with.
pub(crate) const EXIF: &[u8] = b"Exif\0\0";
const APPLICATION_1: u8 = 0xe1;

/// The camera's metadata of a file, if it has any before its first scan.
pub(crate) fn exif(file: &[u8]) -> Option<Vec<u8>> {
    let mut segments = Segments::new(file);
    loop {
        match segments.advance().ok()? {
            (APPLICATION_1, segment) if segment.starts_with(EXIF) => return Some(segment.to_vec()),
            (START_OF_SCAN | END_OF_IMAGE, _) => return None,
            _ => {}
        }
    }
}

/// Decodes the bytes of a JPEG file; `name` is what an error calls them.
pub(crate) fn decode(file: &[u8], name: &str, limits: &DecodeLimits) -> Result<Image> {
    let damaged = |fault: Cow<'static, str>| Error::decode(name, &fault);
    let mut segments = Segments::new(file);
    let mut tables = Tables::default();
    let mut picture = None;
    let mut scans = 0;
    loop {
        let (marker, segment) = segments.advance().map_err(damaged)?;
        match (marker, &mut picture) {
            (END_OF_IMAGE, _) => break,
            (marker, None) if START_OF_FRAME.contains(&marker) => {
                let frame = Frame::parse(marker, segment).map_err(damaged)?;
                limits.check_size(
                    name,
                    (frame.width as u64, frame.height as u64),
                    frame.components.len() as u64,
                )?;
                if frame.progressive {
                    limits.check_bytes(name, frame.blocks() * size_of::<[i16; 64]>() as u64)?;
                }
                picture = Some(Picture::new(frame));
            }
            (marker, Some(_)) if START_OF_FRAME.contains(&marker) => {
                return Err(Error::decode(name, "a JPEG with two frame headers"));
            }
            (START_OF_SCAN, Some(picture)) if scans < MOST_SCANS => {
                scans += 1;
                let length = picture.scan(segment, &tables, segments.rest()).map_err(damaged)?;
                segments.skip(length);
            }
            (START_OF_SCAN, Some(_)) => return Err(Error::decode(name, "a JPEG of more than 500 scans")),
            (START_OF_SCAN, None) => return Err(Error::decode(name, "a JPEG scan before the frame header")),
            _ => tables.read(marker, segment).map_err(damaged)?,
        }
    }
    let picture = picture.ok_or_else(|| Error::decode(name, "a JPEG without a picture"))?;
    let colour = Colour::of(&picture.frame, &tables);
    let (width, height) = (picture.frame.width, picture.frame.height);
    let data = picture.finish(colour).map_err(damaged)?;
    Image::new(width, height, data)
}

/// The samples of one component, in whole blocks.
struct Plane {
    samples: Vec<u8>,
    stride: usize,
}

impl Plane {
    /// The first `width` samples of row `y`, both within the plane.
    #[inline(always)]
    fn row(&self, y: usize, width: usize) -> &[u8] {
        &self.samples[y * self.stride..][..width]
    }
}

/// One component while it is read.
struct Layer {
    plane: Plane,
    /// All blocks of a progressive frame, the one row in progress of a sequential one.
    blocks: Vec<[i16; 64]>,
    /// The quantisation table, as it is when the component's first scan starts.
    factors: Option<[u16; 64]>,
}

/// A picture while it is read.
struct Picture {
    frame: Frame,
    layers: Vec<Layer>,
}

impl Picture {
    fn new(frame: Frame) -> Picture {
        let layer = |component: &Component| {
            let (across, down) = component.padded;
            let rows = if frame.progressive {
                down
            } else {
                component.sampling.1
            };
            Layer {
                plane: Plane {
                    samples: vec![0; across * down * 64],
                    stride: across * 8,
                },
                blocks: vec![[0; 64]; across * rows],
                factors: None,
            }
        };
        let layers = frame.components.iter().map(layer).collect();
        Picture { frame, layers }
    }

    /// Reads one scan, whose header is `segment` and whose data `data` starts with; how many bytes that was.
    fn scan(&mut self, segment: &[u8], tables: &Tables, data: &[u8]) -> Fallible<usize> {
        let Picture { frame, layers } = self;
        let scan = Scan::parse(segment, frame)?;
        for channel in &scan.channels {
            let table = frame.components[channel.component].quantisation;
            let table = tables.quantisation.get(table).copied().flatten();
            let factors = &mut layers[channel.component].factors;
            *factors = Some(
                factors
                    .or(table)
                    .ok_or("a JPEG component without a quantisation table")?,
            );
        }
        let mut cursor = Cursor::new(data, tables.restart);
        if frame.progressive {
            let visit = Progressive::new(&scan, tables)?;
            for row in 0..scan.rows(frame) {
                cursor.row(frame, &scan, row, |cursor, slot, x, y| {
                    let component = scan.channels[slot].component;
                    let block = &mut layers[component].blocks[y * frame.components[component].padded.0 + x];
                    visit.block(cursor, slot, block)
                })?;
            }
        } else {
            let codes = scan
                .channels
                .iter()
                .map(|channel| Ok((tables.dc(channel)?, tables.ac(channel)?)));
            let codes = codes.collect::<Fallible<Vec<_>>>()?;
            let rows = scan.block_rows(frame);
            for row in 0..scan.rows(frame) {
                for channel in &scan.channels {
                    layers[channel.component].blocks.fill([0; 64]);
                }
                cursor.row(frame, &scan, row, |cursor, slot, x, y| {
                    let component = scan.channels[slot].component;
                    let y = y - row * rows[slot];
                    let block = &mut layers[component].blocks[y * frame.components[component].padded.0 + x];
                    huffman::sequential(
                        &mut cursor.bits,
                        codes[slot],
                        &mut cursor.predictions[slot],
                        block,
                    )
                })?;
                for (channel, rows) in scan.channels.iter().zip(&rows) {
                    let layer = &mut layers[channel.component];
                    layer.transform(row * rows, *rows);
                }
            }
        }
        Ok(cursor.bits.position())
    }

    /// The RGB pixels, `[height, width, 3]`.
    fn finish(mut self, colour: Colour) -> Fallible<Vec<u8>> {
        for (layer, component) in self.layers.iter_mut().zip(&self.frame.components) {
            if layer.factors.is_none() {
                return Err("a JPEG component without data".into());
            }
            if self.frame.progressive {
                layer.transform(0, component.padded.1);
                layer.blocks = Vec::new();
            }
        }
        Ok(pulp::Arch::new().dispatch(Render {
            picture: &self,
            colour,
        }))
    }
}

impl Layer {
    /// Turns the first `count` rows of `blocks` into samples, from row `first` of the plane's blocks on.
    fn transform(&mut self, first: usize, count: usize) {
        pulp::Arch::new().dispatch(Transform {
            layer: self,
            first,
            count,
        });
    }
}

struct Transform<'a> {
    layer: &'a mut Layer,
    first: usize,
    count: usize,
}

impl pulp::NullaryFnOnce for Transform<'_> {
    type Output = ();

    // Inlined with everything below it into code compiled for the machine's instructions.
    #[inline(always)]
    fn call(self) {
        let Layer {
            plane: Plane { samples, stride },
            blocks,
            factors,
        } = self.layer;
        let (stride, factors) = (*stride, factors.unwrap_or([1; 64]));
        let bands = samples
            .chunks_exact_mut(8 * stride)
            .skip(self.first)
            .take(self.count);
        for (band, blocks) in bands.zip(blocks.chunks_exact(stride / 8)) {
            for (x, block) in blocks.iter().enumerate() {
                let pixels = idct::inverse(block, &factors);
                for (row, pixels) in band.chunks_exact_mut(stride).zip(pixels) {
                    row[8 * x..8 * x + 8].copy_from_slice(&pixels);
                }
            }
        }
    }
}

struct Render<'a> {
    picture: &'a Picture,
    colour: Colour,
}

impl pulp::NullaryFnOnce for Render<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let Picture { frame, layers } = self.picture;
        let mut upsamplers: Vec<_> = frame
            .components
            .iter()
            .map(|component| Upsampler::new(frame, component))
            .collect();
        let mut pixels = vec![[0; 3]; frame.width * frame.height];
        for (y, out) in pixels.chunks_exact_mut(frame.width).enumerate() {
            let mut channels = [&[][..]; 4];
            for ((channel, upsampler), layer) in channels.iter_mut().zip(&mut upsamplers).zip(layers) {
                *channel = upsampler.row(&layer.plane, y);
            }
            self.colour.convert(channels, out);
        }
        pixels.into_flattened()
    }
}

#[cfg(test)]
mod tests;
