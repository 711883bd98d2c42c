//! What the tests of several kernels need.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[cfg(feature = "train")]
pub mod training;

use std::ops::Range;

use vitesse_kernels::{Isa, Panels, Real, panels_of};
use vitesse_rng::{Key, Rng};

/// Every level that this processor has. The portable one comes first.
pub fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect()
}

pub fn rng(test: &str, case: u64) -> Rng {
    Key::new(7).with(test).at(case).rng()
}

/// `low ..= high`
pub fn between(rng: &mut Rng, low: usize, high: usize) -> usize {
    low + rng.below(high - low + 1)
}

pub fn normals(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.normal() as f32).collect()
}

/// Widths that add up to `total`: one, or several heads', each of which begins a new panel.
pub fn widths(rng: &mut Rng, total: usize) -> Vec<usize> {
    let (mut widths, mut left) = (Vec::new(), total);
    if rng.bernoulli(0.5) {
        return vec![total];
    }
    while left > 0 {
        let width = between(rng, 1, left.min(70));
        widths.push(width);
        left -= width;
    }
    widths
}

/// Where each column lies: its panel and its place there.
pub fn places(columns: &[Range<usize>]) -> Vec<(usize, usize)> {
    let each = columns.iter().enumerate();
    each.flat_map(|(panel, columns)| (0..columns.len()).map(move |lane| (panel, lane)))
        .collect()
}

/// `values` `[rows, columns]` in panels; what is past the last column of a panel is `padding`.
pub fn panels<T: Real>(values: &[f32], rows: usize, columns: &[Range<usize>], padding: f32) -> Panels<T> {
    let width = columns.last().map_or(0, |columns| columns.end);
    let mut out = Panels::zeros(rows, columns.len());
    for row in 0..rows {
        for at in 0..columns.len() * 32 {
            out.set(row, at, T::from_f32(padding));
        }
        for (column, (panel, lane)) in places(columns).into_iter().enumerate() {
            out.set(row, panel * 32 + lane, T::from_f32(values[row * width + column]));
        }
    }
    out
}

/// A vector in panels, zero past the last column of each.
pub fn row_of(values: &[f32], columns: &[Range<usize>]) -> Vec<[f32; 32]> {
    let mut out = vec![[0.0; 32]; columns.len()];
    for (value, (panel, lane)) in values.iter().zip(places(columns)) {
        out[panel][lane] = *value;
    }
    out
}

/// The columns of a plain matrix.
pub fn plain(columns: usize) -> Vec<Range<usize>> {
    panels_of([columns])
}

/// All elements that count, and then all of the padding.
pub fn bits(x: &Panels<f32>) -> Vec<u32> {
    (0..x.rows())
        .flat_map(|row| (0..x.panels() * 32).map(move |at| x.at(row, at).to_bits()))
        .collect()
}

/// That `found` is `expected` within `tolerance`, and not finite where that is not.
#[track_caller]
pub fn assert_near(found: f32, expected: f64, tolerance: f64, what: &dyn Fn() -> String) {
    if expected.is_finite() {
        let error = (f64::from(found) - expected).abs();
        assert!(
            error <= tolerance,
            "{}: {found} for {expected}, allowed {tolerance:e}",
            what()
        );
    } else {
        assert!(!found.is_finite(), "{}: {found} for {expected}", what());
    }
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// Calls and asserts that it panics; returns the message.
#[track_caller]
pub fn refused(what: &str, call: impl FnOnce()) -> String {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let Err(panic) = result else {
        panic!("{what} was not refused")
    };
    match panic.downcast::<&str>() {
        Ok(text) => text.to_string(),
        Err(panic) => panic
            .downcast::<String>()
            .map_or_else(|_| String::new(), |text| *text),
    }
}
