//! MiniViT's names, in files of models whose layers share matrices.
//!
//! A shared block is a module there, and what its layers have of their own are its instances. In memory a matrix has the
//! number of its core, a norm that of its layer, and an op its own:
//!
//! | in the file | in memory |
//! | --- | --- |
//! | `blocks.1.block.attn.qkv.weight` | `blocks.1.attn.qkv.weight` |
//! | `blocks.1.block.norm1.instances.0.weight` | `blocks.2.norm1.weight`, if layer 2 is the first that uses core 1 |
//! | `blocks.1.block.attn.rpe_k.instances.0.lookup_table_weight`, `….conv_l.…`, `….conv_w.…` | `ops.7.2.attn.logits.lookup_table_weight`, … |
//! | `layers.2.blocks.1.norm1_list.0.weight` | `layers.2.blocks.2.norm1.weight` |
//! | `layers.2.blocks.1.proj_l.0.weight`, `proj_w`, `local_norm_list`, `local_conv_list` | `ops.9.6.attn.logits.weight`, … |
//!
//! Where every core has one layer there are no instances, but the file still numbers norms by the core. Files of shared Swins
//! have the original code's layout too ([`swin`]), and the weights that mix heads in files of shared ViTs are 1 by 1 convolutions.

use std::collections::{BTreeMap, BTreeSet};

use super::swin;
use crate::ops::{OpKind, OpSpec, QkvPart};
use crate::spec::{LayerSpec, ModelSpec, NetworkSpec, SwinSpec, Transformer, VitSpec};
use crate::tensors::{Tensor, Tensors};
use crate::{Error, Result, Site};

/// The tensors of a file under the names they have in memory.
///
/// # Errors
/// Two tensors that are the same one under two names.
pub fn read(spec: &ModelSpec, tensors: Tensors) -> Result<Tensors> {
    let names: BTreeMap<String, Name> = names(spec)?
        .into_iter()
        .map(|name| (name.file.clone(), name))
        .collect();
    if names.is_empty() {
        return Ok(tensors);
    }
    let mut out = Tensors::new();
    for (name, tensor) in tensors {
        let (name, tensor) = match names.get(&name) {
            Some(known) => (known.memory.clone(), fitted(&tensor, &known.shape)),
            None => (name, tensor),
        };
        if out.contains(&name) {
            return Err(Error::TensorDuplicate { name });
        }
        out.insert(name, tensor);
    }
    Ok(out)
}

/// The tensors of a model under the names they have in a file.
///
/// # Errors
/// A spec that describes no possible model.
pub fn write(spec: &ModelSpec, tensors: &Tensors) -> Result<Tensors> {
    let names: BTreeMap<String, Name> = names(spec)?
        .into_iter()
        .map(|name| (name.memory.clone(), name))
        .collect();
    let old = matches!(&spec.network, NetworkSpec::Swin(swin) if Transformer::Swin(swin).is_shared());
    let renamed = tensors.iter().map(|(name, tensor)| match names.get(name) {
        Some(known) => (known.file.clone(), fitted(tensor, &known.file_shape())),
        None if old => (swin::original_name(name), tensor.clone()),
        None => (name.to_owned(), tensor.clone()),
    });
    Ok(renamed.collect())
}

/// The name in memory of what a file calls `name`; the same name where the two do not differ.
///
/// # Errors
/// A spec that describes no possible model.
pub fn memory_name(spec: &ModelSpec, name: &str) -> Result<String> {
    let mut names = names(spec)?.into_iter();
    let known = names.find(|known| known.file == name);
    Ok(known.map_or_else(|| name.to_owned(), |known| known.memory))
}

/// The same tensor in this shape, if it has as many elements; what does not fit is refused later, by its name.
fn fitted(tensor: &Tensor, shape: &[usize]) -> Tensor {
    tensor.reshape(shape).unwrap_or_else(|_| tensor.clone())
}

/// A tensor whose name in a file differs from the one in memory.
struct Name {
    memory: String,
    file: String,
    /// In memory.
    shape: Vec<usize>,
    /// Whether the file has a convolution of 1 by 1.
    convolution: bool,
}

impl Name {
    fn file_shape(&self) -> Vec<usize> {
        let ones = if self.convolution { &[1, 1][..] } else { &[] };
        [&self.shape, ones].concat()
    }
}

