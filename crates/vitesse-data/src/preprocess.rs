//! From a picture to what a model takes in evaluation: resize, crop, normalise. timm's fields, timm's meaning.
//!
//! A model of one channel sees luminance, as Pillow's `convert("L")` makes it, before anything else is done to a picture; that is
//! where timm does it too.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::resize::{Interpolation, Window, resize_window};
use crate::{Error, Image, PerChannel, Result};

/// What to do with a picture whose shape is not the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// Shorter side to `size / crop_pct`, then the centre: the edges of the long side are lost.
    #[default]
    Center,
    /// Each side to `size / crop_pct` by itself, then the centre: the aspect ratio is lost.
    Squash,
    /// Longer side to `size / crop_pct`, then the centre or a border in the mean colour: nothing is lost at `crop_pct` 1.
    Border,
}

/// Evaluation preprocessing, as it stands in timm's `pretrained_cfg` beside the weights.
///
/// The result equals Pillow's and torchvision's to the last bit; the defaults are those of DeiT at 224 pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preprocess {
    /// What the model takes, `[channels, height, width]`; 3 channels for colour, 1 for luminance.
    pub input_size: [usize; 3],
    /// The resize filter.
    pub interpolation: Interpolation,
    /// The share of the resized picture that the crop keeps, in (0, 1] (or above 1 to enlarge less than the crop).
    pub crop_pct: f64,
    /// How the picture is fitted.
    pub crop_mode: CropMode,
    /// Subtracted from each channel, after scaling to [0, 1].
    pub mean: PerChannel,
    /// Divides each channel, after the mean is subtracted.
    pub std: PerChannel,
}

/// Channel means of ImageNet's training images, in [0, 1].
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel deviations of ImageNet's training images, in [0, 1].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The longest side a model may take, in pixels; far above any real model, low enough for every product to fit.
const MAX_SIDE: usize = 1 << 14;

impl Default for Preprocess {
    fn default() -> Self {
        Preprocess {
            input_size: [3, 224, 224],
            interpolation: Interpolation::Bicubic,
            crop_pct: 0.875,
            crop_mode: CropMode::Center,
            mean: IMAGENET_MEAN.into(),
            std: IMAGENET_STD.into(),
        }
    }
}

impl Preprocess {
    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first field that is not.
    pub fn validate(&self) -> Result<()> {
        check_input_size(self.input_size)?;
        if !(0.01..=100.0).contains(&self.crop_pct) {
            return Err(Error::setting(
                "crop_pct",
                &self.crop_pct,
                "a share such as 0.875",
            ));
        }
        check_normalisation(self.input_size, &self.mean, &self.std)
    }

    /// The picture as the model takes it, `[channels, height, width]`, normalised.
    ///
    /// # Errors
    /// [`Error::Setting`] when a field is out of its range.
    pub fn run(&self, image: &Image) -> Result<Vec<f32>> {
        self.validate()?;
        Ok(normalise(&self.fit(image), &self.mean, &self.std))
    }

    /// The picture resized and cropped, before normalisation: exactly `height` x `width` pixels; for one channel, grey.
    ///
    /// # Errors
    /// [`Error::Setting`] when a field is out of its range.
    pub fn resize_and_crop(&self, image: &Image) -> Result<Image> {
        self.validate()?;
        Ok(self.fit(image))
    }

    fn fit(&self, image: &Image) -> Image {
        let [channels, height, width] = self.input_size;
        let image = in_channels(image, channels);
        let scaled = |side: usize| (side as f64 / self.crop_pct).floor().max(1.0) as usize;
        let (scaled_height, scaled_width) = (scaled(height), scaled(width));
        let (size, fill) = match self.crop_mode {
            CropMode::Squash => ((scaled_width, scaled_height), [0; 3]),
            // A square target keeps torchvision's rule, which cuts; any other timm's, which rounds.
            CropMode::Center if scaled_height == scaled_width => (
                shorter_side_to(image.width(), image.height(), scaled_height),
                [0; 3],
            ),
            CropMode::Center => (keep_ratio(&image, scaled_width, scaled_height, f64::min), [0; 3]),
            CropMode::Border => {
                let size = keep_ratio(&image, scaled_width, scaled_height, f64::max);
                (size, self.mean.colour())
            }
        };
        resize_and_centre(&image, size, (width, height), self.interpolation, fill)
    }
}

/// torchvision's `Resize(side)`: the shorter side becomes `side`, the longer keeps the ratio, cut to an integer.
pub(crate) fn shorter_side_to(width: usize, height: usize, side: usize) -> (usize, usize) {
    let long = (side as f64 * width.max(height) as f64 / width.min(height) as f64) as usize;
    if width <= height {
        (side, long)
    } else {
        (long, side)
    }
}

