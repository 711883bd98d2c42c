//! What turns and answers tell.

use std::fmt;

use serde::Serialize;
use vitesse_engine::Precision;

use crate::Weights;
use crate::timing::median;

/// What a model is.
#[derive(Debug, Serialize)]
pub struct Model {
    /// Tells it from the others.
    pub label: String,
    /// What it is called.
    pub model: String,
    /// The architecture.
    pub architecture: String,
    /// Where the weights come from.
    pub weights: Weights,
    /// The number format.
    pub precision: Precision,
    /// The instruction set.
    pub isa: &'static str,
    /// Height and width.
    pub img_size: [usize; 2],
    /// Parameters.
    pub param_count: usize,
    /// As they came: in the file, or as drawn.
    pub weight_bytes: usize,
    /// As the engine holds them.
    pub packed_bytes: usize,
    /// Nominal multiply-accumulates of one image.
    pub macs: u64,
    /// Those that the engine does.
    pub macs_executed: u64,
    /// How long compiling took.
    pub compile_ms: f64,
}

/// All models with one batch size.
#[derive(Debug, Serialize)]
pub struct Batch {
    /// Images in one forward pass.
    pub batch: usize,
    /// In the order of the models.
    pub results: Vec<Time>,
}

/// One model with one batch size.
#[derive(Debug, Serialize)]
pub struct Time {
    /// The model.
    pub label: String,
    /// The median of the rounds' medians.
    pub latency_ms: f64,
    /// The batch over that.
    pub images_per_s: f64,
    /// To the first model.
    pub ratio: Ratio,
    /// The median of each round.
    pub rounds_ms: Vec<f64>,
}

/// Latency over that of the first model in the same round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Of all rounds.
    pub median: f64,
    /// The least of them.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many rounds there were.
    pub rounds: usize,
}

/// Rounds that tell something: with fewer, equal models would all too often be told apart by chance, once in 32 times with six.
const TELLING: usize = 6;

/// The verdict of fewer.
pub const TOO_FEW: &str = "too few rounds to tell";

/// One model's answers, in percent.
#[derive(Debug, Serialize)]
pub struct Accuracy {
    /// The model.
    pub label: String,
    /// Images that are recognised.
    pub top1: f64,
    /// Images whose class is among the five likeliest.
    pub top5: f64,
    /// Images for which it predicts what the first model predicts; absent where their classes cannot be compared.
    pub agreement: Option<f64>,
    /// Images that were read.
    pub images: usize,
    /// Files that could not be.
    pub unreadable: usize,
}

impl Ratio {
    /// Of the rounds' ratios.
    pub fn of(ratios: &[f64]) -> Ratio {
        Ratio {
            median: median(ratios.iter().copied()),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            rounds: ratios.len(),
        }
    }

    /// What all rounds agree on, where there are enough of them.
    pub fn verdict(self) -> &'static str {
        if self.rounds < TELLING {
            TOO_FEW
        } else if self.max < 1.0 {
            "faster"
        } else if self.min > 1.0 {
            "slower"
        } else {
            "not told apart"
        }
    }
}

/// `0.512 (0.498–0.530)`, or `0.5 (0.4–3.2)`: two digits of the spread, for rounds agree on no more.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = (1.0 - (self.max - self.min).log10().floor()).clamp(1.0, 3.0) as usize;
        let spell = |ratio: f64| format!("{ratio:.digits$}");
        let [median, min, max] = [self.median, self.min, self.max].map(spell);
        write!(f, "{median} ({min}–{max})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rounds_must_agree() {
        let ratio = Ratio::of(&[0.5, 0.9, 0.6]);
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.6, 0.5, 0.9));
        assert_eq!(ratio.to_string(), "0.60 (0.50–0.90)");
        assert_eq!(ratio.verdict(), "too few rounds to tell");
        assert_eq!(
            Ratio::of(&[0.512, 0.498, 0.53]).to_string(),
            "0.512 (0.498–0.530)"
        );
        assert_eq!(Ratio::of(&[1.0]).to_string(), "1.000 (1.000–1.000)");
        let of = |ratios: [f64; 2]| Ratio::of(&ratios.repeat(3)).verdict();
        assert_eq!(of([0.5, 0.9]), "faster");
        assert_eq!(of([0.9, 1.1]), "not told apart");
        assert_eq!(of([1.2, 1.1]), "slower");
    }
}
