//! SPViT: the selector and its packages by themselves, training by masks, inference by gathering.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use vitesse::model::network::{Ctx, Leaving, Noise, Trace};
use vitesse::model::ops::{Op, OpKind, Package, TokenSelector};
use vitesse::model::{ModelSpec, Site, Sites};

use super::dynamicvit::{given_noise, masks};
use super::{EXACT, doubles, engines, model, network, output, stages, weights};
use crate::support::adapting::{tensor, values};
use crate::support::{Report, Vectors};

fn described(v: &Vectors, package: Package) -> ModelSpec {
    let ops = stages(v, |_| {
        OpKind::TokenSelector(TokenSelector {
            heads: v.usize("heads"),
            shared: true,
            package,
            ratio: None,
        })
    });
    model(v, ops)
}

/// The first selector alone: noise makes the decisions that the file has.
pub(crate) fn selector(v: &Vectors, report: &mut Report) {
    let device = Device::flex();
    let stays = |(policy, drop): (&f32, &f32)| {
        assert!(*policy > 0.0 || *drop == 0.0, "a token leaves twice");
        let keep = if *drop > 0.0 { -1e4 } else { 1e4 };
        [keep, 0.0]
    };
    let (policy, drop) = (v.f32("in.policy"), v.f32("in.drop"));
    let noise: Vec<f32> = policy.iter().zip(&drop).flat_map(stays).collect();
    let x = tensor::<3>(v, "in.x", &device);
    let [batch, tokens, dim] = x.dims();
    let x = Tensor::cat(vec![Tensor::zeros([batch, 1, dim], &device), x], 1);
    let policy = tensor::<3>(v, "in.policy", &device).reshape([batch, tokens]);
    for (key, package) in [
        ("out.package_sum", Package::Sum),
        ("out.package_normalized", Package::Normalised),
    ] {
        let spec = described(v, package);
        let mut tensors = vitesse::model::Tensors::new();
        let prefix = spec.ops[0].prefix(0);
        for (name, tensor) in v.under("w.").iter() {
            // Heads share a network, which stands there once a head.
            let of_first = !name.contains("_conv.") || name.contains("_conv.0.");
            if of_first {
                tensors.insert(format!("{prefix}.{name}"), tensor.clone());
            }
        }
        let op = Op::alone(&spec.ops[0], 0, &spec, &tensors, &device).unwrap();
        let mut ctx = Ctx::eval();
        ctx.leaving = Leaving::Masked {
            noise: Noise::Given(BTreeMap::from([(prefix, noise.clone())])),
            eps: 0.0,
        };
        ctx.stream.prefix = 1;
        ctx.stream.policy = Some(Tensor::cat(
            vec![Tensor::ones([batch, 1], &device), policy.clone()],
            1,
        ));
        let y = op.forward(x.clone(), &mut ctx);
        assert_eq!((y.dims()[1], ctx.stream.tail), (tokens + 2, 1));
        report.compare(v, key, &values(&y.narrow(1, tokens + 1, 1)));
        if package == Package::Sum {
            let of = |name| output(&spec, 0, name, &ctx).reshape([batch, tokens, 1]);
            let logs = Tensor::cat(vec![of("keep"), of("drop")], 2);
            report.compare(v, "out.log_score", &values(&logs));
            let prob = of("prob");
            let probs = Tensor::cat(vec![prob.clone(), prob * -1.0 + 1.0], 2);
            report.compare(v, "out.prob", &values(&probs));
        }
    }
}

pub(crate) fn training(v: &Vectors, report: &mut Report) {
    let spec = described(v, Package::Sum);
    let network = network(v, &spec, &weights(v, &spec), &Device::flex());
    let mut ctx = Ctx::tracing(Trace::sites([Site::FinalNorm]));
    ctx.leaving = Leaving::Masked {
        noise: given_noise(v, &spec),
        eps: v.number("attention_eps"),
    };
    let image = tensor(v, "in.image", &Device::flex());
    let logits = network.forward(image, &mut ctx).unwrap().class;
    report.compare(v, "out.logits", &values(&logits));
    masks(v, report, &spec, &ctx);
    let tokens = ctx.trace.tokens(Site::FinalNorm, None).unwrap();
    let patches = tokens.narrow(1, 1, v.usize("tokens"));
    report.compare(v, "out.tokens", &values(&patches));
}

/// Patches that leave are removed, though images keep different numbers; each image alone keeps the same.
pub(crate) fn inference(v: &Vectors, report: &mut Report) {
    let spec = described(v, Package::Sum);
    let weights = weights(v, &spec);
    let network = network(v, &spec, &weights, &Device::flex());
    let image = tensor::<4>(v, "in.image", &Device::flex());
    let logits = network.forward(image.clone(), &mut Ctx::eval()).unwrap().class;
    report.compare(v, "out.logits", &values(&logits));
    let batch = v.usize("B");
    let alone = (0..batch).flat_map(|i| {
        let image = image.clone().narrow(0, i, 1);
        values(&network.forward(image, &mut Ctx::eval()).unwrap().class)
    });
    report.compare_also(
        v,
        "out.logits",
        "one image at a time",
        &alone.collect::<Vec<f32>>(),
    );
    let mut ctx = Ctx::eval();
    let mut x = network.embed(image, &mut ctx).unwrap();
    for layer in 0..spec.depth() {
        x = network.block(layer, x, &mut ctx).unwrap();
        let Some(stage) = spec.ops.iter().position(|op| op.layer == Some(layer)) else {
            continue;
        };
        let (mut keep, mut totals) = (Vec::new(), Vec::new());
        let places = ctx.stream.places.as_ref().unwrap();
        for image in 0..batch {
            let there = places.of_image(image).iter();
            let there = there.map(|place| f64::from(u8::from(place.is_some())));
            let there: Vec<f64> = there.chain(vec![1.0; stage + 1]).collect();
            totals.push(there.iter().sum());
            keep.extend(there);
        }
        report.compare_f64(v, &format!("out.stage{stage}.keep"), &keep, EXACT);
        report.compare_f64(v, &format!("out.stage{stage}.kept_total"), &totals, EXACT);
        // What is there, is there by the policy too.
        if let Some(policy) = &ctx.stream.policy {
            let sums: Vec<f64> = doubles(&policy.clone().sum_dim(1));
            assert_eq!(sums, totals);
        }
    }
    engines(v, report, "out.logits", &spec, &weights);
}
