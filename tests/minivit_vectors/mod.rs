//! What the vectors of MiniViT's original code describe, and what is compared with them: one file for each kind.

pub(crate) mod deit;
pub(crate) mod positions;
pub(crate) mod relations;
pub(crate) mod swin;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;
use vitesse::engine::{Engine, Isa, Options};
use vitesse::model::ops::relative_positions::{Method, Mode};
use vitesse::model::ops::{OpKind, OpSpec, QkvPart};
use vitesse::model::spec::NetworkSpec;
use vitesse::model::{ModelSpec, Site, Tensors};
use vitesse::train::loss;

use crate::support::{Report, Vectors};

pub(crate) fn cases(v: &Vectors) -> impl Iterator<Item = &Value> {
    v.config["cases"]
        .as_array()
        .expect("config.cases is a list")
        .iter()
}

pub(crate) fn number(of: &Value, key: &str) -> usize {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} is no number")) as usize
}

pub(crate) fn numbers(of: &Value, key: &str) -> Vec<usize> {
    let list = of[key].as_array().unwrap_or_else(|| panic!("{key} is no list"));
    list.iter().map(|one| one.as_u64().unwrap() as usize).collect()
}

pub(crate) fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

pub(crate) fn method(name: &Value) -> Method {
    match name.as_str() {
        Some("product") => Method::Product,
        Some("euc") => Method::Euclidean,
        Some("quant") => Method::Quant,
        Some("cross" | "cross_rows" | "cross_cols") => Method::Cross,
        other => panic!("the method {other:?} is unknown"),
    }
}

pub(crate) fn part(name: char) -> QkvPart {
    match name {
        'q' => QkvPart::Q,
        'k' => QkvPart::K,
        'v' => QkvPart::V,
        other => panic!("relative positions on `{other}` are unknown"),
    }
}

pub(crate) fn mode(name: &Value) -> Mode {
    match name.as_str() {
        Some("ctx") => Mode::Contextual,
        Some("bias") => Mode::Bias,
        other => panic!("the mode {other:?} is unknown"),
    }
}

/// A model that a file's config describes, as this project names it.
pub(crate) fn model(v: &Vectors, network: NetworkSpec) -> ModelSpec {
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network,
        ops: Vec::new(),
    }
}

pub(crate) fn targets(v: &Vectors, device: &Device) -> Tensor<2> {
    let labels: Vec<usize> = v
        .i64("in.labels")
        .into_iter()
        .map(|label| label as usize)
        .collect();
    let classes = v.usize("num_classes");
    let rows = loss::target_rows(&labels, classes, 0.0).unwrap();
    Tensor::from_data(TensorData::new(rows, [labels.len(), classes]), device)
}

/// One comparison of a key, and others that are made besides.
pub(crate) fn compare(report: &mut Report, v: &Vectors, key: &str, found: &[f32], also: Option<&str>) {
    match (also, v.has(key)) {
        (_, false) => {}
        (None, true) => report.compare(v, key, found),
        (Some(by), true) => report.compare_also(v, key, by, found),
    }
}

/// Every `grad.*` of a file, by the name that `memory` gives for it.
pub(crate) fn gradients(
    report: &mut Report,
    v: &Vectors,
    found: &BTreeMap<String, Vec<f32>>,
    memory: impl Fn(&str) -> String,
    also: Option<&str>,
) {
    for name in v.under("grad.").names() {
        match found.get(&memory(name)) {
            Some(gradient) => compare(report, v, &format!("grad.{name}"), gradient, also),
            None => report
                .failures
                .push(format!("{}/grad.{name}: no gradient", v.file)),
        }
    }
}

/// The same logits from the engine: every instruction set that this processor has, one thread and several. What the engine does not have it
/// refuses with a sentence; that is listed.
pub(crate) fn engines(v: &Vectors, report: &mut Report, spec: &ModelSpec, tensors: &Tensors) {
    let under = v.under("in.");
    let image = under.get("image").unwrap();
    let of_keys_alone =
        |op: &OpSpec| !matches!(&op.kind, OpKind::RelativePositions(op) if op.of != QkvPart::K);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for threads in [1, 3] {
            let options = Options {
                threads,
                isa: Some(isa),
                ..Options::default()
            };
            let engine = match Engine::new(spec, tensors, &v.file, options) {
                Ok(engine) => engine,
                Err(error) if !spec.ops.iter().all(of_keys_alone) => {
                    assert!(
                        error.to_string().contains("no step for `relative-positions`"),
                        "{error}"
                    );
                    report
                        .skipped
                        .push(format!("{}/out.logits by the engine ({error})", v.file));
                    return;
                }
                Err(error) => panic!("{}: {error}", v.file),
            };
            let found = engine.run(&image.to_f32(), image.shape()[0]).unwrap();
            let by = format!("engine, {isa}, {threads} threads");
            report.compare_also(v, "out.logits", &by, &found.class);
        }
    }
}
