//! What was solved is written where it belongs: a map in the place of another one, a vector onto every token of the stream.

use vitesse_model::{Tensor, Tensors};

use super::moments::Map;
use crate::Result;
use crate::linalg::{Cholesky, add, dot};

/// Replaces a module's weight, and its bias if it has one.
pub(super) fn store(tensors: &mut Tensors, module: &str, map: &Map) -> Result<()> {
    for (name, values) in [("weight", &map.weight), ("bias", &map.bias)] {
        let name = format!("{module}.{name}");
        if tensors.contains(&name) {
            let before = tensors.get(&name)?;
            let values = values.iter().map(|value| *value as f32).collect();
            let after = Tensor::rounded(before.dtype(), before.shape(), values)?;
            tensors.insert(name, after);
        }
    }
    Ok(())
}

/// Adds to every row of a tensor, if there is one of this name.
pub(super) fn add_to(tensors: &mut Tensors, name: &str, added: &[f64]) -> Result<()> {
    if !tensors.contains(name) {
        return Ok(());
    }
    let tensor = tensors.get(name)?;
    let mut values = tensor.to_f32().into_owned();
    for row in values.chunks_mut(added.len().max(1)) {
        row.iter_mut()
            .zip(added)
            .for_each(|(value, added)| *value = (f64::from(*value) + added) as f32);
    }
    let after = Tensor::rounded(tensor.dtype(), tensor.shape(), values)?;
    tensors.insert(name, after);
    Ok(())
}

/// Adds to what patch merging writes to every token: the least that the bias of its norm has to change for that, `Wᵀ·(W·Wᵀ)⁻¹` times what
/// is added. Says whether there is a way: there is none where rows of `W` hang together.
pub(super) fn add_behind(tensors: &mut Tensors, merging: &str, added: &[f64]) -> Result<bool> {
    let weight = Map::of(tensors, &format!("{merging}.reduction"))?.weight;
    let rows: Vec<&[f64]> = weight.chunks(weight.len() / added.len().max(1)).collect();
    let products = rows.iter().flat_map(|a| rows.iter().map(|b| dot(a, b)));
    let Some(cholesky) = Cholesky::new(products.collect(), rows.len()) else {
        return Ok(false);
    };
    let mut given = added.to_vec();
    cholesky.solve(&mut given);
    let mut bias = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for (row, given) in rows.iter().zip(given) {
        add(&mut bias, given, row);
    }
    add_to(tensors, &format!("{merging}.norm.bias"), &bias)?;
    Ok(true)
}
