//! A depth-wise convolution over the map, behind a norm: what comes out is the stream from there on.

use vitesse_kernels::{Depthwise, Real, depthwise, layer_norm};

use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::Run;
use crate::weights::{NormRows, Rows};

/// `x̃ + conv(x̃)` of the normed stream, in whatever order its tokens lie.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) norm: NormRows,
    /// For each panel a row for each tap.
    pub(crate) weights: Vec<Rows>,
    pub(crate) bias: Rows,
    /// Which token of the stream each tap of each token reads, `[tokens, taps]`; the one after the last is none.
    pub(crate) neighbours: Vec<u32>,
    /// Tokens that are no patches: they are only normed.
    pub(crate) apart: Vec<usize>,
    pub(crate) tokens: usize,
}

impl Local {
    fn taps(&self) -> usize {
        self.weights.first().map_or(0, Vec::len)
    }
}

impl<T: Real> Step<T> for Local {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let (rows, panels) = (on.x.rows(), on.x.panels());
        on.spare.reshape(rows, panels);
        layer_norm(run.isa, &on.x, 0..rows, self.norm.norm(), &mut on.spare);
        // The normed rows of all, and one of zeros.
        on.value.reshape(self.tokens + 1, panels);
        if run.team.members.len() == 1 {
            for panel in 0..panels {
                on.value.panel_mut(panel)[..rows].copy_from_slice(on.spare.panel(panel));
            }
        } else {
            on.show(run.team, &on.spare);
            for shown in run.team.all(on.next_turn()).iter().flatten() {
                for panel in 0..panels {
                    let to = &mut on.value.panel_mut(panel)[shown.tokens.clone()];
                    to.copy_from_slice(shown.rows.panel(panel));
                }
            }
        }
        for panel in 0..panels {
            on.value.panel_mut(panel)[self.tokens] = [0.0; 32];
        }
        let (tokens, taps) = (on.tokens.clone(), self.taps());
        let of = Depthwise {
            weights: &self.weights,
            bias: &self.bias,
            neighbours: &self.neighbours[tokens.start * taps..tokens.end * taps],
            first: tokens.start,
        };
        depthwise(run.isa, &on.value, of, &mut on.x);
        for token in self.apart.iter().filter(|token| tokens.contains(token)) {
            let row = token - tokens.start;
            for panel in 0..panels {
                on.x.panel_mut(panel)[row] = on.spare.panel(panel)[row];
            }
        }
    }

    fn describe(&self) -> String {
        let side = self.taps().isqrt();
        format!(
            "norm and convolution of {side} by {side} of the map, {} channels",
            self.norm.dim
        )
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        let patches = counts.tokens.saturating_sub(self.apart.len());
        patches * self.taps() * self.norm.dim
    }
}
