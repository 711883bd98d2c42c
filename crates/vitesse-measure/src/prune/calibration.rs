//! The images by which a model is pruned and corrected.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse_data::{DataSet, OpenOptions, Preprocess, Split, open};
use vitesse_model::Checkpoint;
use vitesse_train::classes::LabelsBy;
use vitesse_train::learner::Lesson;
use vitesse_train::loss::target_rows;
use vitesse_words::counted;

use crate::error::check;
use crate::images::unreadable;
use crate::labelled::{Need, labelled};
use crate::{Error, Events, Result};

/// Why criteria need labels.
const NEED: Need = Need {
    labels: "by which `taylor` and `fisher` choose; take labelled images, or `obs`, which needs none",
    softmax: "and `taylor` and `fisher` follow the loss of classes of which an image has one; take `obs`, which needs no labels",
};
/// Images of a forward pass.
const BATCH: usize = 16;
/// Images of a backward pass.
const LESSON: usize = 32;

/// Some training images, all of which can be read, prepared for a model whenever they are asked for: none is kept.
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
        stop: &AtomicBool,
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
            data = labelled(&data, &name, model, by, NEED, events)?;
        }
        let data = data.limit(count, seed);
        let broken = unreadable(&data, stop, events)?;
        if let Some(first) = broken.first() {
            let sentence = format!(
                "{} of {} cannot be read and {} left out, such as `{}`: {}",
                broken.len(),
                counted(data.len(), "image"),
                if broken.len() == 1 { "is" } else { "are" },
                first.name,
                first.reason
            );
            events.say("note", &sentence);
        }
        let left: Vec<usize> = (0..data.len())
            .filter(|&index| !broken.iter().any(|broken| broken.name == data.name(index)))
            .collect();
        if left.is_empty() {
            return Err(Error::NoImages { data: name });
        }
        Ok(Calibration {
            data: data.subset(&left),
            prepare: model.preprocess()?,
            size: model.spec.input_size(),
            classes,
            name,
        })
    }

    /// The data set, as it was named.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    /// All images, `[batch, channels, height, width]` at a time.
    pub(super) fn images<'a>(&'a self, stop: &'a AtomicBool) -> impl Iterator<Item = Result<Tensor<4>>> + 'a {
        (0..self.data.len()).step_by(BATCH).map(move |start| {
            check(stop)?;
            let end = (start + BATCH).min(self.data.len());
            let mut pixels = Vec::new();
            for index in start..end {
                pixels.extend(self.prepare.run(&self.data.load(index)?)?);
            }
            let [channels, height, width] = self.size;
            let shape = [end - start, channels, height, width];
            Ok(Tensor::from_data(TensorData::new(pixels, shape), &Device::flex()))
        })
    }

    /// All labelled images with their labels. `done` is told how many have been seen.
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
                    if let Some(label) = self.data.label(index) {
                        pixels.extend(self.prepare.run(&self.data.load(index)?)?);
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
