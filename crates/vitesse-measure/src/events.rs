//! What work tells while it goes.
//!
//! Every function of this crate that takes long is given a flag that stops it and somebody to tell, as the trainer is. A
//! program shows what it is told as lines and bars; a library that nobody watches passes `&mut ()`.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use vitesse_train::evaluate::EvalProgress;

use crate::error::go_on;

/// How far a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done, such as `testing`; empty where that is clear.
    pub about: &'static str,
    /// What is counted, such as `images`.
    pub unit: &'static str,
    /// How many of them are done: 0 when it begins.
    pub done: usize,
    /// All of them.
    pub total: usize,
}

impl Progress {
    /// None of `total` images is done.
    pub(crate) fn of_images(total: usize) -> Progress {
        Progress {
            about: "",
            unit: "images",
            done: 0,
            total,
        }
    }
}

/// Is told how work goes. Every method does nothing unless it is written.
pub trait Events {
    /// A sentence of some `kind`: `step` for what begins now, `tested` for what was found, `note` for what was taken for
    /// granted.
    fn say(&mut self, _kind: &str, _text: &str) {}
    /// How far the work is.
    fn progress(&mut self, _: Progress) {}
}

/// Tells nobody.
impl Events for () {}

/// Is also told how runs of training go.
#[cfg(feature = "train")]
pub trait TrainEvents: Events {
    /// Who is told of the run that begins.
    fn training(&mut self) -> &mut dyn vitesse_train::events::Events;
    /// Who is told of everything else.
    fn as_events(&mut self) -> &mut dyn Events;
}

#[cfg(feature = "train")]
impl TrainEvents for () {
    fn training(&mut self) -> &mut dyn vitesse_train::events::Events {
        self
    }

    fn as_events(&mut self) -> &mut dyn Events {
        self
    }
}

/// Tells how far an evaluation over `total` images is, and breaks it off once `stop` was set.
pub(crate) fn evaluating<'a>(
    about: &'static str,
    total: usize,
    stop: &'a AtomicBool,
    events: &'a mut dyn Events,
) -> impl FnMut(EvalProgress) -> ControlFlow<()> + 'a {
    let begun = Progress {
        about,
        ..Progress::of_images(total)
    };
    events.progress(begun);
    move |progress| {
        let done = progress.done;
        events.progress(Progress { done, ..begun });
        go_on(stop)
    }
}
