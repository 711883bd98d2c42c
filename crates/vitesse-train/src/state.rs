//! Everything that training changes, in memory and on disk.
//!
//! A state is one safetensors file that needs no other file: all weights (trained or not) as `model.NAME`, the
//! optimiser's moments as `adam.m.NAME` and `adam.v.NAME`, the moving average as `ema.NAME`, what the run's method remembers
//! as `method.NAME`, and, in the metadata, the model's description and how far the run is. There is no generator state: every draw is a function of the seed and
//! the step. Files are written whole or not at all, so a run that is killed at any moment continues from the state
//! before, with the same bits.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vitesse_model::spec::Role;
use vitesse_model::storage::safetensors::{self, Metadata};
use vitesse_model::{Checkpoint, Config, ModelSpec, Sites, Tensors};

use crate::adamw::{OptimConfig, Slot, follow};
use crate::groups::groups;
use crate::{Error, Result};

/// The version of the layout.
const SCHEMA: u32 = 1;
/// What the names of tensors that hooks remember begin with.
const METHOD: &str = "method.";

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps taken.
    pub step: usize,
    /// Processes that take them together.
    #[serde(default = "one")]
    pub processes: usize,
    /// A checksum of the names and labels of the pictures that are learned from and evaluated on; absent before the first step.
    #[serde(default)]
    pub data: Option<u64>,
    /// Epochs finished: trained, evaluated, logged.
    pub epochs: usize,
    /// Sums over the steps taken in the epoch that is under way.
    pub running: Running,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// What was measured after the last finished epoch.
    pub metrics: Map<String, Value>,
    /// The evaluated epochs whose checkpoints are kept, best first.
    pub kept: Vec<Best>,
}

/// Of a state from before there could be several.
fn one() -> usize {
    1
}

/// Sums over a part of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Running {
    /// Steps summed over.
    pub steps: usize,
    /// Sum of their losses.
    pub loss: f64,
    /// Seconds they took.
    pub seconds: f64,
}

/// An evaluated epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Its validation accuracy, in percent.
    pub top1: f64,
    /// Its validation loss.
    pub loss: f64,
}

/// A buffer (a running mean or variance), which no gradient trains.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// The tensor's name.
    pub name: String,
    /// Its values.
    pub values: Vec<f32>,
    /// Their moving average, if one is kept.
    pub ema: Option<Vec<f32>>,
}

/// Everything that training changes.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The model's description.
    pub spec: ModelSpec,
    /// What else its checkpoint says.
    pub config: Config,
    /// SHA-256 of the weights file the run started from.
    pub parent_sha256: Option<String>,
    /// The trained tensors, in the order of their names.
    pub slots: Vec<Slot>,
    /// The buffers, in the order of their names.
    pub buffers: Vec<Buffer>,
    /// The tensors that stay as they are.
    pub frozen: Tensors,
    /// What the run's [hooks](crate::hooks) remember, by names that they choose.
    pub method: Tensors,
    /// How far the run is.
    pub progress: Progress,
}

#[derive(Serialize, Deserialize)]
struct Header {
    schema: u32,
    /// The `config.json` of a checkpoint, which describes the model too.
    config: String,
    parent_sha256: Option<String>,
    progress: Progress,
    ema: bool,
}

/// Fowler, Noll and Vo's hash, of words in the place of bytes.
pub(crate) fn fnv1a(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x0100_0000_01b3)
    })
}

impl State {
    /// The state before the first step. `trained` says by name which tensors are trained (buffers never are).
    ///
    /// # Errors
    /// Tensors that are not the spec's, or nothing to train.
    pub fn new(
        checkpoint: &Checkpoint,
        optim: &OptimConfig,
        ema: bool,
        trained: &dyn Fn(&str) -> bool,
    ) -> Result<State> {
        let parent = checkpoint.source_sha256()?;
        State::build(
            &checkpoint.spec,
            &checkpoint.config,
            parent,
            &checkpoint.tensors,
            optim,
            ema,
            trained,
        )
    }

    fn build(
        spec: &ModelSpec,
        config: &Config,
        parent_sha256: Option<String>,
        tensors: &Tensors,
        optim: &OptimConfig,
        ema: bool,
        trained: &dyn Fn(&str) -> bool,
    ) -> Result<State> {
        spec.check(tensors, "the model")?;
        let mut specs = spec.tensors()?;
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        let groups = groups(&specs, spec.depth(), &optim.no_weight_decay, optim.layer_decay);
        let mut state = State {
            spec: spec.clone(),
            config: config.clone(),
            parent_sha256,
            slots: Vec::new(),
            buffers: Vec::new(),
            frozen: Tensors::new(),
            method: Tensors::new(),
            progress: Progress::default(),
        };
        for (spec, group) in specs.iter().zip(groups) {
            let tensor = tensors.get(&spec.name)?;
            let values = || tensor.to_f32().into_owned();
            if spec.role == Role::Buffer {
                let values = values();
                state.buffers.push(Buffer {
                    name: spec.name.clone(),
                    ema: ema.then(|| values.clone()),
                    values,
                });
            } else if spec.role == Role::Parameter && trained(&spec.name) {
                state
                    .slots
                    .push(Slot::new(&spec.name, &spec.shape, group, values(), ema));
            } else {
                state.frozen.insert(&spec.name, tensor.clone());
            }
        }
        if state.slots.is_empty() {
            return Err(Error::Empty {
                what: "the set of tensors to train",
            });
        }
        Ok(state)
    }

