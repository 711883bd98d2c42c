//! `inspect`: what a checkpoint holds, layer by layer; and the names of all architectures.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use vitesse::model::config::HistoryStep;
use vitesse::model::ops::OpKind;
use vitesse::model::spec::{AttentionSpec, BlockSpec, LayerTokens, SwinSpec, Transformer};
use vitesse::model::storage::pth::StateDict;
use vitesse::model::{Checkpoint, ModelSpec, NetworkSpec, PretrainedCfg, Sites, zoo};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};

use super::args::model::{ReadArgs, is_path, refuse_precision};
use super::failure::Result;
use super::outcome::{Outcome, pairs};

/// Show what a model consists of: shapes, parameters and multiply-adds by layer, image preparation, history
///
/// The weights are checked as for a run: a tensor that is missing, superfluous or of a wrong shape is an error. MACs are the
/// multiply-accumulates for one image, which much of the literature calls FLOPs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse inspect ./deit_tiny_patch16_224.fb_in1k
  vitesse inspect deit_small_patch16_224 --json
  vitesse inspect --list")]
pub(super) struct Args {
    /// A checkpoint folder, a `.safetensors` or `.pth` file, or a name from --list; as `--model`
    #[arg(value_name = "MODEL", required_unless_present_any = ["model", "list"])]
    first: Option<String>,
    /// A checkpoint folder, a `.safetensors` or `.pth` file, or a name from --list
    #[arg(long, value_name = "MODEL", conflicts_with = "first")]
    model: Option<String>,
    #[command(flatten)]
    read: ReadArgs,
    /// List the tensors too: name, type, shape, bytes
    #[arg(long)]
    tensors: bool,
    /// List the names of all architectures with their sizes
    #[arg(long, conflicts_with_all = ["first", "model", "key", "architecture", "num_heads", "tensors"])]
    list: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<Outcome> {
        match self.first.as_ref().or(self.model.as_ref()) {
            Some(model) => Outcome::new(&self.inspect(model)?),
            _ => Outcome::new(&Zoo::list()?),
        }
    }

    fn inspect(&self, model: &str) -> Result<Report> {
        refuse_precision(model)?;
        if is_path(model) {
            let checkpoint = Checkpoint::load(model, &self.read.options())?;
            let file = File::of(&checkpoint, self.tensors)?;
            let config = checkpoint.config;
            let labels = config.class_names(checkpoint.spec.num_classes).0.len();
            let preparation = Preparation::of(&checkpoint.spec, &config.pretrained_cfg);
            return Report::new(checkpoint.spec, preparation, Some(file), labels, config.history);
        }
        self.read.no_name(model)?;
        let entry = zoo::get(model)?;
        let preparation = Preparation::of(&entry.spec, &entry.pretrained_cfg);
        Report::new(entry.spec, preparation, None, 0, Vec::new())
    }
}

/// What a model consists of.
#[derive(Debug, Serialize)]
struct Report {
    architecture: String,
    num_classes: usize,
    param_count: usize,
    macs: u64,
    preparation: Preparation,
    /// `None` for a name: there are no weights.
    file: Option<File>,
    /// How many classes have names.
    labels: usize,
    history: Vec<HistoryStep>,
    layers: Vec<Layer>,
    /// The tokens of each layer, where ops make them fewer on the way; of an op that decides by image the most there can be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<LayerTokens>,
    spec: ModelSpec,
}

/// How images are prepared; timm's keys.
#[derive(Debug, Serialize)]
struct Preparation {
    input_size: [usize; 3],
    interpolation: String,
    crop_pct: f64,
    crop_mode: String,
    mean: Vec<f64>,
    std: Vec<f64>,
    test_input_size: Option<[usize; 3]>,
    test_crop_pct: Option<f64>,
}

/// The weights file.
#[derive(Debug, Serialize)]
struct File {
    path: String,
    weight_bytes: u64,
    sha256: String,
    /// Elements of each type.
    dtypes: BTreeMap<&'static str, usize>,
    /// Of a `.pth` file: what `--key` takes.
    state_dicts: Vec<StateDict>,
    /// What the load changed or took for granted.
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    weight_bytes: usize,
}

