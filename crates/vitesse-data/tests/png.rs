//! PNG files as people have them: every colour type, and containers that are damaged where no pixel is. What is read here, and as
//! what, is what Pillow 13 gives for the same bytes; where it gives no picture, or one that is not there, the file is refused.

#![allow(clippy::unwrap_used)]

use std::io::Write;

use vitesse_data::{DecodeOptions, Image, Result, decode};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

fn read(bytes: &[u8]) -> Result<Image> {
    decode(bytes, "x.png", &DecodeOptions::default())
}

fn crc(kind: &[u8], data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    crc.sum()
}

fn chunk_with(kind: &str, data: &[u8], crc: u32) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    [&length, kind.as_bytes(), data, &crc.to_be_bytes()].concat()
}

fn chunk(kind: &str, data: &[u8]) -> Vec<u8> {
    chunk_with(kind, data, crc(kind.as_bytes(), data))
}

/// A chunk whose CRC is wrong.
fn damaged(kind: &str, data: &[u8]) -> Vec<u8> {
    chunk_with(kind, data, !crc(kind.as_bytes(), data))
}

fn zlib(rows: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(rows).unwrap();
    packed.finish().unwrap()
}

fn header([width, height]: [u32; 2], bits: u8, colour: u8, interlaced: bool) -> Vec<u8> {
    let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
    [sides, vec![bits, colour, 0, 0, interlaced.into()]].concat()
}

/// Samples of the file, `[height, width, channels]`, each in its bits.
struct Source {
    size: [u32; 2],
    bits: u8,
    colour: u8,
    channels: usize,
    samples: Vec<u16>,
}

impl Source {
    fn new(size: [u32; 2], bits: u8, colour: u8) -> Source {
        let channels = match colour {
            2 => 3,
            4 => 2,
            6 => 4,
            _ => 1,
        };
        let count = (size[0] * size[1]) as usize * channels;
        let samples = (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u16);
        Source {
            size,
            bits,
            colour,
            channels,
            samples: samples.map(|sample| sample & (u16::MAX >> (16 - bits))).collect(),
        }
    }

    /// The rows of the file, each behind the byte of its filter, none.
    fn rows(&self, interlaced: bool) -> Vec<u8> {
        let [width, height] = self.size.map(|side| side as usize);
        let passes: &[[usize; 4]] = if interlaced {
            &[
                [0, 0, 8, 8],
                [4, 0, 8, 8],
                [0, 4, 4, 8],
                [2, 0, 4, 4],
                [0, 2, 2, 4],
                [1, 0, 2, 2],
                [0, 1, 1, 2],
            ]
        } else {
            &[[0, 0, 1, 1]]
        };
        let mut rows = Vec::new();
        for &[left, top, across, down] in passes.iter().filter(|pass| pass[0] < width) {
            for y in (top..height).step_by(down) {
                rows.push(0);
                let (mut bits, mut held) = (0u32, 0);
                for x in (left..width).step_by(across) {
                    let at = (y * width + x) * self.channels;
                    for &sample in &self.samples[at..at + self.channels] {
                        bits = bits << self.bits | u32::from(sample);
                        held += u32::from(self.bits);
                        while held >= 8 {
                            held -= 8;
                            rows.push((bits >> held) as u8);
                        }
                    }
                }
                if held > 0 {
                    rows.push((bits << (8 - held)) as u8);
                }
            }
        }
        rows
    }

    fn palette() -> Vec<u8> {
        (0..=255u8)
            .flat_map(|i| [i ^ 0x5a, i.wrapping_mul(7), 255 - i])
            .collect()
    }

    /// The file's chunks before the rows.
    fn begin(&self, interlaced: bool) -> Vec<u8> {
        let header = chunk("IHDR", &header(self.size, self.bits, self.colour, interlaced));
        let palette = if self.colour == 3 {
            chunk("PLTE", &Source::palette()[..3 << self.bits])
        } else {
            Vec::new()
        };
        [SIGNATURE, &header, &palette].concat()
    }

