//! The methods, one file each, always in the same order: what it does and where it is published, `Config`, the
//! algorithm, tests.
//!
//! Each is one file and one line of the list below; what every method does, and when, is [`vitesse_train::method`]'s. Three
//! families:
//!
//! * **ops that fold**: [`repadapter`], [`lora`], [`ssf`] cost nothing once merged;
//! * **ops that stay**: [`vpt`], [`adapter`], [`adaptformer`] make the adapted model slower than the plain one;
//! * **no ops**: [`bitfit`], [`norm`], [`linear`], [`partial`], [`full`] choose which of the model's own tensors learn.
//!
//! Whatever the method, a fresh op starts as the identity (but for SSF, which starts near it), the head is new and learns,
//! and everything else is frozen, norms and class token included.

pub mod adapter;
pub mod adaptformer;
pub mod bitfit;
pub mod full;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod partial;
pub mod repadapter;
pub mod ssf;
pub mod vpt;

use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::spec::{NetworkSpec, VitSpec};
use vitesse_model::{ModelSpec, Site, Tensors};
use vitesse_train::Result;
use vitesse_train::method::{Finished, MethodPlan};

use crate::{Error, merge};

vitesse_train::methods! {
    /// A method with its settings.
    pub enum Method {
        /// Linear bottlenecks before projections.
        Repadapter(repadapter),
        /// Low-rank updates of projections.
        Lora(lora),
        /// A scale and a shift after every operation.
        Ssf(ssf),
        /// Tokens of its own in every block.
        Vpt(vpt),
        /// Bottlenecks with an activation after sub-layers.
        Adapter(adapter),
        /// Bottlenecks parallel to the perceptron.
        Adaptformer(adaptformer),
        /// All biases.
        Bitfit(bitfit),
        /// All layer norms.
        Norm(norm),
        /// Nothing but the head.
        Linear(linear),
        /// The last blocks and the final norm.
        Partial(partial),
        /// Everything.
        Full(full),
    }
}

/// An error of a method's settings.
fn refuse<T>(method: &'static str, sentence: impl Into<String>) -> Result<T> {
    Err(Error::Method {
        method,
        sentence: sentence.into(),
    }
    .into())
}

/// An op in a block.
fn op(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

/// The layers that have this site, in order.
fn layers_with(vit: &VitSpec, site: Site) -> impl Iterator<Item = usize> {
    (0..vit.layers.len()).filter(move |&layer| vit.width_at(site, Some(layer)).is_some())
}

/// The plan to append ops, whose tensors learn.
fn insert(method: &'static str, spec: &ModelSpec, ops: Vec<OpSpec>) -> Result<MethodPlan> {
    if ops.is_empty() {
        return refuse(
            method,
            "this model has no place for it: none of its blocks has the sub-layer that is adapted",
        );
    }
    let mut after = spec.clone();
    let first = spec.vit()?.ops.len();
    if let NetworkSpec::Vit(vit) = &mut after.network {
        vit.ops.extend(ops);
    }
    after.validate()?;
    let vit = after.vit()?;
    let new: std::collections::HashSet<String> = vit
        .ops
        .iter()
        .enumerate()
        .skip(first)
        .flat_map(|(index, op)| op.tensors(index, vit))
        .map(|tensor| tensor.name)
        .collect();
    MethodPlan::new(method, spec, after.clone(), |tensor| new.contains(&tensor.name))
}

/// The plan to leave the model as it is; of its own tensors, those learn that `rule` selects by name.
fn select(method: &'static str, spec: &ModelSpec, rule: impl Fn(&str) -> bool) -> Result<MethodPlan> {
    MethodPlan::new(method, spec, spec.clone(), |tensor| rule(&tensor.name))
}

/// The end of a method whose ops fold: into the weights where that can be, and kept where not.
fn fold(spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
    let options = merge::Options {
        keep_unfoldable: true,
    };
    let merged = merge::merge(spec, tensors, options)?;
    Ok(Finished {
        spec: merged.spec,
        tensors: merged.tensors,
        folded: merged.report.folded,
        kept: merged.report.kept,
    })
}

/// The prefixes of the norms of a model: of its blocks, and the one before the head.
fn norms(vit: &VitSpec) -> Vec<String> {
    let blocks = (0..vit.layers.len()).flat_map(|layer| {
        let block = vit.block(layer);
        let attn = block.is_some_and(|block| block.attn.is_some());
        let mlp = block.is_some_and(|block| block.mlp.is_some());
        [
            attn.then(|| vit.norm_name(layer, 1)),
            mlp.then(|| vit.norm_name(layer, 2)),
        ]
    });
    blocks
        .flatten()
        .chain([vit.final_norm_name().to_owned()])
        .collect()
}

#[cfg(test)]
mod testing;
