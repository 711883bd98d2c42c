//! ViT and DeiT in folders that transformers saved.
//!
//! Two sets of names are read: those in the files, and those the modules have had since version 5. A DeiT with one
//! classifier has a distillation token that no head reads. That is a register, and it is imported as one.

use serde_json::json;

use super::hf::{Described, Target};
use crate::config::Fields;
use crate::config::preprocessor;
use crate::spec::{NetworkSpec, PrefixToken, VitSpec};
use crate::tensors::Tensors;
use crate::{Result, zoo};

/// transformers' names of the models that are read here.
pub(super) const MODEL_TYPES: [&str; 2] = ["vit", "deit"];

/// Which of the two.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Vit,
    Deit,
}

/// Tensors that belong to training tasks or to features that no head here reads.
const DROPPED: [&str; 3] = [
    "pooler.dense.weight",
    "pooler.dense.bias",
    "embeddings.mask_token",
];

/// Reads what `config.json` says of a model of one of [`MODEL_TYPES`], and removes the tensors that nothing here reads.
pub(super) fn describe(
    model_type: &str,
    fields: &mut Fields<'_>,
    tensors: &mut Tensors,
    notes: &mut Vec<String>,
) -> Result<Described> {
    let family = if model_type == "deit" {
        Family::Deit
    } else {
        Family::Vit
    };
    let dropped: Vec<String> = {
        tensors
            .names()
            .filter(|name| unread(name))
            .map(str::to_owned)
            .collect()
    };
    for name in &dropped {
        tensors.remove(name)?;
    }
    if !dropped.is_empty() {
        notes.push(format!("left out `{}`: no head reads it", dropped.join("`, `")));
    }
    let vit = read_vit(fields, family, tensors, notes)?;
    let preprocessing = match family {
        Family::Vit => preprocessor::VIT,
        Family::Deit => preprocessor::DEIT,
    };
    let distilled = vit.is_distilled();
    Ok(Described {
        architecture: architecture(&vit, family),
        norm_eps: vit.norm_eps,
        network: NetworkSpec::Vit(vit),
        preprocessing,
        target: Box::new(move |name| target(name, distilled)),
    })
}

/// The network that `config.json` describes. Keys that it lacks have transformers' default values.
fn read_vit(
    fields: &mut Fields<'_>,
    family: Family,
    tensors: &Tensors,
    notes: &mut Vec<String>,
) -> Result<VitSpec> {
    let qkv_bias = fields.take("qkv_bias", "`true` or `false`")?.unwrap_or(true);
    let act: Option<String> = fields.take("hidden_act", "the string `gelu`")?;
    if let Some(other) = act.filter(|act| act != "gelu") {
        return Err(fields.wrong("hidden_act", "`gelu`, the exact one", Some(&json!(other))));
    }
    let prefix = match family {
        Family::Vit => vec![PrefixToken::Class],
        Family::Deit if tensors.contains("classifier.weight") => {
            notes.push("no head reads the distillation token: it is imported as a register".to_owned());
            vec![PrefixToken::Class, PrefixToken::Register]
        }
        Family::Deit => vec![PrefixToken::Class, PrefixToken::Distillation],
    };
    let mut vit = read_sizes(fields, 16, 1e-12, prefix)?;
    for attn in vit.cores.iter_mut().filter_map(|core| core.attn.as_mut()) {
        attn.qkv_bias = qkv_bias;
    }
    Ok(vit)
}

/// A plain model of the sizes that a description gives, under the names that transformers has for them in all its ViTs.
/// Where it has no patch size and no epsilon, those given are its family's.
pub(super) fn read_sizes(
    fields: &mut Fields<'_>,
    patch_size: usize,
    norm_eps: f64,
    prefix: Vec<PrefixToken>,
) -> Result<VitSpec> {
    let dim = fields.size("hidden_size", 1..=16384)?.unwrap_or(768);
    let depth = fields.size("num_hidden_layers", 0..=256)?.unwrap_or(12);
    let heads = fields.size("num_attention_heads", 1..=16384)?.unwrap_or(12);
    let hidden = fields.size("intermediate_size", 1..=1 << 18)?.unwrap_or(3072);
    let in_chans = fields.size("num_channels", 1..=4096)?.unwrap_or(3);
    let img_size = fields.sides("image_size", 1..=4096)?.unwrap_or([224; 2]);
    let patch_size = fields.sides("patch_size", 1..=4096)?.unwrap_or([patch_size; 2]);
    let norm_eps: f64 = fields.take("layer_norm_eps", "a number")?.unwrap_or(norm_eps);
    if patch_size[0] != patch_size[1] {
        return Err(fields.wrong(
            "patch_size",
            "the side of a square patch",
            Some(&json!(patch_size)),
        ));
    }
    if dim % heads != 0 {
        return Err(fields.wrong(
            "num_attention_heads",
            &format!("a divisor of {dim}"),
            Some(&json!(heads)),
        ));
    }
    let mut vit = VitSpec {
        img_size,
        in_chans,
        norm_eps,
        ..VitSpec::plain(0, patch_size[0], dim, depth, heads, prefix)
    };
    for mlp in vit.cores.iter_mut().filter_map(|core| core.mlp.as_mut()) {
        mlp.hidden = hidden;
    }
    Ok(vit)
}

