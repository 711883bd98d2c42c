//! RepAdapter's own files: one dictionary of tensors, without scale, groups or base.
//!
//! Names are `blocks.N.adapter_attn.conv_A.weight` and so on (before attention), `adapter_mlp` (before the perceptron), or
//! `MODULE.adapter.` for the form that puts one before every linear layer; in a Swin they begin with `layers.S.`. The number of groups follows from the shapes;
//! the scale is nowhere and must be given. Everything else in the file is the head.

use std::collections::BTreeMap;
use std::path::Path;

use vitesse_model::ops::{Activation, Bottleneck, OpKind, OpSpec};
use vitesse_model::storage::{pth, safetensors};
use vitesse_model::{Site, Tensor, Tensors, swin_names};

use super::{Adapter, Content, Record};
use crate::{Error, Result};

/// The four tensors of an adapter: their names in the file and in an op.
const TENSORS: [(&str, &str); 4] = [
    ("conv_A.weight", "down.weight"),
    ("conv_A.bias", "down.bias"),
    ("conv_B.weight", "up.weight"),
    ("conv_B.bias", "up.bias"),
];

/// Where an adapter of this name stands in a block.
const PLACES: [(&str, Site); 8] = [
    ("adapter_attn", Site::AttnIn),
    ("adapter_mlp", Site::MlpIn),
    ("attn_rep", Site::AttnIn),
    ("mlp_rep", Site::MlpIn),
    ("attn.qkv.adapter", Site::AttnIn),
    ("attn.proj.adapter", Site::AttnHeads),
    ("mlp.fc1.adapter", Site::MlpIn),
    ("mlp.fc2.adapter", Site::MlpHidden),
];

/// Reads a `.safetensors` or `.pth` file.
///
/// # Errors
/// As [`parse`], and a file that cannot be read.
pub fn read(path: &Path, scale: Option<f64>) -> Result<Adapter> {
    let tensors = if path.extension().is_some_and(|end| end == "safetensors") {
        safetensors::read(path)?.0
    } else {
        pth::read(path)?
    };
    parse(tensors, scale, path)
}

/// An adapter from the tensors of the file `path`.
///
/// # Errors
/// An unknown scale, adapters that are not whole, or stand where no ViT has them.
pub fn parse(tensors: Tensors, scale: Option<f64>, path: &Path) -> Result<Adapter> {
    let fail = |sentence: String| Error::Adapter {
        path: path.to_owned(),
        sentence,
    };
    let mut adapters: BTreeMap<String, Tensors> = BTreeMap::new();
    let mut replaced = Tensors::new();
    for (name, tensor) in tensors {
        let place = TENSORS
            .iter()
            .find_map(|(end, _)| Some((name.strip_suffix(end)?.strip_suffix('.')?, *end)));
        match place {
            Some((module, end)) => {
                adapters.entry(module.to_owned()).or_default().insert(end, tensor);
            }
            None => {
                replaced.insert(name, tensor);
            }
        }
    }
    if adapters.is_empty() {
        return Err(fail(
            "it holds no tensor named `conv_A` or `conv_B`, as RepAdapter's files do".into(),
        ));
    }
    let Some(scale) = scale else {
        return Err(fail(
            "the scale it was trained with is not in the file, and any other would give wrong answers; give it \
             with `--scale`"
                .into(),
        ));
    };
    let depths = depths(adapters.keys());
    if !depths.is_empty() {
        // Of a Swin, whose head has another name in the original code.
        let named = |(name, tensor): (String, Tensor)| Some((swin_names::timm_name(&name, false)?, tensor));
        replaced = replaced.into_iter().filter_map(named).collect();
    }
    let mut found = Vec::new();
    for (module, tensors) in &adapters {
        let (layer, site) = place(module, &depths).ok_or_else(|| {
            fail(format!(
                "its adapter `{module}` stands where a vision transformer has no place for one"
            ))
        })?;
        let shape = |end: &str| -> Result<Vec<usize>> {
            Ok(tensors
                .get(end)
                .map_err(|_| fail(format!("its adapter `{module}` lacks `{end}`")))?
                .shape()
                .to_vec())
        };
        let (down, up) = (shape("conv_A.weight")?, shape("conv_B.weight")?);
        let (Some(&hidden), Some(&grouped)) = (down.first(), up.get(1)) else {
            return Err(fail(format!(
                "the weights of its adapter `{module}` have shapes {down:?} and {up:?}"
            )));
        };
        if grouped == 0 || !hidden.is_multiple_of(grouped) {
            return Err(fail(format!(
                "its adapter `{module}` has {hidden} hidden units, which cannot be split into groups of {grouped}"
            )));
        }
        let kind = Bottleneck {
            hidden,
            groups: hidden / grouped,
            activation: Activation::None,
            scale,
            learned_scale: false,
            norm: None,
            from: None,
            dropout: 0.0,
        };
        found.push((layer, site, module, kind));
    }
    found.sort_by_key(|(layer, site, _, _)| (*layer, *site));
    let (mut ops, mut own) = (Vec::new(), Tensors::new());
    for (layer, site, module, kind) in found {
        let op = OpSpec {
            site,
            layer: Some(layer),
            kind: OpKind::Bottleneck(kind),
        };
        let prefix = op.prefix(ops.len());
        for (from, to) in TENSORS {
            let tensor = adapters
                .get(module)
                .and_then(|tensors| tensors.get(from).ok())
                .ok_or_else(|| fail(format!("its adapter `{module}` lacks `{from}`")))?;
            own.insert(format!("{prefix}.{to}"), squeezed(tensor)?);
        }
        ops.push(op);
    }
    Ok(Adapter {
        path: path.to_owned(),
        content: Content::Ops(ops, own),
        replaced,
        record: Record::default(),
    })
}

