//! Units, and what belongs to each: the rows and columns that are cut together.

use std::fmt;

use serde::{Deserialize, Serialize};
use vitesse_model::ModelSpec;
use vitesse_model::spec::{AttentionSpec, MlpSpec, Transformer, VitSpec};
use vitesse_words::counted;

use crate::{Error, Result};

/// The kinds of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A channel of the token stream, through the whole model. Not of a Swin: patch merging mixes all channels, so no channel runs
    /// through the whole model.
    Embed,
    /// A block: one of [`Transformer::layers`]. In a Swin, where every second block shifts its windows, one that goes leaves an empty one
    /// behind.
    Block,
    /// The attention of a core, with the norm before it.
    Attn,
    /// The perceptron of a core, with the norm before it.
    Mlp,
    /// A head.
    Head,
    /// A dimension of one head, the same of queries, keys and values. Only where each head has as many of all three.
    Dim,
    /// A dimension at the same place of every head, of queries, keys and values. Only where all heads are alike.
    Position,
    /// A dimension of the queries and keys of one head.
    QkDim,
    /// A dimension of the values of one head.
    VDim,
    /// A hidden unit of the perceptron.
    Hidden,
    /// A row of `proj`: a channel of the stream that attention writes.
    AttnOut,
    /// A row of `fc2`: a channel of the stream that the perceptron writes.
    MlpOut,
}

impl Kind {
    /// The half of a block that units of a core are in: [`Kind::Attn`] or [`Kind::Mlp`].
    pub fn half(self) -> Kind {
        match self {
            Kind::Hidden | Kind::Mlp | Kind::MlpOut => Kind::Mlp,
            _ => Kind::Attn,
        }
    }

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Embed => "embed",
            Kind::Block => "block",
            Kind::Attn => "attn",
            Kind::Mlp => "mlp",
            Kind::Head => "head",
            Kind::Dim => "dim",
            Kind::Position => "position",
            Kind::QkDim => "qk-dim",
            Kind::VDim => "v-dim",
            Kind::Hidden => "hidden",
            Kind::AttnOut => "attn-out",
            Kind::MlpOut => "mlp-out",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which group: its kind, and the core it is in; `None` for units of the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// What its units are.
    pub kind: Kind,
    /// Index into [`Transformer::cores`]: blocks are counted through all stages.
    pub core: Option<usize>,
}

impl fmt::Display for Id {
    /// Such as `blocks.3.hidden`, which is what patterns match.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.core {
            Some(core) => write!(f, "blocks.{core}.{}", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}

/// Along which axis of a weight units stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Rows, with the entries of the bias; channels of a norm.
    Out,
    /// Columns.
    In,
}

/// What a group's units are of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The prefix of the module's tensors, such as `blocks.3.mlp.fc1`.
    pub module: String,
    /// Where in its weight they stand.
    pub axis: Axis,
    /// For each unit its rows or columns, ascending.
    pub places: Vec<Vec<usize>>,
}

/// Units of one kind, side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Which group it is.
    pub id: Id,
    /// How many units it has.
    pub units: usize,
    /// The modules that are cut with a unit. None where a unit is whole modules: sub-layers and blocks. Class token and
    /// positions are cut with the embedding, and columns of bias tables with heads, but they are no modules, and no criterion sees them.
    pub members: Vec<Member>,
}

/// Every group of a transformer: those of the whole model, then core by core.
///
/// # Errors
/// Another family; a model with ops, which would have to be cut as well: the sentence says whether merging folds them.
pub fn groups(spec: &ModelSpec) -> Result<Vec<Group>> {
    let body = prunable(spec)?;
    let whole = |kind, units| Group {
        id: Id { kind, core: None },
        units,
        members: Vec::new(),
    };
    let mut out = Vec::new();
    if let Transformer::Vit(vit) = body {
        out.push(Group {
            members: embedding(spec, vit),
            ..whole(Kind::Embed, vit.embed_dim)
        });
    }
    out.push(whole(Kind::Block, body.layers().len()));
    for (core, block) in body.cores().iter().enumerate() {
        let (name, dim) = (body.core_name(core), body.core_dim(core));
        let mut add = |kind, units, members| {
            out.push(Group {
                id: Id {
                    kind,
                    core: Some(core),
                },
                units,
                members,
            });
        };
        if let Some(attn) = &block.attn {
            add(Kind::Attn, 1, Vec::new());
            of_attention(&name, attn, dim, &mut add);
        }
        if let Some(mlp) = &block.mlp {
            add(Kind::Mlp, 1, Vec::new());
            of_perceptron(&name, mlp, dim, &mut add);
        }
    }
    Ok(out)
}

