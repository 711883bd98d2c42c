//! The file's segments: what the picture is, which tables it uses, where its data starts (ITU-T T.81, annex B).

use super::Fallible;
use super::huffman::Huffman;

pub(super) const START_OF_FRAME: std::ops::RangeInclusive<u8> = 0xc0..=0xc2;
pub(super) const START_OF_SCAN: u8 = 0xda;
pub(super) const END_OF_IMAGE: u8 = 0xd9;

/// Where the coefficient that comes `k`-th in the file stands in its 8 x 8 block.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The file, segment after segment.
pub(super) struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Segments<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Segments { rest: file }
    }

    /// The next marker and its segment without the length. Bytes that belong to no segment are passed over, as by libjpeg.
    pub(super) fn advance(&mut self) -> Fallible<(u8, &'a [u8])> {
        let truncated = "the JPEG data ends early, the file is truncated";
        let at = find_marker(self.rest).ok_or(truncated)?;
        let (marker, tail) = self.rest[at..].split_first().ok_or(truncated)?;
        self.rest = tail;
        // Start of image, restarts and one reserved marker stand alone.
        if matches!(marker, 0x01 | 0xd0..=0xd9) {
            return Ok((*marker, &[]));
        }
        let length = tail.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        let length = usize::from(length.ok_or(truncated)?);
        if length < 2 {
            return Err("a JPEG segment is shorter than its own length".into());
        }
        let (segment, rest) = tail.split_at_checked(length).ok_or(truncated)?;
        self.rest = rest;
        Ok((*marker, &segment[2..]))
    }

    /// Everything after the last segment.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Passes over the first `count` bytes of [`rest`](Self::rest).
    pub(super) fn skip(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }
}

/// Where the byte after the next marker's 0xFF is. 0xFF 0x00 is data, and any number of 0xFF may precede a marker.
pub(super) fn find_marker(bytes: &[u8]) -> Option<usize> {
    let pair = |pair: &[u8]| pair[0] == 0xff && pair[1] != 0 && pair[1] != 0xff;
    bytes.windows(2).position(pair).map(|at| at + 1)
}

/// One colour channel of the frame.
pub(super) struct Component {
    id: u8,
    /// Samples beside and below one another in a minimum coded unit, in blocks of 8.
    pub(super) sampling: (usize, usize),
    /// Which of the four quantisation tables.
    pub(super) quantisation: usize,
    /// Samples across and down that belong to the picture.
    pub(super) size: (usize, usize),
    /// Blocks across and down that hold those samples.
    pub(super) blocks: (usize, usize),
    /// Blocks across and down, filled up to whole minimum coded units.
    pub(super) padded: (usize, usize),
}

/// The frame header: size, channels and kind of coding.
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// The largest sampling of any component.
    pub(super) sampling: (usize, usize),
    /// Minimum coded units across and down.
    pub(super) units: (usize, usize),
}

