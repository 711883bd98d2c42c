//! Attention whose maps depend on those of other heads: all heads of a few rows at once.
//!
//! For each block of queries: products of all heads with all keys, what relative positions add, the heads mixed, masks, softmax, the heads
//! mixed again, products with the values. The maps of a block stay in the second cache.

use std::ops::Range;

use crate::attention::{Plain, Segment, end, join, products, scratch_of, softmax, weigh};
use crate::isa::{Isa, Kernel};
use crate::packed::Packed;
use crate::panels::Panels;
use crate::product::row_tiles;
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::{COLUMNS, MAX_ROWS, Operands};

/// A slot for every `u16`, so that look-ups need no bounds check; the last stays 0, for pairs without a bucket.
const PLACES: usize = 1 << 16;

/// The most buckets of a table: whole panels of them leave the last place free.
pub const MOST_BUCKETS: usize = PLACES - COLUMNS;

/// What is done to the maps of a run of queries. Queries are counted as keys are: `query` is the number of the first.
#[derive(Debug, Clone, Copy)]
pub struct Mixed<'a, T: Real> {
    /// Where each head's columns lie.
    pub heads: &'a [Columns],
    /// The number of the first query among the keys.
    pub query: usize,
    /// What is looked up for each query.
    pub positions: Option<Positions<'a, T>>,
    /// What is added to the logits of each head: `[heads][queries, stride]`.
    pub bias: Option<Tables<'a>>,
    /// How the logits of the heads are mixed: `[heads, heads + 1]`, the last number of a row being added.
    pub before: Option<&'a [f32]>,
    /// What is added to the logits of all heads after that: `[queries, stride]`.
    pub mask: Option<Tables<'a>>,
    /// How probabilities are mixed, as `before`.
    pub after: Option<&'a [f32]>,
}

/// The columns of a head: its first panel among the queries and among the results.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// Of the queries.
    pub q: usize,
    /// Of the results.
    pub out: usize,
}

/// Numbers for pairs of a query and a key.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// All of them.
    pub values: &'a [Vec<f32>],
    /// From a query to the next: a multiple of 32 that is no less than the number of keys.
    pub stride: usize,
}

/// Numbers that depend on the query and on the bucket of a pair: `logit[i, j] += (q[i] · table)[bucket(i, j)]`.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a, T: Real> {
    /// For each head, or for all, packed as keys are: a column for each bucket, of which there are at most [`MOST_BUCKETS`].
    pub tables: &'a [Packed<T>],
    /// `[queries, stride]`; [`u16::MAX`] for a pair that has none.
    pub buckets: &'a [u16],
    /// As [`Tables::stride`].
    pub stride: usize,
}

/// Room for the maps of a block of queries.
#[derive(Debug)]
pub struct MixedAttention<T: Real> {
    /// Two sets of maps, of one head after the other.
    maps: [Panels<f32>; 2],
    probs: Panels<T>,
    /// Products of a block of queries with each bucket of a table, and those of one query.
    by_bucket: Panels<f32>,
    row: Vec<f32>,
    /// The weights of a row's mixing.
    weights: Vec<f32>,
    inverse: Vec<f32>,
    values: Vec<Packed<T>>,
}

impl<T: Real> MixedAttention<T> {
    /// No room yet.
    pub fn new() -> Self {
        MixedAttention {
            maps: [Panels::zeros(0, 0), Panels::zeros(0, 0)],
            probs: Panels::zeros(0, 0),
            by_bucket: Panels::zeros(0, 0),
            row: Vec::new(),
            weights: Vec::new(),
            inverse: Vec::new(),
            values: Vec::new(),
        }
    }

