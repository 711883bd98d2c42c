//! Attention inside windows, and tokens on their way into them.
//!
//! The stream lies in the order of the windows of the running layer, one window after the other: so nothing but its order
//! changes between the map and a window, and each layer's is made of the one before in one copy. Tokens with which a map is
//! filled up have rows of the stream too; they are blanked before they are projected, and nothing else reads them.

use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::{Bias, Panels, Real, layer_norm};
use vitesse_model::spec::Windows;

use super::attention::{Head, Window, padded, windows_of};
use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::Run;
use crate::weights::{NormRows, Product, Then, Weights};

/// What is added to the logits in windows: biases of relative positions, and masks where the map was rolled.
#[derive(Debug)]
pub(crate) struct WindowBias {
    /// Tokens of a window.
    area: usize,
    /// From the numbers of a query to those of the next.
    stride: usize,
    /// Which of the tables each window has.
    kinds: Vec<usize>,
    /// `[area, stride]` for each kind of window and each head.
    tables: Vec<Vec<f32>>,
    heads: usize,
}

/// Which mask each window has, and the masks that differ, `[area, area]` each: none where nothing keeps tokens apart.
pub(crate) fn masks(windows: &Windows) -> (Vec<usize>, Vec<Vec<f32>>) {
    let area = windows.area();
    let masks = windows.mask().unwrap_or_default();
    let mut distinct: Vec<Vec<f32>> = Vec::new();
    let mut kinds: Vec<usize> = masks
        .chunks_exact(area * area)
        .map(|mask| {
            let known = distinct.iter().position(|other| *other == mask);
            known.unwrap_or_else(|| {
                distinct.push(mask.to_vec());
                distinct.len() - 1
            })
        })
        .collect();
    // Without masks all windows are alike.
    kinds.resize(windows.count(), 0);
    (kinds, distinct)
}

impl WindowBias {
    /// `table` is `[ways, heads]`.
    pub(crate) fn new(windows: &Windows, table: &[f32], heads: usize) -> Self {
        let (area, relative) = (windows.area(), windows.relative());
        let stride = area.next_multiple_of(32);
        let (kinds, mut masks) = masks(windows);
        if masks.is_empty() {
            masks.push(vec![0.0; area * area]);
        }
        let of = |mask: &[f32], head: usize| {
            padded(area, stride, 0.0, |pair| {
                mask[pair] + table[relative[pair] * heads + head]
            })
        };
        let tables = masks
            .iter()
            .flat_map(|mask| (0..heads).map(move |head| of(mask, head)));
        WindowBias {
            area,
            stride,
            tables: tables.collect(),
            kinds,
            heads,
        }
    }

    fn table(&self, window: usize, head: usize) -> &[f32] {
        &self.tables[self.kinds[window] * self.heads + head]
    }
}

/// Softmax of the queries' products with the keys of their window, times the values.
#[derive(Debug)]
pub(crate) struct AttendInWindows {
    pub(crate) heads: Arc<[Head]>,
    /// Panels of all heads' results.
    pub(crate) panels: usize,
    pub(crate) bias: WindowBias,
}

impl<T: Real> Step<T> for AttendInWindows {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let (turn, tokens) = (on.next_turn(), on.tokens.clone());
        on.input.reshape(tokens.len(), self.panels);
        if tokens.is_empty() {
            return;
        }
        let shown = run.team.all(turn);
        let (area, count) = (self.bias.area, self.heads.len());
        for index in windows_of(&tokens, area) {
            let window = Window::new(index, area, count, &shown);
            let (rows, query) = window.rows_of(&tokens);
            for (h, head) in self.heads.iter().enumerate() {
                // The numbers of the first query of this thread's part.
                let values = &self.bias.table(index, h)[query * self.bias.stride..];
                on.attention.head(
                    run.isa,
                    &on.q,
                    head.q_at,
                    rows.clone(),
                    &|i| window.segment(h, i),
                    &Bias::padded(values, rows.start, self.bias.stride, area),
                    &mut on.input,
                    head.out_at,
                );
            }
        }
    }

    fn describe(&self) -> String {
        let each = |width: fn(&Head) -> usize| self.heads.iter().map(width).sum::<usize>();
        let (qk, v) = (each(|head| head.qk), each(|head| head.v));
        let (windows, area) = (self.bias.kinds.len(), self.bias.area);
        format!(
            "attention of {} heads, {qk} to {v}, in {windows} windows of {area} tokens",
            self.heads.len()
        )
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        let widths: usize = self.heads.iter().map(|head| head.qk + head.v).sum();
        counts.tokens * self.bias.area * widths
    }
}