impl Frame {
    pub(super) fn parse(marker: u8, segment: &[u8]) -> Fallible<Frame> {
        let [precision, h1, h0, w1, w0, count, channels @ ..] = segment else {
            return Err("the JPEG frame header is too short".into());
        };
        if *precision != 8 {
            return Err(format!("expected a JPEG of 8 bits a sample, found {precision}").into());
        }
        let (width, height) = (u16::from_be_bytes([*w1, *w0]), u16::from_be_bytes([*h1, *h0]));
        if width == 0 || height == 0 {
            return Err(format!(
                "a JPEG of {width} x {height} pixels, sizes given after the data are not read"
            )
            .into());
        }
        let (channels, _) = channels.as_chunks::<3>();
        if !matches!(count, 1 | 3 | 4) || channels.len() != usize::from(*count) {
            return Err(format!("expected a JPEG of 1, 3 or 4 components, found {count}").into());
        }
        let samplings = channels
            .iter()
            .map(|[_, sampling, _]| (usize::from(sampling >> 4), usize::from(sampling & 15)));
        let largest = samplings
            .clone()
            .fold((1, 1), |most, one| (one.0.max(most.0), one.1.max(most.1)));
        let (width, height) = (usize::from(width), usize::from(height));
        let units = (width.div_ceil(8 * largest.0), height.div_ceil(8 * largest.1));
        let mut components = Vec::with_capacity(channels.len());
        for ([id, _, quantisation], sampling) in channels.iter().zip(samplings) {
            let whole = |of: usize, part: usize| (1..=4).contains(&part) && of.is_multiple_of(part);
            if !whole(largest.0, sampling.0) || !whole(largest.1, sampling.1) {
                return Err(format!(
                    "a JPEG component of {} x {} samples where another has {} x {}, expected whole ratios up to 4",
                    sampling.0, sampling.1, largest.0, largest.1
                )
                .into());
            }
            let size = (
                (width * sampling.0).div_ceil(largest.0),
                (height * sampling.1).div_ceil(largest.1),
            );
            components.push(Component {
                id: *id,
                sampling,
                quantisation: usize::from(*quantisation),
                size,
                blocks: (size.0.div_ceil(8), size.1.div_ceil(8)),
                padded: (units.0 * sampling.0, units.1 * sampling.1),
            });
        }
        Ok(Frame {
            width,
            height,
            progressive: marker == 0xc2,
            components,
            sampling: largest,
            units,
        })
    }

    /// Blocks of all components.
    pub(super) fn blocks(&self) -> u64 {
        self.components
            .iter()
            .map(|component| component.padded.0 as u64 * component.padded.1 as u64)
            .sum()
    }

    pub(super) fn ids(&self) -> Vec<u8> {
        self.components.iter().map(|component| component.id).collect()
    }
}

/// A component's part in a scan.
pub(super) struct Channel {
    /// Which of the frame's components.
    pub(super) component: usize,
    /// Which of the four Huffman tables for the first coefficient of a block.
    pub(super) dc: usize,
    /// Which of the four for the others.
    pub(super) ac: usize,
}

/// The scan header: which components, and which part of their coefficients, follow.
pub(super) struct Scan {
    pub(super) channels: Vec<Channel>,
    /// The first coefficient, in the file's order; progressive frames only, like all below.
    pub(super) first: usize,
    /// The last coefficient.
    pub(super) last: usize,
    /// Whether this scan adds one bit to what an earlier one gave.
    pub(super) refines: bool,
    /// The bit that this scan ends with.
    pub(super) low_bit: u32,
}

impl Scan {
    pub(super) fn parse(segment: &[u8], frame: &Frame) -> Fallible<Scan> {
        let short = "the JPEG scan header has the wrong length";
        let (count, tail) = segment.split_first().ok_or(short)?;
        let (selectors, [first, last, bits]) = tail
            .split_last_chunk::<3>()
            .filter(|(s, _)| s.len() == 2 * usize::from(*count))
            .ok_or(short)?;
        let mut channels: Vec<Channel> = Vec::new();
        for [id, tables] in selectors.as_chunks::<2>().0 {
            let component = frame.components.iter().position(|component| component.id == *id);
            let component = component.ok_or_else(|| format!("a JPEG scan of the unknown component {id}"))?;
            if channels.iter().any(|channel| channel.component == component) {
                return Err(format!("a JPEG scan that holds component {id} twice").into());
            }
            channels.push(Channel {
                component,
                dc: usize::from(tables >> 4),
                ac: usize::from(tables & 15),
            });
        }
        if channels.is_empty() {
            return Err("a JPEG scan without components".into());
        }
        let (high, low) = (bits >> 4, bits & 15);
        let band = if *first == 0 {
            *last == 0
        } else {
            first <= last && *last < 64 && channels.len() == 1
        };
        let precision = low <= 13 && (high == 0 || low + 1 == high);
        if frame.progressive && !(band && precision) {
            return Err(format!(
                "a progressive JPEG scan of coefficients {first} to {last}, bits {high} to {low}"
            )
            .into());
        }
        Ok(Scan {
            channels,
            first: usize::from(*first),
            last: usize::from(*last),
            refines: high != 0,
            low_bit: u32::from(low),
        })
    }
}

