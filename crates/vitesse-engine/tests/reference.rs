//! The engine against plain loops: random models on every instruction set, in every precision, with any number of
//! threads and images.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use vitesse_engine::{Engine, Isa, Options, Output, Precision};
use vitesse_model::ops::{Activation, OpKind, OpSpec, Prompts, ScaleShift};
use vitesse_model::spec::{LayerSpec, NetworkSpec, Pool, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Site, Tensors};

/// What the reference says about `count` images.
fn expected(spec: &ModelSpec, tensors: &Tensors, images: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (mut class, mut distillation) = (Vec::new(), Vec::new());
    for image in images.chunks_exact(spec.input_size().iter().product()) {
        let result = forward(spec, tensors, image);
        class.extend(result.class);
        distillation.extend(result.distillation);
    }
    (class, distillation)
}

fn engine(spec: &ModelSpec, tensors: &Tensors, precision: Precision, isa: Isa, threads: usize) -> Engine {
    let options = Options {
        threads,
        precision,
        isa: Some(isa),
    };
    Engine::new(spec, tensors, "test", options).unwrap()
}

/// That a model is right in `f32` everywhere, and near in the other precisions.
fn check(name: &str, spec: &ModelSpec, seed: u64) {
    let tensors = weights(spec, seed);
    let count = 1 + seed as usize % 5;
    let images = images(spec, count, seed);
    let (class, distillation) = expected(spec, &tensors, &images);
    let both: Vec<f64> = class.iter().chain(&distillation).copied().collect();
    for isa in isas() {
        for threads in 1..=3 {
            let what = || format!("{name} {isa}, {threads} threads, {count} images: {spec:?}");
            let engine = engine(spec, &tensors, Precision::F32, isa, threads);
            let out = engine.run(&images, count).unwrap();
            let error = distance(&out.class, &class).max(distance(&out.distillation, &distillation));
            assert!(error <= 1e-4, "{error:e}: {}", what());
        }
        let threads = 1 + seed as usize % 3;
        for (precision, least) in [(Precision::Bf16, 0.99), (Precision::Int8, 0.97)] {
            let what = || format!("{name} {precision} {isa}, {threads} threads, {count} images: {spec:?}");
            let engine = engine(spec, &tensors, precision, isa, threads);
            let Output { class, distillation } = engine.run(&images, count).unwrap();
            let found: Vec<f32> = class.into_iter().chain(distillation).collect();
            let cosine = cosine(&found, &both);
            assert!(cosine > least, "{cosine}: {}", what());
        }
    }
}

#[test]
fn random_models_agree() {
    for seed in 0..48 {
        check("random", &random_spec(&mut rng("specs", seed)), seed);
    }
}

fn small() -> VitSpec {
    VitSpec::plain(24, 4, 48, 2, 3, vec![PrefixToken::Class])
}

/// Makes something of a plain model.
type Edit = fn(&mut VitSpec);

