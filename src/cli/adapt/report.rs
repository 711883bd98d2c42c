//! What a comparison found: for programs and for people.

use std::fmt;

use serde::Serialize;
use vitesse::measure::contest::Ratio;
use vitesse::report::{Table, format, left, right};

use super::trial::{Merged, Test, Trial};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) processor: Option<String>,
    pub(super) threads: usize,
    pub(super) output: String,
    pub(super) page: String,
    pub(super) model: String,
    pub(super) data: String,
    pub(super) train_images: usize,
    pub(super) test_images: usize,
    pub(super) seeds: Vec<u64>,
    /// As typed, in their order; the first is what the others are compared with.
    pub(super) entries: Vec<String>,
    pub(super) chosen: Vec<Chosen>,
    /// By seed and entry.
    pub(super) trials: Vec<Trial>,
    pub(super) speeds: Speeds,
}

/// A setting that was searched for on validation images, with the first seed.
#[derive(Debug, Serialize)]
pub(super) struct Chosen {
    pub(super) label: String,
    pub(super) key: String,
    pub(super) candidates: Vec<Candidate>,
}

/// One of its values.
#[derive(Debug, Serialize)]
pub(super) struct Candidate {
    pub(super) value: String,
    pub(super) validation_top1: Option<f64>,
    pub(super) taken: bool,
}

/// Latencies, all models taking turns.
#[derive(Debug, Default, Serialize)]
pub(super) struct Speeds {
    pub(super) rounds: usize,
    /// Whether the model without ops (merged, or with none from the start) has the plain model's plan, step for step.
    pub(super) same_plan: Vec<(String, bool)>,
    pub(super) latencies: Vec<Latency>,
}

/// One model with one batch size.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) model: String,
    pub(super) batch: usize,
    /// The median of the rounds' medians.
    pub(super) latency_ms: f64,
    /// To the plain model's in the same round.
    pub(super) ratio: Ratio,
}

impl Speeds {
    pub(super) const PLAIN: &'static str = "plain";

    pub(super) fn with_ops(label: &str) -> String {
        format!("{label}, with ops")
    }

    pub(super) fn merged(label: &str) -> String {
        format!("{label}, merged")
    }

    pub(super) fn of<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a Latency> {
        self.latencies
            .iter()
            .filter(move |latency| latency.model == model)
    }

