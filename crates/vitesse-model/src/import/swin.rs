//! Swin's other names: those of the original code and of timm before version 0.9, and transformers'.
//!
//! | original, older timm | timm, in memory |
//! | --- | --- |
//! | `layers.0.downsample.*`, where a stage ends | `layers.1.downsample.*`, where the next one begins |
//! | `head.*` | `head.fc.*` |
//! | `….relative_position_index`, `….attn_mask` | nothing: they follow from the description |

use serde_json::{Value, json};

use super::hf::{Described, Target};
use crate::config::Fields;
use crate::config::preprocessor;
use crate::spec::{NetworkSpec, SwinSpec, WindowRule};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

/// transformers' name of the models that are read here.
pub(super) const MODEL_TYPE: &str = "swin";

/// The end of the name of a table of biases, which only Swins have.
const TABLE: &str = ".relative_position_bias_table";
/// The ends of the names of what follows from the description.
const BUFFERS: [&str; 2] = [".relative_position_index", ".attn_mask"];
/// What a network has that merges patches where a stage ends.
const MERGES_AT_THE_END: &str = "layers.0.downsample.";

/// The tensors of a file under the names they have in memory, and what was done. Those of other families stay as they are.
///
/// # Errors
/// Two tensors that are the same one under two names.
pub(crate) fn read(tensors: Tensors) -> Result<(Tensors, Vec<String>)> {
    let is_swin = |name: &str| name.starts_with("layers.") && name.ends_with(TABLE);
    if !tensors.names().any(is_swin) {
        return Ok((tensors, Vec::new()));
    }
    let old = is_old(&tensors);
    let (mut out, mut left_out, mut renamed) = (Tensors::new(), 0, 0);
    for (name, tensor) in tensors {
        match timm_name(&name, old) {
            None => left_out += 1,
            Some(new) => {
                renamed += usize::from(new != name);
                if out.insert(new.clone(), tensor).is_some() {
                    return Err(Error::TensorDuplicate { name: new });
                }
            }
        }
    }
    let mut notes = Vec::new();
    if renamed > 0 {
        notes.push("the original code's names were converted to timm's".to_owned());
    }
    if left_out > 0 {
        let buffers = vitesse_words::counted(left_out, "buffer");
        notes.push(format!(
            "left out {buffers} (`relative_position_index`, `attn_mask`), which follow from the description"
        ));
    }
    Ok((out, notes))
}

/// Whether patches are merged where a stage ends, as in the original code and in timm before version 0.9.
pub fn is_old(tensors: &Tensors) -> bool {
    tensors.names().any(|name| name.starts_with(MERGES_AT_THE_END))
}

/// timm's name for a tensor of a Swin, of a file in which patches are merged where a stage ends if `old`; `None` for what
/// follows from the description.
pub fn timm_name(name: &str, old: bool) -> Option<String> {
    if BUFFERS.iter().any(|end| name.ends_with(end)) {
        return None;
    }
    if let Some(parameter) = name.strip_prefix("head.")
        && !parameter.contains('.')
    {
        return Some(format!("head.fc.{parameter}"));
    }
    let moved = || {
        let (stage, rest) = name.strip_prefix("layers.")?.split_once('.')?;
        let next = stage.parse::<usize>().ok()?.checked_add(1)?;
        (old && rest.starts_with("downsample.")).then(|| format!("layers.{next}.{rest}"))
    };
    Some(moved().unwrap_or_else(|| name.to_owned()))
}

/// The original code's name for a tensor of a Swin.
pub(super) fn original_name(name: &str) -> String {
    if let Some(parameter) = name.strip_prefix("head.fc.") {
        return format!("head.{parameter}");
    }
    let moved = || {
        let (stage, rest) = name.strip_prefix("layers.")?.split_once('.')?;
        let before = stage.parse::<usize>().ok()?.checked_sub(1)?;
        rest.starts_with("downsample.")
            .then(|| format!("layers.{before}.{rest}"))
    };
    moved().unwrap_or_else(|| name.to_owned())
}

/// Tensors that belong to training tasks or to features that no head here reads.
const DROPPED: [&str; 1] = ["embeddings.mask_token"];

