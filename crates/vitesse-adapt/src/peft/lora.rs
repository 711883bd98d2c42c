//! PEFT's LoRA: its configuration, and its tensors as `low-rank` ops and back.
//!
//! Every module has `MODULE.lora_A.weight` `[rank, in]` and `MODULE.lora_B.weight` `[out, rank]`, which for a convolution are
//! kernels, `[rank, in, height, width]` and `[out, rank, 1, 1]`. Which modules those are, the names in the file say; the
//! configuration says ranks and factors, which `rank_pattern` and `alpha_pattern` change for modules whose path's end
//! matches a key, the first in the order of the file. Beside the factors stand whole tensors: modules that learned whole,
//! and with `bias` the biases. No op stands on a module that classifies, nor on one that merges patches, so their updates go
//! into their weights at once.
//!
//! A field that could change what is computed and is not implemented is refused, whatever its name, unless it is off.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vitesse_model::ops::{LowRank, OpKind, OpSpec};
use vitesse_model::{Checkpoint, ModelSpec, Site, Sites, Tensor, Tensors};
use vitesse_train::method::head_tensors;

use super::names;
use crate::merge::matrix::Matrix;
use crate::pattern::{available, end, ends_with, key_matches};

/// What went wrong, to be told with the adapter's path.
type Result<T> = std::result::Result<T, String>;

/// The fields that are read.
const READ: [&str; 11] = [
    "auto_mapping",
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_dropout",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "bias",
    "init_lora_weights",
];

/// Fields that change nothing of what a saved adapter computes: where it comes from, what chose its modules, what goes with
/// an option that is refused when it is on, and how its factors were drawn.
const PASSED_OVER: [&str; 17] = [
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Ways of drawing the factors that leave the base's weights as they are; PEFT's others change them before training.
const DRAWN: [&str; 4] = ["gaussian", "eva", "mica", "orthogonal"];

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
    /// The class of the base, as in the file: its name and the module of Python's that it stands in.
    pub auto_mapping: Value,
    /// Which biases are in the file: `none`, `all` or `lora_only`.
    pub bias: String,
}

