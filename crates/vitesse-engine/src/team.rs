//! Threads that compute one image together, and what they show each other.
//!
//! A step that needs what other threads have writes its own part to [`Team::own`], waits for all at [`Team::wait`], and
//! reads everyone's from [`Team::all`]. The places are used in turn, so that one meeting is enough: whoever writes the one
//! knows that everyone has done with it, because everyone has come to the meeting of the other since.

use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vitesse_kernels::{Barrier, Isa, Packed, Panels, Real};

/// The most threads of one engine.
pub(crate) const MOST_THREADS: usize = 64;
/// The fewest tokens that are worth a thread.
pub(crate) const LEAST_TOKENS: usize = 8;

/// What one thread shows the others.
#[derive(Debug)]
pub(crate) struct Shown<T: Real> {
    /// Keys and values of its tokens, by head, packed.
    pub(crate) heads: Vec<(Packed<T>, Packed<T>)>,
    /// Which tokens it has, and their rows of the stream.
    pub(crate) tokens: Range<usize>,
    pub(crate) rows: Panels<f32>,
    /// What it shows of each of them besides.
    pub(crate) beside: Vec<f32>,
}

/// The two places of one thread.
#[derive(Debug)]
pub(crate) struct Shared<T: Real> {
    turns: [RwLock<Shown<T>>; 2],
}

impl<T: Real> Shared<T> {
    pub(crate) fn new() -> Self {
        let place = || {
            RwLock::new(Shown {
                heads: Vec::new(),
                tokens: 0..0,
                rows: Panels::zeros(0, 0),
                beside: Vec::new(),
            })
        };
        Shared {
            turns: [place(), place()],
        }
    }
}

/// The threads that compute one image together, and which of them this is.
pub(crate) struct Team<'a, T: Real> {
    pub(crate) index: usize,
    pub(crate) members: &'a [Shared<T>],
    pub(crate) barrier: Option<&'a Barrier>,
}

impl<T: Real> Team<'_, T> {
    /// Meets the others.
    pub(crate) fn wait(&self) {
        if let Some(barrier) = self.barrier {
            barrier.wait();
        }
    }

    /// The place in which this thread shows what it has.
    pub(crate) fn own(&self, turn: usize) -> RwLockWriteGuard<'_, Shown<T>> {
        let place = &self.members[self.index].turns[turn];
        place.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread shows; to be called after a meeting.
    pub(crate) fn all(&self, turn: usize) -> [Option<RwLockReadGuard<'_, Shown<T>>>; MOST_THREADS] {
        std::array::from_fn(|i| {
            let place = &self.members.get(i)?.turns[turn];
            Some(place.read().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// The tokens that this one computes of so many.
    pub(crate) fn share(&self, tokens: usize) -> Range<usize> {
        let count = self.members.len();
        let at = |i: usize| i * (tokens / count) + i.min(tokens % count);
        at(self.index)..at(self.index + 1)
    }
}

/// What a step needs besides its own and its thread's memory.
pub(crate) struct Run<'a, T: Real> {
    pub(crate) isa: Isa,
    /// `[channels, height, width]`
    pub(crate) image: &'a [f32],
    pub(crate) team: &'a Team<'a, T>,
}
