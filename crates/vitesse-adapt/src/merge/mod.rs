//! Merge: folding ops into the weights around them, and taking them out again.
//!
//! One mechanism for every method. Each op is an affine map of a token ([`affine::Affine`]) or a low-rank update, and a
//! model is a chain `norm → ops → projection → ops`, four times a block. What follows a norm and is diagonal goes into the
//! norm; what stands before a projection goes into it from the right, the nearest first; what stands behind goes into it
//! from the left, the nearest first; updates of the projection go first of all. Everything is computed in `f64` from the
//! stored weights and rounded once, to `f32`.
//!
//! An op cannot be folded if it is not linear, if it stands on the residual stream, behind one that cannot be folded, or
//! beside a matrix that several blocks share. [`merge`] says so for each, and refuses, or keeps it as an op.

pub mod affine;
pub mod convolution;
pub mod matrix;
mod routes;

use std::collections::BTreeMap;

use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
pub use vitesse_train::method::Report;
use vitesse_train::method::{Finished, Folded, Kept};

use crate::{Error, Result};
use affine::{Affine, Map};
use matrix::Matrix;
use routes::{Fold, Target};

/// How to merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Keep ops that cannot be folded, which the engine runs, and do not refuse.
    pub keep_unfoldable: bool,
}

/// A model that an adapter was taken out of again.
#[derive(Debug, Clone)]
pub struct Unmerged {
    /// Its description, without ops.
    pub spec: ModelSpec,
    /// Its weights.
    pub tensors: Tensors,
    /// The largest condition number of the maps that were inverted: about as many decimal digits as its logarithm says
    /// are lost.
    pub condition: f64,
}

/// Folds the ops of a model into its weights.
///
/// What can be folded follows from the ops and where they stand, whatever put them there. So this one function ends every
/// method of this crate that has ops ([`Method::finish`](vitesse_train::method::Method::finish), where what cannot be folded is
/// kept), and also folds an adapter that names no method, as PEFT's do.
///
/// # Errors
/// [`Error::Unfoldable`] with the reason for each op that cannot be folded, unless they are to be kept;
/// [`Error::NothingToDo`] for a model without ops.
pub fn merge(spec: &ModelSpec, tensors: &Tensors, options: Options) -> Result<Finished> {
    spec.check(tensors, "the adapted model")?;
    let Remains {
        ops,
        mut tensors,
        report,
    } = fold(spec, tensors, options)?;
    let mut spec = ModelSpec { ops, ..spec.clone() };
    if report.created_bias {
        set_qkv_bias(&mut spec, &mut tensors)?;
    }
    if let Some(embedding) = spec.embedding() {
        spec.set_patch_bias(tensors.contains(&format!("{}.bias", embedding.name)));
    }
    spec.check(&tensors, "the merged model")?;
    Ok(Finished {
        spec,
        tensors,
        report,
    })
}

/// What is left when ops are folded: those that are kept, and all tensors.
struct Remains {
    ops: Vec<OpSpec>,
    tensors: Tensors,
    report: Report,
}

/// Folds what can be folded, in any family; `tensors` are those of `sites`.
fn fold(sites: &dyn Sites, tensors: &Tensors, options: Options) -> Result<Remains> {
    let count = sites.ops().len();
    if count == 0 {
        return Err(Error::NothingToDo(
            "the model has no ops: there is nothing to fold, or it was merged already".into(),
        ));
    }
    let routes = routes::routes(sites, tensors)?;
    if !routes.refused.is_empty() && !options.keep_unfoldable {
        let reason = |(index, reason): &(usize, String)| format!("{}: {reason}", describe(sites, *index));
        return Err(Error::Unfoldable {
            reasons: routes.refused.iter().map(reason).collect(),
            total: count,
        });
    }
    let mut work = Work::new(sites, tensors);
    for fold in &routes.folds {
        work.apply(fold, Direction::In)?;
    }
    let folded = routes.folds.iter().map(|fold| Folded {
        op: describe(sites, fold.op),
        into: fold.target.module(),
    });
    let kept = routes.refused.iter().map(|(index, reason)| Kept {
        op: describe(sites, *index),
        reason: reason.clone(),
    });
    let report = Report {
        folded: folded.collect(),
        kept: kept.collect(),
        created_bias: work.created_bias,
    };
    let keep: Vec<bool> = (0..count)
        .map(|index| routes.refused.iter().any(|(refused, _)| *refused == index))
        .collect();
    let changed = work.changed;
    let (ops, mut tensors) = without_ops(sites, tensors, &keep)?;
    put(&mut tensors, changed)?;
    Ok(Remains { ops, tensors, report })
}

