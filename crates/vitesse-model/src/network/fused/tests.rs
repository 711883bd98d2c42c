//! Every segment against the composed form: values, and the gradients of every subset of its inputs.

mod mixed;
mod relations;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use vitesse_kernels::Gelu;
use vitesse_rng::{Key, Rng};

use super::*;
use crate::network::layers::LinearValues;
use crate::spec::AttentionSpec;

const FUSED: Compute = Compute {
    precision: Precision::F32,
    grad_checkpointing: false,
    fused: true,
};
const COMPOSED: Compute = Compute {
    fused: false,
    ..FUSED
};

fn normals(rng: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.normal() as f32).collect()
}

fn between(rng: &mut Rng, low: usize, high: usize) -> usize {
    low + rng.below(high - low + 1)
}

/// A leaf on the autodiff device, which asks for its gradient if `tracked`.
fn leaf<const D: usize>(values: &[f32], shape: [usize; D], tracked: bool) -> Tensor<D> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::from_data(data, &Device::flex().autodiff()).set_require_grad(tracked)
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.try_to_vec_as().unwrap()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 1e-4 * scale,
            "{what}[{i}]: {a}, composed {b}, scale {scale}"
        );
    }
}

/// What a segment gives and what comes back: the output, and the gradients of its inputs.
type Outcome = (Vec<f32>, Vec<Option<Vec<f32>>>);

/// The gradients of a weighted sum of `y`, if anything asks for one.
fn backward<const D: usize>(y: &Tensor<D>, weights: &[f32]) -> Option<Gradients> {
    let weights = leaf(weights, y.dims(), false);
    y.is_tracked().then(|| (y.clone() * weights).sum().backward())
}

fn gradient<const D: usize>(x: Option<&Tensor<D>>, gradients: Option<&Gradients>) -> Option<Vec<f32>> {
    x?.grad(gradients?).map(|gradient| values(&gradient))
}

#[track_caller]
fn assert_same(fused: &Outcome, composed: &Outcome, what: &str) {
    assert_near(&fused.0, &composed.0, what);
    for (i, (a, b)) in fused.1.iter().zip(&composed.1).enumerate() {
        let what = format!("{what}, gradient {i}");
        match (a, b) {
            (Some(a), Some(b)) => assert_near(a, b, &what),
            (a, b) => assert_eq!(a.is_some(), b.is_some(), "{what}"),
        }
    }
}

/// One linear map with numbers to try it on.
struct Map {
    shape: [usize; 3],
    outputs: usize,
    /// 0 nothing, 1 norm, 2 GELU.
    before: usize,
    bias: bool,
    /// 0 none, 1 plain, 2 with drop path.
    residual: usize,
    seed: u64,
}

impl Map {
    fn run(&self, compute: Compute, tracked: usize) -> Outcome {
        let [batch, tokens, inputs] = self.shape;
        let mut rng = Key::new(self.seed).with("linear").rng();
        let rows = batch * tokens;
        let asks = |i: usize| tracked >> i & 1 == 1;
        let x = leaf(&normals(&mut rng, rows * inputs), self.shape, asks(0));
        let weight = leaf(
            &normals(&mut rng, self.outputs * inputs),
            [self.outputs, inputs],
            asks(1),
        );
        let bias = self
            .bias
            .then(|| leaf(&normals(&mut rng, self.outputs), [self.outputs], asks(2)));
        let (gain, shift) = (normals(&mut rng, inputs), normals(&mut rng, inputs));
        let norm =
            (self.before == 1).then(|| (leaf(&gain, [inputs], asks(3)), leaf(&shift, [inputs], asks(4))));
        let before = match (self.before, &norm) {
            (1, Some((gain, shift))) => Before::Norm {
                gain: gain.clone(),
                shift: shift.clone(),
                eps: 1e-3,
            },
            (2, _) => Before::Gelu(Gelu::Exact),
            (3, _) => Before::Gelu(Gelu::Quick),
            _ => Before::Nothing,
        };
        let shape = [batch, tokens, self.outputs];
        let added =
            (self.residual > 0).then(|| leaf(&normals(&mut rng, rows * self.outputs), shape, asks(5)));
        let residual = added.clone().map(|x| Residual {
            x,
            factors: (self.residual == 2)
                .then(|| (0..batch).map(|i| if i % 3 == 1 { 0.0 } else { 1.25 }).collect()),
        });
        let y = linear(x.clone(), before, weight.clone(), bias.clone(), residual, compute);
        let gradients = backward(&y, &normals(&mut rng, rows * self.outputs));
        let gradients = gradients.as_ref();
        let found = vec![
            gradient(Some(&x), gradients),
            gradient(Some(&weight), gradients),
            gradient(bias.as_ref(), gradients),
            gradient(norm.as_ref().map(|(gain, _)| gain), gradients),
            gradient(norm.as_ref().map(|(_, shift)| shift), gradients),
            gradient(added.as_ref(), gradients),
        ];
        (values(&y), found)
    }