/// One layer in the order of the forward pass.
#[derive(Debug, Serialize)]
struct Layer {
    layer: String,
    /// Its shape in words.
    shape: String,
    param_count: usize,
    macs: u64,
}

impl Report {
    fn new(
        spec: ModelSpec,
        preparation: Preparation,
        file: Option<File>,
        labels: usize,
        history: Vec<HistoryStep>,
    ) -> Result<Report> {
        let cost = spec.costs()?;
        let (param_count, macs) = (cost.parameters(), cost.macs());
        let layers = cost.layers.into_iter().map(|layer| Layer {
            shape: shape(&spec, &layer.layer),
            layer: layer.layer,
            param_count: layer.parameters,
            macs: layer.macs,
        });
        Ok(Report {
            architecture: spec.architecture.clone(),
            num_classes: spec.num_classes,
            param_count,
            macs,
            preparation,
            file,
            labels,
            history,
            layers: layers.collect(),
            tokens: if spec.reduces_tokens() {
                spec.token_counts()
            } else {
                Vec::new()
            },
            spec,
        })
    }
}

impl Preparation {
    fn of(spec: &ModelSpec, cfg: &PretrainedCfg) -> Preparation {
        let lowercase = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
        Preparation {
            input_size: spec.input_size(),
            interpolation: lowercase(&cfg.interpolation),
            crop_pct: cfg.crop_pct,
            crop_mode: lowercase(&cfg.crop_mode),
            mean: cfg.mean.clone(),
            std: cfg.std.clone(),
            test_input_size: cfg.test_input_size,
            test_crop_pct: cfg.test_crop_pct,
        }
    }
}

impl File {
    fn of(checkpoint: &Checkpoint, list_tensors: bool) -> Result<File> {
        let path = checkpoint.source.weights.as_deref();
        let mut dtypes = BTreeMap::new();
        for (_, tensor) in checkpoint.tensors.iter() {
            *dtypes.entry(tensor.dtype().name()).or_insert(0) += tensor.numel();
        }
        let row = |(name, tensor): (&str, &vitesse::model::Tensor)| TensorRow {
            name: name.to_owned(),
            dtype: tensor.dtype().name(),
            shape: tensor.shape().to_vec(),
            weight_bytes: tensor.bytes().len(),
        };
        Ok(File {
            path: path.map(|path| path.display().to_string()).unwrap_or_default(),
            weight_bytes: checkpoint.tensors.total_bytes() as u64,
            sha256: checkpoint.source_sha256()?.unwrap_or_default(),
            dtypes,
            state_dicts: checkpoint.source.state_dicts.clone(),
            notes: checkpoint.source.notes.clone(),
            tensors: list_tensors.then(|| checkpoint.tensors.iter().map(row).collect()),
        })
    }
}

/// The shape of a layer in words; `name` is [`LayerCost::layer`](vitesse::model::spec::LayerCost::layer).
fn shape(spec: &ModelSpec, name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let vit = match &spec.network {
        NetworkSpec::Vit(vit) => vit,
        NetworkSpec::Swin(swin) => return of_swin(spec, swin, &parts),
        NetworkSpec::RegNet(_) => return String::new(),
    };
    match *parts.as_slice() {
        ["patch_embed"] => {
            let ([rows, columns], side, width) = (vit.grid(), vit.patch_size, vit.embed_dim);
            format!("{rows}x{columns} patches of {side}x{side} pixels, width {width}")
        }
        ["tokens"] => format!("{} prefix + {} patches", vit.prefix.len(), vit.patches()),
        ["blocks", layer, part] => {
            let layer = layer.parse().unwrap_or(usize::MAX);
            let text = vit
                .block(layer)
                .map(|block| sub_layer(vit.embed_dim, block, part))
                .unwrap_or_default();
            match vit.layers.get(layer) {
                Some(own) if Transformer::Vit(vit).is_shared() => {
                    format!(
                        "{text}, matrices of core {}{}",
                        own.core,
                        tokens(spec, layer, part)
                    )
                }
                _ => format!("{text}{}", tokens(spec, layer, part)),
            }
        }
        ["ops", index] => op(spec, index),
        ["head" | "head_dist"] => counted(spec.num_classes, "class"),
        _ => String::new(),
    }
}