/// A 1×1 convolution's kernel `[out, in, 1]` or `[out, in, 1, 1]` as a matrix, by its shape and not by dropping sides of 1.
fn squeezed(tensor: &Tensor) -> Result<Tensor> {
    let sides = tensor.shape().get(..2).unwrap_or(tensor.shape()).to_vec();
    Ok(tensor.reshape(&sides)?)
}

/// Layer and site of `blocks.3.adapter_attn`, or of `layers.1.blocks.3.adapter_attn` where stages have so many blocks.
fn place(module: &str, depths: &[usize]) -> Option<(usize, Site)> {
    let (first, module) = match staged(module) {
        Some((stage, _)) => {
            let (_, rest) = module.strip_prefix("layers.")?.split_once('.')?;
            {
                let before = depths.get(..stage)?.iter();
                (before.copied().try_fold(0usize, usize::checked_add)?, rest)
            }
        }
        None => (0, module),
    };
    let (layer, end) = module.strip_prefix("blocks.")?.split_once('.')?;
    let (_, site) = PLACES.into_iter().find(|(name, _)| *name == end)?;
    Some((layer.parse::<usize>().ok()?.checked_add(first)?, site))
}

/// Stage and block of `layers.1.blocks.3.adapter_attn`.
fn staged(module: &str) -> Option<(usize, usize)> {
    let (stage, rest) = module.strip_prefix("layers.")?.split_once('.')?;
    let (block, _) = rest.strip_prefix("blocks.")?.split_once('.')?;
    Some((stage.parse().ok()?, block.parse().ok()?))
}

/// How many blocks each stage has: RepAdapter stands in all of them. Stages without any are none, so that what comes after
/// them has no place.
fn depths<'a>(modules: impl Iterator<Item = &'a String>) -> Vec<usize> {
    let mut blocks: BTreeMap<usize, usize> = BTreeMap::new();
    for (stage, block) in modules.filter_map(|module| staged(module)) {
        let depth = blocks.entry(stage).or_default();
        *depth = block.saturating_add(1).max(*depth);
    }
    let whole = blocks
        .into_iter()
        .enumerate()
        .take_while(|(i, (stage, _))| i == stage);
    whole.map(|(_, (_, depth))| depth).collect()
}
