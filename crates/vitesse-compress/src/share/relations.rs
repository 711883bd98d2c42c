//! Relations of tokens: which of them a layer puts together, as matrices that do not depend on its width.
//!
//! Paper: MiniViT, section 3.3; the idea of relations of queries, keys and values is that of Wang et al., *MiniLMv2*, 2021. A student can learn
//! them from a teacher with other widths and other heads, as long as both have the same tokens.
//!
//! | relation | of |
//! | --- | --- |
//! | `R_ij = softmax(S_i S_jᵀ / √c)` | each pair of queries, keys and values, `S` split into relation heads of width `c` |
//! | `Ĥ Ĥᵀ`, rows of unit length | a layer's output; compared by the squared difference, as the published code does |
//! | `softmax(H Hᵀ / √C)` | a layer's output; compared by cross-entropy, as the paper writes |

use burn::tensor::{FloatDType, Tensor};
use vitesse_model::network::Compute;
use vitesse_model::network::fused::relation_cross_entropy;

/// What the squared differences of cosines are multiplied by in the published code: the tokens of a window of 7 by 7, whatever the
/// windows are.
const FACTOR: f64 = 49.0;

/// The least length by which a row is divided.
const LEAST_LENGTH: f64 = 1e-12;

/// Cross-entropy of a student's attention relations against a teacher's: the mean over the nine pairs of queries, keys and values,
/// samples, relation heads and rows, `[1]`. Both are `[samples, tokens, 3 · width]` as they left the projection, queries not scaled; all three of a
/// model have one width, which the number of relation heads divides.
///
/// # Panics
/// Where the models differ in samples or tokens, or the relation heads do not divide a width.
pub fn attention(student: &Tensor<3>, teacher: &Tensor<3>, heads: usize) -> Tensor<1> {
    relation_cross_entropy(student, teacher, 3, heads, Compute::default())
}

/// The squared difference of cosines between tokens, times 49, mean over samples and pairs, `[1]`; of outputs `[samples, tokens, width]`
/// of a student and a teacher of any width.
pub fn cosines(student: &Tensor<3>, teacher: &Tensor<3>) -> Tensor<1> {
    let [_, tokens, width] = student.dims();
    let (student, teacher) = (unit(student), unit(teacher));
    let gram = |x: &Tensor<3>| x.clone().matmul(x.clone().swap_dims(1, 2));
    if tokens <= width {
        let difference = gram(&student) - gram(&teacher);
        return (difference.clone() * difference).mean() * FACTOR;
    }
    // ‖SSᵀ − TTᵀ‖² = ‖SᵀS‖² − 2‖SᵀT‖² + ‖TᵀT‖²: of long maps no matrix with a number for each pair is made. The three are large and nearly
    // cancel where the student is close to its teacher, so they are computed in f64.
    let dtype = student.dtype();
    let [student, teacher] = [student, teacher].map(|x| x.cast(FloatDType::F64));
    let square = |a: &Tensor<3>, b: &Tensor<3>| {
        let product = a.clone().swap_dims(1, 2).matmul(b.clone());
        (product.clone() * product).sum()
    };
    let samples = student.dims()[0];
    let whole = square(&student, &student) - square(&student, &teacher) * 2.0 + square(&teacher, &teacher);
    (whole * (FACTOR / (samples * tokens * tokens) as f64)).cast(dtype)
}

/// Cross-entropy of the softmax of products between tokens, mean over samples and rows, `[1]`; of outputs `[samples, tokens, width]`.
///
/// # Panics
/// Where the models differ in samples or tokens.
pub fn products(student: &Tensor<3>, teacher: &Tensor<3>) -> Tensor<1> {
    relation_cross_entropy(student, teacher, 1, 1, Compute::default())
}

/// Rows of unit length.
fn unit(x: &Tensor<3>) -> Tensor<3> {
    let length = (x.clone() * x.clone()).sum_dim(2).sqrt();
    x.clone() / length.clamp_min(LEAST_LENGTH)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn values(shape: [usize; 3], seed: f32) -> Tensor<3> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i as f32) * 0.37 + seed).sin())
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    #[test]
    fn small_differences_of_long_maps_are_not_lost() {
        let (shape, count) = ([1, 400, 4], 400.0);
        let teacher = values(shape, 0.3);
        let student = teacher.clone() + values(shape, 1.1) * 1e-3;
        let rows = |x: &Tensor<3>| -> Vec<Vec<f64>> {
            let values: Vec<f32> = x.clone().into_data().try_to_vec().unwrap();
            let unit = |row: &[f32]| {
                let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                row.iter().map(|x| f64::from(*x) / length).collect()
            };
            values.chunks_exact(4).map(unit).collect()
        };
        let cosine = |of: &[Vec<f64>], i: usize, j: usize| -> f64 {
            of[i].iter().zip(&of[j]).map(|(a, b)| a * b).sum()
        };
        let (own, other) = (rows(&student), rows(&teacher));
        let pairs = (0..400).flat_map(|i| (0..400).map(move |j| (i, j)));
        let differences = pairs.map(|(i, j)| (cosine(&own, i, j) - cosine(&other, i, j)).powi(2));
        let expected = FACTOR * differences.sum::<f64>() / (count * count);
        let found: f32 = cosines(&student, &teacher).into_scalar();
        assert!(
            (f64::from(found) - expected).abs() < 1e-3 * expected,
            "{found} {expected}"
        );
    }

    #[test]
    fn cosines_of_long_maps_are_those_of_short_ones() {
        // The loss has no sides; the student's width decides how it is computed, by pairs or by channels.
        let (wide, narrow) = (values([2, 6, 8], 0.3), values([2, 6, 5], 1.1));
        let by_pairs: f32 = cosines(&wide, &narrow).into_scalar();
        let by_channels: f32 = cosines(&narrow, &wide).into_scalar();
        assert!(
            by_pairs > 0.1 && (by_pairs - by_channels).abs() < 1e-4 * by_pairs,
            "{by_pairs} {by_channels}"
        );
        let same: f32 = cosines(&narrow, &narrow).into_scalar();
        assert!(same.abs() < 1e-4, "{same}");
    }
}
