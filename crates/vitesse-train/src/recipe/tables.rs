//! The tables of a recipe that belong to the run itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vitesse_data::{DecodeLimits, DecodeOptions, Split};
use vitesse_model::network::{Compute, Fusion, Precision};

use super::number;
use crate::classes::LabelsBy;
use crate::loss::{Distillation, Kind, Normaliser};
use crate::{Error, Result};

/// `[model]`: what is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A model of the zoo, with fresh weights; or:
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A checkpoint to begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// Which state dict of a checkpoint file with several, such as `model` or `teacher.backbone`. Default: timm's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Heads of a checkpoint whose blocks were cut smaller and which does not say it: one number for all blocks, or one for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_heads: Option<Vec<usize>>,
    /// The width of a head whose inverse square root is then the attention scale. Default: the width that is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Number of classes; another number than the checkpoint's makes a fresh head. Default: as many as the data have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Side of the square images, in pixels; a checkpoint's position embedding is resized. Default: the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub img_size: Option<usize>,
    /// Side of a Swin's windows, in tokens; a checkpoint's tables of relative positions are resized. Default: the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_size: Option<usize>,
    /// Probability of dropping a residual branch in the last block; it grows linearly from 0 in the first. Default 0.1.
    pub drop_path: f64,
    /// Whether the model computes as in evaluation while it learns: no drop path, running statistics in batch norms.
    /// For fine-tuning at a higher resolution. Default false.
    pub eval_mode: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            name: None,
            checkpoint: None,
            key: None,
            num_heads: None,
            head_dim: None,
            num_classes: None,
            img_size: None,
            window_size: None,
            drop_path: 0.1,
            eval_mode: false,
        }
    }
}

impl ModelConfig {
    pub(super) fn validate(&self) -> Result<()> {
        match (&self.name, &self.checkpoint) {
            (None, None) => {
                let expected = "the name of a model, such as \"deit_micro_patch4_32\", or `model.checkpoint`";
                return Err(Error::recipe("model.name", &"not set", expected));
            }
            (Some(name), Some(_)) => {
                return Err(Error::recipe(
                    "model.name",
                    name,
                    "absent where `model.checkpoint` is set",
                ));
            }
            _ => {}
        }
        if let (Some(key), None) = (&self.key, &self.checkpoint) {
            return Err(Error::recipe(
                "model.key",
                key,
                "absent where no `model.checkpoint` is set",
            ));
        }
        if let (Some(heads), None) = (&self.num_heads, &self.checkpoint) {
            let expected = "absent where no `model.checkpoint` is set";
            return Err(Error::recipe("model.num_heads", &format!("{heads:?}"), expected));
        }
        if let (Some(side), None) = (self.window_size, &self.checkpoint) {
            let expected = "absent where no `model.checkpoint` is set";
            return Err(Error::recipe("model.window_size", &side, expected));
        }
        if let (Some(width), None) = (self.head_dim, &self.num_heads) {
            let expected = "absent where no `model.num_heads` is set";
            return Err(Error::recipe("model.head_dim", &width, expected));
        }
        if self.head_dim == Some(0) {
            return Err(Error::recipe("model.head_dim", &0, "at least 1"));
        }
        if self.num_classes == Some(0) {
            return Err(Error::recipe("model.num_classes", &0, "at least 1"));
        }
        number(
            "model.drop_path",
            self.drop_path,
            (0.0..1.0).contains(&self.drop_path),
            "at least 0 and below 1",
        )
    }
}

