//! Small pictures against the pixels that Pillow 13 (libjpeg-turbo 3) gives for them, and damage of every kind.
//!
//! The files are waves and noise, written by Pillow; 4:4:0 and 4:1:1, which it does not write, are such files with another
//! arrangement of the same blocks, and `huge_factors` has factors far beyond what its coefficients were made for.

use proptest::prelude::*;

use super::*;

/// Name, file, size, and the CRC-32 of the RGB bytes.
type Fixture = (&'static str, &'static [u8], (usize, usize), u32);

const FIXTURES: [Fixture; 14] = [
    ("420", include_bytes!("fixtures/420.jpg"), (33, 20), 0x3c489fd7),
    (
        "420_progressive",
        include_bytes!("fixtures/420_progressive.jpg"),
        (33, 20),
        0x3c489fd7,
    ),
    (
        "420_restarts",
        include_bytes!("fixtures/420_restarts.jpg"),
        (50, 19),
        0x4737a973,
    ),
    ("422", include_bytes!("fixtures/422.jpg"), (17, 33), 0x6c0653a7),
    ("444", include_bytes!("fixtures/444.jpg"), (9, 7), 0x71e90a4a),
    (
        "420_one_pixel",
        include_bytes!("fixtures/420_one_pixel.jpg"),
        (1, 1),
        0x0edcc11e,
    ),
    (
        "420_narrow",
        include_bytes!("fixtures/420_narrow.jpg"),
        (4, 21),
        0x86aa3935,
    ),
    ("440", include_bytes!("fixtures/440.jpg"), (13, 59), 0x73bc4fef),
    ("411", include_bytes!("fixtures/411.jpg"), (59, 13), 0x7c49cdcb),
    ("grey", include_bytes!("fixtures/grey.jpg"), (21, 14), 0x73cc7b2d),
    ("rgb", include_bytes!("fixtures/rgb.jpg"), (12, 12), 0x60223498),
    ("cmyk", include_bytes!("fixtures/cmyk.jpg"), (15, 18), 0xd9154680),
    ("ycck", include_bytes!("fixtures/ycck.jpg"), (15, 18), 0x1bf3768a),
    (
        "huge_factors",
        include_bytes!("fixtures/huge_factors.jpg"),
        (20, 20),
        0x30330c1d,
    ),
];

fn read(file: &[u8]) -> Result<Image> {
    decode(file, "test.jpg", &DecodeLimits::default())
}

fn refusal(file: &[u8]) -> String {
    read(file).unwrap_err().to_string()
}

/// A fixture's file, and where its frame header is.
fn fixture(name: &str) -> (Vec<u8>, usize) {
    let file = FIXTURES
        .iter()
        .find(|fixture| fixture.0 == name)
        .unwrap()
        .1
        .to_vec();
    let frame = |pair: &[u8]| pair[0] == 0xff && START_OF_FRAME.contains(&pair[1]);
    let at = file.windows(2).position(frame).unwrap();
    (file, at)
}

#[test]
fn every_pixel_is_pillows() {
    for (name, file, size, expected) in FIXTURES {
        let image = read(file).unwrap();
        assert_eq!((image.width(), image.height()), size, "{name}");
        let mut checksum = flate2::Crc::new();
        checksum.update(image.data());
        assert_eq!(checksum.sum(), expected, "{name}");
    }
}

#[test]
fn files_that_end_early_are_errors_wherever_they_end() {
    for (name, file, ..) in FIXTURES {
        for end in 0..file.len() {
            assert!(read(&file[..end]).is_err(), "{name} cut to {end} bytes");
        }
    }
}

#[test]
fn bytes_between_segments_are_passed_over() {
    let (file, frame) = fixture("420");
    let spoilt = [&file[..frame], b"\0\0junk\xff\xff", &file[frame..], b"more"].concat();
    assert_eq!(read(&spoilt).unwrap(), read(&file).unwrap());
}

#[test]
fn what_is_not_read_is_said() {
    let (file, frame) = fixture("420");
    let with = |at: usize, value: u8| {
        let mut changed = file.clone();
        changed[frame + at] = value;
        refusal(&changed)
    };
    assert!(with(1, 0xc9).ends_with("a JPEG with arithmetic coding, expected Huffman coding"));
    assert!(
        with(1, 0xc3).ends_with("a lossless or hierarchical JPEG, expected a baseline or progressive one")
    );
    assert!(with(4, 12).ends_with("expected a JPEG of 8 bits a sample, found 12"));
    assert!(with(6, 0).ends_with("sizes given after the data are not read"));
    assert!(with(9, 2).ends_with("expected a JPEG of 1, 3 or 4 components, found 2"));
    assert!(with(14, 0x32).ends_with("expected whole ratios up to 4"));
    assert!(refusal(b"\xff\xd8\xff\xd9").ends_with("a JPEG without a picture"));
}

#[test]
fn a_missing_restart_is_damage() {
    let (mut file, _) = fixture("420_restarts");
    let second = file.windows(2).position(|pair| pair == [0xff, 0xd1]).unwrap();
    file[second + 1] = 0xd5;
    assert!(refusal(&file).ends_with("a restart marker is missing"));
}

#[test]
fn a_progressive_frame_is_charged_for_its_coefficients() {
    // 33 x 20 pixels are 1980 bytes, and 36 blocks of 128 bytes.
    let limits = |max_bytes| DecodeLimits {
        max_bytes,
        ..DecodeLimits::default()
    };
    assert!(decode(&fixture("420").0, "x", &limits(1980)).is_ok());
    let progressive = fixture("420_progressive").0;
    assert!(decode(&progressive, "x", &limits(36 * 128)).is_ok());
    let error = decode(&progressive, "x", &limits(36 * 128 - 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`x` is too large: 4608, the limit is 4607 decoded bytes; raise it with `--max-pixels`"
    );
}

#[test]
fn scans_without_end_are_refused() {
    // The first scan, which may come again and again, ends where the next one's Huffman tables start.
    let (file, _) = fixture("420_progressive");
    let start = file
        .windows(2)
        .position(|pair| pair == [0xff, START_OF_SCAN])
        .unwrap();
    let length = file[start..]
        .windows(2)
        .position(|pair| pair == [0xff, 0xc4])
        .unwrap();
    let (head, scan) = (&file[..start], &file[start..start + length]);
    let file = |scans| [head, &scan.repeat(scans), b"\xff\xd9"].concat();
    assert!(read(&file(MOST_SCANS)).is_ok());
    let many = file(MOST_SCANS + 1);
    assert!(refusal(&many).ends_with("a JPEG of more than 500 scans"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damage_never_panics(
        which in 0..FIXTURES.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        paste in any::<prop::sample::Index>(),
    ) {
        let mut file = FIXTURES[which].1.to_vec();
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        let limits = DecodeLimits { max_pixels: 1 << 16, ..DecodeLimits::default() };
        let _ = decode(&file, "x", &limits);
        // A piece of the file somewhere else in it.
        let tail = file.split_off(cut.index(file.len()));
        file.extend_from_within(paste.index(file.len().max(1)).min(file.len())..);
        file.extend(tail);
        let _ = decode(&file, "x", &limits);
    }
}
