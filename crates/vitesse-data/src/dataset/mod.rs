//! Data sets: what is in a path, and which part of it is asked for.
//!
//! A *form* is a way to keep labelled pictures on disk; each has one file here and does three things: it recognises itself, it
//! says which parts (training, validation, test) are stored, and it reads one of them as [`Samples`]. Everything else, splits that
//! are not stored, subsets, limits, is done once, for all forms, by [`DataSet`].
//!
//! | form | recognised by |
//! | --- | --- |
//! | class folders with splits | `train/`, `val/`, `test/` (or other spellings), each with a folder a class |
//! | lists of VTAB-1k | `train800.txt`, `val200.txt`, `train800val200.txt`, `test.txt` |
//! | list | a `labels.csv` with a header `filename,class_index[,…,name,split]` |
//! | IDX (MNIST family) | `train-images-idx3-ubyte[.gz]` and the like |
//! | CIFAR binary | `data_batch_1.bin` … or `train.bin` |
//! | class folders | a folder a class |
//! | pictures | picture files without labels |
//! | shapes | the name `shapes`: drawn by the program, no files |

mod cifar;
mod csv;
mod draw;
mod files;
mod folders;
mod idx;
pub(crate) mod inventory;
mod list;
mod natural;
mod shapes;
mod split;
mod views;
mod vtab;
mod walk;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use shapes::{ShapesConfig, ShapesTask};
use split::Part;
pub use split::Split;
use views::{Relabelled, joined};
pub use walk::{Ignored, IgnoredReason};

use crate::{DecodeOptions, Error, Image, Result};

/// How to open a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenOptions {
    /// The split to read. Without one: test if it is stored, else validation if it is stored, else all.
    pub split: Option<Split>,
    /// The share of train held back as validation where no validation split is stored. Default 0.1.
    pub val_fraction: f64,
    /// Decides which samples are held back. Default 0.
    pub seed: u64,
    /// How files become pictures.
    pub decode: DecodeOptions,
    /// What the built-in set draws.
    pub shapes: ShapesConfig,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            split: None,
            val_fraction: 0.1,
            seed: 0,
            decode: DecodeOptions::default(),
            shapes: ShapesConfig::default(),
        }
    }
}

/// What must not be done to the pictures of a data set, because their labels would no longer be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fragile {
    /// Exchanging left and right.
    pub flip: bool,
    /// Cutting a part out or erasing it, shifting, turning or stretching.
    pub crop: bool,
}

impl Fragile {
    /// Of the data set that [`open`] finds under this name. Only tasks of the built-in set are known to be fragile.
    pub fn of(data: impl AsRef<Path>) -> Fragile {
        shapes::fragile(data.as_ref())
    }
}

/// Samples in a fixed order. Implement it to feed pictures from elsewhere to [`DataSet::new`].
///
/// Indices given to the methods are below `len`.
pub trait Samples: Send + Sync + std::fmt::Debug {
    /// Number of samples.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The class of a sample, if it is known.
    fn label(&self, index: usize) -> Option<usize>;
    /// What messages and result files call a sample: its file, or something like `train-images[17]`.
    fn name(&self, index: usize) -> String;
    /// The picture of a sample.
    ///
    /// # Errors
    /// Whatever keeps it from being read, naming the sample.
    fn load(&self, index: usize) -> Result<Image>;
}

/// Labelled pictures in a fixed order. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DataSet {
    samples: Arc<dyn Samples>,
    /// Which of `samples`, in this order.
    indices: Arc<[usize]>,
    classes: Arc<[String]>,
    split: Split,
    ignored: Arc<[Ignored]>,
    notes: Arc<[String]>,
}

impl DataSet {
    /// A data set of one's own samples. Labels must be below the number of classes.
    pub fn new(samples: impl Samples + 'static, class_names: Vec<String>) -> DataSet {
        DataSet::from_contents(Contents::new(samples, class_names), Split::All)
    }

