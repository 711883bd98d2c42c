//! What can go wrong.

use std::fmt;

/// Why a model cannot be compiled or run.
#[derive(thiserror::Error)]
pub enum Error {
    /// The spec and the tensors do not fit, or describe no possible model.
    #[error(transparent)]
    Model(#[from] vitesse_model::Error),
    /// The engine has no plan for such a model.
    #[error("{0}")]
    Unsupported(String),
    /// `VITESSE_ISA` names no instruction set, or one that this processor lacks.
    #[error("{0}")]
    Isa(String),
    /// The system gives no more threads.
    #[error("cannot start {}: {source}", vitesse_words::counted(*threads, "thread"))]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// Images of another size than the model's.
    #[error(
        "{} of {channels} x {height} x {width} should be {expected} numbers, but there are {found}",
        vitesse_words::counted(*images, "image")
    )]
    Input {
        /// How many images were announced.
        images: usize,
        /// The model's channels.
        channels: usize,
        /// The model's height.
        height: usize,
        /// The model's width.
        width: usize,
        /// How many numbers that makes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// A stable name for this kind of error, for machines. Text may change, codes may not.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Model(error) => error.code(),
            Error::Unsupported(_) => "E_MODEL_UNSUPPORTED",
            Error::Isa(_) => "E_USAGE",
            Error::Threads { .. } => "E_THREADS",
            Error::Input { .. } => "E_TENSOR_SHAPE",
        }
    }
}

/// The result of compiling or running.
pub type Result<T> = std::result::Result<T, Error>;
