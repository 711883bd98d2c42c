//! How good a model is on a data set, and on shifted versions of it.

pub(crate) mod seen;
pub mod shifted;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vitesse_data::{DataSet, DecodeOptions, OpenOptions, Preprocess, Split, open};
use vitesse_model::Checkpoint;
use vitesse_model::config::Scores;
use vitesse_train::classes::{ClassNames, LabelsBy, Matched};
use vitesse_train::evaluate::{Classify, EvalOptions, Evaluation, Timing, evaluate_together};
use vitesse_train::metrics::Metrics;
use vitesse_train::parallel::Team;

use crate::classify::{Arithmetic, Runner};
use crate::events::evaluating;
use crate::finite::{Checked, Finite, own};
use crate::{Error, Events, Result, Weights};
use shifted::Shifted;

/// A model and what it is tested on.
#[derive(Debug)]
pub struct Exam {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The images.
    pub data: DataSet,
    /// What the data set is called.
    pub data_name: String,
    /// How images are prepared.
    pub preprocess: Preprocess,
    /// How the classes of the images and of the model find each other.
    pub labels_by: LabelsBy,
    /// Batch size, threads that read, and how heads answer together.
    pub options: EvalOptions,
}

impl Exam {
    /// The images with the model's labels: matched by name where both have names, by position otherwise.
    ///
    /// # Errors
    /// Classes that the model does not have.
    pub fn matched(&self) -> Result<Matched> {
        let classes = self.checkpoint.spec.num_classes;
        let names = ClassNames::of(&self.checkpoint.config, classes);
        Ok(names.matched(&self.data, classes, self.labels_by)?)
    }

    /// Checks that the model can give every answer that the data set asks for, and tells how their classes were matched,
    /// and whether it learned from these very pictures.
    ///
    /// # Errors
    /// [`Error::Classes`] where the data set has more classes than the model; as [`Exam::matched`].
    pub fn check_classes(&self, events: &mut dyn Events) -> Result<()> {
        let (asked, known) = (self.data.class_names().len(), self.checkpoint.spec.num_classes);
        if asked > known {
            return Err(Error::Classes {
                data: self.data_name.clone(),
                asked,
                known,
            });
        }
        let note = self.matched()?.note;
        note.iter().for_each(|note| events.say("note", note));
        if self.checkpoint.config.scores(known) != Scores::Softmax {
            let text = "the model scores each class by itself, and the data name one a picture: top-1 tells how often that one \
                        scores highest, and the loss is not the one it learned by";
            events.say("note", text);
        }
        if let Some(note) = seen::note(
            &self.checkpoint.config.history,
            &self.data_name,
            self.data.split(),
        ) {
            events.say("note", &note);
        }
        Ok(())
    }

