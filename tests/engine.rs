//! The engine against the network: the same logits from every vision transformer of the zoo.
#![allow(clippy::unwrap_used, clippy::panic)]

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::engine::{Engine, Isa, Options, Precision};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::spec::NetworkSpec;
use vitesse::model::{ModelSpec, Tensors, zoo};
use vitesse::rng::Key;

/// Larger models are as the smaller ones, but take minutes.
const MOST_MACS: u64 = 20_000_000_000;
/// Of models whose layers share matrices, whose attention the network composes.
const MOST_MACS_SHARED: u64 = 5_000_000_000;
/// The greatest error of a logit, in shares of the logits' standard deviation.
fn tolerance(precision: Precision) -> f32 {
    match precision {
        Precision::F32 => 2e-5,
        Precision::Bf16 => 0.05,
        Precision::Int8 => 0.2,
    }
}

/// The standard deviation.
fn spread(logits: &[f32]) -> f32 {
    let count = logits.len() as f32;
    let mean = logits.iter().sum::<f32>() / count;
    let squares = logits.iter().map(|x| (x - mean) * (x - mean));
    (squares.sum::<f32>() / count).sqrt()
}

/// Smaller models are run with every instruction set, the scalar one too.
const FEW_MACS: u64 = 1_500_000_000;

/// A spec, weights that are not what fresh ones are (biases would be zero, gains one), and images.
fn drawn(name: &str) -> Option<(ModelSpec, Tensors, Vec<f32>)> {
    let spec = zoo::get(name).unwrap().spec;
    if !spec.is_transformer() {
        return None;
    }
    let tensors = random(&spec, name);
    let mut rng = Key::new(5).with(name).with("images").rng();
    let size: usize = spec.input_size().iter().product();
    let images = (0..2 * size)
        .map(|_| (4.0 * rng.uniform() - 2.0) as f32)
        .collect();
    Some((spec, tensors, images))
}

/// Weights that are not what fresh ones are.
fn random(spec: &ModelSpec, name: &str) -> Tensors {
    let key = Key::new(5).with(name);
    let mut tensors = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = key.with(&tensor.name).rng();
        let norm = tensor.name.contains("norm") && tensor.name.ends_with("weight");
        let (mean, spread) = if norm { (1.0, 0.3) } else { (0.0, 0.06) };
        let values = (0..tensor.numel())
            .map(|_| mean + spread * (2.0 * rng.uniform() - 1.0) as f32)
            .collect();
        tensors.insert_f32(tensor.name, &tensor.shape, values).unwrap();
    }
    tensors
}

fn from_network(spec: &ModelSpec, tensors: &Tensors, images: &[f32]) -> [Vec<f32>; 2] {
    let device = Device::flex();
    let network = Network::new(spec, tensors, "zoo", &device).unwrap();
    let [channels, height, width] = spec.input_size();
    let images = TensorData::new(images.to_vec(), [2, channels, height, width]);
    let logits = network
        .forward(Tensor::from_data(images, &device), &mut Ctx::eval())
        .unwrap();
    let values = |x: Tensor<2>| x.into_data().try_to_vec::<f32>().unwrap();
    [
        values(logits.class),
        logits.distillation.map_or(Vec::new(), values),
    ]
}

#[test]
fn every_transformer_of_the_zoo_is_computed_as_by_the_network() {
    let mut skipped = Vec::new();
    for name in zoo::names() {
        let macs = zoo::get(name).unwrap().spec.costs().unwrap().macs();
        let most = if name.starts_with("mini_") {
            MOST_MACS_SHARED
        } else {
            MOST_MACS
        };
        if macs > most {
            skipped.push(name);
            continue;
        }
        let Some((spec, tensors, images)) = drawn(name) else {
            skipped.push(name);
            continue;
        };
        let expected = from_network(&spec, &tensors, &images);
        let isas = Isa::ALL.into_iter().filter(|isa| isa.is_supported());
        for isa in isas.filter(|&isa| macs <= FEW_MACS || isa == Isa::detect()) {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                if isa == Isa::Scalar && precision != Precision::F32 {
                    continue;
                }
                let options = Options {
                    threads: 2,
                    precision,
                    isa: Some(isa),
                };
                let engine = Engine::new(&spec, &tensors, "zoo", options).unwrap();
                let output = engine.run(&images, 2).unwrap();
                for (found, expected) in [output.class, output.distillation].iter().zip(&expected) {
                    assert_eq!(found.len(), expected.len());
                    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
                    // Not `f32::max`, which overlooks NaN.
                    let worst = differences.fold(
                        0.0,
                        |most: f32, x| if most.is_nan() || x <= most { most } else { x },
                    );
                    let spread = spread(expected);
                    assert!(
                        expected.is_empty() || worst <= tolerance(precision) * spread,
                        "{name}, {isa}, {precision}: {worst:e} with a spread of {spread}"
                    );
                }
            }
        }
    }
    println!(
        "skipped, no transformer or too large for a test: {}",
        skipped.join(", ")
    );
}

/// Maps that windows do not fit, that are narrower than a window, and not square; windows that threads have parts of.
#[test]
fn windows_that_do_not_fit_are_filled_up_as_by_the_network() {
    for (size, window) in [
        ([32, 32], [3, 3]),
        ([24, 40], [4, 4]),
        ([16, 48], [5, 7]),
        ([40, 24], [2, 8]),
    ] {
        let (mut spec, _, images) = drawn("swin_nano_patch2_window4_32").unwrap();
        if let NetworkSpec::Swin(swin) = &mut spec.network {
            (swin.img_size, swin.window_size) = (size, window);
        }
        let tensors = random(&spec, "windows");
        let images = &images[..2 * 3 * size[0] * size[1]];
        let [expected, _] = from_network(&spec, &tensors, images);
        for threads in [1, 2, 3, 7] {
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                let options = Options {
                    threads,
                    isa: Some(isa),
                    ..Options::default()
                };
                let engine = Engine::new(&spec, &tensors, "windows", options).unwrap();
                let found = engine.run(images, 2).unwrap().class;
                let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let worst = differences.fold(
                    0.0,
                    |most: f32, x| if most.is_nan() || x <= most { most } else { x },
                );
                let most = tolerance(Precision::F32) * spread(&expected);
                assert!(
                    worst <= most,
                    "{size:?}, {window:?}, {isa}, {threads} threads: {worst:e} of {most:e}"
                );
            }
        }
    }
}
