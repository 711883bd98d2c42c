//! The network: special cases agree with the general path, ops and traces carry gradients, shared cores are one.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use vitesse_model::network::{Ctx, Fusion, Network, Trace, Value, param_id};
use vitesse_model::ops::{OpKind, OpSpec, ScaleShift};
use vitesse_model::spec::{LayerSpec, NetworkSpec, Pool, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_rng::Key;

fn spec(edit: impl FnOnce(&mut VitSpec)) -> ModelSpec {
    let mut vit = VitSpec::plain(16, 4, 12, 2, 3, vec![PrefixToken::Class]);
    edit(&mut vit);
    ModelSpec {
        architecture: "test".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

fn with_ops(ops: Vec<OpSpec>) -> ModelSpec {
    ModelSpec { ops, ..spec(|_| {}) }
}

/// Every tensor at random, so that nothing hides behind a zero.
fn weights(spec: &ModelSpec, seed: u64) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(seed).with(&tensor.name).rng();
        let values = (0..tensor.numel())
            .map(|_| rng.uniform_in(-0.5, 0.8) as f32)
            .collect();
        out.insert_f32(&tensor.name, &tensor.shape, values).unwrap();
    }
    out
}

fn images(spec: &ModelSpec, device: &Device) -> Tensor<4> {
    let [c, h, w] = spec.input_size();
    let mut rng = Key::new(1).rng();
    let values: Vec<f32> = (0..2 * c * h * w).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(values, [2, c, h, w]), device)
}

fn run(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    let device = Device::flex();
    let network = Network::new(spec, tensors, "test", &device).unwrap();
    let logits = network.forward(images(spec, &device), &mut Ctx::eval()).unwrap();
    logits.joint(Fusion::LogitMean).try_to_vec_as().unwrap()
}

fn assert_close(a: &[f32], b: &[f32]) {
    let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(
        a.len() == b.len() && largest < 2e-5,
        "largest difference {largest}"
    );
}

/// The gradient of one parameter.
struct Find<'a> {
    name: &'a str,
    gradients: &'a burn::tensor::Gradients,
    found: Option<Vec<f32>>,
}

impl ModuleVisitor for Find<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.id == param_id(self.name) {
            self.found = param
                .val()
                .grad(self.gradients)
                .map(|g| g.try_to_vec_as().unwrap());
        }
    }
}

fn gradient(network: &Network, name: &str, gradients: &burn::tensor::Gradients) -> Option<Vec<f32>> {
    let mut find = Find {
        name,
        gradients,
        found: None,
    };
    network.visit(&mut find);
    find.found
}

#[test]
fn heads_of_different_widths_agree_with_zeroed_channels_of_equal_heads() {
    // Cutting value channel 1 of head 0 equals zeroing the column of proj that reads it.
    let whole = spec(|_| {});
    let mut tensors = weights(&whole, 3);
    let mut proj = tensors
        .get("blocks.0.attn.proj.weight")
        .unwrap()
        .to_f32()
        .into_owned();
    for row in proj.chunks_exact_mut(12) {
        row[1] = 0.0;
    }
    tensors
        .insert_f32("blocks.0.attn.proj.weight", &[12, 12], proj.clone())
        .unwrap();
    let cut = spec(|vit| vit.cores[0].attn.as_mut().unwrap().v_dims = vec![3, 4, 4]);
    let mut sliced = tensors.clone();
    let row = 2 * 12 + 1; // the value rows start after queries and keys
    for (name, width) in [("blocks.0.attn.qkv.weight", 12), ("blocks.0.attn.qkv.bias", 1)] {
        let mut values = tensors.get(name).unwrap().to_f32().into_owned();
        values.drain(row * width..(row + 1) * width);
        let shape: &[usize] = if width == 1 { &[35] } else { &[35, 12] };
        sliced.insert_f32(name, shape, values).unwrap();
    }
    let columns: Vec<f32> = proj
        .iter()
        .enumerate()
        .filter(|(i, _)| i % 12 != 1)
        .map(|(_, &value)| value)
        .collect();
    sliced
        .insert_f32("blocks.0.attn.proj.weight", &[12, 11], columns)
        .unwrap();
    assert_close(&run(&whole, &tensors), &run(&cut, &sliced));
}

