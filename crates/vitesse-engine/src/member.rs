//! The memory of one thread.

use std::ops::Range;

use vitesse_kernels::{Attention, Columns, MixedAttention, Panels, Real};
use vitesse_model::Site;

use crate::profile::Clock;
use crate::steps::{NarrowRoom, PredictRoom, TokenRoom};
use crate::team::Team;
use crate::weights::Operands;

/// Everything that steps write. Memory is kept from image to image.
#[derive(Debug)]
pub(crate) struct Member<T: Real> {
    /// Which tokens of the image are this thread's.
    pub(crate) tokens: Range<usize>,
    /// The rows of the stream that steps work on now: all, or a few at a time.
    pub(crate) part: Range<usize>,
    /// The residual stream of its tokens.
    pub(crate) x: Panels<f32>,
    /// Normed tokens, or heads' results, or patches: what goes into a product.
    pub(crate) input: Panels<T>,
    /// Hidden units of a perceptron.
    pub(crate) hidden: Panels<T>,
    pub(crate) q: Panels<T>,
    pub(crate) kv: Panels<T>,
    /// The value that passes ops which stay.
    pub(crate) value: Panels<f32>,
    /// The stream at `block.in` and at `mid`, where something reads it later.
    pub(crate) held: [Panels<f32>; 2],
    /// Rows on their way back to the stream, or to the results.
    pub(crate) spare: Panels<f32>,
    pub(crate) operands: Operands<T>,
    pub(crate) narrow: NarrowRoom<T>,
    /// What the thread shows of each of its tokens besides their rows.
    pub(crate) beside: Vec<f32>,
    pub(crate) tokens_room: TokenRoom,
    pub(crate) predict: PredictRoom<T>,
    pub(crate) attention: Attention<T>,
    /// Of attention whose heads are mixed, and where the heads' columns lie.
    pub(crate) mixed: MixedAttention<T>,
    pub(crate) columns: Vec<Columns>,
    /// Which of the two places to show things is next.
    pub(crate) turn: usize,
    /// Results of the images it has finished, heads one after the other.
    pub(crate) results: Vec<f32>,
    pub(crate) clock: Clock,
}

/// The operands that ops pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    Input,
    Hidden,
}

impl<T: Real> Member<T> {
    pub(crate) fn new() -> Self {
        let real = || Panels::<T>::zeros(0, 0);
        let f32 = || Panels::<f32>::zeros(0, 0);
        Member {
            tokens: 0..0,
            part: 0..0,
            x: f32(),
            input: real(),
            hidden: real(),
            q: real(),
            kv: real(),
            value: f32(),
            held: [f32(), f32()],
            spare: f32(),
            operands: Operands::new(),
            narrow: NarrowRoom::new(),
            beside: Vec::new(),
            tokens_room: TokenRoom::default(),
            predict: PredictRoom::new(),
            attention: Attention::new(1),
            mixed: MixedAttention::new(),
            columns: Vec::new(),
            turn: 0,
            results: Vec::new(),
            clock: Clock::new(),
        }
    }

    /// Before a run of images of one team.
    pub(crate) fn begin(&mut self) {
        self.turn = 0;
    }

    /// The place for what is shown or read now; the next one is the other.
    pub(crate) fn next_turn(&mut self) -> usize {
        self.turn ^= 1;
        self.turn ^ 1
    }

    /// Shows rows of its tokens to the others, and meets them.
    pub(crate) fn show(&self, team: &Team<'_, T>, rows: &Panels<f32>) {
        let mut place = team.own(self.turn);
        place.tokens = self.tokens.clone();
        place.rows.copy(rows);
        drop(place);
        team.wait();
    }

    /// From here on the stream's rows are those of `tokens`.
    pub(crate) fn has(&mut self, tokens: Range<usize>) {
        self.part = 0..tokens.len();
        self.tokens = tokens;
    }

    /// The rows of `spare` become the stream's. They are copied: memory stays where it is.
    pub(crate) fn adopt(&mut self, tokens: Range<usize>) {
        self.x.copy(&self.spare);
        self.has(tokens);
    }
}

/// Where the stream at a site is held.
pub(crate) fn place(site: Site) -> usize {
    usize::from(site == Site::Mid)
}

/// The rows of `from` from the row `first` on, as many as `to` has, rounded.
pub(crate) fn cast<T: Real>(from: &Panels<f32>, first: usize, to: &mut Panels<T>) {
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

/// `to += from`
pub(crate) fn add(to: &mut [[f32; 32]], from: &[[f32; 32]]) {
    for (to, from) in to.as_flattened_mut().iter_mut().zip(from.as_flattened()) {
        *to += from;
    }
}
