//! `vit-pruned/1`: a safetensors file that describes itself, in its metadata, block by block.
//!
//! The description is JSON under the key `config`. It says what stands in `vitesse.blocks` of our own folders, and what timm's
//! arguments would say of the rest. Keys that are not known are read over, as the format asks.
//!
//! Tensors have timm's names. Blocks are numbered in the order in which they run, or as in the dense model, by `src`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Imported;
use super::sliced::{block_number, origin};
use crate::config::{Config, Fields, HistoryStep};
use crate::pos_embed::Flavour;
use crate::spec::limits::{CLASSES, SIDE, WIDTH};
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, MlpSpec, ModelSpec, NetworkSpec, Pool, PrefixToken,
    VitSpec,
};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

/// The key of the metadata under which the description stands.
pub(crate) const KEY: &str = "config";

/// The only format that is read.
const FORMAT: &str = "vit-pruned/1";

/// A block as the file describes it.
#[derive(Deserialize)]
struct Block {
    /// Its number in the dense model.
    src: Option<usize>,
    attn: Option<Attention>,
    mlp: Option<Mlp>,
}

#[derive(Deserialize)]
struct Attention {
    qk_dims: Vec<usize>,
    v_dims: Vec<usize>,
    scale: f64,
    out_idx: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct Mlp {
    hidden: usize,
    out_idx: Option<Vec<usize>>,
}

/// The description in the text that stands under [`KEY`]; `None` where it is something else.
pub(crate) fn described(text: &str) -> Option<Map<String, Value>> {
    let map: Map<String, Value> = serde_json::from_str(text).ok()?;
    let format = map.get("format")?.as_str()?;
    format.starts_with("vit-pruned/").then_some(map)
}

/// Makes a model of the tensors of `file` and their description. `architecture` is what the caller says it was cut from.
///
/// # Errors
/// Another format, and whatever no model here has; errors name the key.
pub(crate) fn import(
    description: &Map<String, Value>,
    mut tensors: Tensors,
    file: &Path,
    architecture: Option<&str>,
) -> Result<Imported> {
    let mut fields = Fields::parse(file, &json!({ KEY: description }).to_string())?.object(KEY)?;
    let expected = format!("`{FORMAT}`, the only format of pruned models that is read");
    let format: String = fields.require("format", &expected)?;
    if format != FORMAT {
        return Err(fields.wrong("format", &expected, Some(&json!(format))));
    }
    for (key, what) in [
        ("exits", "heads between the blocks"),
        ("tokens", "tokens that leave between the blocks"),
    ] {
        let value: Option<Value> = fields.take(key, "")?;
        if let Some(value) = value.filter(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            let expected =
                format!("absent or empty: models with {what} are not read; write the file without them");
            return Err(fields.wrong(key, &expected, Some(&value)));
        }
    }
    let blocks = take_blocks(&mut fields)?;
    let sources: Vec<Option<usize>> = blocks.iter().map(|block| block.src).collect();
    tensors = in_order(tensors, &sources);
    let (vit, num_classes) = take_vit(&mut fields, blocks, &tensors)?;
    let dim = fields
        .size("source_embed_dim", 1..=WIDTH)?
        .unwrap_or(vit.embed_dim);
    let likely = origin(dim, vit.patch_size, vit.is_distilled());
    let entry = zoo::get(architecture.unwrap_or(likely))?;
    entry.spec.vit()?;
    let mut config = Config {
        pretrained_cfg: entry.pretrained_cfg,
        history: take_provenance(&mut fields)?.into_iter().collect(),
        ..Config::default()
    };
    let mut notes = Vec::from_iter(config.pretrained_cfg.fit_channels(vit.in_chans));
    let name = entry.spec.architecture;
    notes.push(match architecture {
        Some(_) => format!("its metadata describes it (`{FORMAT}`); read as cut from `{name}`"),
        None => format!(
            "its metadata describes it (`{FORMAT}`); images are prepared as for `{name}`, from which it may have been cut \
             (`--architecture` names another)"
        ),
    });
    let spec = ModelSpec {
        architecture: name,
        num_classes,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    };
    spec.validate().map_err(|error| match error {
        Error::InvalidSpec(sentence) => Error::invalid_spec(format!("`{}`: {sentence}", file.display())),
        other => other,
    })?;
    Ok(Imported {
        spec,
        tensors,
        config,
        pos_embed: Flavour::Timm,
        notes,
    })
}

fn take_blocks(fields: &mut Fields<'_>) -> Result<Vec<Block>> {
    let blocks: Vec<Value> = fields.require("blocks", "a list of blocks, `attn` and `mlp` each")?;
    let read = |(index, block): (usize, Value)| {
        Block::deserialize(&block).map_err(|error| {
            let expected = format!("`attn` and `mlp`, each an object or null ({error})");
            fields.wrong(&format!("blocks.{index}"), &expected, Some(&block))
        })
    };
    blocks.into_iter().enumerate().map(read).collect()
}

/// The network, and its number of classes.
fn take_vit(fields: &mut Fields<'_>, blocks: Vec<Block>, tensors: &Tensors) -> Result<(VitSpec, usize)> {
    let flag = "`true` or `false`";
    let img_size = fields.sides("img_size", 1..=SIDE)?;
    let img_size = img_size.ok_or_else(|| fields.wrong("img_size", "one or two whole numbers", None))?;
    let num_classes = required(fields, "num_classes", 0..=CLASSES)?;
    let act = "`gelu_erf`, the exact GELU";
    if let Some(other) = fields
        .take::<String>("act", act)?
        .filter(|found| found != "gelu_erf")
    {
        return Err(fields.wrong("act", act, Some(&json!(other))));
    }
    let mut prefix = Vec::new();
    if fields.take("class_token", flag)?.unwrap_or(true) {
        prefix.push(PrefixToken::Class);
    }
    if fields.take("dist_token", flag)?.unwrap_or(false) {
        prefix.push(PrefixToken::Distillation);
    }
    let pools = "`token` or `avg`";
    let pool = match fields.take::<String>("pool", pools)?.as_deref() {
        None | Some("token") => Pool::Token,
        Some("avg") if tensors.contains("fc_norm.weight") => Pool::AvgThenNorm,
        Some("avg") => Pool::Avg,
        Some(other) => return Err(fields.wrong("pool", pools, Some(&json!(other)))),
    };
    let cores: Vec<BlockSpec> = blocks
        .into_iter()
        .enumerate()
        .map(|(number, block)| BlockSpec {
            attn: block.attn.map(|attn| AttentionSpec {
                qk_dims: attn.qk_dims,
                v_dims: attn.v_dims,
                scale: attn.scale,
                qkv_bias: tensors.contains(&format!("blocks.{number}.attn.qkv.bias")),
                out_idx: attn.out_idx,
            }),
            mlp: block.mlp.map(|mlp| MlpSpec {
                hidden: mlp.hidden,
                out_idx: mlp.out_idx,
            }),
        })
        .collect();
    let vit = VitSpec {
        img_size,
        patch_size: required(fields, "patch_size", 1..=SIDE)?,
        in_chans: fields.size("in_chans", 1..=SIDE)?.unwrap_or(3),
        embed_dim: required(fields, "embed_dim", 1..=WIDTH)?,
        prefix,
        embed_prefix: true,
        patch_bias: true,
        pre_norm: false,
        activation: Activation::Gelu,
        norm_eps: fields.take("norm_eps", "a positive number")?.unwrap_or(1e-6),
        pool,
        layers: (0..cores.len()).map(LayerSpec::of).collect(),
        cores,
    };
    Ok((vit, num_classes))
}

fn required(fields: &mut Fields<'_>, key: &str, within: RangeInclusive<usize>) -> Result<usize> {
    let found = fields.size(key, within)?;
    found.ok_or_else(|| fields.wrong(key, "a whole number", None))
}

/// The tensors with blocks numbered as they run, where they are numbered as in the dense model.
fn in_order(tensors: Tensors, sources: &[Option<usize>]) -> Tensors {
    let places: BTreeMap<usize, usize> = sources
        .iter()
        .enumerate()
        .filter_map(|(place, source)| Some(((*source)?, place)))
        .collect();
    let numbers: BTreeSet<usize> = tensors.names().filter_map(block_number).collect();
    let beyond = numbers.iter().any(|number| *number >= sources.len());
    if !beyond || !numbers.iter().all(|number| places.contains_key(number)) {
        return tensors;
    }
    let renamed = |name: &str| {
        let number = block_number(name)?;
        let rest = name.strip_prefix(&format!("blocks.{number}."))?;
        Some(format!("blocks.{}.{rest}", places.get(&number)?))
    };
    tensors
        .into_iter()
        .map(|(name, tensor)| (renamed(&name).unwrap_or(name), tensor))
        .collect()
}

/// What was done to the model, as a step of its history.
fn take_provenance(fields: &mut Fields<'_>) -> Result<Option<HistoryStep>> {
    let provenance: Option<Map<String, Value>> = fields.take("provenance", "a JSON object")?;
    Ok(provenance.map(|mut config| HistoryStep {
        step: "prune".to_owned(),
        method: match config.shift_remove("method") {
            Some(Value::String(method)) => Some(method),
            _ => None,
        },
        config,
        ..HistoryStep::default()
    }))
}
