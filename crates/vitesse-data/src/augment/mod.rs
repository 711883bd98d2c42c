//! Training transforms: from a picture to what the model sees, different every epoch.
//!
//! One file a transform. A sample goes through crop → flip → RandAugment (or colour jitter) → normalisation → erasing, each with
//! draws of its own from the sample's key, so that switching one off changes nothing in the others. For a model of one channel the
//! picture is made grey first, and every step keeps it so: colour is augmented where there is some. Batches are then mixed as
//! wholes ([`MixConfig`]). The defaults are the recipe of DeiT (Touvron et al., 2021, table 9, and its published code).

mod color_jitter;
mod crop;
mod enhance;
mod erasing;
mod geometry;
mod levels;
mod mixup;
mod rand_augment;

use serde::{Deserialize, Serialize};
use vitesse_rng::Key;

pub use mixup::{CutBox, Mix, MixConfig, cutmix, mixup, targets};
pub use rand_augment::{Operation, RandAugment};

use crate::preprocess::{check_input_size, check_normalisation, in_channels, normalise};
use crate::{Error, IMAGENET_MEAN, IMAGENET_STD, Image, Interpolation, PerChannel, Result, Transform};

/// Input sides up to this get padded crops by default, as in DeiT: at this size every pixel counts.
const SMALL: usize = 32;

/// Where a training picture is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// `padded` for inputs of up to 32 pixels a side, else `resized`.
    #[default]
    Auto,
    /// A random rectangle, resized to the input.
    Resized,
    /// A random shift of the padded picture, whose shorter side is the input's.
    Padded,
}

/// Per-sample augmentation. timm's names where timm has one, DeiT's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTransform {
    /// What the model takes, `[channels, height, width]`; 3 channels for colour, 1 for luminance.
    pub input_size: [usize; 3],
    /// Subtracted from each channel, after scaling to [0, 1].
    pub mean: PerChannel,
    /// Divides each channel, after the mean is subtracted.
    pub std: PerChannel,
    /// The resize filter of crops. Default bicubic.
    pub interpolation: Interpolation,
    /// The kind of crop.
    pub crop: Crop,
    /// Least and greatest share of the area that a resized crop keeps. Default [0.08, 1].
    pub scale: [f64; 2],
    /// Least and greatest width over height of a resized crop. Default [3/4, 4/3].
    pub ratio: [f64; 2],
    /// Black pixels around a padded crop. Default 4.
    pub padding: usize,
    /// Probability of a horizontal flip. Default 0.5.
    pub hflip: f64,
    /// RandAugment's string. Default `rand-m9-mstd0.5-inc1`; none switches it off.
    pub aa: Option<RandAugment>,
    /// Strength of the colour jitter, which is active only where RandAugment is off. Default 0.3.
    pub color_jitter: f64,
    /// Probability of random erasing. Default 0.25.
    pub reprob: f64,
}

impl Default for TrainTransform {
    fn default() -> Self {
        TrainTransform {
            input_size: [3, 224, 224],
            mean: IMAGENET_MEAN.into(),
            std: IMAGENET_STD.into(),
            interpolation: Interpolation::Bicubic,
            crop: Crop::Auto,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            padding: 4,
            hflip: 0.5,
            aa: Some(RandAugment::default()),
            color_jitter: 0.3,
            reprob: 0.25,
        }
    }
}