/// The names that differ.
fn names(spec: &ModelSpec) -> Result<Vec<Name>> {
    let differ = match &spec.network {
        NetworkSpec::Vit(vit) => Transformer::Vit(vit).is_shared() || !in_order(&vit.layers),
        NetworkSpec::Swin(swin) => Transformer::Swin(swin).is_shared(),
        NetworkSpec::RegNet(_) => false,
    };
    if !differ {
        return Ok(Vec::new());
    }
    let own = |index: usize, op: &OpSpec, memory: &str| -> Option<(String, bool)> {
        let end = memory.strip_prefix(&op.prefix(index))?.strip_prefix('.')?;
        match &spec.network {
            NetworkSpec::Vit(vit) => vit_op(vit, op, end),
            NetworkSpec::Swin(swin) => swin_op(swin, op, end).map(|name| (name, false)),
            NetworkSpec::RegNet(_) => None,
        }
    };
    let (mut out, mut taken) = (Vec::new(), BTreeSet::new());
    for tensor in spec.tensors()? {
        let found = match spec.op_of(&tensor.name) {
            Some((index, op)) => own(index, op, &tensor.name),
            None => match &spec.network {
                NetworkSpec::Vit(vit) => vit_block(&tensor.name, vit).map(|name| (name, false)),
                NetworkSpec::Swin(swin) => swin_norm(&tensor.name, swin).map(|name| (name, false)),
                NetworkSpec::RegNet(_) => None,
            },
        };
        // Of two ops of one kind at one place only the first is one of MiniViT's.
        if let Some((file, convolution)) = found
            && taken.insert(file.clone())
        {
            out.push(Name {
                memory: tensor.name,
                file,
                convolution: convolution && tensor.shape.len() == 2,
                shape: tensor.shape,
            });
        }
    }
    Ok(out)
}

fn in_order(layers: &[LayerSpec]) -> bool {
    layers.iter().enumerate().all(|(i, layer)| layer.core == i)
}

/// The core of a layer, and how many layers before it use the same, of those that `count`.
fn instance(layers: &[LayerSpec], layer: usize, count: impl Fn(&LayerSpec) -> bool) -> Option<[usize; 2]> {
    let core = layers.get(layer)?.core;
    let before = layers.iter().take(layer);
    let same = before.filter(|other| other.core == core && count(other));
    Some([core, same.count()])
}

/// The name in the file of a tensor of a ViT's block; `None` for any other.
fn vit_block(name: &str, vit: &VitSpec) -> Option<String> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let (part, end) = rest.split_once('.')?;
    let is_norm = part.starts_with("norm");
    Some(match (is_norm, Transformer::Vit(vit).is_shared()) {
        (false, true) => format!("blocks.{number}.block.{rest}"),
        (false, false) => name.to_owned(),
        (true, false) => format!("blocks.{}.{rest}", vit.layers.get(number)?.core),
        (true, true) => {
            let [core, number] = instance(&vit.layers, number, |layer| layer.norms.is_none())?;
            format!("blocks.{core}.block.{part}.instances.{number}.{end}")
        }
    })
}

/// The name in the file of an op's tensor `end` in a shared ViT, and whether a matrix is a convolution there; `None` for what MiniViT does not have.
fn vit_op(vit: &VitSpec, op: &OpSpec, end: &str) -> Option<(String, bool)> {
    if !Transformer::Vit(vit).is_shared() {
        return None;
    }
    let module = match (&op.kind, op.site) {
        (OpKind::HeadMixing(_), Site::AttnLogits) => "conv_l",
        (OpKind::HeadMixing(_), _) => "conv_w",
        (OpKind::RelativePositions(kind), _) => match kind.of {
            QkvPart::Q => "rpe_q",
            QkvPart::K => "rpe_k",
            QkvPart::V => "rpe_v",
        },
        _ => return None,
    };
    let [core, number] = instance(&vit.layers, op.layer?, |_| true)?;
    let name = format!("blocks.{core}.block.attn.{module}.instances.{number}.{end}");
    Some((name, matches!(op.kind, OpKind::HeadMixing(_))))
}

