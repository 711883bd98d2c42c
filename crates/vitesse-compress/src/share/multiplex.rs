//! From a pretrained model to one whose layers share matrices: which weights a group starts with, and transformations that change
//! nothing at first.
//!
//! MiniViT's own code begins from random weights and learns everything from a teacher; this is for those who have a model. A group's
//! matrices are those of one of its layers, or the mean of all; the table of relative positions that the layers of a Swin share is always the mean
//! of theirs. Norms stay each layer's. Mixing of heads starts as the identity and relative positions as zeros, so that both change nothing; a
//! local convolution starts with a kernel of zeros, and changes the model all the same, because of its norm. Masks of a Swin stay its own: in layers
//! that are not shifted there are none, unlike in the published Mini-Swins (`mask_unshifted`).

use std::collections::BTreeSet;

use serde::Serialize;
pub use vitesse_model::ops::Transformation;
use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::spec::{Groups, NormsOf, TensorSpec};
use vitesse_model::{ModelSpec, Site, Sites, Tensor, Tensors};

use crate::{Error, Result};

/// What a group's matrices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Those of its first layer.
    First,
    /// The mean of all its layers.
    Mean,
    /// Those of the layer with this number in its group, from 0.
    Layer(usize),
}

/// A model whose layers share matrices.
#[derive(Debug, Clone)]
pub struct Multiplexed {
    /// What it is.
    pub spec: ModelSpec,
    /// Its weights.
    pub tensors: Tensors,
}

/// The transformations that a list names, separated by commas; none for `none`.
///
/// # Errors
/// Unknown names; `none` beside others.
pub fn listed(names: &str) -> Result<Vec<Transformation>> {
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    if names == ["none"] {
        return Ok(Vec::new());
    }
    let known = Transformation::ALL.map(Transformation::name).join(", ");
    let named = |name: &&str| {
        let mut all = Transformation::ALL.into_iter();
        let found = all.find(|one| one.name() == *name);
        found.ok_or_else(|| {
            Error::Unsuited(match *name {
                "none" => "`none` stands beside other transformations; give `none` alone, or leave it out"
                    .to_owned(),
                other => format!("there is no transformation `{other}`; choose from {known}, or `none`"),
            })
        })
    };
    names.iter().map(named).collect()
}

/// What a model becomes whose layers share their matrices, with transformations in each.
///
/// # Errors
/// Groups that do not fit, as [`ModelSpec::share`] says; transformations that the model cannot have, or has.
pub fn describe(
    base: &ModelSpec,
    (groups, norms): (&Groups, NormsOf),
    transformations: &[Transformation],
) -> Result<ModelSpec> {
    if !base.ops.is_empty() {
        return Err(Error::Unsuited(format!(
            "`{}` has ops of its own; share its matrices first, and adapt it then",
            base.architecture
        )));
    }
    if (0..base.depth()).any(|layer| base.group_of(layer).len() > 1) {
        return Err(Error::Unsuited(format!(
            "layers of `{}` share their matrices already; give the model that it was made of",
            base.architecture
        )));
    }
    let mut spec = base.share(groups, norms)?;
    let wanted: BTreeSet<Transformation> = transformations.iter().copied().collect();
    spec.ops = spec.transformed_by(&wanted.into_iter().collect::<Vec<_>>());
    spec.validate()?;
    Ok(spec)
}

/// Lets the layers of a model share their matrices, with transformations in each.
///
/// # Errors
/// As [`describe`]; a layer that a group has not.
pub fn multiplex(
    base: &ModelSpec,
    tensors: &Tensors,
    sharing: (&Groups, NormsOf),
    start: Start,
    transformations: &[Transformation],
) -> Result<Multiplexed> {
    let spec = describe(base, sharing, transformations)?;
    let mut out = Tensors::new();
    for tensor in spec.tensors()? {
        let value = match spec.op_of(&tensor.name) {
            Some((_, op)) => begun(op, &tensor)?,
            None => shared(base, &spec, tensors, &tensor.name, start)?,
        };
        out.insert(tensor.name, value);
    }
    Ok(Multiplexed { spec, tensors: out })
}

