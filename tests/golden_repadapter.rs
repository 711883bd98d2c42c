//! RepAdapter against the original implementation: the algebra of one adapter, whole ViTs before and after folding,
//! gradients. Other families are listed as skipped. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod support;

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, module};
use support::adapting::{
    checkpoint, compare_gradients, gradients, logits, merged, tensor, traced, values, vit,
};
use support::{Report, Vectors, agrees, notices_each, refuses_other_folders};
use vitesse::adapt::merge::affine::Affine;
use vitesse::adapt::merge::convolution::depthwise_after;
use vitesse::adapt::merge::matrix::Matrix;
use vitesse::adapt::peft::official;
use vitesse::model::network::{Ctx, param_id};
use vitesse::model::ops::{Activation, Bottleneck, Op, OpKind, OpSpec};
use vitesse::model::spec::{NetworkSpec, PrefixToken, SwinSpec, VitSpec};
use vitesse::model::{Checkpoint, ModelSpec, Site, Tensors, swin_names};

#[test]
fn golden_repadapter() {
    agrees("repadapter", check);
}

#[test]
fn golden_repadapter_notices_a_wrong_value() {
    let places = [
        ("vit_repblock_g2", "merged.blocks.1.attn.qkv.bias"),
        ("unit_g2", "grad.conv_A.weight"),
        ("depthwise_fold_k7_g2", "out.y_folded"),
        ("swin_repblock_g2", "merged.layers.1.blocks.0.attn.qkv.weight"),
    ];
    notices_each("repadapter", &places, check);
}

#[test]
fn golden_repadapter_refuses_empty_folders_and_unknown_files() {
    refuses_other_folders("repadapter", check);
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    match v.config["model"].as_str() {
        Some("vit") => whole_model(v, &checkpoint(vit(v), v.under("w.")), str::to_owned, report),
        Some("swin") => of_swin(v, report),
        Some("adapter+linear") => one_adapter(v, report),
        Some("adapter2d+depthwise") => depthwise(v, report),
        Some(family @ ("convnext" | "vit_video")) => {
            report.skip_file(v, &format!("`{family}` is no network of this project yet"));
        }
        other => report
            .failures
            .push(format!("{}: config.model {other:?} is unknown", v.file)),
    }
}

/// The tensors of an adapter: their names in the files and in an op.
const TENSORS: [(&str, &str); 4] = [
    ("conv_A.weight", "down.weight"),
    ("conv_A.bias", "down.bias"),
    ("conv_B.weight", "up.weight"),
    ("conv_B.bias", "up.bias"),
];

fn matrix(v: &Vectors, key: &str) -> Matrix {
    let (shape, values) = (v.shape(key), v.f32(key));
    Matrix::from_f32(shape[0], values.len() / shape[0], &values)
}

fn doubles(v: &Vectors, key: &str) -> Vec<f64> {
    v.f32(key).into_iter().map(f64::from).collect()
}

/// The adapter that a file's config describes.
fn bottleneck(v: &Vectors) -> Bottleneck {
    Bottleneck {
        hidden: v.usize("hidden_dim"),
        groups: v.usize("groups"),
        activation: Activation::None,
        scale: v.number("scale"),
        learned_scale: false,
        norm: None,
        from: None,
        dropout: 0.1,
    }
}

/// The dense up projection of the rows under `key`.
fn dense_up(v: &Vectors, key: &str, width: usize) -> Matrix {
    Matrix {
        rows: width,
        columns: v.usize("hidden_dim"),
        values: bottleneck(v).dense_up(&doubles(v, key), width),
    }
}

/// The affine map of the adapter that stands at the top of a file, and its dense up projection.
fn map(v: &Vectors) -> (Affine, Matrix) {
    let width = v.shape("a.conv_B.weight")[0];
    let up = dense_up(v, "a.conv_B.weight", width);
    let affine = Affine::bottleneck(
        matrix(v, "a.conv_A.weight"),
        &doubles(v, "a.conv_A.bias"),
        up.clone(),
        &doubles(v, "a.conv_B.bias"),
        v.number("scale"),
    );
    (affine, up)
}