/// Takes the ops of a model out of its weights, into which they were folded by [`merge`]. `created_bias` says that the
/// projections to queries, keys and values had no bias before. The head stays the adapter's.
///
/// # Errors
/// An op that cannot be folded, and so never was; [`Error::Singular`] where a map has no inverse.
pub fn unmerge(spec: &ModelSpec, tensors: &Tensors, created_bias: bool) -> Result<Unmerged> {
    spec.check(tensors, "the merged model with its adapter")?;
    let routes = routes::routes(spec, tensors)?;
    if let Some((index, reason)) = routes.refused.first() {
        return Err(Error::NothingToDo(format!(
            "{} cannot be taken out, because it cannot have been folded: {reason}",
            describe(spec, *index)
        )));
    }
    let mut work = Work::new(spec, tensors);
    for fold in routes.folds.iter().rev() {
        work.apply(fold, Direction::Out)?;
    }
    let (changed, condition) = (work.changed, work.condition);
    let (ops, mut tensors) = without_ops(spec, tensors, &vec![false; spec.ops.len()])?;
    put(&mut tensors, changed)?;
    let mut spec = ModelSpec { ops, ..spec.clone() };
    if created_bias {
        for (site, _, projection) in spec.sites().projections() {
            let name = format!("{}.bias", projection.name);
            if site == Site::Qkv && tensors.contains(&name) {
                tensors.remove(&name)?;
            }
        }
        spec.set_qkv_bias(false);
    }
    spec.check(&tensors, "the model")?;
    Ok(Unmerged {
        spec,
        tensors,
        condition,
    })
}

/// The op in words.
fn describe(sites: &dyn Sites, index: usize) -> String {
    let Some(OpSpec { site, layer, kind }) = sites.ops().get(index) else {
        return format!("ops.{index}");
    };
    match layer {
        Some(layer) => format!("{} at `{site}` of block {layer}", kind.name()),
        None => format!("{} at `{site}`", kind.name()),
    }
}

/// The ops that are kept, and the tensors of the model with them alone, in which they are named by their new places.
fn without_ops(sites: &dyn Sites, tensors: &Tensors, keep: &[bool]) -> Result<(Vec<OpSpec>, Tensors)> {
    let mut tensors = tensors.clone();
    let mut kept: Vec<OpSpec> = Vec::new();
    // Places only move down, so a new name is free by the time it is needed.
    for (index, op) in sites.ops().iter().enumerate() {
        let prefix = op.prefix(index);
        let stays = keep.get(index).copied().unwrap_or(false);
        let new = op.prefix(kept.len());
        for tensor in op.tensors(index, sites) {
            let value = tensors.remove(&tensor.name)?;
            if let Some(end) = tensor.name.strip_prefix(&prefix)
                && stays
            {
                tensors.insert(format!("{new}{end}"), value);
            }
        }
        if stays {
            kept.push(op.clone());
        }
    }
    Ok((kept, tensors))
}

/// Puts changed values among the tensors, rounded once.
fn put(tensors: &mut Tensors, changed: BTreeMap<String, (Vec<usize>, Vec<f64>)>) -> Result<()> {
    for (name, (shape, values)) in changed {
        let values = values.iter().map(|&x| x as f32).collect();
        tensors.insert_f32(name, &shape, values)?;
    }
    Ok(())
}

/// Gives every projection to queries, keys and values a bias, zero where none was made: models say so for all blocks
/// together.
fn set_qkv_bias(spec: &mut ModelSpec, tensors: &mut Tensors) -> Result<()> {
    spec.set_qkv_bias(true);
    for (site, _, projection) in spec.sites().projections() {
        let name = format!("{}.bias", projection.name);
        if site == Site::Qkv && !tensors.contains(&name) {
            let rows = projection.outputs;
            tensors.insert_f32(name, &[rows], vec![0.0; rows])?;
        }
    }
    Ok(())
}

/// Into the weights, or out of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Weights on which folds work, in `f64` until all are done.
struct Work<'a> {
    sites: &'a dyn Sites,
    tensors: &'a Tensors,
    changed: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    created_bias: bool,
    condition: f64,
}

impl<'a> Work<'a> {
    fn new(sites: &'a dyn Sites, tensors: &'a Tensors) -> Self {
        Work {
            sites,
            tensors,
            changed: BTreeMap::new(),
            created_bias: false,
            condition: 1.0,
        }
    }

    /// Shape and values of a tensor as it is by now.
    fn take(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f64>)> {
        if let Some(found) = self.changed.remove(name) {
            return Ok(found);
        }
        let tensor = self.tensors.get(name)?;
        let values = tensor.to_f32().iter().map(|&x| f64::from(x)).collect();
        Ok((tensor.shape().to_vec(), values))
    }

    fn apply(&mut self, fold: &Fold, direction: Direction) -> Result<()> {
        let Some(op) = self.sites.ops().get(fold.op) else {
            return Ok(());
        };
        if let OpKind::LowRank(_) = &op.kind {
            return self.update(op, fold, direction);
        }
        let Some(map) = Affine::of(op, fold.op, self.sites, self.tensors)? else {
            return Ok(());
        };
        let map = match direction {
            Direction::In => map,
            Direction::Out => self.invert(&map, fold.op)?,
        };
        match &fold.target {
            Target::Norm(name) => self.fold_norm(name, &map),
            Target::Before(module) => self.fold_projection(module, |weight, bias| map.before(weight, bias)),
            Target::After(module, written) => {
                let map = restrict(map, written.as_deref());
                self.fold_projection(module, |weight, bias| map.after(weight, bias))
            }
            Target::On(_) => Ok(()),
        }
    }