#[test]
fn residual_channels_not_written_agree_with_zero_rows() {
    let whole = spec(|_| {});
    let mut tensors = weights(&whole, 4);
    let cut = spec(|vit| vit.cores[1].mlp.as_mut().unwrap().out_idx = Some(vec![0, 5, 11]));
    let mut sliced = tensors.clone();
    for (name, width) in [("blocks.1.mlp.fc2.weight", 48), ("blocks.1.mlp.fc2.bias", 1)] {
        let mut values = tensors.get(name).unwrap().to_f32().into_owned();
        let kept: Vec<f32> = [0, 5, 11]
            .iter()
            .flat_map(|&i| values[i * width..(i + 1) * width].to_vec())
            .collect();
        for i in (0..12).filter(|i| ![0, 5, 11].contains(i)) {
            values[i * width..(i + 1) * width].fill(0.0);
        }
        let (all, three): (&[usize], &[usize]) = if width == 1 {
            (&[12], &[3])
        } else {
            (&[12, 48], &[3, 48])
        };
        tensors.insert_f32(name, all, values).unwrap();
        sliced.insert_f32(name, three, kept).unwrap();
    }
    assert_close(&run(&whole, &tensors), &run(&cut, &sliced));
}

#[test]
fn absent_sub_layers_leave_the_residual_alone() {
    let whole = spec(|_| {});
    let mut tensors = weights(&whole, 5);
    for part in ["blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"] {
        let tensor = tensors.get(part).unwrap().clone();
        tensors
            .insert_f32(part, tensor.shape(), vec![0.0; tensor.numel()])
            .unwrap();
    }
    let cut = spec(|vit| vit.cores[0].attn = None);
    let mut fewer = tensors.clone();
    for name in tensors
        .names()
        .filter(|n| n.starts_with("blocks.0.attn") || n.starts_with("blocks.0.norm1"))
    {
        fewer.remove(name).unwrap();
    }
    assert_close(&run(&whole, &tensors), &run(&cut, &fewer));
}

#[test]
fn layers_that_share_a_core_sum_their_gradients() {
    let shared = spec(|vit| {
        vit.cores.truncate(1);
        vit.layers = vec![LayerSpec::of(0), LayerSpec::of(0)];
    });
    let tensors = weights(&shared, 6);
    assert!(tensors.contains("blocks.1.norm2.weight"));
    assert_eq!(
        tensors.names().filter(|name| name.contains("fc1.weight")).count(),
        1
    );
    // The same model with two cores of equal values.
    let plain = spec(|_| {});
    let mut copied = Tensors::new();
    for tensor in plain.tensors().unwrap() {
        let parts: Vec<&str> = tensor.name.split('.').collect();
        let source = match parts.as_slice() {
            ["blocks", _, "norm1" | "norm2", _] => tensor.name.clone(),
            ["blocks", _, rest @ ..] => format!("blocks.0.{}", rest.join(".")),
            _ => tensor.name.clone(),
        };
        copied.insert(&tensor.name, tensors.get(&source).unwrap().clone());
    }
    assert_close(&run(&shared, &tensors), &run(&plain, &copied));

    let device = Device::flex().autodiff();
    let gradient_of = |spec: &ModelSpec, tensors: &Tensors, names: &[&str]| -> Vec<f32> {
        let network = Network::new(spec, tensors, "test", &device).unwrap();
        let loss = network
            .forward(images(spec, &device), &mut Ctx::eval())
            .unwrap()
            .class
            .powf_scalar(2.0)
            .sum();
        let gradients = loss.backward();
        let parts: Vec<Vec<f32>> = names
            .iter()
            .map(|name| gradient(&network, name, &gradients).unwrap())
            .collect();
        (0..parts[0].len())
            .map(|i| parts.iter().map(|part| part[i]).sum())
            .collect()
    };
    let one = gradient_of(&shared, &tensors, &["blocks.0.mlp.fc1.weight"]);
    let sum = gradient_of(
        &plain,
        &copied,
        &["blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight"],
    );
    let scale = sum.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    assert_close(
        &one.iter().map(|x| x / scale).collect::<Vec<_>>(),
        &sum.iter().map(|x| x / scale).collect::<Vec<_>>(),
    );
}

