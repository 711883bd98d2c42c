//! What is done to the maps of a block of queries, head after head in blocks of 32 keys.

use super::super::terms::Added;
use super::super::{EDGE, Job, counted};
use super::{Common, SLOTS};
use crate::isa::Kernel;
use crate::math::exp;
use crate::simd::Simd;
use crate::train::blocks::{AREA, Block, Kind, SIDE, product};

/// Products of some queries with each bucket, or sums over the pairs of each bucket.
pub(super) type Slots = [[f32; SLOTS]; SIDE];

/// The logits of one head for the queries of a tile before heads are mixed.
pub(super) struct Logits<'a, K: Kind> {
    pub(super) common: &'a Common<'a>,
    pub(super) job: &'a Job<'a, K>,
    pub(super) bias: Option<Added<'a>>,
    pub(super) tile: usize,
    /// Of the tile.
    pub(super) queries: &'a [K::Element],
    /// All of the head, transposed.
    pub(super) keys: &'a [K::Element],
    /// Its table; empty where there is none.
    pub(super) table: &'a [K::Element],
    pub(super) maps: &'a mut [Block],
    /// Room for the products with buckets. What is past the last of them stays 0.
    pub(super) slots: &'a mut Slots,
}

impl<K: Kind> Kernel for Logits<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Logits {
            common,
            job,
            bias,
            maps,
            slots,
            ..
        } = self;
        let (first, sizes) = (self.tile * SIDE, common.sizes());
        let (rows, n) = (SIDE.min(job.tokens - first), maps.len());
        let deep = counted::<K>(job.head.qk_width);
        let count = common.of.positions.map_or(0, |positions| positions.count);
        let mut found = Block::ZERO;
        let one = sizes.qk * K::PACKED;
        for i in 0..n + sizes.buckets {
            // First all keys, then all buckets.
            let (right, width, to) = match maps.get_mut(i) {
                Some(map) => (&self.keys[i * one..], job.tokens - i * SIDE, map),
                None => (&self.table[(i - n) * one..], count - (i - n) * SIDE, &mut found),
            };
            product::<S, K>(self.queries, right, &deep, [rows, SIDE.min(width)], to);
            if let Some(panel) = i.checked_sub(n) {
                for (to, from) in slots[..rows].iter_mut().zip(&found.0) {
                    to[panel * SIDE..][..SIDE].copy_from_slice(from);
                }
            }
        }
        let scale = S::splat(job.scale);
        for row in 0..rows {
            let (query, slots) = (first + row, &slots[row]);
            for (i, map) in maps.iter_mut().enumerate() {
                let map = &mut map.0[row];
                let mut found = [0f32; SIDE];
                if let Some(buckets) = common.buckets.get(query * common.stride + i * SIDE..) {
                    for (to, bucket) in found.iter_mut().zip(buckets) {
                        *to = slots[usize::from(*bucket)];
                    }
                }
                for at in (0..SIDE).step_by(S::LANES) {
                    let x = S::mul(S::add(S::load(&map[at..]), S::load(&found[at..])), scale);
                    let x = match &bias {
                        Some(bias) => bias.to::<S>(query, i * SIDE + at, x),
                        None => x,
                    };
                    S::store(x, &mut map[at..]);
                }
            }
            S::awake();
        }
    }
}

/// Heads mixed: `rows` rows of their maps, of `n` blocks each.
pub(super) struct Mix<'a> {
    /// `[heads, heads + 1]`, the last number of a row being added.
    pub(super) weights: &'a [f32],
    pub(super) from: &'a [Block],
    pub(super) to: &'a mut [Block],
    pub(super) n: usize,
    pub(super) rows: usize,
}

impl Kernel for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        /// Results at a time.
        const TOGETHER: usize = 4;
        let Mix {
            weights,
            from,
            to,
            n,
            rows,
        } = self;
        let heads = from.len() / n;
        let width = heads + 1;
        for i in 0..n {
            for first in (0..heads).step_by(TOGETHER) {
                let own = |h: usize| &weights[(first + h).min(heads - 1) * width..][..width];
                let own = [own(0), own(1), own(2), own(3)];
                for at in (0..rows * SIDE).step_by(2 * S::LANES) {
                    let mut sums = [[S::splat(0.0); 2]; TOGETHER];
                    for (sum, weights) in sums.iter_mut().zip(own) {
                        *sum = [S::splat(weights[heads]); 2];
                    }
                    for g in 0..heads {
                        let from = &from[g * n + i].0.as_flattened()[at..][..2 * S::LANES];
                        let x = [S::load(from), S::load(&from[S::LANES..])];
                        for (sum, weights) in sums.iter_mut().zip(own) {
                            let weight = S::splat(weights[g]);
                            *sum = [S::mul_add(weight, x[0], sum[0]), S::mul_add(weight, x[1], sum[1])];
                        }
                    }
                    for (h, sum) in sums.into_iter().enumerate().take(heads - first) {
                        let to = &mut to[(first + h) * n + i].0.as_flattened_mut()[at..][..2 * S::LANES];
                        S::store(sum[0], to);
                        S::store(sum[1], &mut to[S::LANES..]);
                    }
                }
                S::awake();
            }
        }
    }
}

