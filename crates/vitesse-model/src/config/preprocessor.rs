//! `preprocessor_config.json`: the preparation of images in transformers' words.
//!
//! transformers describes the same steps as [`PretrainedCfg`]: resize, crop the centre, scale to 0..=1, normalise. It
//! names the size an image is resized to where timm names the ratio between crop and resized image.

use std::path::Path;

use serde_json::{Map, Value, json};
use vitesse_data::{CropMode, Interpolation};

use super::{Fields, PretrainedCfg};
use crate::{Error, Result};

/// The name of the file in a checkpoint folder.
pub const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// Pillow's numbers for its filters.
const RESAMPLE: [Interpolation; 6] = [
    Interpolation::Nearest,
    Interpolation::Lanczos,
    Interpolation::Bilinear,
    Interpolation::Bicubic,
    Interpolation::Box,
    Interpolation::Hamming,
];

/// The file for a model whose input is `[channels, height, width]`, or `None` where transformers has no words for it:
/// padding, crops of the centre that are not square, and images that are not RGB.
pub fn to_json(cfg: &PretrainedCfg, [channels, height, width]: [usize; 3]) -> Option<String> {
    let resized = |side: usize| (side as f64 / cfg.crop_pct).floor() as u64;
    let size = match cfg.crop_mode {
        CropMode::Center if height == width => json!({ "shortest_edge": resized(height) }),
        CropMode::Squash => json!({ "height": resized(height), "width": resized(width) }),
        CropMode::Center | CropMode::Border => return None,
    };
    let resample = RESAMPLE.iter().position(|filter| *filter == cfg.interpolation)?;
    let file = json!({
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": size,
        "resample": resample,
        "do_center_crop": true,
        "crop_size": { "height": height, "width": width },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": cfg.mean,
        "image_std": cfg.std,
    });
    (channels == 3).then(|| format!("{file:#}\n"))
}

/// What `text`, the content of `file`, says in timm's words, and the height and width of the images it makes.
///
/// What the file leaves out has the value that transformers gives it for the processor that the file names, and for that of the
/// model, `default`, where it names none.
///
/// # Errors
/// A step that is not known here; a value left out where the processor is none of those whose own values are known.
pub(crate) fn parse(
    text: &str,
    file: &Path,
    default: &Defaults,
    in_chans: usize,
) -> Result<(PretrainedCfg, [usize; 2])> {
    const FLAG: &str = "`true` or `false`";
    let mut fields = Fields::parse(file, text)?;
    let default = named(&mut fields)?.unwrap_or(default);
    let on =
        |fields: &mut Fields<'_>, key, default| Ok::<_, Error>(fields.take(key, FLAG)?.unwrap_or(default));
    for step in ["do_resize", "do_rescale"] {
        if !on(&mut fields, step, true)? {
            return Err(fields.wrong(
                step,
                "`true`: images are resized and scaled to 0..=1",
                Some(&json!(false)),
            ));
        }
    }
    let factor: f64 = fields.take("rescale_factor", "a number")?.unwrap_or(1.0 / 255.0);
    if (factor - 1.0 / 255.0).abs() > 1e-6 {
        return Err(fields.wrong("rescale_factor", "1/255", Some(&json!(factor))));
    }
    let normalize = on(&mut fields, "do_normalize", true)?;
    let crops = on(&mut fields, "do_center_crop", default.crop.is_some())?;
    const RESAMPLE_TEXT: &str = "one of Pillow's filters, 0 to 5";
    let resample = fields.size("resample", 0..=5)?;
    let interpolation = match resample {
        Some(number) => *RESAMPLE
            .get(number)
            .ok_or_else(|| fields.wrong("resample", RESAMPLE_TEXT, None))?,
        None => default.interpolation,
    };
    let crop = side(&mut fields, "crop_size")?
        .map(|(sides, _)| sides)
        .or(default.crop.map(|side| [side; 2]));
    let (resized, keeps_ratio) =
        side(&mut fields, "size")?.unwrap_or(([default.resize; 2], default.keeps_ratio));
    let made = if crops { crop.unwrap_or(resized) } else { resized };
    if keeps_ratio && !crops {
        let expected = "`true` where `size` is a `shortest_edge`: the model takes images of one size only";
        return Err(fields.wrong("do_center_crop", expected, Some(&json!(false))));
    }
    let crop_pct = ratio(made[0], resized[0]);
    if (made[1] as f64 / crop_pct).floor() != resized[1] as f64 {
        return Err(fields.wrong(
            "size",
            "in the same proportion to `crop_size` in height and width",
            None,
        ));
    }
    let mean = fields
        .numbers("image_mean", in_chans, false)?
        .unwrap_or_else(|| each(default.mean, in_chans));
    let std = fields
        .numbers("image_std", in_chans, true)?
        .unwrap_or_else(|| each(default.std, in_chans));
    let cfg = PretrainedCfg {
        interpolation,
        crop_pct,
        crop_mode: if keeps_ratio {
            CropMode::Center
        } else {
            CropMode::Squash
        },
        mean: if normalize { mean } else { vec![0.0; in_chans] },
        std: if normalize { std } else { vec![1.0; in_chans] },
        ..PretrainedCfg::default()
    };
    Ok((cfg, made))
}

