//! How images are prepared and how the heads of a model answer together, as typed.

use clap::ValueEnum;
use serde::Serialize;
use vitesse::data::{Interpolation, Preprocess};
use vitesse::model::{Checkpoint, Fusion};

use super::share;
use crate::cli::failure::Result;

/// How images are prepared, as typed. What is not typed is as the checkpoint says.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Image preparation")]
pub(in crate::cli) struct PreprocessArgs {
    /// Share of the resized image's side that the centre crop keeps, above 0 up to 1 [default: the checkpoint's]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    crop_pct: Option<f64>,
    /// Filter that resizes images [default: the checkpoint's]
    #[arg(long, value_enum, value_name = "FILTER")]
    interpolation: Option<Filter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Filter {
    Nearest,
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

/// How the two heads of a distilled model answer together, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) enum Joint {
    /// The mean of their logits, as the released DeiT does
    LogitMean,
    /// The mean of their probabilities, as the paper writes
    Softmax,
    /// The class head alone
    Class,
    /// The distillation head alone
    Distillation,
}

impl Joint {
    pub(in crate::cli) fn fusion(self) -> Fusion {
        match self {
            Joint::LogitMean => Fusion::LogitMean,
            Joint::Softmax => Fusion::SoftmaxMean,
            Joint::Class => Fusion::Class,
            Joint::Distillation => Fusion::Distillation,
        }
    }
}

impl PreprocessArgs {
    /// How images are prepared for `checkpoint`. One that does best on larger images than it was trained on becomes a model
    /// for those, as in timm.
    pub(in crate::cli) fn plan(&self, checkpoint: &mut Checkpoint) -> Result<Preprocess> {
        checkpoint.set_test_size()?;
        let mut plan = checkpoint.preprocess()?;
        plan.crop_pct = self.crop_pct.unwrap_or(plan.crop_pct);
        if let Some(filter) = self.interpolation {
            plan.interpolation = match filter {
                Filter::Nearest => Interpolation::Nearest,
                Filter::Box => Interpolation::Box,
                Filter::Bilinear => Interpolation::Bilinear,
                Filter::Hamming => Interpolation::Hamming,
                Filter::Bicubic => Interpolation::Bicubic,
                Filter::Lanczos => Interpolation::Lanczos,
            };
        }
        Ok(plan)
    }
}
