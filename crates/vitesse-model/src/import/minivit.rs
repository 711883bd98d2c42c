//! MiniViT's names, in files of models whose layers share matrices.
//!
//! A shared block is a module there, and the norms of the layers that use it are its instances. In memory a matrix has the
//! number of its core and a norm that of its layer:
//!
//! | in the file | in memory |
//! | --- | --- |
//! | `blocks.1.block.attn.qkv.weight` | `blocks.1.attn.qkv.weight` |
//! | `blocks.1.block.norm1.instances.0.weight` | `blocks.2.norm1.weight`, if layer 2 is the first that uses core 1 |
//!
//! Where every core has one layer there are no instances, but the file still numbers norms by the core.

use std::collections::BTreeMap;

use crate::Result;
use crate::spec::{ModelSpec, NetworkSpec, Transformer, VitSpec};
use crate::tensors::Tensors;

/// The tensors of a file under the names they have in memory.
pub(crate) fn read(spec: &ModelSpec, tensors: Tensors) -> Result<Tensors> {
    let names = names(spec)?;
    let inverse = names.into_iter().map(|(memory, file)| (file, memory)).collect();
    Ok(renamed(tensors, &inverse))
}

/// The tensors of a model under the names they have in a file.
pub(crate) fn write(spec: &ModelSpec, tensors: &Tensors) -> Result<Tensors> {
    Ok(renamed(tensors.clone(), &names(spec)?))
}

fn renamed(tensors: Tensors, names: &BTreeMap<String, String>) -> Tensors {
    if names.is_empty() {
        return tensors;
    }
    let new = |name: String| names.get(&name).cloned().unwrap_or(name);
    tensors
        .into_iter()
        .map(|(name, tensor)| (new(name), tensor))
        .collect()
}

/// The names that differ, from memory to file.
fn names(spec: &ModelSpec) -> Result<BTreeMap<String, String>> {
    let NetworkSpec::Vit(vit) = &spec.network else {
        return Ok(BTreeMap::new());
    };
    let in_order = vit.layers.iter().enumerate().all(|(i, layer)| layer.core == i);
    if in_order && !Transformer::Vit(vit).is_shared() {
        return Ok(BTreeMap::new());
    }
    let tensors = spec.tensors()?.into_iter();
    Ok(tensors
        .filter_map(|tensor| Some((file_name(&tensor.name, vit)?, tensor.name)))
        .map(|(file, memory)| (memory, file))
        .collect())
}

/// The name in the file of a tensor of a block; `None` for any other.
fn file_name(name: &str, vit: &VitSpec) -> Option<String> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let (part, end) = rest.split_once('.')?;
    let is_norm = part.starts_with("norm");
    Some(match (is_norm, Transformer::Vit(vit).is_shared()) {
        (false, true) => format!("blocks.{number}.block.{rest}"),
        (false, false) => name.to_owned(),
        (true, false) => format!("blocks.{}.{rest}", vit.layers.get(number)?.core),
        (true, true) => {
            let core = vit.layers.get(number)?.core;
            let before = vit.layers.iter().take(number);
            let instance = before
                .filter(|layer| layer.core == core && layer.norms.is_none())
                .count();
            format!("blocks.{core}.block.{part}.instances.{instance}.{end}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{LayerSpec, PrefixToken};

    fn model(layers: &[usize], norms: Option<usize>) -> ModelSpec {
        let mut vit = VitSpec::plain(8, 4, 4, 2, 2, vec![PrefixToken::Class]);
        vit.layers = layers.iter().map(|&core| LayerSpec::of(core)).collect();
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
}
