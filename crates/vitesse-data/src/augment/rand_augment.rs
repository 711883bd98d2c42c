//! RandAugment (Cubuk et al., 2020), as timm does it: `n` operations drawn with replacement, each applied with probability `p`, all at
//! about the same magnitude.
//!
//! Configured by timm's string, of which DeiT's is `rand-m9-mstd0.5-inc1`:
//!
//! | part | meaning | default |
//! | --- | --- | --- |
//! | `m9` | magnitude, 0 to 10 | 10 |
//! | `n2` | operations a picture | 2 |
//! | `p0.5` | probability that a drawn operation is applied | 0.5 |
//! | `mstd0.5` | deviation of the magnitude, normal; above 100: uniform from 0 to the magnitude | 0 |
//! | `mmax10` | greatest magnitude | 10 |
//! | `inc1` | operations whose strength grows with the magnitude, all of them | 0 |
//!
//! Pixels equal Pillow's for the same operation and argument. Deviations: none known.

use serde::{Deserialize, Serialize};
use vitesse_rng::Rng;

use super::{enhance, geometry, levels};
use crate::{Error, Image, Result};

/// The magnitude at which an operation has its full strength.
const FULL: f64 = 10.0;

/// One operation with its argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Each channel stretched to the full range.
    AutoContrast,
    /// Each channel's levels made equally frequent.
    Equalize,
    /// The negative.
    Invert,
    /// Turned counter-clockwise by degrees.
    Rotate(f64),
    /// This many high bits kept, 0 to 8.
    Posterize(u32),
    /// Levels from this one on inverted, 0 to 256.
    Solarize(u32),
    /// This added to levels below 128.
    SolarizeAdd(u8),
    /// Saturation by a factor.
    Color(f64),
    /// Contrast by a factor.
    Contrast(f64),
    /// Brightness by a factor.
    Brightness(f64),
    /// Sharpness by a factor.
    Sharpness(f64),
    /// Sheared along x, in x pixels a y pixel.
    ShearX(f64),
    /// Sheared along y, in y pixels an x pixel.
    ShearY(f64),
    /// Moved along x by a share of the width.
    TranslateX(f64),
    /// Moved along y by a share of the height.
    TranslateY(f64),
}

impl Operation {
    /// The picture after the operation; geometric ones fill what comes from outside with `fill`.
    pub fn apply(self, image: &Image, fill: [u8; 3]) -> Image {
        let affine = |matrix| geometry::affine(image, matrix, fill);
        match self {
            Operation::AutoContrast => levels::auto_contrast(image),
            Operation::Equalize => levels::equalize(image),
            Operation::Invert => levels::invert(image),
            Operation::Rotate(degrees) => geometry::rotate(image, degrees, fill),
            Operation::Posterize(bits) => levels::posterize(image, bits),
            Operation::Solarize(threshold) => levels::solarize(image, threshold),
            Operation::SolarizeAdd(add) => levels::solarize_add(image, add),
            Operation::Color(factor) => enhance::colour(image, factor),
            Operation::Contrast(factor) => enhance::contrast(image, factor),
            Operation::Brightness(factor) => enhance::brightness(image, factor),
            Operation::Sharpness(factor) => enhance::sharpness(image, factor),
            Operation::ShearX(shear) => affine([1.0, shear, 0.0, 0.0, 1.0, 0.0]),
            Operation::ShearY(shear) => affine([1.0, 0.0, 0.0, shear, 1.0, 0.0]),
            Operation::TranslateX(share) => affine([1.0, 0.0, share * image.width() as f64, 0.0, 1.0, 0.0]),
            Operation::TranslateY(share) => affine([1.0, 0.0, 0.0, 0.0, 1.0, share * image.height() as f64]),
        }
    }
}

