//! Whole networks, fused and composed: the same values and gradients, whatever stands at which station, and the same
//! bits for any number of threads and with blocks that are computed again.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use vitesse_model::network::{Compute, Ctx, DropPath, Network, Trace, param_id};
use vitesse_model::ops::{Activation, Bottleneck, LowRank, OpKind, OpSpec, Prompts, ScaleShift};
use vitesse_model::spec::{Groups, LayerSpec, NetworkSpec, NormsOf, Pool, PrefixToken, SwinSpec, VitSpec};
use vitesse_model::{ModelSpec, Site, Tensors, zoo};
use vitesse_rng::Key;

const BATCH: usize = 3;

fn spec(edit: impl FnOnce(&mut VitSpec)) -> ModelSpec {
    let mut vit = VitSpec::plain(
        16,
        4,
        12,
        2,
        3,
        vec![PrefixToken::Class, PrefixToken::Distillation],
    );
    edit(&mut vit);
    ModelSpec {
        architecture: "test".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

fn with_ops(spec: ModelSpec, ops: Vec<OpSpec>) -> ModelSpec {
    ModelSpec { ops, ..spec }
}

/// Every tensor at random, so that nothing hides behind a zero.
fn weights(spec: &ModelSpec) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(5).with(&tensor.name).rng();
        let values = (0..tensor.numel())
            .map(|_| rng.uniform_in(-0.4, 0.5) as f32)
            .collect();
        out.insert_f32(&tensor.name, &tensor.shape, values).unwrap();
    }
    out
}

fn composed() -> Compute {
    Compute {
        fused: false,
        ..Compute::default()
    }
}

fn recomputed() -> Compute {
    Compute {
        grad_checkpointing: true,
        ..Compute::default()
    }
}

/// Logits, and gradients by tensor name.
type Outcome = (Vec<f32>, BTreeMap<String, Vec<f32>>);

/// A training step's forward and backward pass on random images, of the tensors that `trained` names.
fn run(spec: &ModelSpec, compute: Compute, trace: Trace, trained: &dyn Fn(&str) -> bool) -> Outcome {
    let device = Device::flex().autodiff();
    let network = Network::new(spec, &weights(spec), "test", &device).unwrap();
    let names: BTreeMap<ParamId, String> = spec
        .tensors()
        .unwrap()
        .into_iter()
        .map(|tensor| (param_id(&tensor.name), tensor.name))
        .collect();
    let network = network.map(&mut Freeze {
        names: &names,
        trained,
    });
    let [c, h, w] = spec.input_size();
    let mut rng = Key::new(1).rng();
    let pixels: Vec<f32> = (0..BATCH * c * h * w).map(|_| rng.normal() as f32).collect();
    let images = Tensor::from_data(TensorData::new(pixels, [BATCH, c, h, w]), &device);
    let mut ctx = Ctx::train(DropPath {
        rate: 0.5,
        key: Key::new(2),
        first_sample: 0,
    });
    (ctx.compute, ctx.trace) = (compute, trace);
    let logits = network.forward(images, &mut ctx).unwrap();
    let mut loss = logits.class.clone().powf_scalar(2.0).sum();
    if let Some(distillation) = logits.distillation {
        loss = loss + distillation.powf_scalar(3.0).sum();
    }
    let gradients = loss.backward();
    let mut collect = Collect {
        names: &names,
        gradients: &gradients,
        found: BTreeMap::new(),
    };
    network.visit(&mut collect);
    (logits.class.try_to_vec_as().unwrap(), collect.found)
}

struct Freeze<'a> {
    names: &'a BTreeMap<ParamId, String>,
    trained: &'a dyn Fn(&str) -> bool,
}

impl burn::module::ModuleMapper for Freeze<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trained = (self.trained)(&self.names[&param.id]);
        param.set_require_grad(trained)
    }
}

struct Collect<'a> {
    names: &'a BTreeMap<ParamId, String>,
    gradients: &'a Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            let name = self.names[&param.id].clone();
            self.found.insert(name, gradient.try_to_vec_as().unwrap());
        }
    }
}

