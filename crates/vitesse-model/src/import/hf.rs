//! Folders that transformers saved: what all families have in common.
//!
//! transformers splits the fused projection into query, key and value, names things differently, and normalises with
//! an epsilon of its own; the epsilon is taken from the file, since the weights may have been trained with either. What a
//! family's keys and names mean is in the family's file beside this one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Imported, clip, swin, vit};
use crate::config::preprocessor::{self, Defaults, PREPROCESSOR_FILE};
use crate::config::{Config, Fields, PretrainedCfg, take_labels, take_problem_type};
use crate::pos_embed::Flavour;
use crate::spec::{ModelSpec, NetworkSpec};
use crate::tensors::{Tensor, Tensors};
use crate::{Error, Result, zoo};

/// Imports `tensors` as the text of `file`, transformers' `config.json`, describes them. `preprocessor` is the text of
/// the `preprocessor_config.json` beside it.
pub(crate) fn import(
    text: &str,
    file: &Path,
    preprocessor: Option<&str>,
    mut tensors: Tensors,
) -> Result<Imported> {
    let mut notes = Vec::new();
    let mut fields = Fields::parse(file, text)?;
    let (_, expected) = known_types();
    let model_type: String = fields.require("model_type", &expected)?;
    let described = match model_type.as_str() {
        kind if vit::MODEL_TYPES.contains(&kind) => {
            vit::describe(kind, &mut fields, &mut tensors, &mut notes)?
        }
        kind if clip::MODEL_TYPES.contains(&kind) => clip::describe(&mut fields, &mut tensors, &mut notes)?,
        swin::MODEL_TYPE => swin::describe(&mut fields, &mut tensors, &mut notes)?,
        other => return Err(fields.wrong("model_type", &expected, Some(&json!(other)))),
    };
    let eps = described.norm_eps;
    let timms = match zoo::get(described.architecture)?.spec.network {
        NetworkSpec::Vit(vit) => vit.norm_eps,
        NetworkSpec::Swin(swin) => swin.norm_eps,
        NetworkSpec::RegNet(_) => eps,
    };
    if eps != timms {
        notes.push(format!(
            "the layer norms' epsilon is {eps:e}, as config.json says (timm's models have {timms:e})"
        ));
    }
    let num_classes = classes(&mut fields, &tensors)?;
    let mut label_names = take_labels(&mut fields, "id2label")?;
    if label_names
        .iter()
        .all(|(index, name)| *name == format!("LABEL_{index}"))
        || num_classes == 0
    {
        label_names.clear();
    }
    let problem_type = take_problem_type(&mut fields)?;
    let spec = ModelSpec {
        architecture: described.architecture.to_owned(),
        num_classes,
        network: described.network,
        ops: Vec::new(),
    };
    let preprocessing = &described.preprocessing;
    let pretrained_cfg = read_preprocessor(preprocessor, file, preprocessing, spec.input_size(), &mut notes)?;
    spec.validate()?;
    let tensors = rename(tensors, &described.target)?;
    notes.insert(
        0,
        format!(
            "transformers' names and layout were converted to timm's, as `{}`",
            spec.architecture
        ),
    );
    Ok(Imported {
        spec,
        tensors,
        config: Config {
            pretrained_cfg,
            label_names,
            problem_type,
            ..Config::default()
        },
        pos_embed: Flavour::Transformers,
        notes,
    })
}

/// The refusal of a kind of model that is not read, for a folder whose weights cannot be made sense of; `None` where `file`,
/// its `config.json`, names none or a known one.
pub(crate) fn unknown_type(file: &Path) -> Option<Error> {
    let text = fs::read_to_string(file).ok()?;
    let mut fields = Fields::parse(file, &text).ok()?;
    if fields.has("architecture") {
        return None;
    }
    let model_type: String = fields.take("model_type", "a name").ok()??;
    let (known, expected) = known_types();
    (!known.contains(&model_type.as_str()))
        .then(|| fields.wrong("model_type", &expected, Some(&json!(model_type))))
}

/// The kinds of models that are read, and the same in words.
fn known_types() -> (Vec<&'static str>, String) {
    let known = [&vit::MODEL_TYPES[..], &clip::MODEL_TYPES, &[swin::MODEL_TYPE]].concat();
    let expected = format!("one of `{}`", known.join("`, `"));
    (known, expected)
}

/// The number of classes: that of the classifier in the file, with which the labels must agree.
fn classes(fields: &mut Fields<'_>, tensors: &Tensors) -> Result<usize> {
    let head = [
        "classifier.weight",
        "cls_classifier.weight",
        "visual_projection.weight",
    ]
    .into_iter()
    .find_map(|name| tensors.get(name).ok());
    let Some(classes) = head.and_then(|weight| weight.shape().first().copied()) else {
        return Ok(0);
    };
    let labels = fields
        .get("id2label")
        .and_then(Value::as_object)
        .map_or(classes, |labels| labels.len());
    if labels != classes {
        let expected = format!("an object of {classes} labels, one for each row of the classifier");
        return Err(fields.wrong("id2label", &expected, Some(&json!(labels))));
    }
    Ok(classes)
}

