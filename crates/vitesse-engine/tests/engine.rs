//! What an engine is to its users: shared by threads, and errors in sentences.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use vitesse_engine::{Engine, Error, Isa, Options, Output, Precision, Stage};
use vitesse_model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Tensors, zoo};

fn spec() -> ModelSpec {
    model(VitSpec::plain(16, 4, 32, 2, 2, vec![PrefixToken::Class]))
}

fn options(threads: usize) -> Options {
    Options {
        threads,
        precision: Precision::F32,
        isa: None,
    }
}

#[test]
fn engines_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<Engine>();
    shared::<Error>();
    shared::<Output>();
}

#[test]
fn many_threads_at_one_engine_get_their_own_answers() {
    let spec = spec();
    let tensors = weights(&spec, 1);
    let engine = Engine::new(&spec, &tensors, "test", options(2)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (engine, spec, tensors) = (&engine, &spec, &tensors);
            scope.spawn(move || {
                let count = 1 + thread % 3;
                let images = images(spec, count, thread as u64);
                let size = images.len() / count;
                let expected: Vec<f64> = images
                    .chunks_exact(size)
                    .flat_map(|image| forward(spec, tensors, image).class)
                    .collect();
                let mut out = Output::default();
                for _ in 0..30 {
                    engine.run_into(&images, count, &mut out).unwrap();
                    assert!(distance(&out.class, &expected) <= 1e-4);
                }
            });
        }
    });
}

#[test]
fn images_of_another_size_are_refused() {
    let spec = spec();
    let engine = Engine::new(&spec, &weights(&spec, 1), "test", options(1)).unwrap();
    let size = 3 * 16 * 16;
    let memory = vec![0.0; 2 * size + 1];
    for (len, count) in [
        (0, 1),
        (size - 1, 1),
        (size + 1, 1),
        (size, 2),
        (size, 0),
        (2 * size, 1),
        (0, usize::MAX),
        (size, 1 << 60),
    ] {
        let error = engine.run(&memory[..len], count).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        assert!(error.to_string().contains("3 x 16 x 16"), "{error}");
        assert!(engine.profile(&memory[..len], count).is_err());
    }
    assert_eq!(engine.run(&[], 0).unwrap(), Output::default());
    assert_eq!(engine.run(&memory[..2 * size], 2).unwrap().class.len(), 10);
}

#[test]
fn output_is_replaced_not_extended() {
    let spec = spec();
    let engine = Engine::new(&spec, &weights(&spec, 1), "test", options(2)).unwrap();
    let images = images(&spec, 3, 1);
    let mut out = Output {
        class: vec![7.0; 99],
        distillation: vec![7.0; 3],
    };
    engine.run_into(&images, 3, &mut out).unwrap();
    assert_eq!(out, engine.run(&images, 3).unwrap());
    assert!(out.class.len() == 15 && out.distillation.is_empty());
}

#[test]
fn networks_that_are_no_transformers_are_refused() {
    let spec = zoo::get("regnety_nano_32").unwrap().spec;
    let error = Engine::new(&spec, &spec.init(0).unwrap(), "test", options(1)).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("vision transformers"), "{error}");
}

#[test]
fn more_products_than_an_8_bit_sum_can_hold_are_refused() {
    let mut spec = model(VitSpec::plain(8, 8, 2, 1, 1, vec![PrefixToken::Class]));
    let NetworkSpec::Vit(vit) = &mut spec.network else {
        unreachable!()
    };
    vit.cores[0].mlp.as_mut().unwrap().hidden = (1 << 16) + 1;
    let tensors = weights(&spec, 1);
    let compiled = |precision| {
        Engine::new(
            &spec,
            &tensors,
            "test",
            Options {
                precision,
                ..options(1)
            },
        )
    };
    assert!(compiled(Precision::Bf16).is_ok());
    let error = compiled(Precision::Int8).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported(_)) && error.to_string().contains("65537"),
        "{error}"
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let spec = spec();
    let good = weights(&spec, 1);
    let refused = |edit: &dyn Fn(&mut Tensors), name: &str| {
        let mut tensors = good.clone();
        edit(&mut tensors);
        let error = Engine::new(&spec, &tensors, "test", options(1)).unwrap_err();
        assert!(
            matches!(error, Error::Model(_)) && error.to_string().contains(name),
            "{error}"
        );
    };
    refused(
        &|tensors| drop(tensors.remove("blocks.1.attn.proj.bias").unwrap()),
        "blocks.1.attn.proj.bias",
    );
    refused(
        &|tensors| tensors.insert_f32("more", &[1], vec![0.0]).unwrap(),
        "more",
    );
    refused(
        &|tensors| tensors.insert_f32("norm.weight", &[31], vec![0.0; 31]).unwrap(),
        "norm.weight",
    );
    refused(
        &|tensors| {
            tensors
                .insert_f32("head.weight", &[32, 5], vec![0.0; 160])
                .unwrap();
        },
        "head.weight",
    );
    let mut impossible = spec.clone();
    let NetworkSpec::Vit(vit) = &mut impossible.network else {
        unreachable!()
    };
    vit.patch_size = 5;
    assert!(Engine::new(&impossible, &good, "test", options(1)).is_err());
}