    /// The models that were measured.
    fn models(&self) -> Vec<&str> {
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
    pub(super) fn trials<'a>(&'a self, label: &'a str) -> impl Iterator<Item = &'a Trial> {
        self.trials.iter().filter(move |trial| trial.label == label)
    }

    /// The mean of a number over the seeds; NaN of none.
    pub(super) fn mean(&self, label: &str, number: impl Fn(&Trial) -> Option<f64>) -> f64 {
        let values: Vec<f64> = self.trials(label).filter_map(number).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn spread(&self, label: &str, digits: usize, number: impl Fn(&Trial) -> Option<f64>) -> String {
        let values: Vec<f64> = self.trials(label).filter_map(number).collect();
        match values[..] {
            [] => String::new(),
            [one] => format!("{one:.digits$}"),
            _ => format::mean_spread(&values, digits),
        }
    }

    /// How many more images of a hundred an entry recognises than the first, and how far chance reaches: 95 % of a paired
    /// comparison in which the images are drawn. Each image counts with the share of the seeds that recognise it.
    pub(super) fn gain(&self, label: &str) -> Option<(f64, f64)> {
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

    /// Whether an entry's model ends without ops, in a word or the reason why not.
    pub(super) fn folds(&self, label: &str) -> String {
        let test = self.trials(label).find_map(|trial| trial.test.as_ref());
        match test.map(|test| &test.merged) {
            Some(Some(Merged::Folded { .. })) => "merges".into(),
            Some(Some(Merged::Refused { .. })) => "stays".into(),
            Some(None) => "nothing to merge".into(),
            None => String::new(),
        }
    }

    /// Accuracy and size of every entry.
    pub(super) fn accuracies(&self) -> Table {
        let mut table = Table::new([
            left("method"),
            right("top-1 %"),
            right("balanced %"),
            right("against the first"),
            right("method's parameters"),
            right("share %"),
            right("training"),
            right("memory"),
            left("at the end"),
        ]);
        for (i, label) in self.entries.iter().enumerate() {
            let Some(trial) = self.trials(label).next() else {
                continue;
            };
            let gain = match self.gain(label) {
                Some((gain, margin)) if i > 0 => format!("{gain:+.2} ± {margin:.2}"),
                _ => String::new(),
            };
            let share = trial.method_parameters as f64 / trial.total_parameters as f64;
            let memory = self.mean(label, |trial| trial.peak_memory_bytes.map(|bytes| bytes as f64));
            table.push([
                label.clone(),
                self.spread(label, 2, |trial| trial.test.as_ref().map(|test| test.top1)),
                self.spread(label, 2, |trial| {
                    trial.test.as_ref().map(|test| test.balanced_accuracy)
                }),
                gain,
                format::count(trial.method_parameters as u64),
                format!("{:.3}", 100.0 * share),
                format::duration(self.mean(label, |trial| Some(trial.seconds))),
                if memory.is_nan() {
                    String::new()
                } else {
                    format::bytes(memory as u64)
                },
                self.folds(label),
            ]);
        }
        table
    }

    /// Latency of every model that was measured.
    pub(super) fn latencies(&self) -> Table {
        let models = self.speeds.models();
        let batches: Vec<usize> = self
            .speeds
            .of(Speeds::PLAIN)
            .map(|latency| latency.batch)
            .collect();
        let columns = batches.iter().flat_map(|batch| {
            let s = if *batch == 1 { "" } else { "s" };
            [right(format!("{batch} image{s}")), right("to the plain model")]
        });
        let mut table = Table::new(std::iter::once(left("model")).chain(columns));
        for model in models {
            let cells = self
                .speeds
                .of(model)
                .flat_map(|latency| [format!("{:.2} ms", latency.latency_ms), latency.ratio.to_string()]);
            table.push(std::iter::once(model.to_owned()).chain(cells));
        }
        table
    }

    /// What was searched for; `None` where nothing was.
    pub(super) fn searches(&self) -> Option<Table> {
        let mut table = Table::new([
            left("method"),
            left("setting"),
            right("value"),
            right("validation top-1 %"),
            left(""),
        ]);
        for chosen in &self.chosen {
            for candidate in &chosen.candidates {
                let top1 = candidate.validation_top1.map(|top1| format!("{top1:.2}"));
                table.push([
                    chosen.label.clone(),
                    chosen.key.clone(),
                    candidate.value.clone(),
                    top1.unwrap_or_default(),
                    if candidate.taken { "taken" } else { "" }.to_owned(),
                ]);
            }
        }
        (!table.is_empty()).then_some(table)
    }

    /// Every run, a row each.
    pub(super) fn csv(&self) -> Table {
        let mut columns = vec![
            left("method"),
            right("seed"),
            right("top1"),
            right("balanced_accuracy"),
            right("loss"),
            right("validation_top1"),
            right("epochs"),
            right("method_parameters"),
            right("head_parameters"),
            right("total_parameters"),
            right("adapter_bytes"),
            right("train_seconds"),
            right("peak_memory_bytes"),
            left("merge"),
            left("same_plan"),
        ];
        let batches: Vec<usize> = self
            .speeds
            .of(Speeds::PLAIN)
            .map(|latency| latency.batch)
            .collect();
        for batch in &batches {
            columns.push(right(format!("ratio_with_ops_b{batch}")));
            columns.push(right(format!("ratio_merged_b{batch}")));
        }
        let mut table = Table::new(columns);
        let cell = |value: Option<f64>| value.map(|value| format!("{value}")).unwrap_or_default();
        for trial in &self.trials {
            let test = trial.test.as_ref();
            let same = self
                .speeds
                .same_plan
                .iter()
                .find(|(label, _)| *label == trial.label);
            let mut cells = vec![
                trial.label.clone(),
                trial.seed.to_string(),
                cell(test.map(|test| test.top1)),
                cell(test.map(|test| test.balanced_accuracy)),
                cell(test.map(|test| test.loss)),
                cell(trial.validation_top1),
                trial.epochs.to_string(),
                trial.method_parameters.to_string(),
                trial.head_parameters.to_string(),
                trial.total_parameters.to_string(),
                trial.adapter_bytes.to_string(),
                cell(Some(trial.seconds)),
                trial
                    .peak_memory_bytes
                    .map(|bytes| bytes.to_string())
                    .unwrap_or_default(),
                self.folds(&trial.label),
                same.map(|(_, same)| same.to_string()).unwrap_or_default(),
            ];
            for &batch in &batches {
                for model in [Speeds::with_ops(&trial.label), Speeds::merged(&trial.label)] {
                    let found = self.speeds.of(&model).find(|latency| latency.batch == batch);
                    cells.push(cell(found.map(|latency| latency.ratio.median)));
                }
            }
            table.push(cells);
        }
        table
    }

    /// What was compared, in a sentence.
    pub(super) fn about(&self) -> String {
        let seeds = match self.seeds.len() {
            1 => "one seed".to_owned(),
            n => format!("{n} seeds, mean ± standard deviation"),
        };
        let epochs = self.trials.iter().map(|trial| trial.epochs);
        let epochs = match (epochs.clone().min(), epochs.max()) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
            (least, _) => least.unwrap_or_default().to_string(),
        };
        let chosen = if self.trials.iter().any(|trial| trial.validation_top1.is_some()) {
            "the best epoch by validation"
        } else {
            "the last epoch"
        };
        format!(
            "{} on {}: {} images, {epochs} epochs, {seeds}; {chosen} tested once on {} images.",
            self.model,
            self.data,
            format::count(self.train_images as u64),
            format::count(self.test_images as u64)
        )
    }

    /// What the columns mean.
    pub(super) fn legend(&self) -> String {
        let first = self.entries.first().map_or("", String::as_str);
        format!(
            "Against the first: points of top-1 more than `{first}`, image by image, ± 95 %. Share: of all the model's \
             parameters, the head not counted as the method's. Memory: the most in use while training."
        )
    }

    /// Whether merging leaves anything, in a sentence.
    pub(super) fn plans(&self) -> String {
        let of = |wanted: bool| {
            let labels = self.speeds.same_plan.iter().filter(|(_, same)| *same == wanted);
            let labels: Vec<&str> = labels.map(|(label, _)| label.as_str()).collect();
            labels.join(", ")
        };
        match (of(true), of(false)) {
            (same, other) if other.is_empty() => format!("Step for step the plain model's plan: {same}."),
            (same, other) if same.is_empty() => format!("Not the plain model's plan: {other}."),
            (same, other) => {
                format!("Step for step the plain model's plan in the end: {same}; not: {other}.")
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}\n{}", self.about(), self.accuracies(), self.legend())?;
        if let Some(searches) = self.searches() {
            writeln!(f, "\n{searches}")?;
        }
        if self.speeds.latencies.is_empty() {
            return writeln!(f, "\n`{}` shows it with charts", self.page);
        }
        writeln!(
            f,
            "\n{}\n{} Ratios: median, least and greatest of {} rounds in turns, f32, {} threads.",
            self.latencies(),
            self.plans(),
            self.speeds.rounds,
            self.threads
        )?;
        writeln!(f, "\n`{}` shows it with charts", self.page)
    }
}