impl LoraConfig {
    /// Reads the fields that count.
    ///
    /// # Errors
    /// A field that is missing or of the wrong type, an option that is not implemented.
    pub fn read(config: &Map<String, Value>) -> Result<LoraConfig> {
        let known = |key: &str| READ.contains(&key) || PASSED_OVER.contains(&key);
        for (key, value) in config.iter().filter(|(key, _)| !known(key)) {
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if !off {
                return Err(format!(
                    "its option `{key}` is {value}, which is not implemented and may change what is computed; merge it with \
                     PEFT and load the result"
                ));
            }
        }
        drawn(config.get("init_lora_weights").unwrap_or(&Value::Null))?;
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
            auto_mapping: config.get("auto_mapping").cloned().unwrap_or_default(),
            bias: match get::<String>(config, "bias", "`none`, `all` or `lora_only`")?.as_deref() {
                Some(bias @ ("all" | "lora_only")) => bias.to_owned(),
                None | Some("none") => "none".to_owned(),
                Some(other) => {
                    return Err(format!(
                        "its `bias` should be `none`, `all` or `lora_only`, but is `{other}`"
                    ));
                }
            },
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
            "auto_mapping": self.auto_mapping,
            "base_model_name_or_path": null,
            "bias": self.bias,
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

/// Refuses an adapter whose factors were drawn in a way that changed the base, so that it fits no base at hand.
fn drawn(init: &Value) -> Result<()> {
    let known = match init {
        Value::Null | Value::Bool(_) => true,
        Value::String(name) => DRAWN.contains(&name.to_lowercase().as_str()),
        _ => false,
    };
    if known {
        return Ok(());
    }
    Err(format!(
        "its `init_lora_weights` is {init}, which changes the base's weights before training, and to what is not in the \
         folder; save it with PEFT's `path_initial_model_for_weight_conversion`, which makes it an adapter of the base as it \
         was, or merge it with PEFT and load the result"
    ))
}

/// A `rank_pattern` or `alpha_pattern`, in the file's order.
fn pattern<T: for<'a> Deserialize<'a>>(config: &Map<String, Value>, key: &str) -> Result<Vec<(String, T)>> {
    let map = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => {
            return Err(format!(
                "its `{key}` should be an object of numbers by module, but is {other}"
            ));
        }
    };
    map.iter()
        .map(|(module, value)| match T::deserialize(value) {
            Ok(read) => Ok((module.clone(), read)),
            Err(_) => Err(format!("its `{key}` gives `{module}` the value {value}")),
        })
        .collect()
}

/// Refuses modules that learned whole inside others that did: of such PEFT saves the copy that was not used.
pub(super) fn nested(config: &Map<String, Value>, whole: &Tensors) -> Result<()> {
    let entries = config.get("modules_to_save").and_then(Value::as_array);
    let entries: Vec<&str> = entries.into_iter().flatten().filter_map(Value::as_str).collect();
    for name in whole.names() {
        let modules = name.match_indices('.').filter_map(|(dot, _)| name.get(..dot));
        // PEFT's rule, which begins at no dot.
        let mut saved = modules.filter(|module| entries.iter().any(|entry| module.ends_with(entry)));
        if let (Some(outer), Some(inner)) = (saved.next(), saved.next()) {
            return Err(format!(
                "its `modules_to_save` names `{outer}` and `{inner}` inside it, of which PEFT saves the copy that it did not \
                 use; name the modules so that none is inside another"
            ));
        }
    }
    Ok(())
}

/// Separates factors (`MODULE.lora_A.weight`, `MODULE.lora_B.weight`) from whole tensors, without PEFT's wrappers.
///
/// # Errors
/// Tensors of other kinds of updates, and two of one name that differ.
pub(super) fn split(tensors: Tensors) -> Result<(Tensors, Tensors)> {
    let (mut factors, mut whole) = (Tensors::new(), Tensors::new());
    for (in_file, tensor) in tensors {
        let Some(name) = names::unwrapped(&in_file) else {
            continue;
        };
        let kind = if name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight") {
            &mut factors
        } else if name.contains(".lora_") {
            return Err(format!(
                "its tensor `{in_file}` belongs to an update that is not implemented; merge it with PEFT and load the result"
            ));
        } else {
            &mut whole
        };
        // With `bias`, PEFT writes that of a module that learned whole a second time.
        match kind.get(&name) {
            Ok(other) if *other != tensor => {
                return Err(format!(
                    "it holds `{name}` twice, with different values, and only one can be meant; save it again with PEFT"
                ));
            }
            _ => kind.insert(name, tensor),
        };
    }
    Ok((factors, whole))
}

/// The name of a whole tensor in PEFT's file with these factors: PEFT moves what a module with an update had before.
pub(super) fn wrapped(name: &str, factors: &Tensors) -> String {
    match name.rsplit_once('.') {
        Some((module, end)) if factors.contains(&format!("{module}.lora_A.weight")) => {
            format!("{module}.base_layer.{end}")
        }
        _ => name.to_owned(),
    }
}

/// What factors are in a model.
#[derive(Default)]
pub(super) struct Updates {
    /// The ops, as if they were the model's only ones.
    pub(super) ops: Vec<OpSpec>,
    /// Their tensors.
    pub(super) tensors: Tensors,
    /// New weights of modules on which no op can stand: those that classify, and those that merge patches; by name.
    pub(super) updated: Tensors,
}