/// The scheme, as its string says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RandAugment {
    /// Strength, in tenths of full.
    pub magnitude: f64,
    /// Operations drawn for a picture.
    pub operations: usize,
    /// Probability that a drawn operation is applied.
    pub probability: f64,
    /// Deviation of the magnitude; infinite: uniform from 0 to the magnitude.
    pub magnitude_std: f64,
    /// Greatest magnitude.
    pub magnitude_max: f64,
    /// Whether all operations grow with the magnitude.
    pub increasing: bool,
}

impl Default for RandAugment {
    /// `rand-m9-mstd0.5-inc1`, DeiT's.
    fn default() -> Self {
        RandAugment {
            magnitude: 9.0,
            magnitude_std: 0.5,
            increasing: true,
            ..RandAugment::PLAIN
        }
    }
}

impl RandAugment {
    /// `rand`, with nothing behind it.
    const PLAIN: RandAugment = RandAugment {
        magnitude: FULL,
        operations: 2,
        probability: 0.5,
        magnitude_std: 0.0,
        magnitude_max: FULL,
        increasing: false,
    };

    /// The augmented picture.
    pub fn apply(&self, mut image: Image, fill: [u8; 3], rng: &mut Rng) -> Image {
        for _ in 0..self.operations {
            if let Some(operation) = self.draw(rng) {
                image = operation.apply(&image, fill);
            }
        }
        image
    }

    /// The next operation, or none with probability 1 - p.
    pub fn draw(&self, rng: &mut Rng) -> Option<Operation> {
        let which = rng.below(15);
        if !rng.bernoulli(self.probability) {
            return None;
        }
        let magnitude = if self.magnitude_std.is_infinite() {
            rng.uniform_in(0.0, self.magnitude)
        } else {
            self.magnitude + self.magnitude_std * rng.normal()
        };
        let level = magnitude.clamp(0.0, self.magnitude_max.max(0.0)) / FULL;
        let sign = if rng.bernoulli(0.5) { -1.0 } else { 1.0 };
        // Both ways of timm to turn a level into a factor: away from 1, or from weak to strong.
        let factor = if self.increasing {
            (1.0 + sign * level * 0.9).max(0.1)
        } else {
            level * 1.8 + 0.1
        };
        let grow = |whole: u32, level: u32| {
            if self.increasing {
                whole.saturating_sub(level)
            } else {
                level
            }
        };
        Some(match which {
            0 => Operation::AutoContrast,
            1 => Operation::Equalize,
            2 => Operation::Invert,
            3 => Operation::Rotate(sign * level * 30.0),
            4 => Operation::Posterize(grow(4, (level * 4.0) as u32)),
            5 => Operation::Solarize(grow(256, ((level * 256.0) as u32).min(256))),
            6 => Operation::SolarizeAdd((level * 110.0).min(128.0) as u8),
            7 => Operation::Color(factor),
            8 => Operation::Contrast(factor),
            9 => Operation::Brightness(factor),
            10 => Operation::Sharpness(factor),
            11 => Operation::ShearX(sign * level * 0.3),
            12 => Operation::ShearY(sign * level * 0.3),
            13 => Operation::TranslateX(sign * level * 0.45),
            _ => Operation::TranslateY(sign * level * 0.45),
        })
    }
}

impl std::str::FromStr for RandAugment {
    type Err = Error;

