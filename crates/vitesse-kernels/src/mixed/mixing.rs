//! Heads mixed: each map of a row a weighted sum of all heads' maps of it.

use std::ops::Range;

use crate::panels::{Row, RowMut};
use crate::product::even_parts;
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::COLUMNS;

/// Results at a time: with two vectors of each, as many sums as AVX2 has room for beside their operands.
const TOGETHER: usize = 4;

/// One row of the maps of all heads, mixed: `weights` is `[heads, heads + 1]`, the last number of a row being added.
#[inline(always)]
pub(super) fn mix<S: Simd, T: Real>(
    from: Row<'_, f32>,
    mut to: RowMut<'_, T>,
    (heads, panels): (usize, usize),
    weights: &[f32],
) {
    for part in even_parts(0..heads, TOGETHER) {
        let weights = &weights[part.start * (heads + 1)..];
        let to = &mut to;
        match part.len() {
            1 => mix_some::<S, T, 1>(from, to, part, (heads, panels), weights),
            2 => mix_some::<S, T, 2>(from, to, part, (heads, panels), weights),
            3 => mix_some::<S, T, 3>(from, to, part, (heads, panels), weights),
            _ => mix_some::<S, T, TOGETHER>(from, to, part, (heads, panels), weights),
        }
    }
}

/// The `N` results of some heads, with their weights.
// Without closures: those that a function of the standard library calls would not be compiled for the vectors' instructions.
#[inline(always)]
fn mix_some<S: Simd, T: Real, const N: usize>(
    from: Row<'_, f32>,
    to: &mut RowMut<'_, T>,
    part: Range<usize>,
    (heads, panels): (usize, usize),
    weights: &[f32],
) {
    let mut own = [&weights[..0]; N];
    for (own, weights) in own.iter_mut().zip(weights.chunks_exact(heads + 1)) {
        *own = weights;
    }
    for panel in 0..panels {
        for at in (0..COLUMNS).step_by(2 * S::LANES) {
            let mut sums = [[S::splat(0.0); 2]; N];
            for (sums, weights) in sums.iter_mut().zip(own) {
                *sums = [S::splat(weights[heads]); 2];
            }
            for h in 0..heads {
                let from = from.at(h * panels + panel);
                let x = [S::load(&from[at..]), S::load(&from[at + S::LANES..])];
                for (sums, weights) in sums.iter_mut().zip(own) {
                    let weight = S::splat(weights[h]);
                    sums[0] = S::mul_add(weight, x[0], sums[0]);
                    sums[1] = S::mul_add(weight, x[1], sums[1]);
                }
            }
            for (sums, head) in sums.into_iter().zip(part.clone()) {
                let to = to.at(head * panels + panel).as_mut();
                T::store::<S>(sums[0], &mut to[at..]);
                T::store::<S>(sums[1], &mut to[at + S::LANES..]);
            }
        }
    }
}
