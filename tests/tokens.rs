//! Ops that make tokens fewer: counts and costs, masks against gathering, batches, gradients, what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli_support;
mod small_model;
mod token_models;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use cli_support::Place;
use small_model::{plain_swin, weights};
use token_models::{
    BATCH, attentive, bodies, body, class, distance, fixed, images, kinds, matching, merging, network,
    predictor, selector, with,
};
use vitesse::compress::tokens::tome::Schedule;
use vitesse::engine::{Engine, Isa, Options, Precision};
use vitesse::model::network::{Ctx, DropPath, Leaving, Network, Noise, Trace};
use vitesse::model::ops::{Direction, MergeValue, OpKind, OpSpec};
use vitesse::model::spec::PrefixToken;
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec, NetworkSpec, Site, Sites, Tensors, zoo};
use vitesse::rng::Key;

/// The table of `docs/methods/tokens.md`: multiply-accumulates in G, three decimals.
#[test]
fn macs_are_those_of_the_page() {
    let table = [
        (
            "deit_tiny_patch16_224",
            [1.254, 0.801, 0.812, 0.821, 0.924, 0.731, 0.622, 0.720],
        ),
        (
            "deit_small_patch16_224",
            [4.599, 2.981, 2.997, 3.029, 3.416, 2.703, 2.291, 2.664],
        ),
        (
            "deit_base_patch16_224",
            [17.564, 11.476, 11.485, 11.610, 13.104, 10.367, 8.772, 10.226],
        ),
    ];
    for (name, expected) in table {
        let dense = zoo::get(name).unwrap().spec;
        let three = |op: &dyn Fn(usize) -> OpSpec| [3, 6, 9].map(op).to_vec();
        let stage = |layer: usize| predictor(layer, 0.7f64.powi(layer as i32 / 3));
        let tome = |r| Schedule::Constant(r).ops(&dense, true).unwrap();
        let columns = [
            Vec::new(),
            three(&stage),
            three(&|layer| attentive(layer, 0.7, false)),
            three(&|layer| attentive(layer, 0.7, true)),
            tome(8),
            tome(13),
            tome(16),
            vec![
                merging(4, Direction::Horizontal, MergeValue::Mean),
                merging(8, Direction::Vertical, MergeValue::Mean),
            ],
        ];
        for (column, (ops, expected)) in columns.into_iter().zip(expected).enumerate() {
            let found = with(dense.clone(), ops).costs().unwrap().macs() as f64 / 1e9;
            assert!(
                (found - expected).abs() <= 0.0005,
                "{name}, column {column}: {found}, expected {expected}"
            );
        }
    }
    let dense = zoo::get("deit_small_patch16_224").unwrap().spec;
    let spec = with(
        dense,
        vec![predictor(3, 0.7), predictor(6, 0.49), predictor(9, 0.343)],
    );
    let counts = spec.token_counts();
    let patches = [2, 3, 6, 9].map(|layer| counts[layer].attention.patches);
    assert_eq!(patches, [196, 137, 96, 67]);
    assert_eq!(
        (spec.tokens_at(3), spec.tokens_at(4), spec.tokens_at(12)),
        (197, 138, 68)
    );
}

#[test]
fn what_passes_is_what_the_description_says() {
    for base in bodies() {
        for ops in kinds(&base) {
            let spec = with(base.clone(), ops);
            let network = network(&spec, &weights(&spec, 1));
            let mut ctx = Ctx::tracing(Trace::sites([Site::AttnIn, Site::MlpIn, Site::BlockOut]));
            let whole = class(&network, images(&spec), &mut ctx);
            for (layer, counts) in spec.token_counts().iter().enumerate() {
                let passed = |site| ctx.trace.tokens(site, Some(layer)).unwrap().dims()[1];
                assert_eq!(passed(Site::AttnIn), counts.attention.count());
                assert_eq!(passed(Site::MlpIn), counts.perceptron.count());
                assert_eq!(spec.tokens_at(layer + 1), passed(Site::BlockOut));
            }
            let last = spec.token_counts()[3].perceptron;
            assert_eq!((ctx.stream.prefix, ctx.stream.tail), (last.prefix, last.tail));
            assert!(ctx.stream.policy.is_none());
            // Each image is served as if it were alone, and the description survives being written down.
            for i in 0..BATCH {
                let one = class(&network, images(&spec).narrow(0, i, 1), &mut Ctx::eval());
                assert!(distance(&whole[5 * i..][..5], &one) < 1e-5, "{:?}", spec.ops);
            }
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<ModelSpec>(&text).unwrap(), spec);
            // Something happened.
            let mut dense = base.clone();
            dense.ops.retain(|op| !op.kind.reduces_tokens());
            let dense = token_models::network(&dense, &weights(&dense, 1));
            let unchanged = class(&dense, images(&spec), &mut Ctx::eval());
            assert!(distance(&whole, &unchanged) > 1e-4, "{:?}", spec.ops);
        }
    }
}

