//! What was compared: for programs and for people.

use std::fmt;

use serde::Serialize;
use vitesse::engine::Precision;
use vitesse::report::{Table, format, left, right};

use crate::cli::bench::measure::median;
use crate::cli::bench::threads;
use crate::cli::model::Weights;

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

/// What a model is.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    /// Tells it from the others.
    pub(super) label: String,
    /// As typed.
    pub(super) model: String,
    pub(super) architecture: String,
    pub(super) weights: Weights,
    pub(super) precision: Precision,
    pub(super) isa: &'static str,
    /// Height and width.
    pub(super) img_size: [usize; 2],
    pub(super) params: usize,
    /// As they came: in the file, or as drawn.
    pub(super) weight_bytes: usize,
    /// As the engine holds them.
    pub(super) packed_bytes: usize,
    /// Nominal multiply-accumulates of one image, 10⁹.
    pub(super) gmacs: f64,
    /// Those that the engine does.
    pub(super) gmacs_executed: f64,
    pub(super) compile_ms: f64,
}

/// All models with one batch size.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Batch {
    pub(in crate::cli) batch: usize,
    pub(in crate::cli) results: Vec<Time>,
}

/// One model with one batch size.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Time {
    pub(in crate::cli) label: String,
    /// The median of the rounds' medians.
    pub(in crate::cli) latency_ms: f64,
    pub(in crate::cli) images_per_s: f64,
    pub(in crate::cli) ratio: Ratio,
    /// The median of each round.
    pub(in crate::cli) rounds_ms: Vec<f64>,
}

/// Latency over that of the first model in the same round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(in crate::cli) struct Ratio {
    pub(in crate::cli) median: f64,
    pub(in crate::cli) min: f64,
    pub(in crate::cli) max: f64,
}

/// Accuracies of all models.
#[derive(Debug, Serialize)]
pub(super) struct Evaluated {
    pub(super) data: String,
    pub(super) split: String,
    pub(super) results: Vec<Accuracy>,
}

/// One model's answers, in percent.
#[derive(Debug, Serialize)]
pub(super) struct Accuracy {
    pub(super) label: String,
    pub(super) top1: f64,
    pub(super) top5: f64,
    /// Images for which it predicts what the first model predicts.
    pub(super) agreement: f64,
    pub(super) images: usize,
    pub(super) unreadable: usize,
}

impl Ratio {
    pub(super) fn of(ratios: &[f64]) -> Ratio {
        Ratio {
            median: median(ratios.iter().copied()),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// What all rounds agree on.
    pub(super) fn verdict(self) -> &'static str {
        if self.max < 1.0 {
            "faster"
        } else if self.min > 1.0 {
            "slower"
        } else {
            "not told apart"
        }
    }
}

/// `0.512 (0.498–0.530)`
pub(super) fn spread(ratio: Ratio) -> String {
    format!("{:.3} ({:.3}–{:.3})", ratio.median, ratio.min, ratio.max)
}

impl Report {
    /// What the models are, and what they know.
    pub(super) fn models_table(&self) -> Table {
        let mut columns = vec![
            left("model"),
            right("parameters"),
            right("weights"),
            right("packed"),
            right("GMACs"),
        ];
        if self.evaluated.is_some() {
            columns.extend([right("top-1"), right("top-5"), right("agrees")]);
        }
        let mut table = Table::new(columns);
        for (i, model) in self.models.iter().enumerate() {
            let mut cells = vec![
                model.label.clone(),
                format::count(model.params as u64),
                format::bytes(model.weight_bytes as u64),
                format::bytes(model.packed_bytes as u64),
                format!("{:.3}", model.gmacs),
            ];
            if let Some(found) = self
                .evaluated
                .as_ref()
                .and_then(|evaluated| evaluated.results.get(i))
            {
                let percent = |value: f64| format!("{value:.2} %");
                cells.extend([percent(found.top1), percent(found.top5), percent(found.agreement)]);
            }
            table.push(cells);
        }
        table
    }

    /// How fast they are with one batch size.
    pub(super) fn times_table(batch: &Batch) -> Table {
        let mut table = Table::new([
            left("model"),
            right("latency"),
            right("images/s"),
            right("ratio (all rounds)"),
            left(""),
        ]);
        for (i, time) in batch.results.iter().enumerate() {
            let (ratio, verdict) = match i {
                0 => ("1".to_owned(), ""),
                _ => (spread(time.ratio), time.ratio.verdict()),
            };
            table.push([
                time.label.clone(),
                format!("{:.3} ms", time.latency_ms),
                format!("{:.1}", time.images_per_s),
                ratio,
                verdict.to_owned(),
            ]);
        }
        table
    }

    /// What ratios are, in a sentence.
    pub(super) fn explanation(&self) -> String {
        let first = self.models.first().map_or("", |model| &model.label);
        let (rounds, threads) = (self.rounds, threads(self.threads));
        let mut precisions: Vec<&str> = self.models.iter().map(|model| model.precision.name()).collect();
        precisions.dedup();
        // Labels say it where there are several.
        let precision = match precisions[..] {
            [one] => format!("{one}, "),
            _ => String::new(),
        };
        format!(
            "Ratio: latency over that of `{first}` in the same round, the median of {rounds} rounds, the least and the \
             greatest; {precision}{threads}."
        )
    }

    /// On what accuracies were measured.
    pub(super) fn about_data(&self) -> Option<String> {
        let evaluated = self.evaluated.as_ref()?;
        let first = evaluated.results.first()?;
        let images = format::count(first.images as u64);
        let unreadable = match first.unreadable {
            0 => String::new(),
            files => format!(", {files} more could not be read"),
        };
        Some(format!(
            "Accuracy on {images} images of `{}`, {}{unreadable}; agrees: the same prediction as `{}`.",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rounds_must_agree() {
        let ratio = Ratio::of(&[0.5, 0.9, 0.6]);
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.6, 0.5, 0.9));
        assert_eq!(ratio.verdict(), "faster");
        assert_eq!(Ratio::of(&[0.9, 1.1]).verdict(), "not told apart");
        assert_eq!(Ratio::of(&[1.2, 1.1]).verdict(), "slower");
        assert_eq!(spread(ratio), "0.600 (0.500–0.900)");
    }
}
