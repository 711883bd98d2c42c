//! `pretrained_cfg`: what must be done to an image before a model sees it, and where its weights come from.

use serde_json::{Map, Value, json};
use vitesse_data::{CropMode, Interpolation, PerChannel, Preprocess};

use super::fields::Fields;
use crate::spec::{ModelSpec, NetworkSpec};
use crate::{Error, Result};

/// The part of timm's `pretrained_cfg` that the description of the model does not already say.
///
/// The size of the images, the number of classes, the first convolution and the classifiers stand in the file too, but
/// come from the [`ModelSpec`]; they have no second home here. [`PretrainedCfg::default`] is what timm assumes for keys
/// that a file lacks.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainedCfg {
    /// Where the weights come from, such as `fb_in1k`.
    pub tag: Option<String>,
    /// Channels, height and width at which a convolutional network does best, if not those it was trained at.
    pub test_input_size: Option<[usize; 3]>,
    /// How images are resampled.
    pub interpolation: Interpolation,
    /// The side of the crop as a fraction of the side an image is resized to.
    pub crop_pct: f64,
    /// The fraction that goes with `test_input_size`.
    pub test_crop_pct: Option<f64>,
    /// How an image is made to fit.
    pub crop_mode: CropMode,
    /// Mean of each channel, for values in 0..=1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, for values in 0..=1.
    pub std: Vec<f64>,
    /// Height and width of the last map of a convolutional network.
    pub pool_size: Option<[usize; 2]>,
    /// Licence of the weights, such as `apache-2.0`.
    pub license: Option<String>,
    /// Everything else that stands in the file, as it stands there.
    pub extra: Map<String, Value>,
}

impl Default for PretrainedCfg {
    fn default() -> Self {
        PretrainedCfg {
            tag: None,
            test_input_size: None,
            interpolation: Interpolation::Bicubic,
            crop_pct: 0.875,
            test_crop_pct: None,
            crop_mode: CropMode::Center,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            pool_size: None,
            license: None,
            extra: Map::new(),
        }
    }
}

/// Keys that say where a copy of the weights was once fetched from; they are not true of what is written here.
/// `custom_load` asks for a format that is not written here either.
const SOURCE_KEYS: [&str; 8] = [
    "url",
    "file",
    "state_dict",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "architecture",
    "custom_load",
];

/// Keys that repeat what the description of the model says.
const SPEC_KEYS: [&str; 5] = [
    "input_size",
    "fixed_input_size",
    "num_classes",
    "first_conv",
    "classifier",
];

