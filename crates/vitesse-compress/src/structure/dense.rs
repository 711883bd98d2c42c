//! Back to a shape that timm can build, by zeros.

use vitesse_model::spec::{AttentionSpec, BlockSpec, MlpSpec, NetworkSpec, VitSpec};
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
    /// The plain model: all blocks alike, heads as wide as the scale says.
    pub spec: ModelSpec,
    /// The pruned model's weights among zeros.
    pub tensors: Tensors,
    /// What [`slice`](super::slice()) takes to give the pruned model back, bit for bit. A sub-layer that was absent is dropped by it.
    pub selection: Selection,
}

/// Fills heads, hidden units, written channels and absent sub-layers up with zeros until all blocks are alike, and gives the same logits:
/// what is added adds nothing. Blocks that are gone stay gone.
///
/// A head is as wide as its scale says, `scale⁻²`, so that timm derives the scale that the model has.
///
/// # Errors
/// A model with ops or of another family; scales that differ between blocks, or are those of no such width; heads that are wider, or more of them,
/// than the width of the stream has room for, as where embedding channels were cut.
pub fn to_dense(spec: &ModelSpec, tensors: &Tensors) -> Result<Dense> {
    let vit = prunable(spec)?;
    let (heads, width) = heads(vit)?;
    let hidden = vit
        .cores
        .iter()
        .filter_map(|core| core.mlp.as_ref())
        .map(|mlp| mlp.hidden);
    let hidden = hidden.max().unwrap_or(1);
    let bias = vit
        .cores
        .iter()
        .filter_map(|core| core.attn.as_ref())
        .any(|attn| attn.qkv_bias);
    let block = BlockSpec {
        attn: Some(AttentionSpec {
            qkv_bias: bias,
            ..AttentionSpec::uniform(vit.embed_dim, heads)
        }),
        mlp: Some(MlpSpec {
            hidden,
            out_idx: None,
        }),
    };
    let dense = ModelSpec {
        network: NetworkSpec::Vit(VitSpec {
            cores: vec![block; vit.cores.len()],
            ..vit.clone()
        }),
        ..spec.clone()
    };
    let kept = Kept {
        embed: (0..vit.embed_dim).collect(),
        layers: (0..vit.layers.len()).collect(),
        cores: vit
            .cores
            .iter()
            .map(|core| kept(core, width, vit.embed_dim))
            .collect(),
        readmitted: Vec::new(),
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

/// How many heads the dense model has, and how wide each is.
fn heads(vit: &VitSpec) -> Result<(usize, usize)> {
    let refuse = |sentence: String| Err(Error::Unsuited(sentence));
    let mut attns = vit.cores.iter().filter_map(|core| core.attn.as_ref());
    let Some(first) = attns.clone().next() else {
        return Ok((1, vit.embed_dim));
    };
    let width = first.scale.powi(-2).round();
    if !(1.0..=vit.embed_dim as f64).contains(&width)
        || (width.powf(-0.5) - first.scale).abs() > 1e-9
        || attns.clone().any(|attn| attn.scale != first.scale)
    {
        return refuse(format!(
            "no width of heads gives the attention scale {} in every block, so timm cannot build this model",
            first.scale
        ));
    }
    let width = width as usize;
    let heads = vit.embed_dim / width;
    let fits = |attn: &AttentionSpec| {
        let widths = attn.qk_dims.iter().chain(&attn.v_dims);
        attn.num_heads() <= heads && widths.clone().all(|&dims| dims <= width)
    };
    if heads * width != vit.embed_dim || !attns.all(fits) {
        return refuse(format!(
            "a stream of width {} has no room for these heads where each is {width} wide, so timm cannot build this model",
            vit.embed_dim
        ));
    }
    Ok((heads, width))
}

/// Where a core's units stand in the dense one: head by head, each from its first dimension on.
fn kept(core: &BlockSpec, width: usize, dim: usize) -> KeptCore {
    let written = |out_idx: &Option<Vec<usize>>| out_idx.clone().unwrap_or_else(|| (0..dim).collect());
    KeptCore {
        attn: core.attn.as_ref().map(|attn| KeptAttention {
            heads: bounds(&vec![width; attn.num_heads()])
                .into_iter()
                .zip(attn.qk_dims.iter().zip(&attn.v_dims))
                .map(|(start, (&qk, &v))| KeptHead {
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