/// The transformer inside, if units can be cut out of it.
///
/// # Errors
/// As [`groups`].
pub(super) fn prunable(spec: &ModelSpec) -> Result<Transformer<'_>> {
    let mut ops = spec.ops.iter();
    if let Some((op, reason)) = ops.find_map(|op| Some((op, op.nonlinear()?))) {
        let at = op
            .layer
            .map_or(String::new(), |layer| format!(" of layer {layer}"));
        return Err(Error::Unsuited(format!(
            "`{}` has the op `{}` at `{}`{at}, which structured pruning does not cut and merging does not fold: {reason}; prune the model before \
             it gets this op",
            spec.architecture,
            op.kind.name(),
            op.site
        )));
    }
    if !spec.ops.is_empty() {
        return Err(Error::Unsuited(format!(
            "`{}` has {}, which structured pruning does not cut; merge first",
            spec.architecture,
            counted(spec.ops.len(), "op")
        )));
    }
    Ok(spec.transformer()?)
}

/// As [`prunable`], and each block has matrices of its own: what one layer sees says what its matrices need.
///
/// # Errors
/// As [`groups`]; blocks that share matrices.
#[cfg(feature = "train")]
pub(super) fn unshared(spec: &ModelSpec) -> Result<Transformer<'_>> {
    let body = prunable(spec)?;
    if body.is_shared() {
        return Err(Error::Unsuited(format!(
            "blocks of `{}` share their matrices, so none can be measured or solved by what one of them sees; choose a criterion that \
             looks at weights, without correction",
            spec.architecture
        )));
    }
    Ok(body)
}

/// Where each head begins, and one more entry for where the last one ends.
pub(super) fn bounds(widths: &[usize]) -> Vec<usize> {
    let mut out = vec![0];
    out.extend(widths.iter().scan(0, |end, width| {
        *end += width;
        Some(*end)
    }));
    out
}

/// The places of every head.
pub(super) fn ranges(widths: &[usize]) -> Vec<std::ops::Range<usize>> {
    bounds(widths).windows(2).map(|pair| pair[0]..pair[1]).collect()
}

fn member(module: String, axis: Axis, places: Vec<Vec<usize>>) -> Member {
    Member { module, axis, places }
}

/// One place for each unit, the `i`-th for the `i`-th.
fn one_each(units: usize) -> Vec<Vec<usize>> {
    (0..units).map(|unit| vec![unit]).collect()
}

fn of_attention(
    core: &str,
    attn: &AttentionSpec,
    dim: usize,
    add: &mut impl FnMut(Kind, usize, Vec<Member>),
) {
    let (qk, v) = (attn.qk_width(), attn.v_width());
    let (qkv, proj) = (format!("{core}.attn.qkv"), format!("{core}.attn.proj"));
    let members = |rows: Vec<Vec<usize>>, columns: Vec<Vec<usize>>| {
        vec![
            member(qkv.clone(), Axis::Out, rows),
            member(proj.clone(), Axis::In, columns),
        ]
    };
    // Rows of `qkv` for a range of queries and one of values.
    let rows = |of_qk: std::ops::Range<usize>, of_v: std::ops::Range<usize>| -> Vec<usize> {
        let keys = of_qk.clone().map(move |row| qk + row);
        of_qk.chain(keys).chain(of_v.map(|row| 2 * qk + row)).collect()
    };
    let heads: Vec<_> = ranges(&attn.qk_dims)
        .into_iter()
        .zip(ranges(&attn.v_dims))
        .collect();
    let of_heads = heads.iter().map(|(qk, v)| rows(qk.clone(), v.clone()));
    let columns = heads.iter().map(|(_, v)| v.clone().collect());
    add(
        Kind::Head,
        heads.len(),
        members(of_heads.collect(), columns.collect()),
    );
    let dims = |unit: usize| rows(unit..unit + 1, unit..unit + 1);
    if attn.qk_dims == attn.v_dims {
        add(Kind::Dim, v, members((0..v).map(dims).collect(), one_each(v)));
    }
    if let Some((heads, width, _)) = attn.uniform_heads().filter(|(_, qk, v)| qk == v) {
        let places = |position: usize| (0..heads).map(move |head| head * width + position);
        let sorted = |position| {
            let mut all: Vec<usize> = places(position).flat_map(dims).collect();
            all.sort_unstable();
            all
        };
        add(
            Kind::Position,
            width,
            members(
                (0..width).map(sorted).collect(),
                (0..width).map(|position| places(position).collect()).collect(),
            ),
        );
    }
    let both = (0..qk).map(|unit| vec![unit, qk + unit]).collect();
    add(Kind::QkDim, qk, vec![member(qkv.clone(), Axis::Out, both)]);
    let values = (0..v).map(|unit| vec![2 * qk + unit]).collect();
    add(Kind::VDim, v, members(values, one_each(v)));
    let written = attn.out_idx.as_ref().map_or(dim, Vec::len);
    add(
        Kind::AttnOut,
        written,
        vec![member(proj.clone(), Axis::Out, one_each(written))],
    );
}

