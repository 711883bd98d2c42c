//! Whether a model still is what it was: two models on the same images.

use std::fmt;
#[cfg(feature = "train")]
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vitesse_engine::{Engine, Options};
use vitesse_model::Checkpoint;
#[cfg(feature = "train")]
use vitesse_model::Fusion;
use vitesse_train::method::Check;
use vitesse_words::counted;

#[cfg(feature = "train")]
use crate::Events;
#[cfg(feature = "train")]
use crate::classify::{Backend, Runner};
use crate::{Result, origin};

/// Images of a forward pass of the network.
#[cfg(feature = "train")]
const BATCH: usize = 16;

/// The same images, `[images, channels, height, width]`, through both models, on the engine in f32; `check` says how close
/// their answers must be.
///
/// # Errors
/// A model that the engine does not run.
pub fn compare(
    found: &Checkpoint,
    expected: &Checkpoint,
    images: &[f32],
    check: Check,
) -> Result<Difference> {
    let size = expected.spec.input_size().iter().product::<usize>();
    let count = images.len() / size.max(1);
    let run = |checkpoint: &Checkpoint| -> Result<Vec<f32>> {
        let options = Options {
            threads: rayon::current_num_threads(),
            ..Options::default()
        };
        let engine = Engine::new(
            &checkpoint.spec,
            &checkpoint.tensors,
            &origin(checkpoint),
            options,
        )?;
        let output = engine.run(images, count)?;
        // Head by head within an image, so that classes can be told apart.
        Ok(if output.distillation.is_empty() {
            output.class
        } else {
            let pairs = output.class.iter().zip(&output.distillation);
            pairs.map(|(a, b)| (a + b) / 2.0).collect()
        })
    };
    Ok(Difference::of(&run(found)?, &run(expected)?, count, check))
}

/// The same images, `[images, channels, height, width]`, through the engine and through the network of one model, both in f32.
///
/// # Errors
/// A model that the engine does not run; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
#[cfg(feature = "train")]
pub fn engine_and_network(
    model: &Checkpoint,
    images: &[f32],
    check: Check,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Difference> {
    let [channels, height, width] = model.spec.input_size();
    let count = images.len() / (channels * height * width).max(1);
    let shape = [count, channels, height, width];
    let mut run = |backend| -> Result<Vec<f32>> {
        let mut runner = Runner::new(model, Some(backend), Options::default(), events)?;
        let how = (BATCH, Fusion::LogitMean);
        Ok(runner.logits(images, shape, how, stop, events)?.joint)
    };
    let found = run(Backend::Engine)?;
    Ok(Difference::of(&found, &run(Backend::Network)?, count, check))
}

/// How far a model is from the one that it comes from, where it is not meant to be the same.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FromBase {
    /// Images on which both name the same class.
    pub agreeing: usize,
    /// Of so many.
    pub images: usize,
}

impl FromBase {
    pub(crate) fn of(difference: &Difference) -> Self {
        FromBase {
            agreeing: difference.agreeing,
            images: difference.images,
        }
    }
}

/// How far two models' answers to the same images are from each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Images compared.
    pub images: usize,
    /// The largest difference of two logits.
    pub largest: f64,
    /// The largest difference that counts as equal.
    pub tolerance: f64,
    /// Images on which both name the same class.
    pub agreeing: usize,
}

impl Difference {
    /// Compares logits `[images, classes]` with those expected.
    pub fn of(found: &[f32], expected: &[f32], images: usize, check: Check) -> Difference {
        let scale = expected
            .iter()
            .fold(1.0f64, |most, x| most.max(f64::from(x.abs())));
        // Not `f64::max`, which overlooks NaN.
        let largest = found
            .iter()
            .zip(expected)
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(
                0.0,
                |most: f64, x| if most.is_nan() || x <= most { most } else { x },
            );
        let classes = (expected.len() / images.max(1)).max(1);
        let best = |logits: &[f32]| {
            let mut best = 0;
            for (i, x) in logits.iter().enumerate() {
                if logits.get(best).is_some_and(|most| x > most) {
                    best = i;
                }
            }
            best
        };
        let agreeing = found
            .chunks_exact(classes)
            .zip(expected.chunks_exact(classes))
            // What is no number says nothing, and so agrees with nothing.
            .filter(|(a, b)| !a.iter().chain(*b).any(|x| x.is_nan()) && best(a) == best(b))
            .count();
        Difference {
            images,
            largest: if found.len() == expected.len() {
                largest
            } else {
                f64::INFINITY
            },
            tolerance: check.tolerance * scale,
            agreeing,
        }
    }

    /// Whether the two are equal.
    pub fn is_met(&self) -> bool {
        self.largest <= self.tolerance
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "largest difference of a logit {:.2e} on {} (allowed {:.2e}), {} of {} with the same class",
            self.largest,
            counted(self.images, "image"),
            self.tolerance,
            self.agreeing,
            self.images
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_agrees_with_nothing() {
        let (good, bad) = ([1.0, 0.0, 3.0, 4.0], [1.0, f32::NAN, 3.0, 4.0]);
        let agreeing = |a, b| Difference::of(a, b, 2, Check::default()).agreeing;
        assert_eq!(
            [
                agreeing(&good, &good),
                agreeing(&bad, &good),
                agreeing(&bad, &bad)
            ],
            [2, 1, 1]
        );
        assert!(!Difference::of(&bad, &bad, 2, Check::default()).is_met());
    }
}
