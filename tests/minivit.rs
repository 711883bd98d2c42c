//! Models whose layers share matrices, in network and engine: the same answers, and each matrix once.
#![allow(clippy::unwrap_used, clippy::panic)]

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::engine::{Engine, Options, Precision};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::ops::{HeadMixing, LocalConvolution, OpKind, OpSpec, ScaleShift};
use vitesse::model::spec::{Groups, NetworkSpec, NormsOf, Pool, PrefixToken, SwinSpec, TensorSpec, VitSpec};
use vitesse::model::{ModelSpec, Site, Tensors, zoo};
use vitesse::rng::Key;

const IMAGES: usize = 3;

fn model(network: NetworkSpec, ops: impl Fn(&ModelSpec) -> Vec<OpSpec>) -> ModelSpec {
    let plain = ModelSpec {
        architecture: "a MiniViT".into(),
        num_classes: 5,
        network,
        ops: Vec::new(),
    };
    let shared = plain.share(&Groups::Of(2), NormsOf::Layer).unwrap();
    let ops = ops(&shared);
    ModelSpec { ops, ..shared }
}

fn vit(edit: impl Fn(&mut VitSpec)) -> NetworkSpec {
    let mut vit = VitSpec::plain(
        40,
        4,
        36,
        4,
        3,
        vec![PrefixToken::Class, PrefixToken::Distillation],
    );
    edit(&mut vit);
    NetworkSpec::Vit(vit)
}

fn swin(img_size: usize, window: usize, mask_unshifted: bool) -> NetworkSpec {
    NetworkSpec::Swin(SwinSpec {
        mask_unshifted,
        ..SwinSpec::plain(img_size, 4, window, 12, &[2, 2], &[2, 3])
    })
}

/// The same network, in which these layers have a perceptron alone.
fn without_attention(mut network: NetworkSpec, layers: std::ops::Range<usize>) -> NetworkSpec {
    if let NetworkSpec::Swin(swin) = &mut network {
        swin.cores[layers].iter_mut().for_each(|core| core.attn = None);
    }
    network
}

fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

/// Weights so large that nothing hides.
fn random(spec: &ModelSpec) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(7).with(&tensor.name).rng();
        let gain = (tensor.name.contains("norm") && tensor.name.ends_with("weight"))
            || tensor.name.ends_with("scale");
        let mean = if gain { 1.0 } else { 0.0 };
        let values = (0..tensor.numel()).map(|_| (mean + 0.3 * rng.normal()) as f32);
        out.insert_f32(&tensor.name, &tensor.shape, values.collect())
            .unwrap();
    }
    out
}

fn images(spec: &ModelSpec) -> Vec<f32> {
    let mut rng = Key::new(3).rng();
    let size: usize = spec.input_size().iter().product();
    (0..IMAGES * size).map(|_| rng.normal() as f32).collect()
}

fn from_network(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    let device = Device::flex();
    let network = Network::new(spec, tensors, "test", &device).unwrap_or_else(|e| panic!("{e}"));
    let [channels, height, width] = spec.input_size();
    let data = TensorData::new(images(spec), [IMAGES, channels, height, width]);
    let logits = network
        .forward(Tensor::from_data(data, &device), &mut Ctx::eval())
        .unwrap();
    logits.class.try_to_vec_as().unwrap()
}

fn engine(spec: &ModelSpec, tensors: &Tensors, threads: usize) -> Engine {
    let options = Options {
        threads,
        precision: Precision::F32,
        isa: None,
    };
    Engine::new(spec, tensors, "test", options).unwrap_or_else(|e| panic!("{}: {e}", spec.architecture))
}

