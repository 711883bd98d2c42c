//! What is trained: five runs that differ in nothing but the network and what it learns from.

use std::path::Path;

use serde::Serialize;
use vitesse_train::Recipe;
use vitesse_train::loss::{Kind, Normaliser};
use vitesse_train::recipe::{AugmentConfig, DataConfig, DistillConfig, ModelConfig, TrainConfig};
use vitesse_train::run::BEST;
use vitesse_train::schedule::{Per, Schedule};

use super::TASK;

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Method {
    /// The convolutional network that the distilled students learn from.
    Teacher,
    /// A student of the labels alone.
    None,
    /// Of the labels and the teacher's probabilities.
    Soft,
    /// Of the labels and the teacher's decisions.
    Hard,
    /// The same, with a token and a head of its own for what the teacher says.
    Token,
}

impl Method {
    /// In the order of training: who teaches comes first.
    pub(super) const ALL: [Method; 5] = [
        Method::Teacher,
        Method::None,
        Method::Soft,
        Method::Hard,
        Method::Token,
    ];

    /// Its folder, and its key in the JSON document.
    pub(super) fn key(self) -> &'static str {
        match self {
            Method::Teacher => "teacher",
            Method::None => "none",
            Method::Soft => "soft",
            Method::Hard => "hard",
            Method::Token => "token",
        }
    }

    /// What it is called in tables and legends.
    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Teacher => "teacher (CNN)",
            Method::None => "no distillation",
            Method::Soft => "soft distillation",
            Method::Hard => "hard distillation",
            Method::Token => "hard, with token",
        }
    }

    /// What happens and why, for who watches.
    pub(super) fn why(self) -> &'static str {
        match self {
            Method::Teacher => {
                "train the teacher, a small CNN: convolutions need fewer pictures than attention does"
            }
            Method::None => "train a small DeiT on the labels alone: what the others are measured by",
            Method::Soft => "train the same DeiT on the labels and the teacher's probabilities",
            Method::Hard => "train the same DeiT on the labels and the teacher's decisions",
            Method::Token => {
                "train the same DeiT with a distillation token, whose head learns the teacher's decisions"
            }
        }
    }

    /// The network.
    pub(super) fn architecture(self) -> &'static str {
        match self {
            Method::Teacher => "regnety_nano_32",
            Method::Token => "deit_nano_distilled_patch8_32",
            Method::None | Method::Soft | Method::Hard => "deit_nano_patch8_32",
        }
    }

    /// Whether it learns from the teacher.
    pub(super) fn distils(self) -> bool {
        matches!(self, Method::Soft | Method::Hard | Method::Token)
    }

    /// The verb that repeats it.
    pub(super) fn verb(self) -> &'static str {
        if self.distils() { "distill" } else { "train" }
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Pictures to learn from, to choose the best epoch by, and to test on.
    pub(super) train: usize,
    pub(super) validation: usize,
    pub(super) test: usize,
    teacher_epochs: usize,
    student_epochs: usize,
    pub(super) batch_size: usize,
    /// Pictures of another task that a student is adapted with, and how often.
    pub(super) adapt: usize,
    pub(super) adapt_epochs: usize,
    /// Pictures by which a student is pruned and corrected.
    pub(super) pruned: usize,
    /// Pictures that are predicted and shown.
    pub(super) shown: usize,
}

impl Size {
    /// 260 seconds of processor time: a little over four minutes on two cores, five beside other work.
    pub(super) const FULL: Size = Size {
        train: 5_000,
        validation: 500,
        test: 2_000,
        teacher_epochs: 2,
        student_epochs: 7,
        batch_size: 16,
        adapt: 2_000,
        adapt_epochs: 12,
        pruned: 512,
        shown: 14,
    };
    /// Seconds: every step is taken, little is learned.
    pub(super) const SHORT: Size = Size {
        train: 256,
        validation: 64,
        test: 128,
        teacher_epochs: 2,
        student_epochs: 2,
        batch_size: 16,
        adapt: 64,
        adapt_epochs: 1,
        pruned: 64,
        shown: 7,
    };

    pub(super) fn epochs(self, method: Method) -> usize {
        if method == Method::Teacher {
            self.teacher_epochs
        } else {
            self.student_epochs
        }
    }

    /// The recipe of a run of an experiment that will be in the folder `output`.
    pub(super) fn recipe(self, method: Method, seed: u64, workers: usize, output: &Path) -> Recipe {
        let mut recipe = Recipe {
            model: ModelConfig {
                name: Some(method.architecture().to_owned()),
                drop_path: 0.0,
                ..ModelConfig::default()
            },
            data: DataConfig {
                path: TASK.to_owned(),
                limit: Some(self.train),
                validation_limit: Some(self.validation),
                ..DataConfig::default()
            },
            train: TrainConfig {
                epochs: self.epochs(method),
                batch_size: self.batch_size,
                smoothing: 0.0,
                seed,
                workers,
                ..TrainConfig::default()
            },
            schedule: Schedule {
                warmup_epochs: 0.5,
                per: Per::Step,
                ..Schedule::default()
            },
            // A run this short has no time to overfit, and pictures that vary more are learned more slowly: flips are enough.
            augment: AugmentConfig {
                padding: 0,
                aa: "none".to_owned(),
                color_jitter: 0.0,
                reprob: 0.0,
                mixup: 0.0,
                cutmix: 0.0,
                aug_repeats: 1,
                ..AugmentConfig::default()
            },
            ..Recipe::default()
        };
        // The residual branches of a RegNet begin at zero, and in so few steps they open only at a high rate.
        recipe.optim.lr = if method == Method::Teacher { 1e-2 } else { 2e-3 };
        if method.distils() {
            recipe.distill = DistillConfig {
                teacher: Some(output.join(Method::Teacher.key()).join(BEST)),
                kind: Some(Kind::Hard),
                ..DistillConfig::default()
            };
        }
        if method == Method::Soft {
            // The paper's settings of soft distillation.
            recipe.distill.kind = Some(Kind::Soft);
            recipe.distill.alpha = 0.1;
            recipe.distill.tau = 3.0;
            recipe.distill.normaliser = Normaliser::PerSample;
        }
        recipe
    }
}
