//! How a run is shown while it goes: a bar or lines within an epoch, one line for each epoch.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use vitesse::report::format::{self, counted};
use vitesse_train::evaluate::EvalProgress;
use vitesse_train::events::{Events, Plan};
use vitesse_train::run::{EpochRecord, StepRecord};

use crate::cli::console::{Console, Progress};

/// Shows a run.
pub(in crate::cli) struct Watch<'a> {
    console: &'a Console,
    plan: Option<Plan>,
    shown: Option<Shown<'a>>,
    /// Finished epochs of this process and the seconds they took, to guess the rest.
    epochs: usize,
    seconds: f64,
    /// Since when there are steps, and how many there were, until the time of the whole run was guessed by them.
    pace: Option<(Instant, usize)>,
}

/// How long steps are watched before the time of a run is guessed.
const SOON: Duration = Duration::from_secs(10);
/// Seconds that are worth a warning.
const LONG: f64 = 60.0;

/// What is in progress.
struct Shown<'a> {
    progress: Progress<'a>,
    evaluating: bool,
    done: usize,
}

impl<'a> Watch<'a> {
    pub(in crate::cli) fn new(console: &'a Console) -> Watch<'a> {
        Watch {
            console,
            plan: None,
            shown: None,
            epochs: 0,
            seconds: 0.0,
            pace: None,
        }
    }

    /// Says once, before the first epoch is over, how long the run will take.
    fn guess(&mut self, step: usize) {
        let Some((since, steps)) = &mut self.pace else {
            return;
        };
        *steps += 1;
        let (passed, steps) = (since.elapsed(), *steps);
        if passed < SOON {
            return;
        }
        self.pace = None;
        let (Some(plan), Some(shown)) = (&self.plan, &self.shown) else {
            return;
        };
        let left = (plan.epochs * plan.steps_per_epoch).saturating_sub(step + 1);
        let rest = left as f64 * passed.as_secs_f64() / steps as f64;
        if rest > LONG {
            let text = format!(
                "about {} left at this pace, {} in all",
                format::duration(rest),
                counted(plan.epochs, "epoch")
            );
            shown.progress.note(&text);
        }
    }

    /// The plan that the run began with.
    pub(super) fn into_plan(self) -> Option<Plan> {
        self.plan
    }

    /// The progress of training or evaluation, begun over `total` images if the other was under way.
    fn show(&mut self, evaluating: bool, total: usize) -> &mut Shown<'a> {
        if self
            .shown
            .as_ref()
            .is_some_and(|shown| shown.evaluating != evaluating)
        {
            self.shown = None;
        }
        let console = self.console;
        self.shown.get_or_insert_with(|| Shown {
            progress: console.progress("images", total),
            evaluating,
            done: 0,
        })
    }
}

impl Events for Watch<'_> {
    fn begin(&mut self, plan: &Plan) {
        if plan.done > 0 {
            self.console.note(&format!(
                "resumed after step {} of {}",
                plan.done,
                plan.epochs * plan.steps_per_epoch
            ));
        }
        if plan.processes > 1 {
            let each = plan.batch_size / plan.processes;
            let text = format!(
                "{} processes with {} of each batch",
                plan.processes,
                counted(each, "image")
            );
            self.console.note(&text);
        }
        self.plan = Some(plan.clone());
        self.pace = Some((Instant::now(), 0));
        // Begun here and at an epoch's end, so that the first step counts in the rate.
        self.show(false, left(plan, plan.done));
    }

    fn step(&mut self, record: &StepRecord) {
        let Some(plan) = &self.plan else { return };
        let (epochs, left) = (plan.epochs, left(plan, record.step));
        let shown = self.show(false, left);
        shown.done += record.samples;
        let about = format!("epoch {} of {epochs}, loss {:.3}", record.epoch + 1, record.loss);
        shown.progress.about(&about);
        // Who asked to stop is heard by the trainer, which saves the state first.
        let _ = shown.progress.at(shown.done);
        self.guess(record.step);
    }

    fn caching(&mut self, at: EvalProgress) {
        let shown = self.show(true, at.total);
        shown.progress.about("features, once");
        let _ = shown.progress.at(at.done);
        if at.done == at.total {
            self.shown = None;
            // Computed once: no part of the pace of steps.
            self.pace = Some((Instant::now(), 0));
        }
    }

    fn evaluating(&mut self, at: EvalProgress) {
        let shown = self.show(true, at.total);
        shown.progress.about("evaluating");
        let _ = shown.progress.at(at.done);
    }

    fn epoch(&mut self, record: &EpochRecord, best: bool) {
        self.shown = None;
        let Some(plan) = &self.plan else { return };
        self.epochs += 1;
        // The line of an epoch says what is left.
        self.pace = None;
        self.seconds += record.seconds;
        let done = record.epoch + 1;
        let mut text = format!("{done} of {}: loss {:.4}", plan.epochs, record.train_loss);
        if let (Some(top1), Some(loss)) = (record.eval_top1, record.eval_loss) {
            let best = if best { ", the best so far" } else { "" };
            let _ = write!(text, ", validation loss {loss:.4}, top-1 {top1:.2} %{best}");
        }
        if let Some(top1) = record.ema_top1 {
            let _ = write!(text, ", averaged weights {top1:.2} %");
        }
        let _ = write!(text, ", {}", format::duration(record.seconds));
        let more = plan.epochs.saturating_sub(done);
        if more > 0 {
            let rest = more as f64 * self.seconds / self.epochs as f64;
            let _ = write!(text, ", {} left", format::duration(rest));
        }
        self.console.say("epoch", &text);
        let next = left(plan, record.steps);
        if more > 0 {
            self.show(false, next);
        }
    }

    fn warning(&mut self, text: &str) {
        match &self.shown {
            Some(shown) => shown.progress.note(text),
            None => self.console.note(text),
        }
    }
}

/// Images that are left to learn from in the epoch of this step, from it on.
fn left(plan: &Plan, step: usize) -> usize {
    let steps = plan.steps_per_epoch.max(1);
    (steps - step % steps) * plan.batch_size
}
