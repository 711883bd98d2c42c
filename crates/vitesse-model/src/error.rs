//! The one error type of the crate.
//!
//! Every variant is one violation, and its message is a sentence a person can act on: which file, which tensor or
//! key, what was expected, what was found, what to try. [`Error::code`] is stable and meant for programs.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::tensors::DType;

/// The result of anything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a model, its description or its files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read, write or rename something.
    #[error("cannot {action} `{path}`: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `replace`.
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A folder to be written exists already and replacing it was not asked for, or is not safe.
    #[error("`{path}` exists already; {hint}", path = .path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },

    /// No architecture of this name is known.
    #[error("unknown architecture `{name}`{}", did_you_mean(.similar))]
    UnknownArchitecture {
        /// The name asked for.
        name: String,
        /// The known names closest to it, best first.
        similar: Vec<String>,
    },
    /// A configuration file is not JSON at all.
    #[error("`{path}` is not valid JSON: {detail}", path = .path.display())]
    ConfigSyntax {
        /// The file.
        path: PathBuf,
        /// What the JSON parser said, with line and column.
        detail: String,
    },
    /// A key of a configuration file is missing or holds something unusable.
    #[error("`{path}`: key `{key}` should be {expected}, but is {found}", path = .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, with dots between the levels: `pretrained_cfg.mean`.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What is there, or `missing`.
        found: String,
    },
    /// The tensors of a checkpoint are not the tensors of its model.
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
    /// A tensor of a checkpoint has an element type its model cannot use.
    #[error("`{file}`: tensor `{name}` should be of type {expected}, but is {found}")]
    TensorType {
        /// The checkpoint file.
        file: String,
        /// The tensor.
        name: String,
        /// The types that would do.
        expected: String,
        /// The type it has.
        found: DType,
    },
    /// A description that contradicts itself, or asks a model for what its kind does not have.
    #[error("{0}")]
    InvalidSpec(String),
    /// Something well-formed that this crate does not do.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why it is refused and what to do instead.
        why: String,
    },

    /// A tensor asked for by name is not there.
    #[error("there is no tensor `{name}`{}", did_you_mean(.similar))]
    TensorMissing {
        /// The name asked for.
        name: String,
        /// The present names closest to it, best first.
        similar: Vec<String>,
    },
    /// A tensor has another shape than the model gives it.
    #[error("tensor `{name}` should have shape {expected:?}, but has {found:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// The shape required.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A tensor was to be made from the wrong number of values.
    #[error("a tensor of shape {shape:?} and type {dtype} takes {expected} bytes, but was given {found}")]
    TensorBytes {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Vec<usize>,
        /// Bytes that shape and type take; `more than fit in memory` when their product overflows.
        expected: String,
        /// Bytes given.
        found: usize,
    },
    /// Two tensors would have one name.
    #[error("two tensors would be named `{name}`; names must be unique")]
    TensorDuplicate {
        /// The name.
        name: String,
    },
}

impl Error {
    /// A stable code for programs, such as `E_CKPT_SHAPE`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "E_IO",
            Error::Exists { .. } => "E_EXISTS",
            Error::UnknownArchitecture { .. } => "E_ARCH_UNKNOWN",
            Error::ConfigSyntax { .. } => "E_CONFIG_SYNTAX",
            Error::Config { .. } => "E_CONFIG_KEY",
            Error::Mismatch(m) if m.missing.is_empty() && m.unexpected.is_empty() => "E_CKPT_SHAPE",
            Error::Mismatch(_) => "E_CKPT_TENSORS",
            Error::TensorType { .. } => "E_TENSOR_TYPE",
            Error::InvalidSpec(_) => "E_SPEC",
            Error::Unsupported { .. } => "E_UNSUPPORTED",
            Error::TensorMissing { .. } => "E_TENSOR_MISSING",
            Error::TensorShape { .. } => "E_TENSOR_SHAPE",
            Error::TensorBytes { .. } => "E_TENSOR_BYTES",
            Error::TensorDuplicate { .. } => "E_TENSOR_DUPLICATE",
        }
    }

    /// A description that contradicts itself, in a sentence.
    pub fn invalid_spec(sentence: impl Into<String>) -> Error {
        Error::InvalidSpec(sentence.into())
    }

    /// A tensor of `file` whose element type is not `expected`.
    pub(crate) fn dtype(file: &str, name: &str, expected: &str, found: DType) -> Error {
        Error::TensorType {
            file: file.into(),
            name: name.into(),
            expected: expected.into(),
            found,
        }
    }

    /// The report of a strict load of `file`; `misshaped` holds (name, expected shape, found shape).
    pub(crate) fn mismatch(
        file: &str,
        architecture: &str,
        missing: Vec<String>,
        unexpected: Vec<String>,
        misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    ) -> Error {
        let misshaped = misshaped
            .into_iter()
            .map(|(name, expected, found)| Misshaped {
                name,
                expected,
                found,
            })
            .collect();
        Error::Mismatch(Box::new(Mismatch {
            file: file.into(),
            architecture: architecture.into(),
            missing,
            unexpected,
            misshaped,
        }))
    }

    /// Turns an [`io::Error`] into ours: `.map_err(Error::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// How the tensors of a checkpoint differ from the tensors its model has: what a strict load reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The checkpoint file.
    pub file: String,
    /// The architecture of the model.
    pub architecture: String,
    /// Tensors the model has and the file lacks.
    pub missing: Vec<String>,
    /// Tensors the file has and the model lacks.
    pub unexpected: Vec<String>,
    /// Tensors both have, in different shapes.
    pub misshaped: Vec<Misshaped>,
}

