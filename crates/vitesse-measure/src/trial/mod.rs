//! Trials of methods: trained, tested once, merged where that can be, proved, and kept as `result.json`.
//!
//! A [`Job`] and a [`Setup`] take any method that follows [`vitesse_train::method`]. What is typed, and so what is compared, are
//! the methods of adaptation.
//!
//! | file | what |
//! | --- | --- |
//! | `job` | one run: base, method, training, adapter |
//! | `entry` | a method with its settings, as typed |
//! | `comparison` | several methods with one budget: the search before the runs, the latencies after them |
//! | `found` | what a comparison found |
//! | `reuse` | a model put to other tasks, with a new head alone and with RepAdapter |
//! | `vtab` | a comparison on each task of VTAB-1k, and its score |

pub mod comparison;
mod entry;
pub mod found;
mod job;
pub mod reuse;
pub mod vtab;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use vitesse_data::DataSet;
use vitesse_engine::{Engine, Options, Precision};
use vitesse_kernels::train::release_memory;
use vitesse_model::storage::atomic_write;
use vitesse_model::{Checkpoint, Fusion, LoadOptions};
use vitesse_train::evaluate::{EvalOptions, evaluate};
use vitesse_train::method::{Method, Table, named};
use vitesse_train::parallel::Team;
use vitesse_train::run::{ADAPTER, Existing, RESULT, RunFolder};
use vitesse_train::{Error as TrainError, Recipe};

use crate::classify::Recorder;
use crate::contest::{Contest, Contestant, Ratio};
use crate::events::evaluating;
use crate::images::pixels;
use crate::machine::{peak_memory, reset_peak_memory};
use crate::merge::{Folded, fold};
use crate::proof::compare;
use crate::timing::Budget;
use crate::{Error, Events, Result, TrainEvents, origin};
pub use entry::{Entry, Search, defaults, setting, table};
pub use job::{Done, Job, Ready};

/// Test images that a merge is proved on.
const PROOF_IMAGES: usize = 16;
/// Images a batch in the test.
const TEST_BATCH: usize = 32;

/// What one run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trial {
    /// The entry of the comparison, as typed.
    pub label: String,
    /// The table of the method: its name and its settings.
    pub method: Table,
    /// The seed.
    pub seed: u64,
    /// Parameters of the method.
    pub method_param_count: usize,
    /// Of the head.
    pub head_param_count: usize,
    /// Of the whole model, the method's included.
    pub param_count: usize,
    /// Size of the adapter's files, if there is one.
    pub adapter_bytes: u64,
    /// Epochs trained.
    pub epochs: usize,
    /// What the tested checkpoint was chosen by, in percent; absent without a validation split.
    pub validation_top1: Option<f64>,
    /// Cross-entropy on the validation images.
    pub validation_loss: Option<f64>,
    /// On the test split, in percent; absent where the run only was a candidate of a search.
    pub test: Option<Test>,
    /// Of training with its evaluations.
    pub seconds: f64,
    /// The most memory in use while it was trained, where that was measured and the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// The one evaluation on the test split.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Test {
    /// Images that are recognised.
    pub top1: f64,
    /// The mean of the classes' top-1.
    pub balanced_accuracy: f64,
    /// Cross-entropy in nats.
    pub loss: f64,
    /// A 1 for each image that was recognised, a 0 for each that was not.
    pub right: String,
    /// What merging came to; absent for methods that add no ops.
    pub merged: Option<Merged>,
}

/// What merging came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Merged {
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
pub struct Setup {
    /// The entry of the comparison, which is a row of its tables.
    pub label: String,
    /// The method, of whatever list.
    pub method: Box<dyn Method>,
    /// How it is trained.
    pub recipe: Recipe,
    /// The folder of the run.
    pub folder: PathBuf,
    /// Where the base is now, if it is not yet where the recipe says.
    pub base: Option<PathBuf>,
    /// Whether the peak of memory is measured, for which that of the process so far is forgotten.
    pub memory: bool,
}