    fn file(&self, interlaced: bool) -> Vec<u8> {
        let rows = chunk("IDAT", &zlib(&self.rows(interlaced)));
        [self.begin(interlaced), rows, chunk("IEND", b"")].concat()
    }

    /// The pixels: levels stretched to 8 bits, or their high byte; grey repeated; alpha dropped.
    fn pixels(&self) -> Vec<u8> {
        let level = |sample: u16| match self.bits {
            1 => sample as u8 * 255,
            2 => sample as u8 * 85,
            4 => sample as u8 * 17,
            8 => sample as u8,
            _ => (sample >> 8) as u8,
        };
        let pixel = |samples: &[u16]| match self.colour {
            0 | 4 => [level(samples[0]); 3],
            3 => Source::palette()[usize::from(samples[0]) * 3..][..3]
                .try_into()
                .unwrap(),
            _ => [0, 1, 2].map(|channel| level(samples[channel])),
        };
        self.samples.chunks_exact(self.channels).flat_map(pixel).collect()
    }
}

#[test]
fn every_colour_type_is_read_plain_and_interlaced() {
    let kinds = [
        (0, &[1, 2, 4, 8, 16][..]),
        (2, &[8, 16]),
        (3, &[1, 2, 4, 8]),
        (4, &[8, 16]),
        (6, &[8, 16]),
    ];
    for (colour, depths) in kinds {
        for &bits in depths {
            for size in [[1, 1], [3, 5], [17, 9]] {
                let source = Source::new(size, bits, colour);
                for interlaced in [false, true] {
                    let read = read(&source.file(interlaced)).unwrap();
                    let found = [read.width() as u32, read.height() as u32];
                    assert_eq!(
                        (found, read.data()),
                        (size, source.pixels().as_slice()),
                        "colour type {colour}, {bits} bits, {size:?}, interlaced: {interlaced}"
                    );
                }
            }
        }
    }
}

