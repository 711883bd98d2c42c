//! Relative positions: numbers that depend on the query and on how a key lies to it.
//!
//! A query's products with all buckets of a table are made first, and looked up for each key. Where there are few buckets, their
//! products stay in registers, in which a vector of keys is looked up at once.

use std::ops::Range;

use crate::packed::Packed;
use crate::panels::{Panels, RowMut};
use crate::real::Real;
use crate::simd::Simd;
use crate::tile::{COLUMNS, Operands};

/// Numbers that vectors are looked up in. The last is the one of pairs without a bucket.
const FEW: usize = 2 * COLUMNS;

/// A slot for every `u16`, so that look-ups need no bounds check; the last is the one of pairs without a bucket.
const MANY: usize = 1 << 16;

/// The most buckets of a table: whole panels of them leave the last place free.
pub const MOST_BUCKETS: usize = MANY - COLUMNS;

/// Numbers that depend on the query and on the bucket of a pair: `logit[i, j] += (q[i] · table)[bucket(i, j)]`.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a, T: Real> {
    /// For each head, or for all, packed as keys are: a column for each bucket.
    pub tables: &'a [Packed<T>],
    /// The bucket of each pair.
    pub buckets: &'a PairBuckets,
}

/// The bucket of each pair of a query and a key.
#[derive(Debug, Clone)]
pub struct PairBuckets {
    count: usize,
    /// From a query to the next: the number of keys, rounded up to whole panels.
    stride: usize,
    places: Places,
}

/// Where what is added to a pair lies among the products with buckets, `[queries, stride]`.
#[derive(Debug, Clone)]
enum Places {
    Few(Vec<u8>),
    Many(Vec<u16>),
}

/// `pairs`, `keys` for each query, and the last of `places` numbers where one has no bucket or there is no key.
fn padded<N: Copy>(pairs: &[Option<usize>], keys: usize, places: usize, place: fn(usize) -> N) -> Vec<N> {
    let none = place(places - 1);
    let stride = keys.next_multiple_of(COLUMNS);
    let mut padded = vec![none; pairs.len() / keys * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(pairs.chunks_exact(keys)) {
        for (to, bucket) in to.iter_mut().zip(from) {
            *to = bucket.map_or(none, place);
        }
    }
    padded
}

impl PairBuckets {
    /// `pairs` says for each query which of `count` buckets each of `keys` keys has, or that it has none.
    ///
    /// # Panics
    /// Where a bucket is not one of `count`, these are more than [`MOST_BUCKETS`], or there is no key.
    pub fn new(count: usize, pairs: &[Option<usize>], keys: usize) -> Self {
        assert!(count <= MOST_BUCKETS && keys > 0 && pairs.len().is_multiple_of(keys));
        assert!(pairs.iter().flatten().all(|&bucket| bucket < count));
        let places = if count < FEW {
            Places::Few(padded(pairs, keys, FEW, |place| place as u8))
        } else {
            Places::Many(padded(pairs, keys, MANY, |place| place as u16))
        };
        PairBuckets {
            count,
            stride: keys.next_multiple_of(COLUMNS),
            places,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Room for the products of a block of queries with each bucket of a table, and for those of one query where there are many.
#[derive(Debug)]
pub(super) struct Room {
    by_bucket: Panels<f32>,
    many: Vec<f32>,
}

impl Room {
    pub(super) fn new() -> Self {
        Room {
            by_bucket: Panels::zeros(0, 0),
            many: Vec::new(),
        }
    }
}

impl<T: Real> Positions<'_, T> {
    /// That there is something for so many heads, queries, keys, and panels of a head's columns.
    pub(super) fn check(&self, heads: usize, queries: usize, keys: usize, depths: usize) {
        let PairBuckets {
            count,
            stride,
            places,
        } = self.buckets;
        assert!([1, heads].contains(&self.tables.len()));
        let fits = |table: &Packed<T>| {
            let (panels, width) = (table.panels(), table.widths.iter().sum::<usize>());
            table.depths.len() == depths && width == *count && panels == count.div_ceil(COLUMNS)
        };
        assert!(self.tables.iter().all(fits));
        let len = match places {
            Places::Few(places) => places.len(),
            Places::Many(places) => places.len(),
        };
        assert!(*stride == keys.next_multiple_of(COLUMNS) && queries * stride <= len);
    }

    /// Makes room for blocks of `rows` queries.
    pub(super) fn reserve(&self, rows: usize, room: &mut Room) {
        room.by_bucket.reshape(rows, self.tables[0].panels());
        if let Places::Many(_) = &self.buckets.places {
            room.many.resize(MANY, 0.0);
        }
    }

    /// Adds to the logits of a block of queries of a head, the first of which is number `query` among the keys: to rows of `panels` of
    /// `maps`. The head's queries are the panels of `q` from `first` on.
    #[inline(always)]
    pub(super) fn add<S: Simd>(
        &self,
        head: usize,
        (q, first): (&Panels<T>, usize),
        block: &Range<usize>,
        query: usize,
        room: &mut Room,
        (maps, panels): (&mut Panels<f32>, Range<usize>),
    ) {
        let table = &self.tables[if self.tables.len() == 1 { 0 } else { head }];
        for panel in 0..table.panels() {
            let operands = Operands::new((q, first), block.clone(), table, panel);
            T::tile::<S>(operands, room.by_bucket.panel_mut(panel));
        }
        let start = query * self.buckets.stride;
        for row in 0..block.len() {
            let start = start + row * self.buckets.stride;
            let to = maps.row_mut(panels.clone(), row);
            match &self.buckets.places {
                Places::Few(places) => {
                    let mut numbers = [[0.0; COLUMNS]; 2];
                    for (panel, to) in numbers.iter_mut().enumerate().take(table.panels()) {
                        *to = room.by_bucket.panel(panel)[row];
                    }
                    numbers[1][COLUMNS - 1] = 0.0;
                    add_few::<S>(&numbers, &places[start..][..self.buckets.stride], to);
                }
                Places::Many(places) => {
                    let numbers = room.many[..self.buckets.count].chunks_mut(COLUMNS);
                    for (panel, to) in numbers.enumerate() {
                        to.copy_from_slice(&room.by_bucket.panel(panel)[row][..to.len()]);
                    }
                    add_many(&room.many, &places[start..][..self.buckets.stride], to);
                }
            }
        }
    }
}

/// Adds to each number of a row the one at its place, a vector at a time.
#[inline(always)]
fn add_few<S: Simd>(numbers: &[[f32; COLUMNS]; 2], places: &[u8], mut to: RowMut<'_, f32>) {
    for (panel, places) in places.chunks_exact(COLUMNS).enumerate() {
        let to = to.at(panel);
        for at in (0..COLUMNS).step_by(S::LANES) {
            let found = S::look_up(numbers, &places[at..]);
            S::store(S::add(S::load(&to[at..]), found), &mut to[at..]);
        }
    }
}

/// The same, number by number.
#[inline(always)]
fn add_many(numbers: &[f32], places: &[u16], mut to: RowMut<'_, f32>) {
    let Ok(numbers): Result<&[f32; MANY], _> = numbers.try_into() else {
        unreachable!("the room has so many places")
    };
    for (panel, places) in places.chunks_exact(COLUMNS).enumerate() {
        let to = to.at(panel);
        for (to, &place) in to.iter_mut().zip(places) {
            *to += numbers[usize::from(place)];
        }
    }
}
