//! What happens to the residual stream itself: norms, ops on it, prompts.

use vitesse_kernels::{Panels, Real, layer_norm, scale_shift};
use vitesse_model::Site;

use crate::member::{Member, place};
use crate::plan::Step;
use crate::team::Run;
use crate::weights::{NormRows, Rows};

/// The norm before a projection: rows of the stream to an operand.
#[derive(Debug)]
pub(crate) struct Norm(pub(crate) NormRows);

impl<T: Real> Step<T> for Norm {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        on.input.reshape(on.part.len(), on.x.panels());
        layer_norm(run.isa, &on.x, on.part.clone(), self.0.norm(), &mut on.input);
    }

    fn describe(&self) -> String {
        format!("norm of {}", self.0.dim)
    }
}

/// A norm of the stream itself: before the first block, or before what reads the end.
#[derive(Debug)]
pub(crate) struct NormStream(pub(crate) NormRows);

impl<T: Real> Step<T> for NormStream {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        on.spare.reshape(on.x.rows(), on.x.panels());
        layer_norm(run.isa, &on.x, 0..on.x.rows(), self.0.norm(), &mut on.spare);
        on.adopt(on.tokens.clone());
    }

    fn describe(&self) -> String {
        format!("norm of the stream of {}", self.0.dim)
    }
}

/// A scale and a shift that have no neighbour to be folded into.
#[derive(Debug)]
pub(crate) struct ScaleShift {
    pub(crate) site: Site,
    pub(crate) scale: Rows,
    pub(crate) shift: Rows,
}

impl<T: Real> Step<T> for ScaleShift {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        scale_shift(run.isa, &mut on.x, &self.scale, &self.shift);
    }

    fn describe(&self) -> String {
        format!("scale and shift at {}", self.site)
    }
}

/// Keeps the stream for a later op of the block.
#[derive(Debug)]
pub(crate) struct Hold(pub(crate) Site);

impl<T: Real> Step<T> for Hold {
    fn run(&self, on: &mut Member<T>, _run: &Run<'_, T>) {
        let to = &mut on.held[place(self.0)];
        to.reshape(on.x.rows(), on.x.panels());
        for panel in 0..on.x.panels() {
            to.panel_mut(panel).copy_from_slice(on.x.panel(panel));
        }
    }

    fn describe(&self) -> String {
        format!("keep the stream at {}", self.0)
    }
}

/// Prompts that take the place of those before, as far as they are this thread's.
#[derive(Debug)]
pub(crate) struct Prompts {
    /// Which token is the first of them.
    pub(crate) first: usize,
    /// `[prompts, dim]`
    pub(crate) rows: Panels<f32>,
}

impl<T: Real> Step<T> for Prompts {
    fn run(&self, on: &mut Member<T>, _run: &Run<'_, T>) {
        let end = self.first + self.rows.rows();
        for token in self.first.max(on.tokens.start)..end.min(on.tokens.end) {
            for panel in 0..self.rows.panels() {
                on.x.panel_mut(panel)[token - on.tokens.start] = self.rows.panel(panel)[token - self.first];
            }
        }
    }

    fn describe(&self) -> String {
        format!("{} prompts", self.rows.rows())
    }
}