/// What the factors are in this model.
///
/// # Errors
/// Modules that the model does not have, factors without their partner, ranks that are not the configuration's.
pub(super) fn updates(config: &LoraConfig, factors: &Tensors, model: &Checkpoint) -> Result<Updates> {
    let (mut found, mut out) = (Vec::new(), Updates::default());
    for name in factors.names() {
        let path = name
            .trim_end_matches(".lora_A.weight")
            .trim_end_matches(".lora_B.weight");
        let pair = ["lora_A", "lora_B"].map(|factor| factors.get(&format!("{path}.{factor}.weight")));
        let [Ok(a), Ok(b)] = pair else {
            return Err(format!(
                "`{path}` has one of the factors `lora_A` and `lora_B` but not the other"
            ));
        };
        if name.ends_with(".lora_B.weight") {
            continue;
        }
        let rank = config.of_module(&config.rank_pattern, path, config.rank)?;
        if rank == 0 || a.shape().first() != Some(&rank) {
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
            parts: None,
            dropout: config.dropout,
        };
        let head = names::head(path, &model.spec).map(|head| format!("{head}.weight"));
        if let Some(name) = head.or_else(|| names::without_site(path, model)) {
            let weight = updated(&name, &kind, [a, b], model)?;
            if out.updated.insert(name, weight).is_some() {
                return Err(twice(path));
            }
        } else if let Some(module) = names::module(path, &model.spec) {
            found.push((module, path, kind, [a, b]));
        } else if !names::unread(&format!("{path}.weight")) {
            return Err(format!(
                "it adapts `{path}`, which this model does not have; its projections are {}",
                available(&model.spec)
            ));
        }
    }
    if found.is_empty() && out.updated.is_empty() {
        return Err("it holds no factors `lora_A` and `lora_B`".into());
    }
    found.sort_by_key(|(module, ..)| (module.layer, module.site, module.part));
    let mut neighbours = found.iter().zip(found.iter().skip(1));
    if let Some((_, (_, path, ..))) = neighbours.find(|((a, ..), (b, ..))| {
        // The whole projection stands before its parts, and has them all.
        (a.layer, a.site) == (b.layer, b.site) && (a.part == b.part || a.part.is_none())
    }) {
        return Err(twice(path));
    }
    for (module, path, kind, [a, b]) in found {
        let op = OpSpec {
            site: module.site,
            layer: module.layer,
            kind: OpKind::LowRank(LowRank {
                parts: module.part.map(|part| vec![part]),
                ..kind
            }),
        };
        let factors = match module.site {
            Site::Embed => flattened(path, [a, b], model)?,
            _ => [a.clone(), b.clone()],
        };
        let prefix = op.prefix(out.ops.len());
        for (end, factor) in ["a", "b"].into_iter().zip(factors) {
            out.tensors.insert(format!("{prefix}.{end}"), factor);
        }
        out.ops.push(op);
    }
    Ok(out)
}

fn twice(path: &str) -> String {
    format!(
        "it adapts `{path}` under another name as well, and only one can be meant; save it again with PEFT"
    )
}

/// The weight `name` of a module on which no op can stand, one that classifies or merges patches, with its update.
fn updated(name: &str, kind: &LowRank, [a, b]: [&Tensor; 2], model: &Checkpoint) -> Result<Tensor> {
    let weight = model.tensors.get(name).map_err(|_| {
        format!(
            "it adapts `{name}`, and the base has no such module; load a base with the head it was trained on"
        )
    })?;
    let ([rows, columns], rank) = (
        [0, 1].map(|i| weight.shape().get(i).copied().unwrap_or(1)),
        kind.rank,
    );
    if *a.shape() != [rank, columns] || *b.shape() != [rows, rank] {
        let mut heads = model.spec.classifiers().into_iter();
        let classifies = heads.any(|head| name.strip_suffix(".weight") == Some(head));
        let or = if classifies {
            ", or to one with another number of classes"
        } else {
            ""
        };
        return Err(format!(
            "its factors of `{name}` have shapes {:?} and {:?}, but the weight of the base has {:?}; it belongs to another \
             model{or}",
            a.shape(),
            b.shape(),
            weight.shape()
        ));
    }
    let matrix = |rows, columns, tensor: &Tensor| Matrix::from_f32(rows, columns, &tensor.to_f32());
    let mut sum = matrix(rows, columns, weight);
    sum.add(
        kind.factor(),
        &matrix(rows, rank, b).times(&matrix(rank, columns, a)),
    );
    let values = sum.values.iter().map(|&x| x as f32).collect();
    Tensor::from_f32(weight.shape(), values).map_err(|error| error.to_string())
}

/// The kernels of an update of the convolution of patches, as the matrices that they are: its patches do not overlap.
fn flattened(path: &str, [a, b]: [&Tensor; 2], model: &Checkpoint) -> Result<[Tensor; 2]> {
    let kernel = kernel(&model.spec).unwrap_or_default();
    let (rank, outputs) = (
        a.shape().first().copied().unwrap_or(0),
        b.shape().first().copied().unwrap_or(0),
    );
    if a.shape().get(1..) != kernel.get(1..) || *b.shape() != [outputs, rank, 1, 1] {
        return Err(format!(
            "its factors of `{path}` have shapes {:?} and {:?}, but the weight of the base has {kernel:?}; it belongs to \
             another model",
            a.shape(),
            b.shape()
        ));
    }
    let matrix = |tensor: &Tensor, rows: usize| {
        let columns = tensor.numel() / rows.max(1);
        tensor
            .reshape(&[rows, columns])
            .map_err(|error| error.to_string())
    };
    Ok([matrix(a, rank)?, matrix(b, outputs)?])
}

