//! Attention: keys and values of all, queries of those that go on.

use std::ops::Range;
use std::sync::{Arc, RwLockReadGuard};

use vitesse_kernels::{Bias, Packed, Plain, Real, Segment};

use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::{Run, Shown};
use crate::weights::{Product, Then, Weights};

/// Where a head's columns lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) qk: usize,
    pub(crate) v: usize,
    /// First panel of its queries, among those of the queries.
    pub(crate) q_at: usize,
    /// First panel of its keys and of its values, among those of both.
    pub(crate) k_at: usize,
    pub(crate) v_at: usize,
    /// First panel of its result.
    pub(crate) out_at: usize,
}

/// Keys and values of this thread's tokens, shown to the others.
#[derive(Debug)]
pub(crate) struct KeysValues<T: Real> {
    /// To queries, keys and values.
    pub(crate) qkv: Arc<Product<T>>,
    pub(crate) heads: Arc<[Head]>,
    /// Panels of queries; the panels of keys and values follow.
    pub(crate) q_panels: usize,
    /// How many tokens in a row see each other: those of a window, or all.
    pub(crate) area: usize,
}

/// The windows of `area` tokens that begin or go on in `tokens`; one, of no token, where there is none.
pub(crate) fn windows_of(tokens: &Range<usize>, area: usize) -> Range<usize> {
    tokens.start / area..tokens.end.saturating_sub(1).max(tokens.start) / area + 1
}

/// Numbers for the pairs of `area` tokens, `[area, stride]`: `value` of each pair, a query's one after the other, and `past`
/// behind its last key.
pub(crate) fn padded<N: Copy>(area: usize, stride: usize, past: N, value: impl Fn(usize) -> N) -> Vec<N> {
    let mut values = vec![past; area * stride];
    for (query, to) in values.chunks_exact_mut(stride).enumerate() {
        for (key, to) in to[..area].iter_mut().enumerate() {
            *to = value(query * area + key);
        }
    }
    values
}

/// A window of `area` tokens, and what the threads show of it.
pub(crate) struct Window<'a, T: Real> {
    index: usize,
    area: usize,
    heads: usize,
    /// Of the threads that have a part of it. They come one after the other.
    parts: &'a [Option<RwLockReadGuard<'a, Shown<T>>>],
}

impl<'a, T: Real> Window<'a, T> {
    pub(crate) fn new(
        index: usize,
        area: usize,
        heads: usize,
        shown: &'a [Option<RwLockReadGuard<'a, Shown<T>>>],
    ) -> Self {
        let has = |shown: &Option<RwLockReadGuard<'_, Shown<T>>>| {
            let theirs = shown.as_ref().map_or(0..0, |shown| shown.tokens.clone());
            !theirs.is_empty() && theirs.start < (index + 1) * area && theirs.end > index * area
        };
        let first = shown.iter().position(has).unwrap_or(0);
        let count = shown[first..].iter().take_while(|shown| has(shown)).count();
        let parts = &shown[first..first + count];
        Window {
            index,
            area,
            heads,
            parts,
        }
    }

    /// A head's keys and values, the part number `i` of them.
    pub(crate) fn segment(&self, head: usize, i: usize) -> Option<Segment<'a, T>> {
        let shown = self.parts.get(i)?.as_ref()?;
        let at = self.index - windows_of(&shown.tokens, self.area).start;
        let (keys, values) = &shown.heads[at * self.heads + head];
        Some(Segment { keys, values })
    }

    /// Which rows of `tokens` are in it, and the number of the first of them among its own.
    pub(crate) fn rows_of(&self, tokens: &Range<usize>) -> (Range<usize>, usize) {
        let start = self.index * self.area;
        let own = start.max(tokens.start)..(start + self.area).min(tokens.end);
        (
            own.start - tokens.start..own.end - tokens.start,
            own.start - start,
        )
    }
}

