//! What is needed to prune by gradient times weight: gradients over labelled images.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use vitesse_compress::structure::Group;
use vitesse_compress::structure::criteria::calibrate;
use vitesse_compress::structure::criteria::taylor::{Form, Taylor};
use vitesse_data::{OpenOptions, Split, open};
use vitesse_model::Checkpoint;
use vitesse_model::config::Scores;
use vitesse_train::classes::{ClassNames, LabelsBy};
use vitesse_train::learner::Lesson;
use vitesse_train::loss::{Distillation, target_rows};

use super::Settings;
use crate::error::check;
use crate::{Error, Events, Progress, Result};

/// Images whose gradients are added up: ten batches, the least that DepGraph's recipes use.
const IMAGES: usize = 640;
/// Images of a backward pass.
const BATCH: usize = 64;

/// Opens the settings' data set, matches its classes with the model's, and adds the gradients of its images up.
pub(super) fn criterion(
    model: &Checkpoint,
    settings: &Settings,
    groups: &[&Group],
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Taylor> {
    let name = settings.data.clone().unwrap_or_else(|| "shapes".into());
    let options = OpenOptions {
        split: Some(Split::Train),
        ..OpenOptions::default()
    };
    let classes = model.spec.num_classes;
    if model.config.scores(classes) != Scores::Softmax {
        return Err(Error::NotSoftmax(model.spec.architecture.clone()));
    }
    let data = open(&name, &options)?;
    if data.class_names().len() > classes {
        return Err(Error::Classes {
            data: name.display().to_string(),
            asked: data.class_names().len(),
            known: classes,
        });
    }
    let matched = ClassNames::of(&model.config, classes).matched(&data, classes, LabelsBy::default())?;
    matched.note.iter().for_each(|note| events.say("note", note));
    let data = matched.data.limit(IMAGES, settings.seed);
    let prepare = model.preprocess()?;
    let [channels, height, width] = model.spec.input_size();
    let labelled: Vec<usize> = (0..data.len())
        .filter(|&index| data.label(index).is_some())
        .collect();
    if labelled.is_empty() {
        return Err(Error::NoLabels(name.display().to_string()));
    }
    let begun = Progress::of_images(labelled.len());
    let mut done = 0;
    let lessons = labelled.chunks(BATCH).map(|batch| -> Result<Lesson> {
        check(stop)?;
        events.progress(Progress { done, ..begun });
        done += batch.len();
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for &index in batch {
            pixels.extend(prepare.run(&data.load(index)?)?);
            labels.extend(data.label(index));
        }
        let targets = target_rows(&labels, classes, 0.0)?;
        let shape = [labels.len(), channels, height, width];
        Ok(Lesson::new(pixels, shape, targets, classes, &Device::flex())?)
    });
    let objective = Distillation::default();
    let gradients = calibrate::taylor(&model.spec, &model.tensors, groups, &objective, lessons)?;
    Ok(Taylor {
        gradients,
        form: Form::Elementwise,
    })
}