/// `[data]`: what is learned from and evaluated on. Nothing is ever chosen on a test split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A path, or `shapes` (or `shapes:TASK`) for the built-in set.
    pub path: String,
    /// The split to learn from. Default `train`. With `trainval` or `all` nothing is left to evaluate on, unless `validation`
    /// names another data set, and the last epoch is the result.
    pub split: Split,
    /// Learn from at most so many images, classes in proportion. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Learn from at most so many images of each class, instead of a `limit`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Another data set to evaluate on. Default: the validation split of `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// Evaluate on at most so many images. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_limit: Option<usize>,
    /// The share of the training images that is held back for evaluation where no validation split is stored.
    /// Default 0.1.
    pub val_fraction: f64,
    /// Decides which images are held back and which a limit or shots leave. Default 0.
    pub seed: u64,
    /// How the classes of the data and those that the model and the teacher know already find each other: `name` or `index`.
    /// Default `name`.
    pub labels_by: LabelsBy,
    /// The most pixels of a picture. Default: 64 Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// Whether pictures are turned as their EXIF rotation flag says. Default false.
    pub exif: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            path: String::new(),
            split: Split::Train,
            limit: None,
            shots: None,
            validation: None,
            validation_limit: None,
            val_fraction: 0.1,
            seed: 0,
            labels_by: LabelsBy::Name,
            max_pixels: None,
            exif: false,
        }
    }
}

impl DataConfig {
    /// How files become pictures.
    pub fn decode(&self) -> DecodeOptions {
        DecodeOptions {
            limits: self.max_pixels.map(DecodeLimits::of_pixels).unwrap_or_default(),
            exif_rotation: self.exif,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.path.is_empty() {
            return Err(Error::recipe(
                "data.path",
                &"not set",
                "the path of a data set, or \"shapes\"",
            ));
        }
        for (key, limit) in [
            ("data.limit", self.limit),
            ("data.shots", self.shots),
            ("data.validation_limit", self.validation_limit),
        ] {
            if limit == Some(0) {
                return Err(Error::recipe(key, &0, "at least 1"));
            }
        }
        if let (Some(shots), Some(_)) = (self.shots, self.limit) {
            let expected = "absent where `data.limit` is set";
            return Err(Error::recipe("data.shots", &shots, expected));
        }
        number(
            "data.val_fraction",
            self.val_fraction,
            (0.0..1.0).contains(&self.val_fraction),
            "at least 0 and below 1",
        )
    }
}

/// `[train]`: how long, in which batches, what is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Epochs. Default 300.
    pub epochs: usize,
    /// Samples of an optimiser step, all accumulated parts together; of each process, where several train together. Default
    /// 1024.
    pub batch_size: usize,
    /// Parts a batch is computed in, one after the other, for less memory. Default 1. Batch norms take their statistics
    /// over a part; nothing else depends on it, but for rounding.
    pub accumulate: usize,
    /// Mixed precision, `bf16`: products round their inputs to it. Weights, sums and the optimiser stay in `f32`.
    /// Default: all in `f32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amp: Option<Amp>,
    /// Whether transformer blocks are computed again in the backward pass instead of being kept, for less memory.
    /// Default false. Does not change the result.
    pub grad_checkpointing: bool,
    /// Decides fresh weights, order, augmentation and drop path. Default 42.
    pub seed: u64,
    /// Threads that read images; 0, the default, is one for each core. Does not change the result.
    pub workers: usize,
    /// Label smoothing, the share of the target that is spread over all classes. Default 0.1.
    pub smoothing: f64,
    /// Stop when the validation accuracy has not improved for so many epochs. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<usize>,
    /// Decay, per step, of a moving average of the weights. Default: none is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Whether the averaged weights are what is judged and saved, instead of the weights. Default false.
    pub use_ema: bool,
    /// Evaluate after every so many epochs, and after the last. Default 1.
    pub eval_every: usize,
    /// Checkpoints kept of the most accurate epochs; `best` is always there. Default 1.
    pub keep: usize,
    /// Save the training state after every so many steps, and after each epoch. Default 1000. Does not change the result.
    pub save_every: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            epochs: 300,
            batch_size: 1024,
            accumulate: 1,
            amp: None,
            grad_checkpointing: false,
            seed: 42,
            workers: 0,
            smoothing: 0.1,
            early_stop: None,
            ema_decay: None,
            use_ema: false,
            eval_every: 1,
            keep: 1,
            save_every: 1000,
        }
    }
}

