//! CLIP's image encoder in state dicts of OpenAI's program and of OpenCLIP, which have the same names.
//!
//! Attention's projections are `in_proj_weight` `[3·dim, dim]` (queries, keys, values) and `out_proj`; the projection to what
//! images and texts have in common, `proj` `[dim, out]`, becomes the head, as in timm. The names of the image encoder begin
//! with `visual.`, or with nothing where it was saved alone.
//!
//! Two things stand in no tensor. OpenAI's models have the quick GELU and OpenCLIP's mostly the exact one: what OpenAI's own
//! archives hold besides, or the `open_clip_config.json` beside the file, tells which; without either the caller must. Heads are
//! 64 wide, but for OpenCLIP's largest models.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::bare::Known;
use super::clip::{architecture, features, no_bias, with_batch, without};
use super::hf::{Target, rename};
use crate::config::{Fields, PretrainedCfg};
use crate::spec::limits::DEPTH;
use crate::spec::{Activation, ModelSpec, NetworkSpec, PrefixToken, VitSpec};
use crate::tensors::{Tensor, Tensors};
use crate::{Error, Result, zoo};

/// What OpenCLIP writes beside its weights.
const CONFIG: &str = "open_clip_config.json";

/// Numbers that the archives of OpenAI hold and that no other file does.
const OPENAI: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// The width of a head, but for the models whose width is above [`WIDEST`].
const HEAD: usize = 64;
const WIDEST: usize = 1024;

/// Tensors under timm's names, and what is known of an image encoder.
#[derive(Default)]
pub(crate) struct Converted {
    pub(crate) tensors: Tensors,
    /// What it is, where the caller has not named it.
    pub(crate) entry: Option<zoo::Entry>,
    /// Mean and deviation of its images, where the file's companion says.
    pub(crate) normalisation: Option<[Vec<f64>; 2]>,
    pub(crate) notes: Vec<String>,
}

/// Whether these are the tensors of one of OpenAI's or OpenCLIP's models, or of its image encoder.
pub(crate) fn is(tensors: &Tensors) -> bool {
    let has = |name: &str| tensors.contains(&format!("visual.{name}")) || tensors.contains(name);
    has("conv1.weight") && (has("class_embedding") || has("attnpool.positional_embedding"))
}

/// The image encoder of `file` under timm's names, and what it is.
///
/// # Errors
/// Encoders that are no vision transformers, and models of which the file does not say enough.
pub(crate) fn convert(mut tensors: Tensors, file: &Path, known: &Known<'_>) -> Result<Converted> {
    if tensors.names().any(|name| name.contains("attnpool.")) {
        return Err(Error::Unsupported {
            what: format!("the CLIP in `{}`", file.display()),
            why: "its image encoder is a ResNet, and those that are read are vision transformers, such as ViT-B/32"
                .to_owned(),
        });
    }
    let beside = Beside::read(&file.with_file_name(CONFIG))?;
    let openais = OPENAI.iter().all(|name| tensors.contains(name));
    let mut notes = Vec::new();
    if let Some(inner) = tensors.strip_prefix("visual.") {
        tensors = inner;
    } else if tensors.contains("visual.class_embedding") {
        notes.extend(without(&mut tensors, |name| !name.starts_with("visual."))?);
        tensors = tensors.strip_prefix("visual.").unwrap_or(tensors);
    }
    for name in ["class_embedding", "positional_embedding"] {
        if let Ok(rows) = tensors.get(name) {
            let rows = with_batch(rows)?;
            tensors.insert(name, rows);
        }
    }
    if let Ok(projection) = tensors.get("proj") {
        let weight = transposed(projection)?;
        tensors.insert("head.bias", no_bias(&weight)?);
        tensors.insert("proj", weight);
        notes.push(features("visual.proj"));
    }
    let tensors = rename(tensors, &target)?;
    notes.insert(
        0,
        "the names and layout of OpenAI's CLIP were converted to timm's".to_owned(),
    );
    let activation = match (&beside, openais) {
        (Some(beside), _) => {
            notes.push(format!(
                "`{CONFIG}` says that it has the {}",
                words(beside.activation)
            ));
            Some(beside.activation)
        }
        (None, true) => {
            notes.push("it is OpenAI's own, so it has the quick GELU".to_owned());
            Some(Activation::QuickGelu)
        }
        (None, false) => None,
    };
    let entry = match known.architecture {
        Some(name) => {
            let named = zoo::get(name).ok();
            let named = named.and_then(|entry| entry.spec.vit().ok().map(|vit| vit.activation));
            if let (Some(told), Some(named)) = (activation, named)
                && told != named
            {
                return Err(Error::Weights {
                    path: file.to_owned(),
                    detail: format!(
                        "`{name}` has the {}, but the file, or the `{CONFIG}` beside it, says that its blocks have the {}; leave \
                         `--architecture` out",
                        words(named),
                        words(told)
                    ),
                });
            }
            None
        }
        None => {
            let width = beside.as_ref().and_then(|beside| beside.head_width);
            let vit = described(&tensors, file, width, known)?;
            let Some(activation) = activation else {
                return Err(undecided(file, &vit));
            };
            Some(entry(vit.into_clip(activation))?)
        }
    };
    Ok(Converted {
        tensors,
        entry,
        normalisation: beside.and_then(|beside| beside.normalisation),
        notes,
    })
}

