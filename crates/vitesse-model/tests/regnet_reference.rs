//! The RegNetY network against timm's, on a tiny model of random tensors (`tools/regnet_fixture.py`).

#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use vitesse_model::network::{Ctx, DropPath, Network, param_id};
use vitesse_model::spec::{RegNetSpec, RegNetStage, Role};
use vitesse_model::storage::safetensors;
use vitesse_model::{ModelSpec, NetworkSpec, Tensors};
use vitesse_rng::Key;

const TOLERANCE: f32 = 1e-4;

fn spec() -> ModelSpec {
    let stage = |depth, width| RegNetStage {
        depth,
        width,
        group_width: 8,
        stride: 2,
    };
    let regnet = RegNetSpec {
        img_size: [36, 28],
        in_chans: 3,
        stem_width: 8,
        stem_stride: 2,
        stages: vec![stage(1, 8), stage(2, 16), stage(1, 24), stage(1, 32)],
        se_ratio: 0.5,
        bn_eps: 1e-5,
    };
    ModelSpec {
        architecture: "regnety_tiny".into(),
        num_classes: 7,
        network: NetworkSpec::RegNet(regnet),
        ops: Vec::new(),
    }
}

/// The tensors of the fixture whose names start with `prefix`, without it.
fn fixture(prefix: &str) -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/regnet_tiny.safetensors");
    let (tensors, _) = safetensors::read(&path).unwrap();
    let stripped = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)));
    stripped.collect()
}

fn to_device<const D: usize>(tensors: &Tensors, name: &str, device: &Device) -> Tensor<D> {
    let tensor = tensors.get(name).unwrap();
    Tensor::from_data(
        TensorData::new(tensor.to_f32().into_owned(), tensor.shape().to_vec()),
        device,
    )
}

fn assert_close(name: &str, found: &TensorData, wanted: &[f32]) {
    let found = found.try_to_vec::<f32>().unwrap();
    assert_eq!(found.len(), wanted.len(), "{name}");
    let largest = wanted.iter().fold(1.0f32, |most, value| most.max(value.abs()));
    let difference = found
        .iter()
        .zip(wanted)
        .fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(
        difference <= TOLERANCE * largest,
        "{name}: differs by {difference}, the largest value is {largest}"
    );
}

/// Finds a parameter's gradient by the parameter's name.
struct GradientOf<'a> {
    id: ParamId,
    gradients: &'a Gradients,
    found: Option<TensorData>,
}

impl ModuleVisitor for GradientOf<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.id == self.id {
            self.found = param.val().grad(self.gradients).map(Tensor::into_data);
        }
    }
}

/// Runs forward and backward and compares logits and gradients; returns the new running statistics.
fn compare(ctx: &mut Ctx, wanted: &Tensors) {
    let device = Device::flex().autodiff();
    let network = Network::new(&spec(), &fixture("w."), "regnet_tiny", &device).unwrap();
    let input = fixture("in.");
    let logits = network
        .forward(to_device(&input, "image", &device), ctx)
        .unwrap()
        .class;
    assert_close(
        "logits",
        &logits.to_data(),
        &wanted.get("logits").unwrap().to_f32(),
    );
    let gradients = (logits * to_device(&input, "weights", &device)).sum().backward();
    let mut compared = 0;
    for (name, tensor) in wanted.iter() {
        let Some(name) = name.strip_prefix("grad.") else {
            continue;
        };
        let mut visitor = GradientOf {
            id: param_id(name),
            gradients: &gradients,
            found: None,
        };
        network.visit(&mut visitor);
        let found = visitor.found.unwrap_or_else(|| panic!("no gradient for {name}"));
        assert_close(name, &found, &tensor.to_f32());
        compared += 1;
    }
    assert_eq!(compared, 37);
}

fn training() -> Ctx {
    Ctx::train(DropPath {
        rate: 0.0,
        key: Key::new(0),
        first_sample: 0,
    })
}