    fn from_str(text: &str) -> Result<RandAugment> {
        let bad = |expected: &str| Error::setting("aa", &format!("`{text}`"), expected);
        let mut parts = text.split('-');
        if parts.next() != Some("rand") {
            return Err(bad("RandAugment's string, such as `rand-m9-mstd0.5-inc1`"));
        }
        let mut config = RandAugment::PLAIN;
        for part in parts {
            let (name, value) = part.split_at(part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len()));
            let number = |low: f64, high: f64| {
                let found = value
                    .parse::<f64>()
                    .ok()
                    .filter(|value| (low..=high).contains(value));
                found.ok_or_else(|| {
                    bad(&format!(
                        "`{name}` followed by a number from {low} to {high}, found `{part}`"
                    ))
                })
            };
            match name {
                "m" => config.magnitude = number(0.0, 1_000.0)?,
                "n" => config.operations = number(0.0, 15.0)? as usize,
                "p" => config.probability = number(0.0, 1.0)?,
                "mmax" => config.magnitude_max = number(0.0, 1_000.0)?,
                "inc" => config.increasing = number(0.0, 1.0)? > 0.0,
                "mstd" => {
                    let std = number(0.0, 1e9)?;
                    config.magnitude_std = if std > 100.0 { f64::INFINITY } else { std };
                }
                _ => {
                    return Err(bad(&format!(
                        "parts `m`, `n`, `p`, `mstd`, `mmax` and `inc`, found `{part}`"
                    )));
                }
            }
        }
        Ok(config)
    }
}

impl TryFrom<String> for RandAugment {
    type Error = Error;

    fn try_from(text: String) -> Result<RandAugment> {
        text.parse()
    }
}

impl std::fmt::Display for RandAugment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rand-m{}", self.magnitude)?;
        let plain = RandAugment::PLAIN;
        if self.operations != plain.operations {
            write!(f, "-n{}", self.operations)?;
        }
        if self.probability != plain.probability {
            write!(f, "-p{}", self.probability)?;
        }
        if self.magnitude_std != plain.magnitude_std {
            write!(f, "-mstd{}", self.magnitude_std.min(101.0))?;
        }
        if self.magnitude_max != plain.magnitude_max {
            write!(f, "-mmax{}", self.magnitude_max)?;
        }
        if self.increasing {
            f.write_str("-inc1")
        } else {
            Ok(())
        }
    }
}

impl From<RandAugment> for String {
    fn from(config: RandAugment) -> String {
        config.to_string()
    }
}

#[cfg(test)]
mod tests {
    use vitesse_rng::Key;

    use super::*;
    use crate::testing::{checksum, picture};

    #[test]
    fn pillow_gives_the_same_bytes() {
        // Checksums of what Pillow 13.0.0 makes of the same picture, through timm's operations.
        let mut image = picture(37, 29);
        image
            .data_mut()
            .iter_mut()
            .for_each(|level| *level = *level / 3 + 40);
        // Equalising needs at least 255 pixels.
        let tiled = Image::new(
            111,
            87,
            (0..87 * 111)
                .flat_map(|at| image.pixel(at % 111 % 37, at / 111 % 29))
                .collect(),
        );
        let tiled = tiled.unwrap();
        for (operation, expected) in [
            (Operation::AutoContrast, 1_012_116_054),
            (Operation::Equalize, 1_408_725_368),
            (Operation::Invert, 2_327_269_253),
            (Operation::Rotate(-17.3), 739_121_872),
            (Operation::Posterize(2), 2_100_241_600),
            (Operation::Solarize(90), 1_068_479_882),
            (Operation::SolarizeAdd(50), 453_973_644),
            (Operation::Color(0.19), 585_077_068),
            (Operation::Contrast(1.81), 2_080_762_810),
            (Operation::Brightness(1.9), 367_815_901),
            (Operation::Sharpness(0.37), 463_738_639),
            (Operation::ShearX(-0.27), 1_998_537_176),
            (Operation::ShearY(0.3), 3_985_148_729),
            (Operation::TranslateX(0.405), 2_043_909_379),
            (Operation::TranslateY(-0.123), 3_766_313_952),
        ] {
            let source = if operation == Operation::Equalize {
                &tiled
            } else {
                &image
            };
            assert_eq!(
                checksum(&operation.apply(source, [124, 116, 104])),
                expected,
                "{operation:?}"
            );
        }
    }

