//! Adapters on disk: PEFT's two files, and in them nothing but what was learned.
//!
//! ```text
//! adapter_config.json          what the adapter is
//! adapter_model.safetensors    its tensors, and the whole head; `adapter_model.bin` where an old PEFT wrote it
//! ```
//!
//! LoRA is written as PEFT writes it and read as PEFT reads it ([`lora`]). The methods that PEFT does not have stand in the
//! same files under a `peft_type` of our own, `VITESSE`, which lists the ops. What PEFT has no field for (the base's
//! hash, the names of the classes) stands in the metadata of the weights file, which PEFT passes over.
//!
//! The head always travels with the adapter, and the SHA-256 of the base's weights file is recorded and checked: on other
//! weights an adapter computes something, but not what it learned.

pub mod lora;
mod names;
pub mod official;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vitesse_model::checkpoint::file_sha256;
use vitesse_model::ops::{self, OpSpec};
use vitesse_model::storage::{AtomicDir, atomic_write, pth, safetensors};
use vitesse_model::{Checkpoint, ModelSpec, Tensor, Tensors};
use vitesse_train::method::{Table, Trainable, head_tensors, split};

use crate::error::without_number;
use crate::{Error, Method, Result};
use lora::{LoraConfig, Updates};
use names::Place;
use vitesse_words::counted;

/// The description of an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights of an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The weights of a folder that an old PEFT wrote.
const OLD_WEIGHTS_FILE: &str = "adapter_model.bin";
/// What stands before the names of all tensors.
const PREFIX: &str = "base_model.model.";
/// The `peft_type` of the methods that PEFT does not have.
const OWN_TYPE: &str = "VITESSE";
/// The version of what stands under it.
const SCHEMA: u64 = 1;
/// The key in the metadata of the weights file.
const RECORD_KEY: &str = "vitesse";

/// What is known about an adapter besides its tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// SHA-256 of the weights file of the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_sha256: Option<String>,
    /// The base's architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The table of the method: its name and its settings. It may be of another crate, or of a later version of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Table>,
    /// The data set it learned from, as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Names of the classes by their index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub label_names: BTreeMap<usize, String>,
    /// Height and width of the images it learned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub img_size: Option<[usize; 2]>,
    /// Rows and columns of the windows in which it learned, where the model has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_size: Option<[usize; 2]>,
    /// What was measured after training.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metrics: Map<String, Value>,
}

impl Record {
    /// The name of the method.
    pub fn method_name(&self) -> Option<&str> {
        self.method.as_ref()?.get("name")?.as_str()
    }

    /// The method, where it is one of this crate's.
    pub fn known_method(&self) -> Option<Method> {
        let (name, settings) = split(self.method.clone()?).ok()?;
        Method::new(&name, settings).ok()
    }
}

/// An adapter: what was learned, without the base.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Where it was read from; empty for one that was not.
    path: PathBuf,
    content: Content,
    /// Whole tensors that take the place of the base's: the head's, and those of methods without ops.
    replaced: Tensors,
    /// What else is known.
    pub record: Record,
}

#[derive(Debug, Clone)]
enum Content {
    /// Ops, and their tensors as if they were a model's only ops.
    Ops(Vec<OpSpec>, Tensors),
    /// PEFT's LoRA: what its modules are is known with the base.
    Lora(Box<LoraConfig>, Tensors),
}

impl Adapter {
    /// What was learned of an adapted model: its last `added` ops and whatever else of it learns.
    ///
    /// # Errors
    /// Tensors that are not the spec's.
    pub fn of(
        spec: &ModelSpec,
        tensors: &Tensors,
        trainable: &Trainable,
        added: usize,
        record: Record,
    ) -> Result<Adapter> {
        let first = spec.ops.len().saturating_sub(added);
        let (mut own, mut own_tensors) = (Vec::new(), Tensors::new());
        for (index, op) in spec.ops.iter().enumerate().skip(first) {
            let (from, to) = (op.prefix(index), op.prefix(index - first));
            for tensor in op.tensors(index, spec) {
                let end = tensor.name.strip_prefix(&from).unwrap_or_default();
                own_tensors.insert(format!("{to}{end}"), tensors.get(&tensor.name)?.clone());
            }
            own.push(op.clone());
        }
        let of_ops: HashSet<String> = ops::tensors(spec).into_iter().map(|tensor| tensor.name).collect();
        let mut replaced = Tensors::new();
        for name in trainable.names().filter(|name| !of_ops.contains(*name)) {
            replaced.insert(name, tensors.get(name)?.clone());
        }
        let content = match lora::express(&own, &own_tensors, &replaced, spec) {
            Some((config, factors)) => Content::Lora(Box::new(config), factors),
            None => Content::Ops(own, own_tensors),
        };
        Ok(Adapter {
            path: PathBuf::new(),
            content,
            replaced,
            record,
        })
    }