/// Reads what transformers' `config.json` says of a Swin, and removes the tensors that nothing here reads.
pub(super) fn describe(
    fields: &mut Fields<'_>,
    tensors: &mut Tensors,
    notes: &mut Vec<String>,
) -> Result<Described> {
    let dropped = tensors.names().filter(|name| unread(name));
    let dropped: Vec<String> = dropped.map(str::to_owned).collect();
    for name in &dropped {
        tensors.remove(name)?;
    }
    if let Some(first) = dropped.first() {
        let count = vitesse_words::counted(dropped.len(), "tensor");
        notes.push(format!(
            "left out {count} that nothing here reads, such as `{first}`"
        ));
    }
    let swin = read_swin(fields)?;
    Ok(Described {
        architecture: architecture(&swin),
        norm_eps: swin.norm_eps,
        network: NetworkSpec::Swin(swin),
        preprocessing: preprocessor::VIT,
        target: Box::new(target),
    })
}

/// The network that `config.json` describes. Keys that it lacks have transformers' default values.
fn read_swin(fields: &mut Fields<'_>) -> Result<SwinSpec> {
    let list = |fields: &mut Fields<'_>, key: &str, default: &[usize]| -> Result<Vec<usize>> {
        let expected = "a list of at most 12 whole numbers from 1 to 256, one a stage";
        let Some(value) = fields.take::<Value>(key, expected)? else {
            return Ok(default.to_vec());
        };
        let believable = |list: &Vec<usize>| {
            (1..=12).contains(&list.len()) && list.iter().all(|one| (1..=256).contains(one))
        };
        serde_json::from_value(value.clone())
            .ok()
            .filter(believable)
            .ok_or_else(|| fields.wrong(key, expected, Some(&value)))
    };
    let dim = fields.size("embed_dim", 1..=16384)?.unwrap_or(96);
    let depths = list(fields, "depths", &[2, 2, 6, 2])?;
    let heads = list(fields, "num_heads", &[3, 6, 12, 24])?;
    let in_chans = fields.size("num_channels", 1..=4096)?.unwrap_or(3);
    let img_size = fields.sides("image_size", 1..=4096)?.unwrap_or([224; 2]);
    let [patch_size, patch_width] = fields.sides("patch_size", 1..=4096)?.unwrap_or([4; 2]);
    let window = fields.size("window_size", 1..=4096)?.unwrap_or(7);
    let qkv_bias = fields.take("qkv_bias", "`true` or `false`")?.unwrap_or(true);
    let ratio: f64 = fields.take("mlp_ratio", "a number")?.unwrap_or(4.0);
    let eps: f64 = fields.take("layer_norm_eps", "a number")?.unwrap_or(1e-5);
    let act: Option<String> = fields.take("hidden_act", "the string `gelu`")?;
    if let Some(other) = act.filter(|act| act != "gelu") {
        return Err(fields.wrong("hidden_act", "`gelu`, the exact one", Some(&json!(other))));
    }
    if fields.take::<bool>("use_absolute_embeddings", "`true` or `false`")? == Some(true) {
        let expected = "`false`: no model here has absolute positions beside the relative ones";
        return Err(fields.wrong("use_absolute_embeddings", expected, Some(&json!(true))));
    }
    if patch_size != patch_width {
        let sides = json!([patch_size, patch_width]);
        return Err(fields.wrong("patch_size", "the side of a square patch", Some(&sides)));
    }
    if heads.len() != depths.len() {
        let expected = format!("a list of {}, one for each stage of `depths`", depths.len());
        return Err(fields.wrong("num_heads", &expected, Some(&json!(heads))));
    }
    if !(ratio > 0.0 && ratio.is_finite()) {
        return Err(fields.wrong("mlp_ratio", "a positive number", Some(&json!(ratio))));
    }
    for (stage, &heads) in heads.iter().enumerate() {
        let dim = dim << stage;
        if dim % heads != 0 {
            let expected = format!("a divisor of the width {dim} of stage {stage}");
            return Err(fields.wrong("num_heads", &expected, Some(&json!(heads))));
        }
    }
    let mut swin = SwinSpec {
        img_size,
        in_chans,
        norm_eps: eps,
        window_rule: WindowRule::Joint,
        ..SwinSpec::plain(0, patch_size, window, dim, &depths, &heads)
    };
    let dims: Vec<usize> = (0..swin.layers.len())
        .filter_map(|layer| swin.dim(layer))
        .collect();
    for (core, dim) in swin.cores.iter_mut().zip(dims) {
        if let Some(attn) = &mut core.attn {
            attn.qkv_bias = qkv_bias;
        }
        if let Some(mlp) = &mut core.mlp {
            mlp.hidden = (dim as f64 * ratio) as usize;
        }
    }
    check_windows(&swin)?;
    swin.settle_rule();
    Ok(swin)
}

