//! The comparison as one HTML file.

use vitesse::measure::contest::{Batch, TOO_FEW};
use vitesse::report::chart::{HALF, LineChart, ScatterChart, Series};
use vitesse::report::format::{self, counted};
use vitesse::report::{Content, Page};

use super::report::Report;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let labels: Vec<&str> = report.models.iter().map(|model| &*model.label).collect();
    let title = match &labels[..] {
        [first, second] => format!("{first} and {second}, compared"),
        [first, others @ ..] => format!("{first} and {}, compared", counted(others.len(), "other")),
        [] => "Nothing compared".to_owned(),
    };
    let mut page = Page::new(title).summary(summary(report));
    let mut models = Content::new().table(&report.models_table());
    if let Some(sentence) = report.about_data() {
        models = models.text(&sentence);
    }
    page = page.section("What was compared", models);
    for batch in &report.batches {
        page = page.section(format!("Batches of {}", batch.batch), times(report, batch));
    }
    let isa = report.models.first().map_or("", |model| model.isa);
    // Labels are short; here is what they stand for.
    let models = report
        .models
        .iter()
        .filter(|model| !model.label.starts_with(&model.model));
    page = page.provenance(models.map(|model| (model.label.as_str(), model.model.as_str())));
    page.provenance([
        ("Vitesse", report.version.to_owned()),
        (
            "processor",
            report.processor.clone().unwrap_or_else(|| "not known".to_owned()),
        ),
        ("instructions", isa.to_owned()),
        ("threads", report.threads.to_string()),
        ("rounds", report.rounds.to_string()),
        (
            "memory of the process",
            report
                .peak_memory_bytes
                .map_or_else(|| format::MISSING.to_owned(), format::bytes),
        ),
    ])
    .render()
}

/// The fastest with the first batch size.
fn summary(report: &Report) -> String {
    let Some((batch, first)) = report
        .batches
        .first()
        .and_then(|batch| Some((batch, batch.results.first()?)))
    else {
        return String::new();
    };
    let faster = batch
        .results
        .iter()
        .filter(|time| time.ratio.verdict() == "faster");
    match faster.min_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median)) {
        Some(fastest) => format!(
            "With batches of {}, `{}` is the fastest: it takes {} of the time of `{}`.",
            batch.batch, fastest.label, fastest.ratio, first.label
        ),
        None if first.ratio.verdict() == TOO_FEW => {
            format!(
                "{} are too few to tell which model is faster.",
                counted(report.rounds, "round")
            )
        }
        None => format!(
            "With batches of {}, no model is faster than `{}` in every round.",
            batch.batch, first.label
        ),
    }
}

fn times(report: &Report, batch: &Batch) -> Content {
    let mut content = Content::new()
        .table(&Report::times_table(batch))
        .text(&report.explanation());
    let chart = |title: &str, y_label: &str, value: &dyn Fn(usize) -> Option<f64>| {
        let points = batch.results.iter().enumerate();
        let points = points.filter_map(|(i, time)| Some((time.label.clone(), time.latency_ms, value(i)?)));
        ScatterChart::new(title)
            .x_label("latency (ms)")
            .y_label(y_label)
            .size(HALF)
            .series("", points)
    };
    let size = chart("Latency and size", "packed weights (MB)", &|i| {
        Some(report.models.get(i)?.packed_bytes as f64 / 1e6)
    });
    content = match &report.evaluated {
        Some(evaluated) => {
            let accuracy = chart("Latency and accuracy", "top-1 (%)", &|i| {
                Some(evaluated.results.get(i)?.top1)
            });
            content.charts(&[&accuracy, &size])
        }
        None => content.chart(&size),
    };
    if report.rounds < 2 {
        return content;
    }
    let mut rounds = LineChart::new("Every round")
        .x_label("round")
        .y_label("latency (ms)");
    for time in &batch.results {
        let points = time.rounds_ms.iter().enumerate();
        rounds = rounds.series(Series::new(
            time.label.clone(),
            points.map(|(round, &ms)| ((round + 1) as f64, ms)),
        ));
    }
    content.chart(&rounds)
}