#[test]
fn damage_where_no_pixel_is_does_not_matter() {
    let metadata: [(&str, &[u8]); 22] = [
        ("gAMA", &45_455u32.to_be_bytes()),
        ("gAMA", b"\0\0"),
        ("cHRM", &[0; 32]),
        ("sRGB", b"\x09"),
        ("iCCP", b"ICC\0\0not zlib"),
        ("iCCP", b"ab"),
        ("sBIT", b"\x10\0"),
        ("bKGD", b"\x01"),
        ("pHYs", b"\0"),
        ("tIME", b"\xff"),
        ("hIST", b"\0\x01"),
        ("tEXt", b""),
        ("zTXt", b"Title\0\0broken"),
        ("iTXt", b"T\0\x01\0"),
        ("eXIf", b"zz"),
        ("tRNS", b""),
        ("tRNS", &[7; 300]),
        ("acTL", b"\0"),
        ("fcTL", b"\0"),
        ("cICP", b"\x01"),
        ("prVt", b"anything"),
        ("ABCD", b"critical, and unknown"),
    ];
    for (bits, colour) in [(8, 2), (4, 3)] {
        let source = Source::new([6, 5], bits, colour);
        let (begin, packed) = (source.begin(false), zlib(&source.rows(false)));
        let (rows, end) = (chunk("IDAT", &packed), chunk("IEND", b""));
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut add = |what: &str, parts: &[&[u8]]| files.push((what.to_owned(), parts.concat()));
        for (kind, data) in metadata {
            for (what, extra) in [("", chunk(kind, data)), ("damaged ", damaged(kind, data))] {
                let what = format!("{what}{kind}");
                let (signature, others) = begin.split_at(8);
                add(&what, &[&begin, &extra, &rows, &end]);
                add(
                    &format!("{what} twice, before the header"),
                    &[signature, &extra, &extra, others, &rows, &end],
                );
                add(&format!("{what} behind"), &[&begin, &rows, &extra, &end]);
            }
        }
        let pieces: Vec<u8> = packed.iter().flat_map(|byte| chunk("IDAT", &[*byte])).collect();
        add("a chunk a byte", &[&begin, &pieces, &end]);
        add(
            "empty rows",
            &[&begin, &chunk("IDAT", b""), &rows, &chunk("IDAT", b""), &end],
        );
        add("damaged rows' CRC", &[&begin, &damaged("IDAT", &packed), &end]);
        add(
            "bytes behind the rows",
            &[&begin, &rows, &chunk("IDAT", b"garbage"), &end],
        );
        add(
            "longer rows",
            &[
                &begin,
                &chunk("IDAT", &zlib(&[source.rows(false), vec![0; 50]].concat())),
                &end,
            ],
        );
        add("bytes behind the end", &[&begin, &rows, &end, b"garbage", &begin]);
        add("damaged end", &[&begin, &rows, &damaged("IEND", b"abc")]);
        add("no end", &[&begin, &rows]);
        add("zeros for an end", &[&begin, &rows, &[0; 64]]);
        add("an end cut off", &[&begin, &rows, &end[..6]]);
        for cut in 1..=8 {
            let what = format!("{cut} bytes of the checksums cut off");
            add(&what, &[&begin, &rows[..rows.len() - cut]]);
        }
        let long = [header(source.size, bits, colour, false), vec![1, 2]].concat();
        let palette = &begin[8 + 25..];
        add(
            "a longer header",
            &[SIGNATURE, &chunk("IHDR", &long), palette, &rows, &end],
        );
        let mut other = header(source.size, bits, colour, false);
        other[10] = 1;
        add(
            "another compression",
            &[SIGNATURE, &chunk("IHDR", &other), palette, &rows, &end],
        );
        let first = chunk("IHDR", &header([1, 1], 1, 0, false));
        add("two headers", &[SIGNATURE, &first, &begin[8..], &rows, &end]);
        if colour == 3 {
            let plain = &begin[..8 + 25];
            let whole = Source::palette();
            add(
                "two palettes",
                &[plain, &chunk("PLTE", &[1; 9]), palette, &rows, &end],
            );
            add("a longer palette", &[plain, &chunk("PLTE", &whole), &rows, &end]);
            add(
                "a palette of odd length",
                &[plain, &chunk("PLTE", &whole[..50]), &rows, &end],
            );
        }
        for (what, file) in files {
            let read = read(&file).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(read.data(), source.pixels(), "{what}");
        }
    }
}