#[test]
fn each_part_of_a_spec_agrees() {
    let edits: [(&str, Edit); 25] = [
        ("plain", |_| {}),
        ("distilled", |vit| vit.prefix.push(PrefixToken::Distillation)),
        ("registers", |vit| vit.prefix.extend([PrefixToken::Register; 3])),
        ("positions of patches only", |vit| vit.embed_prefix = false),
        ("mean", |vit| vit.pool = Pool::Avg),
        ("mean, then norm", |vit| vit.pool = Pool::AvgThenNorm),
        ("mean without prefix", |vit| {
            vit.pool = Pool::Avg;
            vit.prefix.clear();
        }),
        ("no attention in the last layer", |vit| vit.cores[1].attn = None),
        ("no attention in the first layer", |vit| vit.cores[0].attn = None),
        ("no attention", |vit| {
            vit.cores.iter_mut().for_each(|core| core.attn = None);
        }),
        ("no perceptron", |vit| {
            vit.cores.iter_mut().for_each(|core| core.mlp = None);
        }),
        ("nothing in a layer", |vit| {
            vit.cores[1].attn = None;
            vit.cores[1].mlp = None;
        }),
        ("no layers", |vit| {
            vit.cores.clear();
            vit.layers.clear();
        }),
        ("heads of their own widths", |vit| {
            let attn = vit.cores[0].attn.as_mut().unwrap();
            (attn.qk_dims, attn.v_dims) = (vec![48, 16, 1], vec![5, 80, 33]);
        }),
        ("no bias", |vit| {
            vit.cores[0].attn.as_mut().unwrap().qkv_bias = false;
        }),
        ("some channels written", |vit| {
            vit.cores[0].attn.as_mut().unwrap().out_idx = Some(vec![0, 7, 31, 32, 47]);
            vit.cores[1].mlp.as_mut().unwrap().out_idx = Some((3..40).collect());
        }),
        ("shared cores", |vit| {
            vit.layers = [0, 1, 0, 0, 1].map(LayerSpec::of).to_vec();
        }),
        ("shared norms", |vit| {
            vit.layers = [0, 1, 0, 1].map(LayerSpec::of).to_vec();
            vit.layers[2].norms = Some(0);
        }),
        ("a norm after the embedding", |vit| vit.pre_norm = true),
        ("patches without bias", |vit| vit.patch_bias = false),
        ("quick-gelu", |vit| vit.activation = Activation::QuickGelu),
        ("relu", |vit| vit.activation = Activation::Relu),
        ("a narrow stream", |vit| {
            *vit = VitSpec::plain(16, 8, 4, 1, 2, vec![PrefixToken::Class]);
        }),
        ("one patch", |vit| {
            *vit = VitSpec::plain(8, 8, 32, 2, 2, vec![PrefixToken::Class]);
        }),
        ("deep products", |vit| {
            vit.cores[0].mlp.as_mut().unwrap().hidden = 600;
        }),
    ];
    for (i, (name, edit)) in edits.into_iter().enumerate() {
        let mut vit = small();
        edit(&mut vit);
        let mut spec = model(vit);
        check(name, &spec, i as u64);
        spec.num_classes = 0;
        check(name, &spec, i as u64 + 1);
    }
}

#[test]
fn an_op_at_every_site_agrees() {
    for (i, site) in Site::ALL.into_iter().filter(|site| !site.is_map()).enumerate() {
        for (layer, partial, pool) in [
            (0, false, Pool::Token),
            (1, true, Pool::Avg),
            (1, true, Pool::Token),
        ] {
            let mut vit = small();
            vit.pool = pool;
            if partial {
                // A shift after a projection that writes few channels reaches all of them.
                vit.cores[1].attn.as_mut().unwrap().out_idx = Some(vec![1, 2, 40]);
                vit.cores[1].mlp.as_mut().unwrap().out_idx = Some(vec![0, 33, 47]);
            }
            let layer = site.in_block().then_some(layer);
            if i % 3 == 0 {
                // What scales after it cannot be folded into a product that has no such activation.
                vit.activation = Activation::QuickGelu;
            }
            let mut spec = model(vit);
            for shift in [true, false] {
                let kind = OpKind::ScaleShift(ScaleShift { shift });
                spec.ops.push(OpSpec { site, layer, kind });
                check(&format!("op at {site}"), &spec, i as u64);
            }
        }
    }
}

#[test]
fn what_stays_agrees_at_every_site() {
    for case in 0..80 {
        let mut rng = rng("kept", case);
        let mut vit = small();
        if case % 4 == 0 {
            vit.layers = [0, 1, 0].map(LayerSpec::of).to_vec();
        }
        if case % 5 == 0 {
            vit.cores[1].attn.as_mut().unwrap().out_idx = Some(vec![1, 2, 40]);
            vit.cores[1].mlp.as_mut().unwrap().out_idx = Some(vec![0, 33, 47]);
        }
        if case % 3 == 0 {
            vit.pool = Pool::Avg;
        }
        let mut spec = model(vit);
        if case % 7 == 0 {
            if let NetworkSpec::Vit(vit) = &mut spec.network {
                vit.pre_norm = case % 2 == 1;
            }
            let kind = OpKind::Prompts(Prompts { tokens: 5 });
            let at = |layer| OpSpec {
                site: Site::BlockIn,
                layer: Some(layer),
                kind: kind.clone(),
            };
            spec.ops = vec![at(0), at(1)];
        }
        for _ in 0..1 + case % 3 {
            spec.ops.extend(random_op(&mut rng, &spec));
            let site = [Site::AttnIn, Site::AttnOut, Site::MlpHidden, Site::MlpOut][rng.below(4)];
            let kind = OpKind::ScaleShift(ScaleShift { shift: true });
            let layer = Some(case as usize % 2);
            spec.ops.push(OpSpec { site, layer, kind });
        }
        check("kept", &spec, case);
    }
}