    fn name(&self) -> String {
        format!(
            "{:?} to {}, before {}, bias {}, residual {}",
            self.shape, self.outputs, self.before, self.bias, self.residual
        )
    }
}

#[test]
fn linear_maps_with_every_subset_of_gradients() {
    let mut rng = Key::new(1).with("shapes").rng();
    for (i, (before, bias)) in (0..4)
        .flat_map(|before| [(before, false), (before, true)])
        .enumerate()
    {
        for residual in 0..3 {
            let map = Map {
                shape: [
                    between(&mut rng, 1, 4),
                    between(&mut rng, 1, 9),
                    between(&mut rng, 2, 50),
                ],
                outputs: between(&mut rng, 1, 40),
                before,
                bias,
                residual,
                seed: (3 * i + residual) as u64,
            };
            let present = 0b11 | usize::from(bias) << 2 | (usize::from(before == 1) * 0b11000);
            let present = present | usize::from(residual > 0) << 5;
            for tracked in (0..64usize).filter(|tracked| tracked & !present == 0) {
                let what = format!("{}, tracked {tracked:b}", map.name());
                assert_same(&map.run(FUSED, tracked), &map.run(COMPOSED, tracked), &what);
            }
        }
    }
}

#[test]
fn linear_maps_of_random_shapes() {
    let mut rng = Key::new(2).with("shapes").rng();
    for seed in 0..40 {
        let map = Map {
            shape: [
                between(&mut rng, 1, 5),
                between(&mut rng, 1, 70),
                between(&mut rng, 2, 150),
            ],
            outputs: between(&mut rng, 1, 150),
            before: rng.below(4),
            bias: rng.below(2) == 1,
            residual: rng.below(3),
            seed,
        };
        assert_same(&map.run(FUSED, 63), &map.run(COMPOSED, 63), &map.name());
    }
}

