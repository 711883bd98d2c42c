//! What a comparison found.

use serde::Serialize;

use super::{Test, Trial};
use crate::contest::Ratio;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of the program.
    pub version: &'static str,
    /// The processor's name.
    pub processor: Option<String>,
    /// Threads that computed.
    pub threads: usize,
    /// The folder.
    pub output: String,
    /// The same with charts.
    pub page: String,
    /// The base.
    pub model: String,
    /// The data set.
    pub data: String,
    /// Images that are learned from.
    pub train_images: usize,
    /// Images of the one test; 0 where there was none, because a single method was searched through on data without a test split.
    pub test_images: usize,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// As typed, in their order; the first is what the others are compared with.
    pub entries: Vec<String>,
    /// What was searched for.
    pub chosen: Vec<Chosen>,
    /// By seed and entry.
    pub trials: Vec<Trial>,
    /// Latencies.
    pub speeds: Speeds,
}

/// A setting that was searched for on validation images, with the first seed.
#[derive(Debug, Serialize)]
pub struct Chosen {
    /// The entry.
    pub label: String,
    /// The setting.
    pub key: String,
    /// What was tried.
    pub candidates: Vec<Candidate>,
}

/// One of its values.
#[derive(Debug, Serialize)]
pub struct Candidate {
    /// The value.
    pub value: String,
    /// Accuracy on validation images, in percent.
    pub validation_top1: Option<f64>,
    /// Whether the entry went on with it.
    pub taken: bool,
}

/// Latencies, all models taking turns.
#[derive(Debug, Default, Serialize)]
pub struct Speeds {
    /// How often each model had its turn.
    pub rounds: usize,
    /// Whether the model without ops (merged, or with none from the start) has the plain model's plan, step for step.
    pub same_plan: Vec<(String, bool)>,
    /// By model and batch size.
    pub latencies: Vec<Latency>,
}

/// One model with one batch size.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// What it is called here.
    pub model: String,
    /// Images in one forward pass.
    pub batch: usize,
    /// The median of the rounds' medians.
    pub latency_ms: f64,
    /// To the plain model's in the same round.
    pub ratio: Ratio,
}

impl Speeds {
    /// The plain model.
    pub const PLAIN: &'static str = "plain";

    /// What an entry's model is called with its ops.
    pub fn with_ops(label: &str) -> String {
        format!("{label}, with ops")
    }

    /// What it is called without them.
    pub fn merged(label: &str) -> String {
        format!("{label}, merged")
    }

    /// A model with all batch sizes.
    pub fn of<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a Latency> {
        self.latencies
            .iter()
            .filter(move |latency| latency.model == model)
    }

    /// The models that were measured.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = Vec::new();
        for latency in &self.latencies {
            if !models.contains(&latency.model.as_str()) {
                models.push(&latency.model);
            }
        }
        models
    }
}

impl Report {
    /// The runs of an entry.
    pub fn trials<'a>(&'a self, label: &'a str) -> impl Iterator<Item = &'a Trial> {
        self.trials.iter().filter(move |trial| trial.label == label)
    }

    /// By what the entries are judged: the test split, or the validation images where there is none.
    pub fn judge(&self) -> &'static str {
        if self.test_images > 0 {
            "test"
        } else {
            "validation"
        }
    }

    /// Top-1 of a run on the [`judge`](Report::judge)'s images, in percent.
    pub fn top1(&self, trial: &Trial) -> Option<f64> {
        match &trial.test {
            Some(test) => Some(test.top1),
            None => trial.validation_top1,
        }
    }

    /// The mean of a number over the seeds; NaN of none.
    pub fn mean(&self, label: &str, number: impl Fn(&Trial) -> Option<f64>) -> f64 {
        let values: Vec<f64> = self.trials(label).filter_map(number).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// How many more images of a hundred an entry recognises than the first, and how far chance reaches: 95 % of a paired
    /// comparison in which the images are drawn. Each image counts with the share of the seeds that recognise it.
    pub fn gain(&self, label: &str) -> Option<(f64, f64)> {
        let first = self.shares(self.entries.first()?)?;
        let own = self.shares(label)?;
        if first.len() != own.len() || first.len() < 2 {
            return None;
        }
        let n = own.len() as f64;
        let differences: Vec<f64> = own.iter().zip(&first).map(|(own, first)| own - first).collect();
        let mean = differences.iter().sum::<f64>() / n;
        let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Some((100.0 * mean, 196.0 * (variance / n).sqrt()))
    }

    /// The share of the seeds that recognise each test image.
    fn shares(&self, label: &str) -> Option<Vec<f64>> {
        let tests: Vec<&Test> = self
            .trials(label)
            .filter_map(|trial| trial.test.as_ref())
            .collect();
        let images = tests.first()?.right.len();
        let mut shares = vec![0.0; images];
        for test in &tests {
            for (share, right) in shares.iter_mut().zip(test.right.bytes()) {
                *share += f64::from(right == b'1') / tests.len() as f64;
            }
        }
        Some(shares)
    }
}

#[cfg(test)]
mod tests {
    use vitesse_train::method::Table;

    use super::*;

    fn trial(label: &str, seed: u64, right: &str) -> Trial {
        Trial {
            label: label.into(),
            method: Table::new(),
            seed,
            method_param_count: 0,
            head_param_count: 1,
            param_count: 1,
            adapter_bytes: 1,
            epochs: 1,
            validation_top1: None,
            validation_loss: None,
            test: Some(Test {
                top1: 0.0,
                balanced_accuracy: 0.0,
                loss: 0.0,
                right: right.into(),
                merged: None,
            }),
            seconds: seed as f64,
            peak_memory_bytes: None,
        }
    }

    #[test]
    fn gains_are_paired_by_image_and_averaged_over_seeds() {
        let report = Report {
            version: "",
            processor: None,
            threads: 1,
            output: String::new(),
            page: String::new(),
            model: String::new(),
            data: String::new(),
            train_images: 1,
            test_images: 4,
            seeds: vec![1, 3],
            entries: vec!["a".into(), "b".into()],
            chosen: Vec::new(),
            trials: vec![
                trial("a", 1, "1100"),
                trial("b", 1, "1110"),
                trial("a", 3, "1000"),
                trial("b", 3, "1110"),
            ],
            speeds: Speeds::default(),
        };
        assert_eq!(report.mean("b", |trial| Some(trial.seconds)), 2.0);
        assert!(report.mean("c", |trial| Some(trial.seconds)).is_nan());
        // By image 0, ½, 1 and 0 more: mean 3/8, variance 11/48.
        let (gain, margin) = report.gain("b").unwrap();
        assert_eq!(gain, 37.5);
        assert!((margin - 196.0 * (11.0f64 / 48.0 / 4.0).sqrt()).abs() < 1e-9);
    }
}
