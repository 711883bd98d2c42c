//! Back to a shape that timm can build, by zeros.

use vitesse_model::spec::{AttentionSpec, BlockSpec, MlpSpec, NetworkSpec, SwinSpec, Transformer, VitSpec};
use vitesse_model::{ModelSpec, Tensors};

use super::cut::{put, zeros};
use super::kept::{Kept, KeptAttention, KeptCore, KeptHead, KeptMlp};
use super::selection::Selection;
use super::table::pieces;
use super::units::{Kind, bounds, prunable};
use crate::{Error, Result};

/// A pruned model filled up with zeros.
#[derive(Debug, Clone)]
pub struct Dense {
    /// The plain model: all blocks alike, those of a stage in a Swin, and heads as wide as the scale says.
    pub spec: ModelSpec,
    /// The pruned model's weights among zeros.
    pub tensors: Tensors,
    /// What [`slice`](super::slice()) takes to give the pruned model back, bit for bit. A sub-layer that was absent is dropped by it.
    pub selection: Selection,
}

/// Fills heads, hidden units, written channels and absent sub-layers up with zeros until all blocks are alike, and gives the same logits:
/// what is added adds nothing. Blocks that are gone stay gone; in a Swin a dropped block stays as an empty one, and `to-dense` fills it up again.
///
/// A head is as wide as its scale says, `scale⁻²`, so that timm derives the scale that the model has. Perceptrons of all stages of a Swin
/// have the same ratio to the width of the stream.
///
/// # Errors
/// A model with ops or of another family; scales that differ between blocks, or are those of no such width; heads that are wider, or more of them,
/// than the width of the stream has room for, as where embedding channels were cut.
pub fn to_dense(spec: &ModelSpec, tensors: &Tensors) -> Result<Dense> {
    let body = prunable(spec)?;
    let cores = body.cores().iter().enumerate();
    let each: Vec<(&BlockSpec, usize)> = cores.map(|(core, block)| (block, body.core_dim(core))).collect();
    let blocks = each
        .iter()
        .map(|(_, dim)| plain(*dim, &each))
        .collect::<Result<Vec<_>>>()?;
    let kept = Kept {
        embed: None,
        layers: (0..body.layers().len()).collect(),
        cores: each
            .iter()
            .zip(&blocks)
            .map(|((core, dim), plain)| kept(core, plain, *dim))
            .collect(),
        readmitted: Vec::new(),
    };
    let dense = ModelSpec {
        network: match body {
            Transformer::Vit(vit) => NetworkSpec::Vit(VitSpec {
                cores: blocks,
                ..vit.clone()
            }),
            Transformer::Swin(swin) => NetworkSpec::Swin(SwinSpec {
                cores: blocks,
                ..swin.clone()
            }),
        },
        ..spec.clone()
    };
    spec.check(tensors, "the pruned model")?;
    let shapes = dense.tensors()?;
    let like = tensors.iter().next().map(|(_, tensor)| tensor);
    let like = like.ok_or_else(|| Error::Unsuited("a model without tensors cannot be filled up".into()))?;
    let mut out = Tensors::new();
    for tensor in &shapes {
        out.insert(tensor.name.as_str(), zeros(like, &tensor.shape)?);
    }
    for piece in pieces(&dense, spec, &kept)? {
        // The dense model has a bias wherever one block has.
        let Ok(tensor) = tensors.get(&piece.to) else {
            continue;
        };
        let shape = out.get(&piece.from)?.shape().to_vec();
        out.insert(piece.from, put(tensor, &piece.cuts, &shape)?);
    }
    Ok(Dense {
        selection: selection(&kept),
        spec: dense,
        tensors: out,
    })
}

