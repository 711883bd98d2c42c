//! Where the weights of a model come from.

use serde::Serialize;
use vitesse_model::Checkpoint;

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