#[test]
fn evaluation_agrees_with_the_reference() {
    let mut ctx = Ctx::eval();
    compare(&mut ctx, &fixture("eval."));
    assert!(ctx.buffers.is_empty());
}

#[test]
fn training_agrees_with_the_reference_and_returns_the_running_statistics() {
    let mut ctx = training();
    compare(&mut ctx, &fixture("train."));
    let wanted = fixture("train.buffer.");
    let buffers = spec()
        .tensors()
        .unwrap()
        .into_iter()
        .filter(|tensor| tensor.role == Role::Buffer);
    let mut names: Vec<String> = buffers.map(|tensor| tensor.name).collect();
    let mut found: Vec<String> = ctx.buffers.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    found.sort();
    assert_eq!(names, found);
    for (name, value) in ctx.buffers {
        assert_close(&name, &value.into_data(), &wanted.get(&name).unwrap().to_f32());
    }
}

#[test]
fn without_classes_the_network_returns_features() {
    let device = Device::flex();
    let spec = ModelSpec {
        num_classes: 0,
        ..spec()
    };
    let mut weights = fixture("w.");
    let (head, bias) = (
        weights.remove("head.fc.weight").unwrap(),
        weights.remove("head.fc.bias").unwrap(),
    );
    let network = Network::new(&spec, &weights, "regnet_tiny", &device).unwrap();
    let features = network
        .forward(to_device(&fixture("in."), "image", &device), &mut Ctx::eval())
        .unwrap()
        .class;
    assert_eq!(features.dims(), [3, spec.num_features()]);
    let mut tensors = Tensors::new();
    tensors.insert("weight", head);
    tensors.insert("bias", bias.reshape(&[1, 7]).unwrap());
    let logits = features.matmul(to_device::<2>(&tensors, "weight", &device).transpose());
    let logits = logits + to_device(&tensors, "bias", &device);
    assert_close(
        "logits",
        &logits.into_data(),
        &fixture("eval.").get("logits").unwrap().to_f32(),
    );
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let network = Network::new(&spec(), &fixture("w."), "regnet_tiny", &device).unwrap();
    let images = to_device::<4>(&fixture("in."), "image", &device);
    let class = |images| network.forward(images, &mut Ctx::eval()).unwrap().class;
    let alone = class(images.clone().narrow(0, 1, 1))
        .into_data()
        .try_to_vec::<f32>()
        .unwrap();
    assert_close(
        "logits of the second image",
        &class(images).narrow(0, 1, 1).into_data(),
        &alone,
    );
}

#[test]
fn a_map_of_one_pixel_leaves_no_nan_in_the_running_variance() {
    let mut spec = spec();
    if let NetworkSpec::RegNet(regnet) = &mut spec.network {
        regnet.img_size = [16, 16];
    }
    let device = Device::flex();
    let network = Network::new(&spec, &fixture("w."), "regnet_tiny", &device).unwrap();
    let mut ctx = training();
    network
        .forward(Tensor::ones([1, 3, 16, 16], &device), &mut ctx)
        .unwrap();
    for (name, value) in ctx.buffers {
        let values = value.into_data().try_to_vec::<f32>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn drop_path_drops_blocks_of_single_images() {
    let device = Device::flex();
    let network = Network::new(&spec(), &fixture("w."), "regnet_tiny", &device).unwrap();
    let image = to_device::<4>(&fixture("in."), "image", &device);
    let run = |rate| {
        let mut ctx = Ctx::train(DropPath {
            rate,
            key: Key::new(4),
            first_sample: 0,
        });
        network
            .forward(image.clone(), &mut ctx)
            .unwrap()
            .class
            .into_data()
            .try_to_vec::<f32>()
            .unwrap()
    };
    assert_eq!(run(0.5), run(0.5));
    assert_ne!(run(0.5), run(0.0));
}

#[test]
fn a_network_gives_its_tensors_back() {
    let weights = fixture("w.");
    let network = Network::new(&spec(), &weights, "regnet_tiny", &Device::flex()).unwrap();
    let back = network.tensors().unwrap();
    assert_eq!(back, weights);
}
