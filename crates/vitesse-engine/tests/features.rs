//! Feature maps of vision transformers against plain loops: random models, on every instruction set, with any number of threads
//! and images.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::cell::RefCell;

use common::*;
use vitesse_engine::{Engine, FeatureExtractor, Options, Precision};
use vitesse_model::spec::{PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Sites, Tensors};

fn extractor(spec: &ModelSpec, tensors: &Tensors, layers: &[usize], options: Options) -> FeatureExtractor {
    FeatureExtractor::new(spec, tensors, "test", layers, options).unwrap()
}

/// The patches after each layer, `[count, channels, height, width]`.
fn expected(spec: &ModelSpec, tensors: &Tensors, images: &[f32]) -> Vec<Vec<f64>> {
    let vit = spec.vit().unwrap();
    let before = vit.prefix.len() + spec.sites().prompts();
    let maps = RefCell::new(vec![Vec::new(); spec.depth()]);
    let keep = |layer: usize, x: Rows| {
        let channels = (0..vit.embed_dim).flat_map(|c| x[before..].iter().map(move |row| row[c]));
        maps.borrow_mut()[layer].extend(channels);
        x
    };
    for image in images.chunks_exact(spec.input_size().iter().product()) {
        forward_with(spec, tensors, image, &keep);
    }
    maps.into_inner()
}

#[test]
fn maps_of_random_models_agree() {
    let mut compared = 0;
    for seed in 0..40 {
        let spec = random_spec(&mut rng("features", seed));
        let (depth, tensors) = (spec.depth(), weights(&spec, seed));
        if depth == 0 {
            let error = FeatureExtractor::new(&spec, &tensors, "test", &[], Options::default());
            assert!(error.unwrap_err().to_string().contains("no layers"));
            continue;
        }
        let count = 1 + seed as usize % 4;
        let images = images(&spec, count, seed);
        let expected = expected(&spec, &tensors, &images);
        // Some layers, in whatever order; the last one is often not among them.
        let mut rng = rng("layers", seed);
        let layers: Vec<usize> = (0..=rng.below(3)).map(|_| between(&mut rng, 1, depth)).collect();
        for isa in isas() {
            for threads in 1..=3 {
                let options = Options {
                    threads,
                    precision: Precision::F32,
                    isa: Some(isa),
                };
                let extractor = extractor(&spec, &tensors, &layers, options);
                // Twice, so that what an image leaves behind meets the next.
                extractor.run(&images, count).unwrap();
                let found = extractor.run(&images, count).unwrap();
                for (map, values) in extractor.maps().iter().zip(&found) {
                    let error = distance(values, &expected[map.layer]);
                    assert!(
                        values.len() == count * map.numel() && error <= 1e-4,
                        "{error:e}: {} {isa}, {threads} threads, {count} images: {spec:?}",
                        map.name
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 100);
}

#[test]
fn what_follows_the_last_map_is_not_computed() {
    let spec = model(VitSpec::plain(24, 4, 48, 3, 3, vec![PrefixToken::Class]));
    let tensors = weights(&spec, 1);
    let macs = |layers: &[usize]| extractor(&spec, &tensors, layers, Options::default()).macs();
    let cost = spec.costs().unwrap();
    let of = |blocks: &[usize]| -> u64 {
        let layers = cost.layers.iter();
        let known = layers.filter(|layer| {
            let block = layer.layer.strip_prefix("blocks.");
            let number = block.and_then(|rest| rest.split_once('.')?.0.parse().ok());
            number.map_or(layer.layer == "patch_embed", |number| blocks.contains(&number))
        });
        known.map(|layer| layer.macs).sum()
    };
    assert_eq!(macs(&[1]), of(&[0]));
    assert_eq!(macs(&[2, 1]), of(&[0, 1]));
    // A map is of all patches: of the last layer, the heads of the model read the class token alone.
    assert_eq!(macs(&[]), of(&[0, 1, 2]));
    let engine = Engine::new(&spec, &tensors, "test", Options::default()).unwrap();
    assert!(engine.macs() < macs(&[]));
}
