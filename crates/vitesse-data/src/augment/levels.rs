//! Operations that look at one level at a time, by table: Pillow's `ImageOps`.

use crate::Image;

/// A table for each channel.
type Tables = [[u8; 256]; 3];

fn map(image: &Image, tables: &Tables) -> Image {
    let mut out = image.clone();
    let (pixels, _) = out.data_mut().as_chunks_mut::<3>();
    for pixel in pixels {
        for (level, table) in pixel.iter_mut().zip(tables) {
            *level = table[usize::from(*level)];
        }
    }
    out
}

fn same(table: impl Fn(u8) -> u8) -> Tables {
    [std::array::from_fn(|level| table(level as u8)); 3]
}

/// How often each channel has each level.
fn histograms(image: &Image) -> [[usize; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    let (pixels, _) = image.data().as_chunks::<3>();
    for pixel in pixels {
        for (counts, &level) in counts.iter_mut().zip(pixel) {
            counts[usize::from(level)] += 1;
        }
    }
    counts
}

const UNCHANGED: [u8; 256] = {
    let mut table = [0; 256];
    let mut level = 0;
    while level < 256 {
        table[level] = level as u8;
        level += 1;
    }
    table
};

/// Stretches each channel to the full range.
pub(super) fn auto_contrast(image: &Image) -> Image {
    map(
        image,
        &histograms(image).map(|counts| {
            let darkest = counts.iter().position(|&count| count > 0).unwrap_or(0);
            let brightest = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
            if brightest <= darkest {
                return UNCHANGED;
            }
            let scale = 255.0 / (brightest - darkest) as f64;
            let offset = -(darkest as f64) * scale;
            std::array::from_fn(|level| (level as f64 * scale + offset) as u8)
        }),
    )
}

/// Spreads each channel's levels so that all are about equally frequent.
pub(super) fn equalize(image: &Image) -> Image {
    map(
        image,
        &histograms(image).map(|counts| {
            let total: usize = counts.iter().sum();
            let last = counts
                .iter()
                .rev()
                .find(|&&count| count > 0)
                .copied()
                .unwrap_or(0);
            let step = (total - last) / 255;
            if step == 0 {
                return UNCHANGED;
            }
            let mut below = step / 2;
            counts.map(|count| {
                let level = (below / step).min(255) as u8;
                below += count;
                level
            })
        }),
    )
}

/// The negative.
pub(super) fn invert(image: &Image) -> Image {
    map(image, &same(|level| 255 - level))
}

/// Keeps the `bits` highest bits of each level, 0 to 8.
pub(super) fn posterize(image: &Image, bits: u32) -> Image {
    map(image, &same(|level| level & (0xff00u32 >> bits.min(8)) as u8))
}

/// Inverts the levels from `threshold` on, 0 to 256.
pub(super) fn solarize(image: &Image, threshold: u32) -> Image {
    map(
        image,
        &same(|level| {
            if u32::from(level) < threshold {
                level
            } else {
                255 - level
            }
        }),
    )
}

/// Brightens the levels below 128.
pub(super) fn solarize_add(image: &Image, add: u8) -> Image {
    map(
        image,
        &same(|level| {
            if level < 128 {
                level.saturating_add(add)
            } else {
                level
            }
        }),
    )
}
