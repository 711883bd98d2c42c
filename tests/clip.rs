//! A CLIP's image encoder walks through the whole program: it is trained, adapted by every method, merged, pruned, and asked
//! without training what it sees.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use burn::tensor::{Device, Tensor, TensorData};
use cli_support::Place;
use vitesse::adapt::Method;
use vitesse::engine::{Engine, Options};
use vitesse::measure::Labels;
use vitesse::model::network::{Ctx, Network};
use vitesse::model::spec::{Activation, NetworkSpec};
use vitesse::model::storage::safetensors::{self, Metadata};
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec, Tensors};
use vitesse::{Classifier, ClassifierOptions, TextFeatures};

const CLIP: &str = "vit_nano_patch8_clip_quickgelu_32";
/// A few steps on a few drawn images.
const SHORT: &str = "--data shapes --limit 32 --batch-size 16 --epochs 1 --warmup-epochs 0 --lr 0.01";

fn load(place: &Place, name: &str) -> Checkpoint {
    Checkpoint::load(place.path(name), &LoadOptions::default()).unwrap()
}

/// The same tensors with another activation.
fn with(spec: &ModelSpec, activation: Activation) -> ModelSpec {
    let mut spec = spec.clone();
    if let NetworkSpec::Vit(vit) = &mut spec.network {
        vit.activation = activation;
    }
    spec
}

/// What network and engine say about one image.
fn logits(spec: &ModelSpec, tensors: &Tensors) -> [Vec<f32>; 2] {
    let pixels: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    let device = Device::flex();
    let network = Network::new(spec, tensors, "test", &device).unwrap();
    let images = Tensor::from_data(TensorData::new(pixels.clone(), [1, 3, 32, 32]), &device);
    let logits = network.forward(images, &mut Ctx::eval()).unwrap();
    let engine = Engine::new(spec, tensors, "test", Options::default()).unwrap();
    [
        logits.class.into_data().try_to_vec::<f32>().unwrap(),
        engine.run(&pixels, 1).unwrap().class,
    ]
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_two_gelus_are_told_apart() {
    let mut made = Checkpoint::fresh(CLIP, None, None, 3).unwrap();
    for name in made.tensors.names().map(str::to_owned).collect::<Vec<_>>() {
        let tensor = made.tensors.get(&name).unwrap();
        let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32().into_owned());
        for (i, x) in values.iter_mut().enumerate() {
            *x += 0.3 * ((i + name.len()) as f32 * 0.71).sin();
        }
        made.tensors.insert_f32(name, &shape, values).unwrap();
    }
    let [quick, exact] = [Activation::QuickGelu, Activation::Gelu].map(|activation| {
        let [network, engine] = logits(&with(&made.spec, activation), &made.tensors);
        assert!(difference(&network, &engine) < 1e-4, "{activation:?}");
        engine
    });
    assert!(
        difference(&quick, &exact) > 1e-3,
        "{}",
        difference(&quick, &exact)
    );
}

#[test]
fn it_is_trained_adapted_merged_and_pruned() {
    let place = Place::new();
    place
        .run(&format!("train --model {CLIP} {SHORT} --json -o run"))
        .ended(0);
    let base = load(&place, "run");
    let vit = base.spec.vit().unwrap();
    assert!(vit.pre_norm && !vit.patch_bias && vit.activation == Activation::QuickGelu);
    for name in Method::NAMES {
        let adapted = format!("adapt --model run/best --method {name} {SHORT} --json -o {name}");
        place.run(&adapted).ended(0);
        let whole = ["full", "partial", "linear", "bitfit", "norm"].contains(&name);
        if !whole {
            let merge =
                format!("merge --model run/best --adapter {name}/adapter --images 4 --json -o {name}-merged");
            let merged = place.run(&merge);
            let keeps = ["vpt", "adapter", "adaptformer"].contains(&name);
            assert!(merged.code == 0 || keeps, "{name}: {}", merged.stderr);
            if merged.code == 0 && !keeps {
                let merged = load(&place, &format!("{name}-merged"));
                assert!(merged.spec.ops.is_empty(), "{name}");
                // What stands before the patches folds into them, and they may gain a bias by it.
                assert!(merged.spec.vit().unwrap().pre_norm, "{name}");
            }
        }
    }
    let prune = "prune run/best --macs 0.6 --round-to 8 --data shapes --calibration 32 --eval-images 32 --json -o small";
    place.run(prune).ended(0);
    let small = load(&place, "small");
    assert!(small.spec.costs().unwrap().macs() < base.spec.costs().unwrap().macs());
    assert_eq!(small.spec.vit().unwrap().activation, Activation::QuickGelu);
    place
        .run("eval small --data shapes --split validation --limit 32 --json")
        .ended(0);
}

/// Texts for a model of ten outputs: three classes, of which the second looks as the picture does.
fn texts(features: &[f32]) -> Tensors {
    let mut rows = vec![0.0; 3 * features.len()];
    let (first, rest) = rows.split_at_mut(features.len());
    first.iter_mut().zip(features).for_each(|(row, x)| *row = -x);
    rest[..features.len()]
        .iter_mut()
        .zip(features)
        .for_each(|(row, x)| *row = 7.0 * x);
    rest[features.len()] = 1.0;
    let mut tensors = Tensors::new();
    tensors
        .insert_f32("text_features", &[3, features.len()], rows)
        .unwrap();
    tensors
}

