//! What analyses found, as HTML files with charts.

use vitesse::report::chart::{HALF, LineChart, Series};
use vitesse::report::{Content, Page, format};
use vitesse_train::metrics::Spread;

use super::cka::Report as Similarities;
use super::gradients::{Found, Report as Gradients};

/// CKA by layer, a line for each model.
pub(super) fn cka(report: &Similarities) -> String {
    let base = report.models.first().map_or("", String::as_str);
    let mut chart = LineChart::new("Similarity to the first model")
        .x_label("layer")
        .y_label("linear CKA");
    for result in &report.results {
        let points = result.found.layers.iter().enumerate();
        let points = points.map(|(layer, cka)| (layer as f64, *cka));
        chart = chart.series(Series::new(result.model.clone(), points));
    }
    let least = report.results.iter().flat_map(|result| {
        let layers = result.found.layers.iter().enumerate();
        layers.map(|(layer, cka)| (*cka, layer, &result.model))
    });
    let summary = match least.min_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((cka, layer, model)) => {
            format!("Least similar to `{base}` is `{model}` after layer {layer}, with a CKA of {cka:.3}.")
        }
        None => String::new(),
    };
    let content = Content::new().chart(&chart).table(&report.table());
    let content = content.text("1 is for features that differ by a rotation and a scale, 0 for features that have nothing in common.");
    Page::new(format!("How similar models are to {base}, layer by layer"))
        .summary(summary)
        .section("Linear CKA of what leaves each layer", content)
        .provenance(report.about())
        .provenance([("Vitesse", env!("CARGO_PKG_VERSION"))])
        .render()
}

/// Norms by layer and by batch, a line for each model.
pub(super) fn gradients(report: &Gradients) -> String {
    let by_layer = |title: &str, spreads: &dyn Fn(&Found) -> Vec<(f64, Spread)>| {
        let mut chart = LineChart::new(title)
            .x_label("layer")
            .y_label("norm of the gradient")
            .log_y()
            .size(HALF);
        for found in &report.results {
            let spreads = spreads(found);
            let points = spreads.iter().map(|(layer, spread)| (*layer, spread.mean));
            let line = Series::new(found.model.clone(), points);
            chart = chart.series(line.band(spreads.iter().map(|(_, spread)| (spread.min, spread.max))));
        }
        chart
    };
    let summed = by_layer("Of all layers that share the matrices", &|found| {
        found.spreads(|layer| &layer.summed)
    });
    let alone = by_layer("Of each layer alone", &|found| {
        found.spreads(|layer| &layer.per_use)
    });
    let mut content = Content::new()
        .charts(&[&summed, &alone])
        .text(report.explanation());
    for found in &report.results {
        content = content.text(&format!("`{}`", found.model)).table(&found.table());
    }
    let mut page = Page::new("Norms of gradients, layer by layer")
        .summary(summary(report))
        .section("Layer by layer", content);
    if report.batches > 1 {
        page = page.section("Batch by batch", by_batch(report));
    }
    page.provenance(report.about())
        .provenance([("Vitesse", env!("CARGO_PKG_VERSION"))])
        .render()
}

/// From where to where the norms of each model's layers go.
fn summary(report: &Gradients) -> String {
    let of = |found: &Found| {
        let spreads = found.spreads(|layer| &layer.summed);
        let means: Vec<f64> = spreads.iter().map(|(_, spread)| spread.mean).collect();
        let Spread { min, max, .. } = Spread::of(&means)?;
        let (min, max) = (format::number(min), format::number(max));
        Some(format!("from {min} to {max} in `{}`", found.model))
    };
    let models: Vec<String> = report.results.iter().filter_map(of).collect();
    match models.is_empty() {
        true => String::new(),
        false => format!(
            "Summed where layers share, norms of layers are {}.",
            format::listed(models)
        ),
    }
}

/// The norm of all gradients, and the loss of models that learn.
fn by_batch(report: &Gradients) -> Content {
    let x_label = match report.lr {
        Some(_) => "step",
        None => "batch",
    };
    let chart = |title: &str, y_label: &str, values: fn(&Found) -> &[f64]| {
        let mut chart = LineChart::new(title).x_label(x_label).y_label(y_label);
        for found in &report.results {
            let points = values(found).iter().enumerate();
            let points = points.map(|(batch, value)| (batch as f64, *value));
            chart = chart.series(Series::new(found.model.clone(), points));
        }
        chart
    };
    let norms = chart("Norm of all gradients", "norm", |found| &found.norms.grad_norm).log_y();
    match report.lr {
        Some(_) => {
            let loss = chart("Loss", "cross-entropy", |found| &found.norms.loss);
            Content::new().charts(&[&norms.size(HALF), &loss.size(HALF)])
        }
        None => Content::new().chart(&norms),
    }
}
