//! CAIT: merging of neighbours by itself and in a whole model.

use burn::tensor::Device;
use serde_json::Value;
use vitesse::model::network::{Ctx, Trace};
use vitesse::model::ops::{Direction, GridMerging, MergeValue, Op, OpKind, OpSpec};
use vitesse::model::spec::{NetworkSpec, PrefixToken};
use vitesse::model::{ModelSpec, Site, Sites, Tensors};

use super::{EXACT, at, cases, doubles, engines, model as described, network, vit, weights};
use crate::support::adapting::{tensor, values};
use crate::support::{Report, Vectors};

const VALUES: [(&str, MergeValue); 2] = [("mean", MergeValue::Mean), ("area", MergeValue::Area)];

fn op(layer: usize, direction: &Value, value: MergeValue) -> OpSpec {
    let direction = match direction.as_str() {
        Some("h") => Direction::Horizontal,
        Some("v") => Direction::Vertical,
        other => panic!("the direction {other:?} is unknown"),
    };
    let kind = GridMerging { direction, value };
    at(Site::BlockIn, layer, OpKind::GridMerging(kind))
}

fn sequence_ops(v: &Value, value: MergeValue) -> Vec<OpSpec> {
    let sequence = v.as_array().unwrap().iter().enumerate();
    sequence
        .map(|(layer, direction)| op(layer, direction, value))
        .collect()
}

/// Merging of tokens that are given.
pub(crate) fn merging(v: &Vectors, report: &mut Report) {
    let device = Device::flex();
    for (name, case) in cases(v) {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let grid = [number("H"), number("W")];
        for (kind, value) in VALUES {
            let ops = sequence_ops(&case["sequence"], value);
            let body = vit(grid, number("C"), ops.len(), 1, &[PrefixToken::Class]);
            let spec = ModelSpec {
                architecture: name.clone(),
                num_classes: 0,
                network: NetworkSpec::Vit(body),
                ops,
            };
            let mut ctx = Ctx::eval();
            ctx.stream.prefix = 1;
            ctx.stream.grid = grid;
            let mut x = tensor::<3>(v, &format!("in.{name}.x"), &device);
            for (index, op) in spec.ops.iter().enumerate() {
                let op = Op::alone(op, index, &spec, &Tensors::new(), &device).unwrap();
                x = op.forward(x, &mut ctx);
            }
            assert_eq!(ctx.stream.grid, [number("H_out"), number("W_out")]);
            report.compare(v, &format!("out.{name}.{kind}.x"), &values(&x));
            if value == MergeValue::Area {
                let sizes = ctx.stream.sizes.clone().unwrap();
                let patches = sizes.dims()[1] - 1;
                let key = format!("out.{name}.{kind}.size");
                report.compare_f64(v, &key, &doubles(&sizes.narrow(1, 1, patches)), EXACT);
                let places = ctx.stream.places.clone().unwrap();
                let cells = places.of_image(0)[1..].iter();
                let cells: Vec<f64> = cells.map(|place| (place.unwrap() - 1) as f64).collect();
                report.compare_f64(v, &format!("out.{name}.token_of_cell"), &cells, EXACT);
            }
        }
    }
}

/// A whole model.
pub(crate) fn model(v: &Vectors, report: &mut Report) {
    for (kind, value) in VALUES {
        let merge = v.config["merge"].as_array().unwrap().iter();
        let ops = merge.map(|at| op(at[0].as_u64().unwrap() as usize, &at[1], value));
        let spec = described(v, ops.collect());
        let weights = weights(v, &spec);
        let network = network(v, &spec, &weights, &Device::flex());
        let mut ctx = Ctx::tracing(Trace::sites([Site::AttnIn, Site::FinalNorm]));
        let image = tensor(v, "in.image", &Device::flex());
        let logits = network.forward(image, &mut ctx).unwrap().class;
        for (layer, counts) in spec.token_counts().iter().enumerate() {
            let passed = ctx.trace.tokens(Site::AttnIn, Some(layer)).unwrap().dims()[1];
            assert_eq!(counts.attention.count(), passed);
            let key = format!("out.{kind}.block{layer}.tokens");
            report.compare_f64(v, &key, &[passed as f64], EXACT);
        }
        let features = ctx.trace.tokens(Site::FinalNorm, None).unwrap();
        report.compare(v, &format!("out.{kind}.features"), &values(&features));
        let key = format!("out.{kind}.logits");
        report.compare(v, &key, &values(&logits));
        engines(v, report, &key, &spec, &weights);
    }
}