#[test]
fn colours_that_a_palette_lacks_are_black() {
    let mut source = Source::new([4, 1], 4, 3);
    source.samples = vec![0, 2, 3, 15];
    let plain = [SIGNATURE, &chunk("IHDR", &header([4, 1], 4, 3, false))].concat();
    let rows = chunk("IDAT", &zlib(&source.rows(false)));
    // Three colours and a part of one.
    let palette = chunk("PLTE", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let file = [plain, palette, rows, chunk("IEND", b"")].concat();
    assert_eq!(read(&file).unwrap().data(), [1, 2, 3, 7, 8, 9, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn missing_and_damaged_pixels_are_sentences() {
    let source = Source::new([6, 5], 8, 3);
    let (begin, all) = (source.begin(false), source.rows(false));
    let (packed, end) = (zlib(&all), chunk("IEND", b""));
    let rows = chunk("IDAT", &packed);
    let plain = &begin[..8 + 25];
    let mut flipped = packed.clone();
    flipped[5] ^= 1;
    let filtered = [&[9][..], &all[1..]].concat();
    for (what, parts) in [
        ("no header", vec![SIGNATURE, &rows, &end]),
        ("no palette", vec![plain, &rows, &end]),
        ("an empty palette", vec![plain, &chunk("PLTE", b""), &rows, &end]),
        (
            "a damaged palette",
            vec![plain, &damaged("PLTE", &[9; 48]), &rows, &end],
        ),
        (
            "a damaged header",
            vec![
                SIGNATURE,
                &damaged("IHDR", &header([6, 5], 8, 0, false)),
                &rows,
                &end,
            ],
        ),
        ("no rows", vec![&begin, &end]),
        ("rows behind the end", vec![&begin, &end, &rows]),
        (
            "a row too few",
            vec![&begin, &chunk("IDAT", &zlib(&all[..all.len() - 7])), &end],
        ),
        (
            "a pixel too few",
            vec![&begin, &chunk("IDAT", &zlib(&all[..all.len() - 1])), &end],
        ),
        ("rows cut off", vec![&begin, &rows[..rows.len() / 2]]),
        (
            "rows with something between",
            vec![
                &begin,
                &chunk("IDAT", &packed[..9]),
                &chunk("tEXt", b"a\0b"),
                &chunk("IDAT", &packed[9..]),
                &end,
            ],
        ),
        (
            "rows whose two checksums are wrong",
            vec![&begin, &chunk_with("IDAT", &flipped, crc(b"IDAT", &packed)), &end],
        ),
        (
            "an unknown filter",
            vec![&begin, &chunk("IDAT", &zlib(&filtered)), &end],
        ),
        (
            "Apple's own kind",
            vec![
                SIGNATURE,
                &chunk("CgBI", b"\x50\0\x20\x02"),
                &begin[8..],
                &chunk("IDAT", &packed[2..packed.len() - 4]),
                &end,
            ],
        ),
    ] {
        let error = read(&parts.concat()).expect_err(what).to_string();
        assert!(
            error.starts_with("`x.png` cannot be decoded: "),
            "{what}: {error}"
        );
    }
}

/// One that says how it is turned, 2 x 3 pixels, in each of the eight ways.
#[test]
fn turns_are_followed_on_request() {
    let source = Source::new([2, 3], 8, 2);
    let options = DecodeOptions {
        exif_rotation: true,
        ..DecodeOptions::default()
    };
    let pixels = source.pixels();
    let (begin, rows, end) = (
        source.begin(false),
        chunk("IDAT", &zlib(&source.rows(false))),
        chunk("IEND", b""),
    );
    for (turn, width, order) in [
        (0, 2, [0, 1, 2, 3, 4, 5]),
        (1, 2, [0, 1, 2, 3, 4, 5]),
        (2, 2, [1, 0, 3, 2, 5, 4]),
        (3, 2, [5, 4, 3, 2, 1, 0]),
        (4, 2, [4, 5, 2, 3, 0, 1]),
        (5, 3, [0, 2, 4, 1, 3, 5]),
        (6, 3, [4, 2, 0, 5, 3, 1]),
        (7, 3, [5, 3, 1, 4, 2, 0]),
        (8, 3, [1, 3, 5, 0, 2, 4]),
        (9, 2, [0, 1, 2, 3, 4, 5]),
    ] {
        let entry = [
            b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0",
            &[turn][..],
            &[0; 6],
        ]
        .concat();
        for mark in [&b""[..], b"Exif\0\0"] {
            let exif = chunk("eXIf", &[mark, &entry].concat());
            for file in [
                [&begin[..], &exif, &rows, &end].concat(),
                [&begin[..], &rows, &exif, &end].concat(),
            ] {
                assert_eq!(read(&file).unwrap().data(), pixels);
                let turned = decode(&file, "x", &options).unwrap();
                let expected: Vec<u8> = order
                    .iter()
                    .flat_map(|&at| &pixels[3 * at..3 * at + 3])
                    .copied()
                    .collect();
                assert_eq!(
                    (turned.width(), turned.data()),
                    (width, expected.as_slice()),
                    "{turn}"
                );
            }
        }
    }
}
