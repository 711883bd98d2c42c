//! What can go wrong. Every message is a sentence: what was expected, what was found, what to try.

use std::fmt;
use std::path::PathBuf;

use vitesse_words::counted;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The errors of this crate.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, its description or its files.
    #[error(transparent)]
    Model(#[from] vitesse_model::Error),
    /// A method that cannot be set up like this, or not on this model.
    #[error("{method}: {sentence}")]
    Method {
        /// The method's name.
        method: &'static str,
        /// What is wrong and what to try.
        sentence: String,
    },
    /// A pattern that names no module of the model.
    #[error("`{pattern}` names no module of this model; {available}")]
    NoModule {
        /// The pattern.
        pattern: String,
        /// What could have been named, as a sentence.
        available: String,
    },
    /// A pattern that is no regular expression.
    #[error("`{pattern}` cannot be read as a regular expression: {detail}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A pattern that means the convolution of the patches, where it is not meant.
    #[error("`{pattern}` names `{path}` too, the convolution of the patches; {instead}")]
    NamesPatches {
        /// The pattern.
        pattern: String,
        /// The convolution.
        path: String,
        /// What to write.
        instead: String,
    },
    /// An adapter folder that cannot be read or used.
    #[error("the adapter `{path}` cannot be used: {sentence}", path = .path.display())]
    Adapter {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what to try.
        sentence: String,
    },
    /// An adapter that was trained on other weights.
    #[error(
        "the adapter `{path}` was trained on {architectures}weights with SHA-256 {expected}, but `{base}` has {found}: on other weights \
         its answers would be wrong; use the base it was trained on{hint}",
        path = .path.display()
    )]
    WrongBase {
        /// The architecture it was trained on and the base's, where they differ, as the beginning of what it was trained on.
        architectures: Box<str>,
        /// The adapter folder.
        path: PathBuf,
        /// The weights file given.
        base: Box<str>,
        /// The hash recorded in the adapter.
        expected: String,
        /// The hash of the weights given.
        found: String,
        /// What the reason may be.
        hint: &'static str,
    },
    /// Ops that have no counterpart in a plain model.
    #[error(
        "of {}, {} cannot be folded:\n  {}\nKeep them as ops with `--keep-unfoldable`, or run the adapter unmerged: `--adapter` beside `--model`.",
        counted(*total, "op"),
        .reasons.len(),
        .reasons.join("\n  ")
    )]
    Unfoldable {
        /// One sentence for each op.
        reasons: Vec<String>,
        /// All ops of the model.
        total: usize,
    },
    /// Nothing to fold, or nothing to take out.
    #[error("{0}")]
    NothingToDo(String),
    /// An adapter whose map cannot be inverted.
    #[error(
        "{op} cannot be taken out again: its map is singular (condition number {condition:.1e}); reload the base the model \
         was merged from"
    )]
    Singular {
        /// The op.
        op: String,
        /// How far it is from invertible.
        condition: f64,
    },
    /// The operating system refused something.
    #[error("cannot {action} `{path}`: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// A stable code for programs, such as `E_ADAPTER`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Model(error) => error.code(),
            Error::Method { .. } => "E_METHOD",
            Error::NoModule { .. } | Error::Pattern { .. } | Error::NamesPatches { .. } => "E_PATTERN",
            Error::Adapter { .. } => "E_ADAPTER",
            Error::WrongBase { .. } => "E_ADAPTER_BASE",
            Error::Unfoldable { .. } => "E_UNFOLDABLE",
            Error::NothingToDo(_) => "E_NOTHING_TO_DO",
            Error::Singular { .. } => "E_SINGULAR",
            Error::Io { .. } => "E_IO",
        }
    }
}

/// What is wrong with an op, without its number among the ops of a model, of which nobody has heard who named a method or an
/// adapter.
pub(crate) fn without_number(sentence: &str) -> &str {
    let own = sentence
        .strip_prefix("ops[")
        .and_then(|rest| rest.split_once("]: "));
    own.map_or(sentence, |(_, sentence)| sentence)
}

impl From<Error> for vitesse_train::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Model(error) => error.into(),
            other => vitesse_train::Error::Method {
                code: other.code(),
                sentence: other.to_string(),
            },
        }
    }
}