/// One tensor whose shape in the file is not the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshaped {
    /// The tensor.
    pub name: String,
    /// Its shape in the model.
    pub expected: Vec<usize>,
    /// Its shape in the file.
    pub found: Vec<usize>,
}

/// How many tensors of each kind a [`Mismatch`] spells out before it counts the rest.
const SHOWN: usize = 10;

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T>(
            f: &mut fmt::Formatter<'_>,
            what: &str,
            items: &[T],
            show: impl Fn(&T) -> String,
        ) -> fmt::Result {
            if items.is_empty() {
                return Ok(());
            }
            write!(f, "\n  {} {what}:", items.len())?;
            for item in items.iter().take(SHOWN) {
                write!(f, "\n    {}", show(item))?;
            }
            match items.len().saturating_sub(SHOWN) {
                0 => Ok(()),
                more => write!(f, "\n    … and {more} more"),
            }
        }
        write!(
            f,
            "`{}` does not hold the tensors of `{}`",
            self.file, self.architecture
        )?;
        list(f, "missing", &self.missing, String::clone)?;
        list(f, "unexpected", &self.unexpected, String::clone)?;
        list(f, "of another shape", &self.misshaped, |m| {
            format!("{}: expected {:?}, found {:?}", m.name, m.expected, m.found)
        })?;
        write!(
            f,
            "\n  Check that the architecture, the number of classes and the input size are those of the file."
        )
    }
}

fn did_you_mean(similar: &[String]) -> String {
    match similar {
        [] => String::new(),
        names => format!("; did you mean `{}`?", names.join("`, `")),
    }
}

/// The (at most three) candidates a person may have meant by `name`, best first.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(name, c), c))
        .filter(|(score, _)| *score > 0.8)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, c)| c.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_ten_and_counts_the_rest() {
        let missing = (0..13).map(|i| format!("blocks.{i}.norm1.weight")).collect();
        let misshaped = vec![("head.weight".to_owned(), vec![10, 192], vec![1000, 192])];
        let file = "model.safetensors";
        let error = Error::mismatch(file, "deit_tiny_patch16_224", missing, vec![], misshaped.clone());
        let text = error.to_string();
        assert!(text.contains("`model.safetensors` does not hold the tensors of `deit_tiny_patch16_224`"));
        assert!(text.contains("13 missing:") && text.contains("… and 3 more"));
        assert!(text.contains("blocks.9.norm1.weight") && !text.contains("blocks.10.norm1.weight"));
        assert!(!text.contains("unexpected"));
        assert!(text.contains("head.weight: expected [10, 192], found [1000, 192]"));
        assert_eq!(error.code(), "E_CKPT_TENSORS");
        assert_eq!(
            Error::mismatch(file, "x", vec![], vec![], misshaped).code(),
            "E_CKPT_SHAPE"
        );
    }

    #[test]
    fn nearest_names_come_first_and_strangers_never() {
        let known = [
            "deit_tiny_patch16_224",
            "deit_small_patch16_224",
            "swin_tiny_patch4_window7_224",
        ];
        let near = nearest("deit_tinny_patch16_224", known);
        assert_eq!(near.first().map(String::as_str), Some("deit_tiny_patch16_224"));
        assert!(nearest("zzzz", known).is_empty());
    }
}