/// The name in the file of a norm of a shared Swin's block; `None` for any other.
fn swin_norm(name: &str, swin: &SwinSpec) -> Option<String> {
    let (stage, rest) = name.strip_prefix("layers.")?.split_once(".blocks.")?;
    let (within, rest) = rest.split_once('.')?;
    let (part, end) = rest.split_once('.')?;
    if !part.starts_with("norm") {
        return None;
    }
    let layer = swin.first_layer(stage.parse().ok()?) + within.parse::<usize>().ok()?;
    let [core, number] = instance(&swin.layers, layer, |layer| layer.norms.is_none())?;
    let of_core = || swin.layers.iter().filter(|layer| layer.core == core);
    let alone = of_core().count() > 1 && of_core().filter(|layer| layer.norms.is_none()).count() == 1;
    let prefix = swin.core_name(core);
    Some(match alone {
        true => format!("{prefix}.{part}.{end}"),
        false => format!("{prefix}.{part}_list.{number}.{end}"),
    })
}

/// The name in the file of an op's tensor `end` in a shared Swin; `None` for what MiniViT does not have.
fn swin_op(swin: &SwinSpec, op: &OpSpec, end: &str) -> Option<String> {
    let (module, end) = match (&op.kind, op.site) {
        (OpKind::HeadMixing(_), Site::AttnLogits) => ("proj_l", end),
        (OpKind::HeadMixing(_), _) => ("proj_w", end),
        (OpKind::LocalConvolution(_), Site::Mid) => match end.split_once('.')? {
            ("norm", end) => ("local_norm_list", end),
            (_, end) => ("local_conv_list", end),
        },
        _ => return None,
    };
    let [core, number] = instance(&swin.layers, op.layer?, |_| true)?;
    Some(format!("{}.{module}.{number}.{end}", swin.core_name(core)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PrefixToken;

    fn model(layers: &[usize], norms: Option<usize>) -> ModelSpec {
        let mut vit = VitSpec::plain(8, 4, 4, 2, 2, vec![PrefixToken::Class]);
        vit.layers = layers.iter().map(|&core| LayerSpec::of(core)).collect();
        vit.cores.truncate(layers.iter().max().map_or(0, |last| last + 1));
        if let Some(last) = vit.layers.last_mut() {
            last.norms = norms;
        }
        ModelSpec {
            architecture: "deit_micro_patch4_32".into(),
            num_classes: 3,
            network: NetworkSpec::Vit(vit),
            ops: Vec::new(),
        }
    }

    /// The cores of the layers, whose norms the last one uses, and names in memory and in the file.
    type Case<'a> = (&'a [usize], Option<usize>, &'a [(&'a str, &'a str)]);

    #[test]
    fn files_keep_their_names_and_come_back() {
        let cases: [Case<'_>; 4] = [
            (&[0, 1], None, &[("blocks.1.norm1.bias", "blocks.1.norm1.bias")]),
            (
                &[1, 0],
                None,
                &[
                    ("blocks.0.norm1.bias", "blocks.1.norm1.bias"),
                    ("blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc1.bias"),
                ],
            ),
            (
                &[0, 0, 1, 0],
                None,
                &[
                    ("blocks.2.norm1.weight", "blocks.1.block.norm1.instances.0.weight"),
                    ("blocks.3.norm2.weight", "blocks.0.block.norm2.instances.2.weight"),
                    ("blocks.1.attn.qkv.weight", "blocks.1.block.attn.qkv.weight"),
                    ("head.weight", "head.weight"),
                ],
            ),
            (
                &[0, 1, 1],
                Some(0),
                &[("blocks.0.norm2.weight", "blocks.0.block.norm2.instances.0.weight")],
            ),
        ];
        for (layers, norms, expected) in cases {
            let spec = model(layers, norms);
            let tensors = spec.init(1).unwrap();
            let file = write(&spec, &tensors).unwrap();
            assert_eq!(file.len(), tensors.len());
            for (memory, name) in expected {
                assert_eq!(file.get(name).unwrap(), tensors.get(memory).unwrap(), "{memory}");
            }
            assert_eq!(read(&spec, file).unwrap(), tensors);
        }
        assert!(
            model(&[0, 1, 1], Some(0))
                .tensors()
                .unwrap()
                .iter()
                .all(|t| !t.name.contains("blocks.2"))
        );
    }

    #[test]
    fn two_names_of_one_tensor_are_refused() {
        let spec = model(&[0, 0], None);
        let mut tensors = spec.init(1).unwrap();
        let twice = tensors.get("blocks.0.attn.qkv.bias").unwrap().clone();
        tensors.insert("blocks.0.block.attn.qkv.bias", twice);
        let error = read(&spec, tensors).unwrap_err();
        assert!(error.to_string().contains("blocks.0.attn.qkv.bias"), "{error}");
    }
}