/// A perceptron of a random shape, in one segment or composed of its pieces.
fn perceptron_of(compute: Compute, seed: u64, dropped: bool, tracked: usize) -> Outcome {
    let mut rng = Key::new(seed).with("perceptron").rng();
    let shape = [
        between(&mut rng, 1, 4),
        between(&mut rng, 1, 40),
        between(&mut rng, 2, 70),
    ];
    let ([batch, _, dim], hidden) = (shape, between(&mut rng, 1, 100));
    let asks = |i: usize| tracked >> i & 1 == 1;
    let numbers = shape.iter().product();
    let x = leaf(&normals(&mut rng, numbers), shape, asks(0));
    let [gain, shift, bias2] = [1, 2, 6].map(|i| leaf(&normals(&mut rng, dim), [dim], asks(i)));
    let weight1 = leaf(&normals(&mut rng, hidden * dim), [hidden, dim], asks(3));
    let bias1 = leaf(&normals(&mut rng, hidden), [hidden], asks(4));
    let weight2 = leaf(&normals(&mut rng, hidden * dim), [dim, hidden], asks(5));
    let factors: Option<Vec<f32>> =
        dropped.then(|| (0..batch).map(|i| if i % 3 == 1 { 0.0 } else { 1.25 }).collect());
    let norm = Before::Norm {
        gain: gain.clone(),
        shift: shift.clone(),
        eps: 1e-3,
    };
    let map = |weight: &Tensor<2>, bias: &Tensor<1>| LinearValues {
        weight: weight.clone(),
        bias: Some(bias.clone()),
    };
    let maps = [map(&weight1, &bias1), map(&weight2, &bias2)];
    let form = if hidden % 2 == 0 { Gelu::Exact } else { Gelu::Quick };
    let whole = perceptron(&x, &norm, (maps.each_ref(), form), factors.clone(), compute);
    assert_eq!(whole.is_some(), compute.fused);
    let y = whole.unwrap_or_else(|| {
        let residual = Some(Residual {
            x: x.clone(),
            factors,
        });
        let [first, second] = maps;
        let hidden = first.segment(x.clone(), norm, None, compute);
        second.segment(hidden, Before::Gelu(form), residual, compute)
    });
    let gradients = backward(&y, &normals(&mut rng, numbers));
    let gradients = gradients.as_ref();
    let found = vec![
        gradient(Some(&x), gradients),
        gradient(Some(&gain), gradients),
        gradient(Some(&shift), gradients),
        gradient(Some(&weight1), gradients),
        gradient(Some(&bias1), gradients),
        gradient(Some(&weight2), gradients),
        gradient(Some(&bias2), gradients),
    ];
    (values(&y), found)
}

#[test]
fn perceptrons_with_every_subset_of_gradients() {
    for tracked in 0..128usize {
        let (seed, dropped) = (tracked as u64 / 16, tracked % 2 == 0);
        let [fused, composed] =
            [FUSED, COMPOSED].map(|compute| perceptron_of(compute, seed, dropped, tracked));
        assert_same(&fused, &composed, &format!("seed {seed}, tracked {tracked:b}"));
    }
}

#[test]
fn bf16_is_near_f32() {
    let map = Map {
        shape: [2, 33, 70],
        outputs: 45,
        before: 1,
        bias: true,
        residual: 2,
        seed: 7,
    };
    let bf16 = Compute {
        precision: Precision::Bf16,
        ..FUSED
    };
    let (low, high) = (map.run(bf16, 63), map.run(FUSED, 63));
    let near = |a: &[f32], b: &[f32]| {
        let scale = b.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 0.02 * scale)
    };
    assert!(near(&low.0, &high.0));
    for (a, b) in low.1.iter().zip(&high.1) {
        assert!(near(a.as_ref().unwrap(), b.as_ref().unwrap()));
    }
}

/// Attention as the network composes it, head by head.
fn composed_attention(qkv: &Tensor<3>, spec: &AttentionSpec) -> Tensor<3> {
    let all: usize = spec.qk_dims.iter().sum();
    let (mut q_start, mut v_start) = (0, 2 * all);
    let mut heads = Vec::new();
    for (&qk, &v) in spec.qk_dims.iter().zip(&spec.v_dims) {
        let cut = |start, width| qkv.clone().narrow(2, start, width);
        let logits = (cut(q_start, qk) * spec.scale as f32).matmul(cut(all + q_start, qk).swap_dims(1, 2));
        heads.push(burn::tensor::activation::softmax(logits, 2).matmul(cut(v_start, v)));
        (q_start, v_start) = (q_start + qk, v_start + v);
    }
    Tensor::cat(heads, 2)
}

