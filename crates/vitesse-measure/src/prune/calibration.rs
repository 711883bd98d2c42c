//! The images by which a model is pruned and corrected.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse_data::{DataSet, OpenOptions, Preprocess, Split, open};
use vitesse_model::Checkpoint;
use vitesse_model::config::Scores;
use vitesse_train::classes::{ClassNames, LabelsBy};
use vitesse_train::learner::Lesson;
use vitesse_train::loss::target_rows;

use crate::error::check;
use crate::{Error, Events, Result};

/// Images of a forward pass.
const BATCH: usize = 16;
/// Images of a backward pass.
const LESSON: usize = 32;

/// Some training images that can be read, prepared for a model whenever they are asked for: none is kept.
#[derive(Debug)]
pub(super) struct Calibration {
    data: DataSet,
    prepare: Preprocess,
    size: [usize; 3],
    classes: usize,
    name: String,
}

impl Calibration {
    /// At most `count` of the training images of `path`, drawn by `seed`; with `labels_by` their classes are matched with the model's.
    ///
    /// # Errors
    /// A data set that cannot be opened or has no image that can be read; classes that do not match.
    pub(super) fn open(
        path: &Path,
        (count, seed): (usize, u64),
        model: &Checkpoint,
        labels_by: Option<LabelsBy>,
        events: &mut dyn Events,
    ) -> Result<Calibration> {
        let name = path.display().to_string();
        let options = OpenOptions {
            split: Some(Split::Train),
            ..OpenOptions::default()
        };
        let mut data = open(path, &options)?;
        let classes = model.spec.num_classes;
        if let Some(by) = labels_by {
            if model.config.scores(classes) != Scores::Softmax {
                return Err(Error::NotSoftmax(model.spec.architecture.clone()));
            }
            let asked = data.class_names().len();
            if asked > classes {
                return Err(Error::Classes {
                    data: name,
                    asked,
                    known: classes,
                });
            }
            let matched = ClassNames::of(&model.config, classes).matched(&data, classes, by)?;
            matched.note.iter().for_each(|note| events.say("note", note));
            data = matched.data;
            if !(0..data.len()).any(|index| data.label(index).is_some()) {
                return Err(Error::NoLabels(name));
            }
        }
        let calibration = Calibration {
            data: data.limit(count, seed),
            prepare: model.preprocess()?,
            size: model.spec.input_size(),
            classes,
            name,
        };
        match (0..calibration.data.len()).any(|index| calibration.data.load(index).is_ok()) {
            true => Ok(calibration),
            false => Err(Error::NoImages {
                data: calibration.name,
            }),
        }
    }

    /// The data set, as it was named.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    /// All images, `[batch, channels, height, width]` at a time; those that cannot be read are left out.
    pub(super) fn images<'a>(&'a self, stop: &'a AtomicBool) -> impl Iterator<Item = Result<Tensor<4>>> + 'a {
        let all: Vec<usize> = (0..self.data.len()).collect();
        let starts = (0..all.len()).step_by(BATCH);
        starts.filter_map(move |start| {
            let end = (start + BATCH).min(self.data.len());
            let pixels = || -> Result<Vec<f32>> {
                check(stop)?;
                let mut pixels = Vec::new();
                for image in (start..end).filter_map(|index| self.data.load(index).ok()) {
                    pixels.extend(self.prepare.run(&image)?);
                }
                Ok(pixels)
            };
            let [channels, height, width] = self.size;
            match pixels() {
                Ok(pixels) if pixels.is_empty() => None,
                Ok(pixels) => {
                    let shape = [
                        pixels.len() / (channels * height * width),
                        channels,
                        height,
                        width,
                    ];
                    Some(Ok(Tensor::from_data(
                        TensorData::new(pixels, shape),
                        &Device::flex(),
                    )))
                }
                Err(error) => Some(Err(error)),
            }
        })
    }

    /// All labelled images with their labels; those that cannot be read are left out. `done` is told how many have been seen.
    pub(super) fn lessons<'a>(
        &'a self,
        stop: &'a AtomicBool,
        mut done: impl FnMut(usize) + 'a,
    ) -> impl Iterator<Item = Result<Lesson>> + 'a {
        let [channels, height, width] = self.size;
        (0..self.data.len()).step_by(LESSON).filter_map(move |start| {
            let end = (start + LESSON).min(self.data.len());
            let mut lesson = || -> Result<Option<Lesson>> {
                check(stop)?;
                done(start);
                let (mut pixels, mut labels) = (Vec::new(), Vec::new());
                for index in start..end {
                    if let (Some(label), Ok(image)) = (self.data.label(index), self.data.load(index)) {
                        pixels.extend(self.prepare.run(&image)?);
                        labels.push(label);
                    }
                }
                if labels.is_empty() {
                    return Ok(None);
                }
                let targets = target_rows(&labels, self.classes, 0.0)?;
                let shape = [labels.len(), channels, height, width];
                Ok(Some(Lesson::new(
                    pixels,
                    shape,
                    targets,
                    self.classes,
                    &Device::flex(),
                )?))
            };
            lesson().transpose()
        })
    }
}
