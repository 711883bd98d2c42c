//! Feature maps: engine and network give the same, and the verb writes them batch by batch, whole or not at all.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::fs;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use cli_support::Place;
use vitesse::data::{DecodeOptions, decode_file};
use vitesse::engine::{FeatureExtractor, Options, Precision};
use vitesse::measure::features::{Features, Images};
use vitesse::measure::{Error, raw};
use vitesse::model::network::Network;
use vitesse::model::spec::NetworkSpec;
use vitesse::model::storage::safetensors::{self, Metadata};
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec, Tensors, zoo};
use vitesse::rng::Key;
use vitesse::train;

/// Weights that are not what fresh ones are.
fn random(spec: &ModelSpec) -> Tensors {
    let mut tensors = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(5).with(&tensor.name).rng();
        let norm = tensor.shape.len() == 1 && tensor.name.ends_with("weight");
        let mean = if norm { 1.0 } else { 0.0 };
        let values = (0..tensor.numel()).map(|_| mean + 0.1 * rng.normal() as f32);
        tensors
            .insert_f32(&tensor.name, &tensor.shape, values.collect())
            .unwrap();
    }
    tensors
}

/// How far `found` is from `expected`, in shares of the largest value.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let each = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    each.fold(
        0.0,
        |most: f32, x| if most.is_nan() || x <= most { most } else { x },
    ) / largest
}

/// Maps that windows fit and that are filled up; tokens before the patches, a norm before the blocks.
#[test]
fn engine_and_network_give_the_same_maps() {
    for (name, size, window, layers) in [
        ("swin_nano_patch2_window4_32", [32, 32], [4, 4], &[][..]),
        ("swin_nano_patch2_window4_32", [32, 48], [3, 5], &[]),
        ("deit_micro_distilled_patch4_32", [32, 32], [0, 0], &[1, 4]),
        ("vit_nano_patch8_clip_quickgelu_32", [32, 32], [0, 0], &[]),
    ] {
        let mut spec = zoo::get(name).unwrap().spec;
        if let NetworkSpec::Swin(swin) = &mut spec.network {
            (swin.img_size, swin.window_size) = (size, window);
        }
        let tensors = random(&spec);
        let device = Device::flex();
        let network = Network::new(&spec, &tensors, name, &device).unwrap();
        let mut rng = Key::new(1).rng();
        let images: Vec<f32> = (0..2 * 3 * size[0] * size[1])
            .map(|_| rng.normal() as f32)
            .collect();
        let maps = spec.feature_maps(layers).unwrap();
        let data = TensorData::new(images.clone(), [2, 3, size[0], size[1]]);
        let expected = network
            .feature_maps(Tensor::from_data(data, &device), &maps)
            .unwrap();
        for (precision, most) in [
            (Precision::F32, 2e-5),
            (Precision::Bf16, 0.05),
            (Precision::Int8, 0.2),
        ] {
            let options = Options {
                threads: 3,
                precision,
                isa: None,
            };
            let extractor = FeatureExtractor::new(&spec, &tensors, name, layers, options).unwrap();
            assert_eq!(extractor.maps(), maps);
            let found = extractor.run(&images, 2).unwrap();
            assert_eq!(found.len(), maps.len());
            for ((map, found), expected) in maps.iter().zip(&found).zip(&expected) {
                let [height, width] = map.size;
                assert_eq!(expected.dims(), [2, map.channels, height, width]);
                let expected = expected.to_data().try_to_vec::<f32>().unwrap();
                let error = distance(found, &expected);
                assert!(error <= most, "{name}, {}, {precision}: {error:e}", map.name);
            }
        }
    }
}

fn read(place: &Place, name: &str) -> (Tensors, Metadata) {
    safetensors::read(&place.path(name)).unwrap()
}

fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
    tensors.get(name).unwrap().to_f32().into_owned()
}

#[test]
fn maps_of_pictures_are_those_of_their_pixels() {
    let place = Place::new();
    let model = place.model("m", "swin_nano_patch2_window4_32", 5);
    place.run("data draw shapes -o d --count 9").ended(0);
    let found = place
        .run("features --model m -b 4 --json -o maps.safetensors d")
        .ended(0)
        .json();
    assert_eq!(found["images"], 9);
    let strides: Vec<_> = (0..3)
        .map(|i| found["maps"][i]["stride"].as_u64().unwrap())
        .collect();
    assert_eq!(strides, [2, 4, 8]);
    let (maps, metadata) = read(&place, "maps.safetensors");
    assert_eq!(maps.names().collect::<Vec<_>>(), ["stage1", "stage2", "stage3"]);
    assert_eq!(maps.get("stage2").unwrap().shape(), [9, 64, 8, 8]);
    assert_eq!(metadata["architecture"], "swin_nano_patch2_window4_32");
    let said: serde_json::Value = serde_json::from_str(&metadata["maps"]).unwrap();
    assert_eq!(
        (&said[2]["name"], &said[2]["module"]),
        (&"stage3".into(), &"layers.2".into())
    );

    // The same by way of a tensor, by the engine and by the network, in other batches.
    let files: Vec<String> = serde_json::from_str(&metadata["files"]).unwrap();
    let prepare = model.preprocess().unwrap();
    let pixels = files.iter().flat_map(|file| {
        let picture = decode_file(&place.path(file), &Default::default()).unwrap();
        prepare.run(&picture).unwrap()
    });
    let mut tensors = Tensors::new();
    tensors
        .insert_f32("pixel_values", &[9, 3, 32, 32], pixels.collect())
        .unwrap();
    safetensors::write(&place.path("x.safetensors"), &tensors, &Metadata::new()).unwrap();
    for engine in ["vitesse", "burn"] {
        place
            .run(&format!(
                "features --model m --input x.safetensors --engine {engine} -b 9 --force -o again.safetensors"
            ))
            .ended(0);
        let (again, metadata) = read(&place, "again.safetensors");
        assert!(!metadata.contains_key("files"));
        for name in ["stage1", "stage2", "stage3"] {
            let error = distance(&values(&again, name), &values(&maps, name));
            assert!(error < 2e-5, "{engine}, {name}: {error:e}");
        }
    }
}

