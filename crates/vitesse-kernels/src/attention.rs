//! Attention over short sequences: all logits of a few rows at once, in the innermost cache.
//!
//! For each block of queries: products with all keys, softmax over the whole row, product with all values. The
//! probabilities never leave the cache, and the division by their sum waits until the result, which is smaller.

use std::ops::Range;

use crate::isa::{Isa, Kernel};
use crate::math::exp;
use crate::packed::Packed;
use crate::panels::{Element, Panels, Row, RowMut};
use crate::product::row_tiles;
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::{COLUMNS, MAX_ROWS, Operands, Scratch};

/// Keys and values of one head for a run of tokens.
#[derive(Debug)]
pub struct Segment<'a, T: Real> {
    /// One column for each token.
    pub keys: &'a Packed<T>,
    /// One row for each token.
    pub values: &'a Packed<T>,
}

/// What stands between the products of queries with keys and the softmax: [`Plain`] or a [`Bias`].
pub trait Between: sealed::Logits {}
impl<B: sealed::Logits> Between for B {}

mod sealed {
    use std::ops::Range;

    use super::Simd;

    /// Changes logits while they are in the first cache.
    pub trait Logits {
        /// That there is something for these queries, rows of `q`, and so many keys.
        fn check(&self, queries: Range<usize>, keys: usize);
        /// Changes the logits of some queries, the first of which is row `query` of `q`, and of `width` keys, the first of
        /// which is number `key` of all. What is past these keys has no meaning.
        #[doc(hidden)]
        fn tile<S: Simd>(&self, query: usize, key: usize, width: usize, logits: &mut [[f32; 32]]);
    }
}

/// Nothing: the plain attention.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl sealed::Logits for Plain {
    fn check(&self, _queries: Range<usize>, _keys: usize) {}
    #[inline(always)]
    fn tile<S: Simd>(&self, _query: usize, _key: usize, _width: usize, _logits: &mut [[f32; 32]]) {}
}

/// A sum: one number for each key, or for each pair of query and key. A key whose number is −∞ is not seen; each query has
/// to see one.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    values: &'a [f32],
    /// The row of `q` to which the first numbers belong.
    first: usize,
    /// From a query's numbers to the next one's.
    stride: usize,
    /// Numbers of a query that count.
    keys: usize,
}

impl<'a> Bias<'a> {
    /// The same for every query, `[keys]`.
    pub fn by_key(values: &'a [f32]) -> Self {
        Bias {
            values,
            first: 0,
            stride: 0,
            keys: values.len(),
        }
    }

    /// For each row of `q`, `[queries, keys]`.
    pub fn full(values: &'a [f32], keys: usize) -> Self {
        Bias {
            values,
            first: 0,
            stride: keys,
            keys,
        }
    }

    /// For each row of `q` from the row `first` on, `[queries, stride]`, of which the first `keys` numbers count. Where `stride` is a
    /// multiple of 32 they are added without looking at where they end.
    pub fn padded(values: &'a [f32], first: usize, stride: usize, keys: usize) -> Self {
        Bias {
            values,
            first,
            stride,
            keys,
        }
    }
}

impl sealed::Logits for Bias<'_> {
    fn check(&self, queries: Range<usize>, keys: usize) {
        assert!(self.keys >= keys && (self.stride == 0 || self.keys == keys && self.stride >= keys));
        if !queries.is_empty() {
            assert!(queries.start >= self.first);
            let rows = if self.stride == 0 {
                1
            } else {
                queries.end - self.first
            };
            assert!((rows - 1) * self.stride + keys.max(self.stride) <= self.values.len());
        }
    }
    #[inline(always)]
    fn tile<S: Simd>(&self, query: usize, key: usize, width: usize, logits: &mut [[f32; 32]]) {
        for (i, row) in logits.iter_mut().enumerate() {
            let values = &self.values[(query - self.first + i) * self.stride + key..];
            if width == COLUMNS || key + COLUMNS <= self.stride {
                let values = &values[..COLUMNS];
                for at in (0..COLUMNS).step_by(S::LANES) {
                    S::store(
                        S::add(S::load(&row[at..]), S::load(&values[at..])),
                        &mut row[at..],
                    );
                }
            } else {
                row.iter_mut().zip(values).for_each(|(x, value)| *x += value);
            }
        }
    }
}

/// Room for the logits and probabilities of a block of queries, and for values that come in parts.
#[derive(Debug)]
pub struct Attention<T: Real> {
    logits: Panels<f32>,
    probs: Panels<T>,
    values: Packed<T>,
}

impl<T: Real> Attention<T> {
    /// Room for `panels` panels of 32 keys.
    pub fn new(panels: usize) -> Self {
        Attention {
            logits: Panels::zeros(MAX_ROWS, panels),
            probs: Panels::zeros(MAX_ROWS, panels),
            values: Packed::zeros(0, 0),
        }
    }

