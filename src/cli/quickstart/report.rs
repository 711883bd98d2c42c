//! What the quickstart found: one document for programs, ten lines for people.

use std::fmt;

use serde::Serialize;
use vitesse::report::format::{self, counted};
use vitesse_train::evaluate::HeadMetrics;
use vitesse_train::metrics::Metrics;
use vitesse_train::run::EpochRecord;
use vitesse_train::tokens::TokenSimilarity;

use super::adapt::Adapted;
use super::experiment::Method;
use super::prune::Pruned;
use super::{IMAGES, PAGE, TASK};
use crate::cli::outcome::pairs;
use crate::cli::shell::word;

/// Everything that was measured. Times and memory aside, it is a function of the seed and the size.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) output: String,
    /// The page with everything below, drawn.
    pub(super) report: String,
    pub(super) version: &'static str,
    pub(super) seed: u64,
    pub(super) short: bool,
    pub(super) task: &'static str,
    pub(super) class_names: Vec<String>,
    /// Accuracy of guessing, in percent.
    pub(super) chance: f64,
    pub(super) train_images: usize,
    pub(super) validation_images: usize,
    pub(super) test_images: usize,
    /// In the order of training, the teacher first.
    pub(super) runs: Vec<Run>,
    /// The student with the best validation accuracy.
    pub(super) best_student: Method,
    /// The student that had no teacher, on other tasks.
    pub(super) adapted: Adapted,
    /// The same with a share of its arithmetic.
    pub(super) pruned: Pruned,
    pub(super) predictions: Vec<Prediction>,
    /// The class and the distillation token of the student that has both.
    pub(super) tokens: TokenSimilarity,
    /// What the comparison says, in a sentence.
    pub(super) finding: String,
    pub(super) threads: usize,
    pub(super) processor: Option<String>,
    pub(super) seconds: f64,
    /// The most memory that was in use at once, where the system tells.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// A run, and its model on the test split.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) method: Method,
    pub(super) model: &'static str,
    /// The checkpoint with the best validation accuracy, which is the one that is tested.
    pub(super) checkpoint: String,
    pub(super) param_count: usize,
    pub(super) macs: u64,
    pub(super) curve: Vec<EpochRecord>,
    /// The best epoch, from 0, and what it was chosen by.
    pub(super) best_epoch: usize,
    pub(super) validation_top1: f64,
    pub(super) validation_loss: f64,
    /// On the test split; of a distilled model, both heads together.
    pub(super) test: Metrics,
    /// Of a distilled model, each head alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) heads: Option<HeadMetrics>,
    /// Seconds of training, evaluation after each epoch included.
    pub(super) train_seconds: f64,
    /// Pictures classified a second, reading them left out.
    pub(super) images_per_s: f64,
}

/// A picture, and what the best student takes it for.
#[derive(Debug, Serialize)]
pub(super) struct Prediction {
    /// Within the output folder.
    pub(super) file: String,
    pub(super) truth: String,
    pub(super) name: String,
    /// Probability, 0 to 1.
    pub(super) score: f64,
}

impl Report {
    pub(super) fn run(&self, method: Method) -> Option<&Run> {
        self.runs.iter().find(|run| run.method == method)
    }

    /// Commands that go on from here, each with what it is for.
    pub(super) fn next(&self) -> Vec<(&'static str, String)> {
        let folder = &self.output;
        let inside = |path: &str| word(&format!("{folder}/{path}")).into_owned();
        let best = inside(&format!("{}/best", self.best_student.key()));
        let picture = self
            .predictions
            .first()
            .map_or(String::new(), |first| first.file.clone());
        let token = Method::Token.key();
        vec![
            (
                "test the best student again",
                format!("vitesse eval --model {best} --data {TASK} --split test"),
            ),
            (
                "ask it about a picture",
                format!("vitesse predict --model {best} {}", inside(&picture)),
            ),
            (
                "see what a checkpoint holds",
                format!("vitesse inspect --model {best}"),
            ),
            (
                "follow the two tokens through the blocks",
                format!(
                    "vitesse analyze tokens --model {} --data {TASK} --limit 500",
                    inside(&format!("{token}/best"))
                ),
            ),
            (
                "adapt a published model to your own pictures",
                "vitesse adapt --model ./deit_tiny --data ./photos --method repadapter -o runs/photos"
                    .to_owned(),
            ),
            (
                "train on your own pictures, a folder a class",
                "vitesse train --preset small --model deit_micro_patch4_32 --data ./photos -o runs/mine"
                    .to_owned(),
            ),
        ]
    }
}

