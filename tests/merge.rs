//! What merging promises: the plan of the merged model is the plain model's, op for op, and its answers are the adapted
//! model's. Network and engine agree on what is not merged.
#![allow(clippy::unwrap_used, clippy::panic)]

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::adapt::Method;
use vitesse::adapt::merge::{Options as MergeOptions, merge};
use vitesse::engine::{Engine, Options, Precision};
use vitesse::measure::merge::Merge;
use vitesse::measure::proof::Difference;
use vitesse::model::network::{Ctx, Network};
use vitesse::model::{Checkpoint, ModelSpec, Tensors};
use vitesse::rng::Key;
use vitesse::train::method::Check;

const IMAGES: usize = 3;

/// A model of each family that methods can be put on.
const BASES: [&str; 2] = ["deit_micro_distilled_patch4_32", "swin_nano_patch2_window4_32"];

fn base(name: &str) -> Checkpoint {
    Checkpoint::fresh(name, Some(5), None, 1).unwrap()
}

/// A base with a method whose tensors have learned something.
fn adapted(base: &Checkpoint, name: &str, settings: &[(&str, &str)]) -> (ModelSpec, Tensors) {
    let settings: Vec<(&str, String)> = settings.iter().map(|&(k, v)| (k, v.to_owned())).collect();
    let adapted = Method::parse(name, &settings)
        .unwrap()
        .begin(&base.spec, &base.tensors, 1)
        .unwrap();
    let mut tensors = adapted.tensors;
    for name in &adapted.trained.method {
        let tensor = tensors.get(name).unwrap();
        let shape = tensor.shape().to_vec();
        let mut rng = Key::new(2).with(name).rng();
        let values = tensor
            .to_f32()
            .iter()
            .map(|x| x + 0.1 * rng.normal() as f32)
            .collect();
        tensors.insert_f32(name, &shape, values).unwrap();
    }
    (adapted.spec, tensors)
}

fn images(spec: &ModelSpec) -> Vec<f32> {
    let mut rng = Key::new(3).rng();
    let size: usize = spec.input_size().iter().product();
    (0..IMAGES * size).map(|_| rng.normal() as f32).collect()
}

fn engine(spec: &ModelSpec, tensors: &Tensors, precision: Precision) -> Engine {
    let options = Options {
        threads: 1,
        precision,
        isa: None,
    };
    Engine::new(spec, tensors, "test", options).unwrap_or_else(|e| panic!("{e}"))
}

fn logits(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    engine(spec, tensors, Precision::F32)
        .run(&images(spec), IMAGES)
        .unwrap()
        .class
}

#[test]
fn a_merged_model_is_the_plain_model_with_other_weights() {
    for base in BASES {
        merges(&self::base(base));
    }
}