#[test]
fn network_and_engine_agree() {
    let published = zoo::transformations;
    let mixed = |site| move |layer| at(site, layer, OpKind::HeadMixing(HeadMixing { bias: true }));
    let local = |layer| {
        at(
            Site::Mid,
            layer,
            OpKind::LocalConvolution(LocalConvolution::published()),
        )
    };
    let scale = |site| at(site, 1, OpKind::ScaleShift(ScaleShift { shift: true }));
    let depth = |spec: &ModelSpec| 0..spec.sites().depth();
    for (what, spec) in [
        ("class and distillation tokens", model(vit(|_| {}), published)),
        (
            "no class token",
            model(
                vit(|vit| {
                    vit.prefix.clear();
                    vit.pool = Pool::Avg;
                }),
                published,
            ),
        ),
        (
            "mixing before the softmax alone",
            model(vit(|_| {}), |spec| {
                depth(spec).map(mixed(Site::AttnLogits)).collect()
            }),
        ),
        (
            "mixing after the softmax alone, and what scales and shifts heads behind it",
            model(vit(|_| {}), |spec| {
                let mixed = depth(spec).map(mixed(Site::AttnProbs));
                mixed
                    .chain([scale(Site::AttnHeads), scale(Site::AttnQkv)])
                    .collect()
            }),
        ),
        (
            "local convolutions between the sub-layers of a ViT, up to the last",
            model(vit(|_| {}), |spec| {
                let local = depth(spec).map(local);
                [scale(Site::Mid)].into_iter().chain(local).collect()
            }),
        ),
        ("windows that fit", model(swin(48, 3, true), published)),
        (
            "masks of shifted layers alone",
            model(swin(48, 3, false), published),
        ),
        ("maps that are filled up", model(swin(40, 4, true), published)),
        ("one window", model(swin(24, 7, true), published)),
        (
            "a stage without attention, whose convolutions see the map all the same",
            model(without_attention(swin(48, 3, true), 2..4), |spec| {
                depth(spec).map(local).collect()
            }),
        ),
    ] {
        let tensors = random(&spec);
        let expected = from_network(&spec, &tensors);
        let size = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
        for threads in [1, 2, 5] {
            let engine = engine(&spec, &tensors, threads);
            let found = engine.run(&images(&spec), IMAGES).unwrap().class;
            let pairs = found.iter().zip(&expected);
            let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                largest < 1e-4 * size,
                "{what}, {threads} threads: {largest} of {size}"
            );
        }
    }
}

#[test]
fn masks_in_layers_that_are_not_shifted_change_the_answers() {
    let of = |masked| {
        let spec = model(swin(48, 3, masked), zoo::transformations);
        from_network(&spec, &random(&spec))
    };
    assert_ne!(of(true), of(false));
}

#[test]
fn what_layers_share_is_packed_once() {
    let shared = zoo::get("mini_deit_tiny_patch16_224").unwrap().spec;
    let plain = zoo::get("deit_tiny_patch16_224").unwrap().spec;
    let bytes = |spec: &ModelSpec| engine(spec, &spec.init(1).unwrap(), 1).packed_bytes() as f64;
    let ratio = bytes(&shared) / bytes(&plain);
    assert!(ratio < 0.55, "{ratio}");
}

#[test]
fn equal_weights_shared_are_the_unshared_model() {
    let plain = ModelSpec {
        architecture: "deit_micro_patch4_32".into(),
        num_classes: 5,
        network: vit(|_| {}),
        ops: Vec::new(),
    };
    let shared = plain.share(&Groups::Of(2), NormsOf::Layer).unwrap();
    let tensors = random(&shared);
    let mut copied = tensors.clone();
    let specs: Vec<TensorSpec> = plain.tensors().unwrap();
    for spec in specs.into_iter().filter(|spec| !spec.name.contains("norm")) {
        let Some((layer, rest)) = spec
            .name
            .strip_prefix("blocks.")
            .and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let core = layer.parse::<usize>().unwrap() / 2;
        let matrix = tensors.get(&format!("blocks.{core}.{rest}")).unwrap();
        copied.insert(&spec.name, matrix.clone());
    }
    assert_eq!(from_network(&plain, &copied), from_network(&shared, &tensors));
    let of =
        |spec: &ModelSpec, tensors: &Tensors| engine(spec, tensors, 2).run(&images(spec), IMAGES).unwrap();
    assert_eq!(of(&plain, &copied), of(&shared, &tensors));
}