    /// Evaluates the model, made `runner`, by all processes of `team`.
    ///
    /// # Errors
    /// As [`evaluate_together`].
    pub fn run(
        &self,
        runner: &mut Runner,
        team: &Team,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Report> {
        let begun = Instant::now();
        let evaluation = self.measure(runner, &self.matched()?.data, team, stop, events)?;
        self.report(evaluation, runner.arithmetic(), begun.elapsed().as_secs_f64())
    }

    /// Evaluates `model`, which may be a part of the exam's, on `data`, which may be other pictures than the exam's.
    fn measure(
        &self,
        model: &mut dyn Classify,
        data: &DataSet,
        team: &Team,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Evaluation> {
        let mut progress = evaluating("", data.len(), stop, events);
        let weights = Finite::of(&self.checkpoint);
        let mut model = Checked {
            model,
            weights: &weights,
        };
        evaluate_together(
            team,
            &mut model,
            data,
            &self.preprocess,
            self.options,
            &mut progress,
        )
        .map_err(own)
    }

    fn report(&self, evaluation: Evaluation, arithmetic: Arithmetic, seconds: f64) -> Result<Report> {
        let spec = &self.checkpoint.spec;
        let cost = spec.costs()?;
        let files = evaluation.failures.into_iter();
        let unreadable_files: Vec<_> = files
            .map(|file| Unreadable {
                name: file.name,
                reason: file.reason,
            })
            .collect();
        let [_, height, width] = self.preprocess.input_size;
        Ok(Report {
            model: spec.architecture.clone(),
            weights: Weights::of(&self.checkpoint),
            data: self.data_name.clone(),
            split: self.data.split().to_string(),
            joint: Accuracy::of(&evaluation.joint),
            heads: evaluation.heads.map(|heads| Heads {
                class: Accuracy::of(&heads.class),
                distillation: Accuracy::of(&heads.distillation),
            }),
            param_count: cost.parameters(),
            macs: cost.macs(),
            num_classes: spec.num_classes,
            img_size: [height, width],
            preprocess: self.preprocess.clone(),
            images: evaluation.joint.samples,
            unreadable: unreadable_files.len(),
            unreadable_files,
            skipped: self.data.skipped(),
            batch_size: self.options.batch_size,
            threads: rayon::current_num_threads(),
            seconds,
            images_per_s: evaluation.joint.samples as f64 / seconds,
            timing: evaluation.timing,
            arithmetic,
            shifted: None,
        })
    }
}

/// The test split of a data set, which must be stored as one.
///
/// # Errors
/// No data set, or none with such a split.
pub fn open_test(path: &str, decode: &DecodeOptions) -> Result<DataSet> {
    let options = OpenOptions {
        split: Some(Split::Test),
        decode: decode.clone(),
        ..OpenOptions::default()
    };
    Ok(open(path, &options)?)
}

/// What an evaluation found. Keys are timm's result columns where it has them.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The architecture.
    pub model: String,
    /// Where the weights come from.
    pub weights: Weights,
    /// The data set.
    pub data: String,
    /// Its part.
    pub split: String,
    /// Of both heads together.
    #[serde(flatten)]
    pub joint: Accuracy,
    /// The heads of a distilled model, each alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<Heads>,
    /// Parameters.
    pub param_count: usize,
    /// Multiply-accumulates of one image.
    pub macs: u64,
    /// The model's classes.
    pub num_classes: usize,
    /// One number for square images.
    pub img_size: [usize; 2],
    /// How images were prepared.
    #[serde(flatten)]
    pub preprocess: Preprocess,
    /// Images that were read.
    pub images: usize,
    /// Files that could not be.
    pub unreadable: usize,
    /// Their names, and why.
    pub unreadable_files: Vec<Unreadable>,
    /// Files of formats that are not supported.
    pub skipped: usize,
    /// Images in one forward pass.
    pub batch_size: usize,
    /// Threads that computed.
    pub threads: usize,
    /// The whole evaluation.
    pub seconds: f64,
    /// Images over that.
    pub images_per_s: f64,
    /// Where the time went.
    #[serde(flatten)]
    pub timing: Timing,
    /// What computed.
    #[serde(flatten)]
    pub arithmetic: Arithmetic,
    /// The same model on other versions of the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shifted: Option<Shifted>,
}

/// Accuracies in percent, rounded to three decimals.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Accuracy {
    /// Images that are recognised.
    pub top1: f64,
    /// Images whose class is among the five likeliest.
    pub top5: f64,
    /// 100 minus top-1.
    pub top1_err: f64,
    /// 100 minus top-5.
    pub top5_err: f64,
    /// The mean of the classes' top-1.
    pub balanced_accuracy: f64,
    /// Cross-entropy in nats, not rounded.
    pub loss: f64,
}

/// The heads of a distilled model.
#[derive(Debug, Serialize)]
pub struct Heads {
    /// The class head alone.
    pub class: Accuracy,
    /// The distillation head alone.
    pub distillation: Accuracy,
}

/// A file that could not be read.
#[derive(Debug, Serialize)]
pub struct Unreadable {
    /// Its name in the data set.
    pub name: String,
    /// Why not, in a sentence.
    pub reason: String,
}

/// To three decimals.
fn round(percent: f64) -> f64 {
    (percent * 1e3).round() / 1e3
}

impl Accuracy {
    fn of(metrics: &Metrics) -> Accuracy {
        Accuracy {
            top1: round(metrics.top1),
            top5: round(metrics.top5),
            top1_err: round(100.0 - metrics.top1),
            top5_err: round(100.0 - metrics.top5),
            balanced_accuracy: round(metrics.balanced),
            loss: metrics.loss,
        }
    }
}