/// A number format of mixed precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amp {
    /// The upper half of an `f32`: its range, with 8 bits of precision.
    Bf16,
}

impl TrainConfig {
    /// How steps compute.
    pub fn compute(&self) -> Compute {
        Compute {
            precision: match self.amp {
                None => Precision::F32,
                Some(Amp::Bf16) => Precision::Bf16,
            },
            grad_checkpointing: self.grad_checkpointing,
            ..Compute::default()
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let counts = [
            ("train.epochs", Some(self.epochs)),
            ("train.batch_size", Some(self.batch_size)),
            ("train.accumulate", Some(self.accumulate)),
            ("train.early_stop", self.early_stop),
            ("train.eval_every", Some(self.eval_every)),
            ("train.keep", Some(self.keep)),
            ("train.save_every", Some(self.save_every)),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return Err(Error::recipe(key, &0, "at least 1"));
        }
        if self.accumulate > self.batch_size {
            let expected = format!("at most `train.batch_size`, {}", self.batch_size);
            return Err(Error::recipe("train.accumulate", &self.accumulate, expected));
        }
        let share =
            |key, value: f64| number(key, value, (0.0..1.0).contains(&value), "at least 0 and below 1");
        share("train.smoothing", self.smoothing)?;
        match self.ema_decay {
            Some(decay) => share("train.ema_decay", decay),
            None if self.use_ema => Err(Error::recipe(
                "train.use_ema",
                &true,
                "false, unless `train.ema_decay` is set",
            )),
            None => Ok(()),
        }
    }
}

/// `[distill]`: what is learned from a teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// The teacher's checkpoint, a model with the student's classes. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<PathBuf>,
    /// Which state dict of a teacher's file with several. Default: timm's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `hard`, `soft` or `none`. Default: `hard` if there is a teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Weight of the teacher, from 0 to 1; the labels have the rest. Default 0.5 (the paper's soft setting: 0.1).
    pub alpha: f64,
    /// Temperature of soft distillation. Default 1 (the paper's: 3).
    pub tau: f64,
    /// What soft distillation is divided by, `per-element` or `per-sample`. Default `per-element`.
    pub normaliser: Normaliser,
    /// How the two heads of a distilled model become one prediction: `logit-mean`, `softmax-mean`, `class` or
    /// `distillation`. Default `logit-mean`.
    #[serde(with = "FusionName")]
    pub joint: Fusion,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Fusion", rename_all = "kebab-case")]
enum FusionName {
    LogitMean,
    SoftmaxMean,
    Class,
    Distillation,
}

impl Default for DistillConfig {
    fn default() -> Self {
        let Distillation {
            alpha,
            tau,
            normaliser,
            ..
        } = Distillation::default();
        DistillConfig {
            teacher: None,
            key: None,
            kind: None,
            alpha,
            tau,
            normaliser,
            joint: Fusion::default(),
        }
    }
}

impl DistillConfig {
    /// Whether a teacher is learned from.
    pub fn distils(&self) -> bool {
        self.distillation().kind != Kind::None
    }

    /// The loss.
    pub fn distillation(&self) -> Distillation {
        let default = if self.teacher.is_some() {
            Kind::Hard
        } else {
            Kind::None
        };
        Distillation {
            kind: self.kind.unwrap_or(default),
            alpha: self.alpha,
            tau: self.tau,
            normaliser: self.normaliser,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.distils() && self.teacher.is_none() {
            return Err(Error::TeacherMissing);
        }
        number(
            "distill.alpha",
            self.alpha,
            (0.0..=1.0).contains(&self.alpha),
            "from 0 to 1",
        )?;
        number("distill.tau", self.tau, self.tau > 0.0, "above 0")
    }
}
