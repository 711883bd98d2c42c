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

/// Adds to what patch merging writes to every token, by a small change of the bias of its norm: `Wᵀ·(W·Wᵀ + λ)⁻¹` times what is to be added,
/// where `λ` is `damping` times the mean of the diagonal, so that the change stays small where rows of `W` are almost linearly dependent.
/// Returns what it came to: `W` times the change as it is stored.
pub(super) fn add_behind(
    tensors: &mut Tensors,
    merging: &str,
    wanted: &[f64],
    damping: f64,
) -> Result<Vec<f64>> {
    let weight = Map::of(tensors, &format!("{merging}.reduction"))?.weight;
    let side = wanted.len();
    let rows: Vec<&[f64]> = weight.chunks((weight.len() / side.max(1)).max(1)).collect();
    let mut products: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| dot(a, b))).collect();
    let mean = products.iter().step_by(side + 1).sum::<f64>() / side.max(1) as f64;
    products
        .iter_mut()
        .step_by(side + 1)
        .for_each(|diagonal| *diagonal += damping * mean);
    let Some(cholesky) = Cholesky::new(products, side) else {
        return Ok(vec![0.0; side]);
    };
    let mut given = wanted.to_vec();
    cholesky.solve(&mut given);
    let mut change = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for (row, given) in rows.iter().zip(given) {
        add(&mut change, given, row);
    }
    let name = format!("{merging}.norm.bias");
    let before = tensors.get(&name)?.to_f32().into_owned();
    add_to(tensors, &name, &change)?;
    let after = tensors.get(&name)?.to_f32();
    let stored = after
        .iter()
        .zip(before)
        .map(|(after, before)| f64::from(*after) - f64::from(before));
    let stored: Vec<f64> = stored.collect();
    Ok(rows.iter().map(|row| dot(row, &stored)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patch merging with these rows of weights of four inputs.
    fn merging(weight: Vec<f32>) -> Tensors {
        let mut tensors = Tensors::new();
        let shape = [weight.len() / 4, 4];
        tensors
            .insert_f32("merging.reduction.weight", &shape, weight)
            .unwrap();
        tensors
            .insert_f32("merging.norm.bias", &[4], vec![0.5; 4])
            .unwrap();
        tensors
    }

    #[test]
    fn rows_that_are_almost_alike_do_not_make_a_bias_huge() {
        let mut tensors = merging(vec![
            1.0, 2.0, 0.0, -1.0, 1.0, 2.0, 1e-4, -1.0, 2.0, -1.0, 1.0, 0.0,
        ]);
        let added = add_behind(&mut tensors, "merging", &[1.0, -1.0, 0.5], 3e-3).unwrap();
        let bias = tensors.get("merging.norm.bias").unwrap().to_f32().into_owned();
        // To tell the first two rows apart it would have to be about 20000.
        assert!(bias.iter().all(|bias| bias.abs() < 10.0), "{bias:?}");
        // What the rows have in common is zero, and the third one is met.
        for (added, expected) in added.iter().zip([0.0, 0.0, 0.5]) {
            assert!((added - expected).abs() < 1e-2, "{added} and {expected}");
        }
    }

    #[test]
    fn rows_that_are_apart_give_what_is_wanted() {
        let mut tensors = merging(vec![1.0, 2.0, 0.0, -1.0, 2.0, -1.0, 1.0, 0.0]);
        let added = add_behind(&mut tensors, "merging", &[1.0, -1.0], 1e-9).unwrap();
        for (added, wanted) in added.iter().zip([1.0, -1.0]) {
            assert!((added - wanted).abs() < 1e-5, "{added} and {wanted}");
        }
    }
}
