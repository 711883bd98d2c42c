//! The one error type of the crate.
//!
//! Every variant is one violation, and its message is a sentence a person can act on: which file, which tensor or
//! key, what was expected, what was found, what to try. [`Error::code`] is stable and meant for programs.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use vitesse_words::count;

use crate::tensors::DType;

/// What to do about bytes that cannot be what was written.
const DAMAGED: &str = "the file is damaged or incomplete, fetch or save it again";

/// What to do about a `.pth` file that holds more than weights. PyTorch would run it, so trust comes first.
const RESAVE: &str = "if you trust where it comes from (PyTorch runs what it asks for), save the weights alone, in Python: \
                      `torch.save(torch.load(old, weights_only=False)['model'], new)`";

/// The result of anything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a model, its description or its files.
#[derive(thiserror::Error)]
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
    #[error("unknown architecture `{name}`{}", known_architectures(.similar))]
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
    #[error("`{file}`: tensor `{name}` should hold {expected}, but is of type {found}")]
    TensorType {
        /// The checkpoint file.
        file: String,
        /// The tensor.
        name: String,
        /// What it should hold.
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
    /// Rows were asked for that a tensor does not have.
    #[error("a tensor of shape {shape:?} has no rows {rows:?}, counted from 0")]
    TensorRows {
        /// The shape.
        shape: Vec<usize>,
        /// The rows asked for.
        rows: Range<usize>,
    },
    /// A tensor of a file was given other values than it takes.
    #[error("`{path}`: the tensor `{name}` {detail}", path = .path.display())]
    TensorValues {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it takes and what it was given.
        detail: String,
    },
    /// Two tensors would have one name.
    #[error("two tensors would be named `{name}`; names must be unique")]
    TensorDuplicate {
        /// The name.
        name: String,
    },

    /// A safetensors file shorter than the eight bytes that give the length of its header.
    #[error("`{path}` is {found} bytes long, too short for a safetensors file; {DAMAGED}", path = .path.display())]
    HeaderMissing {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// The header is longer than the file, or than any header may be.
    #[error(
        "`{path}` announces a header of {found} bytes where at most {limit} are possible; it is not a safetensors \
         file, or {DAMAGED}",
        path = .path.display()
    )]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// The length announced.
        found: u64,
        /// The length that the file, or the format, allows.
        limit: u64,
    },
    /// A file to be written would have a longer header than any may have.
    #[error(
        "`{path}` cannot be written: its header, the names and shapes of tensors and the metadata, would take {found} bytes, and \
         safetensors allows {limit}; split it into several files",
        path = .path.display()
    )]
    HeaderRoom {
        /// The file.
        path: PathBuf,
        /// The length that the header would have.
        found: u64,
        /// The length that the format allows.
        limit: u64,
    },
    /// The header is not the JSON object it should be.
    #[error("the header of `{path}` cannot be read: {detail}; {DAMAGED}", path = .path.display())]
    HeaderSyntax {
        /// The file.
        path: PathBuf,
        /// What the JSON parser said, with line and column.
        detail: String,
    },
    /// A key stands twice in the header.
    #[error("the header of `{path}` has the key `{name}` twice; {DAMAGED}", path = .path.display())]
    HeaderDuplicate {
        /// The file.
        path: PathBuf,
        /// The tensor or metadata key.
        name: String,
    },
    /// A tensor has an element type this crate does not know.
    #[error(
        "`{path}`: tensor `{name}` has type `{found}`; the types read are {known}; convert it to one of them first",
        path = .path.display(),
        known = DType::ALL.map(DType::name).join(", ")
    )]
    HeaderType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type it claims.
        found: String,
    },
    /// A tensor's offsets do not agree with its shape and type.
    #[error(
        "`{path}`: tensor `{name}` of type {dtype} and shape {shape:?} takes {expected} bytes, but its offsets span \
         {found}; {DAMAGED}",
        path = .path.display()
    )]
    HeaderSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that shape and type take.
        expected: String,
        /// Bytes between its offsets.
        found: usize,
    },
    /// A tensor's offsets are in the wrong order or lie behind the end of the file.
    #[error(
        "`{path}`: tensor `{name}` lies at bytes {begin} to {end} of a data section of {length}; {DAMAGED}",
        path = .path.display()
    )]
    HeaderOffsets {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First byte claimed.
        begin: usize,
        /// End of the bytes claimed.
        end: usize,
        /// Bytes there are.
        length: usize,
    },
    /// Two tensors claim the same bytes.
    #[error("`{path}`: tensors `{first}` and `{second}` overlap; {DAMAGED}", path = .path.display())]
    HeaderOverlap {
        /// The file.
        path: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// Bytes that belong to no tensor.
    #[error(
        "`{path}`: bytes {begin} to {end} of the data section belong to no tensor; {DAMAGED}",
        path = .path.display()
    )]
    HeaderHole {
        /// The file.
        path: PathBuf,
        /// First byte of the hole.
        begin: usize,
        /// Its end.
        end: usize,
    },

    /// A file that is neither form of what `torch.save` writes, or one of them in a way that is not read.
    #[error("`{path}` cannot be read as a PyTorch file: {detail}", path = .path.display())]
    PthFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        detail: String,
    },
    /// The pickle of a `.pth` file breaks off or contradicts itself.
    #[error("the pickle in `{path}` is broken at byte {at}: {detail}; {DAMAGED}", path = .path.display())]
    PickleSyntax {
        /// The file.
        path: PathBuf,
        /// The byte of the pickle.
        at: usize,
        /// What is wrong there.
        detail: &'static str,
    },
    /// An instruction that `torch.save` has no use for when it writes tensors.
    #[error(
        "the pickle in `{path}` uses the instruction {opcode:#04x} at byte {at}, which is not needed for tensors and \
         plain containers and is refused; {RESAVE}",
        path = .path.display()
    )]
    PickleOpcode {
        /// The file.
        path: PathBuf,
        /// The byte of the pickle.
        at: usize,
        /// The instruction.
        opcode: u8,
    },
    /// The file is larger in some respect than any checkpoint of weights.
    #[error("the pickle in `{path}` has more than {limit} {what}; {RESAVE}", path = .path.display())]
    PickleLimit {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A tensor of a `.pth` file does not fit its storage.
    #[error("`{path}`: tensor `{name}` {detail}; {DAMAGED}", path = .path.display())]
    PthTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The index of a checkpoint in several files is no index, or does not agree with the files.
    #[error("`{path}` is no index that can be followed: {detail}", path = .path.display())]
    Shards {
        /// The index.
        path: PathBuf,
        /// What is wrong and what to do.
        detail: String,
    },
    /// A folder or file of which it is not clear what should be read, or that holds no weights of a model.
    #[error("cannot load `{path}`: {detail}", path = .path.display())]
    Weights {
        /// The folder or file.
        path: PathBuf,
        /// Why, and what to do.
        detail: String,
    },
    /// A repository on the Hugging Face hub where a folder or file is expected.
    #[error(
        "there is no file or folder `{name}`, and nothing is fetched from the Hugging Face hub; fetch the folder first, with \
         `hf download {repository} --local-dir {folder}`, and give that",
        name = .name.display()
    )]
    Hub {
        /// What was given.
        name: PathBuf,
        /// The repository that is meant.
        repository: String,
        /// What its folder may be called.
        folder: String,
    },
    /// A `.pth` file without a state dict.
    #[error(
        "`{path}` holds no state dict; expected a dict of tensors, found {found}. In Python, save the weights alone: \
         `torch.save(model.state_dict(), new)`",
        path = .path.display()
    )]
    PthNoTensors {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file whose weights stand where neither timm nor we would look.
    #[error(
        "`{path}` has no weights under {expected}, nor at its top level; it holds {found}; choose with `--key NAME`",
        path = .path.display()
    )]
    StateDictChoice {
        /// The file.
        path: PathBuf,
        /// The keys looked under.
        expected: String,
        /// The state dicts that are there.
        found: String,
    },
    /// The state dict asked for is not there.
    #[error("`{path}` has no tensors under `{key}`; it holds {found}", path = .path.display())]
    StateDictKey {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// What is there.
        found: String,
    },
    /// A file with tensors of a network and others, or of several networks.
    #[error(
        "`{path}` holds more than the tensors of one network: such stand under {found}; choose with `--key NAME`, such as \
         `--key {example}`",
        path = .path.display()
    )]
    Wrapped {
        /// The file.
        path: PathBuf,
        /// The prefixes under which networks stand.
        found: String,
        /// One of them, as it would be asked for.
        example: String,
    },

    /// A checkpoint whose images cannot be prepared.
    #[error("images cannot be prepared for `{architecture}`: {reason}")]
    Preprocess {
        /// The model.
        architecture: String,
        /// What is wrong with its `pretrained_cfg`.
        reason: String,
    },
    /// A preparation of images that is out of its range.
    #[error(transparent)]
    Data(#[from] vitesse_data::Error),

    /// A position table that is not `[1, rows, dim]`, or has no row for a patch.
    #[error(
        "a position table should have shape [1, prefix + patches, dim], but has {found:?} with {prefix} prefix rows"
    )]
    PosEmbedShape {
        /// The shape found.
        found: Vec<usize>,
        /// The prefix rows asked for.
        prefix: usize,
    },
    /// The rows of a position table do not make up the grid they should.
    #[error(
        "a position table of {rows} rows, {prefix} of them for prefix tokens, should cover {expected}; name the grid \
         the table was trained on"
    )]
    PosEmbedGrid {
        /// All rows.
        rows: usize,
        /// Rows for prefix tokens.
        prefix: usize,
        /// The grid given, or a square one.
        expected: String,
    },
    /// An op chooses tokens by their scores, and one of the scores is no number.
    #[error(
        "`{architecture}`: the scores by which tokens stay at `{op}` are no numbers (NaN); the weights before it, or its own, are damaged or \
         diverged in training"
    )]
    TokenScores {
        /// The prefix of the op's tensors.
        op: String,
        /// The model.
        architecture: String,
    },
    /// A position table made for another number of prefix tokens, such as a plain model's in a distilled one.
    #[error(
        "a position table of {rows} rows fits {likely} prefix tokens, but the model has {prefix} (a plain model has one, \
         the class token; a distilled one has two); load it as the architecture it was trained as"
    )]
    PosEmbedPrefix {
        /// All rows.
        rows: usize,
        /// Prefix tokens of the model.
        prefix: usize,
        /// Prefix tokens with which the rows make up the grid.
        likely: usize,
    },
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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
            Error::TensorShape { .. } | Error::TensorRows { .. } => "E_TENSOR_SHAPE",
            Error::TensorBytes { .. } | Error::TensorValues { .. } => "E_TENSOR_BYTES",
            Error::TensorDuplicate { .. } => "E_TENSOR_DUPLICATE",
            Error::HeaderMissing { .. }
            | Error::HeaderLength { .. }
            | Error::HeaderRoom { .. }
            | Error::HeaderSyntax { .. }
            | Error::HeaderDuplicate { .. } => "E_SAFETENSORS_HEADER",
            Error::HeaderType { .. } => "E_SAFETENSORS_TYPE",
            Error::HeaderSize { .. }
            | Error::HeaderOffsets { .. }
            | Error::HeaderOverlap { .. }
            | Error::HeaderHole { .. } => "E_SAFETENSORS_LAYOUT",
            Error::PthFormat { .. } => "E_PTH_FORMAT",
            Error::PickleSyntax { .. } => "E_PTH_PICKLE",
            Error::PickleOpcode { .. } => "E_PTH_REFUSED",
            Error::PickleLimit { .. } => "E_PTH_LIMIT",
            Error::PthTensor { .. } => "E_PTH_TENSOR",
            Error::Shards { .. } => "E_CKPT_SHARDS",
            Error::Weights { .. } => "E_CKPT_FILE",
            Error::Hub { .. } => "E_MODEL_UNKNOWN",
            Error::PthNoTensors { .. } => "E_PTH_EMPTY",
            Error::StateDictChoice { .. } | Error::StateDictKey { .. } | Error::Wrapped { .. } => {
                "E_CKPT_KEY"
            }
            Error::Preprocess { .. } => "E_MODEL_INPUT",
            Error::Data(error) => error.code(),
            Error::PosEmbedShape { .. } => "E_POS_EMBED_SHAPE",
            Error::PosEmbedGrid { .. } => "E_POS_EMBED_GRID",
            Error::PosEmbedPrefix { .. } => "E_POS_EMBED_PREFIX",
            Error::TokenScores { .. } => "E_TOKEN_SCORES",
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
        )?;
        let cut = |m: &Misshaped| {
            let inner = [".attn.qkv.weight", ".mlp.fc1.weight"];
            inner.iter().any(|end| m.name.ends_with(end)) && m.found.first() < m.expected.first()
        };
        if self.misshaped.iter().any(cut) {
            write!(
                f,
                " Of a model that was cut smaller, say how many heads its blocks have, with `--num-heads`."
            )?;
        }
        Ok(())
    }
}

fn did_you_mean(similar: &[String]) -> String {
    match similar {
        [] => String::new(),
        names => format!("; did you mean `{}`?", names.join("`, `")),
    }
}

fn known_architectures(similar: &[String]) -> String {
    match similar {
        [] => format!(
            "; none of the {} known ones is called like it",
            count(crate::zoo::names().count() as u64)
        ),
        names => did_you_mean(names),
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
