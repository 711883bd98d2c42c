//! The methods, one file each, always in the same order: what it does and where it is published, `Config`, the
//! algorithm, tests.
//!
//! A method is a function `(ModelSpec, Tensors, Config) → (ModelSpec with ops, Tensors, the tensors that learn)`. Three
//! families:
//!
//! * **ops that fold**: [`repadapter`], [`lora`], [`ssf`] cost nothing once merged;
//! * **ops that stay**: [`vpt`], [`adapter`], [`adaptformer`] make the adapted model slower than the plain one;
//! * **no ops**: [`bitfit`], [`norm`], [`linear`], [`partial`], [`full`] choose which of the model's own tensors learn.
//!
//! Whatever the method, a fresh op starts as the identity (but for SSF, which starts near it), the head is new and learns,
//! and everything else is frozen, norms and class token included.

pub mod adapter;
pub mod adaptformer;
pub mod bitfit;
pub mod full;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod partial;
pub mod repadapter;
pub mod ssf;
pub mod vpt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};

use crate::{Error, Result, Trainable};

/// A method with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Method {
    /// Linear bottlenecks before projections.
    Repadapter(repadapter::Config),
    /// Low-rank updates of projections.
    Lora(lora::Config),
    /// A scale and a shift after every operation.
    Ssf(ssf::Config),
    /// Learned tokens.
    Vpt(vpt::Config),
    /// Bottlenecks with an activation after sub-layers.
    Adapter(adapter::Config),
    /// A bottleneck parallel to the perceptron.
    Adaptformer(adaptformer::Config),
    /// All biases.
    Bitfit(bitfit::Config),
    /// All layer norms.
    Norm(norm::Config),
    /// Nothing but the head.
    Linear(linear::Config),
    /// The last blocks.
    Partial(partial::Config),
    /// Everything.
    Full(full::Config),
}

/// A model with what a method adds to it.
#[derive(Debug, Clone)]
pub struct Adapted {
    /// The description, with the method's ops.
    pub spec: ModelSpec,
    /// The weights, with the fresh ops'.
    pub tensors: Tensors,
    /// What learns.
    pub trainable: Trainable,
}

impl Method {
    /// The names, in the order of this module's list.
    pub const NAMES: [&str; 11] = [
        "repadapter",
        "lora",
        "ssf",
        "vpt",
        "adapter",
        "adaptformer",
        "bitfit",
        "norm",
        "linear",
        "partial",
        "full",
    ];

    /// A method by name, with the settings that are not as its documented defaults. A value is read as JSON where it can
    /// be, and as text otherwise.
    ///
    /// # Errors
    /// An unknown name or setting, or a value of the wrong type.
    pub fn parse(name: &str, settings: &[(&str, String)]) -> Result<Method> {
        let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        let map: Map<String, Value> = settings
            .iter()
            .map(|(key, text)| ((*key).to_owned(), value(text)))
            .collect();
        Ok(match name {
            "repadapter" => Method::Repadapter(read("repadapter", map)?),
            "lora" => Method::Lora(read("lora", map)?),
            "ssf" => Method::Ssf(read("ssf", map)?),
            "vpt" => Method::Vpt(read("vpt", map)?),
            "adapter" => Method::Adapter(read("adapter", map)?),
            "adaptformer" => Method::Adaptformer(read("adaptformer", map)?),
            "bitfit" => Method::Bitfit(read("bitfit", map)?),
            "norm" => Method::Norm(read("norm", map)?),
            "linear" => Method::Linear(read("linear", map)?),
            "partial" => Method::Partial(read("partial", map)?),
            "full" => Method::Full(read("full", map)?),
            other => {
                return Err(Error::UnknownMethod {
                    name: other.to_owned(),
                    known: Method::NAMES.map(|name| format!("`{name}`")).join(", "),
                });
            }
        })
    }