/// How many tokens a sub-layer sees, where ops make them fewer on the way.
fn tokens(spec: &ModelSpec, layer: usize, part: &str) -> String {
    let Some(counts) = spec
        .token_counts()
        .get(layer)
        .copied()
        .filter(|_| spec.reduces_tokens())
    else {
        return String::new();
    };
    let seen = if part == "attn" {
        counts.attention
    } else {
        counts.perceptron
    };
    let at_most = if decides_by_image(spec) { "at most " } else { "" };
    format!(", {at_most}{}", counted(seen.count(), "token"))
}

/// Whether images keep different numbers of tokens.
fn decides_by_image(spec: &ModelSpec) -> bool {
    let by_image =
        |kind: &OpKind| matches!(kind, OpKind::TokenSelector(selector) if selector.ratio.is_none());
    spec.ops.iter().any(|op| by_image(&op.kind))
}

/// The same of a Swin's layer.
fn of_swin(spec: &ModelSpec, swin: &SwinSpec, parts: &[&str]) -> String {
    match *parts {
        ["patch_embed"] => {
            let ([rows, columns], side, width) = (swin.stage_map(0), swin.patch_size, swin.embed_dim);
            format!("{rows}x{columns} patches of {side}x{side} pixels, width {width}")
        }
        ["layers", stage, "downsample"] => {
            let stage = stage.parse().unwrap_or(0);
            let [rows, columns] = swin.stage_map(stage);
            format!("{rows}x{columns} tokens, width {}", swin.stage_dim(stage))
        }
        ["layers", stage, "blocks", block, part] => {
            let stage = stage.parse().unwrap_or(usize::MAX);
            let layer = swin.first_layer(stage) + block.parse().unwrap_or(0);
            let (Some(block), Some(windows)) = (swin.block(layer), swin.windows(layer)) else {
                return String::new();
            };
            let text = sub_layer(swin.stage_dim(stage), block, part);
            let [rows, columns] = windows.window;
            let shifted = if windows.shifts() { ", shifted" } else { "" };
            let text = match part {
                "attn" => format!("{text}, windows of {rows}x{columns}{shifted}"),
                _ => text,
            };
            match swin.layers.get(layer) {
                Some(spec) if Transformer::Swin(swin).is_shared() => {
                    format!("{text}, matrices of core {}", spec.core)
                }
                _ => text,
            }
        }
        ["ops", index] => op(spec, index),
        ["head", "fc"] => counted(spec.num_classes, "class"),
        _ => String::new(),
    }
}

/// The op of this number.
fn op(spec: &ModelSpec, index: &str) -> String {
    let op = index.parse::<usize>().ok().and_then(|index| spec.ops.get(index));
    op.map(|op| {
        let block = op
            .layer
            .map(|layer| format!(" of block {layer}"))
            .unwrap_or_default();
        format!("{} at {}{block}", op.kind.name(), op.site)
    })
    .unwrap_or_default()
}

fn sub_layer(dim: usize, block: &BlockSpec, part: &str) -> String {
    let (text, written) = match (part, &block.attn, &block.mlp) {
        ("attn", Some(attn), _) => (heads(attn), &attn.out_idx),
        ("mlp", _, Some(mlp)) => (format!("{} hidden", mlp.hidden), &mlp.out_idx),
        _ => return String::new(),
    };
    match written {
        Some(written) => format!("{text}, writes {} of {dim}", written.len()),
        None => text,
    }
}