#[test]
fn an_op_starts_as_the_identity_acts_at_its_site_and_gets_a_gradient() {
    let plain = spec(|_| {});
    let op = |site, layer| OpSpec {
        site,
        layer,
        kind: OpKind::ScaleShift(ScaleShift { shift: true }),
    };
    let ops = [
        op(Site::MlpHidden, Some(1)),
        op(Site::PatchOut, None),
        op(Site::AttnQkv, Some(0)),
    ];
    let adapted = with_ops(ops.to_vec());
    let base = weights(&plain, 7);
    let mut tensors = base.clone();
    for tensor in adapted
        .tensors()
        .unwrap()
        .iter()
        .filter(|tensor| tensor.name.starts_with("ops."))
    {
        tensors.insert(&tensor.name, tensor.init(0).unwrap());
    }
    assert_eq!(run(&plain, &base), run(&adapted, &tensors));

    // A scale of 2 on the hidden units equals doubling fc2's columns.
    let mut scaled = tensors.clone();
    scaled
        .insert_f32("ops.0.1.mlp.hidden.scale", &[48], vec![2.0; 48])
        .unwrap();
    let mut folded = base.clone();
    let fc2 = base
        .get("blocks.1.mlp.fc2.weight")
        .unwrap()
        .to_f32()
        .iter()
        .map(|x| 2.0 * x)
        .collect();
    folded
        .insert_f32("blocks.1.mlp.fc2.weight", &[12, 48], fc2)
        .unwrap();
    assert_close(&run(&adapted, &scaled), &run(&plain, &folded));

    let device = Device::flex().autodiff();
    let network = Network::new(&adapted, &scaled, "test", &device).unwrap();
    let loss = network
        .forward(images(&adapted, &device), &mut Ctx::eval())
        .unwrap()
        .class
        .sum();
    let gradients = loss.backward();
    for name in [
        "ops.0.1.mlp.hidden.scale",
        "ops.1.patch.out.shift",
        "ops.2.0.attn.qkv.scale",
    ] {
        assert!(
            gradient(&network, name, &gradients)
                .unwrap()
                .iter()
                .any(|g| *g != 0.0),
            "{name}"
        );
    }
    let misplaced = with_ops(vec![op(Site::AttnProbs, Some(0))]);
    assert!(
        misplaced
            .tensors()
            .unwrap_err()
            .to_string()
            .contains("attn.probs")
    );
    let nowhere = with_ops(vec![op(Site::AttnIn, Some(9))]);
    assert!(nowhere.tensors().unwrap_err().to_string().contains("layer 9"));
}

#[test]
fn every_site_can_be_traced_with_its_gradient() {
    let spec = spec(|_| {});
    let device = Device::flex().autodiff();
    let network = Network::new(&spec, &weights(&spec, 8), "test", &device).unwrap();
    let mut ctx = Ctx::tracing(Trace::sites(Site::ALL).with_gradients());
    let logits = network.forward(images(&spec, &device), &mut ctx).unwrap();
    let gradients = logits.class.clone().powf_scalar(2.0).sum().backward();
    for site in Site::ALL {
        let layers = if site.in_block() {
            vec![Some(0), Some(1)]
        } else {
            vec![None]
        };
        for layer in layers {
            let width = spec.width_at(site, layer).unwrap();
            let tokens = if site == Site::PatchOut { 16 } else { 17 };
            let (value, gradient) = (
                ctx.trace.value(site, layer),
                ctx.trace.gradient(site, layer, &gradients),
            );
            match (value.unwrap(), gradient.unwrap()) {
                (Value::Tokens(x), Value::Tokens(g)) => {
                    assert_eq!(
                        (x.dims(), g.dims()),
                        ([2, tokens, width], [2, tokens, width]),
                        "{site}"
                    );
                    assert!(g.abs().max().into_scalar::<f32>() > 0.0, "{site}");
                }
                (Value::Map(x), Value::Map(g)) => {
                    assert_eq!(
                        (x.dims(), g.dims()),
                        ([2, width, 17, 17], [2, width, 17, 17]),
                        "{site}"
                    );
                    assert!(g.abs().max().into_scalar::<f32>() > 0.0, "{site}");
                }
                _ => panic!("{site}: value and gradient differ in kind"),
            }
        }
    }
    // The gradient at the last block's output, by finite difference of the loss through the heads.
    assert!(ctx.attention.is_some());
}

#[test]
fn pooling_registers_and_featureless_heads() {
    let device = Device::flex();
    for (pool, norm) in [(Pool::Avg, "norm.weight"), (Pool::AvgThenNorm, "fc_norm.weight")] {
        let spec = spec(|vit| {
            vit.pool = pool;
            vit.prefix = vec![];
        });
        let tensors = weights(&spec, 9);
        assert!(tensors.contains(norm) && !tensors.contains("cls_token"));
        assert_eq!(run(&spec, &tensors).len(), 10);
    }
    let mut features = spec(|vit| {
        vit.prefix = vec![PrefixToken::Class, PrefixToken::Register, PrefixToken::Register];
        vit.embed_prefix = false;
    });
    features.num_classes = 0;
    let tensors = weights(&features, 10);
    assert_eq!(tensors.get("reg_token").unwrap().shape(), [1, 2, 12]);
    assert_eq!(run(&features, &tensors).len(), 2 * 12);
    let network = Network::new(&features, &tensors, "test", &device).unwrap();
    let back = network.tensors().unwrap();
    assert!(
        tensors
            .iter()
            .all(|(name, tensor)| back.get(name).unwrap().bytes() == tensor.bytes())
    );
    let wrong = Tensor::zeros([1, 3, 20, 16], &device);
    assert!(
        network
            .forward(wrong, &mut Ctx::eval())
            .unwrap_err()
            .to_string()
            .contains("3x20x16")
    );
}
