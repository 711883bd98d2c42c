//! Folders that transformers saved: ViT and DeiT.
//!
//! transformers splits the fused projection into query, key and value, names things differently, and normalises with
//! an epsilon of 1e-12 unless told otherwise; the epsilon is taken from the file, since the weights may have been
//! trained with either. Two sets of names are read: those in its files, and those its modules have had since version 5.
//!
//! A DeiT with one classifier has a distillation token that no head reads. That is a register, and it is imported as one.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::Imported;
use crate::config::preprocessor::{self, Defaults, PREPROCESSOR_FILE};
use crate::config::{Config, Fields, Interpolation, PretrainedCfg, take_labels};
use crate::spec::{ModelSpec, NetworkSpec, PrefixToken, VitSpec};
use crate::tensors::{Tensor, Tensors};
use crate::{Error, Result, zoo};

/// The families that are read.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Vit,
    Deit,
}

/// Tensors that belong to training tasks or to features that no head here reads.
const DROPPED: [&str; 3] = [
    "pooler.dense.weight",
    "pooler.dense.bias",
    "embeddings.mask_token",
];

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
    let family = match fields
        .require::<String>("model_type", "`vit` or `deit`")?
        .as_str()
    {
        "vit" => Family::Vit,
        "deit" => Family::Deit,
        other => return Err(fields.wrong("model_type", "`vit` or `deit`", Some(&json!(other)))),
    };
    let dropped: Vec<String> = {
        let droppable = |name: &&str| DROPPED.contains(&body(name));
        tensors.names().filter(droppable).map(str::to_owned).collect()
    };
    for name in &dropped {
        tensors.remove(name)?;
    }
    if !dropped.is_empty() {
        notes.push(format!("left out `{}`: no head reads it", dropped.join("`, `")));
    }

    let (vit, eps) = read_vit(&mut fields, family, &tensors, &mut notes)?;
    if eps != 1e-6 {
        notes.push(format!(
            "the layer norms' epsilon is {eps:e}, as config.json says (timm's models have 1e-6)"
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
    let pretrained_cfg = read_preprocessor(preprocessor, file, family, &vit, &mut notes)?;
    let spec = ModelSpec {
        architecture: architecture(&vit, family).to_owned(),
        num_classes,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    };
    spec.validate()?;
    let tensors = rename(tensors, &spec)?;
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
            ..Config::default()
        },
        notes,
    })
}

/// The network that `config.json` describes. Keys that it lacks have transformers' default values.
fn read_vit(
    fields: &mut Fields<'_>,
    family: Family,
    tensors: &Tensors,
    notes: &mut Vec<String>,
) -> Result<(VitSpec, f64)> {
    let dim = fields.size("hidden_size", 1..=16384)?.unwrap_or(768);
    let depth = fields.size("num_hidden_layers", 0..=256)?.unwrap_or(12);
    let heads = fields.size("num_attention_heads", 1..=16384)?.unwrap_or(12);
    let hidden = fields.size("intermediate_size", 1..=1 << 18)?.unwrap_or(3072);
    let in_chans = fields.size("num_channels", 1..=4096)?.unwrap_or(3);
    let img_size = fields.sides("image_size", 1..=4096)?.unwrap_or([224; 2]);
    let [patch_size, patch_width] = fields.sides("patch_size", 1..=4096)?.unwrap_or([16; 2]);
    let qkv_bias = fields.take("qkv_bias", "`true` or `false`")?.unwrap_or(true);
    let eps: f64 = fields.take("layer_norm_eps", "a number")?.unwrap_or(1e-12);
    let act: Option<String> = fields.take("hidden_act", "the string `gelu`")?;
    if let Some(other) = act.filter(|act| act != "gelu") {
        return Err(fields.wrong("hidden_act", "`gelu`, the exact one", Some(&json!(other))));
    }
    if patch_size != patch_width {
        return Err(fields.wrong(
            "patch_size",
            "the side of a square patch",
            Some(&json!([patch_size, patch_width])),
        ));
    }
    if dim % heads != 0 {
        return Err(fields.wrong(
            "num_attention_heads",
            &format!("a divisor of {dim}"),
            Some(&json!(heads)),
        ));
    }
    let prefix = match family {
        Family::Vit => vec![PrefixToken::Class],
        Family::Deit if tensors.contains("classifier.weight") => {
            notes.push("no head reads the distillation token: it is imported as a register".to_owned());
            vec![PrefixToken::Class, PrefixToken::Register]
        }
        Family::Deit => vec![PrefixToken::Class, PrefixToken::Distillation],
    };
    let mut vit = VitSpec {
        img_size,
        in_chans,
        norm_eps: eps,
        ..VitSpec::plain(0, patch_size, dim, depth, heads, prefix)
    };
    for core in &mut vit.cores {
        if let Some(attn) = &mut core.attn {
            attn.qkv_bias = qkv_bias;
        }
        if let Some(mlp) = &mut core.mlp {
            mlp.hidden = hidden;
        }
    }
    Ok((vit, eps))
}