/// The shape of the weight of the convolution of patches.
fn kernel(spec: &ModelSpec) -> Option<Vec<usize>> {
    let name = format!("{}.weight", spec.embedding()?.name);
    let mut tensors = spec.tensors().ok()?.into_iter();
    Some(tensors.find(|tensor| tensor.name == name)?.shape)
}

/// Ops as PEFT's LoRA; `None` where PEFT cannot express them: other kinds, parts of a fused projection, a matrix that layers
/// share, several updates of one, different factors or dropouts, or whole tensors besides heads.
pub(super) fn express(
    ops: &[OpSpec],
    tensors: &Tensors,
    replaced: &Tensors,
    spec: &ModelSpec,
) -> Option<(LoraConfig, Tensors)> {
    let heads = head_tensors(spec);
    let heads_only = replaced.names().all(|name| heads.contains(name));
    let sites = spec.sites();
    let mut modules: Vec<(String, &LowRank)> = Vec::new();
    let mut out = Tensors::new();
    for (index, op) in ops.iter().enumerate() {
        let OpKind::LowRank(kind) = &op.kind else {
            return None;
        };
        let layer = op.layer.unwrap_or(0);
        let path = sites.matrix(op.site, layer)?.name;
        let shared = op.site != Site::Embed && sites.sharing(op.site, layer).len() > 1;
        if shared || kind.parts.is_some() || modules.iter().any(|(other, _)| *other == path) {
            return None;
        }
        let prefix = op.prefix(index);
        let get = |end: &str| tensors.get(&format!("{prefix}.{end}")).ok();
        let (mut a, mut b) = (get("a")?.clone(), get("b")?.clone());
        if op.site == Site::Embed {
            let kernel = kernel(spec)?;
            let (rank, outputs) = (kind.rank, *kernel.first()?);
            a = a.reshape(&[&[rank], kernel.get(1..)?].concat()).ok()?;
            b = b.reshape(&[outputs, rank, 1, 1]).ok()?;
        }
        out.insert(format!("{path}.lora_A.weight"), a);
        out.insert(format!("{path}.lora_B.weight"), b);
        modules.push((path, kind));
    }
    let (_, first) = modules.first()?;
    let alike = modules
        .iter()
        .all(|(_, kind)| kind.rank_stabilized == first.rank_stabilized && kind.dropout == first.dropout);
    if !alike || !heads_only {
        return None;
    }
    let other_rank = modules.iter().filter(|(_, kind)| kind.rank != first.rank);
    let other_alpha = modules.iter().filter(|(_, kind)| kind.alpha != first.alpha);
    let config = LoraConfig {
        rank: first.rank,
        alpha: first.alpha,
        rank_stabilized: first.rank_stabilized,
        dropout: first.dropout,
        rank_pattern: other_rank.map(|(path, kind)| (path.clone(), kind.rank)).collect(),
        alpha_pattern: other_alpha
            .map(|(path, kind)| (path.clone(), kind.alpha))
            .collect(),
        target_modules: json!(targets(&modules, sites)),
        auto_mapping: {
            let [module, class] = spec.timm_class();
            json!({ "base_model_class": class, "parent_library": module })
        },
        bias: "none".into(),
    };
    Some((config, out))
}

/// `target_modules`: an end of paths where it means adapted modules alone, else whole paths.
fn targets(modules: &[(String, &LowRank)], sites: &dyn Sites) -> Vec<String> {
    let blocks = sites.projections().map(|(_, _, projection)| projection.name);
    let all: Vec<String> = blocks
        .chain(sites.embedding().map(|embedding| embedding.name))
        .collect();
    let mut by_end: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, _) in modules {
        by_end.entry(end(path)).or_default().push(path);
    }
    by_end
        .into_iter()
        .flat_map(|(end, paths)| {
            let mut meant = all.iter().filter(|path| ends_with(path, end));
            if meant.all(|path| paths.contains(&path.as_str())) {
                vec![end.to_owned()]
            } else {
                paths.into_iter().map(str::to_owned).collect()
            }
        })
        .collect()
}