/// The plain block for a stream so wide, with room for all of these that have one so wide.
fn plain(dim: usize, all: &[(&BlockSpec, usize)]) -> Result<BlockSpec> {
    let attns = |dim: Option<usize>| {
        let of = all
            .iter()
            .filter(move |(_, other)| dim.is_none_or(|dim| dim == *other));
        of.filter_map(|(core, _)| core.attn.as_ref())
    };
    let heads = heads(dim, &attns(Some(dim)).collect::<Vec<_>>())?;
    // timm derives hidden units from the width of a stage, by one ratio.
    let least = all.iter().map(|(_, dim)| *dim).min().unwrap_or(dim).max(1);
    let hidden = all.iter().filter_map(|(core, other)| {
        let hidden = core.mlp.as_ref()?.hidden;
        Some((hidden * least).div_ceil((*other).max(1)))
    });
    Ok(BlockSpec {
        attn: Some(AttentionSpec {
            qkv_bias: attns(None).any(|attn| attn.qkv_bias),
            ..AttentionSpec::uniform(dim, heads)
        }),
        mlp: Some(MlpSpec {
            hidden: hidden.max().unwrap_or(1) * (dim / least),
            out_idx: None,
        }),
    })
}

/// How many heads, each as wide as its scale says, a stream so wide has where there is room for all of these.
fn heads(dim: usize, attns: &[&AttentionSpec]) -> Result<usize> {
    let refuse = |sentence: String| Err(Error::Unsuited(sentence));
    let Some(first) = attns.first() else {
        return Ok(1);
    };
    let width = first.scale.powi(-2).round();
    if !(1.0..=dim as f64).contains(&width)
        || (width.powf(-0.5) - first.scale).abs() > 1e-9
        || attns.iter().any(|attn| attn.scale != first.scale)
    {
        return refuse(format!(
            "no width of heads gives the attention scale {} in every block, so timm cannot build this model",
            first.scale
        ));
    }
    let width = width as usize;
    let heads = dim / width;
    let fits = |attn: &&AttentionSpec| {
        let mut widths = attn.qk_dims.iter().chain(&attn.v_dims);
        attn.num_heads() <= heads && widths.all(|&dims| dims <= width)
    };
    if heads * width != dim || !attns.iter().all(fits) {
        return refuse(format!(
            "a stream of width {dim} has no room for these heads where each is {width} wide, so timm cannot build this model"
        ));
    }
    Ok(heads)
}

/// Where a core's units stand in the plain block: head by head, each from its first dimension on.
fn kept(core: &BlockSpec, plain: &BlockSpec, dim: usize) -> KeptCore {
    let written = |out_idx: &Option<Vec<usize>>| out_idx.clone().unwrap_or_else(|| (0..dim).collect());
    let starts = plain.attn.as_ref().map(|attn| bounds(&attn.v_dims));
    KeptCore {
        attn: core.attn.as_ref().map(|attn| KeptAttention {
            heads: starts
                .into_iter()
                .flatten()
                .zip(attn.qk_dims.iter().zip(&attn.v_dims))
                .enumerate()
                .map(|(index, (start, (&qk, &v)))| KeptHead {
                    index,
                    qk: (start..start + qk).collect(),
                    v: (start..start + v).collect(),
                })
                .collect(),
            out: written(&attn.out_idx),
        }),
        mlp: core.mlp.as_ref().map(|mlp| KeptMlp {
            hidden: (0..mlp.hidden).collect(),
            out: written(&mlp.out_idx),
        }),
    }
}

/// The selection that keeps this.
fn selection(kept: &Kept) -> Selection {
    let mut out = Selection::default();
    for (core, block) in kept.cores.iter().enumerate() {
        let core = Some(core);
        match &block.attn {
            Some(attn) => {
                out.keep(
                    Kind::QkDim,
                    core,
                    attn.heads.iter().flat_map(|head| head.qk.clone()),
                );
                out.keep(
                    Kind::VDim,
                    core,
                    attn.heads.iter().flat_map(|head| head.v.clone()),
                );
                out.keep(Kind::AttnOut, core, attn.out.clone());
            }
            None => out.drop_all(Kind::Attn, core),
        }
        match &block.mlp {
            Some(mlp) => {
                out.keep(Kind::Hidden, core, mlp.hidden.clone());
                out.keep(Kind::MlpOut, core, mlp.out.clone());
            }
            None => out.drop_all(Kind::Mlp, core),
        }
    }
    out
}
