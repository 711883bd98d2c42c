//! How a measurement is shown: its sentences as lines, how far it is as a bar or as a line every ten seconds.

use vitesse::measure::{self, Events};

use super::console::{Console, Progress};
#[cfg(feature = "train")]
use super::training::Watch;

/// Shows what a measurement tells.
pub(super) struct Show<'a> {
    console: &'a Console,
    shown: Option<(measure::Progress, Progress<'a>)>,
}

impl<'a> Show<'a> {
    pub(super) fn new(console: &'a Console) -> Show<'a> {
        Show { console, shown: None }
    }
}

/// Shows runs of training too.
#[cfg(feature = "train")]
pub(super) struct ShowRuns<'a> {
    show: Show<'a>,
    watch: Watch<'a>,
}

#[cfg(feature = "train")]
impl<'a> ShowRuns<'a> {
    pub(super) fn new(console: &'a Console) -> ShowRuns<'a> {
        ShowRuns {
            show: Show::new(console),
            watch: Watch::new(console),
        }
    }
}

#[cfg(feature = "train")]
impl Events for ShowRuns<'_> {
    fn say(&mut self, kind: &str, text: &str) {
        self.show.say(kind, text);
    }

    fn progress(&mut self, at: measure::Progress) {
        self.show.progress(at);
    }
}

#[cfg(feature = "train")]
impl measure::TrainEvents for ShowRuns<'_> {
    fn training(&mut self) -> &mut dyn vitesse_train::events::Events {
        self.watch = Watch::new(self.show.console);
        &mut self.watch
    }

    fn as_events(&mut self) -> &mut dyn Events {
        self
    }
}

impl Events for Show<'_> {
    fn say(&mut self, kind: &str, text: &str) {
        match &self.shown {
            Some((_, progress)) => progress.say(kind, text),
            None => self.console.say(kind, text),
        }
    }

    fn progress(&mut self, at: measure::Progress) {
        let goes_on = |(last, _): &(measure::Progress, Progress<'_>)| {
            (last.about, last.unit, last.total) == (at.about, at.unit, at.total) && last.done <= at.done
        };
        let mut progress = match self.shown.take().filter(goes_on) {
            Some((_, progress)) => progress,
            None => self.console.progress(at.unit, at.total),
        };
        if !at.about.is_empty() {
            progress.about(at.about);
        }
        // Who asked to stop is heard by what is measured.
        let _ = progress.at(at.done);
        self.shown = (at.done < at.total).then_some((at, progress));
    }
}
