//! Which projection a module path of an adapter means: timm's names, and transformers' ViT's.

use vitesse_model::ops::QkvPart;
use vitesse_model::{Site, Sites};

/// The projection, or the part of a fused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) site: Site,
    pub(super) layer: usize,
    pub(super) part: Option<QkvPart>,
}

/// transformers' names in a layer, which keeps queries, keys and values apart.
const TRANSFORMERS: [(&str, Site, Option<QkvPart>); 6] = [
    ("attention.attention.query", Site::Qkv, Some(QkvPart::Q)),
    ("attention.attention.key", Site::Qkv, Some(QkvPart::K)),
    ("attention.attention.value", Site::Qkv, Some(QkvPart::V)),
    ("attention.output.dense", Site::Proj, None),
    ("intermediate.dense", Site::Fc1, None),
    ("output.dense", Site::Fc2, None),
];

/// The projection that `path` names in this model.
pub(super) fn module(path: &str, sites: &dyn Sites) -> Option<Module> {
    let own = sites
        .projections()
        .find(|(_, _, projection)| projection.name == path);
    // A matrix that several layers share has one path, which does not say whose update this is.
    if let Some((site, layer, _)) = own.filter(|(site, layer, _)| sites.sharing(*site, *layer).len() == 1) {
        return Some(Module {
            site,
            layer,
            part: None,
        });
    }
    let (_, rest) = path.split_once("encoder.layer.")?;
    let (layer, end) = rest.split_once('.')?;
    let layer = layer.parse().ok()?;
    let (_, site, part) = TRANSFORMERS.into_iter().find(|(name, _, _)| *name == end)?;
    sites.projection(site, layer)?;
    Some(Module { site, layer, part })
}

/// The name of a whole tensor in our files.
pub(super) fn tensor(name: &str) -> String {
    match name.strip_prefix("classifier.") {
        Some(end) => format!("head.{end}"),
        None => name.to_owned(),
    }
}
