//! What the tests of training's segments need: limits of their differences.

use vitesse_kernels::train::{Math, Precision};

use super::isas;

/// The greatest difference, as a share of the greatest value.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let most = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0f64, |most, x| {
            // What is no number stays.
            if most.is_nan() || x.abs() <= most {
                most
            } else {
                x.abs()
            }
        })
    };
    let pairs = found.iter().zip(expected);
    let apart = most(&mut pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)));
    apart / most(&mut expected.iter().map(|&x| f64::from(x))).max(1e-3)
}

pub fn agree(what: &str, math: Math, found: &[f32], expected: &[f32]) {
    agree_within(1.0, what, math, found, expected);
}

/// The same with a limit so many times as far: of sums that nearly cancel.
pub fn agree_within(factor: f64, what: &str, math: Math, found: &[f32], expected: &[f32]) {
    let limit = match math.precision {
        Precision::F32 => 3e-6,
        Precision::Bf16 => 2e-2,
    };
    let apart = difference(found, expected);
    assert!(apart <= factor * limit, "{what}, {math:?}: {apart:e}");
}

pub fn maths() -> Vec<Math> {
    let all = isas().into_iter();
    all.flat_map(|isa| [Precision::F32, Precision::Bf16].map(|precision| Math { isa, precision }))
        .collect()
}