/// timm's `ResizeKeepRatio`: both sides divided by one of the two ratios between picture and target.
fn keep_ratio(image: &Image, width: usize, height: usize, choose: fn(f64, f64) -> f64) -> (usize, usize) {
    let (image_width, image_height) = (image.width() as f64, image.height() as f64);
    let ratio = choose(image_height / height as f64, image_width / width as f64);
    let side = |length: f64| (length / ratio).round_ties_even().max(1.0) as usize;
    (side(image_width), side(image_height))
}

/// Resizes to `size` and cuts `target` (both width, height) out of the centre; where the resized picture is smaller, it is
/// padded with `fill`. Only the pixels that survive are computed.
fn resize_and_centre(
    image: &Image,
    size: (usize, usize),
    target: (usize, usize),
    interpolation: Interpolation,
    fill: [u8; 3],
) -> Image {
    // torchvision pads first (the odd pixel after the picture), then cuts (a half rounds to the even offset).
    let offset =
        |have: usize, want: usize| ((have.saturating_sub(want)) as f64 / 2.0).round_ties_even() as usize;
    let window = Window {
        left: offset(size.0, target.0),
        top: offset(size.1, target.1),
        width: target.0.min(size.0),
        height: target.1.min(size.1),
    };
    let cut = resize_window(image, size, window, interpolation);
    if (cut.width(), cut.height()) == target {
        return cut;
    }
    let before = |have: usize, want: usize| -((want.saturating_sub(have) / 2) as isize);
    cut.crop(
        before(size.0, target.0),
        before(size.1, target.1),
        target.0,
        target.1,
        fill,
    )
}

/// A picture as models of so many channels see it.
pub(crate) fn in_channels(image: &Image, channels: usize) -> Cow<'_, Image> {
    if channels == 1 {
        Cow::Owned(image.luminance())
    } else {
        Cow::Borrowed(image)
    }
}

/// `[height, width, 3]` bytes to `[channels, height, width]` floats, `(byte / 255 - mean) / std`, each step rounded to f32 as
/// torchvision does. For one channel the picture is grey.
pub(crate) fn normalise(image: &Image, mean: &PerChannel, std: &PerChannel) -> Vec<f32> {
    let (pixels, _) = image.data().as_chunks::<3>();
    let numbers = mean.as_slice().iter().zip(std.as_slice());
    let mut out = Vec::with_capacity(pixels.len() * numbers.len());
    for (channel, (mean, std)) in numbers.enumerate() {
        let table: [f32; 256] = std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std);
        out.extend(pixels.iter().map(|pixel| table[usize::from(pixel[channel])]));
    }
    out
}

pub(crate) fn check_input_size(input_size: [usize; 3]) -> Result<()> {
    let [channels, height, width] = input_size;
    if !matches!(channels, 1 | 3) || !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
        let expected = format!("[3 or 1, height, width] with sides from 1 to {MAX_SIDE}");
        return Err(Error::setting("input_size", &format!("{input_size:?}"), expected));
    }
    Ok(())
}