impl TrainTransform {
    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first field that is not.
    pub fn validate(&self) -> Result<()> {
        check_input_size(self.input_size)?;
        check_normalisation(self.input_size, &self.mean, &self.std)?;
        let ordered = |[low, high]: [f64; 2], most: f64| low > 0.0 && low <= high && high <= most;
        if !ordered(self.scale, 1.0) {
            let expected = "two shares above 0 and up to 1, the lesser first";
            return Err(Error::setting("scale", &format!("{:?}", self.scale), expected));
        }
        if !ordered(self.ratio, 1e3) {
            let expected = "two positive aspect ratios, the lesser first";
            return Err(Error::setting("ratio", &format!("{:?}", self.ratio), expected));
        }
        if self.padding > 1 << 14 {
            return Err(Error::setting(
                "padding",
                &self.padding,
                "a few pixels, such as 4",
            ));
        }
        for (key, value) in [("hflip", self.hflip), ("reprob", self.reprob)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::setting(key, &value, "a probability from 0 to 1"));
            }
        }
        if !(0.0..=100.0).contains(&self.color_jitter) {
            return Err(Error::setting(
                "color_jitter",
                &self.color_jitter,
                "a strength such as 0.3, or 0 for none",
            ));
        }
        Ok(())
    }

    /// The augmented picture, before normalisation: exactly `height` x `width` pixels; for one channel, grey.
    ///
    /// # Errors
    /// [`Error::Setting`] when a field is out of its range.
    pub fn augment(&self, image: &Image, key: Key) -> Result<Image> {
        self.validate()?;
        let [channels, height, width] = self.input_size;
        let image = &*in_channels(image, channels);
        let target = (width, height);
        let mut rng = key.with("crop").rng();
        let padded = match self.crop {
            Crop::Auto => width.max(height) <= SMALL,
            Crop::Resized => false,
            Crop::Padded => true,
        };
        let mut image = if padded {
            crop::padded_crop(image, target, self.padding, self.interpolation, &mut rng)
        } else {
            let size = (image.width(), image.height());
            let area = crop::draw_resized_crop(size, self.scale, self.ratio, &mut rng);
            crop::resized_crop(image, area, target, self.interpolation)
        };
        if key.with("flip").rng().bernoulli(self.hflip) {
            image.flip_horizontal();
        }
        if let Some(aa) = &self.aa {
            image = aa.apply(image, self.mean.colour(), &mut key.with("rand-augment").rng());
        } else if self.color_jitter > 0.0 {
            image = color_jitter::color_jitter(image, self.color_jitter, &mut key.with("color-jitter").rng());
        }
        Ok(image)
    }
}

impl Transform for TrainTransform {
    fn output(&self) -> [usize; 3] {
        self.input_size
    }

