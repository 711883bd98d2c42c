//! Labelled images whose classes are a model's: what a loss is computed of.

use vitesse_data::DataSet;
use vitesse_model::Checkpoint;
use vitesse_model::config::Scores;
use vitesse_train::classes::{ClassNames, LabelsBy};

use crate::{Error, Events, Result};

/// Why labels are needed, for the errors that say what is missing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// What goes by labels, and what to take.
    pub(crate) labels: &'static str,
    /// What follows a loss of classes of which an image has one, and what to take.
    pub(crate) softmax: &'static str,
}

/// The labelled images of `data`, which is called `name`, with the labels of `model`.
///
/// # Errors
/// A model without classes, or that scores each by itself; more classes than the model's, or others; no labels.
pub(crate) fn labelled(
    data: &DataSet,
    name: &str,
    model: &Checkpoint,
    by: LabelsBy,
    need: Need,
    events: &mut dyn Events,
) -> Result<DataSet> {
    let (known, asked) = (model.spec.num_classes, data.class_names().len());
    let architecture = || model.spec.architecture.clone();
    if known == 0 {
        let architecture = architecture();
        return Err(vitesse_train::Error::NoClasses { architecture }.into());
    }
    if model.config.scores(known) != Scores::Softmax {
        return Err(Error::NotSoftmax {
            architecture: architecture(),
            why: need.softmax,
        });
    }
    if asked > known {
        return Err(Error::Classes {
            data: name.to_owned(),
            asked,
            known,
        });
    }
    let matched = ClassNames::of(&model.config, known).matched(data, known, by)?;
    matched.note.iter().for_each(|note| events.say("note", note));
    let data = matched.data;
    let labelled: Vec<usize> = (0..data.len())
        .filter(|&index| data.label(index).is_some())
        .collect();
    if labelled.is_empty() {
        return Err(Error::NoLabels {
            data: name.to_owned(),
            why: need.labels,
        });
    }
    Ok(data.subset(&labelled))
}