/// Noise that makes the decisions which gathering made.
fn deciding(spec: &ModelSpec, gathered: &Ctx, patches: usize) -> Noise {
    let mut noise = BTreeMap::new();
    // For each image the original numbers of the patches that are there.
    let mut original: Vec<Vec<usize>> = vec![(0..patches).collect(); BATCH];
    let mut tails = 0;
    for (index, op) in spec
        .ops
        .iter()
        .enumerate()
        .filter(|(_, op)| op.kind.reduces_tokens())
    {
        let prefix = op.prefix(index);
        let kept = gathered.outputs.get(&format!("{prefix}.kept")).unwrap();
        let most = kept.dims()[1];
        let kept = kept.try_to_vec_as::<f32>().unwrap();
        let mut values = Vec::new();
        for (image, kept) in kept.chunks(most).enumerate() {
            let there: Vec<usize> = kept
                .iter()
                .map(|&local| original[image][local as usize])
                .collect();
            let keep = |patch| if there.contains(&patch) { 1e4 } else { -1e4 };
            values.extend((0..patches).flat_map(|patch| [keep(patch), 0.0]));
            values.extend(vec![0.0; 2 * tails]);
            original[image] = there;
        }
        tails += usize::from(matches!(op.kind, OpKind::TokenSelector(_)));
        noise.insert(prefix, values);
    }
    Noise::Given(noise)
}

fn masked(noise: Noise) -> Ctx {
    let mut ctx = Ctx::eval();
    ctx.leaving = Leaving::Masked { noise, eps: 0.0 };
    ctx
}

#[test]
fn masks_and_gathering_agree() {
    for base in bodies() {
        for ops in [
            vec![predictor(1, 0.7), predictor(3, 0.3)],
            vec![selector(1, true, Some(0.7)), selector(2, true, Some(0.4))],
            vec![selector(0, false, Some(0.5)), selector(3, false, Some(0.2))],
        ] {
            let spec = with(base.clone(), ops);
            let network = network(&spec, &weights(&spec, 1));
            let mut gathered = Ctx::eval();
            let expected = class(&network, images(&spec), &mut gathered);
            let mut ctx = masked(deciding(&spec, &gathered, 15));
            let found = class(&network, images(&spec), &mut ctx);
            assert!(distance(&expected, &found) < 2e-5, "{:?}", spec.ops);
            let first = spec.ops.iter().position(|op| op.kind.reduces_tokens()).unwrap();
            let decision = format!("{}.decision", spec.ops[first].prefix(first));
            assert_eq!(ctx.outputs[&decision].dims(), [BATCH, 15]);
        }
        // Without a ratio both decide by what is more probable, and images keep different numbers.
        let spec = with(
            base.clone(),
            vec![selector(1, true, None), selector(2, true, None)],
        );
        let network = network(&spec, &undecided(&spec));
        let expected = class(&network, images(&spec), &mut Ctx::eval());
        let found = class(&network, images(&spec), &mut masked(Noise::Nothing));
        assert!(distance(&expected, &found) < 2e-5);
        for i in 0..BATCH {
            let one = class(&network, images(&spec).narrow(0, i, 1), &mut Ctx::eval());
            assert!(distance(&expected[5 * i..][..5], &one) < 1e-5);
        }
    }
}