fn one_adapter(v: &Vectors, report: &mut Report) {
    let (affine, up) = map(v);
    report.compare_f64(v, "merged.conv_B.dense", &up.values, 1e-4);
    report.compare_f64(v, "merged.adapter.weight", &affine.dense().values, 1e-4);
    report.compare_f64(v, "merged.adapter.bias", &affine.shift, 1e-4);
    let (mut weight, mut bias) = (matrix(v, "w.weight"), doubles(v, "w.bias"));
    affine.before(&mut weight, &mut bias);
    report.compare_f64(v, "merged.weight", &weight.values, 1e-4);
    report.compare_f64(v, "merged.bias", &bias, 1e-4);
    let merged: Vec<f64> = doubles(v, "in.x")
        .chunks_exact(weight.columns)
        .flat_map(|x| {
            let y = weight.apply(x);
            y.iter().zip(&bias).map(|(y, b)| y + b).collect::<Vec<f64>>()
        })
        .collect();
    report.compare_f64(v, "out.y_merged", &merged, 1e-4);

    // The op by itself, before the projection, with gradients.
    let width = v.usize("in_features");
    let vit = VitSpec::plain(4, 4, width, 1, 1, vec![PrefixToken::Class]);
    let op = OpSpec {
        site: Site::AttnIn,
        layer: Some(0),
        kind: OpKind::Bottleneck(bottleneck(v)),
    };
    let mut tensors = Tensors::new();
    for (from, to) in TENSORS {
        let shape: Vec<usize> = v.shape(&format!("a.{from}")).into_iter().take(2).collect();
        let values = v.f32(&format!("a.{from}"));
        tensors
            .insert_f32(format!("{}.{to}", op.prefix(0)), &shape, values)
            .unwrap();
    }
    let device = Device::flex().autodiff();
    let network = Op::alone(&op, 0, &vit, &tensors, &device).unwrap_or_else(|e| panic!("{e}"));
    let x = tensor::<3>(v, "in.x", &device).require_grad();
    let adapted = network.forward(x.clone(), &mut Ctx::eval());
    report.compare(v, "out.adapter", &values(&adapted));
    let y = module::linear(
        adapted,
        tensor::<2>(v, "w.weight", &device).transpose(),
        Some(tensor::<1>(v, "w.bias", &device)),
    );
    report.compare(v, "out.y", &values(&y));
    let gradients = (y.powi_scalar(2).mean() * 0.5).backward();
    report.compare(v, "grad.x", &values(&x.grad(&gradients).unwrap()));
    for (from, to) in TENSORS {
        let name = format!("{}.{to}", op.prefix(0));
        report.compare(v, &format!("grad.{from}"), &gradient(&network, &name, &gradients));
    }
}

/// The gradient of one parameter of an op.
fn gradient(network: &Op, name: &str, gradients: &Gradients) -> Vec<f32> {
    struct Find<'a>(&'a str, &'a Gradients, Vec<f32>);
    impl ModuleVisitor for Find<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.id == param_id(self.0) {
                self.2 = values(&param.val().grad(self.1).unwrap());
            }
        }
    }
    let mut find = Find(name, gradients, Vec::new());
    network.visit(&mut find);
    find.2
}

fn depthwise(v: &Vectors, report: &mut Report) {
    let (affine, _) = map(v);
    report.compare_f64(v, "merged.adapter.weight", &affine.dense().values, 1e-4);
    report.compare_f64(v, "merged.adapter.bias", &affine.shift, 1e-4);
    let (kernel, bias) = (matrix(v, "w.conv_dw.weight"), doubles(v, "w.conv_dw.bias"));
    let (dense, folded, padding) = depthwise_after(&affine, &kernel, &bias);
    report.compare_f64(v, "merged.conv.weight", &dense, 1e-4);
    report.compare_f64(v, "merged.conv.bias", &folded, 1e-4);
    let padding = padding.expect("the adapter can be inverted");
    report.compare_f64(v, "merged.pad_value", &padding, 1e-4);

    let shape = v.shape("in.x");
    let [_, channels, height, width] = shape[..] else {
        panic!("{}: in.x is no batch of images", v.file)
    };
    let size = [channels, height, width];
    let (mut adapted_y, mut exact, mut zero) = (Vec::new(), Vec::new(), Vec::new());
    for image in doubles(v, "in.x").chunks_exact(channels * height * width) {
        let mut adapted = image.to_vec();
        for pixel in 0..height * width {
            let x: Vec<f64> = (0..channels).map(|c| image[c * height * width + pixel]).collect();
            for (c, y) in affine.apply(&x).into_iter().enumerate() {
                adapted[c * height * width + pixel] = y;
            }
        }
        let (side, pad) = (v.usize("kernel"), v.usize("padding"));
        let nothing = vec![0.0; channels];
        // A depth-wise kernel as a dense one with zeros.
        let mut own = vec![0.0; channels * channels * side * side];
        for c in 0..channels {
            own[(c * channels + c) * side * side..][..side * side].copy_from_slice(kernel.row(c));
        }
        adapted_y.extend(convolve(&adapted, size, &own, &bias, side, pad, &nothing));
        exact.extend(convolve(image, size, &dense, &folded, side, pad, &padding));
        zero.extend(convolve(image, size, &dense, &folded, side, pad, &nothing));
    }
    report.compare_f64(v, "out.y", &adapted_y, 1e-4);
    report.compare_f64(v, "out.y_folded", &exact, 1e-4);
    report.compare_f64(v, "out.y_folded_zero_padding", &zero, 1e-4);
}

