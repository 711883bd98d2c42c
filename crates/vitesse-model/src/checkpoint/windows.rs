//! Tables of biases for windows of another size, bicubically, as the original Swin code makes them.

use crate::Result;
use crate::pos_embed::{self, Flavour};
use crate::spec::{SwinSpec, Windows};
use crate::tensors::{Tensor, Tensors};

/// Resizes the tables of all cores whose windows change between the two descriptions, and says so.
pub(super) fn resize_tables(old: &SwinSpec, new: &SwinSpec, tensors: &mut Tensors) -> Result<Option<String>> {
    let mut changed: Option<[[usize; 2]; 2]> = None;
    let mut count = 0;
    for (core, block) in old.cores.iter().enumerate() {
        let layer = old.layers.iter().position(|layer| layer.core == core);
        let windows = layer.and_then(|layer| Some((old.windows(layer)?, new.windows(layer)?)));
        let Some((before, after)) = windows.filter(|(before, after)| before.window != after.window) else {
            continue;
        };
        if block.attn.is_none() {
            continue;
        }
        let name = old.bias_table(core);
        let table = resize(tensors.get(&name)?, &before, &after)?;
        tensors.insert(name, table);
        changed.get_or_insert([before.window, after.window]);
        count += 1;
    }
    Ok(changed.map(|[[rows, columns], [new_rows, new_columns]]| {
        format!(
            "{} of relative positions resized, the first from windows of {rows}x{columns} to {new_rows}x{new_columns}, \
             bicubically",
            vitesse_words::counted(count, "table")
        )
    }))
}

/// A table `[ways, heads]`, which is an image of `2·rows - 1` by `2·columns - 1`.
fn resize(table: &Tensor, before: &Windows, after: &Windows) -> Result<Tensor> {
    let grid = |windows: &Windows| {
        let [rows, columns] = windows.window.map(|side| (2 * side).saturating_sub(1));
        (rows, columns)
    };
    let heads = table.shape().last().copied().unwrap_or(0);
    let image = Tensor::from_bytes(
        table.dtype(),
        &[1, before.relative_positions(), heads],
        table.bytes().to_vec(),
    )?;
    let image = pos_embed::resize(&image, 0, Some(grid(before)), grid(after), Flavour::Deit)?;
    Tensor::from_f32(&[after.relative_positions(), heads], image.to_f32().into_owned())
}
