//! A comparison as one HTML file.

use vitesse::measure::trial::found::{Report, Speeds};
use vitesse::report::chart::{BarChart, HALF, ScatterChart};
use vitesse::report::{Content, Page, format};

use super::report::Text;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let text = Text(report);
    let top1 = |label: &str| report.mean(label, |trial| trial.test.as_ref().map(|test| test.top1));
    let best = report.entries.iter().max_by(|a, b| top1(a).total_cmp(&top1(b)));
    let mut page = Page::new("Ways to adapt, compared").summary(text.about());
    if let Some(best) = best {
        page = page.card("Most accurate", format!("{:.2} %", top1(best)), best.as_str());
    }
    let accuracy = |log: bool| {
        let value = |label: &str| {
            let trial = report.trials(label).next()?;
            let parameters = (trial.method_param_count + trial.head_param_count) as f64;
            let seconds = report.mean(label, |trial| Some(trial.seconds));
            Some((
                short(label, &report.entries),
                if log { parameters } else { seconds },
                top1(label),
            ))
        };
        let points: Vec<_> = report.entries.iter().filter_map(|label| value(label)).collect();
        let chart = if log {
            ScatterChart::new("Accuracy and what learns")
                .x_label("trained parameters, head included")
                .log_x()
        } else {
            ScatterChart::new("Accuracy and time").x_label("training (s)")
        };
        chart.y_label("test top-1 (%)").size(HALF).series("", points)
    };
    let mut accuracies = Content::new()
        .table(&text.accuracies())
        .text(&text.legend())
        .charts(&[&accuracy(true), &accuracy(false)]);
    if let Some(searches) = text.searches() {
        accuracies = accuracies
            .text("Searched for on validation images, with the first seed:")
            .table(&searches);
    }
    page = page.section("Accuracy", accuracies);
    if !report.speeds.latencies.is_empty() {
        let speeds = Content::new()
            .table(&text.latencies())
            .text(&text.plans())
            .chart(&latencies(report));
        page = page.section("Latency", speeds);
    }
    page.section("Every run", Content::new().table(&text.runs(format::number)))
        .provenance([
            ("Vitesse", report.version.to_owned()),
            (
                "processor",
                report.processor.clone().unwrap_or_else(|| "not known".to_owned()),
            ),
            ("threads", report.threads.to_string()),
            ("rounds", report.speeds.rounds.to_string()),
            ("seeds", format::count(report.seeds.len() as u64)),
        ])
        .render()
}

/// What an entry is called in a chart: its method alone, where that tells it from the others.
fn short(label: &str, entries: &[String]) -> String {
    let method = |label: &str| label.split(':').next().unwrap_or_default().to_owned();
    let own = method(label);
    if entries.iter().filter(|other| method(other) == own).count() == 1 {
        own
    } else {
        label.to_owned()
    }
}

/// Latency with one image over the plain model's, with ops and merged.
fn latencies(report: &Report) -> BarChart {
    let ratio = |model: &str| {
        let found = report.speeds.of(model).find(|latency| latency.batch == 1);
        found.map_or(f64::NAN, |latency| latency.ratio.median)
    };
    let measured: Vec<&String> = report
        .entries
        .iter()
        .filter(|label| report.speeds.of(&Speeds::with_ops(label)).next().is_some())
        .collect();
    let of = |name: &dyn Fn(&str) -> String| -> Vec<f64> {
        measured.iter().map(|label| ratio(&name(label))).collect()
    };
    BarChart::new(
        "Latency of one image, 1 is the plain model's",
        measured.iter().map(|label| short(label, &report.entries)),
    )
    .x_label("ratio")
    .series("with ops", of(&|label| Speeds::with_ops(label)))
    .series("merged", of(&|label| Speeds::merged(label)))
}
