//! The perceptron, and the sum with which every branch ends.

use std::ops::Range;
use std::sync::Arc;

use vitesse_kernels::Real;
use vitesse_model::ops::Activation;

use super::ops::{activate, gelu};
use super::parts;
use crate::member::{Member, Operand};
use crate::plan::{Counts, Placed, Step};
use crate::team::Run;
use crate::weights::{Product, Rows, Then, Weights};

/// Some steps that a few rows of the stream at a time pass, so that what they write stays in the cache.
#[derive(Debug)]
pub(crate) struct ByRows<T: Real> {
    /// The most rows, where they are more than a few.
    pub(crate) most: usize,
    pub(crate) steps: Vec<Placed<T>>,
}

impl<T: Real> Step<T> for ByRows<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let all: Range<usize> = on.part.clone();
        for part in parts(all.clone(), self.most) {
            on.part = part;
            for step in &self.steps {
                step.run(on, run);
            }
        }
        on.part = all;
    }

    fn describe(&self) -> String {
        format!("at most {} rows at a time:", self.most)
    }

    fn inner(&self) -> &[Placed<T>] {
        &self.steps
    }
}

/// The first projection and the activation: input to hidden units.
#[derive(Debug)]
pub(crate) struct Hidden<T: Real> {
    pub(crate) product: Product<T>,
    pub(crate) activation: Activation,
    /// What follows a GELU.
    pub(crate) after: Option<(Rows, Rows)>,
}

impl<T: Real> Step<T> for Hidden<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let product = &self.product;
        product.prepare(run.isa, &mut on.input, &mut on.operands);
        let (rows, panels) = (on.input.rows(), product.panels());
        on.hidden.reshape(rows, panels);
        let then = match gelu(self.activation) {
            Some(form) => Then::Gelu(form, self.after.as_ref(), &mut on.hidden),
            None => Then::Store(0..panels, &mut on.hidden),
        };
        product.multiply(run.isa, &on.input, &on.operands, 0..rows, then);
        activate(self.activation, &mut on.hidden);
    }

    fn describe(&self) -> String {
        let after = self.after.as_ref().map_or("", |_| ", scaled after it");
        let name = self.activation.name();
        format!("fc1 {}, {name}{after}", self.product.describe())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens * self.product.macs_of_row()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.product.weights()
    }
}

/// The last projection of a branch, added to the stream; or, where ops stay behind it, the branch by itself.
#[derive(Debug)]
pub(crate) struct Add<T: Real> {
    pub(crate) name: &'static str,
    pub(crate) operand: Operand,
    pub(crate) product: Product<T>,
    /// The channels that it writes, where it does not write all.
    pub(crate) into: Option<Vec<usize>>,
    /// Whether ops stay behind it, which add the branch to the stream.
    pub(crate) apart: bool,
}

impl<T: Real> Step<T> for Add<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let operand = match self.operand {
            Operand::Input => &mut on.input,
            Operand::Hidden => &mut on.hidden,
        };
        self.product.prepare(run.isa, operand, &mut on.operands);
        let rows = operand.rows();
        let (x, first) = if self.apart {
            let panels = on.x.panels();
            on.value.reshape(rows, panels);
            (0..panels).for_each(|panel| on.value.panel_mut(panel).fill([0.0; 32]));
            (&mut on.value, 0)
        } else {
            (&mut on.x, on.part.start)
        };
        let into = self.into.as_deref();
        let then: Then<'_, f32> = Then::Add { into, x, first };
        self.product
            .multiply(run.isa, operand, &on.operands, 0..rows, then);
    }

    fn describe(&self) -> String {
        let to = if self.apart { "" } else { ", added to the stream" };
        format!("{} {}{to}", self.name, self.product.describe())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens * self.product.macs_of_row()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.product.weights()
    }
}
