//! From a pretrained model to one whose layers share matrices: which weights a group starts with, and transformations that change
//! nothing at first.
//!
//! MiniViT's own code begins from random weights and learns everything from a teacher; this is for those who have a model. A group's
//! matrices are those of one of its layers, or the mean of all. Norms stay each layer's. Mixing of heads starts as the identity and
//! relative positions as zeros, so that both change nothing; a local convolution starts with a kernel of zeros, and changes the model all the same,
//! because of its norm.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{HeadMixing, LocalConvolution, OpKind, OpSpec, RelativePositions};
use vitesse_model::spec::{Groups, NormsOf, TensorSpec};
use vitesse_model::{ModelSpec, NetworkSpec, Site, Sites, Tensor, Tensors};

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

/// A transformation that keeps layers with the same matrices different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transformation {
    /// Relative positions of keys, as Mini-DeiT has them; a Swin has its own already.
    Positions,
    /// Mixing of heads before and after the softmax; in a Swin with biases.
    Mixing,
    /// Mini-Swin's norm and convolution between the sub-layers. It does not start as the identity.
    Local,
}

/// A model whose layers share matrices.
#[derive(Debug, Clone)]
pub struct Multiplexed {
    /// What it is.
    pub spec: ModelSpec,
    /// Its weights.
    pub tensors: Tensors,
}

impl Transformation {
    /// All of them, as they stand in a layer.
    pub const ALL: [Transformation; 3] = [
        Transformation::Positions,
        Transformation::Mixing,
        Transformation::Local,
    ];

    /// Those of the published model of a family.
    pub fn published(spec: &ModelSpec) -> Vec<Transformation> {
        match spec.network {
            NetworkSpec::Swin(_) => vec![Transformation::Mixing, Transformation::Local],
            _ => vec![Transformation::Positions, Transformation::Mixing],
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transformation::Positions => "positions",
            Transformation::Mixing => "mixing",
            Transformation::Local => "local",
        }
    }

    /// Whether it changes nothing at first.
    pub fn starts_as_identity(self) -> bool {
        self != Transformation::Local
    }

    fn ops(self, spec: &ModelSpec, layer: usize) -> Vec<OpSpec> {
        let at = |site, kind| OpSpec {
            site,
            layer: Some(layer),
            kind,
        };
        match self {
            Transformation::Positions => {
                let patches = spec.grid_at(layer).map(|grid| grid.iter().product::<usize>());
                let positions = RelativePositions::published(patches != Some(spec.tokens_at(layer)));
                vec![at(positions.site(), OpKind::RelativePositions(positions))]
            }
            Transformation::Mixing => {
                let bias = matches!(spec.network, NetworkSpec::Swin(_));
                let mixing = |site| at(site, OpKind::HeadMixing(HeadMixing { bias }));
                [Site::AttnLogits, Site::AttnProbs].map(mixing).to_vec()
            }
            Transformation::Local => {
                let local = OpKind::LocalConvolution(LocalConvolution::published());
                vec![at(Site::Mid, local)]
            }
        }
    }
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
    for layer in 0..spec.depth() {
        let ops: Vec<OpSpec> = wanted.iter().flat_map(|one| one.ops(&spec, layer)).collect();
        spec.ops.extend(ops);
    }
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
        let value = match op_of(&spec, &tensor.name) {
            Some(op) => begun(op, &tensor)?,
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
        let table = bias_beside(&tensor.name);
        let name = match matrix(base, table.as_deref().unwrap_or(&tensor.name)) {
            Some((site, layer, _)) if table.is_some() => table_beside(&module(shared, site, layer)?),
            Some((site, layer, end)) => format!("{}{end}", module(shared, site, layer)?),
            None => norm(base, shared, &tensor.name),
        };
        out.insert(tensor.name, tensors.get(&name)?.clone());
    }
    Ok(out)
}

/// The op to which a tensor belongs.
fn op_of<'a>(spec: &'a ModelSpec, name: &str) -> Option<&'a OpSpec> {
    let (number, _) = name.strip_prefix("ops.")?.split_once('.')?;
    spec.ops.get(number.parse::<usize>().ok()?)
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
        Start::First => 0,
        Start::Layer(number) => number,
        Start::Mean => return mean(&group.iter().map(|&layer| of(layer)).collect::<Result<Vec<_>>>()?),
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
    use vitesse_model::spec::PrefixToken;
    use vitesse_model::spec::{SwinSpec, VitSpec};

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
    fn tables_of_a_swin_are_shared_and_come_back() {
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
        assert_eq!(values(&found.tensors, &table(0)), values(&tensors, &table(1)));
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