pub(crate) fn check_normalisation(
    [channels, ..]: [usize; 3],
    mean: &PerChannel,
    std: &PerChannel,
) -> Result<()> {
    mean.check("mean", channels, "finite numbers", f32::is_finite)?;
    std.check("std", channels, "positive numbers", |std| {
        std.is_finite() && std > 0.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> Image {
        let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7]));
        Image::new(width, height, data.collect()).unwrap()
    }

    fn with(input_size: [usize; 3], crop_pct: f64, crop_mode: CropMode) -> Preprocess {
        Preprocess {
            input_size,
            crop_pct,
            crop_mode,
            ..Preprocess::default()
        }
    }

    #[test]
    fn sizes_are_the_references() {
        // 500 x 375 at 224 / 0.875 = 256: the long side is cut from 341.33.
        assert_eq!(shorter_side_to(500, 375, 256), (341, 256));
        assert_eq!(shorter_side_to(375, 500, 256), (256, 341));
        assert_eq!(shorter_side_to(10, 10, 438), (438, 438));
        assert_eq!(keep_ratio(&gradient(51, 75), 40, 20, f64::min), (40, 59));
        assert_eq!(keep_ratio(&gradient(51, 75), 40, 20, f64::max), (14, 20));
    }

    #[test]
    fn a_picture_of_the_right_size_passes_unchanged() {
        let image = gradient(32, 32);
        assert_eq!(
            with([3, 32, 32], 1.0, CropMode::Center)
                .resize_and_crop(&image)
                .unwrap(),
            image
        );
        let values = with([3, 32, 32], 1.0, CropMode::Center).run(&image).unwrap();
        // Channels one after the other; blue is 7 everywhere.
        assert_eq!(values.len(), 3 * 32 * 32);
        assert!(
            values[2 * 32 * 32..]
                .iter()
                .all(|&blue| blue == (7.0 / 255.0 - 0.406f32) / 0.225)
        );
        assert_eq!(values[1], (1.0 / 255.0 - 0.485f32) / 0.229);
    }

    #[test]
    fn half_pixels_round_to_the_even_offset() {
        // Crops of 4 from 7 and 9 columns start at round(1.5) = 2 and round(2.5) = 2.
        for (width, offset) in [(7, 2), (9, 2)] {
            let cut = resize_and_centre(
                &gradient(width, 4),
                (width, 4),
                (4, 4),
                Interpolation::Bicubic,
                [0; 3],
            );
            assert_eq!(cut.pixel(0, 0)[0], offset);
        }
    }

    #[test]
    fn small_pictures_are_padded_and_borders_have_the_mean_colour() {
        // crop_pct above 1 leaves less than the crop: 8 / 2 = 4 pixels in the middle of 8.
        let padded = with([3, 8, 8], 2.0, CropMode::Center)
            .resize_and_crop(&Image::filled(5, 5, [255; 3]))
            .unwrap();
        assert_eq!(
            (padded.pixel(1, 1), padded.pixel(2, 2), padded.pixel(5, 5)),
            ([0; 3], [255; 3], [255; 3])
        );
        let border = with([3, 8, 8], 1.0, CropMode::Border)
            .resize_and_crop(&Image::filled(8, 4, [1; 3]))
            .unwrap();
        assert_eq!(
            (border.pixel(0, 1), border.pixel(0, 2)),
            ([124, 116, 104], [1; 3])
        );
    }

    #[test]
    fn extreme_shapes_neither_fail_nor_fill_the_memory() {
        for (width, height) in [(1, 16_384), (16_384, 1), (1, 1), (2, 3)] {
            for mode in [CropMode::Center, CropMode::Squash, CropMode::Border] {
                let out = with([3, 24, 16], 0.9, mode)
                    .run(&Image::filled(width, height, [50; 3]))
                    .unwrap();
                assert_eq!(out.len(), 3 * 24 * 16);
            }
        }
    }

    #[test]
    fn fields_are_checked_by_name() {
        let image = gradient(4, 4);
        let key = |preprocess: Preprocess| match preprocess.run(&image) {
            Err(Error::Setting { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(key(with([2, 4, 4], 1.0, CropMode::Center)), "input_size");
        // Three means, one channel.
        assert_eq!(key(with([1, 4, 4], 1.0, CropMode::Center)), "mean");
        assert_eq!(key(with([3, 0, 4], 1.0, CropMode::Center)), "input_size");
        assert_eq!(key(with([3, 4, 4], 0.0, CropMode::Center)), "crop_pct");
        assert_eq!(key(with([3, 4, 4], f64::NAN, CropMode::Center)), "crop_pct");
        assert_eq!(
            key(Preprocess {
                std: [1.0, 0.0, 1.0].into(),
                ..Preprocess::default()
            }),
            "std"
        );
        assert_eq!(
            key(Preprocess {
                mean: [f32::NAN; 3].into(),
                ..Preprocess::default()
            }),
            "mean"
        );
    }

    #[test]
    fn one_channel_is_luminance_before_anything_else() {
        let grey = |crop_mode| Preprocess {
            mean: [0.5].into(),
            std: [0.25].into(),
            ..with([1, 8, 6], 0.9, crop_mode)
        };
        let image = gradient(41, 33);
        for mode in [CropMode::Center, CropMode::Squash, CropMode::Border] {
            let values = grey(mode).run(&image).unwrap();
            let colour = Preprocess {
                mean: [0.5; 3].into(),
                std: [0.25; 3].into(),
                ..with([3, 8, 6], 0.9, mode)
            };
            // Each channel of the grey picture goes the way that a colour's goes.
            let three = colour.run(&image.luminance()).unwrap();
            assert!(values.len() == 48 && three.chunks(48).all(|channel| channel == values));
        }
        // What Pillow 13 gives: resize(BICUBIC) of convert("L"), not the other way round, which differs in the last bit.
        let levels = Preprocess {
            mean: [0.0].into(),
            std: [1.0].into(),
            ..with([1, 3, 4], 1.0, CropMode::Squash)
        };
        let values = levels.run(&gradient(7, 250)).unwrap();
        let levels: Vec<u8> = values.iter().map(|value| (value * 255.0).round() as u8).collect();
        assert_eq!(levels, [26, 27, 27, 28, 74, 74, 75, 76, 122, 122, 123, 123]);
    }

    #[test]
    fn timms_spelling_is_read() {
        let text = r#"{"input_size": [3, 384, 384], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}"#;
        let read: Preprocess = serde_json::from_str(text).unwrap();
        assert_eq!(
            (read.interpolation, read.crop_mode),
            (Interpolation::Bilinear, CropMode::Squash)
        );
        assert_eq!(read.mean, IMAGENET_MEAN.into());
        assert_eq!(
            serde_json::from_str::<Preprocess>(&serde_json::to_string(&read).unwrap()).unwrap(),
            read
        );
    }
}
