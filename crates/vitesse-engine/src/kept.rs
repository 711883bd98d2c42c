//! Ops that stay: what cannot be folded into the products around it, or is not to be.
//!
//! * A **low-rank** update becomes more inputs of its projection: `W x + s·B (A x) = [W | s·B] [x ; A x]`, so that one
//!   product, with whatever is fused to it, does both.
//! * A **bottleneck** is two narrow products beside the value that passes, in `f32` between them and it.
//! * **Prompts** are rows of the stream that are overwritten at the beginning of a block.

use vitesse_kernels::{Isa, Panels, Real, layer_norm, linear, linear_add, linear_gelu, scale_shift};
use vitesse_model::Site;
use vitesse_model::ops::Activation;

use crate::ops::Rows;
use crate::plan::{Dense, NormRows};

/// One op of those that stay at a site.
#[derive(Debug)]
pub(crate) enum Step<T: Real> {
    ScaleShift(Rows, Rows),
    Bottleneck(Box<Narrow<T>>),
}

/// A bottleneck.
#[derive(Debug)]
pub(crate) struct Narrow<T: Real> {
    /// Where it reads, if not the value that passes.
    pub(crate) from: Option<Site>,
    pub(crate) before: Option<NormRows>,
    pub(crate) down: Dense<T>,
    pub(crate) activation: Activation,
    /// Scaled.
    pub(crate) up: Dense<T>,
    pub(crate) after: Option<NormRows>,
}

/// The memory of one thread for the ops that stay.
#[derive(Debug)]
pub(crate) struct Scratch<T: Real> {
    /// The value that passes a site.
    pub(crate) value: Panels<f32>,
    /// The stream at `block.in` and at `mid`, where something reads it later.
    held: [Panels<f32>; 2],
    /// What a bottleneck reads, as an operand.
    operand: Panels<T>,
    hidden: Panels<T>,
    /// What it writes, where a norm follows, before and after that.
    written: [Panels<f32>; 2],
    /// A projection's input with more beside it.
    beside: Panels<T>,
}

impl<T: Real> Scratch<T> {
    pub(crate) fn new() -> Self {
        Scratch {
            value: Panels::zeros(0, 0),
            held: [Panels::zeros(0, 0), Panels::zeros(0, 0)],
            operand: Panels::zeros(0, 0),
            hidden: Panels::zeros(0, 0),
            written: [Panels::zeros(0, 0), Panels::zeros(0, 0)],
            beside: Panels::zeros(0, 0),
        }
    }

    /// Keeps the stream for a later op of the block.
    pub(crate) fn hold(&mut self, site: Site, x: &Panels<f32>) {
        let to = &mut self.held[usize::from(site == Site::Mid)];
        to.reshape(x.rows(), x.panels());
        for panel in 0..x.panels() {
            to.panel_mut(panel).copy_from_slice(x.panel(panel));
        }
    }

    /// The steps at a site that an operand passes. No step there reads elsewhere.
    pub(crate) fn pass(&mut self, isa: Isa, steps: &[Step<T>], operand: &mut Panels<T>) {
        if steps.is_empty() {
            return;
        }
        self.value.reshape(operand.rows(), operand.panels());
        for panel in 0..operand.panels() {
            for (to, from) in self.value.panel_mut(panel).iter_mut().zip(operand.panel(panel)) {
                for (to, &from) in to.iter_mut().zip(from.as_ref()) {
                    *to = from.to_f32();
                }
            }
        }
        self.run(isa, steps, 0);
        cast(&self.value, 0, operand);
    }

    /// Room for a branch of the stream, zero.
    pub(crate) fn branch(&mut self, rows: usize, panels: usize) -> &mut Panels<f32> {
        self.value.reshape(rows, panels);
        for panel in 0..panels {
            self.value.panel_mut(panel).fill([0.0; 32]);
        }
        &mut self.value
    }

    /// Adds the branch to the stream from the row `first` on.
    pub(crate) fn add_branch(&self, x: &mut Panels<f32>, first: usize) {
        let rows = self.value.rows();
        for panel in 0..self.value.panels() {
            let to = &mut x.panel_mut(panel)[first..first + rows];
            add(to, self.value.panel(panel));
        }
    }

