//! What reads the end of the stream.

use std::sync::Arc;

use vitesse_kernels::Real;

use crate::member::{Member, cast};
use crate::plan::{Counts, Step};
use crate::team::Run;
use crate::weights::{Product, Then, Weights};

/// The mean of all patches, which becomes the first thread's only row.
#[derive(Debug)]
pub(crate) struct Mean {
    /// Tokens before the patches, and after them.
    pub(crate) prefix: usize,
    pub(crate) tail: usize,
    pub(crate) dim: usize,
    /// Whether a token counts as often as it stands for patches.
    pub(crate) by_size: bool,
}

impl<T: Real> Step<T> for Mean {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        on.show(run.team, &on.x);
        let shown = run.team.all(on.next_turn());
        let first = run.team.index == 0;
        on.x.reshape(usize::from(first), on.x.panels());
        on.has(0..usize::from(first));
        if !first {
            return;
        }
        let tokens = shown.iter().flatten().map(|shown| shown.tokens.end).max();
        let end = tokens.unwrap_or(0).saturating_sub(self.tail);
        let sizes = &on.tokens_room.sizes;
        let size = |token: usize| if self.by_size { sizes[token] } else { 1.0 };
        let count: f32 = (self.prefix..end).map(size).sum();
        for panel in 0..on.x.panels() {
            let mut sums = [0.0; 32];
            // One after the other, so that the sum does not depend on who has which.
            for shown in shown.iter().flatten() {
                let skip = self
                    .prefix
                    .saturating_sub(shown.tokens.start)
                    .min(shown.rows.rows());
                let patches = shown.tokens.clone().zip(shown.rows.panel(panel));
                for (token, row) in patches.skip(skip).take_while(|(token, _)| *token < end) {
                    let size = size(token);
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += size * x);
                }
            }
            let means = sums.map(|sum| sum / count);
            let width = (self.dim - 32 * panel).min(32);
            let row = &mut on.x.panel_mut(panel)[0];
            row[..width].copy_from_slice(&means[..width]);
            row[width..].fill(0.0);
        }
    }

    fn describe(&self) -> String {
        "mean of the patches".into()
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = 1;
        0
    }
}

/// The heads, each on a row of the stream; the rows themselves for a model without classes. The first thread has them.
#[derive(Debug)]
pub(crate) struct Heads<T: Real> {
    /// `head` and `head_dist`.
    pub(crate) heads: Vec<Product<T>>,
    pub(crate) dim: usize,
}

impl<T: Real> Step<T> for Heads<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        if run.team.index > 0 {
            return;
        }
        if self.heads.is_empty() {
            for row in 0..on.x.rows() {
                on.results
                    .extend((0..self.dim).map(|channel| on.x.at(row, channel)));
            }
            return;
        }
        on.input.reshape(on.x.rows(), on.x.panels());
        cast(&on.x, 0, &mut on.input);
        for (row, head) in self.heads.iter().enumerate() {
            head.prepare(run.isa, &mut on.input, &mut on.operands);
            on.spare.reshape(1, head.panels());
            let then = Then::Store(0..head.panels(), &mut on.spare);
            head.multiply(run.isa, &on.input, &on.operands, row..row + 1, then);
            let rows = (0..head.panels()).flat_map(|panel| on.spare.panel(panel)[0]);
            on.results.extend(rows.take(head.columns(0..head.panels())));
        }
    }

    fn describe(&self) -> String {
        if self.heads.is_empty() {
            return format!("features of {}", self.dim);
        }
        let each: Vec<String> = self.heads.iter().map(Product::describe).collect();
        format!("heads {}", each.join(" and "))
    }

    fn macs(&self, _counts: &mut Counts) -> usize {
        self.heads.iter().map(Product::macs_of_row).sum()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.heads.iter().flat_map(Product::weights).collect()
    }
}