fn attention_outcome(seed: u64, compute: Compute, tracked: bool) -> Outcome {
    let mut rng = Key::new(seed).with("attention").rng();
    let heads = between(&mut rng, 1, 4);
    let uniform = seed.is_multiple_of(2);
    let (qk, v) = (between(&mut rng, 1, 40), between(&mut rng, 1, 40));
    let mut width = |same| {
        if uniform { same } else { between(&mut rng, 1, 40) }
    };
    let spec = AttentionSpec {
        qk_dims: (0..heads).map(|_| width(qk)).collect(),
        v_dims: (0..heads).map(|_| width(v)).collect(),
        scale: 0.3,
        qkv_bias: true,
        out_idx: None,
    };
    let (batch, tokens) = (between(&mut rng, 1, 3), between(&mut rng, 1, 70));
    let (all_qk, all_v): (usize, usize) = (spec.qk_dims.iter().sum(), spec.v_dims.iter().sum());
    let shape = [batch, tokens, 2 * all_qk + all_v];
    let qkv = leaf(&normals(&mut rng, shape.iter().product()), shape, tracked);
    let out = attention(&qkv, &spec, &Between::default(), compute)
        .unwrap_or_else(|| composed_attention(&qkv, &spec));
    let gradients = backward(&out, &normals(&mut rng, batch * tokens * all_v));
    (values(&out), vec![gradient(Some(&qkv), gradients.as_ref())])
}

#[test]
fn attention_of_equal_and_of_different_heads() {
    for seed in 0..24 {
        let (fused, composed) = (
            attention_outcome(seed, FUSED, true),
            attention_outcome(seed, COMPOSED, true),
        );
        assert_same(&fused, &composed, &format!("attention {seed}"));
    }
    assert!(attention_outcome(0, FUSED, false).1[0].is_none());
}

fn rows_outcome(seed: u64, compute: Compute, tracked: usize) -> Outcome {
    let mut rng = Key::new(seed).with("rows").rng();
    let (rows, width) = (between(&mut rng, 1, 40), between(&mut rng, 2, 130));
    let asks = |i: usize| tracked >> i & 1 == 1;
    let x = leaf(&normals(&mut rng, rows * width), [rows, width], asks(0));
    let gain = leaf(&normals(&mut rng, width), [width], asks(1));
    let shift = leaf(&normals(&mut rng, width), [width], asks(2));
    let y = layer_norm(x.clone(), gain.clone(), shift.clone(), 1e-6, compute);
    let z = gelu(y, Gelu::Quick, compute);
    let gradients = backward(&z, &normals(&mut rng, rows * width));
    let gradients = gradients.as_ref();
    let found = vec![
        gradient(Some(&x), gradients),
        gradient(Some(&gain), gradients),
        gradient(Some(&shift), gradients),
    ];
    (values(&z), found)
}

#[test]
fn layer_norm_and_gelu_with_every_subset_of_gradients() {
    for seed in 0..6 {
        for tracked in 0..8 {
            let what = format!("norm and gelu {seed}, tracked {tracked:b}");
            assert_same(
                &rows_outcome(seed, FUSED, tracked),
                &rows_outcome(seed, COMPOSED, tracked),
                &what,
            );
        }
    }
}

#[test]
fn cross_entropy_with_targets_of_any_sum() {
    for (seed, (rows, classes)) in [(1, 1), (3, 2), (17, 10), (5, 1000)].into_iter().enumerate() {
        let outcome = |compute| -> Outcome {
            let mut rng = Key::new(seed as u64).with("entropy").rng();
            let mut random = |low: f64, high: f64| -> Vec<f32> {
                (0..rows * classes)
                    .map(|_| rng.uniform_in(low, high) as f32)
                    .collect()
            };
            let logits = leaf(&random(-9.0, 9.0), [rows, classes], true);
            let targets = leaf(&random(0.0, 1.0), [rows, classes], false);
            let loss = soft_cross_entropy(logits.clone(), targets, compute);
            let gradients = (loss.clone() * 0.7).backward();
            (values(&loss), vec![gradient(Some(&logits), Some(&gradients))])
        };
        assert_same(&outcome(FUSED), &outcome(COMPOSED), &format!("{rows}x{classes}"));
    }
}