/// Maps smaller than a window are computed by transformers with tables of another size, and maps that are no multiple of
/// one are filled up before they are rolled and not after: neither is known here.
fn check_windows(swin: &SwinSpec) -> Result<()> {
    let unknown = (0..swin.layers.len()).find(|&layer| {
        let windows = swin.windows(layer);
        windows.is_some_and(|windows| windows.window != swin.window_size || windows.pads())
    });
    let Some(place) = unknown.and_then(|layer| swin.place(layer)) else {
        return Ok(());
    };
    let ([rows, columns], [height, width]) = (swin.stage_map(place.stage), swin.img_size);
    let [window, _] = swin.window_size;
    Err(Error::Unsupported {
        what: format!("transformers' Swin for images of {height}x{width}"),
        why: format!(
            "stage {} has a map of {rows}x{columns}, which is no multiple of the window of {window}; transformers fills such a \
             map up in a way of its own. Choose an `image_size` in config.json that gives multiples of the window",
            place.stage
        ),
    })
}

/// The name of timm's for a network: the one whose arguments it has, else the one that takes them.
fn architecture(swin: &SwinSpec) -> &'static str {
    let same = |name: &&'static str| {
        zoo::get(name).is_ok_and(|entry| match entry.spec.network {
            NetworkSpec::Swin(known) => entry.timm_name == *name && known == *swin,
            _ => false,
        })
    };
    zoo::names().find(same).unwrap_or("swin_tiny_patch4_window7_224")
}

/// A name without the prefix that models with a head give to their body.
fn body(name: &str) -> &str {
    name.strip_prefix("swin.").unwrap_or(name)
}

/// Whether this is one of transformers' tensors that nothing here reads.
pub(super) fn unread(name: &str) -> bool {
    DROPPED.contains(&body(name)) || BUFFERS.iter().any(|end| name.ends_with(end))
}

/// timm's name for one of transformers' Swin; `None` for a name that is unknown.
pub fn target(name: &str) -> Option<Target> {
    let whole = |name: String| Some(Target::Whole(name));
    let (module, parameter) = body(name).rsplit_once('.')?;
    match module {
        "embeddings.patch_embeddings.projection" => return whole(format!("patch_embed.proj.{parameter}")),
        "embeddings.norm" => return whole(format!("patch_embed.norm.{parameter}")),
        "layernorm" => return whole(format!("norm.{parameter}")),
        "classifier" => return whole(format!("head.fc.{parameter}")),
        _ => {}
    }
    let (stage, rest) = module.strip_prefix("encoder.layers.")?.split_once('.')?;
    if let Some(part) = rest.strip_prefix("downsample.") {
        let next = stage.parse::<usize>().ok()?.checked_add(1)?;
        return whole(format!("layers.{next}.downsample.{part}.{parameter}"));
    }
    let (block, part) = rest.strip_prefix("blocks.")?.split_once('.')?;
    let block = format!("layers.{stage}.blocks.{block}");
    let third = |index| {
        let fused = format!("{block}.attn.qkv.{parameter}");
        Some(Target::Third(fused, index))
    };
    let part = match part {
        "attention.self.query" | "attention.q_proj" => return third(0),
        "attention.self.key" | "attention.k_proj" => return third(1),
        "attention.self.value" | "attention.v_proj" => return third(2),
        "attention.self" | "attention.relative_position_bias" => "attn",
        "attention.output.dense" | "attention.o_proj" => "attn.proj",
        "layernorm_before" => "norm1",
        "layernorm_after" => "norm2",
        "intermediate.dense" | "mlp.fc1" => "mlp.fc1",
        "output.dense" | "mlp.fc2" => "mlp.fc2",
        _ => return None,
    };
    whole(format!("{block}.{part}.{parameter}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_moves_to_the_next_stage_and_buffers_are_left_out() {
        for (name, old, new) in [
            (
                "layers.0.downsample.norm.bias",
                true,
                Some("layers.1.downsample.norm.bias"),
            ),
            (
                "layers.1.downsample.norm.bias",
                false,
                Some("layers.1.downsample.norm.bias"),
            ),
            ("head.weight", true, Some("head.fc.weight")),
            ("head.fc.weight", false, Some("head.fc.weight")),
            ("layers.0.blocks.1.attn_mask", true, None),
            ("layers.0.blocks.1.attn.relative_position_index", false, None),
        ] {
            assert_eq!(timm_name(name, old).as_deref(), new, "{name}");
        }
        let mut other = Tensors::new();
        other.insert_f32("head.weight", &[1], vec![0.0]).unwrap();
        let (kept, notes) = read(other.clone()).unwrap();
        assert_eq!((kept, notes.len()), (other, 0));
    }
}
