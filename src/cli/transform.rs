//! What every verb that transforms a model says: sizes, proof and speed.

use vitesse::measure::transform::{Speed, Transform};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left};
use vitesse::train::method::Change;

/// Lines of a report.
pub(super) fn rows(transform: &Transform) -> Vec<(&'static str, String)> {
    let Change { before, after, .. } = &transform.plan;
    let mut rows = vec![
        (
            "parameters",
            change(before.param_count, after.param_count, |n| {
                format::si(n as f64, "")
            }),
        ),
        (
            "MACs",
            change(before.macs, after.macs, |n| format::si(n as f64, "")),
        ),
        (
            "weights",
            change(before.weight_bytes, after.weight_bytes, |n| {
                format::bytes(n as u64)
            }),
        ),
    ];
    if let Some(proof) = &transform.proof {
        let text = format!("{} ({}: `{}`)", proof.check, proof.images, proof.data);
        rows.push(("check", text));
    }
    if let Some(speed) = &transform.speed {
        rows.push(("one image", latency(speed)));
        rows.extend(speed.warning.clone().map(|text| ("but", text)));
    }
    rows
}

fn change<T: Copy + PartialEq>(before: T, after: T, spell: impl Fn(T) -> String) -> String {
    if before == after {
        format!("{}, as before", spell(after))
    } else {
        format!("{} → {}", spell(before), spell(after))
    }
}

fn latency(speed: &Speed) -> String {
    format!(
        "{:.3} ms → {:.3} ms, ratio {}, {}; {} in turns, {}, {}",
        speed.before_latency_ms,
        speed.after_latency_ms,
        speed.ratio,
        speed.verdict,
        counted(speed.rounds, "round"),
        speed.precision,
        counted(speed.threads, "thread")
    )
}

/// The tensors that differ, each with its shapes; empty where none do.
pub(super) fn tensors(plan: &Change) -> String {
    let shape = |shape: &Option<Vec<usize>>| {
        let shape = shape.as_ref();
        shape.map_or_else(|| format::MISSING.to_owned(), |shape| format!("{shape:?}"))
    };
    let mut table = Table::new([left("tensor"), left("before"), left("after")]);
    for tensor in &plan.tensors {
        table.push([tensor.name.clone(), shape(&tensor.before), shape(&tensor.after)]);
    }
    let [gone, new, reshaped] = plan.counts();
    if table.is_empty() {
        return String::new();
    }
    format!("\n{table}\ntensors: {new} added, {gone} removed, {reshaped} with another shape\n")
}
