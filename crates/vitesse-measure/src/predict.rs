//! What a model sees in pictures.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::Serialize;
use vitesse_data::{
    DecodeOptions, Image, OpenOptions, Preprocess, decode, decode_file, ignored_notes, open, pictures_in,
};
use vitesse_engine::Precision;
use vitesse_model::config::Scores;
use vitesse_model::{Checkpoint, Fusion, LoadOptions};

use crate::classify::{Backend, Runner};
use crate::error::{check, check_size};
use crate::{Error, Events, Labels, Progress, Result, TextFeatures};

/// A model that says what it sees in pictures: from a file to labelled scores.
///
/// It can be shared by threads; their pictures are computed one after the other.
///
/// ```no_run
/// use vitesse_measure::Classifier;
///
/// let classifier = Classifier::load("deit_tiny")?;
/// for class in classifier.classify("cat.jpg")? {
///     println!("{:.3} {class}", class.score);
/// }
/// # Ok::<(), vitesse_measure::Error>(())
/// ```
#[derive(Debug)]
pub struct Classifier {
    runner: Runner,
    /// Threads of its own, where a number was asked for.
    pool: Option<rayon::ThreadPool>,
    preprocess: Preprocess,
    labels: Labels,
    scores: Scores,
    topk: usize,
    batch_size: usize,
    decode: DecodeOptions,
    fusion: Fusion,
    texts: Option<TextFeatures>,
    /// Numbers that the model gives for a picture: logits of its classes, or features.
    width: usize,
}

/// How a [`Classifier`] works. The defaults are those of `vitesse predict`.
#[derive(Debug, Clone)]
pub struct ClassifierOptions {
    /// Classes told of each picture. Default 5.
    pub topk: usize,
    /// Threads that read pictures and compute; 0, the default, for those of rayon, which are one a core.
    pub threads: usize,
    /// In what numbers the engine computes. Default f32.
    pub precision: Precision,
    /// Pictures in one forward pass, at least 1. Default 16.
    pub batch_size: usize,
    /// What classes are called; as the checkpoint says if `None`.
    pub labels: Option<Labels>,
    /// How pictures are prepared; as the checkpoint says if `None`, for the size at which the model does best.
    pub preprocess: Option<Preprocess>,
    /// How files become pictures.
    pub decode: DecodeOptions,
    /// How the two heads of a distilled model answer together. Default: the mean of their logits, as published.
    pub fusion: Fusion,
    /// What the classes look like in words: the model's head, or its features without one, is then no classifier, and a class's
    /// score comes from the likeness of picture and text. By default the model classifies by itself.
    pub text_features: Option<TextFeatures>,
    /// What computes; if `None` the engine, and the network that training uses for models that it does not run.
    pub backend: Option<Backend>,
}

impl Default for ClassifierOptions {
    fn default() -> Self {
        ClassifierOptions {
            topk: 5,
            threads: 0,
            precision: Precision::default(),
            batch_size: 16,
            labels: None,
            preprocess: None,
            decode: DecodeOptions::default(),
            fusion: Fusion::default(),
            text_features: None,
            backend: None,
        }
    }
}

/// What a [`Classifier`] looks at. Paths, bytes and images turn into it by themselves.
#[derive(Debug, Clone, Copy)]
pub enum Picture<'a> {
    /// An image file: JPEG, PNG, WebP, BMP or GIF.
    File(&'a Path),
    /// The bytes of such a file.
    Bytes(&'a [u8]),
    /// Decoded pixels, of any size.
    Image(&'a Image),
}

impl<'a> From<&'a Path> for Picture<'a> {
    fn from(path: &'a Path) -> Self {
        Picture::File(path)
    }
}

impl<'a> From<&'a PathBuf> for Picture<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Picture::File(path)
    }
}

impl<'a> From<&'a str> for Picture<'a> {
    fn from(path: &'a str) -> Self {
        Picture::File(Path::new(path))
    }
}

impl<'a> From<&'a String> for Picture<'a> {
    fn from(path: &'a String) -> Self {
        Picture::File(Path::new(path))
    }
}

impl<'a> From<&'a [u8]> for Picture<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Picture::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Picture<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Picture::Bytes(bytes)
    }
}

impl<'a> From<&'a Image> for Picture<'a> {
    fn from(image: &'a Image) -> Self {
        Picture::Image(image)
    }
}

/// A class that an image may show. It is displayed as its name, or as `class 7` where it has none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Class {
    /// Its index.
    pub class_index: usize,
    /// Its name, where that is known.
    pub name: Option<String>,
    /// Probability, 0 to 1; the logit itself of a model that gives values.
    pub score: f64,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "class {}", self.class_index),
        }
    }
}

/// A picture of a labelled folder, and what a model takes it for.
#[derive(Debug)]
pub struct Guess {
    /// Its file, within the folder.
    pub file: PathBuf,
    /// The picture.
    pub image: Image,
    /// Its class.
    pub truth: String,
    /// The likeliest class.
    pub class: Class,
}

