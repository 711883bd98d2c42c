//! PEFT's LoRA: its configuration, and its tensors as `low-rank` ops and back.
//!
//! Every module has `MODULE.lora_A.weight` `[rank, in]` and `MODULE.lora_B.weight` `[out, rank]`. Which modules those are,
//! the names in the file say; the configuration says ranks and factors, which `rank_pattern` and `alpha_pattern` change
//! for modules whose path's end matches a key, the first in the order of the file. Options that change what is computed
//! and are not implemented are refused; all others, such as those of initialisation, are passed over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vitesse_model::ops::{LowRank, OpKind, OpSpec};
use vitesse_model::{Sites, Tensors};

use super::names;
use crate::pattern::key_matches;

/// What went wrong, to be told with the adapter's path.
type Result<T> = std::result::Result<T, String>;

/// Options with which PEFT computes something else. Any value but these is refused: absent, null, false, 0, empty.
const NOT_IMPLEMENTED: [&str; 13] = [
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// What counts of an `adapter_config.json` with `peft_type` `LORA`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of most modules.
    pub rank: usize,
    /// Alpha of most modules.
    pub alpha: f64,
    /// Whether the factor is `alpha / √rank`.
    pub rank_stabilized: bool,
    /// Dropout of the input in training.
    pub dropout: f64,
    /// Ranks of other modules, by regular expressions, in the file's order.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of other modules.
    pub alpha_pattern: Vec<(String, f64)>,
    /// As in the file.
    pub target_modules: Value,
}

impl LoraConfig {
    /// Reads the fields that count.
    ///
    /// # Errors
    /// A field that is missing or of the wrong type, an option that is not implemented.
    pub fn read(config: &Map<String, Value>) -> Result<LoraConfig> {
        for key in NOT_IMPLEMENTED {
            let value = config.get(key).unwrap_or(&Value::Null);
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if !off {
                return Err(format!(
                    "its option `{key}` is {value}, which is not implemented; merge it with PEFT and load the result"
                ));
            }
        }
        fn get<T: for<'a> Deserialize<'a>>(
            config: &Map<String, Value>,
            key: &str,
            expected: &str,
        ) -> Result<Option<T>> {
            match config.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => T::deserialize(value)
                    .map(Some)
                    .map_err(|_| format!("its `{key}` should be {expected}, but is {value}")),
            }
        }
        let need = |key: &str| format!("its `{key}` is missing, so the factor of its updates is unknown");
        Ok(LoraConfig {
            rank: get(config, "r", "a whole number")?.ok_or_else(|| need("r"))?,
            alpha: get(config, "lora_alpha", "a number")?.ok_or_else(|| need("lora_alpha"))?,
            rank_stabilized: get(config, "use_rslora", "`true` or `false`")?.unwrap_or(false),
            dropout: get(config, "lora_dropout", "a number")?.unwrap_or(0.0),
            rank_pattern: pattern(config, "rank_pattern")?,
            alpha_pattern: pattern(config, "alpha_pattern")?,
            target_modules: config.get("target_modules").cloned().unwrap_or_default(),
        })
    }

    /// The file as PEFT needs it.
    pub fn to_json(&self, modules_to_save: &[String]) -> Map<String, Value> {
        let number = |x: f64| {
            if x.fract() == 0.0 && x.abs() < 1e15 {
                json!(x as i64)
            } else {
                json!(x)
            }
        };
        let ranks: Map<String, Value> = self
            .rank_pattern
            .iter()
            .map(|(key, rank)| (key.clone(), json!(rank)))
            .collect();
        let alphas: Map<String, Value> = self
            .alpha_pattern
            .iter()
            .map(|(key, alpha)| (key.clone(), number(*alpha)))
            .collect();
        let config = json!({
            "peft_type": "LORA",
            "auto_mapping": {
                "base_model_class": "VisionTransformer",
                "parent_library": "timm.models.vision_transformer",
            },
            "base_model_name_or_path": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rank_stabilized,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "target_modules": self.target_modules,
            "modules_to_save": modules_to_save,
            "task_type": null,
        });
        match config {
            Value::Object(config) => config,
            _ => Map::new(),
        }
    }

    fn of_module<T: Copy>(&self, patterns: &[(String, T)], path: &str, common: T) -> Result<T> {
        for (key, value) in patterns {
            if key_matches(key, path).map_err(|error| error.to_string())? {
                return Ok(*value);
            }
        }
        Ok(common)
    }
}