impl<T: Real> Step<T> for KeysValues<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        self.qkv.prepare(run.isa, &mut on.input, &mut on.operands);
        let (rows, panels) = (on.input.rows(), self.q_panels..self.qkv.panels());
        on.kv.reshape(rows, panels.len());
        let then = Then::Store(panels, &mut on.kv);
        self.qkv.multiply(run.isa, &on.input, &on.operands, 0..rows, then);
        let mut place = run.team.own(on.turn);
        let (tokens, windows) = (on.tokens.clone(), windows_of(&on.tokens, self.area));
        let count = windows.len() * self.heads.len();
        if place.heads.len() < count {
            let none = || (Packed::zeros(0, 0), Packed::zeros(0, 0));
            place.heads.resize_with(count, none);
        }
        place.tokens = tokens.clone();
        for (window, places) in windows.zip(place.heads.chunks_mut(self.heads.len())) {
            let first = (window * self.area).max(tokens.start);
            let end = (first / self.area + 1).saturating_mul(self.area).min(tokens.end);
            let rows = first - tokens.start..end.max(first) - tokens.start;
            for (head, (keys, values)) in self.heads.iter().zip(places) {
                T::pack_keys(run.isa, &on.kv, rows.clone(), head.k_at, head.qk, keys);
                T::pack_values(&on.kv, rows.clone(), head.v_at, head.v, values);
            }
        }
    }

    fn describe(&self) -> String {
        let columns = self.qkv.columns(self.q_panels..self.qkv.panels());
        format!("keys and values of {columns}, by qkv {}", self.qkv.describe())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.keys = counts.tokens;
        let row = self.qkv.macs_beside() + self.qkv.macs(self.q_panels..self.qkv.panels());
        counts.tokens * row
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.qkv.weights()
    }
}

/// Queries. Of the tokens that had keys, these may be the first ones only.
#[derive(Debug)]
pub(crate) struct Queries<T: Real> {
    pub(crate) qkv: Arc<Product<T>>,
    pub(crate) panels: usize,
}

impl<T: Real> Step<T> for Queries<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        on.q.reshape(on.x.rows(), self.panels);
        let then = Then::Store(0..self.panels, &mut on.q);
        self.qkv
            .multiply(run.isa, &on.input, &on.operands, 0..on.x.rows(), then);
    }

    fn describe(&self) -> String {
        format!("queries of {}", self.qkv.columns(0..self.panels))
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens * self.qkv.macs(0..self.panels)
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.qkv.weights()
    }
}

/// Waits for the keys and values of all.
#[derive(Debug)]
pub(crate) struct Meet;

impl<T: Real> Step<T> for Meet {
    fn run(&self, _on: &mut Member<T>, run: &Run<'_, T>) {
        run.team.wait();
    }

    fn describe(&self) -> String {
        "meeting of the threads".into()
    }
}

/// Softmax of the queries' products with all keys, times the values.
#[derive(Debug)]
pub(crate) struct Attend {
    pub(crate) heads: Arc<[Head]>,
    /// Panels of all heads' results.
    pub(crate) panels: usize,
    /// Whether a key counts as often as its token stands for patches.
    pub(crate) by_size: bool,
}

impl<T: Real> Step<T> for Attend {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let (turn, rows) = (on.next_turn(), on.x.rows());
        on.input.reshape(rows, self.panels);
        if rows == 0 {
            return;
        }
        let shown = run.team.all(turn);
        for (h, head) in self.heads.iter().enumerate() {
            let segments = |i: usize| -> Option<Segment<'_, T>> {
                let (keys, values) = &shown.get(i)?.as_ref()?.heads[h];
                Some(Segment { keys, values })
            };
            let (q, out) = (&on.q, &mut on.input);
            if self.by_size {
                let sizes = Bias::by_key(&on.tokens_room.logs);
                on.attention.head(
                    run.isa,
                    q,
                    head.q_at,
                    0..rows,
                    &segments,
                    &sizes,
                    out,
                    head.out_at,
                );
            } else {
                on.attention.head(
                    run.isa,
                    q,
                    head.q_at,
                    0..rows,
                    &segments,
                    &Plain,
                    out,
                    head.out_at,
                );
            }
        }
    }

    fn describe(&self) -> String {
        let each = |width: fn(&Head) -> usize| self.heads.iter().map(width).sum::<usize>();
        let (qk, v) = (each(|head| head.qk), each(|head| head.v));
        let sizes = if self.by_size {
            ", keys counted by size"
        } else {
            ""
        };
        format!("attention of {} heads, {qk} to {v}{sizes}", self.heads.len())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        let widths: usize = self.heads.iter().map(|head| head.qk + head.v).sum();
        counts.tokens * counts.keys * widths
    }
}