    /// The weights as they are now, or their moving average (the weights where none is kept).
    ///
    /// # Errors
    /// None for a state made by this type.
    pub fn tensors(&self, ema: bool) -> Result<Tensors> {
        let mut tensors = self.frozen.clone();
        for slot in &self.slots {
            let average = slot.ema.as_ref().filter(|_| ema);
            tensors.insert_f32(&slot.name, &slot.shape, average.unwrap_or(&slot.weight).clone())?;
        }
        for buffer in &self.buffers {
            let average = buffer.ema.as_ref().filter(|_| ema);
            let values = average.unwrap_or(&buffer.values).clone();
            tensors.insert_f32(&buffer.name, &[values.len()], values)?;
        }
        Ok(tensors)
    }

    /// Takes a buffer's new values.
    pub fn set_buffer(&mut self, name: &str, values: Vec<f32>) {
        if let Some(buffer) = self.buffers.iter_mut().find(|buffer| buffer.name == name) {
            buffer.values = values;
        }
    }

    /// A number that is equal for equal weights, running statistics and memories of hooks, and hardly ever for others (FNV-1a
    /// over their bits).
    pub(crate) fn checksum(&self) -> u64 {
        let weights = self.slots.iter().flat_map(|slot| &slot.weight);
        let buffers = self.buffers.iter().flat_map(|buffer| &buffer.values);
        let numbers = weights.chain(buffers).map(|value| u64::from(value.to_bits()));
        let method = self.method.iter().flat_map(|(_, tensor)| tensor.bytes());
        fnv1a(numbers.chain(method.map(|&byte| u64::from(byte))))
    }

    /// Moves the buffers' averages after a step.
    pub fn average_buffers(&mut self, decay: f64) {
        for Buffer { values, ema, .. } in &mut self.buffers {
            if let Some(ema) = ema {
                follow(ema, values, (1.0 - decay) as f32);
            }
        }
    }

    /// Writes the state as one file, in one step.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = Tensors::new();
        let ema = self.slots.iter().any(|slot| slot.ema.is_some());
        for (name, tensor) in self.tensors(false)? {
            file.insert(format!("model.{name}"), tensor);
        }
        for slot in &self.slots {
            file.insert_f32(format!("adam.m.{}", slot.name), &slot.shape, slot.m.clone())?;
            file.insert_f32(format!("adam.v.{}", slot.name), &slot.shape, slot.v.clone())?;
            if let Some(average) = &slot.ema {
                file.insert_f32(format!("ema.{}", slot.name), &slot.shape, average.clone())?;
            }
        }
        for buffer in &self.buffers {
            if let Some(average) = &buffer.ema {
                file.insert_f32(format!("ema.{}", buffer.name), &[average.len()], average.clone())?;
            }
        }
        for (name, tensor) in self.method.iter() {
            file.insert(format!("{METHOD}{name}"), tensor.clone());
        }
        let header = Header {
            schema: SCHEMA,
            config: self.config.to_json(&self.spec)?,
            parent_sha256: self.parent_sha256.clone(),
            progress: self.progress.clone(),
            ema,
        };
        let header = serde_json::to_string(&header)
            .map_err(|error| Error::Backend(format!("writing a state's header: {error}")))?;
        let metadata = Metadata::from([("vitesse.state".to_owned(), header)]);
        Ok(safetensors::write(path, &file, &metadata)?)
    }

    /// Reads a state. The groups of the tensors follow from `optim`.
    ///
    /// # Errors
    /// A file that is not a whole state of this version.
    pub fn load(path: &Path, optim: &OptimConfig) -> Result<State> {
        let fail = |reason: String| Error::Resume {
            path: path.to_owned(),
            reason,
        };
        let (mut file, metadata) = safetensors::read(path)?;
        let text = metadata
            .get("vitesse.state")
            .ok_or_else(|| fail("the file is not a training state".into()))?;
        let header: Header = serde_json::from_str(text)
            .map_err(|error| fail(format!("its header cannot be read: {error}")))?;
        if header.schema != SCHEMA {
            return Err(fail(format!(
                "it has version {}, this program reads {SCHEMA}",
                header.schema
            )));
        }
        let (spec, config) = Config::parse(&header.config, path)?;
        let mut model = Tensors::new();
        for tensor in spec.tensors()? {
            let value = file.remove(&format!("model.{}", tensor.name))?;
            model.insert(tensor.name, value);
        }
        let trained = |name: &str| file.contains(&format!("adam.m.{name}"));
        let parent = header.parent_sha256;
        let mut state = State::build(&spec, &config, parent, &model, optim, header.ema, &trained)?;
        let get = |kind: &str, name: &str, shape: &[usize]| -> Result<Vec<f32>> {
            Ok(file
                .get_shaped(&format!("{kind}.{name}"), shape)?
                .to_f32()
                .into_owned())
        };
        for slot in &mut state.slots {
            slot.m = get("adam.m", &slot.name, &slot.shape)?;
            slot.v = get("adam.v", &slot.name, &slot.shape)?;
            if header.ema {
                slot.ema = Some(get("ema", &slot.name, &slot.shape)?);
            }
        }
        for buffer in &mut state.buffers {
            if header.ema {
                buffer.ema = Some(get("ema", &buffer.name, &[buffer.values.len()])?);
            }
        }
        for (name, tensor) in file.iter() {
            if let Some(name) = name.strip_prefix(METHOD) {
                state.method.insert(name, tensor.clone());
            }
        }
        state.progress = header.progress;
        Ok(state)
    }
}