    /// The results of all heads for each of `rows`, in the same rows of `out`. Keys and values of head `h` come in segments,
    /// `segments(h, 0)`, `segments(h, 1)`, … up to the first `None`; how they are cut changes no bit of the result.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn run<'a>(
        &mut self,
        isa: Isa,
        q: &Panels<T>,
        rows: Range<usize>,
        segments: &dyn Fn(usize, usize) -> Option<Segment<'a, T>>,
        how: &Mixed<'_, T>,
        out: &mut Panels<T>,
    ) {
        let heads = how.heads.len();
        let keys_of = |h| -> usize {
            let all = (0..).map_while(|i| segments(h, i));
            all.flat_map(|segment| &segment.keys.widths).sum()
        };
        let keys = keys_of(0);
        let panels = keys.div_ceil(COLUMNS);
        assert!(keys > 0 && rows.end <= q.rows() && rows.end <= out.rows());
        for (h, columns) in how.heads.iter().enumerate() {
            let all = || (0..).map_while(|i| segments(h, i));
            let (depths, wide) = segments(h, 0).map_or((0, 0), |s| (s.keys.depths.len(), s.values.panels()));
            assert!(
                keys_of(h) == keys && columns.q + depths <= q.panels() && columns.out + wide <= out.panels()
            );
            assert!(all().all(|s| s.keys.depths.len() == depths && s.values.panels() == wide));
            assert!(all().all(|s| s.keys.panels() == s.values.depths.len()));
            // Whether values are joined is decided for all heads at once.
            assert!(segments(h, 1).is_some() == segments(0, 1).is_some());
        }
        how.check(
            rows.len(),
            keys,
            segments(0, 0).map_or(0, |s| s.keys.depths.len()),
        );
        for maps in &mut self.maps {
            maps.reshape(MAX_ROWS, heads * panels);
        }
        self.probs.reshape(MAX_ROWS, heads * panels);
        if let Some(positions) = &how.positions {
            let wide = positions.tables[0].panels();
            self.by_bucket.reshape(MAX_ROWS, wide);
            self.row.resize(PLACES, 0.0);
        }
        self.weights.resize(heads * (heads + 1), 0.0);
        self.inverse.resize(heads * MAX_ROWS, 0.0);
        if segments(0, 1).is_some() {
            self.values.resize_with(heads, || Packed::zeros(0, 0));
            for (h, values) in self.values.iter_mut().enumerate() {
                let all = (0..).map_while(|i| segments(h, i));
                join(all.map(|segment| segment.values), values);
            }
        }
        isa.run(Job {
            room: self,
            keys,
            q,
            rows,
            segments,
            how,
            out,
        });
    }
}

impl<T: Real> Default for MixedAttention<T> {
    fn default() -> Self {
        MixedAttention::new()
    }
}

impl<T: Real> Mixed<'_, T> {
    /// That there is something for so many queries and keys.
    fn check(&self, queries: usize, keys: usize, depths: usize) {
        let (heads, last) = (self.heads.len(), self.query + queries);
        let fits = |stride: usize, len: usize| {
            stride >= keys && stride.is_multiple_of(COLUMNS) && last * stride <= len
        };
        for mixing in [self.before, self.after].into_iter().flatten() {
            assert!(mixing.len() == heads * (heads + 1));
        }
        if let Some(bias) = &self.bias {
            assert!(bias.values.len() == heads);
            assert!(bias.values.iter().all(|values| fits(bias.stride, values.len())));
        }
        if let Some(mask) = &self.mask {
            assert!(mask.values.len() == 1 && fits(mask.stride, mask.values[0].len()));
        }
        if let Some(positions) = &self.positions {
            assert!([1, heads].contains(&positions.tables.len()));
            let widths = &positions.tables[0].widths;
            let tables = || positions.tables.iter();
            assert!(tables().all(|table| table.widths == *widths && table.depths.len() == depths));
            assert!(widths.len() * COLUMNS <= MOST_BUCKETS);
            assert!(fits(positions.stride, positions.buckets.len()));
            // Places past the last bucket hold what another layer left there. One more than `u16::MAX` is 0 here.
            let buckets = &positions.buckets[self.query * positions.stride..last * positions.stride];
            let most = buckets
                .iter()
                .fold(0, |most: u16, &bucket| most.max(bucket.wrapping_add(1)));
            assert!(usize::from(most) <= widths.iter().sum());
        }
    }
}