/// A `rank_pattern` or `alpha_pattern`, in the file's order.
fn pattern<T: for<'a> Deserialize<'a>>(config: &Map<String, Value>, key: &str) -> Result<Vec<(String, T)>> {
    let Some(Value::Object(map)) = config.get(key) else {
        return Ok(Vec::new());
    };
    map.iter()
        .map(|(module, value)| match T::deserialize(value) {
            Ok(read) => Ok((module.clone(), read)),
            Err(_) => Err(format!("its `{key}` gives `{module}` the value {value}")),
        })
        .collect()
}

/// Separates factors (`MODULE.lora_A.weight`, `MODULE.lora_B.weight`) from whole tensors under our names.
///
/// # Errors
/// Tensors of other kinds of updates.
pub(super) fn split(tensors: Tensors) -> Result<(Tensors, Tensors)> {
    let (mut factors, mut whole) = (Tensors::new(), Tensors::new());
    for (name, tensor) in tensors {
        // As they are called in memory, where an adapter has a name of its own.
        let name = name.replace(".default.", ".").replace(".modules_to_save.", ".");
        if name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight") {
            factors.insert(name, tensor);
        } else if name.contains(".lora_") {
            return Err(format!(
                "its tensor `{name}` belongs to an update that is not implemented"
            ));
        } else if !name.contains(".original_module.") {
            whole.insert(names::tensor(&name), tensor);
        }
    }
    Ok((factors, whole))
}

/// The ops that the factors are in this model, with their tensors.
///
/// # Errors
/// Modules that the model does not have, factors without their partner, ranks that are not the configuration's.
pub(super) fn ops(
    config: &LoraConfig,
    factors: &Tensors,
    sites: &dyn Sites,
) -> Result<(Vec<OpSpec>, Tensors)> {
    let mut found = Vec::new();
    for name in factors.names() {
        let Some(path) = name.strip_suffix(".lora_A.weight") else {
            continue;
        };
        if sites.embedding().is_some_and(|embedding| embedding.name == path) {
            return Err(format!(
                "it adapts `{path}`, a convolution (the name `proj` in `target_modules` does that); train it with \
                 `attn.proj`, or merge it with PEFT and load the result"
            ));
        }
        let Some(module) = names::module(path, sites) else {
            return Err(format!(
                "it adapts `{path}`, which this model does not have; its projections are those of `blocks.N.attn.qkv`, \
                 `attn.proj`, `mlp.fc1` and `mlp.fc2`"
            ));
        };
        let rank = config.of_module(&config.rank_pattern, path, config.rank)?;
        let a = factors.get(name).map_err(|error| error.to_string())?;
        if a.shape().first() != Some(&rank) {
            return Err(format!(
                "`{name}` has shape {:?}, but the rank of this module is {rank} by `{}`",
                a.shape(),
                super::CONFIG_FILE
            ));
        }
        let kind = LowRank {
            rank,
            alpha: config.of_module(&config.alpha_pattern, path, config.alpha)?,
            rank_stabilized: config.rank_stabilized,
            parts: module.part.map(|part| vec![part]),
            dropout: config.dropout,
        };
        found.push((module, path.to_owned(), kind));
    }
    let paths: std::collections::HashSet<&str> = found.iter().map(|(_, path, _)| path.as_str()).collect();
    for name in factors.names() {
        let path = name
            .trim_end_matches(".lora_A.weight")
            .trim_end_matches(".lora_B.weight");
        let partner = format!("{path}.lora_B.weight");
        if !paths.contains(path) || !factors.contains(&partner) {
            return Err(format!(
                "`{path}` has one of the factors `lora_A` and `lora_B` but not the other"
            ));
        }
    }
    if found.is_empty() {
        return Err("it holds no factors `lora_A` and `lora_B`".into());
    }
    found.sort_by_key(|(module, _, _)| (module.layer, module.site, module.part));
    let (mut ops, mut tensors) = (Vec::new(), Tensors::new());
    for (module, path, kind) in found {
        let op = OpSpec {
            site: module.site,
            layer: Some(module.layer),
            kind: OpKind::LowRank(kind),
        };
        let prefix = op.prefix(ops.len());
        for (end, factor) in [("a", "lora_A"), ("b", "lora_B")] {
            let tensor = factors
                .get(&format!("{path}.{factor}.weight"))
                .map_err(|error| error.to_string())?;
            tensors.insert(format!("{prefix}.{end}"), tensor.clone());
        }
        ops.push(op);
    }
    Ok((ops, tensors))
}

