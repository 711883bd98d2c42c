//! How a measurement is shown: its sentences as lines, how far it is as a bar or as a line every ten seconds.

use vitesse::measure::{self, Events};

use super::console::{Console, Progress};

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
