//! What a comparison found: for programs and for people.

use std::fmt;

use vitesse::measure::contest::short;
use vitesse::measure::trial::found::{Report, Speeds};
use vitesse::measure::trial::{Merged, Trial};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};

/// What a comparison found, for people.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a Report);

impl Text<'_> {
    fn spread(&self, label: &str, digits: usize, number: impl Fn(&Trial) -> Option<f64>) -> String {
        let values: Vec<f64> = self.0.trials(label).filter_map(number).collect();
        match values[..] {
            [] => String::new(),
            [one] => format!("{one:.digits$}"),
            _ => format::mean_spread(&values, digits),
        }
    }

    /// Whether an entry's model ends without ops, in a word or the reason why not.
    pub(super) fn folds(&self, label: &str) -> String {
        let test = self.0.trials(label).find_map(|trial| trial.test.as_ref());
        match test.map(|test| &test.merged) {
            Some(Some(Merged::Folded { .. })) => "merges".into(),
            Some(Some(Merged::Refused { .. })) => "stays".into(),
            Some(None) => "nothing to merge".into(),
            None => String::new(),
        }
    }

    /// Accuracy of every entry.
    pub(super) fn accuracies(&self) -> Table {
        let (tested, several) = (self.0.test_images > 0, self.0.entries.len() > 1);
        let mut columns = vec![left("method")];
        if tested {
            columns.extend([right("top-1 %"), right("balanced %")]);
        } else {
            columns.push(right("validation top-1 %"));
        }
        if several {
            columns.push(right("against the first"));
        }
        if tested {
            columns.push(left("at the end"));
        }
        let mut table = Table::new(columns);
        for (i, label) in self.0.entries.iter().enumerate() {
            let mut cells = vec![label.clone(), self.spread(label, 2, |trial| self.0.top1(trial))];
            if tested {
                let balanced = |trial: &Trial| Some(trial.test.as_ref()?.balanced_accuracy);
                cells.push(self.spread(label, 2, balanced));
            }
            if several {
                cells.push(match self.0.gain(label) {
                    Some((gain, margin)) if i > 0 => format!("{gain:+.2} ± {margin:.2}"),
                    _ => String::new(),
                });
            }
            if tested {
                cells.push(self.folds(label));
            }
            table.push(cells);
        }
        table
    }

    /// What every entry costs.
    pub(super) fn costs(&self) -> Table {
        let mut table = Table::new([
            left("method"),
            right("parameters"),
            right("share %"),
            right("training"),
            right("memory"),
        ]);
        for label in &self.0.entries {
            let Some(trial) = self.0.trials(label).next() else {
                continue;
            };
            let share = trial.method_param_count as f64 / trial.param_count as f64;
            let memory = |trial: &Trial| trial.peak_memory_bytes.map(|bytes| bytes as f64);
            let memory = self.0.mean(label, memory);
            table.push([
                label.clone(),
                format::count(trial.method_param_count as u64),
                format!("{:.2}", 100.0 * share),
                format::duration(self.0.mean(label, |trial| Some(trial.seconds))),
                if memory.is_nan() {
                    format::MISSING.to_owned()
                } else {
                    format::bytes(memory as u64)
                },
            ]);
        }
        table
    }

    /// Batch sizes that latency was measured with.
    fn batches(&self) -> Vec<usize> {
        let plain = self.0.speeds.of(Speeds::PLAIN);
        plain.map(|latency| latency.batch).collect()
    }

    /// How long the plain model takes, and how many times as long every other that was measured.
    pub(super) fn latencies(&self) -> Table {
        let columns = self
            .batches()
            .into_iter()
            .map(|batch| right(counted(batch, "image")));
        let mut table = Table::new(std::iter::once(left("latency")).chain(columns));
        for model in self.0.speeds.models() {
            let cells = self.0.speeds.of(model).map(|latency| match model {
                Speeds::PLAIN => format!("{} ms", format::significant(latency.latency_ms, 3)),
                _ => latency.ratio.to_string(),
            });
            let name = match model {
                Speeds::PLAIN => "the plain model",
                other => other,
            };
            table.push(std::iter::once(name.to_owned()).chain(cells));
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
        for chosen in &self.0.chosen {
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

    /// Every run, a row each: what differs from seed to seed.
    pub(super) fn every_run(&self) -> Table {
        let tested = self.0.test_images > 0;
        let validated = self.0.trials.iter().any(|trial| trial.validation_top1.is_some());
        let mut columns = vec![left("method"), right("seed")];
        if tested {
            columns.extend([right("top-1 %"), right("balanced %"), right("loss")]);
        }
        if validated {
            columns.push(right("validation top-1 %"));
        }
        columns.extend([right("training"), right("memory")]);
        let mut table = Table::new(columns);
        for trial in &self.0.trials {
            let mut cells = vec![trial.label.clone(), trial.seed.to_string()];
            if tested {
                cells.extend(trial.test.iter().flat_map(|test| {
                    [(test.top1, 2), (test.balanced_accuracy, 2), (test.loss, 3)]
                        .map(|(value, digits)| format!("{value:.digits$}"))
                }));
            }
            if validated {
                let top1 = trial.validation_top1.map(|top1| format!("{top1:.2}"));
                cells.push(top1.unwrap_or_default());
            }
            cells.push(format::duration(trial.seconds));
            cells.push(trial.peak_memory_bytes.map(format::bytes).unwrap_or_default());
            table.push(cells);
        }
        table
    }

    /// Every run, a row each, with everything about it, for programs.
    pub(super) fn runs(&self) -> Table {
        let mut columns = vec![
            left("method"),
            right("seed"),
            right("top1"),
            right("balanced_accuracy"),
            right("loss"),
            right("validation_top1"),
            right("epochs"),
            right("method_param_count"),
            right("head_param_count"),
            right("param_count"),
            right("adapter_bytes"),
            right("train_seconds"),
            right("peak_memory_bytes"),
            left("merge"),
            left("same_plan"),
        ];
        let batches = self.batches();
        for batch in &batches {
            columns.push(right(format!("ratio_with_ops_b{batch}")));
            columns.push(right(format!("ratio_merged_b{batch}")));
        }
        let mut table = Table::new(columns);
        let cell = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        for trial in &self.0.trials {
            let test = trial.test.as_ref();
            let same = self
                .0
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
                trial.method_param_count.to_string(),
                trial.head_param_count.to_string(),
                trial.param_count.to_string(),
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
                    let found = self.0.speeds.of(&model).find(|latency| latency.batch == batch);
                    cells.push(cell(found.map(|latency| latency.ratio.median)));
                }
            }
            table.push(cells);
        }
        table
    }

    /// What was compared, in a sentence.
    pub(super) fn about(&self) -> String {
        let seeds = match self.0.seeds.len() {
            1 => "one seed".to_owned(),
            n => format!("{n} seeds, mean ± standard deviation"),
        };
        let epochs = self.0.trials.iter().map(|trial| trial.epochs);
        let epochs = match (epochs.clone().min(), epochs.max()) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most} epochs"),
            (least, _) => counted(least.unwrap_or_default(), "epoch"),
        };
        let chosen = if self.0.trials.iter().any(|trial| trial.validation_top1.is_some()) {
            "the best epoch by validation"
        } else {
            "the last epoch"
        };
        let tested = match self.0.test_images {
            0 => format!("{chosen}, not tested: the data have no test split"),
            images => format!("{chosen} tested once on {}", counted(images, "image")),
        };
        let end = |path: &str| short(&[path]).concat();
        format!(
            "{} on {}: {}, {epochs}, {seeds}; {tested}.",
            end(&self.0.model),
            end(&self.0.data),
            counted(self.0.train_images, "image"),
        )
    }

    /// What the columns about accuracy mean, where there is anything to say.
    pub(super) fn about_accuracies(&self) -> Option<String> {
        match &self.0.entries[..] {
            [first, _, ..] => Some(format!(
                "Against the first: points of top-1 more than `{first}`, image by image, ± 95 %."
            )),
            _ => None,
        }
    }

    /// What those about costs mean.
    pub(super) fn about_costs(&self) -> &'static str {
        "Parameters: the method's, to which the head is not counted; share: of all the model's. Memory: the most in use while training."
    }

    /// What the table of latencies shows, in a sentence.
    pub(super) fn ratios(&self) -> String {
        format!(
            "Ratios to the plain model: median, least and greatest of {} in turns; f32, {}.",
            counted(self.0.speeds.rounds, "round"),
            counted(self.0.threads, "thread")
        )
    }

    /// Whether merging leaves anything, in a sentence.
    pub(super) fn plans(&self) -> String {
        let of = |wanted: bool| {
            let labels = self.0.speeds.same_plan.iter().filter(|(_, same)| *same == wanted);
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

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}", self.about(), self.accuracies())?;
        if let Some(sentence) = self.about_accuracies() {
            writeln!(f, "{sentence}\n")?;
        }
        writeln!(f, "{}\n{}", self.costs(), self.about_costs())?;
        if let Some(searches) = self.searches() {
            writeln!(f, "\n{searches}")?;
        }
        if self.0.speeds.latencies.is_empty() {
            return writeln!(f, "\n`{}` shows it with charts", self.0.page);
        }
        writeln!(f, "\n{}\n{} {}", self.latencies(), self.ratios(), self.plans())?;
        writeln!(f, "\n`{}` shows it with charts", self.0.page)
    }
}
