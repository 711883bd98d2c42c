//! What the names in an adapter's file mean: PEFT wraps modules, and the modules have timm's names, which are ours, or
//! transformers'.

use vitesse_model::ops::QkvPart;
use vitesse_model::{Checkpoint, ModelSpec, Site, Sites, Target, transformers_targets, transformers_unread};

/// Modules around a whole model, whose names stand before its own.
const AROUND: [&str; 3] = ["_orig_mod", "module", "timm_model"];

/// Where transformers' names of a model may begin, behind the names of modules around it.
const INSIDE: [&str; 5] = ["vit.", "deit.", "encoder.layer.", "vision_model.", "swin."];

/// A projection, or the part of a fused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) site: Site,
    pub(super) layer: Option<usize>,
    pub(super) part: Option<QkvPart>,
}

/// What a tensor of an adapter takes the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A tensor of the model, or the rows of a part of a fused one.
    Tensor(String, Option<QkvPart>),
    /// One that no head reads.
    Unread,
}

/// The name without what PEFT wraps modules in: `base_layer` around what has an update, `modules_to_save` around what
/// learns whole, and in memory the adapter's name. `None` for what such a module was before.
pub(super) fn unwrapped(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let mut before = "";
    for part in name.split('.') {
        let named = before == "modules_to_save" || before.starts_with("lora_");
        let around = parts.is_empty() && AROUND.contains(&part);
        match part {
            "original_module" => return None,
            "base_layer" | "modules_to_save" => {}
            "default" if named => {}
            _ if around => {}
            _ => parts.push(part),
        }
        before = part;
    }
    Some(parts.join("."))
}

/// The names that a tensor may have in a model, with the part of a fused one; `distilled` is a model with two heads.
fn candidates(name: &str, distilled: bool) -> impl Iterator<Item = (String, Option<QkvPart>)> {
    let own = std::iter::once((name.to_owned(), None));
    let theirs = transformers(name).flat_map(move |name| transformers_targets(name, distilled));
    own.chain(theirs.filter_map(|target| {
        Some(match target {
            Target::Whole(name) => (name, None),
            Target::Third(name, third) => {
                let part = [QkvPart::Q, QkvPart::K, QkvPart::V].get(third)?;
                (name, Some(*part))
            }
        })
    }))
}

/// The name itself, and what follows the modules around a model.
fn transformers(name: &str) -> impl Iterator<Item = &str> {
    let inside = name
        .match_indices('.')
        .filter_map(|(dot, _)| name.get(dot + 1..))
        .filter(|rest| INSIDE.iter().any(|begin| rest.starts_with(begin)));
    std::iter::once(name).chain(inside)
}

/// The projection that `path` names in this model.
pub(super) fn module(path: &str, sites: &dyn Sites) -> Option<Module> {
    let weight = format!("{path}.weight");
    candidates(&weight, false).find_map(|(name, part)| {
        let name = name.strip_suffix(".weight")?;
        if sites.embedding().is_some_and(|embedding| embedding.name == name) {
            return Some(Module {
                site: Site::Embed,
                layer: None,
                part: None,
            });
        }
        // A matrix that several layers share has one path, which does not say whose update this is.
        let (site, layer, projection) = sites
            .projections()
            .find(|(_, _, projection)| projection.name == name)
            .filter(|(site, layer, _)| sites.sharing(*site, *layer).len() == 1)?;
        (part.is_none() || projection.parts.is_some()).then_some(Module {
            site,
            layer: Some(layer),
            part,
        })
    })
}

/// The module that classifies which `path` names in this model.
pub(super) fn head(path: &str, spec: &ModelSpec) -> Option<&'static str> {
    let weight = format!("{path}.weight");
    let mut heads = spec.classifiers().into_iter();
    let means = |head: &&str| {
        candidates(&weight, distilled(spec)).any(|(name, _)| name.strip_suffix(".weight") == Some(head))
    };
    heads.find(means)
}

fn distilled(spec: &ModelSpec) -> bool {
    spec.classifiers().len() > 1
}

/// The weight of the matrix on which no op can stand that `path` names in this model: that of a patch merging.
pub(super) fn without_site(path: &str, model: &Checkpoint) -> Option<String> {
    let (weight, sites) = (format!("{path}.weight"), model.spec.sites());
    let is_matrix = |name: &str| {
        model
            .tensors
            .get(name)
            .is_ok_and(|tensor| tensor.shape().len() == 2)
    };
    let has_site = |name: &str| {
        let mut projections = sites.projections();
        projections.any(|(_, _, projection)| name.strip_suffix(".weight") == Some(&projection.name))
    };
    candidates(&weight, distilled(&model.spec))
        .filter(|(_, part)| part.is_none())
        .map(|(name, _)| name)
        .find(|name| is_matrix(name) && !has_site(name))
}

/// What the tensor `name` takes the place of in this model, among whose tensors are the names for which `known` holds.
pub(super) fn place(name: &str, spec: &ModelSpec, known: impl Fn(&str) -> bool) -> Option<Place> {
    let found = candidates(name, distilled(spec)).find(|(name, _)| known(name));
    match found {
        Some((name, part)) => Some(Place::Tensor(name, part)),
        None => unread(name).then_some(Place::Unread),
    }
}

/// Whether transformers has a tensor of this name that no head reads.
pub(super) fn unread(name: &str) -> bool {
    transformers(name).any(transformers_unread)
}
