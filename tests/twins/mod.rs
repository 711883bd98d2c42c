//! Models whose blocks differ in everything, selections of whatever they have, and what network and engine say of both.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::compress::structure::{Kind, Selection, Sliced, groups, slice};
use vitesse::engine::{Engine, Options};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::spec::BlockSpec;
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec, Tensors};
use vitesse::rng::{Key, Rng};

pub(crate) const IMAGES: usize = 2;

/// Some of `0..n`, perhaps none.
pub(crate) fn some(n: usize, rng: &mut Rng) -> Vec<usize> {
    let share = [0.0, 0.3, 0.6, 0.9, 1.0][rng.below(5)];
    (0..n).filter(|_| rng.bernoulli(share)).collect()
}

/// Makes of a block with three heads, in a stream of width `dim`, such a one as pruning may leave.
pub(crate) fn vary(core: &mut BlockSpec, dim: usize, rng: &mut Rng) {
    let mut width = |most| 1 + rng.below(most);
    if let Some(attn) = &mut core.attn {
        attn.qk_dims = (0..3).map(|_| width(6)).collect();
        attn.v_dims = (0..3).map(|_| width(6)).collect();
    }
    if let Some(mlp) = &mut core.mlp {
        mlp.hidden = width(20);
    }
    let written = |idx: Vec<usize>| Some(idx).filter(|idx| !idx.is_empty() && idx.len() < dim);
    if let Some(attn) = core.attn.as_mut().filter(|_| rng.bernoulli(0.3)) {
        attn.out_idx = written(some(dim, rng));
    }
    if let Some(mlp) = core.mlp.as_mut().filter(|_| rng.bernoulli(0.3)) {
        mlp.out_idx = written(some(dim, rng));
    }
    match rng.below(8) {
        0 => core.attn = None,
        1 => core.mlp = None,
        _ => {}
    }
}

/// Random units of every kind that masks can show.
pub(crate) fn selection(spec: &ModelSpec, seed: u64) -> Selection {
    let mut rng = Key::new(seed).with("selection").rng();
    let mut out = Selection::default();
    for group in groups(spec).unwrap() {
        if group.id.kind != Kind::Embed && rng.bernoulli(0.5) {
            out.keep(group.id.kind, group.id.core, some(group.units, &mut rng));
        }
    }
    out
}

pub(crate) fn images(spec: &ModelSpec) -> Vec<f32> {
    let mut rng = Key::new(3).rng();
    let size: usize = spec.input_size().iter().product();
    (0..IMAGES * size).map(|_| rng.normal() as f32).collect()
}

pub(crate) fn by_engine(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    by_engine_with(spec, tensors, options)
}

pub(crate) fn by_engine_with(spec: &ModelSpec, tensors: &Tensors, options: Options) -> Vec<f32> {
    let engine = Engine::new(spec, tensors, "test", options).unwrap_or_else(|e| panic!("{e}"));
    let found = engine.run(&images(spec), IMAGES).unwrap();
    [found.class, found.distillation].concat()
}

pub(crate) fn by_network(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    let device = Device::flex();
    let network = Network::new(spec, tensors, "test", &device).unwrap_or_else(|e| panic!("{e}"));
    let [channels, height, width] = spec.input_size();
    let data = TensorData::new(images(spec), [IMAGES, channels, height, width]);
    let found = network
        .forward(Tensor::from_data(data, &device), &mut Ctx::eval())
        .unwrap();
    let mut logits: Vec<f32> = found.class.try_to_vec_as().unwrap();
    logits.extend(
        found
            .distillation
            .iter()
            .flat_map(|x| x.try_to_vec_as::<f32>().unwrap()),
    );
    logits
}

#[track_caller]
pub(crate) fn alike(what: &str, found: &[f32], expected: &[f32]) {
    alike_to(1e-4, what, found, expected);
}

#[track_caller]
pub(crate) fn alike_to(tolerance: f32, what: &str, found: &[f32], expected: &[f32]) {
    let largest = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        found.len() == expected.len() && largest <= tolerance && found.iter().all(|x| x.is_finite()),
        "{what}: largest difference {largest:e}"
    );
}

/// The largest logit.
pub(crate) fn largest(logits: &[f32]) -> f32 {
    logits
        .iter()
        .fold(1f32, |largest, logit| largest.max(logit.abs()))
}

pub(crate) fn sliced(spec: &ModelSpec, tensors: &Tensors, selection: &Selection) -> Sliced {
    let sliced = slice(spec, tensors, selection).unwrap_or_else(|e| panic!("{e}"));
    sliced
        .spec
        .check(&sliced.tensors, "sliced")
        .unwrap_or_else(|e| panic!("{e}"));
    sliced
}

/// Stores a sliced model in `folder`: what is read is the same, and answers the same, by engine and network.
#[track_caller]
pub(crate) fn stored_and_read(folder: &Path, sliced: &Sliced) {
    let mut checkpoint = Checkpoint::fresh(&sliced.spec.architecture, Some(5), None, 0).unwrap();
    (checkpoint.spec, checkpoint.tensors) = (sliced.spec.clone(), sliced.tensors.clone());
    checkpoint.save(folder, false).unwrap();
    let loaded = Checkpoint::load(folder, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((&loaded.spec, &loaded.tensors), (&sliced.spec, &sliced.tensors));
    for answers in [by_engine, by_network] {
        assert_eq!(
            answers(&loaded.spec, &loaded.tensors),
            answers(&sliced.spec, &sliced.tensors)
        );
    }
}
