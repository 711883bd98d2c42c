//! Weight files without a description: original DeiT and RegNetY `.pth`, state dicts of timm, checkpoints of training.
//!
//! The names in them are timm's, or become timm's first where they are OpenAI's. The architecture is the one the caller names, or the one that the training program wrote
//! down, or the one of the zoo whose tensors have just these names and shapes. Number of classes, channels, pooling with a
//! norm behind it and a square grid of positions are read off the tensors. Shapes do not tell a ViT from a DeiT, which expect
//! differently normalised images, nor how many heads there are; the zoo's models have heads 64 wide (32 in the small ones),
//! and what was chosen is reported. Where the caller says how many heads there are, nothing of the zoo needs to have these shapes.

use std::path::Path;

use super::minivit;
use super::openai::{self, Converted};
use super::run::Run;
use super::{Heads, Imported, sliced};
use crate::error::Mismatch;
use crate::pos_embed::Flavour;
use crate::spec::{ModelSpec, NetworkSpec, Pool, VitSpec};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

/// What is known of a file beside its tensors.
pub(crate) struct Known<'a> {
    /// The architecture that the caller names.
    pub(crate) architecture: Option<&'a str>,
    /// Height and width of the images that the caller wants.
    pub(crate) img_size: Option<[usize; 2]>,
    /// The heads of blocks that were cut smaller.
    pub(crate) heads: Option<&'a Heads>,
    pub(crate) run: Run,
}

/// Finds out what the tensors of `file` are.
pub(crate) fn import(tensors: Tensors, file: &Path, known: &Known<'_>) -> Result<Imported> {
    let clip = openai::is(&tensors);
    let converted = match clip {
        true => openai::convert(tensors, file, known)?,
        false => Converted {
            tensors,
            ..Converted::default()
        },
    };
    let (tensors, mut notes) = (converted.tensors, converted.notes);
    let entry = if let Some(name) = known.architecture {
        zoo::get(name)?
    } else if let Some(entry) = converted.entry {
        entry
    } else if let Some(entry) = known.run.entry()? {
        notes.push(format!(
            "its training says that it is `{}`",
            entry.spec.architecture
        ));
        entry
    } else if known.heads.is_some() {
        let entry = zoo::get(sliced::origin_of(&tensors))?;
        notes.push(format!(
            "images are prepared as for `{}`, from which it may have been cut (`--architecture` names another)",
            entry.spec.architecture
        ));
        entry
    } else {
        let (entry, note) = recognise(&tensors, file, known.img_size)?;
        notes.push(note);
        entry
    };
    let (mut spec, mut config, said) = known.run.describe(entry)?;
    notes.extend(said);
    if let Some(heads) = known.heads {
        notes.push(sliced::fit(&mut spec, &tensors, file, heads)?);
    }
    refuse_class_token(&spec, &tensors, &file.display().to_string())?;
    let usual = spec.input_size();
    let (spec, grid) = fitted(spec, &tensors, known.img_size);
    if let Grid::Unknown(patches) = grid {
        return Err(Error::Unsupported {
            what: format!("`{}` without a description", file.display()),
            why: format!(
                "`pos_embed` has rows for {patches} patches, which make no square, and height and width stand nowhere in the \
                 file; give those it was trained on with `--img-size HxW`"
            ),
        });
    }
    let [channels, height, width] = spec.input_size();
    if [height, width] != usual[1..] {
        notes.push(format!(
            "the position table is one for images of {height}x{width}, which is now the input size"
        ));
    }
    if clip {
        openai::prepare(&mut config.pretrained_cfg, converted.normalisation);
    }
    notes.extend(config.pretrained_cfg.fit_channels(channels));
    if let NetworkSpec::Vit(vit) = &spec.network
        && vit.pool == Pool::AvgThenNorm
    {
        notes.push("`fc_norm` says that the head reads the mean of the patches".to_owned());
    }
    notes.push(format!(
        "read as `{}` with {}",
        spec.architecture,
        vitesse_words::counted(spec.num_classes, "class")
    ));
    // Bare files of DeiT are those of its own code, unless timm trained them.
    let is_deit = ["deit", "mini_deit"]
        .iter()
        .any(|start| spec.architecture.starts_with(start));
    let pos_embed = if is_deit && !known.run.is_timms() {
        Flavour::Deit
    } else {
        Flavour::Timm
    };
    Ok(Imported {
        spec,
        tensors,
        config,
        pos_embed,
        notes,
    })
}

