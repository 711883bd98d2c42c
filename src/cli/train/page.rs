//! A study as one HTML file.

use vitesse::measure::machine::processor;
use vitesse::report::chart::BarChart;
use vitesse::report::{Content, Page, format};

use super::study::Report;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let rows: Vec<&String> = report.rows().collect();
    let spread = |row: &&String| report.study.spread(row, |run| Some(run.top1));
    let mean = |row| spread(row).map_or(f64::NAN, |spread| spread.mean);
    let reach = |row| match spread(row) {
        Some(spread) if spread.n > 1 => (spread.mean - spread.std, spread.mean + spread.std),
        _ => (f64::NAN, f64::NAN),
    };
    let chart = BarChart::new("Accuracy", rows.iter().map(|row| row.as_str()))
        .x_label("test top-1 (%), mean ± standard deviation")
        .decimals(2)
        .series("", rows.iter().map(mean))
        .reach(rows.iter().map(reach));
    let mut page = Page::new(report.name.as_str()).summary(report.about()).section(
        "Accuracy",
        Content::new().table(&report.accuracies()).chart(&chart),
    );
    if let Some(tokens) = report.tokens() {
        page = page.section("The two tokens", Content::new().table(&tokens));
    }
    let seconds: f64 = report.study.runs.iter().map(|run| run.seconds).sum();
    page.section("Every run", Content::new().table(&report.every_run()))
        .provenance([
            ("Vitesse", env!("CARGO_PKG_VERSION").to_owned()),
            ("processor", processor().unwrap_or_else(|| "not known".to_owned())),
            ("all runs", format::duration(seconds)),
        ])
        .render()
}