    fn apply(&self, image: &Image, key: Key) -> Result<Vec<f32>> {
        let mut values = normalise(&self.augment(image, key)?, &self.mean, &self.std);
        let mut rng = key.with("erase").rng();
        if rng.bernoulli(self.reprob) {
            erasing::erase(&mut values, self.input_size, &mut rng);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::picture;

    fn key(index: u64) -> Key {
        Key::new(1).with("sample").at(index)
    }

    #[test]
    fn results_have_the_inputs_size_whatever_the_picture() {
        for input_size in [[3, 32, 32], [3, 48, 24]] {
            let transform = TrainTransform {
                input_size,
                reprob: 1.0,
                ..TrainTransform::default()
            };
            for (index, (width, height)) in [(1, 1), (28, 28), (32, 32), (200, 3), (3, 200), (90, 70)]
                .into_iter()
                .enumerate()
            {
                let values = transform
                    .apply(&picture(width, height), key(index as u64))
                    .unwrap();
                assert_eq!(values.len(), input_size.iter().product::<usize>());
                assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn a_sample_is_a_function_of_its_key() {
        let transform = TrainTransform {
            input_size: [3, 40, 40],
            ..TrainTransform::default()
        };
        let image = picture(60, 50);
        assert_eq!(
            transform.apply(&image, key(1)).unwrap(),
            transform.apply(&image, key(1)).unwrap()
        );
        assert_ne!(
            transform.apply(&image, key(1)).unwrap(),
            transform.apply(&image, key(2)).unwrap()
        );
    }

    #[test]
    fn one_channel_stays_grey_whatever_is_done_to_it() {
        let colour = TrainTransform {
            input_size: [3, 40, 40],
            mean: [0.4; 3].into(),
            std: [0.2; 3].into(),
            reprob: 0.0,
            ..TrainTransform::default()
        };
        let grey = TrainTransform {
            input_size: [1, 40, 40],
            mean: [0.4].into(),
            std: [0.2].into(),
            ..colour.clone()
        };
        let image = picture(60, 50);
        for index in 0..200 {
            for aa in [Some(RandAugment::default()), None] {
                let [grey, colour] = [&grey, &colour].map(|transform| TrainTransform {
                    aa: aa.clone(),
                    ..transform.clone()
                });
                let values = grey.apply(&image, key(index)).unwrap();
                let three = colour.apply(&image.luminance(), key(index)).unwrap();
                assert!(
                    three.chunks(1600).all(|channel| channel == values),
                    "{index} {aa:?}"
                );
            }
        }
        let erased = TrainTransform {
            reprob: 1.0,
            ..grey.clone()
        };
        assert_ne!(
            erased.apply(&image, key(1)).unwrap(),
            grey.apply(&image, key(1)).unwrap()
        );
    }

    #[test]
    fn steps_draw_independently() {
        let image = picture(60, 50);
        let base = TrainTransform {
            input_size: [3, 40, 40],
            aa: None,
            color_jitter: 0.0,
            hflip: 0.0,
            reprob: 0.0,
            ..TrainTransform::default()
        };
        for index in 0..20 {
            let mut cropped = base.augment(&image, key(index)).unwrap();
            let flipped = TrainTransform {
                hflip: 1.0,
                ..base.clone()
            }
            .augment(&image, key(index))
            .unwrap();
            cropped.flip_horizontal();
            assert_eq!(flipped, cropped);
            let jittered = TrainTransform {
                color_jitter: 0.4,
                ..base.clone()
            }
            .augment(&image, key(index))
            .unwrap();
            assert_ne!(jittered, base.augment(&image, key(index)).unwrap());
            // RandAugment puts the colour jitter out of action.
            let aa = TrainTransform {
                aa: Some(RandAugment::default()),
                ..base.clone()
            };
            let both = TrainTransform {
                color_jitter: 0.4,
                ..aa.clone()
            };
            assert_eq!(
                aa.augment(&image, key(index)).unwrap(),
                both.augment(&image, key(index)).unwrap()
            );
        }
    }

    #[test]
    fn fields_are_checked_by_name() {
        let image = picture(4, 4);
        let name = |transform: TrainTransform| match transform.apply(&image, key(0)) {
            Err(Error::Setting { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        let default = TrainTransform::default;
        assert_eq!(
            name(TrainTransform {
                input_size: [4, 4, 4],
                ..default()
            }),
            "input_size"
        );
        assert_eq!(
            name(TrainTransform {
                scale: [0.0, 1.0],
                ..default()
            }),
            "scale"
        );
        assert_eq!(
            name(TrainTransform {
                scale: [0.5, 0.4],
                ..default()
            }),
            "scale"
        );
        assert_eq!(
            name(TrainTransform {
                ratio: [0.5, f64::NAN],
                ..default()
            }),
            "ratio"
        );
        assert_eq!(
            name(TrainTransform {
                hflip: 1.1,
                ..default()
            }),
            "hflip"
        );
        assert_eq!(
            name(TrainTransform {
                reprob: -0.1,
                ..default()
            }),
            "reprob"
        );
        assert_eq!(
            name(TrainTransform {
                color_jitter: f64::INFINITY,
                ..default()
            }),
            "color_jitter"
        );
        assert_eq!(
            name(TrainTransform {
                std: [0.0; 3].into(),
                ..default()
            }),
            "std"
        );
    }

    #[test]
    fn recipes_are_read_strictly() {
        let read: TrainTransform = serde_json::from_str(r#"{"aa": "rand-m7-n3", "crop": "padded"}"#).unwrap();
        assert_eq!(
            (read.aa.as_ref().map(|aa| aa.operations), read.crop),
            (Some(3), Crop::Padded)
        );
        assert_eq!(
            serde_json::from_str::<TrainTransform>(&serde_json::to_string(&read).unwrap()).unwrap(),
            read
        );
        assert_eq!(
            serde_json::from_str::<TrainTransform>(r#"{"aa": null}"#)
                .unwrap()
                .aa,
            None
        );
        for text in [r#"{"hflp": 0.5}"#, r#"{"aa": "rand-q1"}"#, r#"{"crop": "none"}"#] {
            assert!(serde_json::from_str::<TrainTransform>(text).is_err(), "{text}");
        }
    }
}
