//! One run of a comparison: trained, tested once, merged where it can be, and kept as `result.json`.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vitesse::adapt::Method;
use vitesse::adapt::merge::Difference;
use vitesse::data::DataSet;
use vitesse::engine::{Engine, Options};
use vitesse::measure::classify::Recorder;
use vitesse::measure::images::pixels;
use vitesse::measure::machine::{peak_memory, reset_peak_memory};
use vitesse::measure::merge::{Folded, fold};
use vitesse::measure::origin;
use vitesse::measure::proof::compare;
use vitesse::model::storage::atomic_write;
use vitesse::model::{Checkpoint, Fusion, LoadOptions};
use vitesse_kernels::train::release_memory;
use vitesse_train::evaluate::{EvalOptions, evaluate};
use vitesse_train::prepare::preprocess;
use vitesse_train::run::{Existing, RunFolder};
use vitesse_train::{Error, Recipe};

use super::job::{ADAPTER, Job};
use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::training::Watch;

/// What stands beside a finished run.
const RESULT: &str = "result.json";
/// Test images that a merge is proved on.
const PROOF_IMAGES: usize = 16;
/// Images a batch in the test.
const TEST_BATCH: usize = 32;

/// What one run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Trial {
    /// The entry of the comparison, as typed.
    pub(in crate::cli) label: String,
    pub(in crate::cli) method: Method,
    pub(in crate::cli) seed: u64,
    /// Parameters of the method.
    pub(in crate::cli) method_parameters: usize,
    /// Of the head.
    pub(in crate::cli) head_parameters: usize,
    /// Of the whole model, the method's included.
    pub(in crate::cli) total_parameters: usize,
    /// Size of the adapter's files.
    pub(in crate::cli) adapter_bytes: u64,
    pub(in crate::cli) epochs: usize,
    /// What the tested checkpoint was chosen by, in percent; absent without a validation split.
    pub(in crate::cli) validation_top1: Option<f64>,
    pub(in crate::cli) validation_loss: Option<f64>,
    /// On the test split, in percent; absent where the run only was a candidate of a search.
    pub(in crate::cli) test: Option<Test>,
    /// Of training with its evaluations.
    pub(in crate::cli) seconds: f64,
    /// The most memory in use while it was trained, where that was measured and the system tells.
    pub(in crate::cli) peak_memory_bytes: Option<u64>,
}

/// The one evaluation on the test split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Test {
    pub(in crate::cli) top1: f64,
    pub(in crate::cli) balanced_accuracy: f64,
    pub(in crate::cli) loss: f64,
    /// A 1 for each image that was recognised, a 0 for each that was not.
    pub(in crate::cli) right: String,
    /// What merging came to; absent for methods that add no ops.
    pub(in crate::cli) merged: Option<Merged>,
}

/// What merging came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) enum Merged {
    /// Everything was folded; the merged model is what was tested.
    #[serde(rename = "folded")]
    Folded {
        /// The largest difference of logits, as a share of the largest logit.
        largest_difference: f64,
        /// Test images that were compared.
        images: usize,
    },
    /// Something cannot be; the model with its ops is what was tested.
    #[serde(rename = "refused")]
    Refused {
        /// Why, of the first op.
        reason: String,
    },
}

/// A run to be made, or found.
#[derive(Debug)]
pub(in crate::cli) struct Plan {
    pub(in crate::cli) label: String,
    pub(in crate::cli) method: Method,
    pub(in crate::cli) recipe: Recipe,
    pub(in crate::cli) folder: PathBuf,
    /// Where the base is now, if it is not yet where the recipe says.
    pub(in crate::cli) base: Option<PathBuf>,
    /// Whether the peak of memory is measured, for which that of the process so far is forgotten.
    pub(in crate::cli) memory: bool,
}

