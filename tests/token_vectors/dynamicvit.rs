//! DynamicViT: inference by gathering, training by masks with every loss part and gradients.

use std::collections::BTreeMap;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use vitesse::model::network::{Ctx, Leaving, Noise, Trace};
use vitesse::model::ops::{OpKind, TokenPredictor};
use vitesse::model::{ModelSpec, Site};
use vitesse::train::loss;

use super::{EXACT, doubles, engines, list, model, network, output, stages, weights};
use crate::support::adapting::{by_name, tensor, values};
use crate::support::{Report, Vectors};

fn described(v: &Vectors) -> ModelSpec {
    let ops = stages(v, |ratio| OpKind::TokenPredictor(TokenPredictor { ratio }));
    model(v, ops)
}

/// Patches that stay are removed from the stream.
pub(crate) fn inference(v: &Vectors, report: &mut Report) {
    let spec = described(v);
    let weights = weights(v, &spec);
    let network = network(v, &spec, &weights, &Device::flex());
    let mut ctx = Ctx::tracing(Trace::sites([Site::BlockIn]));
    let image = tensor(v, "in.image", &Device::flex());
    let logits = network.forward(image, &mut ctx).unwrap().class;
    report.compare(v, "out.logits", &values(&logits));
    let counts = list(&v.config["keep_counts"]);
    // Of each image the original numbers of the patches that are there.
    let mut original: Vec<Vec<f64>> = vec![(0..v.usize("tokens")).map(|i| i as f64).collect(); v.usize("B")];
    for (stage, op) in spec.ops.iter().enumerate() {
        let key = |name: &str| format!("out.stage{stage}.{name}");
        let scores = ["keep", "drop"].map(|name| {
            let scores = output(&spec, stage, name, &ctx);
            let [batch, tokens] = scores.dims();
            scores.reshape([batch, tokens, 1])
        });
        report.compare(v, &key("log_prob"), &values(&Tensor::cat(scores.to_vec(), 2)));
        let kept = doubles(&output(&spec, stage, "kept", &ctx));
        report.compare_f64(v, &key("keep_local"), &kept, EXACT);
        let kept = kept.chunks(counts[stage] as usize);
        let of_image = |(original, kept): (&Vec<f64>, &[f64])| -> Vec<f64> {
            kept.iter().map(|&local| original[local as usize]).collect()
        };
        original = original.iter().zip(kept).map(of_image).collect();
        report.compare_f64(v, &key("keep_original"), &original.concat(), EXACT);
        let gathered = ctx.trace.tokens(Site::BlockIn, op.layer).unwrap();
        report.compare(v, &key("gathered"), &values(&gathered));
    }
    // The stream's own account of who is where.
    let places = ctx.stream.places.as_ref().unwrap();
    for (image, original) in original.iter().enumerate() {
        for (local, &patch) in original.iter().enumerate() {
            assert_eq!(places.of_image(image)[1 + patch as usize], Some(1 + local));
        }
    }
    engines(v, report, "out.logits", &spec, &weights);
}

/// Noise that a file gives, by the prefix of the op that it belongs to.
pub(crate) fn given_noise(v: &Vectors, spec: &ModelSpec) -> Noise {
    let ops = spec.ops.iter().enumerate();
    let noise = ops.map(|(stage, op)| (op.prefix(stage), v.f32(&format!("in.gumbel{stage}"))));
    Noise::Given(noise.collect())
}

/// The decisions of every stage, compared with a file's.
pub(crate) fn masks(v: &Vectors, report: &mut Report, spec: &ModelSpec, ctx: &Ctx) -> Vec<Tensor<2>> {
    let decisions: Vec<Tensor<2>> = (0..spec.ops.len())
        .map(|stage| output(spec, stage, "decision", ctx))
        .collect();
    for (stage, decision) in decisions.iter().enumerate() {
        report.compare_f64(v, &format!("out.mask{stage}"), &doubles(decision), EXACT);
    }
    let last = decisions.last().unwrap();
    report.compare_f64(v, "out.final_mask", &doubles(last), EXACT);
    decisions
}