/// Adds the sums over all pairs of `a[h] · b[g]`, and behind them those of `a[h]`.
pub(super) struct Dots<'a> {
    pub(super) a: &'a [Block],
    pub(super) b: &'a [Block],
    pub(super) n: usize,
    pub(super) rows: usize,
    /// `[heads, heads + 1]`
    pub(super) sums: &'a mut [f64],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        /// Heads at a time.
        const TOGETHER: usize = 4;
        let Dots { a, b, n, rows, sums } = self;
        let heads = a.len() / n;
        for (h, sums) in sums.chunks_exact_mut(heads + 1).enumerate() {
            for first in (0..heads).step_by(TOGETHER) {
                let mut dots = [S::splat(0.0); TOGETHER];
                let mut sum = S::splat(0.0);
                for i in 0..n {
                    let a = &a[h * n + i].0.as_flattened()[..rows * SIDE];
                    let other =
                        |g: usize| &b[(first + g).min(heads - 1) * n + i].0.as_flattened()[..rows * SIDE];
                    let others = [other(0), other(1), other(2), other(3)];
                    for at in (0..rows * SIDE).step_by(S::LANES) {
                        let x = S::load(&a[at..]);
                        sum = S::add(sum, x);
                        for (dot, other) in dots.iter_mut().zip(others) {
                            *dot = S::mul_add(x, S::load(&other[at..]), *dot);
                        }
                    }
                }
                for (to, dot) in sums[first..heads].iter_mut().zip(dots) {
                    *to += f64::from(S::sum(dot));
                }
                if first == 0 {
                    sums[heads] += f64::from(S::sum(sum));
                }
                S::awake();
            }
        }
    }
}

/// Turns a row of one head's mixed logits into probabilities, with what is added to them and the log of the sum of their exponentials; zeros
/// past the last key. The row comes with the number of its query.
#[inline(always)]
pub(super) fn probabilities<S: Simd>(
    maps: &mut [Block],
    [row, query]: [usize; 2],
    columns: usize,
    mask: Option<Added<'_>>,
    log: f32,
) {
    let log = S::splat(log);
    for (i, map) in maps.iter_mut().enumerate() {
        let row = &mut map.0[row];
        let width = columns - i * SIDE;
        for at in (0..SIDE).step_by(S::LANES) {
            let mut x = S::load(&row[at..]);
            if let Some(mask) = &mask {
                x = mask.to::<S>(query, i * SIDE + at, x);
            }
            if width < SIDE {
                x = S::add(x, S::load(&EDGE[SIDE - width + at..]));
            }
            S::store(exp::<S>(S::sub(x, log)), &mut row[at..]);
        }
    }
}

/// Turns a row of gradients of probabilities into those of their logits.
#[inline(always)]
pub(super) fn slopes<S: Simd>(probs: &[Block], gradients: &mut [Block], row: usize) {
    let mut dot = S::splat(0.0);
    for (p, g) in probs.iter().zip(gradients.iter()) {
        for at in (0..SIDE).step_by(S::LANES) {
            dot = S::mul_add(S::load(&p.0[row][at..]), S::load(&g.0[row][at..]), dot);
        }
    }
    let dot = S::splat(S::sum(dot));
    for (p, g) in probs.iter().zip(gradients) {
        let (p, g) = (&p.0[row], &mut g.0[row]);
        for at in (0..SIDE).step_by(S::LANES) {
            let slope = S::mul(S::load(&p[at..]), S::sub(S::load(&g[at..]), dot));
            S::store(slope, &mut g[at..]);
        }
    }
}

/// The sums of the gradients of one head's logits over the pairs of each bucket, a row for each query; rows past `rows` are zero.
#[inline(always)]
pub(super) fn by_bucket(
    common: &Common<'_>,
    gradients: &[Block],
    first: usize,
    rows: usize,
    slots: &mut Slots,
) {
    /// Queries at a time: neighbours among the keys often have one bucket, and an addition would wait for the last.
    const TOGETHER: usize = 8;
    slots.iter_mut().for_each(|row| row.fill(0.0));
    let tokens = common.of.attention.tokens;
    for row in (0..rows).step_by(TOGETHER) {
        // Rows past the last are those of the last once more, of gradients that are zero.
        let buckets = |i: usize| {
            let query = (first + row + i).min(tokens - 1);
            &common.buckets[query * common.stride..][..common.stride]
        };
        let buckets: [&[u8]; TOGETHER] = std::array::from_fn(buckets);
        for (i, block) in gradients.iter().enumerate() {
            let from: [&[f32; SIDE]; TOGETHER] = std::array::from_fn(|r| &block.0[row + r]);
            let buckets: [&[u8]; TOGETHER] = std::array::from_fn(|r| &buckets[r][i * SIDE..][..SIDE]);
            for key in 0..SIDE.min(tokens - i * SIDE) {
                for (r, slots) in slots[row..row + TOGETHER].iter_mut().enumerate() {
                    slots[usize::from(buckets[r][key])] += from[r][key];
                }
            }
        }
    }
}

/// Makes rows past the last zero.
pub(super) fn end(maps: &mut [Block], rows: usize) {
    if rows < SIDE {
        maps.iter_mut()
            .for_each(|map| map.0.as_flattened_mut()[rows * SIDE..AREA].fill(0.0));
    }
}
