//! `predict`: what a model sees in image files.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use vitesse::data::{DecodeOptions, Preprocess, decode_file};
use vitesse::model::{Checkpoint, Fusion};
use vitesse::report::{Table, left, right};
use vitesse_train::evaluate::Classifier;

use super::Console;
use super::args::{RunArgs, positive};
use super::classify::{Joint, PreprocessArgs, Runner};
use super::failure::{Exit, Failure, Result};
use super::labels::Labels;
use super::model::{ModelArgs, Weights};
use super::outcome::Outcome;

/// Say what a model sees in image files: the likeliest classes and their probabilities
///
/// Names of classes come from --labels, else from the checkpoint; without either, classes are numbers. A file that cannot be
/// read is said to be so, the others are still predicted, and the exit status is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse predict --model ./deit_tiny_patch16_224.fb_in1k cat.jpg dog.png
  vitesse predict --model ./my-run --labels labels.csv --topk 1 --json photos/*.jpg")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Image files: JPEG, PNG, WebP, BMP or GIF
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Names of the classes: a CSV file with the columns class_index and name [default: the checkpoint's]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Classes shown for each image
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    topk: NonZeroUsize,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// How the two heads of a distilled model answer together
    #[arg(long, value_enum, default_value_t = Joint::LogitMean, help_heading = "Model")]
    joint: Joint,
    #[command(flatten)]
    run: RunArgs,
}

/// What is meant: everything opened and checked but the images.
pub(super) struct Plan {
    pub(super) checkpoint: Checkpoint,
    pub(super) preprocess: Preprocess,
    pub(super) labels: Labels,
    pub(super) topk: usize,
    pub(super) fusion: Fusion,
    pub(super) batch_size: usize,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        let named = self.labels.as_deref().map(Labels::read).transpose()?;
        let mut checkpoint = self.model.load(None, console)?;
        if checkpoint.spec.num_classes == 0 {
            let sentence = format!(
                "`{}` has no classes, it returns features",
                checkpoint.spec.architecture
            );
            return Err(
                Failure::new("E_MODEL_NO_CLASSES", sentence).hint("`vitesse run` writes features to a file")
            );
        }
        let plan = Plan {
            preprocess: self.preprocess.plan(&mut checkpoint)?,
            labels: named.unwrap_or_else(|| Labels::of(&checkpoint)),
            topk: self.topk.get(),
            fusion: self.joint.fusion(),
            batch_size: self.run.compute.batch_size.get(),
            checkpoint,
        };
        let precision = self.run.precision.precision();
        let mut runner = Runner::new(&plan.checkpoint, self.run.engine, precision, console)?;
        let report = plan.run(&mut runner, &self.files, console)?;
        let failed = report
            .predictions
            .iter()
            .any(|prediction| prediction.error.is_some());
        Ok(Outcome::new(&report)?.with_exit(if failed { Exit::Failed } else { Exit::Done }))
    }
}

impl Plan {
    /// Predicts the files, in their order.
    pub(super) fn run(&self, runner: &mut Runner, files: &[PathBuf], console: &Console) -> Result<Report> {
        let mut progress = console.progress("images", files.len());
        let mut predictions = Vec::new();
        for batch in files.chunks(self.batch_size) {
            predictions.extend(self.batch(runner, batch)?);
            progress.at(predictions.len())?;
        }
        drop(progress);
        for failure in predictions
            .iter()
            .filter_map(|prediction| prediction.error.as_ref())
        {
            failure.tell();
        }
        Ok(Report {
            model: self.checkpoint.spec.architecture.clone(),
            weights: Weights::of(&self.checkpoint),
            predictions,
        })
    }

    fn batch(&self, classifier: &mut Runner, files: &[PathBuf]) -> Result<Vec<Prediction>> {
        let prepared: Vec<Result<Vec<f32>>> = files.par_iter().map(|file| self.prepare(file)).collect();
        let [channels, height, width] = self.preprocess.input_size;
        let images: Vec<f32> = prepared.iter().flatten().flatten().copied().collect();
        let readable = prepared.iter().flatten().count();
        let mut rows = Vec::new();
        if readable > 0 {
            let heads = classifier.classify(&images, [readable, channels, height, width])?;
            let classes = self.checkpoint.spec.num_classes;
            let scores = heads.joint(self.fusion, classes);
            rows.extend(scores.chunks_exact(classes).map(|row| self.best(row)));
        }
        let mut rows = rows.into_iter();
        let predictions = files.iter().zip(prepared).map(|(file, prepared)| {
            let file = file.display().to_string();
            match prepared {
                Ok(_) => Prediction {
                    file,
                    classes: rows.next(),
                    error: None,
                },
                Err(error) => Prediction {
                    file,
                    classes: None,
                    error: Some(error),
                },
            }
        });
        Ok(predictions.collect())
    }

    fn prepare(&self, file: &Path) -> Result<Vec<f32>> {
        Ok(self
            .preprocess
            .run(&decode_file(file, &DecodeOptions::default())?)?)
    }

    /// The likeliest classes of a row of scores, best first; of equal ones, the lower index.
    fn best(&self, scores: &[f32]) -> Vec<Class> {
        let mut order: Vec<(usize, f64)> = self.probabilities(scores).into_iter().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order.truncate(self.topk);
        let class = |(class_index, score)| Class {
            class_index,
            name: self.labels.name(class_index),
            score,
        };
        order.into_iter().map(class).collect()
    }

    fn probabilities(&self, scores: &[f32]) -> Vec<f64> {
        if self.fusion == Fusion::SoftmaxMean {
            return scores.iter().map(|&score| f64::from(score)).collect();
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = scores.iter().map(|&score| f64::from(score - max).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    weights: Weights,
    pub(super) predictions: Vec<Prediction>,
}

/// One file: its likeliest classes, or why it has none.
#[derive(Debug, Serialize)]
pub(super) struct Prediction {
    pub(super) file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) classes: Option<Vec<Class>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

#[derive(Debug, Serialize)]
pub(super) struct Class {
    pub(super) class_index: usize,
    pub(super) name: String,
    /// Probability, 0 to 1.
    pub(super) score: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([left("file"), right("probability"), right("class"), left("name")]);
        for prediction in &self.predictions {
            let mut file = prediction.file.as_str();
            for class in prediction.classes.iter().flatten() {
                let probability = format!("{:.2} %", 100.0 * class.score);
                table.push([file, &probability, &class.class_index.to_string(), &class.name]);
                file = "";
            }
        }
        if table.is_empty() {
            Ok(())
        } else {
            write!(f, "{table}")
        }
    }
}
