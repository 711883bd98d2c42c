//! `config.json`: what a checkpoint folder says about its weights.
//!
//! The file is timm's: `architecture`, `num_classes`, `model_args`, `pretrained_cfg` and the labels mean what they mean
//! there, so timm builds and loads a model that it can express, and files that timm wrote are read as timm reads them,
//! the old flat form included. What timm cannot express stands under one key that it ignores:
//!
//! ```text
//! "vitesse": { "schema": 1, "architecture": …, "blocks": …, "share": …, "ops": …, "history": [ … ] }
//! ```
//!
//! `architecture` appears there when timm builds the model from another name, `history` when something has been done to
//! the weights, the rest as the submodule `network` says. Reading and writing are exact inverses.

mod blocks;
mod fields;
mod network;
pub mod preprocessor;
mod pretrained;
mod regnet;
mod swin;
mod vit;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::spec::limits::CLASSES;
pub(crate) use fields::Fields;
pub use pretrained::PretrainedCfg;

use crate::spec::ModelSpec;
use crate::zoo::{self, imagenet};
use crate::{Error, Result};

/// The name of the file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";

/// The version of what stands under `vitesse`.
const SCHEMA: u64 = 1;

/// Everything in `config.json` but the description of the model itself, which is a [`ModelSpec`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// What must be done to an image before the model sees it.
    pub pretrained_cfg: PretrainedCfg,
    /// Names of the classes by their index; empty when unknown.
    pub label_names: BTreeMap<usize, String>,
    /// What the names of classes mean, such as the words for a synset; empty when unknown.
    pub label_descriptions: BTreeMap<String, String>,
    /// What the logits stand for; by default one class of several.
    pub problem_type: Option<ProblemType>,
    /// What has been done to the weights, first to last.
    pub history: Vec<HistoryStep>,
    /// Other keys of the file, as they stand there.
    pub extra: Map<String, Value>,
}

/// What the logits of a model stand for, in transformers' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemType {
    /// Classes of which an image has one: softmax.
    SingleLabelClassification,
    /// Classes of which an image has any number: a sigmoid for each.
    MultiLabelClassification,
    /// Values.
    Regression,
}

/// What makes scores of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scores {
    /// Probabilities of all classes together.
    Softmax,
    /// A probability for each class by itself.
    Sigmoid,
    /// Nothing: the logits are the scores.
    Logits,
}

/// One thing that has been done to the weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryStep {
    /// What was done, as a verb: `train`, `prune`, `merge`.
    pub step: String,
    /// The published method with which it was done, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// How it was done: the settings of the step.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// SHA-256 of the weights file the step started from, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_sha256: Option<String>,
    /// What was measured afterwards.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metrics: Map<String, Value>,
}

impl Config {
    /// What a model of so many classes calls them, and what these names mean: as the file says, or ImageNet-1k's for published weights
    /// whose tag tells that they were trained on it, such as `fb_in1k`; empty when unknown.
    pub fn class_names(&self, classes: usize) -> (BTreeMap<usize, String>, BTreeMap<String, String>) {
        let tag = self.pretrained_cfg.tag.as_deref().unwrap_or_default();
        if !self.label_names.is_empty() || classes != imagenet::CLASSES || !tag.contains("in1k") {
            return (self.label_names.clone(), self.label_descriptions.clone());
        }
        let classes = imagenet::classes();
        let (names, words): (Vec<_>, Vec<_>) = classes
            .map(|(synset, words)| (synset.to_owned(), (synset.to_owned(), words.to_owned())))
            .unzip();
        (
            names.into_iter().enumerate().collect(),
            words.into_iter().collect(),
        )
    }

    /// What makes scores of the logits of so many classes, as in transformers' pipeline: one class alone is a yes or no.
    pub fn scores(&self, classes: usize) -> Scores {
        match self.problem_type {
            Some(ProblemType::Regression) => Scores::Logits,
            Some(ProblemType::MultiLabelClassification) => Scores::Sigmoid,
            _ if classes == 1 => Scores::Sigmoid,
            _ => Scores::Softmax,
        }
    }