fn merges(base: &Checkpoint) {
    for (name, settings) in [
        ("repadapter", &[("scale", "0.5")][..]),
        ("repadapter", &[("targets", "all-linear")]),
        ("repadapter", &[("position", "after")]),
        ("lora", &[("targets", "all-linear")]),
        ("lora", &[("parts", r#"["q","v"]"#)]),
        ("lora", &[("targets", "patch_embed.proj,qkv")]),
        ("ssf", &[]),
    ] {
        let (spec, tensors) = adapted(base, name, settings);
        let merged = merge(&spec, &tensors, MergeOptions::default()).unwrap();
        assert_eq!(merged.spec, base.spec, "{name}");
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let plain = engine(&base.spec, &base.tensors, precision);
            let found = engine(&merged.spec, &merged.tensors, precision);
            assert_eq!(found.outline(), plain.outline(), "{name} {precision}");
            assert_eq!(found.packed_bytes(), plain.packed_bytes());
            assert_eq!(found.macs(), plain.macs());
            let kept = engine(&spec, &tensors, precision);
            // What only scales is folded by the engine itself.
            assert_eq!(kept.macs() == plain.macs(), name == "ssf", "{name}");
            assert_ne!(kept.outline(), plain.outline(), "{name}");
        }
        let (before, after) = (logits(&spec, &tensors), logits(&merged.spec, &merged.tensors));
        let check = Difference::of(&after, &before, IMAGES, Check::default());
        assert!(check.is_met() && check.agreeing == IMAGES, "{name}: {check}");
        let plain = Difference::of(
            &after,
            &logits(&base.spec, &base.tensors),
            IMAGES,
            Check::default(),
        );
        assert!(!plain.is_met(), "{name} changes nothing");
    }
}

#[test]
fn a_scale_is_for_a_file_and_not_for_a_folder() {
    let place = tempfile::tempdir().unwrap();
    let (model, adapter) = (place.path().join("base"), place.path().join("adapter"));
    base(BASES[0]).save(&model, false).unwrap();
    std::fs::create_dir(&adapter).unwrap();
    let error = Merge::open(
        &model,
        &vitesse::model::LoadOptions::default(),
        &adapter,
        Some(0.5),
        &mut (),
    )
    .unwrap_err();
    assert!(error.to_string().contains("which holds its scale"), "{error}");
}

#[test]
fn network_and_engine_agree_on_every_method() {
    for base in BASES {
        agree(&self::base(base));
    }
}

fn agree(base: &Checkpoint) {
    for (name, settings) in [
        ("repadapter", &[("targets", "all-linear")][..]),
        ("repadapter", &[("position", "parallel"), ("activation", "gelu")]),
        ("lora", &[("targets", "all-linear"), ("rank_stabilized", "true")]),
        ("lora", &[("parts", r#"["k"]"#)]),
        ("lora", &[("targets", "patch_embed.proj")]),
        ("ssf", &[]),
        ("vpt", &[("tokens", "3")]),
        ("vpt", &[("tokens", "7"), ("deep", "false")]),
        ("vpt", &[("tokens", "3"), ("project", "5")]),
        ("adapter", &[("placement", "houlsby")]),
        ("adaptformer", &[("norm", "before"), ("learned_scale", "true")]),
        ("adaptformer", &[("norm", "after")]),
        ("adaptformer", &[("norm", "after"), ("form", "sequential")]),
    ] {
        if name == "vpt" && base.spec.vit().is_err() {
            continue;
        }
        let (spec, tensors) = adapted(base, name, settings);
        let device = Device::flex();
        let network = Network::new(&spec, &tensors, "test", &device).unwrap();
        let [channels, height, width] = spec.input_size();
        let data = TensorData::new(images(&spec), [IMAGES, channels, height, width]);
        let expected = network
            .forward(Tensor::from_data(data, &device), &mut Ctx::eval())
            .unwrap();
        let expected: Vec<f32> = expected.class.try_to_vec_as().unwrap();
        let check = Difference::of(&logits(&spec, &tensors), &expected, IMAGES, Check::default());
        assert!(check.is_met(), "{name} {settings:?}: {check}");
    }
}

#[test]
fn prompts_have_no_place_in_windows() {
    let base = base(BASES[1]);
    let method = Method::parse("vpt", &[("tokens", "3".to_owned())]).unwrap();
    let text = method
        .begin(&base.spec, &base.tensors, 1)
        .unwrap_err()
        .to_string();
    assert!(text.contains("windows of a Swin"), "{text}");
}

/// Zeros with which a map is filled up would become something else.
#[test]
fn an_adapter_before_a_map_that_is_filled_up_is_not_folded() {
    let mut base = base(BASES[1]);
    base.set_img_size([40, 32], None).unwrap();
    let (spec, tensors) = adapted(&base, "repadapter", &[]);
    let text = merge(&spec, &tensors, MergeOptions::default())
        .unwrap_err()
        .to_string();
    assert!(text.contains("filled up with zeros"), "{text}");
    // What scales goes into the norm before the zeros come; what updates a projection makes nothing of zeros.
    for name in ["ssf", "lora"] {
        let (spec, tensors) = adapted(&base, name, &[]);
        let merged = merge(&spec, &tensors, MergeOptions::default()).unwrap();
        let (before, after) = (logits(&spec, &tensors), logits(&merged.spec, &merged.tensors));
        let check = Difference::of(&after, &before, IMAGES, Check::default());
        assert!(check.is_met(), "{name}: {check}");
    }
}