    /// `out[row] = softmax(between(q[row] · keysᵀ)) · values` for one head and each of `rows`.
    ///
    /// Keys and values come in one or more segments, `segments(0)`, `segments(1)`, … up to the first `None`, as different
    /// threads have written them; how they are cut changes no bit of the result. The head's queries, already scaled, are the panels of `q` from `first` on; its result becomes the panels of `out`
    /// from `to` on, in the same rows.
    ///
    /// # Panics
    /// Where shapes do not fit.
    #[allow(clippy::too_many_arguments)]
    pub fn head<'a, B: Between>(
        &mut self,
        isa: Isa,
        q: &Panels<T>,
        first: usize,
        rows: Range<usize>,
        segments: &dyn Fn(usize) -> Option<Segment<'a, T>>,
        between: &B,
        out: &mut Panels<T>,
        to: usize,
    ) {
        let all = || (0..).map_while(segments);
        let keys = all().flat_map(|segment| &segment.keys.widths).sum();
        let columns = segments(0).map_or(0, |segment| segment.values.panels());
        assert!(keys > 0 && rows.end <= q.rows() && rows.end <= out.rows());
        let depths = segments(0).map_or(0, |segment| segment.keys.depths.len());
        assert!(first + depths <= q.panels() && to + columns <= out.panels());
        assert!(all().all(|s| s.keys.depths.len() == depths));
        assert!(all().all(|s| s.keys.panels() == s.values.depths.len() && s.values.panels() == columns));
        between.check(rows.clone(), keys);
        if segments(1).is_some() {
            join(all().map(|segment| segment.values), &mut self.values);
        }
        isa.run(Job {
            room: self,
            keys,
            q,
            first,
            rows,
            segments,
            between,
            out,
            to,
        });
    }
}

struct Job<'a, 's, T: Real, B> {
    room: &'a mut Attention<T>,
    keys: usize,
    q: &'a Panels<T>,
    first: usize,
    rows: Range<usize>,
    segments: &'a dyn Fn(usize) -> Option<Segment<'s, T>>,
    between: &'a B,
    out: &'a mut Panels<T>,
    to: usize,
}

impl<T: Real, B: Between> Kernel for Job<'_, '_, T, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Job {
            room:
                Attention {
                    logits,
                    probs,
                    values,
                },
            keys,
            q,
            first,
            rows,
            segments,
            between,
            out,
            to,
        } = self;
        let mut scratch = [[0f32; 32]; MAX_ROWS];
        let mut inverse = [0f32; MAX_ROWS];
        let first_values = segments(0).map(|segment| segment.values);
        let values = match first_values {
            Some(all) if segments(1).is_none() => all,
            _ => &*values,
        };
        // No more rows than a tile has: with 32 of them a row's panels would be 4096 bytes apart, and fall into one set of the first cache.
        let (most, panels) = (T::most_rows::<S>(), usize::div_ceil(keys, COLUMNS));
        logits.reshape(most, panels);
        probs.reshape(most, panels);
        S::begin();
        for block in row_tiles(rows.clone(), most) {
            let count = block.len();
            products::<S, T, B>((q, first), &block, segments, between, logits, 0, &mut scratch);
            end((&mut *logits, 0), keys, count, f32::NEG_INFINITY);
            for (row, inverse) in inverse[..count].iter_mut().enumerate() {
                *inverse =
                    1.0 / softmax::<S, T>(logits.row(0..panels, row), probs.row_mut(0..panels, row), panels);
            }
            weigh::<S, T>(
                (&*probs, 0),
                values,
                &inverse,
                (&mut *out, to),
                &block,
                &mut scratch,
            );
        }
        S::end();
    }
}

/// Products of some queries of a head with all keys, changed by `between`: panels of `logits` from `to` on.
#[inline(always)]
pub(crate) fn products<'s, S: Simd, T: Real, B: Between>(
    (q, first): (&Panels<T>, usize),
    block: &Range<usize>,
    segments: &dyn Fn(usize) -> Option<Segment<'s, T>>,
    between: &B,
    logits: &mut Panels<f32>,
    to: usize,
    scratch: &mut Scratch<f32>,
) {
    let (count, mut key) = (block.len(), 0);
    for segment in (0..).map_while(segments) {
        for panel in 0..segment.keys.panels() {
            let of = Operands::new((q, first), block.clone(), segment.keys, panel);
            let width = segment.keys.widths[panel];
            let (at, shift) = (to + key / COLUMNS, key % COLUMNS);
            if shift == 0 {
                let logits = logits.panel_mut(at);
                T::tile::<S>(of, logits);
                between.tile::<S>(block.start, key, width, &mut logits[..count]);
            } else {
                T::tile::<S>(of, scratch);
                between.tile::<S>(block.start, key, width, &mut scratch[..count]);
                // Each key has its place among all, so that rows are summed in one order.
                let here = width.min(COLUMNS - shift);
                for (row, from) in scratch[..count].iter().enumerate() {
                    logits.panel_mut(at)[row][shift..shift + here].copy_from_slice(&from[..here]);
                    if here < width {
                        let next = &mut logits.panel_mut(at + 1)[row];
                        next[..width - here].copy_from_slice(&from[here..width]);
                    }
                }
            }
            key += width;
        }
    }
}

