//! Weight files without a description: original DeiT and RegNetY `.pth`, state dicts of timm.
//!
//! The names in them are timm's. The architecture is the one the caller names, or the one of the zoo whose tensors
//! have just these names and shapes. Shapes do not tell a ViT from a DeiT, which expect differently normalised images,
//! nor how many heads there are; the zoo's models have heads 64 wide (32 in the small ones), and what was chosen is reported.

use std::path::Path;

use super::Imported;
use crate::config::Config;
use crate::spec::{ModelSpec, NetworkSpec};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

/// Finds out what the tensors of `file` are. `architecture` is a name of the zoo.
pub(crate) fn import(tensors: Tensors, file: &Path, architecture: Option<&str>) -> Result<Imported> {
    let (entry, mut notes) = match architecture {
        Some(name) => (zoo::get(name)?, Vec::new()),
        None => recognise(&tensors, file)?,
    };
    let mut spec = with_head_of(entry.spec, &tensors);
    let usual = spec.input_size();
    fit_image(&mut spec, &tensors);
    let [_, height, width] = spec.input_size();
    if spec.input_size() != usual {
        notes.push(format!(
            "the position table is one for images of {height}x{width}, which is now the input size"
        ));
    }
    notes.push(format!(
        "read as `{}` with {} classes",
        spec.architecture, spec.num_classes
    ));
    Ok(Imported {
        spec,
        tensors,
        config: Config {
            pretrained_cfg: entry.pretrained_cfg,
            ..Config::default()
        },
        notes,
    })
}

/// The entry of the zoo that has these tensors, but for the number of classes.
fn recognise(tensors: &Tensors, file: &Path) -> Result<(zoo::Entry, Vec<String>)> {
    let fits = |name: &&str| {
        let spec = zoo::get(name).map(|entry| with_head_of(entry.spec, tensors));
        spec.is_ok_and(|spec| spec.check(tensors, "").is_ok())
    };
    let mut names: Vec<&str> = zoo::names().filter(fits).collect();
    // Files without a description are most often DeiT's.
    names.sort_by_key(|name| !name.starts_with("deit"));
    let Some((name, others)) = names.split_first() else {
        return Err(Error::Unsupported {
            what: format!("`{}` without a description", file.display()),
            why: "no architecture of the zoo has these tensors; name the architecture it was trained as, or give the \
                  folder with its config.json"
                .to_owned(),
        });
    };
    let mut note = format!("taken for `{name}` because of its shapes");
    if !others.is_empty() {
        note += &format!(
            " (`{}` has the same, but expects images normalised in another way: name the architecture to be sure)",
            others.join("`, `")
        );
    }
    Ok((zoo::get(name)?, vec![note]))
}

/// The model with as many classes as the head in the file.
fn with_head_of(mut spec: ModelSpec, tensors: &Tensors) -> ModelSpec {
    let head = spec
        .classifiers()
        .first()
        .and_then(|head| tensors.get(&format!("{head}.weight")).ok());
    spec.num_classes = head
        .and_then(|weight| weight.shape().first().copied())
        .unwrap_or(0);
    spec
}

/// Takes over the square grid that the position table covers, when it covers one.
fn fit_image(spec: &mut ModelSpec, tensors: &Tensors) {
    let NetworkSpec::Vit(vit) = &mut spec.network else {
        return;
    };
    let rows = tensors
        .get("pos_embed")
        .ok()
        .and_then(|table| table.shape().get(1).copied());
    let prefix = vit.pos_rows() - vit.patches();
    let Some(patches) = rows.and_then(|rows| rows.checked_sub(prefix)) else {
        return;
    };
    let side = patches.isqrt();
    if side > 0 && side * side == patches && patches != vit.patches() {
        vit.img_size = [side * vit.patch_size; 2];
    }
}