#[test]
fn ops_of_layers_that_share_a_core_are_their_own() {
    let mut vit = small();
    vit.layers = [0, 1, 0].map(LayerSpec::of).to_vec();
    vit.cores[0].attn.as_mut().unwrap().out_idx = Some((10..30).collect());
    let mut spec = model(vit);
    for (layer, site) in [
        (0, Site::AttnQkv),
        (2, Site::AttnQkv),
        (2, Site::AttnOut),
        (0, Site::MlpHidden),
        (1, Site::Mid),
    ] {
        let kind = OpKind::ScaleShift(ScaleShift { shift: true });
        spec.ops.push(OpSpec {
            site,
            layer: Some(layer),
            kind,
        });
    }
    check("shared", &spec, 3);
}

#[test]
fn neither_threads_nor_the_batch_change_a_result() {
    let mut vit = VitSpec::plain(
        32,
        4,
        96,
        4,
        3,
        vec![PrefixToken::Class, PrefixToken::Distillation],
    );
    vit.in_chans = 2;
    for pool in [Pool::Token, Pool::Avg] {
        if pool == Pool::Avg {
            vit.prefix.pop();
            vit.pool = pool;
        }
        let spec = model(vit.clone());
        let tensors = weights(&spec, 1);
        let images = images(&spec, 7, 1);
        let size = images.len() / 7;
        for (isa, precision) in isas().into_iter().flat_map(|isa| {
            [Precision::F32, Precision::Bf16, Precision::Int8].map(|precision| (isa, precision))
        }) {
            let single = engine(&spec, &tensors, precision, isa, 1);
            let each: Vec<Output> = images
                .chunks_exact(size)
                .map(|image| single.run(image, 1).unwrap())
                .collect();
            for threads in 1..=5 {
                let engine = engine(&spec, &tensors, precision, isa, threads);
                for count in 0..=7 {
                    let out = engine.run(&images[..count * size], count).unwrap();
                    let joined = |head: fn(&Output) -> &Vec<f32>| {
                        each[..count].iter().flat_map(head).copied().collect::<Vec<_>>()
                    };
                    let what = || format!("{isa}, {precision}, {threads} threads, {count} images");
                    assert_eq!(out.class, joined(|out| &out.class), "{}", what());
                    assert_eq!(out.distillation, joined(|out| &out.distillation), "{}", what());
                }
            }
        }
    }
}

#[test]
fn an_image_that_is_not_finite_leaves_the_others_alone() {
    // Patches of 6 pixels leave room in their last panel, and heads of 12 in all of theirs.
    let spec = model(VitSpec::plain(30, 6, 36, 2, 3, vec![PrefixToken::Class]));
    let tensors = weights(&spec, 5);
    let clean = images(&spec, 5, 5);
    let size = clean.len() / 5;
    for isa in isas() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for threads in 1..=3 {
                let engine = engine(&spec, &tensors, precision, isa, threads);
                let expected = engine.run(&clean, 5).unwrap();
                for bad in [f32::NAN, f32::INFINITY] {
                    let mut images = clean.clone();
                    images[size..2 * size].fill(bad);
                    images[3 * size + 7] = bad;
                    for _ in 0..2 {
                        let found = engine.run(&images, 5).unwrap();
                        for (i, (found, expected)) in found.class.iter().zip(&expected.class).enumerate() {
                            let what =
                                || format!("image {} {precision} {isa}, {threads} threads, {bad}", i / 5);
                            if i / 5 % 2 == 1 {
                                assert!(!found.is_finite(), "{found}: {}", what());
                            } else {
                                assert_eq!(found, expected, "{}", what());
                            }
                        }
                    }
                }
            }
        }
    }
}
