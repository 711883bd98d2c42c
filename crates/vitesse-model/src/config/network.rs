//! How a network is written down so that timm can build it, and what stands under `vitesse` when timm cannot.
//!
//! `architecture` names an entry of the zoo and `model_args` are arguments of timm's constructor; together they give a
//! *base*. Every field of the network that differs from the base stands under `vitesse` by its name in
//! [`VitSpec`](crate::spec::VitSpec), [`SwinSpec`](crate::spec::SwinSpec) or [`RegNetSpec`](crate::spec::RegNetSpec), but for those
//! that have names of their own:
//!
//! | key | field |
//! | --- | --- |
//! | `ops` | [`ModelSpec::ops`] |
//! | `blocks` | `cores`: the matrices of each block |
//! | `share` | `{"layers": [...]}`, `layers`; absent when every block is used once, in order |
//!
//! What a family writes and reads is in its own file beside this one. So a model that timm can build has no `vitesse` key, and reading is the exact inverse of writing for any model.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{regnet, swin, vit};
use crate::ops::OpSpec;
use crate::spec::{ModelSpec, NetworkSpec};
use crate::{Error, Result, zoo};

/// Arguments that change how a model is trained or which images it would take besides its own size, not what it
/// computes. They are read over.
const TRAINING_ARGS: [&str; 11] = [
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "weight_init",
    "fix_init",
    "dynamic_img_size",
    "strict_img_size",
];

/// Arguments of timm's that would make another network than ours, with the one value that does not.
const FIXED_ARGS: [(&str, Value); 8] = [
    ("qk_norm", Value::Bool(false)),
    ("scale_attn_norm", Value::Bool(false)),
    ("scale_mlp_norm", Value::Bool(false)),
    ("proj_bias", Value::Bool(true)),
    ("final_norm", Value::Bool(true)),
    ("pool_include_prefix", Value::Bool(false)),
    ("dynamic_img_pad", Value::Bool(false)),
    ("always_partition", Value::Bool(false)),
];

/// The pooling as the file names it for information.
pub(super) fn global_pool(spec: &ModelSpec) -> &'static str {
    match &spec.network {
        NetworkSpec::Vit(vit) => vit::pool_name(vit.pool),
        NetworkSpec::RegNet(_) | NetworkSpec::Swin(_) => "avg",
    }
}

impl ModelSpec {
    /// The Python module and class of timm's implementation.
    pub fn timm_class(&self) -> [&'static str; 2] {
        match &self.network {
            NetworkSpec::Vit(vit) if vit.is_distilled() => ["timm.models.deit", "VisionTransformerDistilled"],
            NetworkSpec::Vit(_) => ["timm.models.vision_transformer", "VisionTransformer"],
            NetworkSpec::RegNet(_) => ["timm.models.regnet", "RegNet"],
            NetworkSpec::Swin(_) => ["timm.models.swin_transformer", "SwinTransformer"],
        }
    }
}

/// The network that `architecture` and `model_args` stand for. `input_size` is what `pretrained_cfg` says; it counts
/// where the arguments do not say otherwise.
pub(super) fn read_base(
    architecture: &str,
    input_size: Option<[usize; 3]>,
    mut args: Fields<'_>,
) -> Result<NetworkSpec> {
    let base = match zoo::get(architecture)?.spec.network {
        NetworkSpec::Vit(known) => NetworkSpec::Vit(vit::read_base(&known, input_size, &mut args)?),
        NetworkSpec::RegNet(known) => NetworkSpec::RegNet(regnet::read_base(known, input_size, &mut args)?),
        NetworkSpec::Swin(known) => NetworkSpec::Swin(swin::read_base(&known, input_size, &mut args)?),
    };
    for (key, fixed) in &FIXED_ARGS {
        if let Some(other) = args.take::<Value>(key, "")?.filter(|value| value != fixed) {
            let expected = format!("{fixed}: this network has no such part");
            return Err(args.wrong(key, &expected, Some(&other)));
        }
    }
    match args
        .keys()
        .find(|key| args.has(key) && !TRAINING_ARGS.contains(&key.as_str()))
    {
        Some(key) => Err(args.wrong(key, "left out, since no model here has it", args.get(key))),
        None => Ok(base),
    }
}

