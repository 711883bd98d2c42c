//! Attention whose maps depend on those of other heads: all heads of a few rows at once.
//!
//! For each block of queries: products of all heads with all keys, what relative positions add, the heads mixed, masks, softmax, the heads
//! mixed again, products with the values. The maps of a block stay in the second cache, those of a query, while its heads are mixed, in
//! the first.

mod mixing;
mod positions;

use std::ops::Range;

pub use positions::{MOST_BUCKETS, PairBuckets, Positions};

use self::mixing::Mixing;
use crate::attention::{Plain, Segment, end, join, products, softmax, weigh};
use crate::isa::{Isa, Kernel};
use crate::packed::Packed;
use crate::panels::{Panels, Row, RowMut};
use crate::product::{even_parts, row_tiles};
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::{COLUMNS, MAX_ROWS};

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
    /// How the logits of the heads are mixed: `[heads + 1, heads]`, how much of each head a result has, and what is added to it.
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

impl<'a> Tables<'a> {
    /// Those of a query in one of the tables, as many panels as hold the keys.
    #[inline(always)]
    fn of(&self, table: usize, query: usize, panels: usize) -> &'a [f32] {
        &self.values[table][query * self.stride..][..panels * COLUMNS]
    }
}

/// Queries whose maps are made together: while one's sums are waited for, there is the other's work to do.
const TOGETHER: usize = 2;

/// Room for the maps of a block of queries.
#[derive(Debug)]
pub struct MixedAttention<T: Real> {
    /// Of one head after the other, as everything here.
    maps: Panels<f32>,
    probs: Panels<T>,
    positions: positions::Room,
    /// Of a few queries, `[TOGETHER, heads]`: their logits, and exponentials of these.
    logits: Panels<f32>,
    powers: Panels<f32>,
    /// What is divided by the sums of exponentials: maps before they are mixed, `[TOGETHER, heads]`, or else results,
    /// `[heads, MAX_ROWS]`, which are all 1 where maps are divided. Where results are, those of maps are not read.
    of_maps: Vec<f32>,
    of_results: Vec<f32>,
    values: Vec<Packed<T>>,
}