struct Job<'a, 's, T: Real> {
    room: &'a mut MixedAttention<T>,
    keys: usize,
    q: &'a Panels<T>,
    rows: Range<usize>,
    segments: &'a dyn Fn(usize, usize) -> Option<Segment<'s, T>>,
    how: &'a Mixed<'a, T>,
    out: &'a mut Panels<T>,
}

impl<T: Real> Kernel for Job<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Job {
            room,
            keys,
            q,
            rows,
            segments,
            how,
            out,
        } = self;
        let (heads, panels) = (how.heads.len(), keys.div_ceil(COLUMNS));
        let of = |h: usize| h * panels..(h + 1) * panels;
        let mut scratch = [[0f32; 32]; MAX_ROWS];
        let joined = segments(0, 1).is_some();
        S::begin();
        for block in row_tiles(rows.clone(), T::most_rows::<S>()) {
            let (count, query) = (block.len(), how.query + block.start - rows.start);
            let [maps, other] = &mut room.maps;
            for (h, head) in how.heads.iter().enumerate() {
                let segments = |i: usize| segments(h, i);
                products::<S, T, Plain>(
                    (q, head.q),
                    &block,
                    &segments,
                    &Plain,
                    maps,
                    of(h).start,
                    &mut scratch,
                );
                if let Some(bias) = &how.bias {
                    add::<S>(
                        maps,
                        of(h),
                        count,
                        &bias.values[h][query * bias.stride..],
                        bias.stride,
                    );
                }
                if let Some(positions) = &how.positions {
                    let table = &positions.tables[if positions.tables.len() == 1 { 0 } else { h }];
                    by_buckets::<S, T>((q, head.q), &block, table, &mut room.by_bucket);
                    let buckets = &positions.buckets[query * positions.stride..];
                    let found = (&room.by_bucket, &mut room.row);
                    look_up(
                        found,
                        maps,
                        of(h),
                        count,
                        (buckets, positions.stride, table.widths.iter().sum()),
                    );
                }
            }
            let (maps, other) = match how.before {
                None => (maps, other),
                Some(weights) => {
                    for row in 0..count {
                        mix::<S, f32>(maps, other, (heads, panels), row, weights);
                    }
                    (other, maps)
                }
            };
            for h in 0..heads {
                if let Some(mask) = &how.mask {
                    add::<S>(
                        maps,
                        of(h),
                        count,
                        &mask.values[0][query * mask.stride..],
                        mask.stride,
                    );
                }
                end((&mut *maps, of(h).start), keys, count, f32::NEG_INFINITY);
            }
            for row in 0..count {
                for h in 0..heads {
                    let sum = match how.after {
                        Some(_) => softmax::<S, f32>(maps, other, of(h), row),
                        None => softmax::<S, T>(maps, &mut room.probs, of(h), row),
                    };
                    room.inverse[h * MAX_ROWS + row] = 1.0 / sum;
                }
                if let Some(weights) = how.after {
                    // The division by the sums is part of the weights.
                    for (to, from) in room
                        .weights
                        .chunks_exact_mut(heads + 1)
                        .zip(weights.chunks_exact(heads + 1))
                    {
                        for (h, (to, from)) in to.iter_mut().zip(from).enumerate() {
                            *to = if h < heads {
                                from * room.inverse[h * MAX_ROWS + row]
                            } else {
                                *from
                            };
                        }
                    }
                    mix::<S, T>(other, &mut room.probs, (heads, panels), row, &room.weights);
                }
            }
            if how.after.is_some() {
                room.inverse.fill(1.0);
            }
            for (h, head) in how.heads.iter().enumerate() {
                let own = segments(h, 0).map(|segment| segment.values);
                let values = match own {
                    Some(own) if !joined => own,
                    _ => &room.values[h],
                };
                if how.after.is_some() {
                    // What is added to all keys must not reach those that are not there.
                    end((&mut room.probs, of(h).start), keys, count, T::from_f32(0.0));
                }
                weigh::<S, T>(
                    (&room.probs, of(h).start),
                    values,
                    &room.inverse[h * MAX_ROWS..][..count],
                    (&mut *out, head.out),
                    &block,
                    &mut scratch,
                );
            }
        }
        S::end();
    }
}