    /// Removes the tag, which names published weights, because they have changed. What it told about the classes is kept.
    pub fn remove_tag(&mut self, classes: usize) {
        (self.label_names, self.label_descriptions) = self.class_names(classes);
        self.pretrained_cfg.tag = None;
    }

    /// Reads a timm-style `config.json`. Errors name file and key.
    pub fn read(file: &Path) -> Result<(ModelSpec, Config)> {
        let text = fs::read_to_string(file).map_err(Error::io("read", file))?;
        Config::parse(&text, file)
    }

    /// As [`Config::read`], from the text of `file`, whose name appears in errors.
    pub fn parse(text: &str, file: &Path) -> Result<(ModelSpec, Config)> {
        Config::parse_noting(text, file, &mut Vec::new())
    }

    /// The same; what a person should know about it is added to `notes`.
    pub(crate) fn parse_noting(
        text: &str,
        file: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(ModelSpec, Config)> {
        const CLASSES_KEY: &str = "num_classes";
        let mut top = Fields::parse(file, text)?;
        let mut architecture: String = top.require("architecture", "the name of an architecture")?;
        let flat = !top.has("pretrained_cfg");
        let num_classes = top.size(CLASSES_KEY, 0..=CLASSES)?;
        // Both follow from the rest of the file and serve human readers.
        top.take::<Value>("num_features", "")?;
        top.take::<Value>("global_pool", "")?;
        let mut labels = take_labels(&mut top, if flat { "labels" } else { "label_names" })?;
        let mut descriptions = take_descriptions(&mut top)?;
        let problem_type = take_problem_type(&mut top)?;
        let mut args = top.object("model_args")?;
        let mut vitesse = top.object("vitesse")?;
        let (mut cfg, extra) = if flat {
            (top, Map::new())
        } else {
            (top.object("pretrained_cfg")?, top.into_map())
        };
        if labels.is_empty() {
            labels = take_labels(&mut cfg, "label_names")?;
        }
        if descriptions.is_empty() {
            descriptions = take_descriptions(&mut cfg)?;
        }
        let input_size = cfg.take("input_size", "three whole numbers, [channels, height, width]")?;
        let cfg_classes = cfg.size(CLASSES_KEY, 0..=CLASSES)?;
        // The order in which timm lets one overrule the other; 1000 is its default.
        let num_classes = args
            .size(CLASSES_KEY, 0..=CLASSES)?
            .or(num_classes)
            .or(cfg_classes)
            .unwrap_or(1000);

        let whole = labels.len() == num_classes || !labels.keys().copied().eq(0..labels.len());
        if num_classes > 0
            && !labels.is_empty()
            && (!whole || labels.keys().any(|&class| class >= num_classes))
        {
            let sentence = match labels.keys().last() {
                Some(&last) if labels.len() <= num_classes && last >= num_classes => format!(
                    "`{}`: `label_names` names class {last}, but the model has {num_classes} classes, counted from 0; correct the names, or remove them",
                    file.display()
                ),
                _ => format!(
                    "`{}`: `label_names` has {} names, but the model has {num_classes} classes; correct the names, or remove them",
                    file.display(),
                    labels.len()
                ),
            };
            return Err(Error::invalid_spec(sentence));
        }
        let base = network::read_base(&architecture, input_size, args)?;
        let mut history = Vec::new();
        if !vitesse.is_empty() {
            let schema: u64 = vitesse.require("schema", "the number 1")?;
            if schema != SCHEMA {
                let expected = "1, the only schema this version knows; a newer version may read the file";
                return Err(vitesse.wrong("schema", expected, Some(&json!(schema))));
            }
            let expected = format!("the name of an architecture that timm builds as `{architecture}`");
            if let Some(own) = vitesse.take::<String>("architecture", &expected)? {
                if !zoo::get(&own).is_ok_and(|entry| entry.timm_name == architecture) {
                    return Err(vitesse.wrong("architecture", &expected, Some(&json!(own))));
                }
                architecture = own;
            }
            let steps = "a list of steps, each an object with at least `step` and no keys but `step`, `method`, \
                         `config`, `parent_sha256` and `metrics`";
            history = vitesse.take("history", steps)?.unwrap_or_default();
        }
        let (network, ops) = network::read_delta(base, vitesse)?;
        let spec = ModelSpec {
            architecture,
            num_classes,
            network,
            ops,
        };
        spec.validate().map_err(|error| match error {
            Error::InvalidSpec(sentence) => Error::invalid_spec(format!("`{}`: {sentence}", file.display())),
            other => other,
        })?;
        let channels = spec.input_size()[0];
        let mut pretrained_cfg = PretrainedCfg::parse(cfg, channels)?;
        notes.extend(pretrained_cfg.fit_channels(channels));
        Ok((
            spec,
            Config {
                pretrained_cfg,
                label_names: labels,
                label_descriptions: descriptions,
                problem_type,
                history,
                extra,
            },
        ))
    }

    /// The file for a model. The same text for the same content.
    pub fn to_json(&self, spec: &ModelSpec) -> Result<String> {
        spec.validate()?;
        self.pretrained_cfg.check(spec.input_size()[0])?;
        let network::Written {
            architecture,
            args,
            delta,
        } = network::write(spec)?;
        let mut vitesse = Map::new();
        vitesse.insert("schema".into(), json!(SCHEMA));
        if architecture != spec.architecture {
            vitesse.insert("architecture".into(), json!(spec.architecture));
        }
        vitesse.extend(delta);
        if !self.history.is_empty() {
            vitesse.insert("history".into(), json!(self.history));
        }

        let mut out = Map::new();
        let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
        put("architecture", json!(architecture));
        put("num_classes", json!(spec.num_classes));
        put("num_features", json!(spec.num_features()));
        put("global_pool", json!(network::global_pool(spec)));
        if !self.label_names.is_empty() {
            let dense = self.label_names.keys().copied().eq(0..self.label_names.len());
            let names = if dense {
                json!(self.label_names.values().collect::<Vec<_>>())
            } else {
                json!(self.label_names)
            };
            put("label_names", names);
        }
        if !self.label_descriptions.is_empty() {
            put("label_descriptions", json!(self.label_descriptions));
        }
        if let Some(problem_type) = self.problem_type {
            put("problem_type", json!(problem_type));
        }
        if !args.is_empty() {
            put("model_args", Value::Object(args));
        }
        put("pretrained_cfg", self.pretrained_cfg.to_value(spec));
        for (key, value) in &self.extra {
            put(key, value.clone());
        }
        if vitesse.len() > 1 {
            put("vitesse", Value::Object(vitesse));
        }
        Ok(format!("{:#}\n", Value::Object(out)))
    }
}

/// Class names: a list, or an object from index to name where indices have gaps.
pub(crate) fn take_labels(fields: &mut Fields<'_>, key: &str) -> Result<BTreeMap<usize, String>> {
    const EXPECTED: &str = "a list of class names, or an object from class index to name";
    let names = match fields.take::<Value>(key, EXPECTED)? {
        None => return Ok(BTreeMap::new()),
        Some(value) => value,
    };
    let read = match &names {
        Value::Array(_) => {
            Vec::<String>::deserialize(&names).map(|list| list.into_iter().enumerate().collect())
        }
        _ => BTreeMap::deserialize(&names),
    };
    read.map_err(|_| fields.wrong(key, EXPECTED, Some(&names)))
}

/// The key `problem_type`, which transformers writes too.
pub(crate) fn take_problem_type(fields: &mut Fields<'_>) -> Result<Option<ProblemType>> {
    let expected = "`single_label_classification`, `multi_label_classification` or `regression`";
    fields.take("problem_type", expected)
}

fn take_descriptions(fields: &mut Fields<'_>) -> Result<BTreeMap<String, String>> {
    let found = fields.take("label_descriptions", "an object from class name to description")?;
    Ok(found.unwrap_or_default())
}