impl PretrainedCfg {
    /// Reads what is left in `fields` once the keys that describe the model have been taken out.
    pub(super) fn parse(mut fields: Fields<'_>, in_chans: usize) -> Result<Self> {
        const SIZE: &str = "three whole numbers, [channels, height, width]";
        let default = PretrainedCfg::default();
        let fraction = |fields: &mut Fields<'_>, key: &str| {
            let expected = "a positive number, the side of the crop relative to the resized image";
            match fields.take::<f64>(key, expected)? {
                Some(value) if !(value.is_finite() && value > 0.0) => {
                    Err(fields.wrong(key, expected, Some(&value.into())))
                }
                value => Ok(value),
            }
        };
        let channels = |fields: &mut Fields<'_>, key: &str, positive, rgb: Vec<f64>| {
            // timm leaves the three of the architecture where a model takes other images.
            let given = fields.get(key).and_then(Value::as_array).map(Vec::len);
            let count = if given == Some(rgb.len()) {
                rgb.len()
            } else {
                in_chans
            };
            match fields.numbers(key, count, positive)? {
                Some(numbers) => Ok(numbers),
                None if in_chans == 3 => Ok(rgb),
                None => Err(fields.wrong(key, &format!("{in_chans} numbers, one a channel"), None)),
            }
        };
        let parsed = PretrainedCfg {
            tag: fields.take("tag", "a string")?,
            test_input_size: fields.take("test_input_size", SIZE)?,
            interpolation: fields
                .take(
                    "interpolation",
                    "`nearest`, `bilinear`, `bicubic`, `lanczos`, `box` or `hamming`",
                )?
                .unwrap_or(default.interpolation),
            crop_pct: fraction(&mut fields, "crop_pct")?.unwrap_or(default.crop_pct),
            test_crop_pct: fraction(&mut fields, "test_crop_pct")?,
            crop_mode: fields
                .take("crop_mode", "`center`, `squash` or `border`")?
                .unwrap_or(default.crop_mode),
            mean: channels(&mut fields, "mean", false, default.mean)?,
            std: channels(&mut fields, "std", true, default.std)?,
            pool_size: fields.take("pool_size", "two whole numbers, [height, width]")?,
            license: fields.take("license", "a string")?,
            extra: Map::new(),
        };
        let mut extra = fields.into_map();
        for key in SOURCE_KEYS.iter().chain(&SPEC_KEYS) {
            extra.shift_remove(*key);
        }
        Ok(PretrainedCfg { extra, ..parsed })
    }

    /// Where a model of other than three channels has three means or deviations, timm's loader takes their average for each
    /// channel. So does this, and returns what to say.
    pub(crate) fn fit_channels(&mut self, in_chans: usize) -> Option<String> {
        let mut said = Vec::new();
        for (name, numbers) in [("mean", &mut self.mean), ("std", &mut self.std)] {
            if numbers.len() == 3 && in_chans != 3 {
                let average = numbers.iter().sum::<f64>() / 3.0;
                said.push(format!("`{name}` {numbers:?} becomes {average}"));
                *numbers = vec![average; in_chans];
            }
        }
        let plural = if in_chans == 1 { "" } else { "s" };
        (!said.is_empty()).then(|| {
            format!(
                "images have {in_chans} channel{plural}, so {}, the average, as in timm's loader",
                said.join(" and ")
            )
        })
    }

    /// What must be done to an image before `spec` sees it: its own size, the rest as it stands here.
    ///
    /// # Errors
    /// [`Error::Preprocess`] for a model of images of other than 1 or 3 channels; values no image can be prepared with.
    pub fn preprocess(&self, spec: &ModelSpec) -> Result<Preprocess> {
        let channels = |what: &str, values: &[f64]| -> Result<PerChannel> {
            let numbers: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            numbers.try_into().map_err(|_| Error::Preprocess {
                architecture: spec.architecture.clone(),
                reason: format!(
                    "`{what}` has {} values, but pictures have 3 channels, or 1 of luminance",
                    values.len()
                ),
            })
        };
        let preprocess = Preprocess {
            input_size: spec.input_size(),
            interpolation: self.interpolation,
            crop_pct: self.crop_pct,
            crop_mode: self.crop_mode,
            mean: channels("mean", &self.mean)?,
            std: channels("std", &self.std)?,
        };
        preprocess.validate()?;
        Ok(preprocess)
    }

    /// Checks that there is a mean and a deviation for each channel.
    pub(super) fn check(&self, in_chans: usize) -> Result<()> {
        let usable =
            |numbers: &[f64]| numbers.len() == in_chans && numbers.iter().all(|number| number.is_finite());
        if usable(&self.mean) && usable(&self.std) && self.std.iter().all(|std| *std > 0.0) {
            return Ok(());
        }
        Err(Error::invalid_spec(format!(
            "images of {in_chans} channels need as many means and positive deviations, but there are {:?} and {:?}",
            self.mean, self.std
        )))
    }

    /// The object as it stands in the file, in timm's order.
    pub(super) fn to_value(&self, spec: &ModelSpec) -> Value {
        let (first_conv, fixed) = match spec.network {
            NetworkSpec::Vit(_) | NetworkSpec::Swin(_) => ("patch_embed.proj", true),
            NetworkSpec::RegNet(_) => ("stem.conv", false),
        };
        let classifier = match spec.classifiers().as_slice() {
            [one] => json!(one),
            several => json!(several),
        };
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
        let mut known = |key, value: Option<Value>| value.and_then(|value| put(key, value));
        known("tag", self.tag.as_ref().map(|tag| json!(tag)));
        known("custom_load", Some(json!(false)));
        known("input_size", Some(json!(spec.input_size())));
        known("test_input_size", self.test_input_size.map(|size| json!(size)));
        known("fixed_input_size", Some(json!(fixed)));
        known("interpolation", Some(json!(self.interpolation)));
        known("crop_pct", Some(json!(self.crop_pct)));
        known("test_crop_pct", self.test_crop_pct.map(|pct| json!(pct)));
        known("crop_mode", Some(json!(self.crop_mode)));
        known("mean", Some(json!(self.mean)));
        known("std", Some(json!(self.std)));
        known("num_classes", Some(json!(spec.num_classes)));
        known("pool_size", Some(json!(self.pool_size)));
        known("first_conv", Some(json!(first_conv)));
        known("classifier", Some(classifier));
        known("license", self.license.as_ref().map(|license| json!(license)));
        out.extend(self.extra.clone());
        Value::Object(out)
    }
}