/// Gives images the preparation that OpenAI's program and OpenCLIP have: the shorter side becomes that of the model.
pub(crate) fn prepare(cfg: &mut PretrainedCfg, normalisation: Option<[Vec<f64>; 2]>) {
    cfg.crop_pct = 1.0;
    if let Some([mean, std]) = normalisation {
        (cfg.mean, cfg.std) = (mean, std);
    }
}

/// An activation in a sentence.
fn words(activation: Activation) -> &'static str {
    match activation {
        Activation::QuickGelu => "quick GELU",
        Activation::Gelu => "exact GELU",
        other => other.name(),
    }
}

/// The refusal to guess an activation.
fn undecided(file: &Path, vit: &VitSpec) -> Error {
    let name = |activation| architecture(&vit.clone().into_clip(activation));
    Error::Weights {
        path: file.to_owned(),
        detail: format!(
            "its names are those of OpenAI's CLIP and of OpenCLIP alike, and nothing says whether its blocks have the quick GELU; \
             say so with `--architecture`: `{}` for OpenAI's weights and for OpenCLIP's models whose name ends in \
             `-quickgelu`, `{}` for OpenCLIP's others; or put OpenCLIP's `{CONFIG}` beside the file",
            name(Activation::QuickGelu),
            name(Activation::Gelu),
        ),
    }
}

/// A model of the zoo that stands for this network.
fn entry(vit: VitSpec) -> Result<zoo::Entry> {
    let name = architecture(&vit);
    let known = zoo::get(name)?;
    Ok(zoo::Entry {
        spec: ModelSpec {
            network: NetworkSpec::Vit(vit),
            ..known.spec
        },
        ..known
    })
}

/// The network that has these tensors, but for its activation.
fn described(tensors: &Tensors, file: &Path, head: Option<usize>, known: &Known<'_>) -> Result<VitSpec> {
    let bad = |detail: String| Error::Weights {
        path: file.to_owned(),
        detail,
    };
    let side = |name: &str, axis: usize| {
        let tensor = tensors.get(name).ok()?;
        tensor.shape().get(axis).copied().filter(|side| *side > 0)
    };
    let patches = |axis| side("patch_embed.proj.weight", axis);
    let (Some(dim), Some(patch)) = (patches(0), patches(2)) else {
        return Err(bad(
            "its `conv1.weight` is no convolution of patches, `[dim, channels, side, side]`".to_owned(),
        ));
    };
    let number = |name: &str| {
        name.strip_prefix("blocks.")?
            .split('.')
            .next()?
            .parse::<usize>()
            .ok()
    };
    let last = tensors
        .names()
        .filter_map(number)
        .filter(|block| *block < DEPTH)
        .max();
    let depth = last.map_or(0, |last| last + 1);
    if head.is_none() && known.heads.is_none() && dim > WIDEST {
        return Err(bad(format!(
            "it is {dim} wide, and how many heads a block has stands in no tensor; say so with `--num-heads`, or put OpenCLIP's \
             `{CONFIG}` beside the file"
        )));
    }
    let head = head.unwrap_or(HEAD);
    if known.heads.is_none() && !dim.is_multiple_of(head) {
        return Err(bad(format!(
            "it is {dim} wide, which is no multiple of the {head} of a head; say how many heads it has with `--num-heads`"
        )));
    }
    let grid = side("pos_embed", 1).map_or(0, |rows| (rows - 1).isqrt()).max(1);
    let mut vit = VitSpec::plain(
        grid * patch,
        patch,
        dim,
        depth,
        (dim / head).max(1),
        vec![PrefixToken::Class],
    );
    for (block, core) in vit.cores.iter_mut().enumerate() {
        let hidden = side(&format!("blocks.{block}.mlp.fc1.weight"), 0);
        if let (Some(mlp), Some(hidden)) = (&mut core.mlp, hidden) {
            mlp.hidden = hidden;
        }
    }
    Ok(vit)
}

