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

use std::collections::HashSet;

use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::spec::TensorSpec;
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_train::Result;
use vitesse_train::method::{Finished, MethodPlan};

use crate::error::without_number;
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
        /// Nothing: a probe of the features.
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

/// The refusal of a model that has none of the sites where a method puts something.
fn no_place<T>(method: &'static str, spec: &ModelSpec, sites: &[Site]) -> Result<T> {
    let sites: Vec<String> = sites.iter().map(|site| format!("`{site}`")).collect();
    refuse(
        method,
        format!(
            "`{}` has no place for it: none of its layers has {}",
            spec.architecture,
            sites.join(" or ")
        ),
    )
}

/// Refuses a model that has no projections in its layers.
fn needs_projections(method: &'static str, spec: &ModelSpec) -> Result<()> {
    if spec.sites().projections().next().is_none() {
        return no_place(method, spec, &Site::PROJECTIONS);
    }
    Ok(())
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
fn layers_with(sites: &dyn Sites, site: Site) -> impl Iterator<Item = usize> {
    (0..sites.depth()).filter(move |&layer| sites.has(site, Some(layer)))
}

/// The plan to append ops, whose tensors learn. They were to stand at `sites`, of which a model may have none.
fn insert(method: &'static str, spec: &ModelSpec, sites: &[Site], ops: Vec<OpSpec>) -> Result<MethodPlan> {
    if ops.is_empty() {
        return no_place(method, spec, sites);
    }
    let mut after = spec.clone();
    after.ops.extend(ops);
    if let Err(error) = after.validate() {
        return match error {
            vitesse_model::Error::InvalidSpec(sentence) => {
                let sentence = without_number(&sentence);
                refuse(method, format!("on `{}`, {sentence}", spec.architecture))
            }
            other => Err(other.into()),
        };
    }
    let added = after.ops.iter().enumerate().skip(spec.ops.len());
    let new: HashSet<String> = added
        .flat_map(|(index, op)| op.tensors(index, &after))
        .map(|tensor| tensor.name)
        .collect();
    MethodPlan::new(method, spec, after, |tensor| new.contains(&tensor.name))
}

/// The plan to leave the model as it is; of its own tensors, those learn that `rule` selects.
fn select(method: &'static str, spec: &ModelSpec, rule: impl Fn(&TensorSpec) -> bool) -> Result<MethodPlan> {
    MethodPlan::new(method, spec, spec.clone(), rule)
}

/// The end of every method with ops: they go into the weights where that can be, and are kept where not. Those without have
/// nothing to fold, which is what [`Method`](vitesse_train::method::Method) does by itself.
fn fold(spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
    let options = merge::Options {
        keep_unfoldable: true,
    };
    Ok(merge::merge(spec, tensors, options)?)
}

#[cfg(test)]
mod testing;
