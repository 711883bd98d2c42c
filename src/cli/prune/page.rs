//! Budgets as one HTML file: accuracy against latency, what is left of each block, how far off each half is.

use vitesse::report::chart::{BarChart, ScatterChart};
use vitesse::report::{Content, Page};

use super::report::{Report, ResultOf};

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut page = Page::new(format!("{}, pruned", report.model)).summary(summary(report));
    page = page.section("All budgets", budgets(report));
    for result in &report.results {
        let title = format!("{} of the {}", result.share, report.quantity);
        page = page.section(title, blocks(report, result));
    }
    if !report.sensitivity.is_empty() {
        page = page.section("Sensitivity", sensitivity(report));
    }
    page.provenance([
        ("Vitesse", env!("CARGO_PKG_VERSION").to_owned()),
        ("method", report.method.name().to_owned()),
        (
            "processor",
            vitesse::measure::machine::processor().unwrap_or_else(|| "not known".to_owned()),
        ),
    ])
    .render()
}

fn summary(report: &Report) -> String {
    let one = |result: &ResultOf| {
        let speed = result.transform.speed.first()?;
        let accuracy = result.accuracy.as_ref()?;
        Some(format!(
            "With {} of the {} it takes {} of the time, and top-1 is {:.1} % where it was {:.1} %, without training.",
            result.share, report.quantity, speed.ratio, accuracy.after_top1, accuracy.before_top1
        ))
    };
    let all: Vec<String> = report.results.iter().filter_map(one).collect();
    all.join(" ")
}

fn budgets(report: &Report) -> Content {
    let mut content = Content::new().table(&report.budgets());
    let batches = report
        .results
        .first()
        .map(|result| result.transform.speed.iter().map(|speed| speed.batch));
    for batch in batches.into_iter().flatten() {
        let point = |result: &ResultOf| {
            let speed = result.transform.speed.iter().find(|speed| speed.batch == batch)?;
            let top1 = result.accuracy.as_ref()?.after_top1;
            Some((result.share.to_string(), speed.after_latency_ms, top1))
        };
        let first = report.results.first().and_then(|result| {
            let speed = result.transform.speed.iter().find(|speed| speed.batch == batch)?;
            Some((
                "dense".to_owned(),
                speed.before_latency_ms,
                result.accuracy.as_ref()?.before_top1,
            ))
        });
        let points: Vec<_> = first
            .into_iter()
            .chain(report.results.iter().filter_map(point))
            .collect();
        if !points.is_empty() {
            let chart = ScatterChart::new(format!("Accuracy against latency, batches of {batch}"))
                .x_label("latency (ms)")
                .y_label("top-1 (%)")
                .series("", points);
            content = content.chart(&chart);
        }
    }
    content
}

fn blocks(report: &Report, result: &ResultOf) -> Content {
    let content = Content::new().table(&report.widths(result));
    if result.corrections.is_empty() {
        return content;
    }
    let names = result.corrections.iter().map(|fit| fit.module.clone());
    let percent = |of: fn(&vitesse::measure::prune::Correction) -> f64| {
        result.corrections.iter().map(move |fit| 100.0 * of(fit))
    };
    let chart = BarChart::new("How far the stream is off after each half of a block", names)
        .x_label("distance (% of its mean square)")
        .series("after the cut", percent(|fit| fit.cut))
        .series("after the correction", percent(|fit| fit.corrected));
    content.chart(&chart)
}

fn sensitivity(report: &Report) -> Content {
    let names = report.sensitivity.iter().map(|one| one.group.clone());
    let chart = BarChart::new("Top-1 with half of one group's units, nothing corrected", names)
        .x_label("top-1 (%)")
        .series("top-1", report.sensitivity.iter().map(|one| one.top1));
    Content::new().table(&report.sensitivities()).chart(&chart)
}
