//! What is told of every transform, whatever it does to a model: what becomes smaller, whether it still is right, and
//! whether it really is faster.
//!
//! First the plan: sizes and shapes before and after, of which no weight is needed. Then the proof: the same images through
//! both. Then the speed, both in turns on this machine, because fewer multiply-accumulates are a claim and latency is a fact.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use vitesse_engine::Precision;
use vitesse_model::Checkpoint;
use vitesse_train::method::{Change, Check};

use crate::contest::{Contest, Contestant, Ratio};
use crate::images::{Images, Source};
use crate::proof::{Difference, compare};
use crate::timing::Budget;
use crate::{Events, Result};

/// How often each of the two models has its turn.
const ROUNDS: usize = 10;
/// How long a turn is.
const TURN: Budget = Budget {
    time: Duration::from_millis(50),
    runs: 3,
};

/// What a transform comes to.
#[derive(Debug, Clone, Serialize)]
pub struct Transform {
    /// What becomes of the model.
    pub plan: Change,
    /// Absent where nothing was computed.
    #[serde(flatten)]
    pub proof: Option<Proof>,
    /// Batch by batch; empty where nothing was computed, or the proof was not met.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub speed: Vec<Speed>,
}

/// Both models on the same images.
#[derive(Debug, Clone, Serialize)]
pub struct Proof {
    /// How far their answers are from each other.
    pub check: Difference,
    /// Whose images they are.
    pub images: Source,
    /// The data set they are from.
    pub data: String,
}

/// How a latency is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct At {
    /// Images in one forward pass.
    pub batch: usize,
    /// The number format.
    pub precision: Precision,
    /// Threads that compute.
    pub threads: usize,
}

impl At {
    /// One image, in single precision, by all threads.
    pub fn one() -> At {
        At {
            batch: 1,
            precision: Precision::F32,
            threads: rayon::current_num_threads(),
        }
    }
}

/// The verdict on two models that compile to one plan.
pub(crate) const SAME_PLAN: &str = "the same plan";

/// Latency of a batch, both models taking turns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Images in one forward pass.
    pub batch: usize,
    /// Threads that computed.
    pub threads: usize,
    /// The number format.
    pub precision: Precision,
    /// How often each had its turn.
    pub rounds: usize,
    /// The median of the rounds' medians, before.
    pub before_latency_ms: f64,
    /// The same, after.
    pub after_latency_ms: f64,
    /// After to before.
    pub ratio: Ratio,
    /// Weights as the engine holds them, before.
    pub before_packed_bytes: usize,
    /// The same, after.
    pub after_packed_bytes: usize,
    /// What all rounds agree on: faster, slower, or not told apart; `the same plan` where both compile to one.
    pub verdict: &'static str,
    /// Said where multiply-accumulates fall and time does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// From `before` to `after`, with the bytes that they are stored in.
///
/// # Errors
/// A spec that describes no model.
fn change(before: &Checkpoint, after: &Checkpoint) -> Result<Change> {
    let mut change = Change::of(&before.spec, &after.spec)?;
    change.before.weight_bytes = before.tensors.total_bytes();
    change.after.weight_bytes = after.tensors.total_bytes();
    Ok(change)
}

impl Transform {
    /// What becomes of `before`; nothing is computed.
    ///
    /// # Errors
    /// A spec that describes no model.
    pub fn planned(before: &Checkpoint, after: &Checkpoint) -> Result<Transform> {
        Ok(Transform {
            plan: change(before, after)?,
            proof: None,
            speed: Vec::new(),
        })
    }

    /// Shows `images` to the model that was `found` and to the `expected` one, and tells whether they answer as alike as `check`
    /// asks for.
    ///
    /// # Errors
    /// A model that the engine does not run.
    pub fn prove(
        &mut self,
        found: &Checkpoint,
        expected: &Checkpoint,
        images: Images,
        check: Check,
    ) -> Result<bool> {
        let check = compare(found, expected, &images.pixels, check)?;
        Ok(self.proved_by(check, images))
    }

    /// Takes a comparison on `images` for the proof, and tells whether it is one.
    pub(crate) fn proved_by(&mut self, check: Difference, images: Images) -> bool {
        self.proof = Some(Proof {
            check,
            images: images.source,
            data: images.data,
        });
        check.is_met()
    }