    /// Reads an adapter folder of ours or PEFT's.
    ///
    /// # Errors
    /// Files that are missing or damaged, a kind of adapter or an option that is not implemented, in a sentence.
    pub fn read(dir: &Path) -> Result<Adapter> {
        let config_file = dir.join(CONFIG_FILE);
        let fail = |sentence: String| Error::Adapter {
            path: dir.to_owned(),
            sentence,
        };
        let text = fs::read_to_string(&config_file).map_err(|error| {
            fail(format!(
                "its `{CONFIG_FILE}` cannot be read ({error}); an adapter is a folder with `{CONFIG_FILE}` and \
                 `{WEIGHTS_FILE}`, since its factors are not in the weights"
            ))
        })?;
        let config: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| fail(format!("its `{CONFIG_FILE}` is not a JSON object: {error}")))?;
        let weights = weights_file(dir);
        let (tensors, metadata) = if weights.ends_with(OLD_WEIGHTS_FILE) {
            (pth::read(&weights)?, Default::default())
        } else {
            safetensors::read(&weights)?
        };
        if let Some((name, _)) = tensors.iter().find(|(_, tensor)| !tensor.is_finite()) {
            let file = weights.file_name().unwrap_or_default().to_string_lossy();
            return Err(fail(format!(
                "tensor `{name}` of its `{file}` holds NaN or infinity, and so would every answer; train it again"
            )));
        }
        let tensors: Tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix(PREFIX).unwrap_or(&name).to_owned(), tensor))
            .collect();
        let record = match metadata.get(RECORD_KEY) {
            // By way of a value, for a place in the one line of metadata helps nobody.
            Some(text) => serde_json::from_str(text)
                .and_then(serde_json::from_value::<Record>)
                .map_err(|error| fail(format!("the metadata of its weights cannot be read: {error}")))?,
            None => Record::default(),
        };
        let kind = config
            .get("peft_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let (content, replaced) = match kind {
            "LORA" => {
                let read = LoraConfig::read(&config).map_err(fail)?;
                let (factors, replaced) = lora::split(tensors).map_err(fail)?;
                lora::nested(&config, &replaced).map_err(fail)?;
                (Content::Lora(Box::new(read), factors), replaced)
            }
            OWN_TYPE => read_own(&config, tensors).map_err(fail)?,
            other => {
                return Err(fail(format!(
                    "its `peft_type` is `{other}`; those read are `LORA` and `{OWN_TYPE}`"
                )));
            }
        };
        Ok(Adapter {
            path: dir.to_owned(),
            content,
            replaced,
            record,
        })
    }

    /// Writes the folder `dir`, whole or not at all. LoRA is written as PEFT's wherever PEFT can express it.
    ///
    /// # Errors
    /// A folder that exists, unless `force` is set and it holds an adapter; whatever the file system says.
    pub fn write(&self, dir: &Path, force: bool) -> Result<()> {
        let folder = AtomicDir::create(dir, force, CONFIG_FILE)?;
        let (config, tensors) = self.files();
        let named: Tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor))
            .collect();
        let record = json!(self.record).to_string();
        let metadata = [(RECORD_KEY.to_owned(), record)].into_iter().collect();
        safetensors::write(&folder.path().join(WEIGHTS_FILE), &named, &metadata)?;
        let text = format!("{:#}\n", Value::Object(config));
        atomic_write(&folder.path().join(CONFIG_FILE), |file| {
            file.write_all(text.as_bytes())
        })?;
        Ok(folder.commit()?)
    }

    /// The two files: `adapter_config.json`, and the tensors without the prefix.
    fn files(&self) -> (Map<String, Value>, Tensors) {
        let heads: Vec<String> = self.modules_replaced();
        let (mut config, mut tensors) = match &self.content {
            Content::Lora(config, tensors) => (config.to_json(&heads), tensors.clone()),
            Content::Ops(ops, tensors) => (own_config(ops, &heads), tensors.clone()),
        };
        config.insert("base_model_name_or_path".into(), json!(self.record.architecture));
        for (name, tensor) in self.replaced.iter() {
            let wrapped = lora::wrapped(name, &tensors);
            tensors.insert(wrapped, tensor.clone());
        }
        (config, tensors)
    }

    /// The modules of which every tensor is replaced, such as `head`.
    fn modules_replaced(&self) -> Vec<String> {
        let mut modules: Vec<String> = self
            .replaced
            .names()
            .filter_map(|name| name.strip_suffix(".weight"))
            .map(str::to_owned)
            .collect();
        modules.dedup();
        modules
    }

    /// SHA-256 of the adapter's weights file.
    ///
    /// # Errors
    /// An adapter that was not read from a folder, and whatever the file system says.
    pub fn sha256(&self) -> Result<String> {
        Ok(file_sha256(&weights_file(&self.path))?)
    }

    /// Refuses a base that is not the one the adapter was trained on. `Ok(false)` where the adapter does not say which
    /// that was, as one of PEFT's.
    ///
    /// # Errors
    /// [`Error::WrongBase`], and whatever keeps the base's file from being read.
    pub fn check_base(&self, base: &Checkpoint) -> Result<bool> {
        let Some(expected) = &self.record.base_sha256 else {
            return Ok(false);
        };
        let found = base
            .source_sha256()?
            .unwrap_or_else(|| "none (fresh weights)".into());
        if found == *expected {
            return Ok(true);
        }
        let merged = base.config.history.iter().any(|step| step.step == "merge");
        Err(Error::WrongBase {
            architectures: self
                .other_architecture(base)
                .map_or_else(String::new, |both| format!("{both}on "))
                .into(),
            path: self.path.clone(),
            base: base
                .source
                .weights
                .as_ref()
                .map_or_else(
                    || base.spec.architecture.clone(),
                    |path| path.display().to_string(),
                )
                .into(),
            expected: expected.clone(),
            found,
            hint: if merged {
                " (an adapter has been merged into this one already)"
            } else {
                ""
            },
        })
    }

    /// That it was trained on another architecture than the base's, where it says so.
    fn other_architecture(&self, base: &Checkpoint) -> Option<String> {
        let (trained, found) = (self.record.architecture.as_ref()?, &base.spec.architecture);
        (trained != found).then(|| format!("`{trained}`, and this is `{found}`: "))
    }

    /// The base with the adapter's ops, head and other tensors. Whether it is the right base is [`Adapter::check_base`]'s to
    /// say.
    ///
    /// # Errors
    /// Modules or shapes that the base does not have, in a sentence.
    pub fn attach(&self, base: &Checkpoint) -> Result<Checkpoint> {
        self.attached(base)
            .map_err(|error| match (error, self.other_architecture(base)) {
                (Error::Adapter { sentence, .. }, Some(both)) => {
                    self.fail(format!("it was trained on {both}{sentence}"))
                }
                (error, _) => error,
            })
    }

    fn attached(&self, base: &Checkpoint) -> Result<Checkpoint> {
        let mut out = base.clone();
        self.set_classes(&mut out)?;
        self.replace(&mut out)?;
        let Updates {
            ops,
            tensors,
            updated,
        } = self.updates(&out)?;
        for (name, weight) in updated {
            out.tensors.insert(name, weight);
        }
        self.add(&mut out, ops, &tensors)?;
        Ok(out)
    }

    /// The model into which this adapter was merged, with the adapter's ops: all of what it holds that is not in the merged
    /// model as it is.
    ///
    /// # Errors
    /// As [`Adapter::attach`], and an adapter that took the place of more than the heads: what was there is in the base
    /// alone.
    pub fn attach_again(&self, merged: &Checkpoint) -> Result<Checkpoint> {
        let heads = head_tensors(&merged.spec);
        let places = self.places(merged)?;
        let gone = places.iter().find_map(|(place, _)| match place {
            Place::Tensor(name, _) => (!heads.contains(name)).then_some(name),
            Place::Unread => None,
        });
        if let Some(name) = gone {
            return Err(self.fail(format!(
                "it holds `{name}` whole, and what the base had there is not in the merged model; load the base"
            )));
        }
        let mut out = merged.clone();
        let Updates {
            ops,
            tensors,
            updated,
        } = self.updates(&out)?;
        if let Some(name) = updated.names().find(|name| !heads.contains(*name)) {
            return Err(self.fail(format!(
                "its update of `{name}` went into the weight, and what the base had there is not in the merged model; load the base"
            )));
        }
        self.add(&mut out, ops, &tensors)?;
        Ok(out)
    }

    fn fail(&self, sentence: String) -> Error {
        Error::Adapter {
            path: self.path.clone(),
            sentence,
        }
    }

    /// As many classes as the adapter's heads have.
    fn set_classes(&self, out: &mut Checkpoint) -> Result<()> {
        let heads = head_tensors(&ModelSpec {
            num_classes: 1,
            ..out.spec.clone()
        });
        let known = |name: &str| heads.contains(name);
        let (mut found, mut classes) = (HashSet::new(), None);
        for (name, tensor) in self.replaced.iter() {
            if let Some(Place::Tensor(head, _)) = names::place(name, &out.spec, known) {
                found.insert(head);
                classes = tensor.shape().first().copied().or(classes);
            }
        }
        let Some(classes) = classes else {
            return Ok(());
        };
        if classes != out.spec.num_classes
            && let Some(missing) = heads.iter().find(|head| !found.contains(*head))
        {
            return Err(self.fail(format!(
                "it has {} and the base {}, but it lacks `{missing}`; load a base with as many as it has",
                counted(classes, "class"),
                out.spec.num_classes
            )));
        }
        out.set_num_classes(classes, 0)?;
        if !self.record.label_names.is_empty() {
            out.config.label_names = self.record.label_names.clone();
        }
        Ok(())
    }

    /// What the whole tensors take the place of.
    fn places<'a>(&'a self, model: &Checkpoint) -> Result<Vec<(Place, (&'a str, &'a Tensor))>> {
        let found = self.replaced.iter().map(|(name, tensor)| {
            let place = names::place(name, &model.spec, |name| model.tensors.contains(name));
            let place = place.ok_or_else(|| {
                self.fail(format!(
                    "it holds `{name}`, which `{}` does not have; it belongs to another model",
                    model.spec.architecture
                ))
            })?;
            Ok((place, (name, tensor)))
        });
        found.collect()
    }

    /// Puts the whole tensors in their places.
    fn replace(&self, out: &mut Checkpoint) -> Result<()> {
        let mut seen = BTreeSet::new();
        for (place, (name, tensor)) in self.places(out)? {
            let Place::Tensor(ours, part) = place else {
                continue;
            };
            let overlaps = |(other, of): &(String, Option<vitesse_model::ops::QkvPart>)| {
                *other == ours && (*of == part || of.is_none() || part.is_none())
            };
            let twice = seen.iter().any(overlaps);
            seen.insert((ours.clone(), part));
            if twice {
                return Err(self.fail(format!(
                    "it holds `{ours}` under another name besides `{name}`, and only one can be meant; save it again with PEFT"
                )));
            }
            let old = out.tensors.get(&ours)?;
            let parts = part.and_then(|part| {
                let sites = out.spec.sites();
                let mut projections = sites.projections().map(|(_, _, projection)| projection);
                let fused = projections.find(|fused| {
                    let end = ours.strip_prefix(&fused.name);
                    end.is_some_and(|end| end.starts_with('.'))
                })?;
                Some(part.rows(fused.parts?))
            });
            let mut shape = old.shape().to_vec();
            if let (Some((_, rows)), Some(all)) = (parts, shape.first_mut()) {
                *all = rows;
            }
            if shape != tensor.shape() {
                return Err(self.fail(format!(
                    "its tensor `{name}` has shape {:?}, but the base's has {shape:?}; it belongs to another model",
                    tensor.shape()
                )));
            }
            match parts {
                None => {
                    out.tensors.insert(ours, tensor.clone());
                }
                Some((first, rows)) => {
                    let (shape, mut values) = (old.shape().to_vec(), old.to_f32().into_owned());
                    let columns = tensor.numel() / rows.max(1);
                    if let Some(to) = values.get_mut(first * columns..(first + rows) * columns) {
                        to.copy_from_slice(&tensor.to_f32());
                    }
                    out.tensors.insert_f32(ours, &shape, values)?;
                }
            }
        }
        Ok(())
    }

    /// The ops and updated weights in a model that has the whole tensors.
    fn updates(&self, model: &Checkpoint) -> Result<Updates> {
        match &self.content {
            Content::Ops(ops, tensors) => Ok(Updates {
                ops: ops.clone(),
                tensors: tensors.clone(),
                updated: Tensors::new(),
            }),
            Content::Lora(config, factors) => {
                lora::updates(config, factors, model).map_err(|sentence| self.fail(sentence))
            }
        }
    }

    /// Adds ops to those of a model.
    fn add(&self, out: &mut Checkpoint, ops: Vec<OpSpec>, tensors: &Tensors) -> Result<()> {
        let first = out.spec.ops.len();
        for (index, op) in ops.iter().enumerate() {
            let (from, to) = (op.prefix(index), op.prefix(first + index));
            for (name, tensor) in tensors.iter() {
                if let Some(end) = name.strip_prefix(&from).filter(|end| end.starts_with('.')) {
                    out.tensors.insert(format!("{to}{end}"), tensor.clone());
                }
            }
        }
        out.spec.ops.extend(ops);
        out.spec
            .check(&out.tensors, "the base with the adapter")
            .map_err(|error| {
                let sentence = error.to_string();
                self.fail(format!("it does not fit the base: {}", without_number(&sentence)))
            })
    }

    /// How many tensors and parameters it holds, the head's included.
    pub fn size(&self) -> (usize, usize) {
        let (Content::Ops(_, tensors) | Content::Lora(_, tensors)) = &self.content;
        (
            tensors.len() + self.replaced.len(),
            tensors.parameters() + self.replaced.parameters(),
        )
    }
}

