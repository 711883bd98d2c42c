//! Whether a model still is what it was: two models on the same images.

use std::fmt;
#[cfg(feature = "train")]
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vitesse_engine::{Engine, Options};
use vitesse_model::Checkpoint;
#[cfg(feature = "train")]
use vitesse_model::Fusion;
#[cfg(feature = "train")]
use vitesse_rng::Key;
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
/// How often an image on which engine and network differ is shown to the network again, with noise.
#[cfg(feature = "train")]
const DRAWS: usize = 16;
/// The most noise of a normalised pixel: too little for a logit, and some times what sums of products round to.
const NOISE: f64 = 1e-5;

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
/// Where tokens are chosen or matched by scores, two scores of an image may be equal up to rounding, and then either choice is right. Such an image
/// is told from an error by the network itself: it gives the engine's answer, too, where the pixels change by a hundred-thousandth. It is left out of the
/// largest difference and counted as [`tied`](Difference::tied), as long as no more than a quarter of the images differ.
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
    let size = channels * height * width;
    let mut engine = Runner::new(model, Some(Backend::Engine), Options::default(), events)?;
    let mut network = Runner::new(model, Some(Backend::Network), Options::default(), events)?;
    let mut answers = |runner: &mut Runner, pixels: &[f32]| -> Result<Vec<f32>> {
        let shape = [pixels.len() / size.max(1), channels, height, width];
        let how = (BATCH, Fusion::LogitMean);
        Ok(runner.logits(pixels, shape, how, stop, events)?.joint)
    };
    let (found, expected) = (answers(&mut engine, images)?, answers(&mut network, images)?);
    let count = images.len() / size.max(1);
    Difference::of(&found, &expected, count, check).without_ties(&found, &expected, |image| {
        let pixels = images.iter().skip(image * size).take(size);
        let mut noise = Key::new(0).with("proof").at(image as u64).rng();
        let noisy: Vec<f32> = std::iter::repeat_n(pixels, DRAWS)
            .flatten()
            .map(|x| x + noise.uniform_in(-NOISE, NOISE) as f32)
            .collect();
        answers(&mut network, &noisy)
    })
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
    /// Images that are left out of `largest`: to noise that should not matter the network itself gives either answer, as where scores of
    /// tokens are equal up to rounding.
    #[serde(skip_serializing_if = "is_none")]
    pub tied: usize,
}

/// Whether there are none.
fn is_none(count: &usize) -> bool {
    *count == 0
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
            tied: 0,
        }
    }

    /// The same without the images on which scores tie, if that explains all that differ: what was found is among the answers that are
    /// expected of each of them `again`, `[times, classes]`, with noise that should not matter.
    #[cfg(feature = "train")]
    fn without_ties(
        mut self,
        found: &[f32],
        expected: &[f32],
        mut again: impl FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<Difference> {
        let classes = (expected.len() / self.images.max(1)).max(1);
        let largest = |a: &[f32], b: &[f32]| Difference::of(a, b, 1, Check::default()).largest;
        let pairs = found.chunks_exact(classes).zip(expected.chunks_exact(classes));
        let (alike, apart): (Vec<_>, Vec<_>) = pairs
            .enumerate()
            .map(|(image, (found, expected))| (image, found, largest(found, expected)))
            .partition(|(_, _, largest)| *largest <= self.tolerance);
        let explained = self.largest.is_finite() && 4 * apart.len() <= self.images;
        if self.is_met() || !explained {
            return Ok(self);
        }
        for (image, found, _) in &apart {
            let answers = again(*image)?;
            let mut answers = answers.chunks_exact(classes);
            if !answers.any(|answer| largest(answer, found) <= self.tolerance) {
                return Ok(self);
            }
        }
        self.largest = alike.iter().map(|(_, _, largest)| *largest).fold(0.0, f64::max);
        self.tied = apart.len();
        Ok(self)
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
        )?;
        if self.tied > 0 {
            write!(
                f,
                "; not counting {}, to which the network itself gives either answer when pixels change by {NOISE}, as tied scores of tokens do",
                counted(self.tied, "image")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "train")]
    fn an_image_on_which_the_network_itself_wavers_is_left_out_and_no_other() {
        let expected = [1.0f32, 0.0].repeat(8);
        let found = |wrong: usize| {
            let mut found = expected.clone();
            found.iter_mut().take(2 * wrong).for_each(|x| *x += 0.5);
            found
        };
        let without = |wrong: usize, again: &[f32]| {
            let difference = Difference::of(&found(wrong), &expected, 8, Check::default());
            let again = |_| Ok(again.to_vec());
            difference.without_ties(&found(wrong), &expected, again).unwrap()
        };
        let (steady, wavers) = ([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.5, 0.5]);
        let elsewhere = [1.0, 0.0, 1.2, 0.0];
        let told = |difference: Difference| (difference.is_met(), difference.tied);
        assert_eq!(told(without(0, &steady)), (true, 0));
        assert_eq!(told(without(1, &steady)), (false, 0));
        assert_eq!(told(without(1, &elsewhere)), (false, 0));
        assert_eq!(told(without(2, &wavers)), (true, 2));
        assert_eq!(told(without(3, &wavers)), (false, 0));
        assert!(
            without(1, &wavers)
                .to_string()
                .contains("not counting 1 image, to which")
        );
    }

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
