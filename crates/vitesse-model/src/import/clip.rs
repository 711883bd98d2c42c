//! CLIP's image encoder in folders that transformers saved: of a whole CLIP, of its image encoder with the projection, and
//! of the encoder alone.
//!
//! The projection to what images and texts have in common becomes the head, as in timm: what the model returns are image
//! features. A file's text encoder is left out. Names begin with `vision_model.`, but for those that transformers has given
//! to an encoder alone since version 5; one of the norms is spelt `pre_layrnorm`.

use serde_json::json;

use super::hf::{Described, Target};
use super::vit::{named, read_sizes};
use crate::config::{Fields, preprocessor};
use crate::spec::{Activation, NetworkSpec, PrefixToken, VitSpec};
use crate::tensors::{Tensor, Tensors};
use crate::{Error, Result};

/// transformers' names of the models that are read here.
pub(super) const MODEL_TYPES: [&str; 2] = ["clip", "clip_vision_model"];

/// The projection of image features, which has no bias.
const PROJECTION: &str = "visual_projection.weight";

/// Reads what `config.json` says of the image encoder, and removes the tensors that belong to texts.
pub(super) fn describe(
    fields: &mut Fields<'_>,
    tensors: &mut Tensors,
    notes: &mut Vec<String>,
) -> Result<Described> {
    if tensors.contains("classifier.weight") {
        return Err(Error::Unsupported {
            what: "CLIP with the classifier of transformers' `CLIPForImageClassification`".to_owned(),
            why: "it reads the mean of the patches before any norm, which no model here does; save the image encoder \
                  (`model.vision_model.save_pretrained(FOLDER)`) and train a head for it"
                .to_owned(),
        });
    }
    notes.extend(without(tensors, unread)?);
    let vit = if fields.has("vision_config") {
        read(&mut fields.object("vision_config")?)?
    } else if fields.has("vision_config_dict") {
        read(&mut fields.object("vision_config_dict")?)?
    } else {
        read(fields)?
    };
    // What stands there are no classes of images.
    fields.take::<serde_json::Value>("id2label", "")?;
    for name in [
        "embeddings.class_embedding",
        "embeddings.position_embedding.weight",
    ] {
        for name in [name.to_owned(), format!("vision_model.{name}")] {
            if let Ok(rows) = tensors.get(&name) {
                let rows = with_batch(rows)?;
                tensors.insert(name, rows);
            }
        }
    }
    if let Ok(projection) = tensors.get(PROJECTION) {
        tensors.insert("head.bias", no_bias(projection)?);
        notes.push(features("visual_projection"));
    }
    Ok(Described {
        architecture: architecture(&vit),
        norm_eps: vit.norm_eps,
        network: NetworkSpec::Vit(vit),
        preprocessing: preprocessor::CLIP,
        target: Box::new(target),
    })
}

/// The network that a description of an image encoder stands for. Keys that it lacks have transformers' default values.
fn read(fields: &mut Fields<'_>) -> Result<VitSpec> {
    const EXPECTED: &str = "`quick_gelu` or `gelu`";
    let activation = match fields.take::<String>("hidden_act", EXPECTED)?.as_deref() {
        None | Some("quick_gelu") => Activation::QuickGelu,
        Some("gelu") => Activation::Gelu,
        Some(other) => return Err(fields.wrong("hidden_act", EXPECTED, Some(&json!(other)))),
    };
    let vit = read_sizes(fields, 32, 1e-5, vec![PrefixToken::Class])?;
    Ok(VitSpec {
        norm_eps: vit.norm_eps,
        ..vit.into_clip(activation)
    })
}

/// Removes the tensors for which `unread` holds, which belong to texts, and says so once.
pub(super) fn without(tensors: &mut Tensors, unread: impl Fn(&str) -> bool) -> Result<Option<String>> {
    let names: Vec<String> = tensors
        .names()
        .filter(|name| unread(name))
        .map(str::to_owned)
        .collect();
    for name in &names {
        tensors.remove(name)?;
    }
    Ok((!names.is_empty()).then(|| {
        format!(
            "left out the text encoder and what goes with it, {}: only the image encoder is read",
            vitesse_words::counted(names.len(), "tensor")
        )
    }))
}

/// Whether this is one of transformers' tensors of CLIP that has nothing to do with images.
pub(super) fn unread(name: &str) -> bool {
    ["text_model.", "text_projection."].iter().any(|module| name.starts_with(module))
        || name == "logit_scale"
        // Numbers from 0 that old files have.
        || name.strip_prefix("vision_model.").unwrap_or(name) == "embeddings.position_ids"
}

/// `[..]` to `[1, ..]`, and the class token, `[dim]`, to `[1, 1, dim]`.
pub(super) fn with_batch(tensor: &Tensor) -> Result<Tensor> {
    match *tensor.shape() {
        [dim] => tensor.reshape(&[1, 1, dim]),
        [rows, dim] => tensor.reshape(&[1, rows, dim]),
        // The strict check says what is wrong with it.
        _ => Ok(tensor.clone()),
    }
}

/// The bias of a head whose weight is `[out, in]` and that has none.
pub(super) fn no_bias(weight: &Tensor) -> Result<Tensor> {
    let outputs = weight.shape().first().copied().unwrap_or(0);
    Tensor::from_bytes(
        weight.dtype(),
        &[outputs],
        vec![0; outputs * weight.dtype().size()],
    )
}

/// What to say where `projection` became the head.
pub(super) fn features(projection: &str) -> String {
    format!(
        "`{projection}` became the head, with a bias of zeros: what the model returns are image features and no classes \
         (`predict --text-features` compares them with those of texts)"
    )
}

/// The name of timm's for an image encoder of CLIP: the one whose arguments it has, else the one that takes them.
pub(super) fn architecture(vit: &VitSpec) -> &'static str {
    let other = match vit.activation {
        Activation::QuickGelu => "vit_base_patch32_clip_quickgelu_224",
        _ => "vit_base_patch32_clip_224",
    };
    named(vit, |name| name.contains("_clip_")).unwrap_or(other)
}

/// timm's name for one of transformers' CLIP; `None` for a name that is unknown.
pub(super) fn target(name: &str) -> Option<Target> {
    let whole = |name: &str| Some(Target::Whole(name.to_owned()));
    if name == PROJECTION {
        return whole("head.weight");
    }
    let body = name.strip_prefix("vision_model.").unwrap_or(name);
    match body {
        "embeddings.class_embedding" => return whole("cls_token"),
        "embeddings.position_embedding.weight" => return whole("pos_embed"),
        "embeddings.patch_embedding.weight" => return whole("patch_embed.proj.weight"),
        _ => {}
    }
    let (module, parameter) = body.rsplit_once('.')?;
    match module {
        "pre_layrnorm" => return whole(&format!("norm_pre.{parameter}")),
        "post_layernorm" => return whole(&format!("norm.{parameter}")),
        _ => {}
    }
    let (layer, part) = module.strip_prefix("encoder.layers.")?.split_once('.')?;
    let fused = |index| {
        Some(Target::Third(
            format!("blocks.{layer}.attn.qkv.{parameter}"),
            index,
        ))
    };
    let part = match part {
        "self_attn.q_proj" => return fused(0),
        "self_attn.k_proj" => return fused(1),
        "self_attn.v_proj" => return fused(2),
        "self_attn.out_proj" => "attn.proj",
        "layer_norm1" => "norm1",
        "layer_norm2" => "norm2",
        "mlp.fc1" | "mlp.fc2" => part,
        _ => return None,
    };
    whole(&format!("blocks.{layer}.{part}.{parameter}"))
}