/// What the students' test accuracies say about distillation, whatever it is. The one that is compared was chosen on
/// validation pictures.
pub(super) fn finding(runs: &[Run], short: bool) -> String {
    if short {
        return "Every step works; leave out `--short` for models that learn something".to_owned();
    }
    let test = |method| {
        let run = runs.iter().find(|run| run.method == method);
        run.map(|run| &run.test)
    };
    let best = best_of(runs.iter().filter(|run| run.method.distils()));
    let (Some(teacher), Some(none), Some(best)) = (test(Method::Teacher), test(Method::None), best) else {
        return String::new();
    };
    let (gain, margin) = (best.test.top1 - none.top1, none.margin());
    let verdict = match gain {
        gain if gain > margin => "Distillation helped",
        gain if gain < -margin => "Distillation did harm",
        _ => "No effect of distillation is shown",
    };
    let mut text = format!(
        "{verdict}: {} ends {:.1} points {} no distillation, where up to {margin:.1} are chance",
        best.method.name(),
        gain.abs(),
        if gain < 0.0 { "below" } else { "above" }
    );
    if teacher.top1 <= none.top1 {
        text.push_str("; the teacher is no better than a student without it");
    }
    text
}

/// The run with the best validation accuracy; of equal ones that with the lower loss.
pub(super) fn best_of<'a>(runs: impl Iterator<Item = &'a Run>) -> Option<&'a Run> {
    runs.max_by(|a, b| {
        let accuracy = a.validation_top1.total_cmp(&b.validation_top1);
        accuracy.then(b.validation_loss.total_cmp(&a.validation_loss))
    })
}

/// An accuracy as the tables show it.
pub(super) fn points(top1: f64) -> String {
    format!("{top1:.1} %")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize| format::count(n as u64);
        let mut rows = vec![(
            "data".to_owned(),
            format!(
                "{TASK}, drawn here: {} classes, {} pictures to learn from, {} to test on",
                self.class_names.len(),
                count(self.train_images),
                count(self.test_images)
            ),
        )];
        for run in &self.runs {
            let heads = run.heads.as_ref().map_or(String::new(), |heads| {
                format!(
                    " (its heads alone: {}, {})",
                    points(heads.class.top1),
                    points(heads.distillation.top1)
                )
            });
            let (parameters, seconds) = (
                format::si(run.param_count as f64, ""),
                format::duration(run.train_seconds),
            );
            rows.push((
                run.method.name().to_owned(),
                format!(
                    "top-1 {}{heads}, {parameters} parameters, trained in {seconds}",
                    points(run.test.top1)
                ),
            ));
        }
        rows.push(("guessing".to_owned(), format!("top-1 {}", points(self.chance))));
        rows.push(("finding".to_owned(), self.finding.clone()));
        for task in &self.adapted.found.tasks {
            rows.push((
                format!("adapted to {}", task.task),
                format!(
                    "top-1 {} with RepAdapter merged, {} with a new head alone (guessing {})",
                    points(task.repadapter_top1),
                    points(task.linear_top1),
                    points(task.chance)
                ),
            ));
        }
        rows.push(("merging".to_owned(), self.adapted.finding()));
        rows.push(("pruning".to_owned(), self.pruned.finding()));
        let memory = self.peak_memory_bytes.map_or(String::new(), |bytes| {
            format!(", {} of memory at most", format::bytes(bytes))
        });
        rows.push((
            "time".to_owned(),
            format!(
                "{} with {}{memory}",
                format::duration(self.seconds),
                counted(self.threads, "thread")
            ),
        ));
        rows.push((
            "report".to_owned(),
            format!("{}/{PAGE}, pictures in {}/{IMAGES}", self.output, self.output),
        ));
        f.write_str(&pairs(rows))?;
        writeln!(f, "\nNext:")?;
        self.next()
            .iter()
            .try_for_each(|(_, command)| writeln!(f, "  {command}"))
    }
}