/// Adds a row of `values` to each of `count` rows of the maps of a head.
#[inline(always)]
fn add<S: Simd>(maps: &mut Panels<f32>, panels: Range<usize>, count: usize, values: &[f32], stride: usize) {
    let first = panels.start;
    for panel in panels {
        let column = (panel - first) * COLUMNS;
        for (row, to) in maps.panel_mut(panel)[..count].iter_mut().enumerate() {
            let values = &values[row * stride + column..][..COLUMNS];
            for at in (0..COLUMNS).step_by(S::LANES) {
                S::store(S::add(S::load(&to[at..]), S::load(&values[at..])), &mut to[at..]);
            }
        }
    }
}

/// The product of each query of a block with each bucket of a table.
#[inline(always)]
fn by_buckets<S: Simd, T: Real>(
    (q, first): (&Panels<T>, usize),
    block: &Range<usize>,
    table: &Packed<T>,
    by_bucket: &mut Panels<f32>,
) {
    for panel in 0..table.panels() {
        let operands = Operands::new((q, first), block.clone(), table, panel);
        T::tile::<S>(operands, scratch_of(by_bucket.panel_mut(panel)));
    }
}

/// Adds to each logit the product of its query with its bucket.
#[inline(always)]
fn look_up(
    (by_bucket, row): (&Panels<f32>, &mut Vec<f32>),
    maps: &mut Panels<f32>,
    panels: Range<usize>,
    count: usize,
    (buckets, stride, wide): (&[u16], usize, usize),
) {
    let Ok(row): Result<&mut [f32; PLACES], _> = row.as_mut_slice().try_into() else {
        unreachable!("the room has so many places")
    };
    for query in 0..count {
        for (panel, to) in row[..wide].chunks_mut(COLUMNS).enumerate() {
            let len = to.len();
            to.copy_from_slice(&by_bucket.panel(panel)[query][..len]);
        }
        let buckets = &buckets[query * stride..];
        for (panel, buckets) in panels.clone().zip(buckets.chunks_exact(COLUMNS)) {
            let to = &mut maps.panel_mut(panel)[query];
            for (to, &bucket) in to.iter_mut().zip(buckets) {
                *to += row[usize::from(bucket)];
            }
        }
    }
}

/// One row of the maps of all heads, mixed: `weights` is `[heads, heads + 1]`.
#[inline(always)]
fn mix<S: Simd, T: Real>(
    from: &Panels<f32>,
    to: &mut Panels<T>,
    (heads, panels): (usize, usize),
    row: usize,
    weights: &[f32],
) {
    /// Results at a time.
    const TOGETHER: usize = 4;
    let width = heads + 1;
    for panel in 0..panels {
        for at in (0..COLUMNS).step_by(S::LANES) {
            for first in (0..heads).step_by(TOGETHER) {
                let own = |i: usize| &weights[(first + i).min(heads - 1) * width..][..width];
                let own = [own(0), own(1), own(2), own(3)];
                let mut sums = own.map(|weights| S::splat(weights[heads]));
                for h in 0..heads {
                    let x = S::load(&from.panel(h * panels + panel)[row][at..]);
                    for (sum, weights) in sums.iter_mut().zip(own) {
                        *sum = S::mul_add(S::splat(weights[h]), x, *sum);
                    }
                }
                for (i, sum) in sums.into_iter().enumerate().take(heads - first) {
                    let to = to.panel_mut((first + i) * panels + panel)[row].as_mut();
                    T::store::<S>(sum, &mut to[at..]);
                }
            }
        }
    }
}