/// The number of classes: that of the classifier in the file, with which the labels must agree.
fn classes(fields: &mut Fields<'_>, tensors: &Tensors) -> Result<usize> {
    let head = ["classifier.weight", "cls_classifier.weight"]
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
    family: Family,
    vit: &VitSpec,
    notes: &mut Vec<String>,
) -> Result<PretrainedCfg> {
    let default = match family {
        Family::Vit => Defaults {
            resize: 224,
            crop: None,
            interpolation: Interpolation::Bilinear,
        },
        Family::Deit => Defaults {
            resize: 256,
            crop: Some(224),
            interpolation: Interpolation::Bicubic,
        },
    };
    if text.is_none() {
        notes.push(format!(
            "there is no {PREPROCESSOR_FILE}: images are prepared as transformers does without one"
        ));
    }
    let file = config.with_file_name(PREPROCESSOR_FILE);
    let (cfg, made) = preprocessor::parse(text.unwrap_or("{}"), &file, &default, vit.in_chans)?;
    if made != vit.img_size {
        let ([h, w], [height, width]) = (made, vit.img_size);
        notes.push(format!(
            "{PREPROCESSOR_FILE} makes images of {h}x{w}, the model takes {height}x{width}: the ratio of crop to resized \
             image is kept"
        ));
    }
    Ok(cfg)
}

/// The name of timm's for a network: the one whose arguments it has, else the one that takes them.
fn architecture(vit: &VitSpec, family: Family) -> &'static str {
    let start = match family {
        Family::Vit => "vit_",
        Family::Deit => "deit_",
    };
    let same = |name: &&'static str| {
        zoo::get(name).is_ok_and(|entry| match entry.spec.network {
            NetworkSpec::Vit(known) => {
                entry.timm_name == *name
                    && VitSpec {
                        norm_eps: vit.norm_eps,
                        ..known
                    } == *vit
            }
            NetworkSpec::RegNet(_) => false,
        })
    };
    zoo::names()
        .filter(|name| name.starts_with(start))
        .find(same)
        .unwrap_or(match family {
            Family::Vit => "vit_base_patch16_224",
            Family::Deit if vit.is_distilled() => "deit_base_distilled_patch16_224",
            Family::Deit => "deit_base_patch16_224",
        })
}

/// A name without the prefix that models with a head give to their body.
fn body(name: &str) -> &str {
    name.strip_prefix("vit.")
        .or_else(|| name.strip_prefix("deit."))
        .unwrap_or(name)
}

/// Where a tensor goes.
#[derive(Debug, PartialEq)]
enum Target {
    /// It takes this name.
    Whole(String),
    /// It is query (0), key (1) or value (2) of the fused tensor of this name.
    Third(String, usize),
}

/// timm's name for one of transformers'; `None` for a name that is unknown.
fn target(name: &str, spec: &ModelSpec) -> Option<Target> {
    let distilled = spec.vit().is_ok_and(VitSpec::is_distilled);
    let body = body(name);
    let whole = |name: &str| Some(Target::Whole(name.to_owned()));
    match body {
        "embeddings.cls_token" => return whole("cls_token"),
        "embeddings.distillation_token" => return whole(if distilled { "dist_token" } else { "reg_token" }),
        "embeddings.position_embeddings" => return whole("pos_embed"),
        _ => {}
    }
    let (module, parameter) = body.rsplit_once('.')?;
    match module {
        "embeddings.patch_embeddings.projection" => return whole(&format!("patch_embed.proj.{parameter}")),
        "layernorm" => return whole(&format!("norm.{parameter}")),
        "classifier" | "cls_classifier" => return whole(&format!("head.{parameter}")),
        "distillation_classifier" => return whole(&format!("head_dist.{parameter}")),
        _ => {}
    }
    let layer = module
        .strip_prefix("encoder.layer.")
        .or_else(|| module.strip_prefix("layers."))?;
    let (layer, part) = layer.split_once('.')?;
    let third = |index| {
        Some(Target::Third(
            format!("blocks.{layer}.attn.qkv.{parameter}"),
            index,
        ))
    };
    let part = match part {
        "attention.attention.query" | "attention.q_proj" => return third(0),
        "attention.attention.key" | "attention.k_proj" => return third(1),
        "attention.attention.value" | "attention.v_proj" => return third(2),
        "attention.output.dense" | "attention.o_proj" => "attn.proj",
        "layernorm_before" => "norm1",
        "layernorm_after" => "norm2",
        "intermediate.dense" | "mlp.fc1" => "mlp.fc1",
        "output.dense" | "mlp.fc2" => "mlp.fc2",
        _ => return None,
    };
    whole(&format!("blocks.{layer}.{part}.{parameter}"))
}

/// The same tensors under timm's names. Those that have none keep their own, for the strict check to report.
fn rename(tensors: Tensors, spec: &ModelSpec) -> Result<Tensors> {
    let mut out = Tensors::new();
    let mut thirds: BTreeMap<String, BTreeMap<usize, (String, Tensor)>> = BTreeMap::new();
    let put = |out: &mut Tensors, name: String, tensor: Tensor| match out.insert(name.clone(), tensor) {
        Some(_) => Err(Error::TensorDuplicate { name }),
        None => Ok(()),
    };
    for (name, tensor) in tensors {
        match target(&name, spec) {
            Some(Target::Whole(new)) => put(&mut out, new, tensor)?,
            Some(Target::Third(fused, index)) => {
                thirds.entry(fused).or_default().insert(index, (name, tensor));
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
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::tensors::DType;

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
