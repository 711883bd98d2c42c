//! A comparison as one HTML file.

use vitesse::measure::contest::Ratio;
use vitesse::measure::trial::found::{Report, Speeds};
use vitesse::report::chart::{BarChart, Chart, HALF, ScatterChart};
use vitesse::report::{Content, Page, format};

use super::report::Text;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let text = Text(report);
    let top1 = |label: &str| report.mean(label, |trial| report.top1(trial));
    let best = report.entries.iter().max_by(|a, b| top1(a).total_cmp(&top1(b)));
    let mut page = Page::new(match report.entries[..] {
        [_] => "A way to adapt, searched for",
        _ => "Ways to adapt, compared",
    })
    .summary(text.about());
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
        chart
            .y_label(format!("{} top-1 (%)", report.judge()))
            .size(HALF)
            .series("", points)
    };
    let mut accuracies = Content::new().table(&text.accuracies());
    if let Some(sentence) = text.about_accuracies() {
        let charts: [&dyn Chart; 2] = [&accuracy(true), &accuracy(false)];
        accuracies = accuracies.text(&sentence).charts(&charts);
    }
    if let Some(searches) = text.searches() {
        accuracies = accuracies
            .text("Searched for on validation images, with the first seed:")
            .table(&searches);
    }
    let costs = Content::new().table(&text.costs()).text(text.about_costs());
    page = page.section("Accuracy", accuracies).section("Cost", costs);
    if !report.speeds.latencies.is_empty() {
        let speeds = Content::new()
            .table(&text.latencies())
            .text(&format!("{} {}", text.ratios(), text.plans()))
            .chart(&latencies(report));
        page = page.section("Latency", speeds);
    }
    page.section("Every run", Content::new().table(&text.every_run()))
        .provenance([
            ("Vitesse", report.version.to_owned()),
            ("model", report.model.clone()),
            ("data", report.data.clone()),
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

/// Latency with one image over the plain model's, with ops and merged; whiskers reach from the least round to the greatest.
fn latencies(report: &Report) -> BarChart {
    let measured: Vec<&String> = report
        .entries
        .iter()
        .filter(|label| report.speeds.of(&Speeds::with_ops(label)).next().is_some())
        .collect();
    let ratios = |name: fn(&str) -> String| -> Vec<Ratio> {
        let of = |label: &&String| {
            let model = name(label);
            let found = report.speeds.of(&model).find(|latency| latency.batch == 1);
            found.map_or(Ratio::of(&[]), |latency| latency.ratio)
        };
        measured.iter().map(of).collect()
    };
    let chart = BarChart::new(
        "Latency of one image, 1 is the plain model's",
        measured.iter().map(|label| short(label, &report.entries)),
    )
    .x_label("ratio, median and all rounds")
    .decimals(2);
    [
        ("with ops", ratios(Speeds::with_ops)),
        ("merged", ratios(Speeds::merged)),
    ]
    .into_iter()
    // A method that cannot be merged is not missed where none can.
    .filter(|(_, ratios)| ratios.iter().any(|ratio| ratio.median.is_finite()))
    .fold(chart, |chart, (name, ratios)| {
        chart
            .series(name, ratios.iter().map(|ratio| ratio.median))
            .reach(ratios.iter().map(|ratio| (ratio.min, ratio.max)))
    })
}