/// The weights of the adapter in `dir`: the file of an old PEFT only where the other is absent.
fn weights_file(dir: &Path) -> PathBuf {
    let (weights, old) = (dir.join(WEIGHTS_FILE), dir.join(OLD_WEIGHTS_FILE));
    if !weights.is_file() && old.is_file() {
        old
    } else {
        weights
    }
}

/// An `adapter_config.json` of our own.
fn own_config(ops: &[OpSpec], heads: &[String]) -> Map<String, Value> {
    let Value::Object(config) = json!({
        "peft_type": OWN_TYPE,
        "schema": SCHEMA,
        "ops": ops,
        "modules_to_save": heads,
        "inference_mode": true,
        "task_type": null,
    }) else {
        return Map::new();
    };
    config
}

/// Ops, their tensors, and what is replaced.
fn read_own(
    config: &Map<String, Value>,
    tensors: Tensors,
) -> std::result::Result<(Content, Tensors), String> {
    let schema = config.get("schema").and_then(Value::as_u64);
    if schema != Some(SCHEMA) {
        return Err(format!(
            "its `schema` should be {SCHEMA}, but is {}; a newer version may read it",
            schema.map_or("missing".to_owned(), |schema| schema.to_string())
        ));
    }
    let ops = config.get("ops").cloned().unwrap_or_else(|| json!([]));
    let ops: Vec<OpSpec> =
        serde_json::from_value(ops).map_err(|error| format!("its `ops` cannot be read: {error}"))?;
    let of_op = |name: &str| {
        let mut prefixes = ops.iter().enumerate().map(|(index, op)| op.prefix(index));
        prefixes.any(|prefix| name.strip_prefix(&prefix).is_some_and(|end| end.starts_with('.')))
    };
    let (own, replaced): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| of_op(name));
    Ok((
        Content::Ops(ops, own.into_iter().collect()),
        replaced.into_iter().collect(),
    ))
}

#[cfg(test)]
mod tests;
