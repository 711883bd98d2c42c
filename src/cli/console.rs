//! Standard error: notes, errors, progress. And the one thing that comes the other way: Ctrl-C.
//!
//! Of several processes that do one work, the first alone speaks, but for errors.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use vitesse::report::format;
use vitesse_train::parallel::Team;

use super::failure::{Exit, Failure, Result};
use super::outcome::Outcome;

/// Where a verb speaks to whoever waits for it.
#[derive(Debug)]
pub(crate) struct Console {
    interrupted: Arc<AtomicBool>,
    team: Team,
}

impl Console {
    /// Takes over Ctrl-C and the system's request to end: the first asks the running verb to stop where nothing is left
    /// half done, the second stops at once. Joins the team that this process was launched in.
    pub(crate) fn start() -> Result<Console> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let team = Team::launched(Arc::clone(&interrupted))?;
        let (seen, leads) = (Arc::clone(&interrupted), team.leads());
        let handler = move || {
            if seen.swap(true, Ordering::SeqCst) {
                std::process::exit(Exit::Interrupted as i32);
            }
            if leads {
                line("note", "stopping; press Ctrl-C again to stop at once");
            }
        };
        ctrlc::set_handler(handler)
            .map_err(|error| Failure::new("E_INTERNAL", format!("cannot listen for Ctrl-C: {error}")))?;
        Ok(Console { interrupted, team })
    }

    /// The end: writes what a verb came to, or why it came to nothing, and waits for the other processes.
    pub(crate) fn end(self, outcome: Result<Outcome>, json: bool) -> Exit {
        if outcome.is_err() {
            self.team.leave();
        }
        let exit = match outcome.and_then(|outcome| outcome.print(json, self.team.leads())) {
            Ok(exit) => exit,
            Err(failure) if self.team.leads() => failure.print(json),
            Err(failure) => failure.print_of(self.team.rank()),
        };
        self.team.finish();
        exit
    }

    /// The processes that do the work of this verb together.
    pub(crate) fn team(&self) -> &Team {
        &self.team
    }

    /// Says something that is no error.
    pub(crate) fn note(&self, text: &str) {
        self.say("note", text);
    }

    /// Is set once the user has asked to stop.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.interrupted
    }

    /// Says something of its own `kind`, such as a finished epoch.
    pub(crate) fn say(&self, kind: &str, text: &str) {
        if self.team.leads() {
            line(kind, text);
        }
    }

    /// An error once the user has asked to stop. Long verbs ask between two pieces of work.
    pub(crate) fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::SeqCst) {
            Err(Failure::interrupted())
        } else {
            Ok(())
        }
    }

    /// Begins to show progress over `total` things called `unit`, such as `images`.
    pub(crate) fn progress(&self, unit: &'static str, total: usize) -> Progress<'_> {
        let shown = self.team.leads() && io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            let template = format!("{{msg}}{{wide_bar}} {{human_pos}}/{{human_len}} {unit}{{pace}}");
            let pace = |state: &ProgressState, to: &mut dyn fmt::Write| {
                let (done, total) = (state.pos() as f64, state.len().unwrap_or_default() as f64);
                // Where it cannot be written there is no bar either.
                let _ = to.write_str(&pace(done, total, state.elapsed()));
            };
            // The template is right or the default is shown.
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.with_key("pace", pace));
            }
            bar
        });
        let now = Instant::now();
        Progress {
            console: self,
            bar,
            unit,
            total,
            about: String::new(),
            begun: now,
            spoken: now,
        }
    }
}

/// How fast it goes and how long it will take; nothing before a second has passed, when it could only be guessed.
fn pace(done: f64, total: f64, passed: Duration) -> String {
    let rate = done / passed.as_secs_f64();
    if passed < Duration::from_secs(1) || done == 0.0 {
        return String::new();
    }
    let left = format::duration(((total - done) / rate).max(0.0));
    format!(", {}/s, {left} left", format::number(rate))
}

/// How long standard error stays silent where it is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// Progress of one piece of work: a bar on a terminal, else a line every ten seconds.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    console: &'a Console,
    bar: Option<ProgressBar>,
    unit: &'static str,
    total: usize,
    about: String,
    begun: Instant,
    spoken: Instant,
}

impl Progress<'_> {
    /// What stands before the numbers from now on, such as `epoch 3 of 30`.
    pub(crate) fn about(&mut self, text: &str) {
        self.about = format!("{text}: ");
        if let Some(bar) = &self.bar {
            bar.set_message(self.about.clone());
        }
    }

    /// Writes a note without disturbing the bar.
    #[cfg(feature = "train")]
    pub(crate) fn note(&self, text: &str) {
        self.say("note", text);
    }

    /// Says something of its own `kind` without disturbing the bar.
    pub(crate) fn say(&self, kind: &str, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.console.say(kind, text)),
            None => self.console.say(kind, text),
        }
    }

    /// Says that `done` things are done. An error once the user has asked to stop.
    pub(crate) fn at(&mut self, done: usize) -> Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if self.spoken.elapsed() >= INTERVAL {
            self.spoken = Instant::now();
            let (of, unit) = (self.total, self.unit);
            let pace = pace(done as f64, of as f64, self.begun.elapsed());
            let text = format!("{}{done}/{of} {unit}{pace}", self.about);
            self.console.say("progress", &text);
        }
        self.console.check()
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes `kind: text` to standard error. Where that is closed there is nobody to tell.
pub(super) fn line(kind: &str, text: &str) {
    let _ = writeln!(io::stderr().lock(), "{kind}: {}", printable(text));
}

/// The text with its control characters shown, not obeyed: names of files and of tensors may hold terminal sequences.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}