fn of_perceptron(core: &str, mlp: &MlpSpec, dim: usize, add: &mut impl FnMut(Kind, usize, Vec<Member>)) {
    let (fc1, fc2) = (format!("{core}.mlp.fc1"), format!("{core}.mlp.fc2"));
    add(
        Kind::Hidden,
        mlp.hidden,
        vec![
            member(fc1, Axis::Out, one_each(mlp.hidden)),
            member(fc2.clone(), Axis::In, one_each(mlp.hidden)),
        ],
    );
    let written = mlp.out_idx.as_ref().map_or(dim, Vec::len);
    add(
        Kind::MlpOut,
        written,
        vec![member(fc2, Axis::Out, one_each(written))],
    );
}

/// What reads or writes the stream: everything.
fn embedding(spec: &ModelSpec, vit: &VitSpec) -> Vec<Member> {
    let all = || one_each(vit.embed_dim);
    let sites = spec.sites();
    let mut out = Vec::new();
    out.extend(
        sites
            .embedding()
            .map(|projection| member(projection.name, Axis::Out, all())),
    );
    if vit.pre_norm {
        out.push(member("norm_pre".into(), Axis::Out, all()));
    }
    for (core, block) in vit.cores.iter().enumerate() {
        let name = vit.core_name(core);
        let mut pair = |reads: &str, writes: &str, out_idx: Option<&Vec<usize>>| {
            out.push(member(format!("{name}.{reads}"), Axis::In, all()));
            let places = match out_idx {
                None => all(),
                Some(idx) => (0..vit.embed_dim)
                    .map(|channel| idx.binary_search(&channel).into_iter().collect())
                    .collect(),
            };
            out.push(member(format!("{name}.{writes}"), Axis::Out, places));
        };
        if let Some(attn) = &block.attn {
            pair("attn.qkv", "attn.proj", attn.out_idx.as_ref());
        }
        if let Some(mlp) = &block.mlp {
            pair("mlp.fc1", "mlp.fc2", mlp.out_idx.as_ref());
        }
    }
    out.extend(
        sites
            .norms()
            .into_iter()
            .map(|norm| member(norm, Axis::Out, all())),
    );
    if spec.num_classes > 0 {
        let heads = spec.classifiers().into_iter();
        out.extend(heads.map(|head| member(head.to_owned(), Axis::In, all())));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::ops::{HeadMixing, OpKind, OpSpec, ScaleShift};
    use vitesse_model::{Checkpoint, Site};

    fn model(name: &str) -> ModelSpec {
        Checkpoint::fresh(name, Some(5), None, 0).unwrap().spec
    }

    #[test]
    fn every_parameter_but_tokens_biases_and_positions_belongs_to_the_embedding() {
        let spec = model("deit_micro_distilled_patch4_32");
        let groups = groups(&spec).unwrap();
        let embed = &groups[0];
        let weights = spec.tensors().unwrap().into_iter().filter_map(|tensor| {
            let module = tensor.name.strip_suffix(".weight")?;
            Some(module.to_owned())
        });
        let mut weights: Vec<String> = weights.collect();
        let mut members: Vec<String> = embed.members.iter().map(|m| m.module.clone()).collect();
        weights.sort();
        members.sort();
        assert_eq!(weights, members);
    }

    #[test]
    fn a_row_is_one_heads_and_one_dimensions() {
        let spec = model("deit_micro_patch4_32");
        let vit = spec.vit().unwrap();
        let attn = vit.cores[0].attn.as_ref().unwrap();
        for kind in [Kind::Head, Kind::Dim, Kind::Position] {
            let groups = groups(&spec).unwrap();
            let group = groups.iter().find(|group| group.id.kind == kind).unwrap();
            let mut rows: Vec<usize> = group.members[0].places.concat();
            assert!(group.members[0].places.iter().all(|rows| rows.is_sorted()));
            rows.sort_unstable();
            let all: Vec<usize> = (0..2 * attn.qk_width() + attn.v_width()).collect();
            assert_eq!(rows, all, "{kind}");
        }
    }

    #[test]
    fn ops_are_refused_with_what_helps() {
        let mut spec = model("deit_micro_patch4_32");
        let at = |site, kind| OpSpec {
            site,
            layer: Some(1),
            kind,
        };
        spec.ops = vec![at(Site::Mid, OpKind::ScaleShift(ScaleShift { shift: true }))];
        let refused = |spec: &ModelSpec| groups(spec).unwrap_err().to_string();
        assert!(refused(&spec).ends_with("does not cut; merge first"));
        spec.ops.push(at(
            Site::AttnLogits,
            OpKind::HeadMixing(HeadMixing { bias: false }),
        ));
        let error = refused(&spec);
        assert!(
            error.contains("the op `head-mixing` at `attn.logits` of layer 1")
                && error.contains("it mixes the attention maps of different heads")
                && !error.contains("merge first"),
            "{error}"
        );
    }

    #[test]
    fn a_convolutional_network_is_refused_in_a_sentence() {
        let mut spec = model("deit_micro_patch4_32");
        spec.network = vitesse_model::zoo::get("regnety_160").unwrap().spec.network;
        let error = groups(&spec).unwrap_err().to_string();
        assert!(error.contains("needs a vision transformer"), "{error}");
    }
}
