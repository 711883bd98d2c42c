//! Prefixes that wrappers put before every name.
//!
//! `torch.compile` writes `_orig_mod.`, data-parallel training and moving averages `module.`, training frameworks `model.`,
//! `backbone.` or the name of whatever holds the network, and one may hold another. The network stands where the first
//! tensor of every network does: its patch embedding, or its stem. If all tensors stand there, what is before them is taken
//! off; if others stand beside them, or several networks, only the caller can say which are meant.

use std::collections::BTreeSet;
use std::path::Path;

use crate::tensors::{Tensor, Tensors};
use crate::{Error, Result};

/// The first tensor of a network, under the names of every family that is read.
const FIRST: [&str; 10] = [
    "vit.embeddings.patch_embeddings.projection.weight",
    "deit.embeddings.patch_embeddings.projection.weight",
    "swin.embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.weight",
    "stem.conv.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "visual.conv1.weight",
    // Of an image encoder of OpenAI's names that was saved alone: `conv1` has a ResNet, too.
    "visual.ln_pre.weight",
    "ln_pre.weight",
];

/// The tensors of `file` without the prefix of a wrapper, and what was done. `key` is where they stood in the file.
///
/// # Errors
/// A network with tensors of something else beside it, and several networks.
pub(crate) fn unwrap(file: &Path, key: Option<&str>, tensors: Tensors) -> Result<(Tensors, Option<String>)> {
    let roots = roots(&tensors);
    let Some(root) = roots.first().filter(|_| !roots.contains("")) else {
        return Ok((tensors, None));
    };
    let outside = |tensors: &Tensors| -> Vec<String> {
        let names = tensors.names().filter(|name| !name.starts_with(root.as_str()));
        names.map(str::to_owned).collect()
    };
    let counters: Vec<String> = tensors
        .iter()
        .filter(|(name, tensor)| !name.starts_with(root.as_str()) && is_counter(name, tensor))
        .map(|(name, _)| name.to_owned())
        .collect();
    if roots.len() > 1 || outside(&tensors).len() > counters.len() {
        let found: Vec<String> = roots
            .iter()
            .map(|root| {
                let count = tensors.names().filter(|name| name.starts_with(root)).count();
                format!("`{root}` ({count} of {} tensors)", tensors.len())
            })
            .collect();
        let root = root.trim_end_matches('.');
        return Err(Error::Wrapped {
            path: file.to_owned(),
            found: found.join(" and "),
            example: key.map_or_else(|| root.to_owned(), |key| format!("{key}.{root}")),
        });
    }
    let mut inner = tensors;
    for name in &counters {
        inner.remove(name)?;
    }
    let mut note = format!("removed the prefix `{}` from all names", root.escape_debug());
    if !counters.is_empty() {
        note += &format!(
            ", and left out `{}`, which counts for training",
            counters.join("`, `")
        );
    }
    Ok((inner.strip_prefix(root).unwrap_or(inner), Some(note)))
}

/// The tensors of a flat file that stand under `key`.
///
/// # Errors
/// A key that no name begins with.
pub(crate) fn under(file: &Path, key: &str, tensors: &Tensors) -> Result<Tensors> {
    let prefix = format!("{key}.");
    let inner: Tensors = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())))
        .collect();
    if inner.is_empty() {
        let first: BTreeSet<&str> = tensors
            .names()
            .filter_map(|name| name.split_once('.'))
            .map(|(first, _)| first)
            .collect();
        let first: Vec<&str> = first.into_iter().take(12).collect();
        return Err(Error::StateDictKey {
            path: file.to_owned(),
            key: key.to_owned(),
            found: format!(
                "one state dict, with names that begin with `{}`",
                first.join("`, `")
            ),
        });
    }
    Ok(inner)
}

/// What stands before the first tensor of each network.
fn roots(tensors: &Tensors) -> BTreeSet<String> {
    let root = |name: &str| {
        FIRST
            .iter()
            .find_map(|first| name.strip_suffix(first))
            .map(str::to_owned)
    };
    tensors
        .names()
        .filter_map(root)
        .filter(|root| root.is_empty() || root.ends_with('.'))
        .collect()
}

