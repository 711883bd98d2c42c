//! Where the time of a step goes, as the thread that takes the step records it.
//!
//! A step is a line of spans on one thread, whose work is spread over the others: so the record is that thread's own, and
//! nothing is written where it has not asked for one. A pass is a span without a name; what runs in it are its parts.

use std::cell::{Cell, RefCell};
use std::time::Instant;

/// What a step consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// From images to the loss.
    Forward,
    /// From the loss to gradients.
    Backward,
    /// From gradients to new weights.
    Update,
}

/// What a piece of work must do at least.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Operations in products of matrices, a multiply-add being two.
    pub flops: f64,
    /// What it reads and writes, each number once.
    pub bytes: f64,
}

/// A piece of work that was done.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// In which pass.
    pub pass: Pass,
    /// What it is; a whole pass has no name.
    pub name: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// What it had to do.
    pub cost: Cost,
}

thread_local! {
    static SPANS: RefCell<Option<Vec<Span>>> = const { RefCell::new(None) };
    static PASS: Cell<Pass> = const { Cell::new(Pass::Forward) };
}

/// Does `work` and says what this thread did in it.
pub fn record<R>(work: impl FnOnce() -> R) -> (R, Vec<Span>) {
    SPANS.set(Some(Vec::new()));
    let result = work();
    (result, SPANS.take().unwrap_or_default())
}

/// Does the work of a whole pass.
pub fn pass<R>(pass: Pass, work: impl FnOnce() -> R) -> R {
    let outside = PASS.replace(pass);
    let result = timed(work, |_| (None, Cost::default()));
    PASS.set(outside);
    result
}

/// Does a part of a pass, of which `of` knows the name and the cost; it is asked only where there is a record.
pub fn span<R>(work: impl FnOnce() -> R, of: impl FnOnce(&R) -> (String, Cost)) -> R {
    timed(work, |result| {
        let (name, cost) = of(result);
        (Some(name), cost)
    })
}

fn timed<R>(work: impl FnOnce() -> R, of: impl FnOnce(&R) -> (Option<String>, Cost)) -> R {
    if SPANS.with_borrow(Option::is_none) {
        return work();
    }
    let begun = Instant::now();
    let result = work();
    let seconds = begun.elapsed().as_secs_f64();
    let (name, cost) = of(&result);
    let pass = PASS.get();
    SPANS.with_borrow_mut(|spans| {
        if let Some(spans) = spans {
            spans.push(Span {
                pass,
                name,
                seconds,
                cost,
            });
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_knows_its_pass_and_nothing_is_without_asking() {
        let cost = Cost {
            flops: 2.0,
            bytes: 8.0,
        };
        let step = || {
            pass(Pass::Backward, || {
                span(|| 3, |&found| (format!("a {found}"), cost))
            });
            span(|| (), |()| ("outside".into(), Cost::default()));
        };
        step();
        let ((), spans) = record(step);
        let seen: Vec<_> = spans
            .iter()
            .map(|span| (span.pass, span.name.as_deref()))
            .collect();
        let expected = [
            (Pass::Backward, Some("a 3")),
            (Pass::Backward, None),
            (Pass::Forward, Some("outside")),
        ];
        assert_eq!(seen, expected);
        assert!(spans[0].cost == cost && spans[0].seconds <= spans[1].seconds);
    }
}
