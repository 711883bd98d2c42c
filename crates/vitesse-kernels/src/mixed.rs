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
use crate::product::row_tiles;
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
    /// Those of a query in one of the tables.
    #[inline(always)]
    fn of(&self, table: usize, query: usize) -> &'a [f32] {
        &self.values[table][query * self.stride..][..self.stride]
    }
}

/// Room for the maps of a block of queries.
#[derive(Debug)]
pub struct MixedAttention<T: Real> {
    /// Of one head after the other, as everything here.
    maps: Panels<f32>,
    probs: Panels<T>,
    positions: positions::Room,
    /// The logits of one query, and their exponentials.
    logits: Panels<f32>,
    powers: Panels<f32>,
    /// What probabilities are multiplied with to make up for their sums: those of one query before heads are mixed, or those of a block
    /// at the end, where they are not.
    factors: Vec<f32>,
    inverse: Vec<f32>,
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
            factors: Vec::new(),
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
        self.logits.reshape(1, heads * panels);
        self.powers.reshape(1, heads * panels);
        self.factors.resize(heads, 1.0);
        self.inverse.clear();
        self.inverse.resize(heads * MAX_ROWS, 1.0);
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
        let all = || 0..heads * panels;
        // Whole vectors, because parts of one just written would be waited for when the whole is read.
        let mut limits = [f32::INFINITY; COLUMNS];
        limits[keys % COLUMNS..].fill(f32::NEG_INFINITY);
        let mut scratch = [[0f32; 32]; MAX_ROWS];
        let joined = segments(0, 1).is_some();
        // As many rows as a tile has and no more: where the rows of a query are 4096 bytes apart, they share few places in the first cache.
        let most = T::most_rows::<S>();
        room.maps.reshape(most, heads * panels);
        room.probs.reshape(most, heads * panels);
        if let Some(positions) = &how.positions {
            positions.reserve(most, &mut room.positions);
        }
        S::begin();
        for block in row_tiles(rows.clone(), most) {
            let (count, query) = (block.len(), how.query + block.start - rows.start);
            let maps = &mut room.maps;
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
                    for row in 0..count {
                        add::<S>(maps.row_mut(of(h), row), bias.of(h, query + row));
                    }
                }
                if let Some(positions) = &how.positions {
                    let room = &mut room.positions;
                    positions.add::<S>(h, (q, head.q), &block, query, room, (&mut *maps, of(h)));
                }
            }
            for row in 0..count {
                let (logits, powers) = (&mut room.logits, &mut room.powers);
                match how.before {
                    Some(weights) => {
                        let (from, to) = (maps.row(all(), row), logits.row_mut(all(), 0));
                        let mixing = Mixing {
                            heads,
                            panels,
                            weights,
                            factors: None,
                        };
                        mixing.run::<S, f32>(from, to);
                    }
                    None => copy(maps.row(all(), row), logits),
                }
                for h in 0..heads {
                    if let Some(mask) = &how.mask {
                        add::<S>(logits.row_mut(of(h), 0), mask.of(0, query + row));
                    }
                    if !keys.is_multiple_of(COLUMNS) {
                        limit::<S>(&mut logits.panel_mut(of(h).end - 1)[0], &limits);
                    }
                    let logits = logits.row(of(h), 0);
                    if how.after.is_some() {
                        let sum = softmax::<S, f32>(logits, powers.row_mut(of(h), 0), panels);
                        room.factors[h] = 1.0 / sum;
                    } else {
                        let sum = softmax::<S, T>(logits, room.probs.row_mut(of(h), row), panels);
                        room.inverse[h * MAX_ROWS + row] = 1.0 / sum;
                    }
                }
                if let Some(weights) = how.after {
                    let (from, to) = (powers.row(all(), 0), room.probs.row_mut(all(), row));
                    let factors = Some(&room.factors[..]);
                    let mixing = Mixing {
                        heads,
                        panels,
                        weights,
                        factors,
                    };
                    mixing.run::<S, T>(from, to);
                }
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

/// The maps of one query, by themselves.
#[inline(always)]
fn copy(from: Row<'_, f32>, to: &mut Panels<f32>) {
    for panel in 0..to.panels() {
        to.panel_mut(panel)[0] = *from.at(panel);
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

/// No number above its limit. What is not a number becomes the limit, infinity for keys that are there, of which the softmax makes no
/// number again.
#[inline(always)]
fn limit<S: Simd>(to: &mut [f32; COLUMNS], limits: &[f32; COLUMNS]) {
    for at in (0..COLUMNS).step_by(S::LANES) {
        S::store(S::min(S::load(&to[at..]), S::load(&limits[at..])), &mut to[at..]);
    }
}