impl Setup {
    fn job(&self) -> Job<'_> {
        Job {
            method: &*self.method,
            recipe: &self.recipe,
            output: &self.folder,
            base: self.base.as_deref(),
            existing: self.existing(),
        }
    }

    /// Refuses a folder with another run, or with one that is finished on another base.
    ///
    /// # Errors
    /// As [`RunFolder::check`]; a base with other weights.
    pub fn check(&self) -> Result<()> {
        RunFolder::check(&self.folder, &self.recipe, self.existing())?;
        if self.folder.join(RESULT).is_file() {
            self.job().same_base_as_adapter()?;
        }
        Ok(())
    }

    fn existing(&self) -> Existing {
        if self.folder.exists() {
            Existing::Resume
        } else {
            Existing::Refuse
        }
    }

    /// The finished run in the folder, if it is there and is this one.
    ///
    /// # Errors
    /// A result that cannot be read, or another run.
    pub fn found(&self) -> Result<Option<Trial>> {
        let path = self.folder.join(RESULT);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let trial: Trial = serde_json::from_str(&text).map_err(|error| Error::Unreadable {
            path,
            reason: error.to_string(),
        })?;
        self.check()?;
        let label = self.label.clone();
        Ok(Some(Trial { label, ..trial }))
    }

    /// Trains, or goes on with it, and keeps the result.
    ///
    /// # Errors
    /// As [`Job::ready`] and [`Job::run`]; [`Error::Stopped`] once `stop` was set.
    pub fn train(&self, stop: &AtomicBool, events: &mut dyn TrainEvents) -> Result<Trial> {
        if let Some(trial) = self.found()? {
            return Ok(trial);
        }
        release_memory();
        let known = self.memory && reset_peak_memory();
        let job = self.job();
        let ready = job.ready(events.as_events())?;
        events.say("note", &ready.trainable().to_string());
        let Done {
            outcome,
            trainable,
            adapter,
        } = job
            .run(ready, &Team::alone(), stop, events.training())
            .map_err(|error| match error {
                Error::Train(TrainError::Interrupted) => Error::Stopped,
                other => other,
            })?;
        let trial = Trial {
            label: self.label.clone(),
            method: named(&*self.method),
            seed: self.recipe.train.seed,
            method_param_count: trainable.method_param_count,
            head_param_count: trainable.head_param_count,
            param_count: trainable.param_count,
            adapter_bytes: adapter.map_or(0, |folder| bytes(&folder)),
            epochs: outcome.epochs,
            validation_top1: outcome.best.map(|best| best.top1),
            validation_loss: outcome.best.map(|best| best.loss),
            test: None,
            seconds: RunFolder::earlier_seconds(&self.folder)?,
            peak_memory_bytes: peak_memory().filter(|_| known),
        };
        self.save(&trial)?;
        Ok(trial)
    }

    fn save(&self, trial: &Trial) -> Result<()> {
        keep(&self.folder, (RESULT, trial), &[])
    }

    /// The model as it was trained, with its ops.
    ///
    /// # Errors
    /// A run that is not finished.
    pub fn trained(&self) -> Result<Checkpoint> {
        let path = RunFolder::checkpoint_in(&self.folder);
        Ok(Checkpoint::load(path, &LoadOptions::default())?)
    }

    /// The base with a fresh head and no ops.
    ///
    /// # Errors
    /// As [`Job::ready`].
    pub fn plain(&self, events: &mut dyn Events) -> Result<Checkpoint> {
        Ok(self.job().ready(events)?.base)
    }

    /// Where the adapter is.
    pub fn adapter(&self) -> PathBuf {
        self.folder.join(ADAPTER)
    }

    /// Tests a trained run on `data`, once, unless it was tested before; merged, where everything can be.
    ///
    /// # Errors
    /// A merged model that is not proved; [`Error::Interrupted`] once `stop` was set.
    pub fn test(
        &self,
        trial: Trial,
        data: &DataSet,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Trial> {
        if trial.test.is_some() {
            return Ok(trial);
        }
        let trained = self.trained()?;
        let prepare = trained.preprocess()?;
        let (model, merged) = match fold(&*self.method, &trained)? {
            Folded::Plain => (trained, None),
            Folded::Refused(reason) => (trained, Some(Merged::Refused { reason })),
            Folded::Whole(model) => {
                let images = pixels(data, PROOF_IMAGES, &trained)?;
                let proof = compare(&model, &trained, &images, self.method.check())?;
                if !proof.is_met() {
                    return Err(Error::Unequal {
                        folder: self.folder.clone(),
                        proof,
                    });
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
        let mut progress = evaluating("testing", data.len(), stop, events);
        let found = evaluate(&mut recorder, data, &prepare, options, &mut progress)?;
        drop(progress);
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

    /// Latency of one image: of the plain model, of the one with ops and of the merged one, in turns; `None` for what cannot be
    /// merged.
    ///
    /// # Errors
    /// A run that is not finished; [`Error::Interrupted`] once `stop` was set.
    pub fn latency(
        &self,
        (rounds, turn): (usize, Budget),
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Option<Latency>> {
        let threads = rayon::current_num_threads();
        let contestant =
            |label: &str, model: &Checkpoint| Contestant::new(label, Precision::F32, threads, model);
        let trained = self.trained()?;
        let Folded::Whole(model) = fold(&*self.method, &trained)? else {
            return Ok(None);
        };
        let plain = contestant("plain", &self.plain(events)?)?;
        let merged = contestant("merged", &model)?;
        let same_plan = plain.outline() == merged.outline();
        let all = vec![plain, contestant("with ops", &trained)?, merged];
        let batches = Contest::new(all, vec![1], turn, threads).turns(rounds, stop, events)?;
        let times: Vec<_> = batches.iter().flat_map(|batch| &batch.results).collect();
        Ok(match times[..] {
            [plain, with_ops, merged] => Some(Latency {
                plain_latency_ms: plain.latency_ms,
                with_ops: with_ops.ratio,
                merged: merged.ratio,
                same_plan,
            }),
            _ => None,
        })
    }
}

/// Latency of one image.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Of the plain model.
    pub plain_latency_ms: f64,
    /// To that, with ops.
    pub with_ops: Ratio,
    /// To that, merged.
    pub merged: Ratio,
    /// Whether the merged model's plan is the plain one, step for step.
    pub same_plan: bool,
}

/// Writes a document as JSON, and texts beside it.
pub fn keep<T: Serialize>(folder: &Path, (name, document): (&str, &T), texts: &[(&str, &str)]) -> Result<()> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| TrainError::Backend(format!("writing `{name}`: {error}")))?;
    for (name, text) in [(name, &*text)].iter().chain(texts) {
        atomic_write(&folder.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    Ok(())
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
