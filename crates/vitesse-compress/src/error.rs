//! What can go wrong. Every message is a sentence: what was expected, what was found, what to try.

use std::fmt;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The errors of this crate.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, its description or its files.
    #[error(transparent)]
    Model(#[from] vitesse_model::Error),
    /// What learning or gradients said.
    #[error(transparent)]
    Train(#[from] vitesse_train::Error),
    /// Units that the model does not have, or a choice that leaves none where one must be.
    #[error("{0}")]
    Selection(String),
    /// A model, or a selection, for which something has no meaning.
    #[error("{0}")]
    Unsuited(String),
    /// What somebody else's count of costs said.
    #[error("{0}")]
    Cost(Box<dyn std::error::Error + Send + Sync>),
    /// The nameless file in which streams of calibration images lie.
    #[error(
        "the activations of the calibration images could not be kept in a temporary file: {0}; free some space, or let TMPDIR name another folder"
    )]
    Scratch(std::io::Error),
    /// A criterion that cannot score these units, or lacks what it scores by.
    #[error("{criterion}: {sentence}")]
    Criterion {
        /// The criterion's name.
        criterion: &'static str,
        /// What is wrong and what to try.
        sentence: String,
    },
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Error> for vitesse_train::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Model(error) => error.into(),
            Error::Train(error) => error,
            other => vitesse_train::Error::Method {
                code: other.code(),
                sentence: other.to_string(),
            },
        }
    }
}

impl Error {
    /// A stable code for programs, such as `E_SELECTION`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Model(error) => error.code(),
            Error::Train(error) => error.code(),
            Error::Selection(_) => "E_SELECTION",
            Error::Unsuited(_) => "E_UNSUITED",
            Error::Cost(_) => "E_COST",
            Error::Scratch(_) => "E_IO",
            Error::Criterion { .. } => "E_CRITERION",
        }
    }
}
