//! EViT: blocks on given tokens, and the share of tokens that stays by epoch.

use burn::tensor::Device;
use vitesse::compress::tokens::evit::KeepRate;
use vitesse::model::network::Ctx;
use vitesse::model::ops::{AttentiveTokens, OpKind};
use vitesse::model::{Site, Sites};

use super::{EXACT, at, doubles, list, model, network, output, weights};
use crate::support::adapting::{tensor, values};
use crate::support::{Report, Vectors};

pub(crate) fn blocks(v: &Vectors, report: &mut Report) {
    let fuse = v.config["fuse"].as_bool().unwrap();
    let keep = list(&v.config["keep_rate_per_block"]);
    let ops = keep.iter().enumerate().filter(|(_, keep)| **keep < 1.0);
    let ops = ops.map(|(layer, &keep)| {
        let kind = OpKind::AttentiveTokens(AttentiveTokens { keep, fuse });
        at(Site::Mid, layer, kind)
    });
    let spec = model(v, ops.collect());
    // The file has blocks alone; what stands around them is not run.
    let mut tensors = spec.init(0).unwrap();
    for (name, tensor) in weights(v, &spec).iter() {
        tensors.insert(name, tensor.clone());
    }
    let network = network(v, &spec, &tensors, &Device::flex());
    let mut ctx = Ctx::eval();
    ctx.stream.prefix = 1;
    let mut x = tensor(v, "in.x", &Device::flex());
    for (layer, counts) in spec.token_counts().iter().enumerate() {
        x = network.block(layer, x, &mut ctx).unwrap();
        assert_eq!(counts.perceptron.count(), x.dims()[1]);
        assert_eq!(counts.perceptron.tail, ctx.stream.tail);
        report.compare(v, &format!("out.block{layer}.x"), &values(&x));
        if let Some(index) = spec.ops.iter().position(|op| op.layer == Some(layer)) {
            let kept = output(&spec, index, "kept", &ctx);
            let key = format!("out.block{layer}.keep_local");
            report.compare_f64(v, &key, &doubles(&kept), EXACT);
        }
    }
}

pub(crate) fn schedule(v: &Vectors, report: &mut Report) {
    let rate = KeepRate {
        base: v.number("base_keep_rate"),
        start: v.usize("shrink_start_epoch"),
        end: v.usize("end_epoch"),
    };
    let steps = v.f32("out.keep_rate").len();
    let found: Vec<f64> = (0..steps)
        .map(|step| rate.at(step, v.usize("iters_per_epoch")))
        .collect();
    report.compare_f64(v, "out.keep_rate", &found, 1e-12);
}