/// The model without sharing that has, in each layer, the matrices of its group: it computes what the shared one does.
///
/// # Errors
/// Tensors that are not those of a sharing of `base`.
pub fn untied(base: &ModelSpec, shared: &ModelSpec, tensors: &Tensors) -> Result<Tensors> {
    let mut out = Tensors::new();
    for tensor in base.tensors()? {
        let (_, name) = source(base, shared, &tensor.name)?;
        out.insert(tensor.name, tensors.get(&name)?.clone());
    }
    Ok(out)
}

/// Of a tensor of `base` the layer whose matrix it is, or whose table of relative positions, if it is one, and its name in the model that
/// shares.
pub(super) fn source(base: &ModelSpec, shared: &ModelSpec, name: &str) -> Result<(Option<usize>, String)> {
    let table = bias_beside(name);
    Ok(match matrix(base, table.as_deref().unwrap_or(name)) {
        Some((site, layer, _)) if table.is_some() => {
            (Some(layer), table_beside(&module(shared, site, layer)?))
        }
        Some((site, layer, end)) => (Some(layer), format!("{}{end}", module(shared, site, layer)?)),
        None => (None, norm(base, shared, name)),
    })
}

/// How a transformation's tensor starts.
fn begun(op: &OpSpec, tensor: &TensorSpec) -> Result<Tensor> {
    let count = tensor.numel();
    let heads = tensor.shape.first().copied().unwrap_or(0);
    let values = match &op.kind {
        OpKind::HeadMixing(_) if tensor.shape.len() == 2 => {
            let one = |i: usize| if i.is_multiple_of(heads + 1) { 1.0 } else { 0.0 };
            (0..count).map(one).collect()
        }
        _ if tensor.name.ends_with("norm.weight") => vec![1.0; count],
        _ => vec![0.0; count],
    };
    Ok(Tensor::from_f32(&tensor.shape, values)?)
}

/// The site and a layer of the matrix (or the table beside it) to which a tensor belongs, and the end of the name.
fn matrix<'a>(spec: &ModelSpec, name: &'a str) -> Option<(Site, usize, &'a str)> {
    let projections = spec.sites().projections();
    let mut found = projections.filter_map(|(site, layer, projection)| {
        let end = name.strip_prefix(&projection.name)?;
        end.starts_with('.').then_some((site, layer, end))
    });
    found.next()
}

/// The name in the shared model of a tensor that is no matrix: layers of a group may share their norms.
fn norm(base: &ModelSpec, shared: &ModelSpec, name: &str) -> String {
    let places = (0..base.depth()).flat_map(|layer| [Site::AttnIn, Site::MlpIn].map(|site| (site, layer)));
    for (site, layer) in places {
        let pair = base.norm(site, Some(layer)).zip(shared.norm(site, Some(layer)));
        if let Some((own, other)) = pair
            && let Some(end) = name.strip_prefix(&own)
            && end.starts_with('.')
        {
            return format!("{other}{end}");
        }
    }
    name.to_owned()
}

/// The bias of the projection beside which a Swin's table of relative positions stands, for a table's name.
fn bias_beside(name: &str) -> Option<String> {
    name.strip_suffix(TABLE).map(|attn| format!("{attn}.qkv.bias"))
}

/// The table that stands beside the projection of this name.
fn table_beside(qkv: &str) -> String {
    format!("{}{TABLE}", qkv.trim_end_matches(".qkv"))
}

/// The prefix of the projection at a site.
fn module(spec: &ModelSpec, site: Site, layer: usize) -> Result<String> {
    let projection = spec.projection(site, layer);
    projection
        .map(|projection| projection.name)
        .ok_or_else(|| Error::Unsuited(format!("layer {layer} has no `{site}`")))
}

