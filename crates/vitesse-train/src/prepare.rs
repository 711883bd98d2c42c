//! How images are prepared for a checkpoint: the fields of its `pretrained_cfg` as a [`Preprocess`].

use vitesse_data::{CropMode, Interpolation, PerChannel, Preprocess};
use vitesse_model::config::{CropMode as ModelCrop, Interpolation as ModelInterpolation};
use vitesse_model::{ModelSpec, PretrainedCfg};

use crate::{Error, Result};

/// What must be done to an image before `spec` sees it: its own size, the rest as `cfg` says.
///
/// # Errors
/// A model for images of other than 1 or 3 channels, or values no image can be prepared with.
pub fn preprocess(spec: &ModelSpec, cfg: &PretrainedCfg) -> Result<Preprocess> {
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
        interpolation: match cfg.interpolation {
            ModelInterpolation::Nearest => Interpolation::Nearest,
            ModelInterpolation::Bilinear => Interpolation::Bilinear,
            ModelInterpolation::Bicubic => Interpolation::Bicubic,
            ModelInterpolation::Lanczos => Interpolation::Lanczos,
            ModelInterpolation::Box => Interpolation::Box,
            ModelInterpolation::Hamming => Interpolation::Hamming,
        },
        crop_pct: cfg.crop_pct,
        crop_mode: match cfg.crop_mode {
            ModelCrop::Center => CropMode::Center,
            ModelCrop::Squash => CropMode::Squash,
            ModelCrop::Border => CropMode::Border,
        },
        mean: channels("mean", &cfg.mean)?,
        std: channels("std", &cfg.std)?,
    };
    preprocess.validate()?;
    Ok(preprocess)
}