#[track_caller]
fn assert_near(a: &Outcome, b: &Outcome, what: &str) {
    let near = |a: &[f32], b: &[f32], name: &str| {
        let scale = b.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            a.len() == b.len() && largest <= 1e-4 * scale,
            "{what}, {name}: {largest} of {scale}"
        );
    };
    near(&a.0, &b.0, "logits");
    assert!(a.1.keys().eq(b.1.keys()), "{what}");
    a.1.iter()
        .for_each(|(name, gradient)| near(gradient, &b.1[name], name));
}

/// Layers by pairs with the same matrices, and MiniViT's transformations in each.
fn multiplexed(spec: &ModelSpec) -> ModelSpec {
    let shared = spec.share(&Groups::Of(2), NormsOf::Layer).unwrap();
    let ops = zoo::transformations(&shared);
    with_ops(shared, ops)
}

/// Networks of every form.
fn forms() -> Vec<(&'static str, ModelSpec)> {
    vec![
        ("plain", spec(|_| {})),
        (
            "heads of different widths",
            spec(|vit| {
                let attn = vit.cores[0].attn.as_mut().unwrap();
                (attn.qk_dims, attn.v_dims) = (vec![3, 5, 2], vec![4, 1, 6]);
            }),
        ),
        (
            "channels that are not written",
            spec(|vit| {
                vit.cores[1].mlp.as_mut().unwrap().out_idx = Some(vec![0, 5, 11]);
                vit.cores[0].attn.as_mut().unwrap().out_idx = Some(vec![1, 2]);
            }),
        ),
        ("an absent sub-layer", spec(|vit| vit.cores[0].attn = None)),
        (
            "a shared core",
            spec(|vit| {
                vit.cores.truncate(1);
                vit.layers = vec![LayerSpec::of(0), LayerSpec::of(0)];
            }),
        ),
        (
            "the mean of the patches",
            spec(|vit| {
                vit.pool = Pool::Avg;
                vit.prefix = vec![PrefixToken::Class];
            }),
        ),
        (
            "a norm after the mean",
            spec(|vit| {
                vit.pool = Pool::AvgThenNorm;
                vit.prefix = vec![];
            }),
        ),
        ("ops with dropout", {
            let low_rank = LowRank {
                rank: 2,
                alpha: 3.0,
                rank_stabilized: false,
                parts: None,
                dropout: 0.3,
            };
            let bottleneck = Bottleneck {
                hidden: 4,
                groups: 2,
                activation: Activation::Gelu,
                scale: 0.5,
                learned_scale: true,
                norm: None,
                from: Some(Site::Mid),
                dropout: 0.2,
            };
            let at = |site, layer, kind| OpSpec {
                site,
                layer: Some(layer),
                kind,
            };
            with_ops(
                spec(|_| {}),
                vec![
                    at(Site::Qkv, 0, OpKind::LowRank(low_rank.clone())),
                    at(Site::Fc2, 1, OpKind::LowRank(low_rank)),
                    at(Site::MlpOut, 0, OpKind::Bottleneck(bottleneck)),
                    at(
                        Site::BlockIn,
                        0,
                        OpKind::Prompts(Prompts {
                            tokens: 3,
                            project: Some(7),
                        }),
                    ),
                    at(
                        Site::BlockIn,
                        1,
                        OpKind::Prompts(Prompts {
                            tokens: 3,
                            project: Some(7),
                        }),
                    ),
                ],
            )
        }),
        (
            "quick GELU and a norm before the blocks",
            spec(|vit| {
                vit.activation = Activation::QuickGelu;
                vit.pre_norm = true;
                vit.patch_bias = false;
            }),
        ),
        ("shared norms", spec(|vit| vit.layers[1].norms = Some(0))),
        ("a Mini-DeiT", multiplexed(&spec(|_| {}))),
        ("a Mini-Swin", {
            let mut swin = SwinSpec::plain(32, 4, 3, 6, &[2, 2], &[1, 2]);
            swin.mask_unshifted = true;
            multiplexed(&ModelSpec {
                network: NetworkSpec::Swin(swin),
                ..spec(|_| {})
            })
        }),
        (
            "no bias of queries, keys and values",
            spec(|vit| {
                vit.cores
                    .iter_mut()
                    .for_each(|core| core.attn.as_mut().unwrap().qkv_bias = false);
            }),
        ),
    ]
}

