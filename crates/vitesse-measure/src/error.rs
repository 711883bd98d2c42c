//! What can go wrong while a model is measured. Every message is a sentence: what was expected, what was found, what to
//! try.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vitesse_model::{DType, ModelSpec};
use vitesse_words::counted;

use crate::proof::Difference;

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
    /// The engine.
    #[error(transparent)]
    Engine(#[from] vitesse_engine::Error),
    /// Evaluation or training.
    #[error(transparent)]
    Train(#[from] vitesse_train::Error),
    /// A method of adaptation, an adapter, or a merge.
    #[error(transparent)]
    Adapt(#[from] vitesse_adapt::Error),
    /// Pruning. In a box, since it holds errors of training, which are as large as this.
    #[error(transparent)]
    Compress(Box<vitesse_compress::Error>),
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
    /// The system gives no more threads.
    #[error("cannot start {}: {reason}", counted(*threads, "thread"))]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// What the system says.
        reason: String,
    },
    /// A model that is neither there nor known.
    #[error("there is no file or folder `{model}`, and {reason}")]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// What the list of architectures says.
        reason: String,
    },
    /// A model that is not there, by the name of its published weights.
    #[error(
        "there is no file or folder `{name}.{tag}`, and the weights `{tag}` of `{name}` are not built in"
    )]
    NoWeights {
        /// The architecture.
        name: String,
        /// The weights.
        tag: String,
    },
    /// A number format that what computes the model does not have.
    #[error("the network computes in f32 only, not in {0}")]
    NetworkPrecision(vitesse_engine::Precision),
    /// Probabilities of both heads, of a model that has none of all classes together.
    #[error(
        "the mean of the heads' probabilities (`--joint softmax`) is for classes of which an image has one, and the scores of `{architecture}` \
         are each by itself"
    )]
    JointSoftmax {
        /// The model.
        architecture: String,
    },
    /// A data set that asks for more classes than a model knows.
    #[error("`{data}` has {}, the model {known}", counted(*asked, "class"))]
    Classes {
        /// The data set.
        data: String,
        /// Its classes.
        asked: usize,
        /// The model's.
        known: usize,
    },
    /// The same of one of several models.
    #[error("the data set has {}, `{model}` {known}", counted(*asked, "class"))]
    ClassesOf {
        /// The model.
        model: String,
        /// The data set's classes.
        asked: usize,
        /// The model's.
        known: usize,
    },
    /// A model, one of several, with other classes than the data set.
    #[error("`{model}`: {reason}")]
    ClassNamesOf {
        /// The model.
        model: String,
        /// What is wrong with them.
        reason: Box<vitesse_train::Error>,
    },
    /// An image of a shifted version that has no label.
    #[error("`{sample}` of `{data}` has no label")]
    Unlabelled {
        /// The image.
        sample: String,
        /// The version.
        data: String,
    },
    /// A class of a shifted version that its data set does not have.
    #[error("`{data}` has the class `{class}`, and `{clean}` has none of that name")]
    UnknownClass {
        /// The version.
        data: String,
        /// The class.
        class: String,
        /// The data set.
        clean: String,
    },
    /// A data set without an image that can be read.
    #[error("`{data}` has no images that can be read")]
    NoImages {
        /// The data set.
        data: String,
    },
    /// A way to choose units that looks at images, without any.
    #[error("`{0}` looks at images: name a data set with --data, or choose by --method magnitude")]
    NoCalibration(&'static str),
    /// What does not go together: settings that contradict each other, models or teachers that do not fit.
    #[error("{0}")]
    Together(String),
    /// A data set without the labels that something goes by.
    #[error("`{data}` has no labels, {why}")]
    NoLabels {
        /// The data set.
        data: String,
        /// What goes by labels, and what to take.
        why: &'static str,
    },
    /// A model that scores each class by itself, where classes must exclude each other.
    #[error("`{architecture}` scores each class by itself, {why}")]
    NotSoftmax {
        /// The model.
        architecture: String,
        /// What follows a loss of classes of which an image has one, and what to take.
        why: &'static str,
    },
    /// Weights that nothing can be computed with.
    #[error(
        "`{model}`: tensor `{name}` holds infinities or NaN in {count} of {numel} places, first in place {first}; the model has diverged, or its \
         file is damaged"
    )]
    NotFinite {
        /// The weights file.
        model: String,
        /// The tensor.
        name: String,
        /// How many of its numbers are not finite.
        count: usize,
        /// Of so many.
        numel: usize,
        /// The first of them, from 0, row by row.
        first: usize,
    },
    /// A folder without picture files.
    #[error("`{path}` holds no picture files: JPEG, PNG, WebP, BMP or GIF, known by their extensions", path = .0.display())]
    NoFiles(PathBuf),
    /// An adapter that is to be taken out of a model that it is not in.
    #[error("`{adapter}` was not merged into `{model}`, as far as its history says", adapter = .adapter.display(), model = .model.display())]
    NotMerged {
        /// The adapter.
        adapter: PathBuf,
        /// The model.
        model: PathBuf,
    },
    /// A file that should hold names of classes.
    #[error("`{path}` holds no class names: {reason}", path = .path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file of text features that cannot be used.
    #[error("`{path}` cannot be used: {reason}", path = .path.display())]
    TextFeatures {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// Text features of another width than the features of images.
    #[error(
        "the text features are {texts} wide, and the image features of `{architecture}` {images}; take those of the text encoder \
         that belongs to this model"
    )]
    TextWidth {
        /// The model.
        architecture: String,
        /// Numbers of a text.
        texts: usize,
        /// Numbers of an image.
        images: usize,
    },
    /// Text features beside a model whose outputs are no features of images.
    #[error("`{0}` is a classifier: its head gives classes and no image features")]
    NoImageFeatures(String),
    /// Logits that are no numbers, of weights that are.
    #[error(
        "the logits of `{0}` hold NaN or infinity, though all its weights are finite: on the way to them values are too large for \
             the numbers they are computed in; train it again with a smaller learning rate or with clipped gradients"
    )]
    Overflow(String),
    /// A file without the tensor that is read from it.
    #[error("`{path}` has no tensor `{name}` {expected}; it has {found}", path = .path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: &'static str,
        /// Its shape.
        expected: String,
        /// The tensors that the file has.
        found: String,
    },
    /// A tensor of whole numbers where floating-point numbers are read.
    #[error("`{path}`: tensor `{name}` should be of type F32, but is {found}", path = .path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: &'static str,
        /// Its type.
        found: DType,
    },
    /// A tensor of another shape than the model takes.
    #[error("`{path}`: tensor `{name}` should have shape {expected}, but {found}", path = .path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: &'static str,
        /// The shape.
        expected: String,
        /// What it has instead.
        found: String,
    },
    /// A data set with nothing to tell apart.
    #[error("`{data}` has {}, and there is nothing to tell apart", counted(*classes, "class"))]
    TooFewClasses {
        /// The data set.
        data: String,
        /// Its classes.
        classes: usize,
    },
    /// A comparison of nothing.
    #[error("there is nothing to compare")]
    NothingToCompare,
    /// A search without images to judge by.
    #[error("there are no validation images to choose a value by")]
    NoValidation,
    /// A folder that is no place for a new comparison.
    #[error("`{path}` exists and is not empty", path = .0.display())]
    Occupied(PathBuf),
    /// A folder that is no place for a comparison.
    #[error("`{path}` holds a run of a single method", path = .0.display())]
    SingleRun(PathBuf),
    /// Settings of a method that no recipe can hold.
    #[error("the settings of `{method}` fit no recipe: {reason}")]
    Settings {
        /// The method.
        method: &'static str,
        /// Why not.
        reason: String,
    },
    /// The result of a run that cannot be read.
    #[error("`{path}` cannot be read: {reason}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A merged model that answers otherwise than the trained one.
    #[error("merging the run in `{folder}` does not give the same logits: {proof}", folder = .folder.display())]
    Unequal {
        /// The run.
        folder: PathBuf,
        /// How far the answers are from each other.
        proof: Difference,
    },
    /// Stopped from outside.
    #[error("interrupted")]
    Interrupted,
    /// Stopped from outside while a run was trained, whose state is saved.
    #[error("interrupted; every run's state is saved")]
    Stopped,
}