/// A dense convolution with stride 1 whose input is padded with the vector `outside`.
fn convolve(
    image: &[f64],
    [channels, height, width]: [usize; 3],
    kernel: &[f64],
    bias: &[f64],
    side: usize,
    pad: usize,
    outside: &[f64],
) -> Vec<f64> {
    let (out_height, out_width) = (height + 2 * pad + 1 - side, width + 2 * pad + 1 - side);
    let mut out = Vec::new();
    for (o, &bias) in bias.iter().enumerate() {
        for top in 0..out_height {
            for left in 0..out_width {
                let mut sum = bias;
                for c in 0..channels {
                    for dy in 0..side {
                        for dx in 0..side {
                            let (y, x) = ((top + dy).wrapping_sub(pad), (left + dx).wrapping_sub(pad));
                            let value = if y < height && x < width {
                                image[(c * height + y) * width + x]
                            } else {
                                outside[c]
                            };
                            sum += value * kernel[((o * channels + c) * side + dy) * side + dx];
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

/// A Swin under the names of an older timm; in memory they are today's.
fn of_swin(v: &Vectors, report: &mut Report) {
    let list = |key: &str| -> Vec<usize> {
        let list = v.config[key].as_array().unwrap().iter();
        list.map(|one| one.as_u64().unwrap() as usize).collect()
    };
    let sizes = [v.usize("img_size"), v.usize("patch_size"), v.usize("window_size")];
    let [image, patch, window] = sizes;
    let (depths, heads) = (list("depths"), list("num_heads"));
    let mut swin = SwinSpec::plain(image, patch, window, v.usize("embed_dim"), &depths, &heads);
    swin.norm_eps = v.number("norm_eps");
    for core in 0..swin.cores.len() {
        let dim = swin.stage_dim(swin.core_stage(core).unwrap()) as f64;
        swin.cores[core].mlp.as_mut().unwrap().hidden = (dim * v.number("mlp_ratio")) as usize;
    }
    let mut spec = ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network: NetworkSpec::Swin(swin),
        ops: Vec::new(),
    };
    spec.set_qkv_bias(v.config["qkv_bias"].as_bool().unwrap());
    let weights = v.under("w.");
    let old = swin_names::is_old(&weights);
    let named = move |name: &str| swin_names::timm_name(name, old).unwrap();
    let weights = weights.iter().map(|(name, tensor)| (named(name), tensor.clone()));
    whole_model(v, &checkpoint(spec, weights.collect()), named, report);
}

/// `named` gives names in the file those that they have in memory.
fn whole_model(v: &Vectors, base: &Checkpoint, named: impl Fn(&str) -> String, report: &mut Report) {
    let path = Path::new(&v.file);
    let adapter =
        official::parse(v.under("a."), Some(v.number("scale")), path).unwrap_or_else(|e| panic!("{e}"));
    let attached = adapter.attach(base).unwrap_or_else(|e| panic!("{e}"));
    let ops = attached.spec.ops.clone();
    for op in &ops {
        assert!(matches!(&op.kind, OpKind::Bottleneck(op) if op.groups == v.usize("groups")));
    }
    logits(v, report, "out.logits_base", &base.spec, &base.tensors);
    logits(v, report, "out.logits", &attached.spec, &attached.tensors);

    let sites = vec![Site::BlockIn, Site::AttnIn, Site::BlockOut];
    let (_, before) = traced(v, &base.spec, &base.tensors, sites.clone());
    let (_, after) = traced(v, &attached.spec, &attached.tensors, sites);
    for (key, trace, site) in [
        ("out.tokens_block0_in", &after, Site::BlockIn),
        // What enters the first adapter is what leaves that site without it.
        ("out.adapter_attn0_in", &before, Site::AttnIn),
        ("out.adapter_attn0_out", &after, Site::AttnIn),
        ("out.block0_out", &after, Site::BlockOut),
    ] {
        if v.has(key) {
            report.compare(v, key, &values(&trace.tokens(site, Some(0)).unwrap()));
        }
    }

    let found = gradients(v, report, &attached.spec, &attached.tensors);
    compare_gradients(v, report, &found, |key| {
        let op_tensor = TENSORS.into_iter().find_map(|(from, to)| {
            let module = key.strip_suffix(from)?.strip_suffix('.')?;
            let (layer, name) = module.rsplit_once('.')?;
            let site = if name == "adapter_attn" {
                Site::AttnIn
            } else {
                Site::MlpIn
            };
            let qkv = format!("{layer}.attn.qkv");
            let mut projections = attached.spec.sites().projections();
            let layer = projections
                .find(|(_, _, projection)| projection.name == qkv)
                .map(|(_, layer, _)| layer);
            let index = ops.iter().position(|op| op.site == site && op.layer == layer)?;
            Some(format!("{}.{to}", ops[index].prefix(index)))
        });
        vec![op_tensor.unwrap_or_else(|| named(key))]
    });

    let merged = merged(v, report, &attached);
    for key in v.under("merged.").names() {
        if let Some(module) = key.strip_suffix(".conv_B.dense") {
            let stored = format!("a.{module}.conv_B.weight");
            let dense = dense_up(v, &stored, v.usize("embed_dim"));
            report.compare_f64(v, &format!("merged.{key}"), &dense.values, 1e-4);
        }
    }
    logits(v, report, "out.logits_merged", &merged.spec, &merged.tensors);
}