/// Weights with which the selectors of a model let some patches leave, of different images different numbers: each is biased by what it
/// says of the patch that is the third of ten.
fn undecided(spec: &ModelSpec) -> Tensors {
    let mut tensors = weights(spec, 1);
    let selectors = spec.ops.iter().enumerate();
    for (index, op) in selectors.filter(|(_, op)| op.kind.reduces_tokens()) {
        let mut ctx = Ctx::eval();
        class(&network(spec, &tensors), images(spec), &mut ctx);
        let output = |name: &str| ctx.outputs[&format!("{}.{name}", op.prefix(index))].clone();
        let lead = output("keep") - output("drop");
        let mut lead = lead.try_to_vec_as::<f32>().unwrap();
        lead.sort_by(f32::total_cmp);
        let bias = format!("{}.out_conv.0.4.bias", op.prefix(index));
        let old = tensors.get(&bias).unwrap().to_f32().into_owned();
        let new = vec![old[0] - lead[lead.len() * 3 / 10], old[1]];
        tensors.insert_f32(&bias, &[2], new).unwrap();
    }
    let mut ctx = Ctx::eval();
    class(&network(spec, &tensors), images(spec), &mut ctx);
    let places = ctx.stream.places.as_ref().expect("patches left");
    let there = |image| places.of_image(image).iter().flatten().count() - ctx.stream.prefix;
    let there: Vec<usize> = (0..BATCH).map(there).collect();
    let differ = there.iter().any(|count| *count != there[0]);
    assert!(differ && there.iter().all(|count| *count > 1), "{there:?}");
    tensors
}

#[test]
fn where_all_would_leave_the_best_one_stays() {
    let spec = with(
        body(&[PrefixToken::Class]),
        vec![selector(1, true, None), selector(2, true, None)],
    );
    let mut tensors = weights(&spec, 1);
    let bias = format!("{}.out_conv.0.4.bias", spec.ops[0].prefix(0));
    tensors.insert_f32(&bias, &[2], vec![-9.0, 9.0]).unwrap();
    let mut ctx = Ctx::eval();
    let logits = class(&network(&spec, &tensors), images(&spec), &mut ctx);
    assert!(logits.iter().all(|x| x.is_finite()));
    // The class token, the best patch, two packages.
    let places = ctx.stream.places.unwrap();
    for image in 0..BATCH {
        let there = places.of_image(image).iter().flatten().count();
        assert_eq!(there, 2);
    }
}

#[test]
fn training_draws_the_same_however_it_is_cut_or_computed() {
    for ops in kinds(&body(&[PrefixToken::Class])) {
        let spec = with(body(&[PrefixToken::Class]), ops);
        let device = Device::flex().autodiff();
        let network = Network::new(&spec, &weights(&spec, 1), "test", &device).unwrap();
        let run = |from: usize, count: usize, grad_checkpointing| {
            let mut ctx = Ctx::train(DropPath {
                rate: 0.1,
                key: Key::new(8),
                first_sample: from,
            });
            ctx.compute.grad_checkpointing = grad_checkpointing;
            let images = images(&spec).narrow(0, from, count);
            let images = Tensor::<4>::from_data(images.to_data(), &device).require_grad();
            let logits = network.forward(images.clone(), &mut ctx).unwrap().class;
            let found = logits.clone().powf_scalar(2.0).sum().backward();
            let gradient = images.grad(&found).unwrap().try_to_vec_as::<f32>().unwrap();
            (logits.try_to_vec_as::<f32>().unwrap(), gradient)
        };
        let (whole, gradient) = run(0, BATCH, false);
        assert!(gradient.iter().any(|x| *x != 0.0) && gradient.iter().all(|x| x.is_finite()));
        // The same decisions to the bit; sums of gradients go another way where the stream has a policy.
        let (again, other) = run(0, BATCH, true);
        assert_eq!(whole, again, "{:?}", spec.ops);
        assert!(distance(&gradient, &other) < 1e-6, "{:?}", spec.ops);
        let (part, _) = run(1, 2, false);
        assert!(distance(&whole[5..], &part) < 1e-5, "{:?}", spec.ops);
    }
}

#[test]
fn maps_of_merged_patches_cover_the_image_and_those_of_dropped_ones_are_refused() {
    let base = body(&[PrefixToken::Class]);
    let spec = with(
        base.clone(),
        vec![merging(1, Direction::Horizontal, MergeValue::Mean)],
    );
    let network = network(&spec, &weights(&spec, 1));
    let maps = spec.feature_maps(&[1, 4]).unwrap();
    let found = network.feature_maps(images(&spec), &maps).unwrap();
    for map in &found {
        assert_eq!(map.dims(), [BATCH, 24, 3, 5]);
    }
    let column = |i| found[1].clone().narrow(3, i, 1).try_to_vec_as::<f32>().unwrap();
    assert_eq!(column(0), column(1));
    assert_eq!(column(2), column(3));
    assert!(distance(&column(1), &column(2)) > 1e-4 && distance(&column(3), &column(4)) > 1e-4);
    let merged = with(base.clone(), vec![matching(0, 5, true)]);
    let network = token_models::network(&merged, &weights(&merged, 1));
    let found = network
        .feature_maps(images(&merged), &merged.feature_maps(&[]).unwrap())
        .unwrap();
    assert_eq!(found[0].dims(), [BATCH, 24, 3, 5]);
    let dropping = with(base, vec![predictor(1, 0.5)]);
    assert!(dropping.feature_maps(&[1]).is_ok());
    let error = dropping.feature_maps(&[2]).unwrap_err().to_string();
    assert!(
        error.contains("would have holes, since tokens leave from layer 2 on"),
        "{error}"
    );
}