/// A new order of tokens.
#[derive(Debug)]
pub(crate) struct Order {
    /// For each new row the old ones that it is made of, `beside` of them; `None` for zeros.
    rows: Vec<Option<usize>>,
    beside: usize,
    /// New rows that had better stay with one thread: those of a window.
    unit: usize,
}

impl Order {
    pub(crate) fn new(rows: Vec<Option<usize>>, beside: usize, unit: usize) -> Self {
        Order { rows, beside, unit }
    }

    fn len(&self) -> usize {
        self.rows.len() / self.beside
    }

    /// Writes this thread's part of the new rows, of `dim` columns from each old one, which then is the stream.
    fn exchange<T: Real>(&self, on: &mut Member<T>, run: &Run<'_, T>, dim: usize) {
        let units = self.len() / self.unit;
        let own = if units >= run.team.members.len() && units * self.unit == self.len() {
            let share = run.team.share(units);
            share.start * self.unit..share.end * self.unit
        } else {
            run.team.share(self.len())
        };
        on.spare
            .reshape(own.len(), Panels::<f32>::needed(self.beside * dim));
        let wanted = &self.rows[own.start * self.beside..own.end * self.beside];
        if run.team.members.len() == 1 {
            self.copy(wanted, (&on.x, 0..on.x.rows()), &mut on.spare, dim);
        } else {
            on.show(run.team, &on.x);
            for shown in run.team.all(on.next_turn()).iter().flatten() {
                self.copy(wanted, (&shown.rows, shown.tokens.clone()), &mut on.spare, dim);
            }
        }
        on.adopt(own);
    }

    /// Copies what of `wanted` is among the tokens of `from`, and blanks what is no token.
    fn copy(
        &self,
        wanted: &[Option<usize>],
        (from, tokens): (&Panels<f32>, Range<usize>),
        to: &mut Panels<f32>,
        dim: usize,
    ) {
        for (i, token) in wanted.iter().enumerate() {
            let (row, first) = (i / self.beside, i % self.beside * dim);
            let old = match token {
                Some(token) if tokens.contains(token) => Some(token - tokens.start),
                Some(_) => continue,
                None => None,
            };
            if self.beside == 1 || dim.is_multiple_of(32) {
                for panel in 0..dim.div_ceil(32) {
                    let to = &mut to.panel_mut(first / 32 + panel)[row];
                    *to = old.map_or([0.0; 32], |old| from.panel(panel)[old]);
                }
            } else {
                for column in 0..dim {
                    let value = old.map_or(0.0, |old| from.at(old, column));
                    to.set(row, first + column, value);
                }
            }
        }
    }
}

/// The stream in another order.
#[derive(Debug)]
pub(crate) struct Arrange {
    pub(crate) order: Order,
    pub(crate) dim: usize,
}

impl<T: Real> Step<T> for Arrange {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        self.order.exchange(on, run, self.dim);
    }

    fn describe(&self) -> String {
        format!("{} tokens in another order", self.order.len())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.order.len();
        0
    }
}

/// Patch merging: the tokens of each neighbourhood beside each other, normed and projected.
#[derive(Debug)]
pub(crate) struct Merge<T: Real> {
    pub(crate) order: Order,
    /// Width of the tokens before.
    pub(crate) dim: usize,
    pub(crate) norm: NormRows,
    pub(crate) product: Product<T>,
}

impl<T: Real> Step<T> for Merge<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        self.order.exchange(on, run, self.dim);
        let rows = on.x.rows();
        on.input.reshape(rows, on.x.panels());
        layer_norm(run.isa, &on.x, 0..rows, self.norm.norm(), &mut on.input);
        self.product.prepare(run.isa, &mut on.input, &mut on.operands);
        on.x.reshape(rows, self.product.panels());
        let then = Then::Store(0..self.product.panels(), &mut on.x);
        self.product
            .multiply(run.isa, &on.input, &on.operands, 0..rows, then);
    }

    fn describe(&self) -> String {
        let tokens = self.order.len();
        format!("patch merging to {tokens} tokens, {}", self.product.describe())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.order.len();
        counts.tokens * self.product.macs_of_row()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.product.weights()
    }
}

/// Zeros in the place of normed tokens with which a map is filled up.
#[derive(Debug)]
pub(crate) struct Blank {
    /// Their numbers in the stream, ascending.
    pub(crate) tokens: Vec<usize>,
}

impl<T: Real> Step<T> for Blank {
    fn run(&self, on: &mut Member<T>, _run: &Run<'_, T>) {
        for token in self.tokens.iter().filter(|token| on.tokens.contains(token)) {
            for panel in 0..on.input.panels() {
                let row = &mut on.input.panel_mut(panel)[token - on.tokens.start];
                row.as_mut().fill(T::from_f32(0.0));
            }
        }
    }

    fn describe(&self) -> String {
        format!("{} tokens blank", self.tokens.len())
    }
}
