//! Where the time of a step of training goes: by segment, forward and backward, beside what the processor can do.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use vitesse_engine::Isa;
use vitesse_model::network::Precision;
use vitesse_model::network::profile::{Cost, Pass, Span, record};

use crate::Result;
use crate::error::check;
use crate::machine::{Machine, Peak};
use crate::timing::median;

/// How long steps are profiled.
const TIME: Duration = Duration::from_secs(2);
/// How many there are at least and at most.
const STEPS: std::ops::RangeInclusive<usize> = 5..=200;

/// Medians over some steps.
#[derive(Debug, Serialize)]
pub struct Profiled {
    /// How many.
    pub steps: usize,
    /// What the threads reach in registers alone, 10⁹ operations a second in the products' precision.
    pub peak_gflops: f64,
    /// What they reach between memory and registers, in 10⁹ bytes a second.
    pub memory_gbytes_per_s: f64,
    /// Passes in their order, and in each its segments in the order of the first; what is left of a pass stands after them, and
    /// all of a step at the end.
    pub parts: Vec<Part>,
}

/// A segment in a pass, all its runs in a step together.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `forward`, `backward` or `update`; `step` for all of them.
    pub pass: &'static str,
    /// What it is called; `rest` is what lies between segments, `all` everything.
    pub name: String,
    /// Runs in a step.
    pub runs: usize,
    /// Of all of them.
    pub time_ms: f64,
    /// What its products reach, in 10⁹ operations a second.
    pub gflops: Option<f64>,
    /// What it reads and writes at least, by its time, in 10⁹ bytes a second.
    pub gbytes_per_s: Option<f64>,
}

/// A segment's runs, by step.
struct Sum {
    pass: Pass,
    name: String,
    runs: usize,
    seconds: Vec<f64>,
    cost: Cost,
}

impl Profiled {
    /// Profiles steps, and what the same threads can do.
    pub(super) fn measure(
        pool: &rayon::ThreadPool,
        isa: Isa,
        precision: Precision,
        stop: &AtomicBool,
        mut step: impl FnMut() -> Result<()> + Send,
    ) -> Result<Profiled> {
        let begun = Instant::now();
        let mut steps = Vec::new();
        while steps.len() < *STEPS.start() || (begun.elapsed() < TIME && steps.len() < *STEPS.end()) {
            check(stop)?;
            let (done, spans) = pool.install(|| record(&mut step));
            done?;
            steps.push(spans);
        }
        let peak = Peak::measure(pool.current_num_threads(), isa, &Machine::look())?;
        let operations = match precision {
            Precision::F32 => peak.f32_flops,
            Precision::Bf16 => peak.bf16_flops,
        };
        Ok(Profiled {
            steps: steps.len(),
            peak_gflops: operations / 1e9,
            memory_gbytes_per_s: peak.memory_bytes_per_s / 1e9,
            parts: parts(&steps),
        })
    }
}

/// What the steps have in common, as rows.
fn parts(steps: &[Vec<Span>]) -> Vec<Part> {
    let mut sums: Vec<Sum> = Vec::new();
    for (i, span) in steps
        .iter()
        .enumerate()
        .flat_map(|(i, spans)| spans.iter().map(move |span| (i, span)))
    {
        let name = span.name.as_deref().unwrap_or_default();
        let known = sums
            .iter()
            .position(|sum| sum.pass == span.pass && sum.name == name);
        let at = known.unwrap_or_else(|| {
            sums.push(Sum {
                pass: span.pass,
                name: name.to_owned(),
                runs: 0,
                seconds: vec![0.0; steps.len()],
                cost: Cost::default(),
            });
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.seconds[i] += span.seconds;
        // All steps do the same; the first says what.
        if i == 0 {
            sum.runs += 1;
            sum.cost.flops += span.cost.flops;
            sum.cost.bytes += span.cost.bytes;
        }
    }
    let mut rows = Vec::new();
    let mut all = vec![0.0; steps.len()];
    for (pass, name) in [
        (Pass::Forward, "forward"),
        (Pass::Backward, "backward"),
        (Pass::Update, "update"),
    ] {
        let (named, whole): (Vec<&Sum>, Vec<&Sum>) = sums
            .iter()
            .filter(|sum| sum.pass == pass)
            .partition(|sum| !sum.name.is_empty());
        let mut rest = whole
            .first()
            .map(|whole| whole.seconds.clone())
            .unwrap_or_default();
        all.iter_mut().zip(&rest).for_each(|(all, pass)| *all += pass);
        for sum in named {
            rest.iter_mut()
                .zip(&sum.seconds)
                .for_each(|(rest, part)| *rest -= part);
            let seconds = median(sum.seconds.iter().copied());
            let rate = |amount: f64| (amount > 0.0).then(|| amount / seconds / 1e9);
            rows.push(Part {
                pass: name,
                name: sum.name.clone(),
                runs: sum.runs,
                time_ms: 1e3 * seconds,
                gflops: rate(sum.cost.flops),
                gbytes_per_s: rate(sum.cost.bytes),
            });
        }
        if !rest.is_empty() {
            rows.push(Part {
                pass: name,
                name: "rest".into(),
                runs: 1,
                time_ms: 1e3 * median(rest),
                gflops: None,
                gbytes_per_s: None,
            });
        }
    }
    rows.push(Part {
        pass: "step",
        name: "all".into(),
        runs: 1,
        time_ms: 1e3 * median(all),
        gflops: None,
        gbytes_per_s: None,
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(pass: Pass, name: Option<&str>, seconds: f64) -> Span {
        Span {
            pass,
            name: name.map(str::to_owned),
            seconds,
            cost: Cost {
                flops: if name.is_some() { 6e9 } else { 0.0 },
                bytes: 0.0,
            },
        }
    }

    #[test]
    fn runs_are_added_up_and_what_is_between_them_is_the_rest() {
        let step = |each: f64| {
            vec![
                span(Pass::Forward, Some("a"), each),
                span(Pass::Forward, Some("a"), each),
                span(Pass::Forward, None, 3.0 * each),
            ]
        };
        let parts = parts(&[step(1.0), step(2.0), step(5.0)]);
        assert_eq!(parts.len(), 3);
        let [a, rest, all] = [&parts[0], &parts[1], &parts[2]];
        assert_eq!((all.pass, all.name.as_str(), all.time_ms), ("step", "all", 6e3));
        assert_eq!(
            (a.pass, a.name.as_str(), a.runs, a.time_ms),
            ("forward", "a", 2, 4e3)
        );
        assert_eq!((a.gflops, a.gbytes_per_s), (Some(3.0), None));
        assert_eq!((rest.name.as_str(), rest.time_ms), ("rest", 2e3));
    }
}
