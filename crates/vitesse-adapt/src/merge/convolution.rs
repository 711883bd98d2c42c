//! Folding into convolutions, for adapters in front of one.
//!
//! A map `x ↦ M x + m` of each pixel before a dense convolution folds into its kernel and bias. Before a depth-wise one it
//! makes a dense kernel. Where the convolution pads with zeros, the fold is exact only if the *input* is padded with the
//! vector `p` that the map sends to zero: padded pixels are zero after the adapter, so they carry no `m`.

use super::affine::Affine;
use super::matrix::Matrix;

/// A depth-wise kernel `[channels, taps]` and its bias behind `map`: the dense kernel `[channels, channels, taps]`, the
/// bias, and the vector with which the input must be padded in the place of zeros (`None` where `M` is singular).
pub fn depthwise_after(
    map: &Affine,
    kernel: &Matrix,
    bias: &[f64],
) -> (Vec<f64>, Vec<f64>, Option<Vec<f64>>) {
    let (channels, taps) = (kernel.rows, kernel.columns);
    let dense = map.dense();
    let mut out = Vec::with_capacity(channels * channels * taps);
    for c in 0..channels {
        for d in 0..channels {
            let factor = dense.row(c)[d];
            out.extend(kernel.row(c).iter().map(|k| k * factor));
        }
    }
    let bias = (0..channels)
        .map(|c| bias[c] + map.shift[c] * kernel.row(c).iter().sum::<f64>())
        .collect();
    // The inverse sends 0 to −M⁻¹ m, which `map` sends to 0.
    let padding = map.inverse().0.map(|inverse| inverse.shift);
    (out, bias, padding)
}