/// Ops as PEFT's LoRA; `None` where PEFT cannot express them: other kinds, parts of a fused projection, several updates of
/// one, different factors or dropouts, or whole tensors besides heads.
pub(super) fn express(
    ops: &[OpSpec],
    tensors: &Tensors,
    replaced: &Tensors,
) -> Option<(LoraConfig, Tensors)> {
    let heads_only = replaced.names().all(|name| name.starts_with("head"));
    let mut modules: Vec<(String, usize, &LowRank)> = Vec::new();
    let mut out = Tensors::new();
    for (index, op) in ops.iter().enumerate() {
        let (OpKind::LowRank(kind), Some(layer)) = (&op.kind, op.layer) else {
            return None;
        };
        let end = match op.site {
            vitesse_model::Site::Qkv => "attn.qkv",
            vitesse_model::Site::Proj => "attn.proj",
            vitesse_model::Site::Fc1 => "mlp.fc1",
            vitesse_model::Site::Fc2 => "mlp.fc2",
            _ => return None,
        };
        let path = format!("blocks.{layer}.{end}");
        if kind.parts.is_some() || modules.iter().any(|(other, _, _)| *other == path) {
            return None;
        }
        let prefix = op.prefix(index);
        out.insert(
            format!("{path}.lora_A.weight"),
            tensors.get(&format!("{prefix}.a")).ok()?.clone(),
        );
        out.insert(
            format!("{path}.lora_B.weight"),
            tensors.get(&format!("{prefix}.b")).ok()?.clone(),
        );
        modules.push((path, layer, kind));
    }
    let (_, _, first) = modules.first()?;
    let alike = modules
        .iter()
        .all(|(_, _, kind)| kind.rank_stabilized == first.rank_stabilized && kind.dropout == first.dropout);
    if !alike || !heads_only {
        return None;
    }
    let other_rank = modules.iter().filter(|(_, _, kind)| kind.rank != first.rank);
    let other_alpha = modules.iter().filter(|(_, _, kind)| kind.alpha != first.alpha);
    let config = LoraConfig {
        rank: first.rank,
        alpha: first.alpha,
        rank_stabilized: first.rank_stabilized,
        dropout: first.dropout,
        rank_pattern: other_rank
            .map(|(path, _, kind)| (path.clone(), kind.rank))
            .collect(),
        alpha_pattern: other_alpha
            .map(|(path, _, kind)| (path.clone(), kind.alpha))
            .collect(),
        target_modules: json!(targets(&modules)),
    };
    Some((config, out))
}

/// `target_modules`: an end of a path where all its blocks are adapted, else whole paths. Never `proj` alone.
fn targets(modules: &[(String, usize, &LowRank)]) -> Vec<String> {
    let depth = modules.iter().map(|(_, layer, _)| layer + 1).max().unwrap_or(0);
    let mut by_end: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, _, _) in modules {
        let end = path.splitn(3, '.').nth(2).unwrap_or(path);
        by_end.entry(end).or_default().push(path);
    }
    by_end
        .into_iter()
        .flat_map(|(end, paths)| {
            if paths.len() == depth {
                vec![end.to_owned()]
            } else {
                paths.into_iter().map(str::to_owned).collect()
            }
        })
        .collect()
}
