//! Attention whose heads are mixed, or whose logits depend on where tokens lie to each other.
//!
//! The maps of all heads of a few queries are made together. Without windows, all tokens are those of one.

use std::sync::Arc;

use vitesse_kernels::{Columns, Mixed, Packed, PairBuckets, Positions, Real, Tables};

use super::attention::{Head, Window, windows_of};
use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::Run;

/// What is looked up for each query.
#[derive(Debug)]
pub(crate) struct Buckets<T: Real> {
    /// For each head, or for all.
    pub(crate) tables: Vec<Packed<T>>,
    /// The bucket of each pair of tokens.
    pub(crate) pairs: PairBuckets,
}

/// Softmax of all heads' products with the keys of their window, with what stands before and after it, times the values.
#[derive(Debug)]
pub(crate) struct AttendMixed<T: Real> {
    pub(crate) heads: Arc<[Head]>,
    /// Panels of all heads' results.
    pub(crate) panels: usize,
    /// Tokens of a window.
    pub(crate) area: usize,
    /// From the numbers of a query to those of the next.
    pub(crate) stride: usize,
    /// Which of the masks each window has.
    pub(crate) kinds: Vec<usize>,
    /// `[area, stride]` each; none where nothing keeps tokens apart.
    pub(crate) masks: Vec<Vec<f32>>,
    /// `[area, stride]` for each head.
    pub(crate) bias: Option<Vec<Vec<f32>>>,
    pub(crate) buckets: Option<Buckets<T>>,
    /// `[heads + 1, heads]`
    pub(crate) before: Option<Vec<f32>>,
    pub(crate) after: Option<Vec<f32>>,
}

impl<T: Real> AttendMixed<T> {
    /// What is done to the maps of a window, from the query of this number on.
    fn how<'a>(&'a self, columns: &'a [Columns], window: usize, query: usize) -> Mixed<'a, T> {
        let stride = self.stride;
        let mask = self
            .kinds
            .get(window)
            .and_then(|&kind| self.masks.get(kind..=kind));
        Mixed {
            heads: columns,
            query,
            positions: self.buckets.as_ref().map(|buckets| Positions {
                tables: &buckets.tables,
                buckets: &buckets.pairs,
            }),
            bias: self.bias.as_ref().map(|values| Tables { values, stride }),
            before: self.before.as_deref(),
            mask: mask.map(|values| Tables { values, stride }),
            after: self.after.as_deref(),
        }
    }
}

impl<T: Real> Step<T> for AttendMixed<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let (turn, tokens) = (on.next_turn(), on.tokens.clone());
        on.input.reshape(tokens.len(), self.panels);
        if tokens.is_empty() {
            return;
        }
        let columns = |head: &Head| Columns {
            q: head.q_at,
            out: head.out_at,
        };
        on.columns.clear();
        on.columns.extend(self.heads.iter().map(columns));
        let shown = run.team.all(turn);
        let (area, count) = (self.area, self.heads.len());
        for index in windows_of(&tokens, area) {
            let window = Window::new(index, area, count, &shown);
            let (rows, query) = window.rows_of(&tokens);
            let how = self.how(&on.columns, index, query);
            let segments = |h: usize, i: usize| window.segment(h, i);
            on.mixed.run(run.isa, &on.q, rows, &segments, &how, &mut on.input);
        }
    }

    fn describe(&self) -> String {
        let each = |width: fn(&Head) -> usize| self.heads.iter().map(width).sum::<usize>();
        let (qk, v) = (each(|head| head.qk), each(|head| head.v));
        let mut text = format!("attention of {} heads, {qk} to {v}", self.heads.len());
        if let Some(buckets) = &self.buckets {
            text += &format!(", relative positions in {} buckets", buckets.pairs.count());
        }
        text += match (&self.before, &self.after) {
            (Some(_), Some(_)) => ", mixed before and after the softmax",
            (Some(_), None) => ", mixed before the softmax",
            (None, Some(_)) => ", mixed after the softmax",
            (None, None) => "",
        };
        if self.kinds.len() > 1 {
            text += &format!(", in {} windows of {} tokens", self.kinds.len(), self.area);
        }
        text
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        let widths: usize = self.heads.iter().map(|head| head.qk + head.v).sum();
        let qk: usize = self.heads.iter().map(|head| head.qk).sum();
        let mixings = usize::from(self.before.is_some()) + usize::from(self.after.is_some());
        let pair = widths + mixings * self.heads.len() * self.heads.len();
        let looked_up = self
            .buckets
            .as_ref()
            .map_or(0, |buckets| qk * buckets.pairs.count());
        counts.tokens * (counts.keys.min(self.area) * pair + looked_up)
    }
}