impl From<vitesse_compress::Error> for Error {
    fn from(error: vitesse_compress::Error) -> Self {
        use vitesse_compress::Error as Compress;
        match error {
            Compress::Cost(source) => match source.downcast::<Error>() {
                Ok(own) => *own,
                Err(source) => Error::Compress(Box::new(Compress::Cost(source))),
            },
            other => Error::Compress(Box::new(other)),
        }
    }
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// A stable code for programs, such as `E_LABELS`. That of an error of another crate is its own.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Model(error) => error.code(),
            Error::Adapt(error) => error.code(),
            Error::Compress(error) => error.code(),
            Error::Data(error) => error.code(),
            Error::Engine(error) => error.code(),
            Error::Train(error) => error.code(),
            Error::Io { .. } => "E_IO",
            Error::Threads { .. } => "E_THREADS",
            Error::UnknownModel { .. } | Error::NoWeights { .. } => "E_MODEL_UNKNOWN",
            Error::NetworkPrecision(_) => "E_MODEL_UNSUPPORTED",
            Error::ClassNamesOf { reason, .. } => reason.code(),
            Error::Classes { .. }
            | Error::ClassesOf { .. }
            | Error::Unlabelled { .. }
            | Error::UnknownClass { .. } => "E_DATA_LABEL",
            Error::NoImages { .. } | Error::NoFiles(_) => "E_DATA_EMPTY",
            Error::Together(_)
            | Error::NoCalibration(_)
            | Error::NoLabels { .. }
            | Error::NotSoftmax { .. } => "E_METHOD",
            Error::NotFinite { .. } => "E_TENSOR_NOT_FINITE",
            Error::NotMerged { .. } => "E_ADAPTER_BASE",
            Error::Labels { .. } => "E_LABELS",
            Error::TextFeatures { .. } | Error::TextWidth { .. } | Error::NoImageFeatures(_) => {
                "E_TEXT_FEATURES"
            }
            Error::NoTensor { .. } => "E_TENSOR_MISSING",
            Error::TensorType { .. } => "E_TENSOR_TYPE",
            Error::TensorShape { .. } => "E_TENSOR_SHAPE",
            Error::TooFewClasses { .. } => "E_DATA_SET",
            Error::NothingToCompare | Error::NoValidation | Error::JointSoftmax { .. } => "E_USAGE",
            Error::Occupied(_) | Error::SingleRun(_) => "E_RUN_EXISTS",
            Error::Settings { .. } => "E_RECIPE",
            Error::Overflow(_) => "E_LOGITS_NOT_FINITE",
            Error::Unreadable { .. } => "E_RESUME",
            Error::Unequal { .. } => "E_MERGE",
            Error::Interrupted | Error::Stopped => "E_INTERRUPTED",
        }
    }

    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NetworkPrecision(_) => {
                Some("leave --precision out, or take a vision transformer, which the engine runs")
            }
            Error::UnknownModel { .. } => Some("`vitesse inspect --list` shows the names of architectures"),
            Error::NoWeights { .. } => Some(
                "fetch the checkpoint and give its folder, or leave the part after the dot out for the bare architecture",
            ),
            Error::Classes { .. } => Some("take a model of this task, or one adapted to it"),
            Error::ClassesOf { .. } => Some("take models of this task, or ones adapted to it"),
            Error::UnknownClass { .. } => Some(
                "classes are matched by name: a shifted version has the class names of the data set, or some of them",
            ),
            Error::NoImageFeatures(_) => Some(
                "text features belong to the image encoder of a CLIP, whose head is the projection; without `--text-features` the \
                 classifier answers by itself",
            ),
            Error::TensorType { .. } => Some("scale and normalise the pixels first"),
            Error::TooFewClasses { .. } => Some("a data set needs images of two classes at least"),
            Error::NoValidation => Some("leave `data.val_fraction` above 0, or name `data.validation`"),
            Error::Occupied(_) => {
                Some("go on with the comparison in it with `--resume`, or choose another folder")
            }
            Error::SingleRun(_) => Some("choose another folder"),
            Error::Unreadable { .. } => Some("delete it, and the run is tested again"),
            Error::Stopped => Some("go on with the same command and `--resume`"),
            _ => None,
        }
    }

    /// Turns an [`io::Error`] into ours: `.map_err(Error::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

/// An error once `stop` was set. Long work asks between two pieces.
pub(crate) fn check(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}

/// An error where images are `found`, `[channels, height, width]`, and the model takes others.
pub(crate) fn check_size(spec: &ModelSpec, found: [usize; 3]) -> Result<()> {
    if found == spec.input_size() {
        return Ok(());
    }
    Err(Error::Train(vitesse_train::Error::InputSize {
        architecture: spec.architecture.clone(),
        expected: spec.input_size(),
        found,
    }))
}

/// The same for who is asked whether to go on.
pub(crate) fn go_on(stop: &AtomicBool) -> ControlFlow<()> {
    if stop.load(Ordering::Relaxed) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