/// Refuses a class token where the architecture has none, and a head that reads something else.
pub(crate) fn refuse_class_token(spec: &ModelSpec, tensors: &Tensors, file: &str) -> Result<()> {
    match &spec.network {
        NetworkSpec::Vit(vit) if vit.prefix.is_empty() && tensors.contains("cls_token") => {
            Err(Error::Unsupported {
                what: format!("loading `{file}` as `{}`", spec.architecture),
                why: "the file holds a class token, and the architecture has none and reads the mean of the patches; load it as the \
                      architecture it was trained as"
                    .to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// The entry of the zoo that has these tensors, but for what [`fitted`] reads off them.
fn recognise(tensors: &Tensors, file: &Path, img_size: Option<[usize; 2]>) -> Result<(zoo::Entry, String)> {
    let mut closest: Option<(usize, Mismatch)> = None;
    let mut fitting = Vec::new();
    for name in zoo::names() {
        let entry = zoo::get(name)?;
        let usual = entry.spec.input_size();
        let (spec, _) = fitted(entry.spec.clone(), tensors, img_size);
        // Layers that share matrices have names of their own in files; nothing is copied.
        let named = minivit::read(&spec, tensors.clone());
        match named.and_then(|tensors| spec.check(&tensors, &file.display().to_string())) {
            Ok(()) => fitting.push((usual != spec.input_size(), !name.starts_with("deit"), entry)),
            Err(Error::Mismatch(mismatch)) => {
                let wrong = mismatch.missing.len() + mismatch.unexpected.len() + 2 * mismatch.misshaped.len();
                if closest.as_ref().is_none_or(|(least, _)| wrong < *least) {
                    closest = Some((wrong, *mismatch));
                }
            }
            Err(_) => {}
        }
    }
    // Those for images of this size first. Files without a description are most often DeiT's.
    fitting.sort_by_key(|(resized, stranger, _)| (*resized, *stranger));
    let mut fitting = fitting.into_iter();
    let Some((resized, _, entry)) = fitting.next() else {
        // Few differences tell which tensor is strange; many only that it is another kind of model.
        let difference = closest
            .filter(|(wrong, _)| *wrong <= 12)
            .map(|(_, mismatch)| format!(". Closest is `{}`: {mismatch}", mismatch.architecture));
        let cut = if sliced::is_vit(tensors) {
            "; of a model that was cut smaller, say how many heads its blocks have, with `--num-heads`"
        } else {
            ""
        };
        return Err(Error::Unsupported {
            what: format!("`{}` without a description", file.display()),
            why: format!(
                "no architecture of the zoo has these tensors; name the architecture it was trained as with \
                 `--architecture`, or give the folder with its config.json{cut}{}",
                difference.unwrap_or_default()
            ),
        });
    };
    let activation = |entry: &zoo::Entry| entry.spec.vit().ok().map(|vit| vit.activation);
    let mut note = format!("taken for `{}` because of its shapes", entry.spec.architecture);
    let others: Vec<String> = fitting
        .filter(|(other, _, _)| *other == resized)
        .map(|(_, _, other)| other)
        .filter(|other| {
            activation(other) != activation(&entry) || other.pretrained_cfg.mean != entry.pretrained_cfg.mean
        })
        .map(|other| {
            let what = if activation(&other) == activation(&entry) {
                "expects images normalised in another way"
            } else {
                "has another activation"
            };
            format!("`{}` has the same, but {what}", other.spec.architecture)
        })
        .collect();
    if !others.is_empty() {
        note += &format!(" ({}: name the architecture to be sure)", others.join("; "));
    }
    Ok((entry, note))
}

/// Whether the grid of a position table is known.
enum Grid {
    Known,
    /// So many patches could be any rectangle.
    Unknown(usize),
}

/// The model with what the tensors say of it: classes, channels, pooling, and a square grid of positions.
fn fitted(mut spec: ModelSpec, tensors: &Tensors, img_size: Option<[usize; 2]>) -> (ModelSpec, Grid) {
    let side = |name: &str, axis: usize| {
        let tensor = tensors.get(name).ok()?;
        tensor.shape().get(axis).copied()
    };
    let head = spec.classifiers().first().map(|head| format!("{head}.weight"));
    spec.num_classes = head.and_then(|head| side(&head, 0)).unwrap_or(0);
    let grid = match &mut spec.network {
        NetworkSpec::RegNet(regnet) => {
            regnet.in_chans = side("stem.conv.weight", 1).unwrap_or(regnet.in_chans);
            Grid::Known
        }
        NetworkSpec::Swin(swin) => {
            swin.in_chans = side("patch_embed.proj.weight", 1).unwrap_or(swin.in_chans);
            Grid::Known
        }
        NetworkSpec::Vit(vit) => {
            vit.in_chans = side("patch_embed.proj.weight", 1).unwrap_or(vit.in_chans);
            if tensors.contains("fc_norm.weight") && !tensors.contains("norm.weight") {
                vit.pool = Pool::AvgThenNorm;
            }
            fit_image(vit, side("pos_embed", 1), img_size)
        }
    };
    (spec, grid)
}

/// Takes over the grid that a position table of so many rows covers: the one of the model, a square one, or that of the
/// images the caller wants.
fn fit_image(vit: &mut VitSpec, rows: Option<usize>, img_size: Option<[usize; 2]>) -> Grid {
    let prefix = vit.pos_rows() - vit.patches();
    let Some(patches) = rows
        .and_then(|rows| rows.checked_sub(prefix))
        .filter(|patches| *patches > 0)
    else {
        return Grid::Known;
    };
    let side = patches.isqrt();
    let wanted = img_size.map(|size| VitSpec {
        img_size: size,
        ..vit.clone()
    });
    if patches == vit.patches() {
        return Grid::Known;
    }
    if side * side == patches {
        vit.img_size = [side * vit.patch_size; 2];
        return Grid::Known;
    }
    match wanted.filter(|wanted| wanted.patches() == patches) {
        Some(wanted) => {
            *vit = wanted;
            Grid::Known
        }
        None => {
            // Some rectangle, so that everything else can be compared.
            let rows = (1..=side)
                .rev()
                .find(|rows| patches.is_multiple_of(*rows))
                .unwrap_or(1);
            vit.img_size = [rows, patches / rows].map(|side| side * vit.patch_size);
            Grid::Unknown(patches)
        }
    }
}