/// The values of the processor that the file names, if it names one. Where they are not known, the file has to say everything.
fn named(fields: &mut Fields<'_>) -> Result<Option<&'static Defaults>> {
    for key in ["image_processor_type", "feature_extractor_type"] {
        let Some(name) = fields.take::<String>(key, "the name of a class")? else {
            continue;
        };
        let kind = ["Fast", "Pil"]
            .iter()
            .fold(name.as_str(), |name, end| name.strip_suffix(end).unwrap_or(name));
        let kind = kind
            .strip_suffix("ImageProcessor")
            .or(kind.strip_suffix("FeatureExtractor"))
            .unwrap_or(kind);
        if let Some((_, known)) = PROCESSORS.iter().find(|(known, _)| *known == kind) {
            return Ok(Some(known));
        }
        let crops = fields.get("do_center_crop").and_then(Value::as_bool) == Some(true);
        let needed = ["do_center_crop", "size", "resample", "image_mean", "image_std"];
        let needed = needed.into_iter().chain(crops.then_some("crop_size"));
        for needed in needed {
            if fields.get(needed).is_none_or(Value::is_null) {
                let expected =
                    format!("a value, because what `{name}` takes where there is none is not known here");
                return Err(fields.wrong(needed, &expected, None));
            }
        }
    }
    Ok(None)
}

/// A number for each of three channels, or their mean for each of another number.
fn each(values: [f64; 3], channels: usize) -> Vec<f64> {
    match channels {
        3 => values.to_vec(),
        _ => vec![values.iter().sum::<f64>() / 3.0; channels],
    }
}

const HALF: [f64; 3] = [0.5; 3];
/// The mean of each channel of the images that CLIP learned from.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Their deviations.
pub(crate) const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// What transformers' processors take for what a file leaves out.
const PROCESSORS: [(&str, Defaults); 5] = [
    ("ViT", VIT),
    ("DeiT", DEIT),
    ("Siglip", SQUASHED),
    ("CLIP", CLIP),
    ("Bit", CLIP),
];

/// `ViTImageProcessor`.
pub(crate) const VIT: Defaults = Defaults {
    interpolation: Interpolation::Bilinear,
    ..SQUASHED
};

/// `DeiTImageProcessor`.
pub(crate) const DEIT: Defaults = Defaults {
    resize: 256,
    crop: Some(224),
    ..SQUASHED
};

const SQUASHED: Defaults = Defaults {
    resize: 224,
    keeps_ratio: false,
    crop: None,
    interpolation: Interpolation::Bicubic,
    mean: HALF,
    std: HALF,
};

/// `CLIPImageProcessor`.
pub(crate) const CLIP: Defaults = Defaults {
    keeps_ratio: true,
    crop: Some(224),
    mean: CLIP_MEAN,
    std: CLIP_STD,
    ..SQUASHED
};

/// What transformers assumes for one kind of processor.
pub(crate) struct Defaults {
    /// The side an image is resized to.
    pub(crate) resize: usize,
    /// Whether that is the shorter one of an image that keeps its proportions.
    pub(crate) keeps_ratio: bool,
    /// The side of the crop, for the kinds that crop.
    pub(crate) crop: Option<usize>,
    /// The filter.
    pub(crate) interpolation: Interpolation,
    /// By channel.
    pub(crate) mean: [f64; 3],
    /// By channel.
    pub(crate) std: [f64; 3],
}

/// Height and width, and whether they are the shorter side of an image that keeps its proportions. A number alone means
/// both sides.
fn side(fields: &mut Fields<'_>, key: &str) -> Result<Option<([usize; 2], bool)>> {
    const EXPECTED: &str = "{\"height\": …, \"width\": …}, {\"shortest_edge\": …} or a positive whole number";
    let Some(value) = fields.take::<Value>(key, EXPECTED)? else {
        return Ok(None);
    };
    let number = |value: Option<&Value>| {
        value
            .and_then(Value::as_u64)
            .filter(|n| (1..=1 << 16).contains(n))
    };
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let read = match (number(Some(&value)), number(object.get("shortest_edge"))) {
        (Some(both), _) => Some(([both, both], false)),
        (None, Some(shortest)) => Some(([shortest, shortest], true)),
        (None, None) => number(object.get("height"))
            .zip(number(object.get("width")))
            .map(|(h, w)| ([h, w], false)),
    };
    match read {
        Some((sides, keeps_ratio)) => Ok(Some((sides.map(|side| side as usize), keeps_ratio))),
        None => Err(fields.wrong(key, EXPECTED, Some(&value))),
    }
}

/// The crop ratio from which the resized side comes back exactly, truncating `crop / ratio`.
fn ratio(crop: usize, resized: usize) -> f64 {
    let exact = crop as f64 / resized as f64;
    if (crop as f64 / exact).floor() == resized as f64 {
        exact
    } else {
        crop as f64 / (resized as f64 + 0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The preparation of a DeiT whose file says `text`: filter, mode, resized side, made side.
    fn prepared(text: &Value) -> Result<(Interpolation, CropMode, u64, usize)> {
        let (cfg, made) = parse(&text.to_string(), Path::new(PREPROCESSOR_FILE), &DEIT, 3)?;
        let resized = (made[0] as f64 / cfg.crop_pct).floor() as u64;
        Ok((cfg.interpolation, cfg.crop_mode, resized, made[0]))
    }

    #[test]
    fn what_is_left_out_is_as_the_named_processor_has_it() {
        let (bicubic, bilinear) = (Interpolation::Bicubic, Interpolation::Bilinear);
        let squash = CropMode::Squash;
        for (text, expected) in [
            (json!({}), (bicubic, squash, 256, 224)),
            (
                json!({ "image_processor_type": "ViTImageProcessor", "size": 384 }),
                (bilinear, squash, 384, 384),
            ),
            (
                json!({ "image_processor_type": "ViTImageProcessorFast" }),
                (bilinear, squash, 224, 224),
            ),
            (
                json!({ "feature_extractor_type": "ViTFeatureExtractor" }),
                (bilinear, squash, 224, 224),
            ),
            (
                json!({ "image_processor_type": "DeiTImageProcessorPil" }),
                (bicubic, squash, 256, 224),
            ),
            (
                json!({ "image_processor_type": "CLIPImageProcessor" }),
                (bicubic, CropMode::Center, 224, 224),
            ),
        ] {
            assert_eq!(prepared(&text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn of_an_unknown_processor_everything_must_be_said() {
        let mut text = json!({
            "image_processor_type": "PvtImageProcessor", "do_center_crop": false, "size": 224, "resample": 3,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        });
        prepared(&text).unwrap();
        text["image_mean"] = Value::Null;
        let error = prepared(&text).unwrap_err().to_string();
        assert!(
            error.contains("image_mean") && error.contains("`PvtImageProcessor`"),
            "{error}"
        );
    }
}