#[test]
fn instructions_that_are_not_there_are_refused() {
    let spec = spec();
    let tensors = weights(&spec, 1);
    for isa in Isa::ALL {
        let result = Engine::new(
            &spec,
            &tensors,
            "test",
            Options {
                isa: Some(isa),
                ..options(1)
            },
        );
        match result {
            Ok(engine) => assert!(isa.is_supported() && engine.isa() == isa),
            Err(error) => {
                assert!(!isa.is_supported() && matches!(error, Error::Isa(_)));
                assert_eq!(error.to_string(), format!("this processor does not have `{isa}`"));
            }
        }
    }
}

/// Environment variables belong to the whole process, so another one is started, which runs this test as a child.
#[test]
fn the_environment_chooses_the_instructions() {
    const CHILD: &str = "VITESSE_TEST_CHILD";
    let spec = spec();
    if std::env::var_os(CHILD).is_some() {
        match Engine::new(&spec, &weights(&spec, 1), "test", options(1)) {
            Ok(engine) => println!("computes with {}", engine.isa()),
            Err(error) => println!("refused: {error} {}", matches!(error, Error::Isa(_))),
        }
        return;
    }
    let child = |value: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_environment_chooses_the_instructions",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .env("VITESSE_ISA", value)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = child("scalar");
    assert!(text.contains("computes with scalar"), "{text}");
    let text = child("");
    assert!(
        text.contains(&format!("computes with {}", Isa::detect())),
        "{text}"
    );
    let text = child("avx1024");
    assert!(
        text.contains("refused: VITESSE_ISA: unknown instruction set `avx1024`") && text.contains("true"),
        "{text}"
    );
    if let Some(isa) = Isa::ALL.into_iter().find(|isa| !isa.is_supported()) {
        let text = child(isa.name());
        assert!(
            text.contains(&format!("refused: VITESSE_ISA asks for `{isa}`")),
            "{text}"
        );
    }
}

#[test]
fn names_of_precisions_round_trip() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        assert_eq!(precision.to_string().parse(), Ok(precision));
    }
    assert!("f16".parse::<Precision>().unwrap_err().contains("int8"));
}

#[test]
fn threads_are_as_many_as_asked_for_and_never_none() {
    let spec = spec();
    let tensors = weights(&spec, 1);
    let images = images(&spec, 2, 2);
    let expected = Engine::new(&spec, &tensors, "test", options(1))
        .unwrap()
        .run(&images, 2)
        .unwrap();
    let expected: Vec<f64> = expected.class.iter().map(|&x| x.into()).collect();
    for (wanted, threads) in [
        (0, None),
        (1, Some(1)),
        (3, Some(3)),
        (17, Some(17)),
        (1000, Some(64)),
    ] {
        let engine = Engine::new(&spec, &tensors, "test", options(wanted)).unwrap();
        assert!(threads.is_none_or(|threads| engine.threads() == threads) && engine.threads() >= 1);
        let out = engine.run(&images, 2).unwrap();
        assert!(distance(&out.class, &expected) <= 1e-5);
    }
}

#[test]
fn packed_weights_shrink_with_the_precision_and_a_profile_has_every_layer() {
    let spec = spec();
    let tensors = weights(&spec, 1);
    let bytes = [Precision::F32, Precision::Bf16, Precision::Int8].map(|precision| {
        let engine = Engine::new(
            &spec,
            &tensors,
            "test",
            Options {
                precision,
                ..options(2)
            },
        )
        .unwrap();
        assert_eq!((engine.precision(), engine.spec()), (precision, &spec));
        let profile = engine.profile(&images(&spec, 3, 1), 3).unwrap();
        assert_eq!(profile.layers.len(), 2);
        let time = |stage: Stage| {
            profile
                .layers
                .iter()
                .map(|layer| layer[stage as usize])
                .sum::<std::time::Duration>()
        };
        assert!(time(Stage::Embed).as_nanos() > 0 && time(Stage::Fc1).as_nanos() > 0);
        // Measuring ends with the run.
        assert_eq!(engine.profile(&[], 0).unwrap().layers.len(), 2);
        engine.packed_bytes()
    });
    assert!(bytes[0] > bytes[1] && bytes[0] > bytes[2], "{bytes:?}");
}
