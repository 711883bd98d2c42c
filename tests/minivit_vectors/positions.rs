//! Relative positions: buckets, and one op by itself.

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use vitesse::model::ModelSpec;
use vitesse::model::network::{AttentionState, Ctx};
use vitesse::model::ops::relative_positions::{Mode, buckets};
use vitesse::model::ops::{Op, OpKind, QkvPart, RelativePositions};
use vitesse::model::spec::{AttentionSpec, NetworkSpec, Pool, PrefixToken, VitSpec};

use super::{at, cases, method, mode, number, part};
use crate::support::adapting::{by_module, tensor, values};
use crate::support::{Report, Vectors};

pub(crate) fn piecewise_and_buckets(v: &Vectors, report: &mut Report) {
    let offsets = v.f32("in.piecewise.offsets");
    for name in v.under("piecewise.ratio").names() {
        let ratio: f64 = name.parse().unwrap();
        let found = offsets.iter().map(|&x| buckets::piecewise(x, ratio) as f64);
        report.compare_f64(
            v,
            &format!("piecewise.ratio{name}"),
            &found.collect::<Vec<_>>(),
            0.0,
        );
    }
    for case in cases(v) {
        let positions = RelativePositions {
            of: QkvPart::K,
            method: method(&case["method"]),
            mode: Mode::Contextual,
            ratio: case["ratio"].as_f64().unwrap(),
            shared_heads: true,
            special: number(case, "skip") > 0,
        };
        assert_eq!(positions.count(), number(case, "num_buckets"));
        let tables = positions.tables([number(case, "height"), number(case, "width")]);
        let table = usize::from(case["method"] == "cross_cols");
        let pairs = tables[table].1.pairs(number(case, "skip"), 0);
        let found: Vec<f64> = pairs.into_iter().map(|bucket| bucket.unwrap() as f64).collect();
        let key = format!("{}out.bucket_ids", case["prefix"].as_str().unwrap());
        report.compare_f64(v, &key, &found, 0.0);
    }
}

/// One op by itself: what it adds where queries, keys or maps are given and nothing is there before.
pub(crate) fn relative_positions(v: &Vectors, case: &Value, report: &mut Report) {
    let key = |key: &str| format!("{}{key}", case["prefix"].as_str().unwrap());
    let positions = RelativePositions {
        of: part(case["on"].as_str().unwrap().chars().next().unwrap()),
        method: method(&case["method"]),
        mode: mode(&case["mode"]),
        ratio: case["ratio"].as_f64().unwrap(),
        shared_heads: case["shared_head"].as_bool().unwrap(),
        special: number(case, "skip") > 0,
    };
    let (heads, width, skip) = (
        number(case, "heads"),
        number(case, "head_dim"),
        number(case, "skip"),
    );
    let (grid, batch) = (
        [number(case, "height"), number(case, "width")],
        number(case, "batch"),
    );
    let (dim, tokens) = (heads * width, skip + grid[0] * grid[1]);
    let prefix = vec![PrefixToken::Class; skip];
    let mut vit = VitSpec {
        img_size: grid,
        ..VitSpec::plain(1, 1, dim, 1, heads, prefix)
    };
    vit.pool = if skip > 0 { Pool::Token } else { Pool::Avg };
    let mut spec = ModelSpec {
        architecture: v.file.clone(),
        num_classes: 0,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    };
    let (of, site) = (positions.of, positions.site());
    spec.ops.push(at(site, 0, OpKind::RelativePositions(positions)));
    let ops_prefix = spec.ops[0].prefix(0);
    let file = v.under(&key("w."));
    let named = file
        .iter()
        .map(|(name, tensor)| (format!("{ops_prefix}.{name}"), tensor.clone()));
    let device = Device::flex().autodiff();
    let op = Op::alone(&spec.ops[0], 0, &spec, &named.collect(), &device).unwrap_or_else(|e| panic!("{e}"));

    let x = tensor::<4>(v, &key("in.x"), &device).require_grad();
    let attention = AttentionSpec::uniform(dim, heads);
    let mut ctx = Ctx::eval();
    (ctx.stream.grid, ctx.stream.prefix) = (grid, skip);
    let zeros = |width| Tensor::<3>::zeros([batch, tokens, width], &device);
    let maps = || Tensor::<4>::zeros([batch, heads, tokens, tokens], &device);
    let y = if of == QkvPart::V {
        let mut state = AttentionState::new(zeros(3 * dim), &attention);
        state.probs = Some(x.clone());
        ctx.attention = Some(state);
        let y = op.forward(zeros(dim), &mut ctx);
        y.reshape([batch, tokens, heads, width]).swap_dims(1, 2)
    } else {
        // What is looked up is scaled as queries are.
        let rows = x.clone().swap_dims(1, 2).reshape([batch, tokens, dim]) / attention.scale;
        let mut parts = vec![zeros(dim); 3];
        parts[usize::from(of == QkvPart::Q)] = rows;
        ctx.attention = Some(AttentionState::new(Tensor::cat(parts, 2), &attention));
        let y = op.forward_map(maps(), &mut ctx);
        if of == QkvPart::Q { y.swap_dims(2, 3) } else { y }
    };
    report.compare(v, &key("out.y"), &values(&y));
    let loss = (y * tensor::<4>(v, &key("in.upstream"), &device)).sum();
    let found = loss.backward();
    if v.has(&key("grad.x")) {
        // A bias does not read it; the reference writes zeros.
        let zeros = || vec![0.0; v.f32(&key("grad.x")).len()];
        let gradient = x.grad(&found).map_or_else(zeros, |gradient| values(&gradient));
        report.compare(v, &key("grad.x"), &gradient);
    }
    let by_name = by_module(&op, &spec.ops[0].tensors(0, &spec), &found);
    for name in file.names() {
        report.compare(
            v,
            &key(&format!("grad.{name}")),
            &by_name[&format!("{ops_prefix}.{name}")],
        );
    }
}