/// A tensor of the shared model out of those of the base.
fn shared(base: &ModelSpec, spec: &ModelSpec, tensors: &Tensors, name: &str, start: Start) -> Result<Tensor> {
    let table = bias_beside(name);
    let Some((site, layer, end)) = matrix(spec, table.as_deref().unwrap_or(name)) else {
        return Ok(tensors.get(name)?.clone());
    };
    let group = spec.group_of(layer);
    let of = |layer: usize| -> Result<&Tensor> {
        let module = module(base, site, layer)?;
        Ok(match &table {
            Some(_) => tensors.get(&table_beside(&module))?,
            None => tensors.get(&format!("{module}{end}"))?,
        })
    };
    let number = match start {
        Start::First => Some(0),
        Start::Layer(number) => Some(number),
        Start::Mean => None,
    };
    // The biases of positions are all layers' together, whichever layer gives the matrices.
    let Some(number) = number.filter(|_| table.is_none()) else {
        return mean(&group.iter().map(|&layer| of(layer)).collect::<Result<Vec<_>>>()?);
    };
    match group.get(number) {
        Some(&layer) => Ok(of(layer)?.clone()),
        None => Err(Error::Unsuited(format!(
            "the group of layers {} to {} has no layer number {number}; choose one below {}",
            group.first().copied().unwrap_or(0),
            group.last().copied().unwrap_or(0),
            group.len()
        ))),
    }
}

/// The end of the name of a Swin's table of relative positions, which belongs to the matrices.
const TABLE: &str = ".relative_position_bias_table";