/// Everything the other segments define, as far as it decides about pixels.
#[derive(Default)]
pub(super) struct Tables {
    /// Factors of the coefficients, row by row.
    pub(super) quantisation: [Option<[u16; 64]>; 4],
    dc: [Option<Box<Huffman>>; 4],
    ac: [Option<Box<Huffman>>; 4],
    /// Minimum coded units between restarts; 0 for none.
    pub(super) restart: usize,
    /// Whether a JFIF segment says that three components are luma and chroma.
    pub(super) jfif: bool,
    /// The colour transform that an Adobe segment names.
    pub(super) adobe: Option<u8>,
}

impl Tables {
    /// Takes in one segment; those that say nothing about pixels are passed over.
    pub(super) fn read(&mut self, marker: u8, segment: &[u8]) -> Fallible<()> {
        match marker {
            0xdb => self.quantisation(segment),
            0xc4 => self.huffman(segment),
            0xdd => {
                let interval = segment
                    .first_chunk()
                    .ok_or("the JPEG restart interval is too short")?;
                self.restart = usize::from(u16::from_be_bytes(*interval));
                Ok(())
            }
            0xe0 => {
                self.jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14;
                Ok(())
            }
            0xee => {
                if let (true, Some(transform)) = (segment.starts_with(b"Adobe"), segment.get(11)) {
                    self.adobe = Some(*transform);
                }
                Ok(())
            }
            0xc9..=0xcb | 0xcd..=0xcf => Err("a JPEG with arithmetic coding, expected Huffman coding".into()),
            0xc3 | 0xc5..=0xc7 => {
                Err("a lossless or hierarchical JPEG, expected a baseline or progressive one".into())
            }
            _ => Ok(()),
        }
    }

    /// The code of a channel's first coefficients.
    pub(super) fn dc(&self, channel: &Channel) -> Fallible<&Huffman> {
        let table = self.dc.get(channel.dc).and_then(Option::as_deref);
        table.ok_or("a JPEG scan without its Huffman table".into())
    }

    /// The code of a channel's other coefficients.
    pub(super) fn ac(&self, channel: &Channel) -> Fallible<&Huffman> {
        let table = self.ac.get(channel.ac).and_then(Option::as_deref);
        table.ok_or("a JPEG scan without its Huffman table".into())
    }

    fn quantisation(&mut self, mut segment: &[u8]) -> Fallible<()> {
        let short = "a JPEG quantisation table is too short";
        while let Some((head, tail)) = segment.split_first() {
            let wide = head >> 4 != 0;
            let (values, rest) = tail.split_at_checked(if wide { 128 } else { 64 }).ok_or(short)?;
            let mut table = [0; 64];
            for (k, &place) in ZIGZAG.iter().enumerate() {
                table[usize::from(place)] = if wide {
                    u16::from_be_bytes([values[2 * k], values[2 * k + 1]])
                } else {
                    u16::from(values[k])
                };
            }
            let slot = self.quantisation.get_mut(usize::from(head & 15));
            *slot.ok_or("a JPEG quantisation table above the fourth")? = Some(table);
            segment = rest;
        }
        Ok(())
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Fallible<()> {
        let short = "a JPEG Huffman table is too short";
        while let Some((head, tail)) = segment.split_first() {
            let (counts, tail) = tail.split_first_chunk::<16>().ok_or(short)?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = tail.split_at_checked(total).ok_or(short)?;
            let tables = if head >> 4 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            let slot = tables.get_mut(usize::from(head & 15));
            *slot.ok_or("a JPEG Huffman table above the fourth")? =
                Some(Box::new(Huffman::new(counts, symbols)?));
            segment = rest;
        }
        Ok(())
    }
}