    fn from_contents(contents: Contents, split: Split) -> DataSet {
        DataSet {
            indices: (0..contents.samples.len()).collect(),
            samples: contents.samples,
            classes: contents.classes.into(),
            split,
            ignored: contents.ignored.into(),
            notes: contents.notes.into(),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The class of a sample; `None` when it is not known or there is no such sample.
    pub fn label(&self, index: usize) -> Option<usize> {
        self.samples.label(*self.indices.get(index)?)
    }

    /// What messages and result files call a sample: its path inside the data set, or something like `train-images[17]`.
    pub fn name(&self, index: usize) -> String {
        match self.indices.get(index) {
            Some(&index) => self.samples.name(index),
            None => format!("sample {index} of {}", self.len()),
        }
    }

    /// The names of the classes, in the order of the labels; empty for pictures without labels.
    pub fn class_names(&self) -> &[String] {
        &self.classes
    }

    /// The picture of a sample.
    ///
    /// # Errors
    /// Whatever keeps it from being read, naming the sample.
    pub fn load(&self, index: usize) -> Result<Image> {
        match self.indices.get(index) {
            Some(&index) => self.samples.load(index),
            None => Err(Error::setting(
                "index",
                &index,
                format!("a sample below {}", self.len()),
            )),
        }
    }

    /// The split that was read.
    pub fn split(&self) -> Split {
        self.split
    }

    /// Files that look like pictures but are of a format that is not supported, so that they are not among the samples.
    pub fn skipped(&self) -> usize {
        let reasons = self.ignored.iter().map(|ignored| ignored.reason);
        reasons
            .filter(|reason| *reason == IgnoredReason::UnsupportedFormat)
            .count()
    }

    /// What lies in the folders of the data set and is not among the samples.
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// What is odd about the classes, in sentences: those without a picture in this split, ones that may lie deeper.
    pub fn class_notes(&self) -> &[String] {
        &self.notes
    }

    /// What a user of the data set should know, in sentences: what is odd about its classes, and what was left out.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.to_vec();
        notes.extend(walk::notes(&self.ignored));
        notes
    }

    /// The samples at `indices`, in that order; indices past the end are left out.
    pub fn subset(&self, indices: &[usize]) -> DataSet {
        let indices = indices
            .iter()
            .filter_map(|&index| self.indices.get(index).copied())
            .collect();
        DataSet {
            indices,
            ..self.clone()
        }
    }

    /// The samples of the classes that have one of these names; labels are the places of the names in `names`. Samples of
    /// other classes and those without a label are left out.
    pub fn of_classes(&self, names: &[String]) -> DataSet {
        let places: HashMap<&str, usize> = names
            .iter()
            .enumerate()
            .map(|(place, name)| (name.as_str(), place))
            .collect();
        let labels: Vec<Option<usize>> = self
            .classes
            .iter()
            .map(|class| places.get(class.as_str()).copied())
            .collect();
        self.with_labels(labels, names.into())
    }

    /// The same samples with other labels: `places` has one for each class, and `names` are what these are called. What has no
    /// label still has none.
    pub fn relabelled(&self, places: &[usize], names: Vec<String>) -> DataSet {
        let all = self.with_labels(places.iter().copied().map(Some).collect(), names.into());
        DataSet {
            indices: self.indices.clone(),
            ..all
        }
    }

    fn with_labels(&self, labels: Vec<Option<usize>>, classes: Arc<[String]>) -> DataSet {
        let samples = Relabelled {
            samples: self.samples.clone(),
            labels,
        };
        let kept = self.indices.iter().copied();
        DataSet {
            indices: kept.filter(|&index| samples.label(index).is_some()).collect(),
            samples: Arc::new(samples),
            classes,
            ..self.clone()
        }
    }
}

/// More classes than any data set has; a larger index is a slip.
const MAX_CLASSES: usize = 1 << 20;

/// One part, read.
struct Contents {
    samples: Arc<dyn Samples>,
    classes: Vec<String>,
    ignored: Vec<Ignored>,
    /// What is odd about the classes, in sentences.
    notes: Vec<String>,
}

impl Contents {
    /// Samples with nothing beside them.
    fn new(samples: impl Samples + 'static, classes: Vec<String>) -> Contents {
        Contents {
            samples: Arc::new(samples),
            classes,
            ignored: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// A recognised data set whose samples are not read yet.
trait Form {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// The stored parts, training first.
    fn parts(&self) -> Vec<Part>;
    /// What lies beside the parts and is none.
    fn beside(&self) -> Vec<Ignored> {
        Vec::new()
    }
    /// Reads one of them.
    fn read(&self, part: Part, decode: &DecodeOptions) -> Result<Contents>;
}

/// All pictures in a folder and in those below it, in natural order, and what was passed over.
///
/// # Errors
/// A folder that cannot be read.
pub fn pictures_in(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Ignored>)> {
    let mut search = walk::Search::below(folder);
    let found = search.pictures(folder)?;
    let pictures = found.into_iter().map(|inside| folder.join(inside)).collect();
    Ok((pictures, search.ignored))
}

/// What was passed over, in sentences.
pub fn ignored_notes(ignored: &[Ignored]) -> Vec<String> {
    walk::notes(ignored)
}

/// The form of the data set that [`open`] finds under this name, in words.
///
/// # Errors
/// [`Error::DataSet`] for a path that holds no data set.
pub fn form(data: impl AsRef<Path>) -> Result<&'static str> {
    Ok(recognise(data.as_ref(), &OpenOptions::default())?.name())
}

/// The splits that the data set which [`open`] finds under this name stores, training first; [`Split::All`] where it is one
/// whole.
///
/// # Errors
/// [`Error::DataSet`] for a path that holds no data set.
pub fn splits(data: impl AsRef<Path>) -> Result<Vec<Split>> {
    let parts = recognise(data.as_ref(), &OpenOptions::default())?.parts();
    Ok(parts.into_iter().map(Part::split).collect())
}

/// Opens every split that is stored, each by itself; nothing is held back. Files become pictures as `decode` says.
///
/// # Errors
/// [`Error::DataSet`] for a path that holds no data set.
pub fn open_splits(data: impl AsRef<Path>, decode: &DecodeOptions) -> Result<Vec<DataSet>> {
    let data = data.as_ref();
    let ask = |split| {
        let options = OpenOptions {
            split: Some(split),
            val_fraction: 0.0,
            decode: decode.clone(),
            ..OpenOptions::default()
        };
        open(data, &options)
    };
    splits(data)?.into_iter().map(ask).collect()
}

/// What lies in the folders of several parts of a data set and is not among their samples, each once.
pub fn ignored<'a>(parts: impl IntoIterator<Item = &'a DataSet>) -> Vec<Ignored> {
    let mut seen = HashSet::new();
    let all = parts.into_iter().flat_map(DataSet::ignored);
    all.filter(|each| seen.insert(*each)).cloned().collect()
}

/// Opens a data set: a path, or `shapes` / `shapes:TASK` for the built-in set (write `./shapes` for a folder of that name).
///
/// Where no validation split is stored, a share of the training samples is held back: drawn by the seed, classes in proportion.
/// `train` then leaves them out, `validation` is exactly them.
///
/// # Errors
/// [`Error::DataSet`] for a path that holds no data set, [`Error::NoSplit`] for a split that it does not have.
pub fn open(data: impl AsRef<Path>, options: &OpenOptions) -> Result<DataSet> {
    let path = data.as_ref();
    if !(0.0..1.0).contains(&options.val_fraction) {
        return Err(Error::setting(
            "val_fraction",
            &options.val_fraction,
            "a share of at least 0 and below 1",
        ));
    }
    let form = recognise(path, options)?;
    let stored = form.parts();
    let has = |part| stored.contains(&part);
    let split = options.split.unwrap_or(match () {
        () if has(Part::Test) => Split::Test,
        () if has(Part::Validation) => Split::Validation,
        () => Split::All,
    });
    let read = |parts: &[Part]| {
        let parts = parts.iter().map(|&part| form.read(part, &options.decode));
        let mut contents = joined(parts.collect::<Result<_>>()?);
        contents.ignored.splice(..0, form.beside());
        Ok(DataSet::from_contents(contents, split))
    };
    let as_stored = match split {
        Split::All => {
            let twice = |part| part == Part::TrainValidation && has(Part::Train) && has(Part::Validation);
            let once: Vec<Part> = stored.iter().copied().filter(|&part| !twice(part)).collect();
            return read(&once);
        }
        Split::TrainValidation if has(Part::TrainValidation) => Some(Part::TrainValidation),
        Split::TrainValidation if has(Part::Train) && has(Part::Validation) => {
            return read(&[Part::Train, Part::Validation]);
        }
        // Nothing is held back where validation is wanted too.
        Split::TrainValidation => stored
            .iter()
            .copied()
            .find(|part| matches!(part, Part::Train | Part::Whole)),
        Split::Test => has(Part::Test).then_some(Part::Test),
        Split::Validation => has(Part::Validation).then_some(Part::Validation),
        Split::Train => (has(Part::Train) && has(Part::Validation)).then_some(Part::Train),
    };
    if let Some(part) = as_stored {
        return read(&[part]);
    }
    let learned = stored
        .iter()
        .copied()
        .find(|part| matches!(part, Part::Train | Part::Whole));
    match (split, learned) {
        (Split::Train | Split::Validation, Some(part)) => draw::hold_back(path, &read(&[part])?, options),
        _ => Err(Error::NoSplit {
            data: path.display().to_string(),
            asked: split.to_string(),
            found: stored
                .iter()
                .map(|part| part.name())
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// Finds out which form a path has.
fn recognise(path: &Path, options: &OpenOptions) -> Result<Box<dyn Form>> {
    if let Some(form) = shapes::recognise(path, &options.shapes)? {
        return Ok(form);
    }
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_file() {
        if path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
        {
            return list::recognise(path);
        }
        return Err(Error::data_set(
            path,
            "expected a folder or a `.csv` list, found another file",
        ));
    }
    for recognise in [
        vtab::recognise,
        folders::with_splits,
        list::in_folder,
        idx::recognise,
        cifar::recognise,
        folders::whole,
    ] {
        if let Some(form) = recognise(path)? {
            return Ok(form);
        }
    }
    Err(Error::data_set(
        path,
        "expected `train/`, `val/` or `test/` with a folder a class, a `labels.csv`, IDX or CIFAR files, lists of \
         VTAB-1k, class folders, or pictures; found none of them",
    ))
}