impl<T: Real> MixedAttention<T> {
    /// No room yet.
    pub fn new() -> Self {
        MixedAttention {
            maps: Panels::zeros(0, 0),
            probs: Panels::zeros(0, 0),
            positions: positions::Room::new(),
            logits: Panels::zeros(0, 0),
            powers: Panels::zeros(0, 0),
            of_maps: Vec::new(),
            of_results: Vec::new(),
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
        self.logits.reshape(TOGETHER, heads * panels);
        self.powers.reshape(TOGETHER, heads * panels);
        self.of_maps.resize(TOGETHER * heads, 0.0);
        self.of_results.clear();
        self.of_results.resize(heads * MAX_ROWS, 1.0);
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

impl<T: Real> MixedAttention<T> {
    /// From the maps of all heads to their probabilities, for some queries of a block, which begins with number `query` among the keys.
    #[inline(always)]
    fn probabilities<S: Simd>(&mut self, rows: Range<usize>, query: usize, how: &Mixed<'_, T>, keys: usize) {
        let (heads, panels) = (how.heads.len(), keys.div_ceil(COLUMNS));
        let (all, of) = (0..heads * panels, |h: usize| h * panels..(h + 1) * panels);
        let mixing = |weights| Mixing {
            heads,
            panels,
            weights,
        };
        for (i, row) in rows.clone().enumerate() {
            let (from, to) = (
                self.maps.row(all.clone(), row),
                self.logits.row_mut(all.clone(), i),
            );
            match how.before {
                Some(weights) => mixing(weights).run::<S, f32>(from, None, to),
                None => copy(from, to, all.len()),
            }
        }
        for (i, row) in rows.clone().enumerate() {
            for h in 0..heads {
                if let Some(mask) = &how.mask {
                    add::<S>(self.logits.row_mut(of(h), i), mask.of(0, query + row, panels));
                }
                if !keys.is_multiple_of(COLUMNS) {
                    limit::<S>(&mut self.logits.panel_mut(of(h).end - 1)[i], keys % COLUMNS);
                }
                let logits = self.logits.row(of(h), i);
                if how.after.is_some() {
                    let sum = softmax::<S, f32>(logits, self.powers.row_mut(of(h), i), panels);
                    self.of_maps[i * heads + h] = 1.0 / sum;
                } else {
                    let sum = softmax::<S, T>(logits, self.probs.row_mut(of(h), row), panels);
                    self.of_results[h * MAX_ROWS + row] = 1.0 / sum;
                }
            }
        }
        if let Some(weights) = how.after {
            for (i, row) in rows.enumerate() {
                let (from, to) = (
                    self.powers.row(all.clone(), i),
                    self.probs.row_mut(all.clone(), row),
                );
                let factors = &self.of_maps[i * heads..][..heads];
                mixing(weights).run::<S, T>(from, Some(factors), to);
            }
        }
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
            positions.check(heads, last, keys, depths);
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
        // No more rows than a tile has, as in plain attention.
        let most = T::most_rows::<S>();
        room.maps.reshape(most, heads * panels);
        room.probs.reshape(most, heads * panels);
        if let Some(positions) = &how.positions {
            positions.reserve(most, &mut room.positions);
        }
        S::begin();
        for block in row_tiles(rows.clone(), most) {
            let (count, query) = (block.len(), how.query + block.start - rows.start);
            for (h, head) in how.heads.iter().enumerate() {
                let segments = |i: usize| segments(h, i);
                products::<S, T, Plain>(
                    (q, head.q),
                    &block,
                    &segments,
                    &Plain,
                    &mut room.maps,
                    of(h).start,
                    &mut scratch,
                );
                if let Some(bias) = &how.bias {
                    for row in 0..count {
                        add::<S>(room.maps.row_mut(of(h), row), bias.of(h, query + row, panels));
                    }
                }
                if let Some(positions) = &how.positions {
                    let to = (&mut room.maps, of(h));
                    positions.add::<S>(h, (q, head.q), &block, query, &mut room.positions, to);
                }
            }
            for rows in even_parts(0..count, TOGETHER) {
                room.probabilities::<S>(rows, query, how, keys);
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
                    &room.of_results[h * MAX_ROWS..][..count],
                    (&mut *out, head.out),
                    &block,
                    &mut scratch,
                );
            }
        }
        S::end();
    }
}

/// The maps of one query, by themselves.
#[inline(always)]
fn copy(from: Row<'_, f32>, mut to: RowMut<'_, f32>, panels: usize) {
    for panel in 0..panels {
        *to.at(panel) = *from.at(panel);
    }
}

/// Adds `values` to a row of a head's maps.
#[inline(always)]
fn add<S: Simd>(mut to: RowMut<'_, f32>, values: &[f32]) {
    for (panel, values) in values.chunks_exact(COLUMNS).enumerate() {
        let to = to.at(panel);
        for at in (0..COLUMNS).step_by(S::LANES) {
            S::store(S::add(S::load(&to[at..]), S::load(&values[at..])), &mut to[at..]);
        }
    }
}

/// Puts −∞ from the column `end` on. Whole vectors are written, because parts of one just written would be waited for when the whole is
/// read. What is no number becomes infinity, of which the softmax makes no number again.
#[inline(always)]
fn limit<S: Simd>(to: &mut [f32; COLUMNS], end: usize) {
    /// From the column 32 − `end` on: what the columns may have at most.
    static LIMITS: [f32; 2 * COLUMNS] = {
        let mut limits = [f32::INFINITY; 2 * COLUMNS];
        let mut i = COLUMNS;
        while i < limits.len() {
            limits[i] = f32::NEG_INFINITY;
            i += 1;
        }
        limits
    };
    let limits = &LIMITS[COLUMNS - end..][..COLUMNS];
    for at in (0..COLUMNS).step_by(S::LANES) {
        S::store(S::min(S::load(&to[at..]), S::load(&limits[at..])), &mut to[at..]);
    }
}