    fn invert(&mut self, map: &Affine, op: usize) -> Result<Affine> {
        /// Beyond this, fewer than three digits of an `f32` are left.
        const WORST: f64 = 1e5;
        match map.inverse() {
            (Some(inverse), condition) if condition < WORST => {
                self.condition = self.condition.max(condition);
                Ok(inverse)
            }
            (_, condition) => Err(Error::Singular {
                op: describe(self.sites, op),
                condition,
            }),
        }
    }

    /// `γ ⊙ weight`, `γ ⊙ bias + β`.
    fn fold_norm(&mut self, name: &str, map: &Affine) -> Result<()> {
        let Map::Diagonal(scale) = &map.map else {
            return Ok(());
        };
        let weight_name = format!("{name}.weight");
        let (shape, mut weight) = self.take(&weight_name)?;
        weight.iter_mut().zip(scale).for_each(|(w, scale)| *w *= scale);
        self.changed.insert(weight_name, (shape, weight));
        let bias_name = format!("{name}.bias");
        let (shape, bias) = self.take(&bias_name)?;
        self.changed.insert(bias_name, (shape, map.apply(&bias)));
        Ok(())
    }

    fn fold_projection(&mut self, module: &str, edit: impl FnOnce(&mut Matrix, &mut Vec<f64>)) -> Result<()> {
        let (weight_name, bias_name) = (format!("{module}.weight"), format!("{module}.bias"));
        let (shape, values) = self.take(&weight_name)?;
        let rows = shape.first().copied().unwrap_or(0);
        let mut weight = Matrix {
            rows,
            columns: values.len() / rows.max(1),
            values,
        };
        let missing = !self.tensors.contains(&bias_name) && !self.changed.contains_key(&bias_name);
        let mut bias = if missing {
            vec![0.0; rows]
        } else {
            self.take(&bias_name)?.1
        };
        edit(&mut weight, &mut bias);
        self.changed.insert(weight_name, (shape, weight.values));
        // A bias that stays zero need not be there.
        if !missing || bias.iter().any(|&b| b != 0.0) {
            let embedding = self.sites.embedding();
            self.created_bias |= missing && embedding.is_none_or(|embedding| embedding.name != module);
            self.changed.insert(bias_name, (vec![rows], bias));
        }
        Ok(())
    }

    /// `W ± s · B A`, part by part.
    fn update(&mut self, op: &OpSpec, fold: &Fold, direction: Direction) -> Result<()> {
        let (OpKind::LowRank(kind), Some(layer)) = (&op.kind, op.layer) else {
            return Ok(());
        };
        let prefix = op.prefix(fold.op);
        let read = |name: &str| -> Result<Matrix> {
            let tensor = self.tensors.get(&format!("{prefix}.{name}"))?;
            let rows = tensor.shape().first().copied().unwrap_or(0);
            Ok(Matrix::from_f32(
                rows,
                tensor.numel() / rows.max(1),
                &tensor.to_f32(),
            ))
        };
        let (a, b) = (read("a")?, read("b")?);
        let name = format!("{}.weight", fold.target.module());
        let (shape, mut values) = self.take(&name)?;
        let factor = match direction {
            Direction::In => kind.factor(),
            Direction::Out => -kind.factor(),
        };
        let mut row = 0;
        for (i, (first, count)) in kind.ranges(op.site, layer, self.sites).into_iter().enumerate() {
            let part = |matrix: &Matrix, from: usize, rows: usize| Matrix {
                rows,
                columns: matrix.columns,
                values: matrix.values[from * matrix.columns..(from + rows) * matrix.columns].to_vec(),
            };
            let delta = part(&b, row, count).times(&part(&a, i * kind.rank, kind.rank));
            let target = &mut values[first * a.columns..(first + count) * a.columns];
            target
                .iter_mut()
                .zip(&delta.values)
                .for_each(|(w, delta)| *w += factor * delta);
            row += count;
        }
        self.changed.insert(name, (shape, values));
        Ok(())
    }
}

/// A diagonal map of the channels that a projection writes; [`routes`] has seen to it that nothing else gets here.
fn restrict(map: Affine, written: Option<&[usize]>) -> Affine {
    match (written, map.map) {
        (Some(written), Map::Diagonal(scale)) => {
            let pick = |values: &[f64]| -> Vec<f64> {
                written
                    .iter()
                    .filter_map(|&channel| values.get(channel).copied())
                    .collect()
            };
            Affine {
                shift: pick(&map.shift),
                map: Map::Diagonal(pick(&scale)),
            }
        }
        (_, inner) => Affine {
            map: inner,
            shift: map.shift,
        },
    }
}

#[cfg(test)]
mod tests;
