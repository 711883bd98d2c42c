//! Heads mixed: each map of a row a weighted sum of all heads' maps of it.

use std::ops::Range;

use crate::panels::{Row, RowMut};
use crate::product::even_parts;
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::COLUMNS;

/// Results at a time: with two vectors of each, as many sums as AVX2 has room for beside their operands.
const TOGETHER: usize = 4;

/// How the maps of all heads are mixed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixing<'a> {
    pub(super) heads: usize,
    /// Of each map.
    pub(super) panels: usize,
    /// `[heads + 1, heads]`: how much of a head's map each result has, and what is added to it.
    pub(super) weights: &'a [f32],
}

impl Mixing<'_> {
    /// One row of the maps of all heads, mixed; each map is multiplied with its factor before.
    #[inline(always)]
    pub(super) fn run<S: Simd, T: Real>(
        &self,
        from: Row<'_, f32>,
        factors: Option<&[f32]>,
        mut to: RowMut<'_, T>,
    ) {
        for part in even_parts(0..self.heads, TOGETHER) {
            match part.len() {
                1 => self.some::<S, T, 1>(part, from, factors, &mut to),
                2 => self.some::<S, T, 2>(part, from, factors, &mut to),
                3 => self.some::<S, T, 3>(part, from, factors, &mut to),
                _ => self.some::<S, T, TOGETHER>(part, from, factors, &mut to),
            }
        }
    }

    /// The `N` results of some heads.
    // Without closures that a function of the standard library calls: they would not be compiled for the vectors' instructions.
    #[inline(always)]
    fn some<S: Simd, T: Real, const N: usize>(
        &self,
        part: Range<usize>,
        from: Row<'_, f32>,
        factors: Option<&[f32]>,
        to: &mut RowMut<'_, T>,
    ) {
        let Mixing {
            heads,
            panels,
            weights,
        } = *self;
        let (weights, shifts) = weights.split_at(heads * heads);
        for panel in 0..panels {
            for at in (0..COLUMNS).step_by(2 * S::LANES) {
                let mut sums = [[S::splat(0.0); 2]; N];
                for (sums, &shift) in sums.iter_mut().zip(&shifts[part.clone()]) {
                    *sums = [S::splat(shift); 2];
                }
                for (h, row) in weights.chunks_exact(heads).enumerate() {
                    let from = from.at(h * panels + panel);
                    let (mut x, mut y) = (S::load(&from[at..]), S::load(&from[at + S::LANES..]));
                    if let Some(factors) = factors {
                        let factor = S::splat(factors[h]);
                        (x, y) = (S::mul(x, factor), S::mul(y, factor));
                    }
                    for (sums, &weight) in sums.iter_mut().zip(&row[part.start..][..N]) {
                        let weight = S::splat(weight);
                        sums[0] = S::mul_add(weight, x, sums[0]);
                        sums[1] = S::mul_add(weight, y, sums[1]);
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
}
