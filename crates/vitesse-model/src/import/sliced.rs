//! State dicts under timm's names whose blocks were cut smaller, such as Torch-Pruning leaves them.
//!
//! Every width is read off the tensors, block by block. How a block's attention is divided into heads cannot be: the caller says how
//! many there are, and they are taken to be equally wide. The attention scale stands in no tensor either. timm's fused attention
//! derives it from the width that is left, whatever the model was trained with, and so does this import, unless the caller names another width.

use std::path::Path;

use crate::spec::limits::DEPTH;
use crate::spec::{AttentionSpec, BlockSpec, LayerSpec, MlpSpec, ModelSpec, NetworkSpec};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

/// How the attention of a sliced state dict is divided, which its tensors do not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heads {
    /// The number of heads: one for all blocks, or one for each.
    pub counts: Vec<usize>,
    /// The width of a head whose inverse square root is the attention scale; the width that is left when `None`.
    pub scale_dim: Option<usize>,
}

/// Whether these are the tensors of a vision transformer under timm's names.
pub(super) fn is_vit(tensors: &Tensors) -> bool {
    tensors.contains("patch_embed.proj.weight")
        && tensors.names().any(|name| name.ends_with(".attn.qkv.weight"))
}

/// The DeiT of the zoo that a model was most likely cut from: the narrowest that is at least `dim` wide and has patches of this size.
/// It decides how images are prepared, and nothing of the network.
pub(super) fn origin(dim: usize, patch_size: usize, distilled: bool) -> &'static str {
    zoo::names()
        .filter(|name| name.starts_with("deit_"))
        .filter_map(|name| Some((name, zoo::get(name).ok()?.spec.vit().ok()?.clone())))
        .filter(|(_, vit)| vit.is_distilled() == distilled && vit.patch_size == patch_size)
        .filter(|(_, vit)| vit.embed_dim >= dim)
        .min_by_key(|(_, vit)| (vit.embed_dim, vit.img_size))
        .map_or("deit_base_patch16_224", |(name, _)| name)
}

/// The same for the tensors of a state dict.
pub(super) fn origin_of(tensors: &Tensors) -> &'static str {
    let side = |axis| side(tensors, "patch_embed.proj.weight", axis).unwrap_or(0);
    origin(side(0), side(2), tensors.contains("dist_token"))
}

/// Gives the network of `spec` the widths of these tensors of `file`, and says what was read off them.
///
/// # Errors
/// Another network than a vision transformer; numbers of heads that do not fit the blocks.
pub(crate) fn fit(spec: &mut ModelSpec, tensors: &Tensors, file: &Path, heads: &Heads) -> Result<String> {
    let NetworkSpec::Vit(vit) = &mut spec.network else {
        let detail = format!(
            "`--num-heads` is for vision transformers, and `{}` is none",
            spec.architecture
        );
        return Err(refuse(file, detail));
    };
    let patches = |axis| side(tensors, "patch_embed.proj.weight", axis);
    let Some(width) = patches(0) else {
        let detail = "`--num-heads` is for vision transformers under timm's names, and there is no `patch_embed.proj.weight`";
        return Err(refuse(file, detail.to_owned()));
    };
    vit.embed_dim = width;
    vit.in_chans = patches(1).unwrap_or(vit.in_chans);
    vit.patch_size = patches(2).unwrap_or(vit.patch_size);
    let numbers = tensors.names().filter_map(block_number);
    let depth = numbers
        .filter(|number| *number < DEPTH)
        .max()
        .map_or(0, |last| last + 1);
    let counts = match heads.counts.as_slice() {
        [one] => vec![*one; depth],
        each if each.len() == depth => each.to_vec(),
        each => {
            return Err(refuse(
                file,
                format!(
                    "`--num-heads` gives {} numbers and the file has {depth} blocks; give one for all, or one for each",
                    each.len()
                ),
            ));
        }
    };
    let mut cores = Vec::with_capacity(depth);
    for (block, count) in counts.into_iter().enumerate() {
        let attn = attention(tensors, file, block, count, heads.scale_dim)?;
        let hidden = side(tensors, &format!("blocks.{block}.mlp.fc1.weight"), 0);
        let mlp = hidden.map(|hidden| MlpSpec {
            hidden,
            out_idx: None,
        });
        cores.push(BlockSpec { attn, mlp });
    }
    vit.layers = (0..depth).map(LayerSpec::of).collect();
    vit.cores = cores;
    let scale = match heads.scale_dim {
        Some(width) => format!("heads {width} wide, as said"),
        None => "the width of a head that is left (`--head-dim` names another)".to_owned(),
    };
    Ok(format!(
        "the widths of {} are read off the tensors, and the attention scale is that of {scale}",
        vitesse_words::counted(depth, "block")
    ))
}

/// The attention of a block with `count` equal heads; `None` where it has none.
fn attention(
    tensors: &Tensors,
    file: &Path,
    block: usize,
    count: usize,
    scale_dim: Option<usize>,
) -> Result<Option<AttentionSpec>> {
    let [qkv, proj] = ["qkv", "proj"].map(|module| format!("blocks.{block}.attn.{module}.weight"));
    let (Some(rows), Some(values)) = (side(tensors, &qkv, 0), side(tensors, &proj, 1)) else {
        return Ok(None);
    };
    let fits = |width: usize| count > 0 && width > 0 && width.is_multiple_of(count);
    let queries = rows.checked_sub(values).filter(|both| both.is_multiple_of(2));
    let Some(queries) = queries
        .map(|both| both / 2)
        .filter(|queries| fits(*queries) && fits(values))
    else {
        return Err(refuse(
            file,
            format!(
                "`{count}` heads of equal width were said for block {block}, where `{qkv}` has {rows} rows and `{proj}` {values} columns, \
                 which they cannot share; say how many heads each block has, such as `--num-heads 3,3,2`"
            ),
        ));
    };
    let width = queries / count;
    Ok(Some(AttentionSpec {
        qk_dims: vec![width; count],
        v_dims: vec![values / count; count],
        scale: (scale_dim.unwrap_or(width) as f64).powf(-0.5),
        qkv_bias: tensors.contains(&format!("blocks.{block}.attn.qkv.bias")),
        out_idx: None,
    }))
}

/// The number of the block that a tensor belongs to.
pub(super) fn block_number(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

fn side(tensors: &Tensors, name: &str, axis: usize) -> Option<usize> {
    tensors.get(name).ok()?.shape().get(axis).copied()
}

fn refuse(file: &Path, detail: String) -> Error {
    Error::Weights {
        path: file.to_owned(),
        detail,
    }
}
