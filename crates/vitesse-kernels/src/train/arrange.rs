//! Rows brought into another order, image by image.

use rayon::prelude::*;

/// For each row of `order` that one of `x` `[images, rows, width]`, or zeros: `[images, order, width]`.
///
/// # Panics
/// Where shapes do not fit, or `order` names a row that is not there.
pub fn arrange(x: &[f32], rows: usize, width: usize, order: &[Option<usize>]) -> Vec<f32> {
    let (input, output) = (rows * width, order.len() * width);
    assert!(input > 0 && output > 0 && x.len().is_multiple_of(input));
    let mut out = vec![0.0; x.len() / input * output];
    out.par_chunks_mut(output)
        .zip(x.par_chunks(input))
        .for_each(|(out, x)| {
            for (out, row) in out.chunks_exact_mut(width).zip(order) {
                if let Some(row) = row {
                    out.copy_from_slice(&x[row * width..][..width]);
                }
            }
        });
    out
}

/// The gradient of [`arrange`]'s `x` from that of what it returned.
///
/// # Panics
/// As [`arrange`].
pub fn arrange_backward(grad: &[f32], rows: usize, width: usize, order: &[Option<usize>]) -> Vec<f32> {
    let (input, output) = (rows * width, order.len() * width);
    assert!(input > 0 && output > 0 && grad.len().is_multiple_of(output));
    let mut out = vec![0.0; grad.len() / output * input];
    out.par_chunks_mut(input)
        .zip(grad.par_chunks(output))
        .for_each(|(out, grad)| {
            for (grad, row) in grad.chunks_exact(width).zip(order) {
                if let Some(row) = row {
                    let out = &mut out[row * width..][..width];
                    out.iter_mut().zip(grad).for_each(|(out, grad)| *out += grad);
                }
            }
        });
    out
}
