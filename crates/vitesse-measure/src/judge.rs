//! How good a model is before and after it is made into another one.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use vitesse_data::{DataSet, OpenOptions, Split, open};
use vitesse_engine::Precision;
use vitesse_model::Checkpoint;
use vitesse_model::config::Scores;
use vitesse_model::network::fused::has_bf16;
use vitesse_train::classes::{ClassNames, LabelsBy};
use vitesse_words::counted;

use crate::contest::{Contest, Contestant};
use crate::timing::Budget;
use crate::{Events, Result};

/// Images of a forward pass.
const BATCH: usize = 32;

/// How good a model is before and after, in percent: the engine in bf16, where the processor has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// The data set.
    pub data: String,
    /// Images: of the validation split, or of a part that was held back from training; of the test split where that was asked for.
    pub images: usize,
    /// Before.
    pub before_top1: f64,
    /// After, without any training.
    pub after_top1: f64,
}

/// Images with labels, and how good the model is on them.
#[derive(Debug)]
pub struct Judge {
    name: String,
    data: DataSet,
    by: LabelsBy,
    before: f64,
}

/// On what models are judged.
#[derive(Debug)]
pub struct Scored {
    /// What the data set is called.
    pub name: String,
    /// The images: none that a model learns from.
    pub data: DataSet,
    /// How the classes of data and model find each other.
    pub labels_by: LabelsBy,
}

impl Scored {
    /// At most so many images of the validation split, or of what is held back where nothing else is said; `None` of too few images.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn validation(path: &Path, images: usize, labels_by: LabelsBy) -> Result<Option<Scored>> {
        let options = OpenOptions {
            split: Some(Split::Validation),
            ..OpenOptions::default()
        };
        match open(path, &options) {
            Ok(data) => Ok(Some(Scored {
                name: path.display().to_string(),
                data: data.limit(images, 0),
                labels_by,
            })),
            // Of a few images nothing is held back; those without labels have no parts.
            Err(vitesse_data::Error::NoSplit { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Judge {
    /// Of images, if they have labels; `model` is tested first.
    ///
    /// # Errors
    /// Images that cannot be read; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn open(
        scored: Scored,
        model: &Checkpoint,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Option<Judge>> {
        let Scored {
            name,
            data,
            labels_by,
        } = scored;
        let classes = model.spec.num_classes;
        if !(0..data.len()).any(|index| data.label(index).is_some()) {
            return Ok(None);
        }
        let known = ClassNames::of(&model.config, classes);
        let why = if model.config.scores(classes) != Scores::Softmax {
            Some("the model scores each class by itself".to_owned())
        } else if data.class_names().len() > classes {
            Some(format!(
                "it has {}, the model {classes}",
                counted(data.class_names().len(), "class")
            ))
        } else {
            known
                .matched(&data, classes, labels_by)
                .err()
                .map(|error| error.to_string())
        };
        if let Some(why) = why {
            events.say("note", &format!("accuracy is not measured on `{name}`: {why}"));
            return Ok(None);
        }
        let mut judge = Judge {
            name,
            data,
            by: labels_by,
            before: 0.0,
        };
        (judge.before, _) = judge.test(model, stop, events)?;
        Ok(Some(judge))
    }

    /// Of the model that was tested first and of this one.
    ///
    /// # Errors
    /// A model that the engine does not run; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn accuracy(
        &self,
        model: &Checkpoint,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Accuracy> {
        let (after_top1, images) = self.test(model, stop, events)?;
        Ok(Accuracy {
            data: self.name.clone(),
            images,
            before_top1: self.before,
            after_top1,
        })
    }

    fn test(&self, model: &Checkpoint, stop: &AtomicBool, events: &mut dyn Events) -> Result<(f64, usize)> {
        let threads = rayon::current_num_threads();
        let precision = if has_bf16() {
            Precision::Bf16
        } else {
            Precision::F32
        };
        let one = Contestant::new("the model", precision, threads, model)?;
        let budget = Budget {
            time: std::time::Duration::ZERO,
            runs: 1,
        };
        let contest = Contest::new(vec![one], vec![BATCH], budget, threads);
        let matched = contest.matched((&self.data, &self.name), self.by, events)?;
        let found = contest.evaluate(&matched, BATCH, stop, events)?;
        Ok(found
            .first()
            .map_or((f64::NAN, 0), |found| (found.top1, found.images)))
    }
}
