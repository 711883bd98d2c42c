//! What can go wrong while a model learns or is evaluated. Every message is a sentence: what was expected, what was
//! found, what to try.

use std::fmt;
use std::io;
#[cfg(feature = "train")]
use std::path::Path;
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
    /// The images or the data set.
    #[error(transparent)]
    Data(#[from] vitesse_data::Error),
    /// A classifier from outside this crate.
    #[error("the model cannot classify: {0}")]
    Classifier(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused something.
    #[error("cannot {action} `{path}`: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// A label that the model has no class for.
    #[error(
        "a sample has class {label}, but the model has {} (0 to {}); check that data set and model belong \
         together, or set `num_classes`",
        counted(*classes, "class"),
        .classes.saturating_sub(1)
    )]
    Label {
        /// The label.
        label: usize,
        /// The model's classes.
        classes: usize,
    },
    /// Two matrices that must have one shape.
    #[error("the {what} should have shape {expected:?}, but have {found:?}")]
    Shape {
        /// What has the wrong shape.
        what: &'static str,
        /// The logits' shape.
        expected: [usize; 2],
        /// Its shape.
        found: [usize; 2],
    },
    /// A model that returns features.
    #[error("`{architecture}` has no classes and returns features; give it a head by setting `num_classes`")]
    NoClasses {
        /// The model.
        architecture: String,
    },
    /// A model without a distillation token where one is needed.
    #[error("`{architecture}` has no distillation token; this compares the two tokens of a distilled model")]
    NotDistilled {
        /// The model.
        architecture: String,
    },
    /// Images prepared for another size than the model's.
    #[error(
        "`{architecture}` takes images of {expected:?} (channels, height, width), but they are prepared as {found:?}"
    )]
    InputSize {
        /// The model.
        architecture: String,
        /// What it takes.
        expected: [usize; 3],
        /// What the preprocessing makes.
        found: [usize; 3],
    },
    /// Training and validation sets that do not belong together.
    #[error(
        "the training set has {} and the validation set {validation}, or they have other names; both must \
         have the same classes",
        counted(*train, "class")
    )]
    Classes {
        /// Classes of the training set.
        train: usize,
        /// Classes of the validation set.
        validation: usize,
    },
    /// Data whose classes the model does not know by their names.
    #[error(
        "the data's classes do not fit the model's: {unknown} are none of its {classes} classes, or none that can be told from \
         another; it has {known} …; name the data's classes as the model does, or take them by position with `--labels-by index`"
    )]
    ClassNames {
        /// Names of the data that mean none of the model's classes, or one of several.
        unknown: String,
        /// Some of the model's names.
        known: String,
        /// The model's classes.
        classes: usize,
    },
    /// A class that should give some images and has none.
    #[error("`{data}` has no image of the class `{class}` to learn from, so `data.shots` cannot take any")]
    NoShots {
        /// The data set.
        data: String,
        /// The class.
        class: String,
    },
    /// Nothing to work on.
    #[error("{what} is empty; check the path, the split and the limit")]
    Empty {
        /// What is empty.
        what: &'static str,
    },
    /// A data set in which no image could be read.
    #[error("of {}, none can be read; the first says: {first}", counted(*samples, "image"))]
    NothingReadable {
        /// How many images there are.
        samples: usize,
        /// Why the first one cannot be read.
        first: String,
    },
    /// Distillation without a teacher.
    #[error("distillation needs a teacher; set `distill.teacher`, or `distill.kind = \"none\"`")]
    TeacherMissing,
    /// A value that an objective reads and that no model has.
    #[error("{0}; the objective is for models that have one there")]
    NotRecorded(String),
    /// A teacher that cannot teach this student.
    #[error("`{teacher}` cannot be the teacher: {reason}")]
    Teacher {
        /// The teacher.
        teacher: String,
        /// Why not, and what to try.
        reason: String,
    },

    /// A value of a recipe that cannot be used.
    #[error("recipe: `{key}` is {found}, expected {expected}")]
    Recipe {
        /// The key, with its table: `train.epochs`.
        key: String,
        /// Its value.
        found: String,
        /// What would be accepted, and what to try.
        expected: String,
    },
    /// A key or table that no recipe has.
    #[error("`{name}`: unknown key `{key}`{hint}")]
    RecipeKey {
        /// The file.
        name: String,
        /// The key, with its table.
        key: String,
        /// Where or how it was probably meant.
        hint: String,
    },
    /// A recipe that is not TOML, or has a value of the wrong type.
    #[error("`{name}`: {detail}")]
    RecipeSyntax {
        /// The file.
        name: String,
        /// What is wrong, and where.
        detail: String,
    },

    /// A run folder that holds something already.
    #[error(
        "`{path}` exists already; continue its run with `--resume`, replace it with `--force`, or choose another folder",
        path = .path.display()
    )]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is to be replaced and holds no run.
    #[error(
        "`{path}` is not replaced, not even with `--force`, because it holds no recipe.toml and so is not a run; \
         choose another folder",
        path = .path.display()
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A run that cannot be continued.
    #[error("cannot resume `{path}`: {reason}", path = .path.display())]
    Resume {
        /// The run folder, or the state.
        path: PathBuf,
        /// Why not, and what to try.
        reason: String,
    },
    /// A step whose loss or gradients are not numbers.
    #[error("{what} is {value}")]
    NotFinite {
        /// The loss, or the norm of the gradients.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// Training has diverged.
    #[error(
        "{what} is {value} at step {step} (epoch {epoch}, learning rate {lr:.3e}); the batch was {files}; try a lower \
         learning rate, a longer warm-up or `optim.clip_grad`"
    )]
    Diverged {
        /// The loss, or the norm of the gradients.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The optimiser step, from 0.
        step: usize,
        /// The epoch, from 0.
        epoch: usize,
        /// The learning rate.
        lr: f64,
        /// Names of the samples, the first few.
        files: String,
    },
    /// Another process of the team cannot go on.
    #[error("process {rank} cannot go on, for the reason it has given")]
    Peer {
        /// Which one.
        rank: usize,
    },
    /// Another process of the team has ended, or does not answer in the time that is left.
    #[error("another process has ended, or does not answer")]
    Lost,
    /// Processes that should have the same have not.
    #[error(
        "process {rank} does not have the same {what} as process 0; all must be one program with one recipe, and find the \
         same data, checkpoints and run folder"
    )]
    Apart {
        /// What differs.
        what: &'static str,
        /// The first process that has something else.
        rank: usize,
    },
    /// MPI cannot be used.
    #[error("{0}")]
    Mpi(String),
    /// What a method's crate says: of its settings, of the model it does not fit, of what it cannot end.
    #[error("{sentence}")]
    Method {
        /// A stable code for programs, such as `E_METHOD`.
        code: &'static str,
        /// What is wrong and what to try.
        sentence: String,
    },
    /// Stopped from outside, everything saved that could be.
    #[error("interrupted")]
    Interrupted,
    /// The tensor library returned something it should not; a defect of this program.
    #[error("the tensor backend failed: {0}")]
    Backend(String),
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
            Error::Data(error) => error.code(),
            Error::Io { .. } => "E_IO",
            Error::Label { .. } | Error::ClassNames { .. } => "E_DATA_LABEL",
            Error::NoClasses { .. } => "E_MODEL_NO_CLASSES",
            Error::InputSize { .. } => "E_MODEL_INPUT",
            Error::Empty { .. } | Error::NoShots { .. } => "E_DATA_EMPTY",
            Error::NothingReadable { .. } => "E_DATA_UNREADABLE",
            Error::TeacherMissing => "E_USAGE",
            Error::Teacher { .. } => "E_TEACHER",
            Error::Recipe { .. } | Error::RecipeKey { .. } | Error::RecipeSyntax { .. } => "E_RECIPE",
            Error::RunExists { .. } | Error::NotARun { .. } => "E_EXISTS",
            Error::Resume { .. } => "E_RESUME",
            Error::Diverged { .. } => "E_DIVERGED",
            Error::Peer { .. } => "E_PEER",
            Error::Lost => "E_PEER_LOST",
            Error::Apart { .. } => "E_PEER_DIFFERS",
            Error::Mpi(_) => "E_MPI",
            Error::Method { code, .. } => code,
            Error::Interrupted => "E_INTERRUPTED",
            Error::Classifier(_)
            | Error::Shape { .. }
            | Error::NotDistilled { .. }
            | Error::Classes { .. }
            | Error::NotFinite { .. }
            | Error::NotRecorded(_)
            | Error::Backend(_) => "E_TRAIN",
        }
    }
}

#[cfg(feature = "train")]
impl Error {
    /// Turns an [`io::Error`] into ours: `.map_err(Error::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn recipe(key: &str, found: &impl ToString, expected: impl Into<String>) -> Error {
        Error::Recipe {
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