    /// The name on the command line and in files.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Repadapter(_) => "repadapter",
            Method::Lora(_) => "lora",
            Method::Ssf(_) => "ssf",
            Method::Vpt(_) => "vpt",
            Method::Adapter(_) => "adapter",
            Method::Adaptformer(_) => "adaptformer",
            Method::Bitfit(_) => "bitfit",
            Method::Norm(_) => "norm",
            Method::Linear(_) => "linear",
            Method::Partial(_) => "partial",
            Method::Full(_) => "full",
        }
    }

    /// The model with what the method adds; what is drawn is drawn from `seed`.
    ///
    /// # Errors
    /// A model that is no vision transformer, and settings that do not fit it, in a sentence.
    pub fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
        spec.vit()?;
        match self {
            Method::Repadapter(config) => config.apply(spec, tensors, seed),
            Method::Lora(config) => config.apply(spec, tensors, seed),
            Method::Ssf(config) => config.apply(spec, tensors, seed),
            Method::Vpt(config) => config.apply(spec, tensors, seed),
            Method::Adapter(config) => config.apply(spec, tensors, seed),
            Method::Adaptformer(config) => config.apply(spec, tensors, seed),
            Method::Bitfit(config) => config.apply(spec, tensors),
            Method::Norm(config) => config.apply(spec, tensors),
            Method::Linear(config) => config.apply(spec, tensors),
            Method::Partial(config) => config.apply(spec, tensors),
            Method::Full(config) => config.apply(spec, tensors),
        }
    }

    /// What a recipe should say otherwise than the common one, as keys of its tables.
    pub fn recipe(&self) -> &'static [(&'static str, f64)] {
        match self {
            // The published rates lie between 1e-3 and 1e-2; a scale near 1 needs larger steps than a matrix near 0.
            Method::Ssf(_) => &[("optim.lr", 5e-3), ("optim.weight_decay", 5e-5)],
            Method::Bitfit(_) | Method::Norm(_) => &[("optim.lr", 5e-3)],
            Method::Linear(_) => &[("optim.lr", 1e-2), ("model.drop_path", 0.0)],
            Method::Partial(_) | Method::Full(_) => &[("optim.lr", 1e-4), ("optim.weight_decay", 1e-2)],
            _ => &[],
        }
    }

    /// Whether the model computes as in evaluation while the method learns (the paper's setting for prompts).
    pub fn eval_mode(&self) -> bool {
        matches!(self, Method::Vpt(_) | Method::Linear(_))
    }
}

fn read<T: DeserializeOwned>(method: &'static str, map: Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(map)).map_err(|error| Error::Method {
        method,
        sentence: error.to_string(),
    })
}

/// An error of a method's settings.
fn refuse<T>(method: &'static str, sentence: impl Into<String>) -> Result<T> {
    Err(Error::Method {
        method,
        sentence: sentence.into(),
    })
}

/// An op in a block.
fn op(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

/// The layers that have this site, in order.
fn layers_with(sites: &dyn Sites, site: Site) -> impl Iterator<Item = usize> {
    (0..sites.depth()).filter(move |&layer| sites.has(site, Some(layer)))
}

/// Appends ops with fresh tensors; these learn.
fn insert(
    method: &'static str,
    spec: &ModelSpec,
    tensors: &Tensors,
    ops: Vec<OpSpec>,
    seed: u64,
) -> Result<Adapted> {
    if ops.is_empty() {
        return refuse(
            method,
            "this model has no place for it: none of its blocks has the sub-layer that is adapted",
        );
    }
    let (mut spec, mut tensors) = (spec.clone(), tensors.clone());
    let first = spec.ops.len();
    spec.ops.extend(ops);
    spec.validate()?;
    let mut fresh = Vec::new();
    for (index, op) in spec.ops.iter().enumerate().skip(first) {
        fresh.extend(op.tensors(index, &spec));
    }
    for tensor in &fresh {
        tensors.insert(tensor.name.clone(), tensor.init(seed)?);
    }
    let new: std::collections::HashSet<&str> = fresh.iter().map(|tensor| tensor.name.as_str()).collect();
    let trainable = Trainable::select(method, &spec, |tensor| new.contains(tensor.name.as_str()))?;
    Ok(Adapted {
        spec,
        tensors,
        trainable,
    })
}

/// The model as it is, with the tensors that `rule` selects by name learning.
fn select(
    method: &'static str,
    spec: &ModelSpec,
    tensors: &Tensors,
    rule: impl Fn(&str) -> bool,
) -> Result<Adapted> {
    Ok(Adapted {
        spec: spec.clone(),
        tensors: tensors.clone(),
        trainable: Trainable::select(method, spec, |tensor| rule(&tensor.name))?,
    })
}

#[cfg(test)]
mod testing;