/// Every patch keeps its place; losses as the original program has them, by plain operations.
pub(crate) fn training(v: &Vectors, report: &mut Report) {
    let device = Device::flex().autodiff();
    let spec = described(v);
    let student = network(v, &spec, &weights(v, &spec), &device);
    let dense = model(v, Vec::new());
    let teacher = network(v, &dense, &v.under("w.teacher."), &device);
    let image = tensor::<4>(v, "in.image", &device);
    let tokens = |ctx: &Ctx| {
        let x = ctx.trace.tokens(Site::FinalNorm, None).unwrap();
        x.narrow(1, 1, v.usize("tokens"))
    };
    let mut ctx = Ctx::tracing(Trace::sites([Site::FinalNorm]));
    let taught = teacher.forward(image.clone(), &mut ctx).unwrap().class.detach();
    let taught_tokens = tokens(&ctx).detach();
    let mut ctx = Ctx::tracing(Trace::sites([Site::FinalNorm]));
    ctx.leaving = Leaving::Masked {
        noise: given_noise(v, &spec),
        eps: v.number("attention_eps"),
    };
    let logits = student.forward(image, &mut ctx).unwrap().class;
    report.compare(v, "out.logits", &values(&logits));
    report.compare(v, "out.tokens", &values(&tokens(&ctx)));
    let decisions = masks(v, report, &spec, &ctx);

    let batch = v.usize("B");
    let labels: Vec<usize> = v.f32("in.label").iter().map(|&label| label as usize).collect();
    let rows = loss::target_rows(&labels, v.usize("classes"), 0.0).unwrap();
    let targets = Tensor::from_data(TensorData::new(rows, [batch, v.usize("classes")]), &device);
    let log = log_softmax(logits, 1);
    let cls = (log.clone() * targets).sum() / -(batch as f64);
    let ratios = list(&v.config["ratio"]);
    let stages = decisions.len() as f64;
    let parts = decisions.iter().zip(&ratios);
    let ratio = parts
        .map(|(decision, ratio)| (decision.clone().mean_dim(1) - *ratio).powf_scalar(2.0).mean())
        .reduce(|a, b| a + b)
        .unwrap();
    let probs = log_softmax(taught, 1);
    let kl = (probs.clone().exp() * (probs - log)).sum() / batch as f64;
    let there = decisions.last().unwrap().clone().detach();
    let each = there.clone().sum() * v.usize("dim") as f64;
    let [_, patches] = there.dims();
    let apart = (tokens(&ctx) - taught_tokens).powf_scalar(2.0);
    let mse = (apart * there.reshape([batch, patches, 1])).sum() / each;
    let total = cls.clone() * v.number("clf_weight")
        + ratio.clone() * (v.number("ratio_weight") / stages)
        + (kl.clone() + mse.clone()) * v.number("distill_weight");
    for (key, found) in [
        ("out.loss_cls", &cls),
        ("out.loss_ratio_sum", &ratio),
        ("out.loss_kl", &kl),
        ("out.loss_token_mse", &mse),
        ("out.loss", &total),
    ] {
        report.compare(v, key, &values(found));
    }
    let found: BTreeMap<String, Vec<f32>> = by_name(&student, &spec, &total.backward());
    for name in v.under("out.grad.").names() {
        let memory = match name.strip_prefix("score_predictor.") {
            Some(rest) => {
                let (stage, end) = rest.split_once('.').unwrap();
                let stage: usize = stage.parse().unwrap();
                format!("{}.{end}", spec.ops[stage].prefix(stage))
            }
            None => name.to_owned(),
        };
        let gradient = found
            .get(&memory)
            .unwrap_or_else(|| panic!("no gradient of {memory}"));
        report.compare(v, &format!("out.grad.{name}"), gradient);
    }
}