fn read_preprocessor(
    text: Option<&str>,
    config: &Path,
    default: &Defaults,
    [channels, height, width]: [usize; 3],
    notes: &mut Vec<String>,
) -> Result<PretrainedCfg> {
    if text.is_none() {
        notes.push(format!(
            "there is no {PREPROCESSOR_FILE}: images are prepared as transformers does without one"
        ));
    }
    let file = config.with_file_name(PREPROCESSOR_FILE);
    let (cfg, made) = preprocessor::parse(text.unwrap_or("{}"), &file, default, channels)?;
    if text.is_some() && made != [height, width] {
        let [h, w] = made;
        notes.push(format!(
            "{PREPROCESSOR_FILE} makes images of {h}x{w}, the model takes {height}x{width}: the ratio of crop to resized \
             image is kept"
        ));
    }
    Ok(cfg)
}

/// What a family's file says of a folder.
pub(super) struct Described {
    pub(super) network: NetworkSpec,
    /// timm's name for it.
    pub(super) architecture: &'static str,
    /// Epsilon of its norms.
    pub(super) norm_eps: f64,
    /// How images are prepared where nothing else is said.
    pub(super) preprocessing: Defaults,
    pub(super) target: Box<Names>,
}

/// Where a tensor goes, by its name; `None` for a name that is unknown.
pub(super) type Names = dyn Fn(&str) -> Option<Target>;

/// Where a tensor goes.
#[derive(Debug, PartialEq)]
pub enum Target {
    /// It takes this name.
    Whole(String),
    /// It is query (0), key (1) or value (2) of the fused tensor of this name.
    Third(String, usize),
}

/// The same tensors under timm's names. Those that have none keep their own, for the strict check to report.
pub(super) fn rename(tensors: Tensors, target: &Names) -> Result<Tensors> {
    let mut out = Tensors::new();
    let mut thirds: BTreeMap<String, BTreeMap<usize, (String, Tensor)>> = BTreeMap::new();
    let put = |out: &mut Tensors, name: String, tensor: Tensor| match out.insert(name.clone(), tensor) {
        Some(_) => Err(Error::TensorDuplicate { name }),
        None => Ok(()),
    };
    for (name, tensor) in tensors {
        match target(&name) {
            Some(Target::Whole(new)) => put(&mut out, new, tensor)?,
            Some(Target::Third(fused, index)) => {
                let known = thirds
                    .entry(fused)
                    .or_default()
                    .insert(index, (name.clone(), tensor));
                if known.is_some() {
                    return Err(Error::TensorDuplicate { name });
                }
            }
            None => put(&mut out, name, tensor)?,
        }
    }
    for (fused, parts) in thirds {
        let tensors: Vec<&Tensor> = parts.values().map(|(_, tensor)| tensor).collect();
        match join(&tensors) {
            Some(tensor) => put(&mut out, fused, tensor?)?,
            None => parts
                .into_values()
                .try_for_each(|(name, tensor)| put(&mut out, name, tensor))?,
        }
    }
    Ok(out)
}

/// Query, key and value as one tensor, row after row; `None` when they are not three of one kind.
fn join(parts: &[&Tensor]) -> Option<Result<Tensor>> {
    let [query, key, value] = parts else { return None };
    let like = |other: &Tensor| other.dtype() == query.dtype() && other.shape() == query.shape();
    let (rows, columns) = query.shape().split_first()?;
    if !like(key) || !like(value) {
        return None;
    }
    let shape: Vec<usize> = std::iter::once(3 * rows).chain(columns.iter().copied()).collect();
    Some(Tensor::from_bytes(
        query.dtype(),
        &shape,
        [query.bytes(), key.bytes(), value.bytes()].concat(),
    ))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::tensors::DType;
    use crate::zoo;

    /// The listings of files that transformers wrote become exactly the tensors of the zoo's models.
    #[test]
    fn the_names_in_real_files_become_timms() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/names");
        for (listing, kind, name, dim, heads) in [
            (
                "hf_deit_tiny_distilled",
                "deit",
                "deit_tiny_distilled_patch16_224",
                192,
                3,
            ),
            ("hf_vit_base", "vit", "vit_base_patch16_224", 768, 12),
        ] {
            let text = fs::read_to_string(golden.join(format!("{listing}.json"))).unwrap();
            let listing: Value = serde_json::from_str(&text).unwrap();
            let mut tensors = Tensors::new();
            for tensor in listing["tensors"].as_array().unwrap() {
                let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
                // One byte an element is enough for names and shapes.
                let bytes = vec![0; shape.iter().product()];
                let name = tensor["name"].as_str().unwrap();
                tensors.insert(name, Tensor::from_bytes(DType::U8, &shape, bytes).unwrap());
            }
            let config = json!({
                "model_type": kind, "hidden_size": dim, "num_attention_heads": heads, "intermediate_size": 4 * dim,
            });
            let imported = import(&config.to_string(), Path::new("config.json"), None, tensors).unwrap();
            assert_eq!(
                (imported.spec.architecture.as_str(), imported.spec.num_classes),
                (name, 1000)
            );
            let shapes = |(name, tensor): (&str, &Tensor)| (name.to_owned(), tensor.shape().to_vec());
            let found: BTreeMap<_, _> = imported.tensors.iter().map(shapes).collect();
            let expected = zoo::get(name).unwrap().spec.tensors().unwrap();
            let expected: BTreeMap<_, _> = expected
                .into_iter()
                .map(|tensor| (tensor.name, tensor.shape))
                .collect();
            assert_eq!(found, expected);
        }
    }
}
