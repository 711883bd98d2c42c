//! Channels to RGB: libjpeg's fixed-point luma and chroma, then Pillow's `convert("RGB")` for grey and for printing colours.

use super::markers::{Frame, Tables};

/// What the channels mean.
#[derive(Clone, Copy)]
pub(super) enum Colour {
    Grey,
    Rgb,
    YCbCr,
    /// Cyan, magenta, yellow, black, stored inverted.
    Cmyk,
    /// The first three of those as luma and chroma.
    Ycck,
}

impl Colour {
    /// libjpeg's guess: a JFIF segment, else an Adobe segment, else the components' names.
    pub(super) fn of(frame: &Frame, tables: &Tables) -> Colour {
        match (frame.components.len(), tables.adobe) {
            (1, _) => Colour::Grey,
            (3, _) if tables.jfif => Colour::YCbCr,
            (3, Some(0)) => Colour::Rgb,
            (3, None) if frame.ids() == *b"RGB" => Colour::Rgb,
            (3, _) => Colour::YCbCr,
            (_, None | Some(0)) => Colour::Cmyk,
            _ => Colour::Ycck,
        }
    }

    /// Converts one row; `channels` are at least as long as `out` has pixels.
    #[inline(always)]
    pub(super) fn convert(self, channels: [&[u8]; 4], out: &mut [[u8; 3]]) {
        let [a, b, c, d] = channels.map(|channel| channel.iter().copied());
        match self {
            Colour::Grey => {
                for (out, grey) in out.iter_mut().zip(a) {
                    *out = [grey; 3];
                }
            }
            Colour::Rgb => {
                for (out, ((red, green), blue)) in out.iter_mut().zip(a.zip(b).zip(c)) {
                    *out = [red, green, blue];
                }
            }
            Colour::YCbCr => {
                for (out, ((luma, blue), red)) in out.iter_mut().zip(a.zip(b).zip(c)) {
                    *out = rgb(luma, blue, red);
                }
            }
            // Pillow takes every picture of four channels for an inverted one, as Adobe's programs write them.
            Colour::Cmyk => {
                for (out, (((cyan, magenta), yellow), black)) in out.iter_mut().zip(a.zip(b).zip(c).zip(d)) {
                    *out = [cyan, magenta, yellow].map(|ink| printed(ink, black));
                }
            }
            // Here the transform gives the inks themselves; libjpeg inverts them, so that all four are stored alike.
            Colour::Ycck => {
                for (out, (((luma, blue), red), black)) in out.iter_mut().zip(a.zip(b).zip(c).zip(d)) {
                    *out = rgb(luma, blue, red).map(|ink| printed(255 - ink, black));
                }
            }
        }
    }
}

/// ITU-R BT.601 at full range, in 16 fractional bits: 1.402, 0.34414, 0.71414, 1.772.
#[inline(always)]
fn rgb(luma: u8, blue: u8, red: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (luma, blue, red) = (i32::from(luma), i32::from(blue) - 128, i32::from(red) - 128);
    [
        luma + ((91881 * red + HALF) >> 16),
        luma + ((HALF - 22554 * blue - 46802 * red) >> 16),
        luma + ((116_130 * blue + HALF) >> 16),
    ]
    .map(|level| level.clamp(0, 255) as u8)
}

/// What is left of an inverted ink on an inverted black, their product over 255 as Pillow rounds it.
#[inline(always)]
fn printed(ink: u8, black: u8) -> u8 {
    // Pillow: black' - (255 - ink) · black' / 255, where black' is the inverted black as stored.
    let product = (255 - u32::from(ink)) * u32::from(black) + 128;
    black.saturating_sub((((product >> 8) + product) >> 8) as u8)
}