/// The name of timm's for a network: the one whose arguments it has, else the one that takes them.
fn architecture(vit: &VitSpec, family: Family) -> &'static str {
    let (start, other) = match family {
        Family::Vit => ("vit_", "vit_base_patch16_224"),
        Family::Deit if vit.is_distilled() => ("deit_", "deit_base_distilled_patch16_224"),
        Family::Deit => ("deit_", "deit_base_patch16_224"),
    };
    named(vit, |name| name.starts_with(start)).unwrap_or(other)
}

/// The first of timm's names for which `may` holds that stands for this network, whatever its epsilon.
pub(super) fn named(vit: &VitSpec, may: impl Fn(&str) -> bool) -> Option<&'static str> {
    let same = |name: &&'static str| {
        zoo::get(name).is_ok_and(|entry| match entry.spec.network {
            NetworkSpec::Vit(known) => {
                entry.timm_name == *name
                    && VitSpec {
                        norm_eps: vit.norm_eps,
                        ..known
                    } == *vit
            }
            _ => false,
        })
    };
    zoo::names().filter(|name| may(name)).find(same)
}

/// A name without the prefix that models with a head give to their body.
fn body(name: &str) -> &str {
    name.strip_prefix("vit.")
        .or_else(|| name.strip_prefix("deit."))
        .unwrap_or(name)
}

/// Whether this is one of transformers' tensors that no head here reads.
pub(super) fn unread(name: &str) -> bool {
    DROPPED.contains(&body(name))
}

/// timm's name for one of transformers' ViT or DeiT; `None` for a name that is unknown.
pub(super) fn target(name: &str, distilled: bool) -> Option<Target> {
    let body = body(name);
    let whole = |name: &str| Some(Target::Whole(name.to_owned()));
    match body {
        "embeddings.cls_token" => return whole("cls_token"),
        "embeddings.distillation_token" => return whole(if distilled { "dist_token" } else { "reg_token" }),
        "embeddings.position_embeddings" => return whole("pos_embed"),
        _ => {}
    }
    let (module, parameter) = body.rsplit_once('.')?;
    match module {
        "embeddings.patch_embeddings.projection" => return whole(&format!("patch_embed.proj.{parameter}")),
        "layernorm" => return whole(&format!("norm.{parameter}")),
        "classifier" if !distilled => return whole(&format!("head.{parameter}")),
        "cls_classifier" if distilled => return whole(&format!("head.{parameter}")),
        "distillation_classifier" => return whole(&format!("head_dist.{parameter}")),
        _ => {}
    }
    let layer = module
        .strip_prefix("encoder.layer.")
        .or_else(|| module.strip_prefix("layers."))?;
    let (layer, part) = layer.split_once('.')?;
    let third = |index| {
        Some(Target::Third(
            format!("blocks.{layer}.attn.qkv.{parameter}"),
            index,
        ))
    };
    let part = match part {
        "attention.attention.query" | "attention.q_proj" => return third(0),
        "attention.attention.key" | "attention.k_proj" => return third(1),
        "attention.attention.value" | "attention.v_proj" => return third(2),
        "attention.output.dense" | "attention.o_proj" => "attn.proj",
        "layernorm_before" => "norm1",
        "layernorm_after" => "norm2",
        "intermediate.dense" | "mlp.fc1" => "mlp.fc1",
        "output.dense" | "mlp.fc2" => "mlp.fc2",
        _ => return None,
    };
    whole(&format!("blocks.{layer}.{part}.{parameter}"))
}
