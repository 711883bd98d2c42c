//! What a model sees in image files.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::Serialize;
use vitesse_data::{DecodeOptions, Image, OpenOptions, Preprocess, Split, decode_file, open};
use vitesse_engine::Precision;
use vitesse_model::config::Scores;
use vitesse_model::{Checkpoint, Fusion, LoadOptions};
use vitesse_train::evaluate::Classify;

use crate::classify::Runner;
use crate::error::check;
use crate::{Error, Events, Labels, Progress, Result};

/// How files become predictions.
#[derive(Debug, Clone)]
pub struct Predictor {
    /// How images are prepared.
    pub preprocess: Preprocess,
    /// What classes are called.
    pub labels: Labels,
    /// Classes of each image.
    pub topk: usize,
    /// How the two heads of a distilled model answer together.
    pub fusion: Fusion,
    /// Images in one forward pass.
    pub batch_size: usize,
    /// How files become pictures.
    pub decode: DecodeOptions,
    /// What makes scores of logits.
    pub scores: Scores,
}

/// A class that an image may show.
#[derive(Debug, Clone, Serialize)]
pub struct Class {
    /// Its index.
    pub class_index: usize,
    /// Its name, where that is known.
    pub name: Option<String>,
    /// Probability, 0 to 1; the logit itself of a model that gives values.
    pub score: f64,
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

/// The picture files that are meant by `paths`: files as they are, and of a folder all pictures of the data set that it is.
///
/// # Errors
/// A folder without pictures, or a data set whose pictures are no files.
pub fn pictures(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let options = OpenOptions {
            split: Some(Split::All),
            ..OpenOptions::default()
        };
        let data = open(path, &options)?;
        let found: Vec<PathBuf> = (0..data.len()).map(|i| path.join(data.name(i))).collect();
        if found.first().is_some_and(|file| !file.is_file()) {
            return Err(Error::NoFiles(path.clone()));
        }
        files.extend(found);
    }
    Ok(files)
}

/// Asks the model in `checkpoint` about the pictures of the data set in `folder`; those without a label are left out.
///
/// # Errors
/// A picture that cannot be read; as [`Predictor::run`].
pub fn guess(
    checkpoint: &Path,
    folder: &Path,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Vec<Guess>> {
    let data = open(folder, &OpenOptions::default())?;
    let checkpoint = Checkpoint::load(checkpoint, &LoadOptions::default())?;
    let predictor = Predictor {
        preprocess: checkpoint.preprocess()?,
        labels: Labels::of(&checkpoint),
        topk: 1,
        fusion: Fusion::default(),
        batch_size: 16,
        decode: DecodeOptions::default(),
        scores: Scores::Softmax,
    };
    let files: Vec<PathBuf> = (0..data.len()).map(|i| PathBuf::from(data.name(i))).collect();
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(file)).collect();
    let mut runner = Runner::new(&checkpoint, None, Precision::F32, events)?;
    let found = predictor.run(&mut runner, &paths, stop, events)?;
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

impl Predictor {
    /// The likeliest classes of each file, best first, or why it cannot be read; in the order of the files.
    ///
    /// # Errors
    /// A model that cannot compute; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn run(
        &self,
        runner: &mut Runner,
        files: &[PathBuf],
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Vec<Result<Vec<Class>>>> {
        let begun = Progress::of_images(files.len());
        events.progress(begun);
        let mut predictions = Vec::new();
        for batch in files.chunks(self.batch_size.max(1)) {
            predictions.extend(self.batch(runner, batch)?);
            let done = predictions.len();
            events.progress(Progress { done, ..begun });
            check(stop)?;
        }
        Ok(predictions)
    }

    fn batch(&self, runner: &mut Runner, files: &[PathBuf]) -> Result<Vec<Result<Vec<Class>>>> {
        let prepared: Vec<Result<Vec<f32>>> = files.par_iter().map(|file| self.prepare(file)).collect();
        let [channels, height, width] = self.preprocess.input_size;
        let images: Vec<f32> = prepared.iter().flatten().flatten().copied().collect();
        let readable = prepared.iter().flatten().count();
        let mut rows = Vec::new();
        if readable > 0 {
            let heads = runner.classify(&images, [readable, channels, height, width])?;
            let classes = runner.spec().num_classes;
            let scores = heads.joint(self.fusion, classes);
            rows.extend(scores.chunks_exact(classes.max(1)).map(|row| self.best(row)));
        }
        let mut rows = rows.into_iter();
        let found = prepared
            .into_iter()
            .map(|image| image.map(|_| rows.next().unwrap_or_default()));
        Ok(found.collect())
    }

    fn prepare(&self, file: &Path) -> Result<Vec<f32>> {
        Ok(self.preprocess.run(&decode_file(file, &self.decode)?)?)
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