fn all(_: &str) -> bool {
    true
}

#[test]
fn networks_of_every_form_agree_with_the_composed_ones() {
    for (what, spec) in forms() {
        let fused = run(&spec, Compute::default(), Trace::default(), &all);
        assert_near(&fused, &run(&spec, composed(), Trace::default(), &all), what);
        assert!(
            fused.1.len() + 2 >= spec.tensors().unwrap().len(),
            "{what}: gradients are missing"
        );
    }
}

#[test]
fn an_op_at_any_station_cuts_the_segment_there() {
    for site in Site::ALL.into_iter().filter(|site| !site.is_map()) {
        let spec = with_ops(
            spec(|_| {}),
            vec![OpSpec {
                site,
                layer: site.in_block().then_some(1),
                kind: OpKind::ScaleShift(ScaleShift { shift: true }),
            }],
        );
        let fused = run(&spec, Compute::default(), Trace::default(), &all);
        assert_near(
            &fused,
            &run(&spec, composed(), Trace::default(), &all),
            &format!("an op at {site}"),
        );
        let again = run(&spec, recomputed(), Trace::default(), &all);
        assert!(fused == again, "{site}");
    }
}

#[test]
fn a_trace_at_any_station_changes_nothing_but_rounding() {
    let spec = spec(|_| {});
    let plain = run(&spec, Compute::default(), Trace::default(), &all);
    for site in Site::ALL {
        for trace in [Trace::sites([site]), Trace::sites([site]).with_gradients()] {
            let traced = run(&spec, Compute::default(), trace, &all);
            assert_near(&traced, &plain, &format!("a trace at {site}"));
        }
    }
}

#[test]
fn maps_exist_only_where_something_needs_them() {
    let spec = spec(|_| {});
    let device = Device::flex();
    let network = Network::new(&spec, &weights(&spec), "test", &device).unwrap();
    let images = || Tensor::<4>::ones([1, 3, 16, 16], &device);
    let mut ctx = Ctx::eval();
    network.forward(images(), &mut ctx).unwrap();
    assert!(ctx.attention.is_none());
    let mut ctx = Ctx::tracing(Trace::sites([Site::AttnProbs]));
    network.forward(images(), &mut ctx).unwrap();
    assert!(ctx.attention.is_some());
}