#[test]
fn layers_are_chosen_and_networks_without_tokens_have_stages_too() {
    let place = Place::new();
    place.model("m", "deit_micro_distilled_patch4_32", 5);
    fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli_support/ok.png"),
        place.path("a.png"),
    )
    .unwrap();
    let text = place
        .run("features --model m --layers 6,2 -o maps.safetensors a.png")
        .ended(0)
        .stdout;
    for part in ["layer2", "layer6", "[1, 96, 8, 8]", "blocks.5", "1 image"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let (maps, _) = read(&place, "maps.safetensors");
    assert_eq!(maps.names().collect::<Vec<_>>(), ["layer2", "layer6"]);
    // Without layers it is the last.
    place.run("features --model m -o last.safetensors a.png").ended(0);
    let (last, _) = read(&place, "last.safetensors");
    assert_eq!(values(&last, "layer6"), values(&maps, "layer6"));

    let ran = place.run("features --model regnety_002 --img-size 64 -o stages.safetensors a.png");
    ran.ended(0).says(&["so the network computes it"]);
    let (stages, _) = read(&place, "stages.safetensors");
    let shapes: Vec<&[usize]> = stages.iter().map(|(_, tensor)| tensor.shape()).collect();
    assert_eq!(
        shapes,
        [[1, 24, 16, 16], [1, 56, 8, 8], [1, 152, 4, 4], [1, 368, 2, 2]].map(|shape: [usize; 4]| shape)
    );
}

#[test]
fn images_of_another_size_and_an_interruption_leave_nothing() {
    let place = Place::new();
    place.model("m", "swin_nano_patch2_window4_32", 5);
    fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli_support/ok.png"),
        place.path("a.png"),
    )
    .unwrap();
    let sized = |size| {
        let options = LoadOptions {
            img_size: Some(size),
            ..LoadOptions::default()
        };
        Checkpoint::load(place.path("m"), &options).unwrap()
    };
    let (wide, high) = (sized([32, 48]), sized([48, 32]));
    let mut tensors = Tensors::new();
    tensors
        .insert_f32("pixel_values", &[1, 3, 48, 32], vec![0.0; 3 * 48 * 32])
        .unwrap();
    safetensors::write(&place.path("x.safetensors"), &tensors, &Metadata::new()).unwrap();
    let before = place.listing();

    let features = Features::new(&wide, &[], None, Options::default(), &mut ()).unwrap();
    let (files, decode) = ([place.path("a.png")], DecodeOptions::default());
    let write = |images: Images<'_>, stop: bool| {
        let stop = AtomicBool::new(stop);
        let error = features.write(images, 1, &place.path("y"), &stop, &mut ());
        assert_eq!(place.listing(), before);
        error.unwrap_err()
    };
    let of = |preprocess| Images::Pictures {
        files: &files,
        decode: &decode,
        preprocess,
    };
    let of_high = high.preprocess().unwrap();
    let tensor = raw::Images::read(&place.path("x.safetensors"), &high.spec).unwrap();
    for images in [of(&of_high), Images::Tensor(&tensor)] {
        let error = write(images, false);
        assert!(
            matches!(
                error,
                Error::Train(train::Error::InputSize {
                    expected: [3, 32, 48],
                    found: [3, 48, 32],
                    ..
                })
            ),
            "{error}"
        );
    }
    let error = write(of(&wide.preprocess().unwrap()), true);
    assert!(matches!(error, Error::Interrupted), "{error}");
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_written() {
    let place = Place::new();
    place.model("m", "deit_micro_patch4_32", 5);
    place.model("s", "swin_nano_patch2_window4_32", 5);
    place.write("mine.safetensors", "mine");
    place.write("bad.png", "no picture");
    let ok = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli_support/ok.png")).unwrap();
    place.write("ok.png", ok);
    let before = place.listing();
    for (args, code, said) in [
        ("--model m -o mine.safetensors ok.png", 1, "exists already"),
        (
            "--model m --layers 7 -o y ok.png",
            1,
            "layers 1 to 6, and 7 is none",
        ),
        ("--model m --layers 0 -o y ok.png", 2, "a whole number from 1"),
        ("--model s --layers 1 -o y ok.png", 1, "each of its 3 stages"),
        // What came before it is dropped.
        (
            "--model m -b 1 --force -o mine.safetensors ok.png bad.png",
            1,
            "bad.png",
        ),
        ("--model m -o y", 2, "<FILE>"),
        (
            "--model m --input x --crop-pct 0.9 -o y",
            2,
            "cannot be used with",
        ),
        ("--model m --input x ok.png -o y", 2, "cannot be used with"),
        (
            "--model m --precision bf16 --engine burn -o y ok.png",
            1,
            "f32 only",
        ),
    ] {
        place.run(&format!("features {args}")).ended(code).says(&[said]);
        assert_eq!(place.listing(), before, "{args}");
    }
    assert_eq!(fs::read(place.path("mine.safetensors")).unwrap(), b"mine");
}
