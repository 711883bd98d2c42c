//! Ops that stay: what cannot be folded into the products around it, or is not to be.
//!
//! A **bottleneck** is two narrow products beside the value that passes, in `f32` between them and it. Low-rank updates,
//! which stand on projections, are part of their product ([`Product::beside`]); prompts are rows of the stream.

use std::sync::Arc;

use vitesse_kernels::{Gelu, Isa, Panels, Real, layer_norm, scale_shift};
use vitesse_model::Site;
use vitesse_model::ops::Activation;

use crate::member::{Member, Operand, add, cast, place};
use crate::plan::{Counts, Step};
use crate::team::Run;
use crate::weights::{NormRows, Operands, Product, Rows, Then, Weights};

/// What stays at one site, one op after the other.
#[derive(Debug)]
pub(crate) struct Ops<T: Real> {
    pub(crate) site: Site,
    /// The operand that passes the site; `None` for a branch of the stream, which is added to it in the end.
    pub(crate) operand: Option<Operand>,
    pub(crate) ops: Vec<Op<T>>,
}

#[derive(Debug)]
pub(crate) enum Op<T: Real> {
    ScaleShift(Rows, Rows),
    Bottleneck(Box<Narrow<T>>),
}

/// A bottleneck.
#[derive(Debug)]
pub(crate) struct Narrow<T: Real> {
    /// Where it reads, if not the value that passes.
    pub(crate) from: Option<Site>,
    pub(crate) before: Option<NormRows>,
    pub(crate) down: Product<T>,
    pub(crate) activation: Activation,
    /// Scaled.
    pub(crate) up: Product<T>,
    pub(crate) after: Option<NormRows>,
}

/// The memory of one thread for bottlenecks.
#[derive(Debug)]
pub(crate) struct NarrowRoom<T: Real> {
    /// What one reads, as an operand.
    operand: Panels<T>,
    hidden: Panels<T>,
    /// What it writes, where a norm follows, before and after that.
    written: [Panels<f32>; 2],
}

impl<T: Real> NarrowRoom<T> {
    pub(crate) fn new() -> Self {
        NarrowRoom {
            operand: Panels::zeros(0, 0),
            hidden: Panels::zeros(0, 0),
            written: [Panels::zeros(0, 0), Panels::zeros(0, 0)],
        }
    }
}

impl<T: Real> Step<T> for Ops<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let operand = match self.operand {
            Some(Operand::Input) => Some(&mut on.input),
            Some(Operand::Hidden) => Some(&mut on.hidden),
            None => None,
        };
        if let Some(operand) = &operand {
            widen(operand, &mut on.value);
        }
        for op in &self.ops {
            match op {
                Op::ScaleShift(scale, shift) => scale_shift(run.isa, &mut on.value, scale, shift),
                Op::Bottleneck(narrow) => narrow.run(
                    run.isa,
                    &mut on.value,
                    (&on.held, on.part.start),
                    &mut on.narrow,
                    &mut on.operands,
                ),
            }
        }
        match operand {
            Some(operand) => cast(&on.value, 0, operand),
            None => {
                for panel in 0..on.value.panels() {
                    let to = &mut on.x.panel_mut(panel)[on.part.clone()];
                    add(to, on.value.panel(panel));
                }
            }
        }
    }

    fn describe(&self) -> String {
        let ops = self.ops.iter().map(|op| match op {
            Op::ScaleShift(..) => "scale and shift".to_owned(),
            Op::Bottleneck(narrow) => {
                let [down, up] = [&narrow.down, &narrow.up].map(Product::describe);
                format!("bottleneck ({down}, {}, {up})", narrow.activation.name())
            }
        });
        format!("{} at {}", ops.collect::<Vec<_>>().join(", "), self.site)
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        let each = self.products().map(Product::macs_of_row);
        counts.tokens * each.sum::<usize>()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.products().flat_map(Product::weights).collect()
    }
}

impl<T: Real> Ops<T> {
    fn products(&self) -> impl Iterator<Item = &Product<T>> {
        self.ops.iter().flat_map(|op| match op {
            Op::ScaleShift(..) => Vec::new(),
            Op::Bottleneck(narrow) => vec![&narrow.down, &narrow.up],
        })
    }
}

impl<T: Real> Narrow<T> {
    /// Adds what it says to `value`, whose rows are those of the held streams from `first` on.
    fn run(
        &self,
        isa: Isa,
        value: &mut Panels<f32>,
        (held, first): (&[Panels<f32>; 2], usize),
        room: &mut NarrowRoom<T>,
        operands: &mut Operands<T>,
    ) {
        let (rows, panels) = (value.rows(), value.panels());
        let (source, at) = match self.from {
            Some(site) => (&held[place(site)], first),
            None => (&*value, 0),
        };
        room.operand.reshape(rows, panels);
        match &self.before {
            Some(norm) => layer_norm(isa, source, at..at + rows, norm.norm(), &mut room.operand),
            None => cast(source, at, &mut room.operand),
        }
        room.hidden.reshape(rows, self.down.panels());
        let then = match gelu(self.activation) {
            Some(form) => Then::Gelu(form, None, &mut room.hidden),
            None => Then::Store(0..self.down.panels(), &mut room.hidden),
        };
        self.down.prepare(isa, &mut room.operand, operands);
        self.down.multiply(isa, &room.operand, operands, 0..rows, then);
        activate(self.activation, &mut room.hidden);
        self.up.prepare(isa, &mut room.hidden, operands);
        let Some(norm) = &self.after else {
            let then: Then<'_, f32> = Then::Add {
                into: None,
                x: value,
                first: 0,
            };
            self.up.multiply(isa, &room.hidden, operands, 0..rows, then);
            return;
        };
        let [written, normed] = &mut room.written;
        written.reshape(rows, panels);
        let then = Then::Store(0..panels, &mut *written);
        self.up.multiply(isa, &room.hidden, operands, 0..rows, then);
        normed.reshape(rows, panels);
        layer_norm(isa, written, 0..rows, norm.norm(), normed);
        for panel in 0..panels {
            add(value.panel_mut(panel), normed.panel(panel));
        }
    }
}

/// An operand as `f32`.
fn widen<T: Real>(from: &Panels<T>, to: &mut Panels<f32>) {
    to.reshape(from.rows(), from.panels());
    for panel in 0..from.panels() {
        for (to, from) in to.panel_mut(panel).iter_mut().zip(from.panel(panel)) {
            for (to, &from) in to.iter_mut().zip(from.as_ref()) {
                *to = from.to_f32();
            }
        }
    }
}

/// The form of an activation that is fused to the product.
pub(crate) fn gelu(activation: Activation) -> Option<Gelu> {
    match activation {
        Activation::Gelu => Some(Gelu::Exact),
        Activation::QuickGelu => Some(Gelu::Quick),
        Activation::None | Activation::Relu => None,
    }
}

/// The activations that are not fused to the product.
pub(super) fn activate<T: Real>(activation: Activation, x: &mut Panels<T>) {
    let f: fn(f32) -> f32 = match activation {
        Activation::None | Activation::Gelu | Activation::QuickGelu => return,
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