/// Puts `value` past the last of so many keys, in `count` rows of the panels of a head, which begin with `first`.
#[inline(always)]
pub(crate) fn end<T: Element>((maps, first): (&mut Panels<T>, usize), keys: usize, count: usize, value: T) {
    if !keys.is_multiple_of(COLUMNS) {
        let last = &mut maps.panel_mut(first + keys / COLUMNS)[..count];
        last.iter_mut()
            .for_each(|row| row.as_mut()[keys % COLUMNS..].fill(value));
    }
}

/// The values of all tokens, one part after the other, as if they had been packed together.
pub(crate) fn join<'a, T: Real>(parts: impl Iterator<Item = &'a Packed<T>> + Clone, to: &mut Packed<T>) {
    let tokens = |part: &Packed<T>| part.depths.iter().sum::<usize>();
    let columns = parts.clone().next().map_or(0, |part| part.widths.iter().sum());
    to.reshape(parts.clone().map(tokens).sum(), columns);
    let (panels, len) = (to.panels(), to.depths.len() * T::WIDTH * COLUMNS);
    // A group of tokens lies together, column by column.
    let group = T::GROUP;
    let place = |token: usize| (token / group * COLUMNS) * group + token % group;
    for panel in 0..panels {
        let blocks = &mut to.blocks.as_mut_slice()[panel * len..(panel + 1) * len];
        let mut at: usize = 0;
        for part in parts.clone() {
            let (count, from) = (tokens(part), part.panel(panel));
            if at.is_multiple_of(group) {
                let whole = count.next_multiple_of(group) * COLUMNS;
                blocks[at * COLUMNS..at * COLUMNS + whole].copy_from_slice(&from[..whole]);
            } else {
                for token in 0..count {
                    let (from, to) = (&from[place(token)..], &mut blocks[place(at + token)..]);
                    for (to, from) in to
                        .iter_mut()
                        .step_by(group)
                        .zip(from.iter().step_by(group))
                        .take(COLUMNS)
                    {
                        *to = *from;
                    }
                }
            }
            at += count;
            if !at.is_multiple_of(group) {
                let after = blocks[place(at)..].iter_mut().step_by(group);
                after.take(COLUMNS).for_each(|x| *x = T::zeroed());
            }
        }
        blocks[at.next_multiple_of(group) * COLUMNS..].fill(T::zeroed());
    }
}

/// `exp(x − max)` of one row of logits, of so many panels, as probabilities yet to be divided by the sum, which is returned.
#[inline(always)]
pub(crate) fn softmax<S: Simd, T: Real>(
    logits: Row<'_, f32>,
    mut probs: RowMut<'_, T>,
    panels: usize,
) -> f32 {
    let mut most = [S::splat(f32::NEG_INFINITY); 2];
    for panel in 0..panels {
        let from = logits.at(panel);
        for at in (0..COLUMNS).step_by(2 * S::LANES) {
            // What is not a number may get lost here, but not below, where it makes the sum and so the whole row so.
            most[0] = S::max(most[0], S::load(&from[at..]));
            most[1] = S::max(most[1], S::load(&from[at + S::LANES..]));
        }
    }
    let most = S::splat(S::greatest(S::max(most[0], most[1])));
    let mut sums = [S::splat(0.0); 2];
    for panel in 0..panels {
        let (from, to) = (logits.at(panel), probs.at(panel).as_mut());
        for at in (0..COLUMNS).step_by(2 * S::LANES) {
            for (half, sum) in sums.iter_mut().enumerate() {
                let at = at + half * S::LANES;
                let e = exp::<S>(S::sub(S::load(&from[at..]), most));
                *sum = S::add(*sum, e);
                T::store::<S>(e, &mut to[at..]);
            }
        }
    }
    S::sum(S::add(sums[0], sums[1]))
}

/// Probabilities of the queries in `block`, the panels from `first` on, times the values of a head, each row times its factor:
/// the same rows of `out`, panels from `to` on.
#[inline(always)]
pub(crate) fn weigh<S: Simd, T: Real>(
    (probs, first): (&Panels<T>, usize),
    values: &Packed<T>,
    factors: &[f32],
    (out, to): (&mut Panels<T>, usize),
    block: &Range<usize>,
    scratch: &mut Scratch<f32>,
) {
    for panel in 0..values.panels() {
        let of = Operands::new((probs, first), 0..block.len(), values, panel);
        T::tile::<S>(of, scratch);
        let rows = &mut out.panel_mut(to + panel)[block.clone()];
        for ((sums, &factor), row) in scratch.iter().zip(factors).zip(rows) {
            let row = row.as_mut();
            for at in (0..COLUMNS).step_by(S::LANES) {
                T::store::<S>(S::mul(S::load(&sums[at..]), S::splat(factor)), &mut row[at..]);
            }
        }
    }
}