/// The picture files that are meant by `paths`: files as they are, and of a folder all that lie in it and below it. What is passed
/// over there is said.
///
/// # Errors
/// A folder that cannot be read, or has no pictures.
pub fn pictures(paths: &[PathBuf], events: &mut dyn Events) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let (found, ignored) = pictures_in(path)?;
        ignored_notes(&ignored)
            .iter()
            .for_each(|note| events.say("note", note));
        if found.is_empty() {
            return Err(Error::NoFiles(path.clone()));
        }
        files.extend(found);
    }
    Ok(files)
}

/// Asks the model in `checkpoint` about the pictures of the data set in `folder`; those without a label are left out.
///
/// # Errors
/// A picture that cannot be read; as [`Classifier::new`] and [`Classifier::classify_until`].
pub fn guess(
    checkpoint: &Path,
    folder: &Path,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Vec<Guess>> {
    let data = open(folder, &OpenOptions::default())?;
    let checkpoint = Checkpoint::load(checkpoint, &LoadOptions::default())?;
    let options = ClassifierOptions {
        topk: 1,
        ..ClassifierOptions::default()
    };
    let classifier = Classifier::new(checkpoint, options, events)?;
    let files: Vec<PathBuf> = (0..data.len()).map(|i| PathBuf::from(data.name(i))).collect();
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(file)).collect();
    let found = classifier.classify_until(&paths, stop, events)?;
    let mut guesses = Vec::new();
    for (i, (file, classes)) in files.into_iter().zip(found).enumerate() {
        let truth = data.label(i).and_then(|label| data.class_names().get(label));
        let class = classes?.into_iter().next();
        if let (Some(truth), Some(class)) = (truth, class) {
            guesses.push(Guess {
                file,
                image: data.load(i)?,
                truth: truth.clone(),
                class,
            });
        }
    }
    Ok(guesses)
}

impl Classifier {
    /// The model of a checkpoint: a folder of ours, timm's or transformers', or a weights file.
    ///
    /// # Errors
    /// A checkpoint that cannot be loaded; as [`Classifier::new`].
    pub fn load(path: impl AsRef<Path>) -> Result<Classifier> {
        Classifier::load_with(path, ClassifierOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`Classifier::load`].
    pub fn load_with(path: impl AsRef<Path>, options: ClassifierOptions) -> Result<Classifier> {
        let checkpoint = Checkpoint::load(path, &LoadOptions::default())?;
        Classifier::new(checkpoint, options, &mut ())
    }

    /// The model of a checkpoint that is loaded already. What is taken for granted is told to `events`.
    ///
    /// # Errors
    /// A model without classes, unless there are text features, or that cannot be run so; [`Error::TextWidth`]; images that cannot be prepared for it, or are for another size;
    /// [`Error::JointSoftmax`]; no more threads.
    pub fn new(
        mut checkpoint: Checkpoint,
        options: ClassifierOptions,
        events: &mut dyn Events,
    ) -> Result<Classifier> {
        let preprocess = match options.preprocess {
            Some(preprocess) => preprocess,
            None => {
                checkpoint.set_test_size()?;
                checkpoint.preprocess()?
            }
        };
        let spec = &checkpoint.spec;
        let architecture = spec.architecture.clone();
        let width = match spec.num_classes {
            0 => spec.num_features(),
            classes => classes,
        };
        let texts = options.text_features;
        match &texts {
            Some(texts) if texts.dim() != width => {
                return Err(Error::TextWidth {
                    architecture,
                    texts: texts.dim(),
                    images: width,
                });
            }
            None if spec.num_classes == 0 => {
                return Err(vitesse_train::Error::NoClasses { architecture }.into());
            }
            _ => {}
        }
        check_size(spec, preprocess.input_size)?;
        let (scores, fusion) = match &texts {
            // Features of an image are no logits, so that nothing is asked of a second head.
            Some(_) => (Scores::Softmax, Fusion::Class),
            None => (checkpoint.config.scores(width), options.fusion),
        };
        if scores != Scores::Softmax && fusion == Fusion::SoftmaxMean {
            return Err(Error::JointSoftmax { architecture });
        }
        let engine = vitesse_engine::Options {
            threads: options.threads,
            precision: options.precision,
            isa: None,
        };
        let labels = match (options.labels, &texts) {
            (Some(labels), _) => labels,
            (None, Some(texts)) => texts.labels().clone(),
            (None, None) => Labels::of(&checkpoint),
        };
        Ok(Classifier {
            runner: Runner::new(&checkpoint, options.backend, engine, events)?,
            pool: pool(options.threads)?,
            preprocess,
            labels,
            scores,
            topk: options.topk,
            batch_size: options.batch_size.max(1),
            decode: options.decode,
            fusion,
            texts,
            width,
        })
    }

    /// What its classes are called.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// What its scores are.
    pub fn scores(&self) -> Scores {
        self.scores
    }

    /// The likeliest classes of a picture, best first.
    ///
    /// # Errors
    /// A picture that cannot be read; a model that cannot compute.
    pub fn classify<'a>(&self, picture: impl Into<Picture<'a>>) -> Result<Vec<Class>> {
        self.batch(&[picture.into()])?.pop().unwrap_or(Ok(Vec::new()))
    }

