//! Operations a second in f32: products of square matrices, through the backend that runs the models.

use std::time::Instant;

use burn::tensor::{Device, Tensor};

use crate::cli::failure::{Failure, Result};

/// Rows and columns.
const SIDE: usize = 1024;
/// How often the product is made; the fastest counts.
const ROUNDS: usize = 8;

/// Floating-point operations a second (a multiply-add is two) that `threads` threads reach together.
pub(super) fn measure(threads: usize) -> Result<f64> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool =
        pool.map_err(|error| Failure::new("E_THREADS", format!("cannot start {threads} threads: {error}")))?;
    Ok(pool.install(|| {
        let device = Device::flex();
        let a = Tensor::<2>::ones([SIDE, SIDE], &device);
        let b = Tensor::<2>::ones([SIDE, SIDE], &device);
        let rounds = (0..ROUNDS).map(|_| {
            let begun = Instant::now();
            let product = a.clone().matmul(b.clone());
            // The result is asked for, so it has been computed.
            drop(product.into_data());
            begun.elapsed().as_secs_f64()
        });
        let fastest = rounds.fold(f64::INFINITY, f64::min);
        2.0 * (SIDE as f64).powi(3) / fastest
    }))
}
