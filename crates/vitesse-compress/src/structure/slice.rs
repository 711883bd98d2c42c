//! The smaller model.

use std::collections::BTreeMap;

use vitesse_model::spec::{BlockSpec, LayerSpec, NetworkSpec, SwinSpec, Transformer, VitSpec};
use vitesse_model::{ModelSpec, Tensors};

use super::cut::take;
use super::kept::{Kept, KeptCore, Readmitted};
use super::selection::Selection;
use super::table::{cores, pieces};
use super::units::prunable;
use crate::Result;

/// A model from which units were cut.
#[derive(Debug, Clone)]
pub struct Sliced {
    /// What it is.
    pub spec: ModelSpec,
    /// Its weights: rows and columns of the source's, bit for bit.
    pub tensors: Tensors,
    /// Units that the selection would have removed, and that came back.
    pub readmitted: Vec<Readmitted>,
}

/// Keeps what `selection` keeps and cuts everything else out.
///
/// The attention scale stays what it was. Blocks are counted anew; in a Swin a dropped block stays as an empty one, and `to-dense` fills it up
/// again. A head without values is gone; one that has values but would have no queries and keys, and a sub-layer that would have no unit, get
/// the one with the largest weights back.
///
/// # Errors
/// A model with ops or of another family; units that it does not have; a selection without any embedding channel; a
/// smaller model that cannot be described, such as one whose shared norms would serve a sub-layer that their layer has lost.
pub fn slice(spec: &ModelSpec, tensors: &Tensors, selection: &Selection) -> Result<Sliced> {
    let kept = Kept::of(spec, tensors, selection)?;
    let smaller = smaller(spec, &kept)?;
    smaller.validate()?;
    let mut out = Tensors::new();
    for piece in pieces(spec, &smaller, &kept)? {
        out.insert(piece.to, take(tensors.get(&piece.from)?, &piece.cuts)?);
    }
    Ok(Sliced {
        spec: smaller,
        tensors: out,
        readmitted: kept.readmitted,
    })
}

/// What [`slice()`] would make, described: nothing is cut.
///
/// # Errors
/// As [`slice()`].
pub fn outline(spec: &ModelSpec, tensors: &Tensors, selection: &Selection) -> Result<ModelSpec> {
    let smaller = smaller(spec, &Kept::of(spec, tensors, selection)?)?;
    smaller.validate()?;
    Ok(smaller)
}

/// The description of what is left.
pub(super) fn smaller(spec: &ModelSpec, kept: &Kept) -> Result<ModelSpec> {
    let body = prunable(spec)?;
    let used = cores(body, &kept.layers);
    let block = |&core: &usize| {
        let stream = kept.stream(body.core_dim(core));
        Some(block(body.cores().get(core)?, kept.cores.get(core)?, &stream))
    };
    let cores = used.iter().filter_map(block).collect();
    let layers = layers(body, kept, &used);
    Ok(ModelSpec {
        network: match body {
            Transformer::Vit(vit) => NetworkSpec::Vit(VitSpec {
                embed_dim: kept.stream(vit.embed_dim).len(),
                cores,
                layers,
                ..vit.clone()
            }),
            Transformer::Swin(swin) => NetworkSpec::Swin(SwinSpec {
                cores,
                layers,
                ..swin.clone()
            }),
        },
        ..spec.clone()
    })
}

fn block(before: &BlockSpec, kept: &KeptCore, embed: &[usize]) -> BlockSpec {
    let mut out = BlockSpec {
        attn: None,
        mlp: None,
    };
    if let (Some(attn), Some(kept)) = (&before.attn, &kept.attn) {
        let mut attn = attn.clone();
        attn.qk_dims = kept.heads.iter().map(|head| head.qk.len()).collect();
        attn.v_dims = kept.heads.iter().map(|head| head.v.len()).collect();
        attn.out_idx = channels(attn.out_idx.as_deref(), &kept.out, embed);
        out.attn = Some(attn);
    }
    if let (Some(mlp), Some(kept)) = (&before.mlp, &kept.mlp) {
        let mut mlp = mlp.clone();
        mlp.hidden = kept.hidden.len();
        mlp.out_idx = channels(mlp.out_idx.as_deref(), &kept.out, embed);
        out.mlp = Some(mlp);
    }
    out
}

/// The channels of the smaller stream that the kept rows of a projection write; `None` for all.
fn channels(out_idx: Option<&[usize]>, rows: &[usize], embed: &[usize]) -> Option<Vec<usize>> {
    let channel = |row: usize| out_idx.map_or(Some(row), |idx| idx.get(row).copied());
    let new = |channel: usize| embed.binary_search(&channel).ok();
    let out: Vec<usize> = rows.iter().filter_map(|&row| new(channel(row)?)).collect();
    (out.len() < embed.len()).then_some(out)
}

/// The kept layers around their cores. Where the layer that owned shared norms is gone or empty, the next one that used them owns them.
fn layers(body: Transformer<'_>, kept: &Kept, used: &[usize]) -> Vec<LayerSpec> {
    let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
    let layer = |(to, &from): (usize, &usize)| {
        let layer = body.layers().get(from)?;
        let core = kept.cores.get(layer.core)?;
        let owner = match core.attn.is_some() || core.mlp.is_some() {
            true => *owners.entry(layer.norms.unwrap_or(from)).or_insert(to),
            false => to,
        };
        Some(LayerSpec {
            core: used.binary_search(&layer.core).ok()?,
            norms: (owner != to).then_some(owner),
        })
    };
    kept.layers.iter().enumerate().filter_map(layer).collect()
}