fn heads(attn: &AttentionSpec) -> String {
    let number = counted(attn.num_heads(), "head");
    match attn.uniform_heads() {
        Some((_, qk, v)) => format!("{number}, q/k {qk}, v {v}"),
        None => format!("{number}, q/k {:?}, v {:?}", attn.qk_dims, attn.v_dims),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [channels, height, width] = self.preparation.input_size;
        let how = &self.preparation;
        let mut rows = vec![
            ("architecture", self.architecture.clone()),
            (
                "classes",
                format!("{} ({} with a name)", self.num_classes, self.labels),
            ),
            ("parameters", format::count(self.param_count as u64)),
            (
                "MACs",
                format!("{} for one image", format::si(self.macs as f64, "")),
            ),
            ("input", format!("{channels} x {height} x {width}")),
            (
                "preparation",
                format!("{}, crop {} {}", how.interpolation, how.crop_pct, how.crop_mode),
            ),
            ("mean, std", format!("{:?}, {:?}", how.mean, how.std)),
        ];
        match &self.file {
            None => rows.push(("weights", "none: this is a name, not a checkpoint".to_owned())),
            Some(file) => {
                let dtypes = file
                    .dtypes
                    .iter()
                    .map(|(dtype, n)| format!("{} {dtype}", format::count(*n as u64)));
                rows.extend([
                    ("weights", file.path.clone()),
                    (
                        "bytes",
                        format!("{} in tensors", format::count(file.weight_bytes)),
                    ),
                    ("elements", dtypes.collect::<Vec<_>>().join(", ")),
                    ("SHA-256", file.sha256.clone()),
                ]);
                if !file.state_dicts.is_empty() {
                    let dict = |dict: &StateDict| match dict.key.as_str() {
                        "" => format!("the top level ({})", dict.tensors),
                        key => format!("{} ({})", key.escape_debug(), dict.tensors),
                    };
                    let dicts: Vec<String> = file.state_dicts.iter().map(dict).collect();
                    rows.push(("state dicts", dicts.join(", ")));
                }
                rows.extend(file.notes.iter().map(|note| ("note", note.clone())));
            }
        }
        for step in &self.history {
            let method = step
                .method
                .as_ref()
                .map(|method| format!(" ({method})"))
                .unwrap_or_default();
            rows.push(("history", format!("{}{method}", step.step)));
        }
        f.write_str(&pairs(rows))?;

        let mut table = Table::new([
            left("layer"),
            left("shape"),
            right("parameters"),
            right("MACs"),
            right("share"),
        ]);
        let share = |macs: u64| format!("{:.1} %", 100.0 * macs as f64 / self.macs.max(1) as f64);
        for layer in &self.layers {
            let (parameters, macs) = (
                format::count(layer.param_count as u64),
                format::si(layer.macs as f64, ""),
            );
            table.push([
                layer.layer.clone(),
                layer.shape.clone(),
                parameters,
                macs,
                share(layer.macs),
            ]);
        }
        write!(f, "\n{table}")?;
        let Some(tensors) = self.file.as_ref().and_then(|file| file.tensors.as_ref()) else {
            return Ok(());
        };
        let mut table = Table::new([left("tensor"), left("type"), left("shape"), right("bytes")]);
        for tensor in tensors {
            let bytes = format::count(tensor.weight_bytes as u64);
            table.push([
                tensor.name.clone(),
                tensor.dtype.to_owned(),
                format!("{:?}", tensor.shape),
                bytes,
            ]);
        }
        write!(f, "\n{table}")
    }
}

/// Every architecture that has a name.
#[derive(Debug, Serialize)]
struct Zoo {
    models: Vec<Named>,
}

#[derive(Debug, Serialize)]
struct Named {
    name: &'static str,
    num_classes: usize,
    input_size: [usize; 3],
    param_count: usize,
    macs: u64,
}

impl Zoo {
    fn list() -> Result<Zoo> {
        let named = |name| -> Result<Named> {
            let spec = zoo::get(name)?.spec;
            let cost = spec.costs()?;
            let (num_classes, input_size) = (spec.num_classes, spec.input_size());
            Ok(Named {
                name,
                num_classes,
                input_size,
                param_count: cost.parameters(),
                macs: cost.macs(),
            })
        };
        Ok(Zoo {
            models: zoo::names().map(named).collect::<Result<_>>()?,
        })
    }
}

impl fmt::Display for Zoo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [
            left("name"),
            right("image"),
            right("classes"),
            right("parameters"),
            right("MACs"),
        ];
        let mut table = Table::new(columns);
        for model in &self.models {
            let [_, height, width] = model.input_size;
            let (parameters, macs) = (
                format::si(model.param_count as f64, ""),
                format::si(model.macs as f64, ""),
            );
            let image = format!("{height} x {width}");
            table.push([
                model.name,
                &image,
                &model.num_classes.to_string(),
                &parameters,
                &macs,
            ]);
        }
        write!(f, "{table}")
    }
}
