//! Patches stay that a small network scores best.

use std::sync::Arc;

use vitesse_kernels::{Gelu, Panels, Real, layer_norm};

use super::tokens::{exchange, go};
use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::Run;
use crate::weights::{NormRows, Product, Then, Weights};

/// What a predictor writes on its way.
#[derive(Debug)]
pub(crate) struct PredictRoom<T: Real> {
    normed: Panels<T>,
    local: Panels<T>,
    /// The local half, and beside it the mean of the other.
    joined: Panels<T>,
    narrow: [Panels<T>; 2],
    /// The half whose mean is taken; scores.
    rows: Panels<f32>,
    mean: Vec<f32>,
}

impl<T: Real> PredictRoom<T> {
    pub(crate) fn new() -> Self {
        let real = || Panels::zeros(0, 0);
        PredictRoom {
            normed: real(),
            local: real(),
            joined: real(),
            narrow: [real(), real()],
            rows: Panels::zeros(0, 0),
            mean: Vec::new(),
        }
    }
}

/// The network that scores, and how many stay.
#[derive(Debug)]
pub(crate) struct Predict<T: Real> {
    pub(crate) norm: NormRows,
    /// To the half that each patch keeps, and to the one whose mean all share.
    pub(crate) halves: [Product<T>; 2],
    pub(crate) narrow: [Product<T>; 2],
    /// To stay, and to leave.
    pub(crate) last: Product<T>,
    /// How many of the first tokens are protected, how many patches follow, and how many of these stay.
    pub(crate) prefix: usize,
    pub(crate) patches: usize,
    pub(crate) kept: usize,
}

impl<T: Real> Predict<T> {
    fn products(&self) -> impl Iterator<Item = &Product<T>> {
        let last = std::iter::once(&self.last);
        self.halves.iter().chain(&self.narrow).chain(last)
    }

    /// The halves of the patches behind the row `first`.
    fn begin(&self, on: &mut Member<T>, run: &Run<'_, T>, first: usize) {
        let (isa, rows) = (run.isa, on.x.rows() - first);
        let room = &mut on.predict;
        room.normed.reshape(rows, on.x.panels());
        layer_norm(isa, &on.x, first..on.x.rows(), self.norm.norm(), &mut room.normed);
        let [local, global] = &self.halves;
        room.local.reshape(rows, local.panels());
        room.rows.reshape(rows, global.panels());
        local.prepare(isa, &mut room.normed, &mut on.operands);
        let then = Then::Gelu(Gelu::Exact, None, &mut room.local);
        local.multiply(isa, &room.normed, &on.operands, 0..rows, then);
        let then = Then::Gelu(Gelu::Exact, None, &mut room.rows);
        global.multiply(isa, &room.normed, &on.operands, 0..rows, then);
    }

    /// The mean over all patches, one after the other, so that it does not depend on who has which.
    fn mean(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let width = self.halves[1].columns(0..self.halves[1].panels());
        let alone = run.team.members.len() == 1;
        if !alone {
            on.show(run.team, &on.predict.rows);
        }
        let shown = (!alone).then(|| run.team.all(on.next_turn()));
        let PredictRoom { rows, mean, .. } = &mut on.predict;
        mean.clear();
        mean.resize(width, 0.0);
        let mut sum = |rows: &Panels<f32>| {
            for (panel, sums) in mean.chunks_mut(32).enumerate() {
                for row in rows.panel(panel) {
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
            }
        };
        match &shown {
            None => sum(rows),
            Some(shown) => shown.iter().flatten().for_each(|shown| sum(&shown.rows)),
        }
        let by = 1.0 / self.patches as f32;
        mean.iter_mut().for_each(|x| *x *= by);
    }

    /// The scores of the thread's patches.
    fn end(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let (isa, rows) = (run.isa, on.predict.local.rows());
        let PredictRoom {
            local,
            joined,
            narrow: [first, second],
            rows: scores,
            mean,
            ..
        } = &mut on.predict;
        let panels = local.panels();
        joined.reshape(rows, panels + mean.chunks(32).len());
        for panel in 0..panels {
            joined.panel_mut(panel).copy_from_slice(local.panel(panel));
        }
        for (panel, mean) in mean.chunks(32).enumerate() {
            for row in joined.panel_mut(panels + panel) {
                let row = row.as_mut();
                row.fill(T::from_f32(0.0));
                row.iter_mut().zip(mean).for_each(|(to, &x)| *to = T::from_f32(x));
            }
        }
        let operands = &mut on.operands;
        let [to_first, to_second] = &self.narrow;
        first.reshape(rows, to_first.panels());
        to_first.prepare(isa, joined, operands);
        let then = Then::Gelu(Gelu::Exact, None, &mut *first);
        to_first.multiply(isa, joined, operands, 0..rows, then);
        second.reshape(rows, to_second.panels());
        to_second.prepare(isa, first, operands);
        let then = Then::Gelu(Gelu::Exact, None, &mut *second);
        to_second.multiply(isa, first, operands, 0..rows, then);
        scores.reshape(rows, 1);
        self.last.prepare(isa, second, operands);
        let then = Then::Store(0..1, &mut *scores);
        self.last.multiply(isa, second, operands, 0..rows, then);
        on.beside.clear();
        on.beside
            .extend(scores.panel(0).iter().map(|row| row[0] - row[1]));
    }
}

impl<T: Real> Step<T> for Predict<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let first = self.prefix.saturating_sub(on.tokens.start).min(on.x.rows());
        self.begin(on, run, first);
        self.mean(on, run);
        self.end(on, run);
        exchange(on, run);
        on.tokens_room.keep_best(self.prefix, self.kept);
        go(on, run, self.prefix + self.kept);
    }

    fn describe(&self) -> String {
        let each: Vec<String> = self.products().map(Product::describe).collect();
        format!(
            "{} of {} patches stay by their scores ({})",
            self.kept,
            self.patches,
            each.join(", ")
        )
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.prefix + self.kept;
        self.patches * self.products().map(Product::macs_of_row).sum::<usize>()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.products().flat_map(Product::weights).collect()
    }
}