/// Replaces the fields of `base` that stand under `vitesse`, and takes the ops that stand there.
pub(super) fn read_delta(base: NetworkSpec, mut fields: Fields<'_>) -> Result<(NetworkSpec, Vec<OpSpec>)> {
    let ops = match fields.take::<Value>("ops", "")? {
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|error| unreadable(&fields, "ops", &value, &error))?,
        None => Vec::new(),
    };
    let network = match base {
        NetworkSpec::Vit(vit) => NetworkSpec::Vit(vit::read_delta(vit, fields)?),
        NetworkSpec::RegNet(regnet) => NetworkSpec::RegNet(replace_fields(regnet, &fields)?),
        NetworkSpec::Swin(swin) => NetworkSpec::Swin(swin::read_delta(swin, fields)?),
    };
    Ok((network, ops))
}

/// A network as it stands in a file.
pub(super) struct Written {
    /// The name under which timm builds the base.
    pub(super) architecture: &'static str,
    /// Its `model_args`.
    pub(super) args: Map<String, Value>,
    /// What stands under `vitesse` because the base is not like it.
    pub(super) delta: Map<String, Value>,
}

/// Writes a network down.
pub(super) fn write(spec: &ModelSpec) -> Result<Written> {
    let entry = zoo::get(&spec.architecture)?;
    let architecture = entry.timm_name;
    let base = zoo::get(architecture)?.spec.network;
    let (args, mut delta) = match (&spec.network, &base) {
        (NetworkSpec::Vit(vit), NetworkSpec::Vit(base)) => vit::write(vit, base),
        (NetworkSpec::RegNet(regnet), NetworkSpec::RegNet(base)) => (Map::new(), regnet::write(regnet, base)),
        (NetworkSpec::Swin(swin), NetworkSpec::Swin(base)) => swin::write(swin, base),
        _ => {
            return Err(Error::invalid_spec(format!(
                "`{}` names a network of another family than the one described",
                spec.architecture
            )));
        }
    };
    if !spec.ops.is_empty() {
        // Before the blocks, where files have always had them.
        let blocks: Vec<_> = ["blocks", "share"]
            .into_iter()
            .filter_map(|key| delta.shift_remove_entry(key))
            .collect();
        delta.insert("ops".into(), json!(spec.ops));
        delta.extend(blocks);
    }
    Ok(Written {
        architecture,
        args,
        delta,
    })
}

/// The fields of `network` that are not as in `base`.
pub(super) fn differences<T: Serialize>(network: &T, base: &T) -> Map<String, Value> {
    let object = |network: &T| match json!(network) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let base = object(base);
    object(network)
        .into_iter()
        .filter(|(key, value)| base.get(key) != Some(value))
        .collect()
}

/// Puts what stands in the file in the place of fields of `network`.
pub(super) fn replace_fields<T: Serialize + DeserializeOwned>(
    mut network: T,
    fields: &Fields<'_>,
) -> Result<T> {
    for key in fields.keys() {
        let mut object = json!(network);
        let value = fields.get(key).cloned().unwrap_or_default();
        if let Value::Object(map) = &mut object {
            map.insert(key.clone(), value.clone());
        }
        network = serde_json::from_value(object).map_err(|error| unreadable(fields, key, &value, &error))?;
    }
    Ok(network)
}

fn unreadable(fields: &Fields<'_>, key: &str, value: &Value, error: &serde_json::Error) -> Error {
    let expected = format!("something this version can read ({error})");
    fields.wrong(key, &expected, Some(value))
}