/// Whether a tensor is a number that a wrapper keeps for itself, such as `n_averaged`: no network has one like it.
fn is_counter(name: &str, tensor: &Tensor) -> bool {
    !name.contains('.') && tensor.numel() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> Tensors {
        let mut out = Tensors::new();
        for name in names {
            out.insert_f32(*name, &[2], vec![0.0; 2]).unwrap();
        }
        out
    }

    fn unwrapped(names: &[&str]) -> Result<(Vec<String>, Option<String>)> {
        let (tensors, note) = unwrap(Path::new("x.pth"), Some("state_dict"), tensors(names))?;
        Ok((tensors.names().map(str::to_owned).collect(), note))
    }

    #[test]
    fn wrappers_are_taken_off_one_and_all() {
        for prefix in [
            "module.",
            "_orig_mod.",
            "model.",
            "backbone.",
            "_orig_mod.module.",
            "module._orig_mod.",
            "model._orig_mod.module.",
            "_forward_module.student.net.",
        ] {
            for first in FIRST {
                let first_name = format!("{prefix}{first}");
                let other = format!("{prefix}norm.weight");
                let (names, note) = unwrapped(&[&first_name, &other]).unwrap();
                assert_eq!(names.len(), 2);
                assert!(names.contains(&first.to_owned()) && names.contains(&"norm.weight".to_owned()));
                assert!(note.unwrap().contains(&format!("`{prefix}`")));
            }
        }
        // What stands bare stays as it is, whatever else there is.
        for names in [
            &["patch_embed.proj.weight", "norm.weight"][..],
            &["patch_embed.proj.weight", "patch_embed.backbone.stem.conv.weight"],
            &[
                "classifier.weight",
                "vit.embeddings.patch_embeddings.projection.weight",
            ],
            &["module.blocks.0.adapter_attn.conv_A.weight"],
            &["xpatch_embed.proj.weight"],
        ] {
            let (kept, note) = unwrapped(names).unwrap();
            assert_eq!((kept.len(), note), (names.len(), None), "{names:?}");
        }
    }

    #[test]
    fn counters_are_left_out_and_named() {
        let mut wrapped = tensors(&["module.patch_embed.proj.weight"]);
        wrapped.insert_f32("n_averaged", &[], vec![3.0]).unwrap();
        let (inner, note) = unwrap(Path::new("x"), None, wrapped).unwrap();
        assert_eq!(inner.names().collect::<Vec<_>>(), ["patch_embed.proj.weight"]);
        assert!(note.unwrap().contains("left out `n_averaged`"));
    }

    #[test]
    fn what_only_the_caller_can_know_is_asked() {
        for (names, found, example) in [
            (
                &["backbone.patch_embed.proj.weight", "head.mlp.0.weight"][..],
                "`backbone.` (1 of 2 tensors)",
                "`--key state_dict.backbone`",
            ),
            (
                &[
                    "student.patch_embed.proj.weight",
                    "teacher.patch_embed.proj.weight",
                ],
                "`student.` (1 of 2 tensors) and `teacher.` (1 of 2 tensors)",
                "`--key state_dict.student`",
            ),
            (
                &[
                    "module.q.stem.conv.weight",
                    "module.k.stem.conv.weight",
                    "module.queue",
                ],
                "`module.k.` (1 of 3 tensors) and `module.q.`",
                "`--key state_dict.module.k`",
            ),
        ] {
            let text = unwrapped(names).unwrap_err().to_string();
            assert!(text.contains(found) && text.contains(example), "{text}");
        }
    }

    #[test]
    fn a_key_takes_what_begins_with_it() {
        let all = tensors(&["student.norm.weight", "teacher.norm.weight", "queue"]);
        let taken = under(Path::new("x"), "teacher", &all).unwrap();
        assert_eq!(taken.names().collect::<Vec<_>>(), ["norm.weight"]);
        let text = under(Path::new("x"), "model", &all).unwrap_err().to_string();
        assert!(text.contains("`student`, `teacher`"), "{text}");
    }
}
