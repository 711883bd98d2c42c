//! Patches to tokens.

use std::sync::Arc;

use vitesse_kernels::{Panels, Real, patches};

use super::{HIDDEN_BYTES, parts};
use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::Run;
use crate::weights::{Product, Then, Weights};

/// The stream's beginning: prefix tokens, prompts, and the patches' products.
#[derive(Debug)]
pub(crate) struct Embed<T: Real> {
    /// Channels, height and width.
    pub(crate) image: [usize; 3],
    /// Side of a patch.
    pub(crate) side: usize,
    /// Tokens before the patches.
    pub(crate) prefix: usize,
    /// What the residual stream starts from, `[tokens, dim]`: prefix tokens with their positions, and the positions of the
    /// patches.
    pub(crate) start: Panels<f32>,
    pub(crate) product: Product<T>,
}

impl<T: Real> Embed<T> {
    fn columns(&self) -> usize {
        self.image[0] * self.side * self.side
    }

    fn patches(&self) -> usize {
        self.start.rows() - self.prefix
    }
}

impl<T: Real> Step<T> for Embed<T> {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let tokens = run.team.share(self.start.rows());
        on.has(tokens.clone());
        on.x.reshape(tokens.len(), self.start.panels());
        for panel in 0..self.start.panels() {
            on.x.panel_mut(panel)
                .copy_from_slice(&self.start.panel(panel)[tokens.clone()]);
        }
        let columns = self.columns();
        let first = tokens.start.max(self.prefix);
        // A few patches at a time, so that they never leave the cache.
        for part in parts(first..tokens.end, HIDDEN_BYTES / (columns * size_of::<T>())) {
            on.input.reshape(part.len(), Panels::<T>::needed(columns));
            let range = part.start - self.prefix..part.end - self.prefix;
            patches(run.isa, run.image, self.image, self.side, range, &mut on.input);
            self.product.prepare(run.isa, &mut on.input, &mut on.operands);
            let then: Then<'_, f32> = Then::Add {
                into: None,
                x: &mut on.x,
                first: part.start - tokens.start,
            };
            self.product
                .multiply(run.isa, &on.input, &on.operands, 0..part.len(), then);
        }
    }

    fn describe(&self) -> String {
        let (patches, tokens) = (self.patches(), self.start.rows());
        format!(
            "{patches} patches to {tokens} tokens, {}",
            self.product.describe()
        )
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.start.rows();
        self.patches() * self.product.macs_of_row()
    }

    fn weights(&self) -> Vec<&Arc<Weights<T>>> {
        self.product.weights()
    }
}
