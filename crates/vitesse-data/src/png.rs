//! PNG containers as they are met: what a decoder needs of one, written anew.
//!
//! A PNG file is a signature and a row of chunks: length, type, data, CRC. Pixels hang on few of them: the header, the palette,
//! the compressed rows. Damage elsewhere (wrong CRCs, broken metadata, bytes behind the end, an end that is missing) is passed
//! over, so that whatever Pillow reads is read, and a little more: Pillow refuses most metadata that is damaged. Transparency is
//! left out too: alpha is dropped, and a palette's entries keep their colours.
//!
//! Two kinds are refused all the same, because what Pillow gives is not the picture: it makes an indexed picture without a
//! palette black, and rows that the compressed data lacks.

use std::io::Read;

/// The first bytes of every file.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Bytes of a header's fields.
const HEADER: usize = 13;
/// Where the header says how rows are compressed. There is one way, so whatever stands here is not looked at.
const COMPRESSION: usize = 10;

/// A file without what does not matter.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    /// The whole file.
    pub(crate) bytes: Vec<u8>,
    /// The metadata of a camera, which may say how the picture is turned.
    pub(crate) exif: Option<Vec<u8>>,
}

/// Writes a file anew with the chunks that its pixels need. One in which they are not found comes out without them.
pub(crate) fn plain(file: &[u8]) -> Plain {
    let chunks = Chunks(file.strip_prefix(SIGNATURE).unwrap_or_default());
    let (mut header, mut palette, mut rows, mut exif) = (None, None, Vec::new(), None);
    let mut rows_ended = false;
    for chunk in chunks {
        match chunk.kind {
            b"IEND" => break,
            // Neither may change once there are rows.
            b"IHDR" if rows.is_empty() => header = Some(chunk),
            b"PLTE" if rows.is_empty() => palette = Some(chunk),
            b"IDAT" if !rows_ended => rows.push(chunk),
            b"eXIf" => exif = Some(chunk.data.to_vec()),
            _ => {}
        }
        rows_ended = !rows.is_empty() && chunk.kind != b"IDAT";
    }
    let mut bytes = SIGNATURE.to_vec();
    if let Some(chunk) = header {
        let mut data = chunk.data.get(..HEADER).unwrap_or(chunk.data).to_vec();
        if let Some(compression) = data.get_mut(COMPRESSION) {
            *compression = 0;
        }
        chunk.write(&data, &mut bytes);
    }
    if let Some(chunk) = palette {
        let (colours, _) = chunk.data.as_chunks::<3>();
        chunk.write(colours.as_flattened(), &mut bytes);
    }
    // The compressed rows have a checksum of their own, by which Pillow goes.
    let trusted = !rows.iter().any(Chunk::is_damaged) || unpacks(&rows, header.as_ref());
    for chunk in rows {
        if trusted {
            write(chunk.kind, chunk.data, &mut bytes);
        } else {
            chunk.write(chunk.data, &mut bytes);
        }
    }
    write(b"IEND", &[], &mut bytes);
    Plain { bytes, exif }
}

/// Whether the compressed rows agree with their checksum.
fn unpacks(rows: &[Chunk<'_>], header: Option<&Chunk<'_>>) -> bool {
    let side = |at: usize| {
        let bytes = header.and_then(|header| header.data.get(at..)?.first_chunk::<4>());
        bytes.map_or(0, |bytes| u64::from(u32::from_be_bytes(*bytes)))
    };
    // More than rows of 16-bit colour with alpha can have, interlaced or not.
    let most = side(0)
        .saturating_mul(8)
        .saturating_add(16)
        .saturating_mul(side(4))
        .saturating_mul(2);
    let packed: Vec<u8> = rows.iter().flat_map(|chunk| chunk.data).copied().collect();
    let unpacked = flate2::read::ZlibDecoder::new(packed.as_slice());
    std::io::copy(&mut unpacked.take(most), &mut std::io::sink()).is_ok_and(|length| length < most)
}

/// A chunk of a file. Where the file ends early, with what there is of its data.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    kind: &'a [u8; 4],
    data: &'a [u8],
    crc: Option<[u8; 4]>,
}

impl Chunk<'_> {
    /// Whether its data is not what its CRC says; one that is cut off says nothing.
    fn is_damaged(&self) -> bool {
        self.crc.is_some_and(|found| found != crc(self.kind, self.data))
    }

    /// Writes the chunk with other data, damaged if it was.
    fn write(&self, data: &[u8], out: &mut Vec<u8>) {
        write(self.kind, data, out);
        if self.is_damaged()
            && let Some(last) = out.last_mut()
        {
            *last ^= 0xff;
        }
    }
}

/// The chunks of a file, behind its signature.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let (data, rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        let crc = rest.first_chunk::<4>().copied();
        self.0 = rest.get(4..).unwrap_or_default();
        Some(Chunk { kind, data, crc })
    }
}

fn write(kind: &[u8; 4], data: &[u8], out: &mut Vec<u8>) {
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(kind);
    out.extend(data);
    out.extend(crc(kind, data));
}

fn crc(kind: &[u8; 4], data: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    crc.sum().to_be_bytes()
}
