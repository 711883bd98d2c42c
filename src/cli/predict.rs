//! `predict`: what a model sees in image files.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::measure::predict::pictures;
use vitesse::measure::{self, Labels, Weights};
use vitesse::model::config::Scores;
use vitesse::report::{Table, left, right};
use vitesse::{Class, Classifier, ClassifierOptions, TextFeatures, train};

use super::Console;
use super::args::model::CheckpointArgs;
use super::args::preprocess::{Joint, PreprocessArgs};
use super::args::{DecodeArgs, RunArgs, positive};
use super::failure::{Exit, Failure, Result};
use super::outcome::Outcome;
use super::show::Show;

/// Say what a model sees in image files: the likeliest classes and their probabilities
///
/// Names of classes come from --labels, else from the checkpoint; published weights of ImageNet-1k have its names. Without any,
/// classes are numbers. A file that cannot be
/// read is said to be so, the others are still predicted, and the exit status is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse predict --model ./deit_tiny_patch16_224.fb_in1k cat.jpg dog.png
  vitesse predict --model ./my-run --labels labels.csv --topk 1 --json photos/*.jpg
  vitesse predict --model ./clip-vit-base-patch32 --text-features classes.safetensors photos")]
pub(super) struct Args {
    #[command(flatten)]
    model: CheckpointArgs,
    /// Image files: JPEG, PNG, WebP, BMP or GIF; of a folder, all that it holds
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Names of the classes: a CSV file with the columns class_index and name, or `imagenet` [default: the checkpoint's]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// What a CLIP's text encoder made of the classes: a safetensors file with `text_features` `[classes, dim]`
    ///
    /// A class's probability is then the softmax of `scale · cos(image features, text features)`: the model's head gives features
    /// and no classes. `logit_scale` in the file, as the model has it, is the logarithm of the scale (without it, that of 100), and
    /// `labels` in its metadata the names as a JSON list. docs/checkpoints.md has the Python that makes such a file.
    #[arg(long, value_name = "FILE", conflicts_with = "joint")]
    text_features: Option<PathBuf>,
    /// Classes shown for each image
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    topk: NonZeroUsize,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// How the two heads of a distilled model answer together
    #[arg(long, value_enum, default_value_t = Joint::LogitMean, help_heading = "Model")]
    joint: Joint,
    #[command(flatten)]
    run: RunArgs,
}

/// What `--labels` takes for the names of ImageNet-1k.
const IMAGENET: &str = "imagenet";

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        let labels = match &self.labels {
            Some(name) if name.as_os_str() == IMAGENET && !name.exists() => Some(Labels::imagenet()),
            Some(file) => Some(Labels::read(file)?),
            None => None,
        };
        let text_features = self
            .text_features
            .as_deref()
            .map(TextFeatures::read)
            .transpose()?;
        let zero_shot = text_features.is_some();
        let mut checkpoint = self.model.load(console)?;
        let preprocess = self.preprocess.plan(&mut checkpoint)?;
        let (model, weights) = (checkpoint.spec.architecture.clone(), Weights::of(&checkpoint));
        let (backend, precision) = self.run.computed();
        let options = ClassifierOptions {
            topk: self.topk.get(),
            threads: 0,
            precision,
            batch_size: self.run.compute.batch_size.get(),
            labels,
            preprocess: Some(preprocess),
            decode: self.decode.options(),
            fusion: self.joint.fusion(),
            text_features,
            backend,
        };
        let mut show = Show::new(console);
        let classifier = Classifier::new(checkpoint, options, &mut show).map_err(hint)?;
        if classifier.labels().is_empty() {
            let who = if zero_shot {
                "the file of text features"
            } else {
                "the checkpoint"
            };
            console.note(&format!("{who} does not name its classes, so they are numbers; name them with `--labels FILE`, or `--labels imagenet`"));
        }
        let scores = classifier.scores();
        let files = pictures(&self.files, &mut Show::new(console))?;
        let found = classifier.classify_until(&files, console.stop(), &mut show)?;
        let mut predictions = Vec::new();
        for (file, found) in files.iter().zip(found) {
            let (classes, error) = match found {
                Ok(classes) => (Some(classes), None),
                Err(error) => (None, Some(Failure::from(error))),
            };
            error.iter().for_each(Failure::tell);
            predictions.push(Prediction {
                file: file.display().to_string(),
                classes,
                error,
            });
        }
        let failed = predictions.iter().any(|prediction| prediction.error.is_some());
        let report = Report {
            model,
            weights,
            scores,
            predictions,
        };
        Ok(Outcome::new(&report)?.with_exit(if failed { Exit::Failed } else { Exit::Done }))
    }
}

/// What to do with a model that has no classes.
fn hint(error: measure::Error) -> Failure {
    let features = matches!(error, measure::Error::Train(train::Error::NoClasses { .. }));
    let failure = Failure::from(error);
    if features {
        failure.hint("`vitesse run` writes features to a file, and `--text-features FILE` compares them with those of texts")
    } else {
        failure
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    weights: Weights,
    scores: Scores,
    predictions: Vec<Prediction>,
}

/// One file: its likeliest classes, or why it has none.
#[derive(Debug, Serialize)]
struct Prediction {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    classes: Option<Vec<Class>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.scores == Scores::Logits;
        let mut table = Table::new([
            left("file"),
            right(if values { "value" } else { "probability" }),
            right("class"),
            left("name"),
        ]);
        for prediction in &self.predictions {
            let mut file = prediction.file.as_str();
            for class in prediction.classes.iter().flatten() {
                let score = match values {
                    true => format!("{:.4}", class.score),
                    false => format!("{:.2} %", 100.0 * class.score),
                };
                table.push([
                    file,
                    &score,
                    &class.class_index.to_string(),
                    class.name.as_deref().unwrap_or_default(),
                ]);
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