/// The mean of tensors of one shape, in the type of the first.
fn mean(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else {
        return Err(Error::Unsuited("a group without layers has no mean".into()));
    };
    let mut sums = vec![0.0f64; first.numel()];
    for tensor in tensors {
        let values = tensor.to_f32();
        sums.iter_mut()
            .zip(values.iter())
            .for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let count = tensors.len() as f64;
    let values = sums.into_iter().map(|sum| (sum / count) as f32).collect();
    Ok(Tensor::rounded(first.dtype(), first.shape(), values)?)
}

#[cfg(test)]
mod tests {
    use vitesse_model::NetworkSpec;
    use vitesse_model::spec::{PrefixToken, SwinSpec, VitSpec};

    use super::*;

    fn model(network: NetworkSpec) -> (ModelSpec, Tensors) {
        let spec = ModelSpec {
            architecture: "a model".into(),
            num_classes: 3,
            network,
            ops: Vec::new(),
        };
        let tensors = spec.init(4).unwrap();
        (spec, tensors)
    }

    fn vit() -> (ModelSpec, Tensors) {
        model(NetworkSpec::Vit(VitSpec::plain(
            8,
            4,
            4,
            4,
            2,
            vec![PrefixToken::Class],
        )))
    }

    fn swin() -> (ModelSpec, Tensors) {
        model(NetworkSpec::Swin(SwinSpec::plain(32, 4, 2, 4, &[2, 2], &[1, 2])))
    }

    fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
        tensors.get(name).unwrap().to_f32().into_owned()
    }

    #[test]
    fn a_group_starts_as_a_layer_or_as_the_mean() {
        let (spec, tensors) = vit();
        let of = |start| {
            let groups = (&Groups::Of(2), NormsOf::Layer);
            multiplex(&spec, &tensors, groups, start, &[]).map(|found| found.tensors)
        };
        let name = "blocks.1.mlp.fc1.weight";
        let [third, fourth] = [2, 3].map(|layer| values(&tensors, &format!("blocks.{layer}.mlp.fc1.weight")));
        assert_eq!(values(&of(Start::First).unwrap(), name), third);
        assert_eq!(values(&of(Start::Layer(1)).unwrap(), name), fourth);
        let mean: Vec<f32> = third
            .iter()
            .zip(&fourth)
            .map(|(a, b)| ((f64::from(*a) + f64::from(*b)) / 2.0) as f32)
            .collect();
        assert_eq!(values(&of(Start::Mean).unwrap(), name), mean);
        // Norms are each layer's own.
        let norms = of(Start::First).unwrap();
        assert!(norms.contains("blocks.3.norm2.weight") && !norms.contains("blocks.3.attn.qkv.weight"));
        let error = of(Start::Layer(2)).unwrap_err().to_string();
        assert!(error.contains("layers 0 to 1 has no layer number 2"), "{error}");
    }

    #[test]
    fn the_table_of_a_swins_group_is_the_mean_whatever_its_matrices_are() {
        let (spec, tensors) = swin();
        let groups = (&Groups::Of(2), NormsOf::Layer);
        let found = multiplex(
            &spec,
            &tensors,
            groups,
            Start::Layer(1),
            &Transformation::ALL[1..],
        )
        .unwrap();
        let table = |block| format!("layers.1.blocks.{block}.attn.relative_position_bias_table");
        let pairs = values(&tensors, &table(0))
            .into_iter()
            .zip(values(&tensors, &table(1)));
        let mean: Vec<f32> = pairs
            .map(|(a, b)| ((f64::from(a) + f64::from(b)) / 2.0) as f32)
            .collect();
        assert_eq!(values(&found.tensors, &table(0)), mean);
        let matrix = |block| format!("layers.1.blocks.{block}.attn.qkv.weight");
        assert_eq!(values(&found.tensors, &matrix(0)), values(&tensors, &matrix(1)));
        found.spec.check(&found.tensors, "the shared model").unwrap();
        let untied = untied(&spec, &found.spec, &found.tensors).unwrap();
        spec.check(&untied, "the untied model").unwrap();
        assert_eq!(values(&untied, &table(0)), values(&untied, &table(1)));
        let error = multiplex(
            &spec,
            &tensors,
            groups,
            Start::First,
            &[Transformation::Positions],
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("attends in windows"), "{error}");
    }

    #[test]
    fn lists_name_transformations_or_none() {
        assert_eq!(listed("none").unwrap(), []);
        assert_eq!(
            listed("mixing, local").unwrap(),
            [Transformation::Mixing, Transformation::Local]
        );
        for (list, expected) in [
            ("none,mixing", "`none` stands beside other transformations"),
            ("mixing,none", "`none` stands beside other transformations"),
            (
                "mixing,convolution",
                "no transformation `convolution`; choose from positions, mixing, local",
            ),
            ("", "no transformation ``"),
        ] {
            let error = listed(list).unwrap_err().to_string();
            assert!(error.contains(expected), "{list}: {error}");
        }
    }

    #[test]
    fn transformations_start_as_the_identity_where_they_can() {
        let (spec, tensors) = vit();
        let groups = (&Groups::Of(4), NormsOf::Layer);
        let found = multiplex(&spec, &tensors, groups, Start::First, &Transformation::ALL).unwrap();
        assert_eq!(found.spec.ops.len(), 4 * 4);
        assert_eq!(
            values(&found.tensors, "ops.1.0.attn.logits.weight"),
            [1.0, 0.0, 0.0, 1.0]
        );
        assert!(
            values(&found.tensors, "ops.0.0.attn.logits.lookup_table_weight")
                .iter()
                .all(|x| *x == 0.0)
        );
        assert!(
            values(&found.tensors, "ops.3.0.mid.norm.weight")
                .iter()
                .all(|x| *x == 1.0)
        );
        let again = multiplex(&found.spec, &found.tensors, groups, Start::First, &[]);
        assert!(again.unwrap_err().to_string().contains("has ops of its own"));
        let plain = multiplex(&spec, &tensors, groups, Start::First, &[]).unwrap();
        let again = multiplex(&plain.spec, &plain.tensors, groups, Start::First, &[]);
        assert!(
            again
                .unwrap_err()
                .to_string()
                .contains("share their matrices already")
        );
    }
}