    /// The likeliest classes of each picture, best first, or why it cannot be read; in the order of the pictures, in batches.
    ///
    /// # Errors
    /// A model that cannot compute.
    pub fn classify_all<'a, P: Into<Picture<'a>>>(
        &self,
        pictures: impl IntoIterator<Item = P>,
    ) -> Result<Vec<Result<Vec<Class>>>> {
        self.classify_until(pictures, &AtomicBool::new(false), &mut ())
    }

    /// As [`Classifier::classify_all`]; `events` is told how far it is.
    ///
    /// # Errors
    /// A model that cannot compute; [`Error::Interrupted`] once `stop` was set.
    pub fn classify_until<'a, P: Into<Picture<'a>>>(
        &self,
        pictures: impl IntoIterator<Item = P>,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Vec<Result<Vec<Class>>>> {
        let pictures: Vec<Picture<'_>> = pictures.into_iter().map(Into::into).collect();
        let begun = Progress::of_images(pictures.len());
        events.progress(begun);
        let mut found = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(self.batch_size) {
            found.extend(self.batch(batch)?);
            let done = found.len();
            events.progress(Progress { done, ..begun });
            check(stop)?;
        }
        Ok(found)
    }

    /// One forward pass, on the threads of its own if it has any.
    fn batch(&self, pictures: &[Picture<'_>]) -> Result<Vec<Result<Vec<Class>>>> {
        match &self.pool {
            Some(pool) => pool.install(|| self.forward(pictures)),
            None => self.forward(pictures),
        }
    }

    fn forward(&self, pictures: &[Picture<'_>]) -> Result<Vec<Result<Vec<Class>>>> {
        let prepared = prepare_all(pictures, &self.decode, &self.preprocess);
        let [channels, height, width] = self.preprocess.input_size;
        let images: Vec<f32> = prepared.iter().flatten().flatten().copied().collect();
        let readable = prepared.iter().flatten().count();
        let mut rows = Vec::new();
        if readable > 0 {
            let heads = self.runner.heads(&images, [readable, channels, height, width])?;
            let scores = heads.joint(self.fusion, self.width);
            rows.extend(scores.chunks_exact(self.width).map(|row| match &self.texts {
                Some(texts) => self.best(&texts.logits(row)),
                None => self.best(row),
            }));
        }
        let mut rows = rows.into_iter();
        let found = prepared
            .into_iter()
            .map(|image| image.map(|_| rows.next().unwrap_or_default()));
        Ok(found.collect())
    }

    /// The likeliest classes of a row of scores, best first; of equal ones, the lower index.
    fn best(&self, scores: &[f32]) -> Vec<Class> {
        let mut order: Vec<(usize, f64)> = self.probabilities(scores).into_iter().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order.truncate(self.topk);
        let class = |(class_index, score)| Class {
            class_index,
            name: self.labels.name(class_index).map(str::to_owned),
            score,
        };
        order.into_iter().map(class).collect()
    }

    fn probabilities(&self, scores: &[f32]) -> Vec<f64> {
        let exact = scores.iter().map(|&score| f64::from(score));
        match self.scores {
            Scores::Sigmoid => return exact.map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Scores::Logits => return exact.collect(),
            // These are probabilities already.
            Scores::Softmax if self.fusion == Fusion::SoftmaxMean => return exact.collect(),
            Scores::Softmax => {}
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = scores.iter().map(|&score| f64::from(score - max).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    }
}

/// Each picture as a model takes it, `[channels, height, width]`, normalised, or why it cannot be read.
pub(crate) fn prepare_all(
    pictures: &[Picture<'_>],
    options: &DecodeOptions,
    preprocess: &Preprocess,
) -> Vec<Result<Vec<f32>>> {
    let pictures = pictures.par_iter();
    pictures
        .map(|&picture| prepare(picture, options, preprocess))
        .collect()
}

fn prepare(picture: Picture<'_>, options: &DecodeOptions, preprocess: &Preprocess) -> Result<Vec<f32>> {
    let decoded = match picture {
        Picture::File(path) => decode_file(path, options)?,
        Picture::Bytes(bytes) => decode(bytes, "bytes", options)?,
        Picture::Image(image) => return Ok(preprocess.run(image)?),
    };
    Ok(preprocess.run(&decoded)?)
}

/// So many threads, if a number is asked for.
fn pool(threads: usize) -> Result<Option<rayon::ThreadPool>> {
    if threads == 0 {
        return Ok(None);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| Error::Threads {
        threads,
        reason: error.to_string(),
    })?;
    Ok(Some(pool))
}
