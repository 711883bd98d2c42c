//! The proof of a merge: the same images through both models.

use std::fmt;

use serde::Serialize;
use vitesse_train::method::Check;

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
    pub fn of(found: &[f32], expected: &[f32], images: usize) -> Difference {
        let scale = expected
            .iter()
            .fold(1.0f64, |most, x| most.max(f64::from(x.abs())));
        // Not `f64::max`, which overlooks NaN.
        let largest = found
            .iter()
            .zip(expected)
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, |most: f64, x| if x <= most { most } else { x });
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
            .filter(|(a, b)| best(a) == best(b))
            .count();
        Difference {
            images,
            largest: if found.len() == expected.len() {
                largest
            } else {
                f64::INFINITY
            },
            tolerance: Check::default().tolerance * scale,
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
            "largest difference of a logit {:.2e} on {} images (allowed {:.2e}), {} of {} with the same class",
            self.largest, self.images, self.tolerance, self.agreeing, self.images
        )
    }
}
