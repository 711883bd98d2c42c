//! Where a model and its weights come from.

use serde::Serialize;
use vitesse_model::{Checkpoint, zoo};

use crate::{Error, Result};

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// A file.
    Loaded,
    /// Drawn for this run; nothing has been learned.
    Fresh,
}

impl Weights {
    /// Those of `checkpoint`.
    pub fn of(checkpoint: &Checkpoint) -> Weights {
        if checkpoint.source.weights.is_some() {
            Weights::Loaded
        } else {
            Weights::Fresh
        }
    }
}

/// Where the weights of a checkpoint come from, for errors.
pub fn origin(checkpoint: &Checkpoint) -> String {
    let weights = &checkpoint.source.weights;
    weights
        .as_ref()
        .map_or_else(|| "fresh weights".to_owned(), |path| path.display().to_string())
}

/// Refuses a `model`, of which there is no file or folder, that does not name an architecture either, or names one with its
/// published weights.
///
/// # Errors
/// [`Error::UnknownModel`], [`Error::NoWeights`].
pub fn refuse_what_is_no_name(model: &str) -> Result<()> {
    if let Err(error) = zoo::get(model) {
        return Err(Error::UnknownModel {
            model: model.to_owned(),
            reason: error.to_string(),
        });
    }
    match model.split_once('.') {
        Some((name, tag)) => Err(Error::NoWeights {
            name: name.to_owned(),
            tag: tag.to_owned(),
        }),
        None => Ok(()),
    }
}