    /// The steps on `value`, whose rows are those of the stream from `first` on.
    pub(crate) fn run(&mut self, isa: Isa, steps: &[Step<T>], first: usize) {
        for step in steps {
            match step {
                Step::ScaleShift(scale, shift) => scale_shift(isa, &mut self.value, scale, shift),
                Step::Bottleneck(narrow) => self.bottleneck(isa, narrow, first),
            }
        }
    }

    fn bottleneck(&mut self, isa: Isa, narrow: &Narrow<T>, first: usize) {
        let (rows, panels) = (self.value.rows(), self.value.panels());
        let (source, at) = match narrow.from {
            Some(site) => (&self.held[usize::from(site == Site::Mid)], first),
            None => (&self.value, 0),
        };
        self.operand.reshape(rows, panels);
        match &narrow.before {
            Some(norm) => layer_norm(isa, source, at..at + rows, norm.norm(), &mut self.operand),
            None => cast(source, at, &mut self.operand),
        }
        let down = narrow.down.linear();
        self.hidden.reshape(rows, narrow.down.panels());
        if narrow.activation == Activation::Gelu {
            linear_gelu(isa, &self.operand, 0..rows, down, None, &mut self.hidden);
        } else {
            let all = 0..narrow.down.panels();
            linear(isa, &self.operand, 0..rows, down, all, &mut self.hidden);
            activate(narrow.activation, &mut self.hidden);
        }
        let up = narrow.up.linear();
        let Some(norm) = &narrow.after else {
            linear_add(isa, &self.hidden, 0..rows, up, None, &mut self.value, 0);
            return;
        };
        let [written, normed] = &mut self.written;
        written.reshape(rows, panels);
        linear(isa, &self.hidden, 0..rows, up, 0..panels, written);
        normed.reshape(rows, panels);
        layer_norm(isa, written, 0..rows, norm.norm(), normed);
        for panel in 0..panels {
            add(self.value.panel_mut(panel), normed.panel(panel));
        }
    }

    /// Puts the product of `operand` with `down` beside it.
    pub(crate) fn widen(&mut self, isa: Isa, down: Option<&Dense<T>>, operand: &mut Panels<T>) {
        let Some(down) = down else { return };
        let (rows, panels) = (operand.rows(), operand.panels());
        self.hidden.reshape(rows, down.panels());
        linear(
            isa,
            operand,
            0..rows,
            down.linear(),
            0..down.panels(),
            &mut self.hidden,
        );
        self.beside.reshape(rows, panels + down.panels());
        for panel in 0..panels {
            self.beside.panel_mut(panel).copy_from_slice(operand.panel(panel));
        }
        for panel in 0..down.panels() {
            let to = self.beside.panel_mut(panels + panel);
            to.copy_from_slice(self.hidden.panel(panel));
        }
        std::mem::swap(&mut self.beside, operand);
    }
}

/// The rows of `from` from the row `first` on, as many as `to` has, rounded.
fn cast<T: Real>(from: &Panels<f32>, first: usize, to: &mut Panels<T>) {
    let rows = to.rows();
    for panel in 0..to.panels() {
        let source = &from.panel(panel)[first..first + rows];
        for (to, from) in to.panel_mut(panel).iter_mut().zip(source) {
            for (to, &from) in to.as_mut().iter_mut().zip(from) {
                *to = T::from_f32(from);
            }
        }
    }
}

fn add(to: &mut [[f32; 32]], from: &[[f32; 32]]) {
    for (to, from) in to.as_flattened_mut().iter_mut().zip(from.as_flattened()) {
        *to += from;
    }
}

fn activate<T: Real>(activation: Activation, x: &mut Panels<T>) {
    let f: fn(f32) -> f32 = match activation {
        // GELU is fused to the product.
        Activation::None | Activation::Gelu => return,
        Activation::QuickGelu => |x| x / (1.0 + (-1.702 * x).exp()),
        // Not `f32::max`, which overlooks NaN.
        Activation::Relu => |x| if x < 0.0 { 0.0 } else { x },
    };
    for panel in 0..x.panels() {
        for row in x.panel_mut(panel) {
            for x in row.as_mut() {
                *x = T::from_f32(f(x.to_f32()));
            }
        }
    }
}
