//! What was compared: for programs and for people.

use std::fmt;

use serde::Serialize;
use vitesse::measure::contest::{Accuracy, Batch, Model};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) processor: Option<String>,
    pub(super) threads: usize,
    pub(super) rounds: usize,
    /// In the order of the command line; the first is what the others are compared with.
    pub(super) models: Vec<Model>,
    pub(super) batches: Vec<Batch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) evaluated: Option<Evaluated>,
    /// Of the process, all models together.
    pub(super) peak_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) page: Option<String>,
}

/// Accuracies of all models.
#[derive(Debug, Serialize)]
pub(super) struct Evaluated {
    pub(super) data: String,
    pub(super) split: String,
    pub(super) results: Vec<Accuracy>,
}

impl Report {
    /// What the models are, and what they know.
    pub(super) fn models_table(&self) -> Table {
        let mut columns = vec![left("model")];
        if self.evaluated.is_some() {
            columns.extend([right("top-1"), right("top-5"), right("agrees")]);
        }
        columns.extend(["parameters", "weights", "packed", "GMACs"].map(right));
        let mut table = Table::new(columns);
        for (i, model) in self.models.iter().enumerate() {
            let mut cells = vec![model.label.clone()];
            if let Some(found) = self
                .evaluated
                .as_ref()
                .and_then(|evaluated| evaluated.results.get(i))
            {
                let percent = |value: f64| format::share(value, found.images);
                let agrees = found.agreement.map_or_else(String::new, percent);
                cells.extend([percent(found.top1), percent(found.top5), agrees]);
            }
            cells.extend([
                format::count(model.param_count as u64),
                format::bytes(model.weight_bytes as u64),
                format::bytes(model.packed_bytes as u64),
                format!("{:.3}", model.macs as f64 / 1e9),
            ]);
            table.push(cells);
        }
        table
    }

    /// How fast they are with one batch size.
    pub(super) fn times_table(batch: &Batch) -> Table {
        let mut table = Table::new([
            left("model"),
            left(""),
            right("ratio (all rounds)"),
            right("latency"),
            right("images/s"),
        ]);
        for (i, time) in batch.results.iter().enumerate() {
            let (ratio, verdict) = match i {
                0 => ("1".to_owned(), ""),
                _ => (time.ratio.to_string(), time.ratio.verdict()),
            };
            table.push([
                time.label.clone(),
                verdict.to_owned(),
                ratio,
                format!("{} ms", format::significant(time.latency_ms, 3)),
                format::number(time.images_per_s),
            ]);
        }
        table
    }

    /// What ratios are, in a sentence.
    pub(super) fn explanation(&self) -> String {
        let first = self.models.first().map_or("", |model| &model.label);
        let (rounds, threads) = (counted(self.rounds, "round"), counted(self.threads, "thread"));
        let mut precisions: Vec<&str> = self.models.iter().map(|model| model.precision.name()).collect();
        precisions.dedup();
        // Labels say it where there are several.
        let precision = match precisions[..] {
            [one] => format!("{one}, "),
            _ => String::new(),
        };
        format!(
            "Ratio: latency over that of `{first}` in the same round, the median of {rounds}, the least and the \
             greatest; {precision}{threads}."
        )
    }

    /// On what accuracies were measured.
    pub(super) fn about_data(&self) -> Option<String> {
        let evaluated = self.evaluated.as_ref()?;
        let first = evaluated.results.first()?;
        let images = counted(first.images, "image");
        let unreadable = match first.unreadable {
            0 => String::new(),
            files => format!(", {files} more could not be read"),
        };
        Some(format!(
            "Accuracy on {images} of `{}`, {}{unreadable}; agrees: the same prediction as `{}`.",
            evaluated.data, evaluated.split, first.label
        ))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.models_table())?;
        if let Some(sentence) = self.about_data() {
            writeln!(f, "{sentence}")?;
        }
        for batch in &self.batches {
            write!(f, "\nbatches of {}\n{}", batch.batch, Report::times_table(batch))?;
        }
        writeln!(f, "{}", self.explanation())?;
        if let Some(page) = &self.page {
            writeln!(f, "\n`{page}` shows it with charts")?;
        }
        Ok(())
    }
}