#[test]
fn frozen_parameters_get_no_gradient_and_change_no_other() {
    let spec = spec(|_| {});
    let whole = run(&spec, Compute::default(), Trace::default(), &all);
    for part in [
        "head",
        "blocks.0.attn.qkv",
        "norm",
        "bias",
        "pos_embed",
        "patch_embed",
    ] {
        let trained = |name: &str| name.contains(part);
        for compute in [Compute::default(), recomputed()] {
            let found = run(&spec, compute, Trace::default(), &trained);
            assert!(!found.1.is_empty() && found.1.keys().all(|name| trained(name)));
            for (name, gradient) in &found.1 {
                assert!(gradient == &whole.1[name], "{name}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_and_blocks_computed_again_change_no_bit() {
    let on = |threads: usize, spec: &ModelSpec, compute: Compute| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(spec, compute, Trace::default(), &all))
    };
    for (what, spec) in forms() {
        let one = on(1, &spec, Compute::default());
        assert!(one == on(3, &spec, Compute::default()), "{what}: threads");
        assert!(one == on(3, &spec, recomputed()), "{what}: computed again");
    }
}

/// Two stages of two blocks, with windows that fit the maps or do not.
fn swin(window: usize) -> ModelSpec {
    ModelSpec {
        network: NetworkSpec::Swin(SwinSpec::plain(16, 2, window, 6, &[2, 2], &[2, 3])),
        ..spec(|_| {})
    }
}

#[test]
fn windows_are_the_same_fused_composed_and_computed_again() {
    for window in [2, 3] {
        let plain = swin(window);
        let kind = || OpKind::ScaleShift(ScaleShift { shift: true });
        let op = |site, layer| OpSpec {
            site,
            layer,
            kind: kind(),
        };
        let inside = [
            Site::MergeIn,
            Site::BlockIn,
            Site::AttnIn,
            Site::AttnQkv,
            Site::AttnHeads,
            Site::MlpIn,
        ];
        let ops = inside.map(|site| op(site, Some(2))).into_iter();
        let ops = ops.chain([op(Site::PatchNorm, None), op(Site::FinalNorm, None)]);
        for ops in std::iter::once(Vec::new()).chain(ops.map(|op| vec![op])) {
            let what = format!("windows of {window}, {ops:?}");
            let spec = with_ops(plain.clone(), ops);
            let fused = run(&spec, Compute::default(), Trace::default(), &all);
            assert_eq!(fused.1.len(), spec.tensors().unwrap().len(), "{what}");
            let other = run(&spec, composed(), Trace::default(), &all);
            assert_near(&fused, &other, &what);
            let again = run(&spec, recomputed(), Trace::default(), &all);
            assert!(fused == again, "{what}");
        }
    }
}

#[test]
fn what_a_sample_of_windows_draws_does_not_depend_on_the_batch() {
    let low_rank = OpKind::LowRank(LowRank {
        rank: 2,
        alpha: 4.0,
        rank_stabilized: false,
        parts: None,
        dropout: 0.5,
    });
    let op = OpSpec {
        site: Site::Qkv,
        layer: Some(1),
        kind: low_rank,
    };
    let spec = with_ops(swin(2), vec![op]);
    let device = Device::flex();
    let network = Network::new(&spec, &weights(&spec), "test", &device).unwrap();
    let size: usize = spec.input_size().iter().product();
    let mut rng = Key::new(1).rng();
    let pixels: Vec<f32> = (0..4 * size).map(|_| rng.normal() as f32).collect();
    let logits = |first: usize, count: usize| -> Vec<f32> {
        let [c, h, w] = spec.input_size();
        let part = pixels[first * size..(first + count) * size].to_vec();
        let images = Tensor::from_data(TensorData::new(part, [count, c, h, w]), &device);
        let mut ctx = Ctx::train(DropPath {
            rate: 0.4,
            key: Key::new(2),
            first_sample: first,
        });
        network
            .forward(images, &mut ctx)
            .unwrap()
            .class
            .try_to_vec_as()
            .unwrap()
    };
    let whole = logits(0, 4);
    assert_eq!(whole, [logits(0, 1), logits(1, 3)].concat());
    assert_ne!(whole[..5], logits(1, 1)[..]);
}

#[test]
fn a_swin_goes_block_by_block_too() {
    let spec = swin(3);
    let device = Device::flex();
    let network = Network::new(&spec, &weights(&spec), "test", &device).unwrap();
    let images = Tensor::<4>::ones([2, 3, 16, 16], &device);
    let mut traced = Ctx::tracing(Trace::sites([Site::BlockOut]));
    network.forward(images.clone(), &mut traced).unwrap();
    let mut ctx = Ctx::eval();
    let mut x = network.embed(images, &mut ctx).unwrap();
    for layer in 0..4 {
        x = network.block(layer, x, &mut ctx).unwrap();
        let expected = traced.trace.tokens(Site::BlockOut, Some(layer)).unwrap();
        assert_eq!(x.to_data(), expected.to_data(), "{layer}");
    }
    assert!(network.block(4, x, &mut ctx).is_err());
}
