//! Data sets: what is in a path, and which part of it is asked for.
//!
//! A *form* is a way to keep labelled pictures on disk; each has one file here and does three things: it recognises itself, it
//! says which parts (training, validation, test) are stored, and it reads one of them as [`Samples`]. Everything else, splits that
//! are not stored, subsets, limits, is done once, for all forms, by [`DataSet`].
//!
//! | form | recognised by |
//! | --- | --- |
//! | class folders with splits | `train/`, `val/` (or `validation/`, `valid/`), `test/`, each with a folder a class |
//! | lists of VTAB-1k | `train800.txt`, `val200.txt`, `train800val200.txt`, `test.txt` |
//! | list | a `labels.csv` with a header `filename,class_index[,…,name]` |
//! | IDX (MNIST family) | `train-images-idx3-ubyte[.gz]` and the like |
//! | CIFAR binary | `data_batch_1.bin` … or `train.bin` |
//! | class folders | a folder a class |
//! | pictures | picture files without labels |
//! | shapes | the name `shapes`: drawn by the program, no files |

mod cifar;
mod draw;
mod folders;
mod idx;
pub(crate) mod inventory;
mod list;
mod natural;
mod shapes;
mod vtab;

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use shapes::{ShapesConfig, ShapesTask};

use crate::{DecodeOptions, Error, Image, Result};

/// Which samples of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What is learned from; without the held-back part when no validation split is stored.
    Train,
    /// What choices are made on: the stored validation split, or a part of train that is held back.
    #[serde(alias = "val", alias = "valid")]
    Validation,
    /// Both together: what is learned from when the choices are made.
    #[serde(rename = "trainval")]
    TrainValidation,
    /// What is reported; nothing is ever chosen on it.
    Test,
    /// Everything there is.
    All,
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Split> {
        match text {
            "train" => Ok(Split::Train),
            "val" | "valid" | "validation" => Ok(Split::Validation),
            "trainval" => Ok(Split::TrainValidation),
            "test" => Ok(Split::Test),
            "all" => Ok(Split::All),
            _ => Err(Error::setting(
                "split",
                &format!("`{text}`"),
                "train, validation, trainval, test or all",
            )),
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::TrainValidation => "trainval",
            Split::Test => "test",
            Split::All => "all",
        })
    }
}

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
    skipped: usize,
}

impl DataSet {
    /// A data set of one's own samples. Labels must be below the number of classes.
    pub fn new(samples: impl Samples + 'static, class_names: Vec<String>) -> DataSet {
        let contents = Contents {
            samples: Arc::new(samples),
            classes: class_names,
            skipped: 0,
        };
        DataSet::from_contents(contents, Split::All)
    }

    fn from_contents(contents: Contents, split: Split) -> DataSet {
        DataSet {
            indices: (0..contents.samples.len()).collect(),
            samples: contents.samples,
            classes: contents.classes.into(),
            split,
            skipped: contents.skipped,
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
        self.skipped
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
        let samples = Relabelled {
            samples: self.samples.clone(),
            labels,
        };
        let kept = self.indices.iter().copied();
        DataSet {
            indices: kept.filter(|&index| samples.label(index).is_some()).collect(),
            samples: Arc::new(samples),
            classes: names.into(),
            split: self.split,
            skipped: self.skipped,
        }
    }
}

/// More classes than any data set has; a larger index is a slip.
const MAX_CLASSES: usize = 1 << 20;

/// A stored part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Validation,
    /// Both together, where they are stored so besides.
    TrainValidation,
    Test,
    /// Everything, where nothing is split.
    Whole,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::TrainValidation => "trainval",
            Part::Test => "test",
            Part::Whole => "all",
        }
    }
}

/// One part, read.
struct Contents {
    samples: Arc<dyn Samples>,
    classes: Vec<String>,
    skipped: usize,
}

/// A recognised data set whose samples are not read yet.
trait Form {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// The stored parts, training first.
    fn parts(&self) -> Vec<Part>;
    /// Reads one of them.
    fn read(&self, part: Part, decode: &DecodeOptions) -> Result<Contents>;
}

/// The form of the data set that [`open`] finds under this name, in words.
///
/// # Errors
/// [`Error::DataSet`] for a path that holds no data set.
pub fn form(data: impl AsRef<Path>) -> Result<&'static str> {
    Ok(recognise(data.as_ref(), &OpenOptions::default())?.name())
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
    let read = |part| form.read(part, &options.decode);
    let together = |parts: &[Part]| {
        let parts = parts.iter().map(|&part| read(part)).collect::<Result<_>>()?;
        Ok(DataSet::from_contents(joined(parts), split))
    };
    let as_stored = match split {
        Split::All => {
            let twice = |part| part == Part::TrainValidation && has(Part::Train) && has(Part::Validation);
            let once: Vec<Part> = stored.iter().copied().filter(|&part| !twice(part)).collect();
            return together(&once);
        }
        Split::TrainValidation if has(Part::TrainValidation) => Some(Part::TrainValidation),
        Split::TrainValidation if has(Part::Train) && has(Part::Validation) => {
            return together(&[Part::Train, Part::Validation]);
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
        return Ok(DataSet::from_contents(read(part)?, split));
    }
    let learned = stored
        .iter()
        .copied()
        .find(|part| matches!(part, Part::Train | Part::Whole));
    match (split, learned) {
        (Split::Train | Split::Validation, Some(part)) => {
            draw::hold_back(path, &DataSet::from_contents(read(part)?, split), options)
        }
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

/// Samples whose classes have other numbers.
#[derive(Debug)]
struct Relabelled {
    samples: Arc<dyn Samples>,
    /// The new label for each old one.
    labels: Vec<Option<usize>>,
}

impl Samples for Relabelled {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn label(&self, index: usize) -> Option<usize> {
        *self.labels.get(self.samples.label(index)?)?
    }

    fn name(&self, index: usize) -> String {
        self.samples.name(index)
    }

    fn load(&self, index: usize) -> Result<Image> {
        self.samples.load(index)
    }
}

/// Several parts, one after the other. Forms give all their parts the same classes.
#[derive(Debug)]
struct Joined(Vec<Arc<dyn Samples>>);

impl Joined {
    /// The part that a sample is in, and its index there.
    fn find(&self, mut index: usize) -> Option<(&dyn Samples, usize)> {
        for part in &self.0 {
            if index < part.len() {
                return Some((part.as_ref(), index));
            }
            index -= part.len();
        }
        None
    }
}

impl Samples for Joined {
    fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.find(index).and_then(|(part, index)| part.label(index))
    }

    fn name(&self, index: usize) -> String {
        self.find(index)
            .map_or_else(String::new, |(part, index)| part.name(index))
    }

    fn load(&self, index: usize) -> Result<Image> {
        match self.find(index) {
            Some((part, index)) => part.load(index),
            None => Err(Error::setting(
                "index",
                &index,
                format!("a sample below {}", self.len()),
            )),
        }
    }
}

fn joined(mut parts: Vec<Contents>) -> Contents {
    let classes = parts
        .first_mut()
        .map(|part| std::mem::take(&mut part.classes))
        .unwrap_or_default();
    let skipped = parts.iter().map(|part| part.skipped).sum();
    let samples = Arc::new(Joined(parts.into_iter().map(|part| part.samples).collect()));
    Contents {
        samples,
        classes,
        skipped,
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
            return Ok(list::recognise(path));
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

/// The entries of a folder that are not hidden, in natural order.
fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push(entry.path());
        }
    }
    found.sort_by(|a, b| natural::compare(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(found)
}