impl Plan {
    fn job(&self) -> Job<'_> {
        Job {
            method: &self.method,
            recipe: &self.recipe,
            output: &self.folder,
            base: self.base.as_deref(),
            existing: self.existing(),
        }
    }

    /// Refuses a folder with another run.
    pub(in crate::cli) fn check(&self) -> Result<()> {
        Ok(RunFolder::check(&self.folder, &self.recipe, self.existing())?)
    }

    fn existing(&self) -> Existing {
        if self.folder.exists() {
            Existing::Resume
        } else {
            Existing::Refuse
        }
    }

    /// The finished run in the folder, if it is there and is this one.
    pub(in crate::cli) fn found(&self) -> Result<Option<Trial>> {
        let path = self.folder.join(RESULT);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io("read", &path, error)),
        };
        let trial: Trial = serde_json::from_str(&text).map_err(|error| {
            let sentence = format!("`{}` cannot be read: {error}", path.display());
            Failure::new("E_RESUME", sentence).hint("delete it, and the run is tested again")
        })?;
        self.check()?;
        let label = self.label.clone();
        Ok(Some(Trial { label, ..trial }))
    }

    /// Trains, or goes on with it, and keeps the result.
    pub(in crate::cli) fn train(&self, console: &Console) -> Result<Trial> {
        if let Some(trial) = self.found()? {
            return Ok(trial);
        }
        release_memory();
        let known = self.memory && reset_peak_memory();
        let job = self.job();
        let mut ready = job.ready(console)?;
        console.note(&ready.trainable().to_string());
        let mut watch = Watch::new(console);
        let learned = job
            .run(&mut ready, console, &mut watch)
            .map_err(|error| match error {
                Error::Interrupted => Failure::stopped("interrupted; every run's state is saved")
                    .hint("go on with the same command and `--resume`"),
                other => other.into(),
            })?;
        let adapter = job.keep(&ready, &self.checkpoint())?;
        let trainable = ready.trainable();
        let trial = Trial {
            label: self.label.clone(),
            method: self.method.clone(),
            seed: self.recipe.train.seed,
            method_parameters: trainable.method_parameters,
            head_parameters: trainable.head_parameters,
            total_parameters: trainable.total_parameters,
            adapter_bytes: bytes(&adapter),
            epochs: learned.epochs,
            validation_top1: learned.best.map(|best| best.top1),
            validation_loss: learned.best.map(|best| best.loss),
            test: None,
            seconds: RunFolder::earlier_seconds(&self.folder)?,
            peak_memory_bytes: peak_memory().filter(|_| known),
        };
        self.save(&trial)?;
        Ok(trial)
    }

    fn save(&self, trial: &Trial) -> Result<()> {
        let text = serde_json::to_string_pretty(trial).map_err(|error| {
            Failure::new(
                "E_INTERNAL",
                format!("a result cannot be written as JSON: {error}"),
            )
        })?;
        atomic_write(&self.folder.join(RESULT), |file| file.write_all(text.as_bytes()))?;
        Ok(())
    }

    /// The checkpoint of the best epoch, or the last where nothing was evaluated.
    fn checkpoint(&self) -> PathBuf {
        let best = self.folder.join("best");
        if best.is_dir() {
            best
        } else {
            self.folder.join("final")
        }
    }

    /// The model as it was trained, with its ops.
    pub(in crate::cli) fn trained(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::load(self.checkpoint(), &LoadOptions::default())?)
    }

    /// The base with a fresh head and no ops.
    pub(in crate::cli) fn plain(&self, console: &Console) -> Result<Checkpoint> {
        Ok(self.job().ready(console)?.base)
    }

    /// Where the adapter is.
    pub(in crate::cli) fn adapter(&self) -> PathBuf {
        self.folder.join(ADAPTER)
    }

    /// Tests a trained run on `data`, once, unless it was tested before; merged, where everything can be.
    pub(in crate::cli) fn test(&self, trial: Trial, data: &DataSet, console: &Console) -> Result<Trial> {
        if trial.test.is_some() {
            return Ok(trial);
        }
        let trained = self.trained()?;
        let prepare = preprocess(&trained.spec, &trained.config.pretrained_cfg)?;
        let (model, merged) = match fold(&trained)? {
            Folded::Plain => (trained, None),
            Folded::Refused(reason) => (trained, Some(Merged::Refused { reason })),
            Folded::Whole(model) => {
                let images = pixels(data, PROOF_IMAGES, &trained)?;
                let proof = compare(&model, &trained, &images)?;
                if !proof.is_met() {
                    return Err(unequal(&self.folder, &proof));
                }
                let merged = Merged::Folded {
                    largest_difference: proof.largest,
                    images: proof.images,
                };
                (*model, Some(merged))
            }
        };
        let options = Options {
            threads: rayon::current_num_threads(),
            ..Options::default()
        };
        let engine = Engine::new(&model.spec, &model.tensors, &origin(&model), options)?;
        let mut recorder = Recorder::new(&engine, Fusion::default());
        let options = EvalOptions {
            batch_size: TEST_BATCH,
            ..EvalOptions::default()
        };
        let mut progress = console.progress("images", data.len());
        progress.about("testing");
        let found = evaluate(
            &mut recorder,
            data,
            &prepare,
            options,
            &mut |at| match progress.at(at.done) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            },
        )?;
        // Images that cannot be read are the same for all entries.
        let unreadable = |i: &usize| found.failures.iter().any(|failure| failure.index == *i);
        let readable = (0..data.len()).filter(|i| !unreadable(i));
        let right = readable
            .zip(&recorder.predictions)
            .map(|(i, &class)| if data.label(i) == Some(class) { '1' } else { '0' })
            .collect();
        let trial = Trial {
            test: Some(Test {
                top1: found.joint.top1,
                balanced_accuracy: found.joint.balanced,
                loss: found.joint.loss,
                right,
                merged,
            }),
            ..trial
        };
        self.save(&trial)?;
        Ok(trial)
    }
}

fn unequal(folder: &Path, proof: &Difference) -> Failure {
    let sentence = format!(
        "merging the run in `{}` does not give the same logits: {proof}",
        folder.display()
    );
    Failure::new("E_MERGE", sentence)
}

/// Bytes of the files in a folder.
fn bytes(folder: &Path) -> u64 {
    let Ok(files) = fs::read_dir(folder) else { return 0 };
    files
        .flatten()
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len())
        .sum()
}