    #[test]
    fn neutral_arguments_change_nothing() {
        let image = picture(9, 8);
        for operation in [
            Operation::Rotate(0.0),
            Operation::Posterize(8),
            Operation::Solarize(256),
            Operation::SolarizeAdd(0),
            Operation::Color(1.0),
            Operation::Contrast(1.0),
            Operation::Brightness(1.0),
            Operation::Sharpness(1.0),
            Operation::ShearX(0.0),
            Operation::ShearY(0.0),
            Operation::TranslateX(0.0),
            Operation::TranslateY(0.0),
        ] {
            assert_eq!(operation.apply(&image, [0; 3]), image, "{operation:?}");
        }
        assert_eq!(
            Operation::Invert.apply(&Operation::Invert.apply(&image, [0; 3]), [0; 3]),
            image
        );
    }

    #[test]
    fn every_operation_works_on_a_single_pixel() {
        let mut rng = Key::new(1).rng();
        let always = RandAugment {
            probability: 1.0,
            ..RandAugment::default()
        };
        for _ in 0..200 {
            let operation = always.draw(&mut rng).unwrap();
            assert_eq!(
                operation
                    .apply(&Image::filled(1, 1, [9, 80, 200]), [1; 3])
                    .data()
                    .len(),
                3,
                "{operation:?}"
            );
        }
    }

    #[test]
    fn timms_string_is_read_and_written() {
        let deit: RandAugment = "rand-m9-mstd0.5-inc1".parse().unwrap();
        assert_eq!(deit, RandAugment::default());
        for text in [
            "rand-m9-mstd0.5-inc1",
            "rand-m7-n3-p0.25-mstd101-mmax12",
            "rand-m10",
        ] {
            assert_eq!(text.parse::<RandAugment>().unwrap().to_string(), text);
        }
        assert_eq!(
            "rand-m7-mstd500".parse::<RandAugment>().unwrap().magnitude_std,
            f64::INFINITY
        );
        for (text, expected) in [
            ("augmix-m5", "such as `rand-m9-mstd0.5-inc1`"),
            ("rand-m9-w0", "found `w0`"),
            ("rand-m-inc1", "found `m`"),
            ("rand-p1.5", "`p` followed by a number from 0 to 1, found `p1.5`"),
            ("rand-mstdNaN", "found `mstdNaN`"),
        ] {
            let error = text.parse::<RandAugment>().unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.starts_with("`aa` is"),
                "{error}"
            );
        }
    }

    #[test]
    fn arguments_follow_the_magnitude() {
        let mut rng = Key::new(1).rng();
        let fixed: RandAugment = "rand-m9-p1-inc1".parse().unwrap();
        let near =
            |value: f64, expected: f64| assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        for _ in 0..500 {
            match fixed.draw(&mut rng).unwrap() {
                Operation::Rotate(degrees) => near(degrees.abs(), 27.0),
                Operation::Posterize(bits) => assert_eq!(bits, 1),
                Operation::Solarize(threshold) => assert_eq!(threshold, 26),
                Operation::SolarizeAdd(add) => assert_eq!(add, 99),
                Operation::Color(factor) | Operation::Contrast(factor) => near((factor - 1.0).abs(), 0.81),
                Operation::Brightness(factor) | Operation::Sharpness(factor) => {
                    near((factor - 1.0).abs(), 0.81);
                }
                Operation::ShearX(shear) | Operation::ShearY(shear) => near(shear.abs(), 0.27),
                Operation::TranslateX(share) | Operation::TranslateY(share) => near(share.abs(), 0.405),
                Operation::AutoContrast | Operation::Equalize | Operation::Invert => {}
            }
        }
        let plain: RandAugment = "rand-m9-p1".parse().unwrap();
        let posterize = (0..500).find_map(|_| match plain.draw(&mut rng) {
            Some(Operation::Posterize(bits)) => Some(bits),
            _ => None,
        });
        assert_eq!(posterize, Some(3));
        // Half of the draws apply nothing.
        let applied = (0..2_000)
            .filter(|_| RandAugment::default().draw(&mut rng).is_some())
            .count();
        assert!((900..1_100).contains(&applied), "{applied}");
    }
}