fn conv_outcome(seed: u64, compute: Compute, tracked: usize) -> Outcome {
    let mut rng = Key::new(seed).with("conv").rng();
    let groups = [1, 2, 5][rng.below(3)];
    let (inner, outer) = [(1, 1), (3, 2), (8, 8), (5, 12)][rng.below(4)];
    let kernel = [[1, 1], [3, 3], [5, 2], [7, 7]][rng.below(4)];
    let convolution = Convolution {
        stride: [between(&mut rng, 1, 3), between(&mut rng, 1, 3)],
        padding: [between(&mut rng, 0, 3), between(&mut rng, 0, 3)],
        groups,
        layout: [Layout::BatchFirst, Layout::ChannelsFirst][rng.below(2)],
    };
    let [batch, channels_in, channels_out] = [between(&mut rng, 1, 3), groups * inner, groups * outer];
    let pair = match convolution.layout {
        Layout::BatchFirst => [batch, channels_in],
        Layout::ChannelsFirst => [channels_in, batch],
    };
    let shape = [
        pair[0],
        pair[1],
        between(&mut rng, 7, 15),
        between(&mut rng, 7, 15),
    ];
    let asks = |i: usize| tracked >> i & 1 == 1;
    let x = leaf(&normals(&mut rng, shape.iter().product()), shape, asks(0));
    let shape = [channels_out, inner, kernel[0], kernel[1]];
    let weight = leaf(&normals(&mut rng, shape.iter().product()), shape, asks(1));
    let bias = rng
        .bernoulli(0.5)
        .then(|| leaf(&normals(&mut rng, channels_out), [channels_out], asks(2)));
    let y = conv2d(x.clone(), weight.clone(), bias.clone(), convolution, compute);
    let gradients = backward(&y, &normals(&mut rng, y.dims().iter().product()));
    let gradients = gradients.as_ref();
    let found = vec![
        gradient(Some(&x), gradients),
        gradient(Some(&weight), gradients),
        gradient(bias.as_ref(), gradients),
    ];
    (values(&y), found)
}

#[test]
fn convolutions_with_every_subset_of_gradients() {
    for seed in 0..60 {
        let tracked = if seed < 50 { 7 } else { seed as usize % 8 };
        assert_same(
            &conv_outcome(seed, FUSED, tracked),
            &conv_outcome(seed, COMPOSED, tracked),
            &format!("convolution {seed}, tracked {tracked:b}"),
        );
    }
}

#[test]
fn inputs_that_are_views_and_devices_without_gradients() {
    let mut rng = Key::new(3).rng();
    let device = Device::flex();
    let plain =
        |values: Vec<f32>, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values, shape), &device);
    let x = plain(normals(&mut rng, 15 * 8), [15, 8])
        .transpose()
        .narrow(0, 2, 5);
    let weight = plain(normals(&mut rng, 7 * 15), [15, 7]).transpose();
    let run = |compute| {
        linear(
            x.clone(),
            Before::Gelu(Gelu::Exact),
            weight.clone(),
            None,
            None,
            compute,
        )
    };
    let (fused, composed) = (run(FUSED), run(COMPOSED));
    assert!(!fused.is_autodiff());
    assert_near(&values(&fused), &values(&composed), "views");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let large = Map {
        shape: [4, 67, 96],
        outputs: 131,
        before: 1,
        bias: true,
        residual: 2,
        seed: 5,
    };
    let run = |threads: usize, precision: Precision| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let compute = Compute { precision, ..FUSED };
        pool.install(|| {
            [
                large.run(compute, 63),
                attention_outcome(8, compute, true),
                attention_outcome(9, compute, true),
                rows_outcome(10, compute, 7),
                mixed::outcome(2, compute, 127),
            ]
        })
    };
    for precision in [Precision::F32, Precision::Bf16] {
        assert_eq!(run(1, precision), run(3, precision), "{precision:?}");
    }
}
