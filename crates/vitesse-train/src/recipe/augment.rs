//! `[augment]`: what happens to training images. timm's names, DeiT's defaults.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use vitesse_data::{Crop, Fragile, MixConfig, Order, Preprocess, RandAugment, TrainTransform};
use vitesse_rng::Key;

use crate::loss::mixed_rows;
use crate::{Error, Result};

/// What happens to training images, one by one and in batches. Size and normalisation are the model's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// `resized` for a random rectangle, `padded` for a random shift, `auto` for `padded` up to 32 pixels a side.
    /// Default `auto`.
    pub crop: Crop,
    /// Least and greatest share of the area that a resized crop keeps. Default [0.08, 1].
    pub scale: [f64; 2],
    /// Least and greatest width over height of a resized crop. Default [3/4, 4/3].
    pub ratio: [f64; 2],
    /// Black pixels around a padded crop. Default 4.
    pub padding: usize,
    /// Probability of a horizontal flip. Default 0.5.
    pub hflip: f64,
    /// RandAugment, in timm's spelling, or `none`. Default `rand-m9-mstd0.5-inc1`.
    pub aa: String,
    /// Strength of the colour jitter, which is active only where RandAugment is off. Default 0.3.
    pub color_jitter: f64,
    /// Probability of random erasing. Default 0.25.
    pub reprob: f64,
    /// Parameter of mixup's Beta distribution; 0 switches it off. Default 0.8.
    pub mixup: f64,
    /// Parameter of CutMix's Beta distribution; 0 switches it off. Default 1.
    pub cutmix: f64,
    /// Probability that a batch is mixed at all. Default 1.
    pub mixup_prob: f64,
    /// Probability of CutMix where both are on. Default 0.5.
    pub mixup_switch_prob: f64,
    /// Times each image is taken in succession, each time augmented differently; an epoch has no more samples for it.
    /// 1 switches repeated augmentation off. Default 3.
    pub aug_repeats: usize,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        let TrainTransform {
            crop,
            scale,
            ratio,
            padding,
            hflip,
            color_jitter,
            reprob,
            ..
        } = TrainTransform::default();
        let MixConfig {
            mixup,
            cutmix,
            mixup_prob,
            mixup_switch_prob,
            ..
        } = MixConfig::default();
        AugmentConfig {
            crop,
            scale,
            ratio,
            padding,
            hflip,
            aa: RandAugment::default().to_string(),
            color_jitter,
            reprob,
            mixup,
            cutmix,
            mixup_prob,
            mixup_switch_prob,
            aug_repeats: 3,
        }
    }
}

impl AugmentConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.aug_repeats == 0 {
            return Err(Error::recipe("augment.aug_repeats", &0, "at least 1"));
        }
        let refused = |error: vitesse_data::Error| match error {
            vitesse_data::Error::Setting { key, found, expected } => Error::Recipe {
                key: format!("augment.{key}"),
                found,
                expected,
            },
            other => Error::Data(other),
        };
        self.transform(&Preprocess::default())
            .and_then(|transform| transform.validate())
            .map_err(refused)?;
        self.mix_config().validate().map_err(refused)
    }

    /// The values that keep the labels of `data` true, as tables of a recipe; none for data that bear everything.
    pub(super) fn demanded(data: &str) -> Table {
        let fragile = Fragile::of(data);
        let mut augment = Table::new();
        if fragile.flip {
            augment.insert("hflip".into(), Value::Float(0.0));
        }
        if fragile.crop {
            // The whole picture, as a crop that leaves nothing out.
            let whole = || Value::Array(vec![Value::Float(1.0); 2]);
            augment.extend([
                ("crop".to_owned(), Value::from("resized")),
                ("scale".to_owned(), whole()),
                ("ratio".to_owned(), whole()),
                ("aa".to_owned(), Value::from("none")),
                ("reprob".to_owned(), Value::Float(0.0)),
            ]);
        }
        let mut root = Table::new();
        if !augment.is_empty() {
            root.insert("augment".into(), Value::Table(augment));
        }
        root
    }

    /// What changes the labels of `data`, in a sentence.
    pub(super) fn against(&self, data: &str) -> Option<String> {
        let fragile = Fragile::of(data);
        let shifts = match self.crop {
            Crop::Resized => self.scale != [1.0; 2] || self.ratio != [1.0; 2],
            Crop::Auto | Crop::Padded => self.padding > 0,
        };
        let found: Vec<&str> = [
            ("`hflip`", fragile.flip && self.hflip > 0.0),
            ("`crop`", fragile.crop && shifts),
            ("`aa`", fragile.crop && self.aa != "none"),
            ("`reprob`", fragile.crop && self.reprob > 0.0),
        ]
        .into_iter()
        .filter_map(|(key, harms)| harms.then_some(key))
        .collect();
        (!found.is_empty()).then(|| {
            format!(
                "{} of [augment] would make labels of `{data}` wrong; leave them out to turn them off",
                found.join(", ")
            )
        })
    }

    /// Whether batches are mixed, so that their size must be even.
    pub fn mixes(&self) -> bool {
        self.mix_config().is_on()
    }

    /// Whether an image is the same each time: nothing is drawn, and no images are mixed. (Of a picture that is one pixel off a
    /// square, the crop may move by that pixel.)
    pub fn is_fixed(&self) -> bool {
        let whole = self.crop == Crop::Resized && self.scale == [1.0; 2] && self.ratio == [1.0; 2];
        let still = self.hflip == 0.0 && self.aa == "none" && self.color_jitter == 0.0 && self.reprob == 0.0;
        whole && still && !self.mixes()
    }

    /// The order of an epoch.
    pub fn order(&self) -> Order {
        match self.aug_repeats {
            0 | 1 => Order::Shuffled,
            repeats => Order::Repeated { repeats },
        }
    }

    /// What happens to each image of a model that takes images as `prepared` says.
    ///
    /// # Errors
    /// A RandAugment that is spelt wrong.
    pub fn transform(&self, prepared: &Preprocess) -> vitesse_data::Result<TrainTransform> {
        Ok(TrainTransform {
            input_size: prepared.input_size,
            mean: prepared.mean,
            std: prepared.std,
            interpolation: prepared.interpolation,
            crop: self.crop,
            scale: self.scale,
            ratio: self.ratio,
            padding: self.padding,
            hflip: self.hflip,
            aa: if self.aa == "none" {
                None
            } else {
                Some(self.aa.parse()?)
            },
            color_jitter: self.color_jitter,
            reprob: self.reprob,
        })
    }

    /// Mixes a batch in place, as `key` decides, and gives its target probabilities, `[samples, classes]`.
    ///
    /// # Errors
    /// A label that is not below `classes`.
    pub fn mix(
        &self,
        images: &mut [f32],
        shape: [usize; 4],
        labels: &[usize],
        classes: usize,
        smoothing: f64,
        key: Key,
    ) -> Result<Vec<f32>> {
        let [_, _, height, width] = shape;
        let lam = self.mix_config().draw(height, width, key).apply(images, shape)?;
        mixed_rows(labels, classes, smoothing, lam)
    }

    fn mix_config(&self) -> MixConfig {
        MixConfig {
            mixup: self.mixup,
            cutmix: self.cutmix,
            mixup_prob: self.mixup_prob,
            mixup_switch_prob: self.mixup_switch_prob,
            // Smoothing belongs to the targets, which are made here.
            smoothing: 0.0,
        }
    }
}
