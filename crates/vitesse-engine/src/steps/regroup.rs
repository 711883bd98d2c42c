//! Where the number of tokens changes inside an image.

use std::ops::Range;

use vitesse_kernels::Real;

use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::{LEAST_TOKENS, Run};

/// Only some tokens go on. Threads that compute the image together show their rows, meet, and divide those that are left
/// anew; where these are too few to be worth it, each stays with the thread that has it.
///
/// Between keys and queries only the first tokens can go on, and few. Nothing that a block holds is divided with the
/// stream, so elsewhere it stands where no later op of the block reads an earlier site.
#[derive(Debug)]
pub(crate) struct Regroup {
    /// Which go on, in ascending order; they are numbered anew.
    tokens: Vec<usize>,
    divides: bool,
}

impl Regroup {
    /// The tokens with these numbers go on, in ascending order.
    pub(crate) fn new(tokens: Vec<usize>) -> Self {
        let divides = tokens.len() >= 2 * LEAST_TOKENS;
        Regroup { tokens, divides }
    }

    /// The new numbers of those that go on of `tokens`.
    fn of(&self, tokens: &Range<usize>) -> Range<usize> {
        let at = |bound: usize| self.tokens.partition_point(|&token| token < bound);
        at(tokens.start)..at(tokens.end)
    }
}

impl<T: Real> Step<T> for Regroup {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let panels = on.x.panels();
        if !self.divides {
            let own = self.of(&on.tokens);
            on.spare.reshape(own.len(), panels);
            for panel in 0..panels {
                let to = on.spare.panel_mut(panel).iter_mut();
                for (to, token) in to.zip(&self.tokens[own.clone()]) {
                    *to = on.x.panel(panel)[token - on.tokens.start];
                }
            }
            on.adopt(own);
            return;
        }
        on.show(run.team, &on.x);
        let turn = on.next_turn();
        let own = run.team.share(self.tokens.len());
        on.spare.reshape(own.len(), panels);
        for shown in run.team.all(turn).iter().flatten() {
            let theirs = self.of(&shown.tokens);
            for index in theirs.start.max(own.start)..theirs.end.min(own.end) {
                let row = self.tokens[index] - shown.tokens.start;
                for panel in 0..panels {
                    on.spare.panel_mut(panel)[index - own.start] = shown.rows.panel(panel)[row];
                }
            }
        }
        on.adopt(own);
    }

    fn describe(&self) -> String {
        format!("{} tokens go on", self.tokens.len())
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.tokens.len();
        0
    }
}
