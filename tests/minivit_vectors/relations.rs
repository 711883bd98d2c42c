//! Relations of tokens, and CKA.

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use vitesse::compress::share::{distill, relations};
use vitesse::measure::cka::Alignment;

use super::{number, numbers};
use crate::support::adapting::{tensor, values};
use crate::support::{Report, Vectors};

pub(crate) fn relation_losses(v: &Vectors, report: &mut Report) {
    let device = Device::flex().autodiff();
    let layers = v.config["layers"].as_array().unwrap().len();
    let of =
        |who: &str, layer: usize, name: &str| tensor::<3>(v, &format!("in.{who}.l{layer}.{name}"), &device);
    let mean = |terms: Vec<Tensor<1>>| {
        let share = 1.0 / terms.len() as f64;
        terms.into_iter().reduce(|sum, term| sum + term).unwrap() * share
    };
    for heads in numbers(&v.config, "relation_heads") {
        let parts = |who: &str, layer| ["q", "k", "v"].map(|name| of(who, layer, name));
        let student: Vec<[Tensor<3>; 3]> = (0..layers)
            .map(|layer| parts("student", layer).map(Tensor::require_grad))
            .collect();
        let terms = student.iter().enumerate();
        let joint = |parts: &[Tensor<3>; 3]| Tensor::cat(parts.to_vec(), 2);
        let terms = terms
            .map(|(layer, own)| relations::attention(&joint(own), &joint(&parts("teacher", layer)), heads));
        let loss = mean(terms.collect());
        report.compare(v, &format!("out.attn_relation.heads{heads}"), &values(&loss));
        let found = loss.backward();
        for (layer, own) in student.iter().enumerate() {
            for (x, name) in own.iter().zip(["q", "k", "v"]) {
                let key = format!("grad.attn_relation.heads{heads}.l{layer}.{name}");
                report.compare(v, &key, &values(&x.grad(&found).unwrap()));
            }
        }
    }
    type Compare = fn(&Tensor<3>, &Tensor<3>) -> Tensor<1>;
    let hidden: [(_, Compare); 2] = [("code", relations::cosines), ("paper", relations::products)];
    for (name, compare) in hidden {
        let student: Vec<Tensor<3>> = (0..layers)
            .map(|layer| of("student", layer, "hidden").require_grad())
            .collect();
        let terms = student.iter().enumerate();
        let terms = terms.map(|(layer, own)| compare(own, &of("teacher", layer, "hidden")));
        let loss = mean(terms.collect());
        report.compare(v, &format!("out.hidden_relation_{name}"), &values(&loss));
        let found = loss.backward();
        for (layer, own) in student.iter().enumerate() {
            let key = format!("grad.hidden_relation_{name}.l{layer}.hidden");
            report.compare(v, &key, &values(&own.grad(&found).unwrap()));
        }
    }
    for temperature in v.config["temperatures"].as_array().unwrap() {
        let logits = tensor::<2>(v, "in.student.logits", &device).require_grad();
        let teacher = tensor::<2>(v, "in.teacher.logits", &device);
        let loss = distill::soft(logits.clone(), teacher, temperature.as_f64().unwrap());
        report.compare(v, &format!("out.soft_ce.T{temperature}"), &values(&loss));
        let gradient = logits.grad(&loss.backward()).unwrap();
        report.compare(
            v,
            &format!("grad.soft_ce.T{temperature}.logits"),
            &values(&gradient),
        );
    }
    report.skip(
        v,
        "out.hidden_mse",
        "a projection of hidden states, which no published model was trained with",
    );
}

pub(crate) fn alignment(v: &Vectors, case: &Value, report: &mut Report) {
    let prefix = case["prefix"].as_str().unwrap();
    let features = |name: &str| v.f32(&format!("{prefix}in.{name}"));
    let found = Alignment::of(&features("x"), &features("y"), number(case, "samples"));
    let values = [
        ("cka", found.cka()),
        ("hsic_xy", found.xy),
        ("hsic_xx", found.xx),
        ("hsic_yy", found.yy),
    ];
    for (name, value) in values {
        report.compare_f64(v, &format!("f64.{prefix}out.{name}"), &[value], 1e-10);
    }
}