    /// Measures both models in turns, one batch size after the other; `at.batch` is the first.
    ///
    /// # Errors
    /// A model that the engine does not run; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn time(
        &mut self,
        (before, after): (&Checkpoint, &Checkpoint),
        at: At,
        more: &[usize],
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<()> {
        let one = |label, model| Contestant::new(label, at.precision, at.threads, model);
        let (before, after) = (one("before", before)?, one("after", after)?);
        // Whatever is measured then is the machine's doing.
        let same = before.outline() == after.outline();
        let batches =
            std::iter::once(at.batch).chain(more.iter().copied().filter(|&batch| batch != at.batch));
        let contest = Contest::new(vec![before, after], batches.collect(), TURN, at.threads);
        let packed: Vec<usize> = contest.models().iter().map(|model| model.packed_bytes).collect();
        for batch in contest.turns(ROUNDS, stop, events)? {
            if let ([before, after], [packed_before, packed_after]) = (&batch.results[..], &packed[..]) {
                self.speed.push(Speed {
                    batch: batch.batch,
                    threads: contest.threads,
                    precision: at.precision,
                    rounds: ROUNDS,
                    before_latency_ms: before.latency_ms,
                    after_latency_ms: after.latency_ms,
                    ratio: after.ratio,
                    before_packed_bytes: *packed_before,
                    after_packed_bytes: *packed_after,
                    verdict: if same { SAME_PLAN } else { after.ratio.verdict() },
                    warning: warning(&self.plan, after.ratio),
                });
            }
        }
        Ok(())
    }

    /// The metrics of a history step.
    pub(crate) fn metrics(&self) -> Map<String, Value> {
        let mut metrics = Map::new();
        if let Some(proof) = &self.proof {
            metrics.insert("check_images".into(), json!(proof.check.images));
            metrics.insert("largest_difference".into(), json!(proof.check.largest));
        }
        metrics
    }

    /// Whether the proof was made and is met.
    pub fn is_proved(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.check.is_met())
    }
}

/// What is to be known where multiply-accumulates fall and time does not.
fn warning(plan: &Change, ratio: Ratio) -> Option<String> {
    let (before, after) = (plan.before.macs, plan.after.macs);
    let share = 100.0 * after as f64 / before.max(1) as f64;
    let time = match ratio.verdict() {
        "faster" => return None,
        "slower" => "grows",
        _ => "does not fall measurably",
    };
    (after < before).then(|| format!("the time {time} on this machine, where the MACs fall to {share:.1} %"))
}

#[cfg(test)]
mod tests {
    use vitesse_train::method::Size;

    use super::*;

    fn plan(before: u64, after: u64) -> Change {
        let size = |macs| Size {
            param_count: 1,
            macs,
            weight_bytes: 4,
        };
        Change {
            before: size(before),
            after: size(after),
            tensors: Vec::new(),
        }
    }

    #[test]
    fn fewer_macs_that_save_no_time_are_told() {
        let said = |after, ratios: &[f64]| warning(&plan(200, after), Ratio::of(&ratios.repeat(3)));
        assert_eq!(said(100, &[0.5, 0.6]), None);
        assert_eq!(said(200, &[1.1, 1.2]), None);
        assert!(said(100, &[0.9, 1.1]).unwrap().contains("50.0 %"));
        assert!(said(100, &[1.1, 1.2]).unwrap().contains("grows"));
    }

    #[test]
    fn a_plan_names_the_tensors_that_differ() {
        let before = Checkpoint::fresh("deit_micro_patch4_32", Some(10), None, 0).unwrap();
        let after = Checkpoint::fresh("deit_micro_patch4_32", Some(4), None, 0).unwrap();
        let plan = change(&before, &after).unwrap();
        let names: Vec<&str> = plan.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(
            (names, plan.counts()),
            (vec!["head.weight", "head.bias"], [0, 0, 2])
        );
        assert!(plan.after.weight_bytes < plan.before.weight_bytes && plan.after.macs < plan.before.macs);
        assert_eq!(change(&before, &before).unwrap().tensors, []);
        let (none, bare) = (
            Checkpoint::fresh("deit_micro_patch4_32", Some(0), None, 0).unwrap(),
            &before,
        );
        assert_eq!(change(bare, &none).unwrap().counts(), [2, 0, 0]);
        assert_eq!(change(&none, bare).unwrap().counts(), [0, 2, 0]);
    }

    #[test]
    fn a_model_is_proved_and_timed_against_itself() {
        let model = Checkpoint::fresh("deit_nano_patch8_32", None, None, 0).unwrap();
        let other = Checkpoint::fresh("deit_nano_patch8_32", None, None, 1).unwrap();
        let images = || Images::find(None, None, 2, &model, &mut ()).unwrap();
        let mut transform = Transform::planned(&model, &model).unwrap();
        assert!(!transform.is_proved());
        assert!(
            !transform
                .prove(&other, &model, images(), Check::default())
                .unwrap()
                && !transform.is_proved()
        );
        assert!(
            transform
                .prove(&model, &model, images(), Check::default())
                .unwrap()
                && transform.is_proved()
        );
        let stop = AtomicBool::new(false);
        transform
            .time((&model, &model), At::one(), &[2], &stop, &mut ())
            .unwrap();
        let speed = &transform.speed[0];
        assert_eq!((speed.batch, transform.speed[1].batch), (1, 2));
        assert!(speed.before_latency_ms > 0.0 && speed.after_latency_ms > 0.0 && speed.rounds == ROUNDS);
        assert_eq!((speed.verdict, &speed.warning), ("the same plan", &None));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let stopped = transform.time((&model, &model), At::one(), &[], &stop, &mut ());
        assert!(matches!(stopped, Err(crate::Error::Interrupted)));
    }
}