#[test]
fn scores_that_are_no_numbers_are_an_error_that_names_the_op() {
    let base = || body(&[PrefixToken::Class]);
    for (ops, end) in [
        (vec![predictor(1, 0.5)], "ops.0.1.block.in"),
        (vec![selector(2, true, None)], "ops.0.2.block.in"),
        (vec![attentive(3, 0.5, true)], "ops.0.3.mid"),
        (vec![matching(0, 2, true)], "ops.0.0.mid"),
    ] {
        let spec = with(base(), ops);
        let mut tensors = weights(&spec, 1);
        tensors
            .insert_f32("patch_embed.proj.bias", &[24], vec![f32::NAN; 24])
            .unwrap();
        for ctx in [Ctx::eval(), masked(Noise::Nothing)] {
            let mut ctx = ctx;
            let found = network(&spec, &tensors).forward(images(&spec), &mut ctx);
            let error = found.unwrap_err().to_string();
            assert!(error.contains(end) && error.contains("no numbers"), "{error}");
        }
        if supported(&spec) {
            let engine = Engine::new(&spec, &tensors, "test", Options::default()).unwrap();
            let pixels = images(&spec).try_to_vec_as::<f32>().unwrap();
            let found = engine.run(&pixels, BATCH).unwrap().class;
            assert!(found.iter().all(|x| x.is_nan()), "{found:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let class = || body(&[PrefixToken::Class]);
    let narrow = |heads: usize| {
        let mut op = selector(1, true, None);
        if let OpKind::TokenSelector(op) = &mut op.kind {
            op.heads = heads;
        }
        op
    };
    let swin = with(
        plain_swin(),
        vec![merging(1, Direction::Vertical, MergeValue::Mean)],
    );
    let mut bare = class();
    let NetworkSpec::Vit(vit) = &mut bare.network else {
        unreachable!()
    };
    vit.cores[1].attn = None;
    let elsewhere = OpSpec {
        site: Site::MlpIn,
        ..predictor(1, 0.5)
    };
    let cases = [
        (
            with(class(), vec![attentive(1, 0.0, true)]),
            "`keep` must be above 0",
        ),
        (
            with(class(), vec![attentive(1, 1.2, true)]),
            "at most 1, but is 1.2",
        ),
        (
            with(class(), vec![predictor(1, 0.05)]),
            "would leave only the tokens before the patches",
        ),
        (
            with(class(), vec![predictor(1, f64::NAN)]),
            "`ratio` must be above 0",
        ),
        (
            with(class(), vec![selector(1, true, Some(0.0))]),
            "`ratio` must be above 0",
        ),
        (with(class(), vec![fixed(1, &[])]), "names no patch"),
        (with(class(), vec![fixed(1, &[3, 15])]), "names patch 15"),
        (with(class(), vec![fixed(1, &[1, 3, 2, 9])]), "3 stands before 2"),
        (with(class(), vec![fixed(1, &[3, 1])]), "3 stands before 1"),
        (
            with(class(), vec![matching(1, 8, true)]),
            "at most half, 7, can merge",
        ),
        (with(class(), vec![matching(1, 0, true)]), "at least 1"),
        (
            with(class(), vec![matching(1, 2, true), matching(2, 2, false)]),
            "the same for all of a model",
        ),
        (
            with(class(), vec![predictor(9, 0.5)]),
            "which this model does not have",
        ),
        (with(class(), vec![elsewhere]), "must stand at `block.in`"),
        (with(swin, Vec::new()), "the windows of a Swin"),
        (
            with(body(&[]), vec![attentive(1, 0.5, true)]),
            "this model has none",
        ),
        (with(bare.clone(), vec![matching(1, 2, true)]), "has no attention"),
        (with(bare, vec![attentive(1, 0.5, true)]), "has no attention"),
        (
            with(class(), vec![predictor(1, 0.5), matching(2, 2, true)]),
            "a model has one kind",
        ),
        (
            with(class(), vec![predictor(1, 0.5), predictor(1, 0.4)]),
            "a layer has one such op",
        ),
        (
            with(
                class(),
                vec![selector(1, true, None), selector(2, true, Some(0.4))],
            ),
            "one has a `ratio` and one has none",
        ),
        (with(class(), vec![narrow(5)]), "divide the width 24"),
        (with(class(), vec![narrow(8)]), "even number from 4"),
        (
            with(
                class(),
                (0..4)
                    .map(|layer| merging(layer, Direction::Vertical, MergeValue::Mean))
                    .collect(),
            ),
            "nothing in it lies one below the other",
        ),
    ];
    for (spec, said) in cases {
        let error = spec.validate().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// The engine computes what the network does, alone and with threads that share an image, or says which op it has no step for.
#[test]
fn the_engine_agrees_with_the_network_or_refuses() {
    // With more patches three threads share an image.
    let wide = bodies().into_iter().map(|mut base| {
        if let NetworkSpec::Vit(vit) = &mut base.network {
            vit.img_size = [24, 20];
        }
        base
    });
    for base in bodies().into_iter().chain(wide) {
        for ops in kinds(&base) {
            let spec = with(base.clone(), ops);
            let tensors = weights(&spec, 1);
            let expected = class(&network(&spec, &tensors), images(&spec), &mut Ctx::eval());
            let pixels = images(&spec).try_to_vec_as::<f32>().unwrap();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                for threads in [1, 2, 3] {
                    let run = |count: usize, precision| {
                        let options = Options {
                            threads,
                            isa: Some(isa),
                            precision,
                        };
                        let engine = Engine::new(&spec, &tensors, "test", options)?;
                        let pixels = &pixels[..pixels.len() / BATCH * count];
                        // Twice, so that what an image leaves behind meets the next.
                        engine.run(pixels, count)?;
                        Ok::<Vec<f32>, vitesse::engine::Error>(engine.run(pixels, count)?.class)
                    };
                    if !supported(&spec) {
                        let name = spec.ops.last().unwrap().kind.name();
                        let said = format!("the engine has no step for `{name}`");
                        let error = run(1, Precision::F32).unwrap_err().to_string();
                        assert!(error.contains(&said), "{error}");
                        continue;
                    }
                    let at = format!("{isa}, {threads} threads, {:?}", spec.ops);
                    let whole = run(BATCH, Precision::F32).unwrap();
                    let apart = distance(&expected, &whole);
                    assert!(apart < 1e-4, "{at}: {apart}");
                    // One image, which all threads share.
                    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                        let (all, one) = (run(BATCH, precision).unwrap(), run(1, precision).unwrap());
                        assert!(distance(&all[..5], &one) < 1e-6, "{at}, {precision}");
                    }
                }
            }
        }
    }
}

/// Whether the engine has steps for the ops that make tokens fewer.
fn supported(spec: &ModelSpec) -> bool {
    let selects = |op: &OpSpec| matches!(op.kind, OpKind::TokenSelector(_));
    !spec.ops.iter().any(selects)
}

/// Seventeen tokens, of which the second block's perceptron sees the class token, half of the patches and a fused one.
#[test]
fn a_folder_says_how_many_tokens_each_layer_sees_and_runs() {
    let place = Place::new();
    let mut model = Checkpoint::fresh("deit_nano_patch8_32", Some(8), None, 1).unwrap();
    model.spec.ops = vec![attentive(1, 0.5, true)];
    model.save(&place.path("model"), false).unwrap();
    let again = Checkpoint::load(place.path("model"), &LoadOptions::default()).unwrap();
    assert_eq!(again.spec, model.spec);
    let text = place.run("inspect model").ended(0).stdout;
    for said in ["17 tokens", "10 tokens", "attentive-tokens at mid of block 1"] {
        assert!(text.contains(said), "{text}");
    }
    let document = place.run("inspect model --json").ended(0).json();
    assert_eq!(document["tokens"][1]["attention"]["patches"], 16);
    assert_eq!(document["tokens"][1]["perceptron"]["patches"], 8);
    assert_eq!(document["tokens"][1]["perceptron"]["tail"], 1);
    let ran = place.run("bench model --seconds 0.01 --min-runs 1 --batch-size 1 --profile --json");
    let document = ran.ended(0).json();
    let layers = &document["results"][0]["profile"]["layers"];
    let spent = |layer: usize| layers[layer]["tokens"].as_f64().unwrap();
    assert!(spent(0) == 0.0 && spent(1) > 0.0, "{layers}");
}
