//! What can go wrong between a file and a batch. Every message names the file or the key, what was expected, and
//! what was found.

use std::fmt;
use std::path::{Path, PathBuf};

/// The errors of this crate.
#[derive(thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason the system gave.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write `{}`: {reason}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system or the encoder said.
        reason: String,
    },
    /// Bytes that are not an image of a supported format, or a damaged one.
    #[error("`{name}` cannot be decoded: {reason}")]
    Decode {
        /// The file's path, or what the caller called the bytes.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An image larger than the [`DecodeLimits`](crate::DecodeLimits) allow. Known from its header, before decoding.
    #[error("`{name}` is too large: {found}, the limit is {limit}; raise it with `--max-pixels`")]
    TooLarge {
        /// The file's path, or what the caller called the bytes.
        name: String,
        /// What the header promises.
        found: String,
        /// What is allowed.
        limit: String,
    },
    /// Pixels whose number does not fit the stated size.
    #[error("an image of {width} x {height} pixels needs {} bytes of RGB, found {found}", width.saturating_mul(*height).saturating_mul(3))]
    ImageSize {
        /// Pixels a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes given.
        found: usize,
    },
    /// A path that holds no data set, or a damaged one.
    #[error("`{}` is not a usable data set: {reason}", path.display())]
    DataSet {
        /// The folder or file at fault.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A split the data set does not have.
    #[error("`{data}` has no {asked} split, it has: {found}")]
    NoSplit {
        /// The data set.
        data: String,
        /// The split asked for.
        asked: String,
        /// The splits there are.
        found: String,
    },
    /// A setting outside its range.
    #[error("`{key}` is {found}, expected {expected}")]
    Setting {
        /// The setting's name.
        key: &'static str,
        /// The value given.
        found: String,
        /// The values allowed.
        expected: String,
    },
    /// A sample whose label is needed and missing.
    #[error(
        "`{name}` has no label; labels come from class folders, from the column `class_index` of a `labels.csv`, or from a label file"
    )]
    NoLabel {
        /// The sample.
        name: String,
    },
    /// A loader's worker stopped for a reason that is a defect of this program.
    #[error("a loader thread stopped while reading `{name}`: {reason}")]
    Worker {
        /// The sample it was reading.
        name: String,
        /// The panic's message.
        reason: String,
    },
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A stable name for this kind of error, for machines. Text may change, codes may not.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } | Error::Write { .. } => "E_IO",
            Error::Decode { .. } => "E_IMAGE_DECODE",
            Error::TooLarge { .. } => "E_IMAGE_TOO_LARGE",
            Error::DataSet { .. } => "E_DATA_SET",
            Error::NoSplit { .. } => "E_DATA_SPLIT",
            Error::Setting { .. } => "E_SETTING",
            Error::NoLabel { .. } => "E_DATA_LABEL",
            Error::ImageSize { .. } | Error::Worker { .. } => "E_DATA",
        }
    }

    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoSplit { asked, .. } if asked == "test" => Some(
                "keep pictures that nothing learns from in `test/`, beside `train/`, with a folder a class in each; or say `test` in \
                 the column `split` of a `labels.csv`",
            ),
            _ => None,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn write<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error + '_ {
        move |error| Error::Write {
            path: path.to_path_buf(),
            reason: error.to_string(),
        }
    }

    pub(crate) fn decode(name: &str, reason: &(impl ToString + ?Sized)) -> Error {
        Error::Decode {
            name: name.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn data_set(path: &Path, reason: impl Into<String>) -> Error {
        Error::DataSet {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    pub(crate) fn setting(
        key: &'static str,
        found: &(impl ToString + ?Sized),
        expected: impl Into<String>,
    ) -> Error {
        Error::Setting {
            key,
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