#[test]
fn classes_are_told_by_likeness_to_texts() {
    let place = Place::new();
    let model = place.model("clip", CLIP, 10);
    let picture = place.path("picture.png");
    std::fs::write(&picture, include_bytes!("cli_support/ok.png")).unwrap();
    let image = model
        .preprocess()
        .unwrap()
        .run(&vitesse::data::decode_file(&picture, &Default::default()).unwrap())
        .unwrap();
    let engine = Engine::new(&model.spec, &model.tensors, "test", Options::default()).unwrap();
    let features = engine.run(&image, 1).unwrap().class;
    let good = texts(&features);
    let write = |name: &str, tensors: &Tensors, labels: Option<&str>| {
        let metadata: Metadata = labels
            .map(|labels| ("labels".to_owned(), labels.to_owned()))
            .into_iter()
            .collect();
        safetensors::write(&place.path(name), tensors, &metadata).unwrap();
    };
    let mut scaled = good.clone();
    scaled.insert_f32("logit_scale", &[], vec![2.0]).unwrap();
    write("texts.safetensors", &scaled, Some(r#"["cat", "dog", "cup"]"#));
    let predict = |file: &str| {
        place.run(&format!(
            "predict --model clip --text-features {file} --topk 3 --json picture.png"
        ))
    };
    let found = predict("texts.safetensors").ended(0).json();
    let classes = found["predictions"][0]["classes"].as_array().unwrap();
    assert_eq!(classes[0]["name"], "dog");
    assert_eq!((classes.len(), &found["scores"]), (3, &"softmax".into()));
    // Softmax of the scaled cosines, -1, 1 and that of the third text.
    let length = features.iter().map(|x| x * x).sum::<f32>().sqrt();
    let powers = [-1.0, 1.0, features[0] / length].map(|cosine| (f64::from(cosine) * 2f64.exp()).exp());
    let expected = powers[1] / powers.iter().sum::<f64>();
    let score = classes[0]["score"].as_f64().unwrap();
    assert!((score - expected).abs() < 1e-5, "{score} {expected}");

    // By the library, without names.
    let texts = TextFeatures::new(vec![1.0; 20], 10, 100.0, Labels::default()).unwrap();
    let options = ClassifierOptions {
        text_features: Some(texts),
        ..ClassifierOptions::default()
    };
    let classifier = Classifier::load_with(place.path("clip"), options).unwrap();
    let alike = classifier.classify(&picture).unwrap();
    assert!(alike.len() == 2 && (alike[0].score - 0.5).abs() < 1e-9 && alike[0].name.is_none());

    // Models that do not do, whose head gives as many numbers.
    place.model("vit", "vit_nano_patch4_32", 10);
    let mut named = Checkpoint::fresh(CLIP, Some(10), None, 1).unwrap();
    named.config.label_names = (0..10).map(|class| (class, format!("class {class}"))).collect();
    named.save(&place.path("named"), false).unwrap();
    for (model, architecture) in [("vit", "vit_nano_patch4_32"), ("named", CLIP)] {
        let predict = format!("predict --model {model} --text-features texts.safetensors picture.png");
        let said = format!("`{architecture}` is a classifier: its head gives classes and no image features");
        place.run(&predict).ended(1).says(&[&said]);
    }

    // Files that do not do.
    let mut other = good.clone();
    other.rename("text_features", "features").unwrap();
    let mut whole = Tensors::new();
    whole.insert(
        "text_features",
        vitesse::model::Tensor::from_bytes(vitesse::model::DType::I64, &[1, 2], vec![0; 16]).unwrap(),
    );
    let shaped = |shape: &[usize], value: f32| {
        let mut tensors = Tensors::new();
        let count = shape.iter().product();
        tensors
            .insert_f32("text_features", shape, vec![value; count])
            .unwrap();
        tensors
    };
    let mut hundred = good.clone();
    hundred.insert_f32("logit_scale", &[], vec![100.0]).unwrap();
    for (name, tensors, labels, said) in [
        (
            "key",
            &other,
            None,
            "has no tensor `text_features` [classes, dim]; it has `features`",
        ),
        ("type", &whole, None, "is of type I64"),
        ("width", &shaped(&[3, 12], 1.0), None, "12 wide"),
        (
            "rank",
            &shaped(&[30], 1.0),
            None,
            "should have shape [classes, dim]",
        ),
        ("empty", &shaped(&[0, 10], 1.0), None, "holds no class"),
        ("nan", &shaped(&[3, 10], f32::NAN), None, "not finite"),
        ("zero", &shaped(&[3, 10], 0.0), None, "points nowhere"),
        ("scale", &hundred, None, "the logarithm of the scale"),
        ("names", &good, Some(r#"["cat"]"#), "1 name"),
        ("json", &good, Some("cat, dog"), "a list of names as JSON"),
    ] {
        write(name, tensors, labels);
        predict(name).ended(1).says(&[said]);
    }
}