/// What OpenCLIP wrote down of its model.
struct Beside {
    activation: Activation,
    head_width: Option<usize>,
    normalisation: Option<[Vec<f64>; 2]>,
}

impl Beside {
    /// The companion of a weights file; `None` where there is none.
    fn read(file: &Path) -> Result<Option<Beside>> {
        // What follows from the tensors, and what is about training.
        const KNOWN: [&str; 6] = [
            "image_size",
            "layers",
            "width",
            "patch_size",
            "mlp_ratio",
            "patch_dropout",
        ];
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(Error::io("read", file))?,
        };
        let mut top = Fields::parse(file, &text)?;
        if !top.has("model_cfg") {
            return Err(top.wrong("model_cfg", "OpenCLIP's description of the model", None));
        }
        let mut model = top.object("model_cfg")?;
        let mut prepared = top.object("preprocess_cfg")?;
        let quick: Option<bool> = model.take("quick_gelu", "`true` or `false`")?;
        let mut vision = model.object("vision_cfg")?;
        let head_width = vision.size("head_width", 1..=4096)?;
        let off = |value: &serde_json::Value| value.is_null() || *value == json!(false);
        let strange = vision
            .keys()
            .find(|key| !KNOWN.contains(&key.as_str()) && !vision.get(key).is_none_or(off));
        if let Some(key) = strange {
            let expected = "left out, since no image encoder that is read here has it";
            return Err(vision.wrong(key, expected, vision.get(key)));
        }
        let mean = prepared.numbers("mean", 3, false)?;
        let std = prepared.numbers("std", 3, true)?;
        Ok(Some(Beside {
            activation: match quick {
                Some(true) => Activation::QuickGelu,
                _ => Activation::Gelu,
            },
            head_width,
            normalisation: mean.zip(std).map(|(mean, std)| [mean, std]),
        }))
    }
}

/// A matrix with rows and columns exchanged.
fn transposed(matrix: &Tensor) -> Result<Tensor> {
    let [rows, columns] = *matrix.shape() else {
        // The strict check says what is wrong with it.
        return Ok(matrix.clone());
    };
    let (size, bytes) = (matrix.dtype().size(), matrix.bytes());
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            out.extend_from_slice(bytes.get(at..at + size).unwrap_or_default());
        }
    }
    Tensor::from_bytes(matrix.dtype(), &[columns, rows], out)
}

/// timm's name for one of an image encoder; `None` for a name that is unknown.
fn target(name: &str) -> Option<Target> {
    let whole = |name: &str| Some(Target::Whole(name.to_owned()));
    match name {
        "class_embedding" => return whole("cls_token"),
        "positional_embedding" => return whole("pos_embed"),
        "conv1.weight" => return whole("patch_embed.proj.weight"),
        "proj" => return whole("head.weight"),
        _ => {}
    }
    let (module, parameter) = name.rsplit_once('.')?;
    match module {
        "ln_pre" => return whole(&format!("norm_pre.{parameter}")),
        "ln_post" => return whole(&format!("norm.{parameter}")),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    let part = match part {
        "attn.in_proj_weight" => "attn.qkv.weight".to_owned(),
        "attn.in_proj_bias" => "attn.qkv.bias".to_owned(),
        _ => {
            let (module, parameter) = part.rsplit_once('.')?;
            let module = match module {
                "ln_1" => "norm1",
                "ln_2" => "norm2",
                "attn.out_proj" => "attn.proj",
                "mlp.c_fc" => "mlp.fc1",
                "mlp.c_proj" => "mlp.fc2",
                _ => return None,
            };
            format!("{module}.{parameter}")
        }
    };
    whole(&format!("blocks.{layer}.{part}"))
}
