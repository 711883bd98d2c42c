//! Names, shapes and costs of the zoo against those of real checkpoints.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use vitesse_model::spec::Role;
use vitesse_model::zoo;

type Shapes = BTreeMap<String, Vec<usize>>;

/// The tensors of a file of `tests/golden/names`, and the number of parameters it states.
fn golden(name: &str) -> Option<(Shapes, u64)> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/names/{name}.json"));
    let file: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).unwrap();
    let shape = |tensor: &Value| {
        tensor["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d.as_u64().unwrap() as usize)
            .collect()
    };
    let tensors = file["tensors"].as_array().unwrap();
    let shapes = tensors
        .iter()
        .map(|tensor| (tensor["name"].as_str().unwrap().to_owned(), shape(tensor)))
        .collect();
    Some((shapes, file["parameters"].as_u64().unwrap()))
}

#[test]
fn tensors_are_those_of_timms_checkpoints() {
    let mut compared = 0;
    for name in zoo::names() {
        let Some((expected, parameters)) = golden(name) else {
            continue;
        };
        // Where layers share matrices, files have names of their own: `minivit.rs` compares these.
        if name.starts_with("mini_") {
            continue;
        }
        let tensors = zoo::get(name).unwrap().spec.tensors().unwrap();
        let count: usize = tensors
            .iter()
            .filter(|tensor| tensor.role == Role::Parameter)
            .map(|t| t.numel())
            .sum();
        let found: Shapes = tensors
            .into_iter()
            .map(|tensor| (tensor.name, tensor.shape))
            .collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(count as u64, parameters, "{name}");
        compared += 1;
    }
    assert!(compared >= 12, "only {compared} listings were found");
}

#[test]
fn costs_are_those_of_the_paper() {
    let cases = [
        ("vit_tiny_patch16_224", 5_717_416, "1.254"),
        ("deit_tiny_patch16_224", 5_717_416, "1.254"),
        ("deit_tiny_distilled_patch16_224", 5_910_800, "1.261"),
        ("deit_small_patch16_224", 22_050_664, "4.599"),
        ("deit_small_distilled_patch16_224", 22_436_432, "4.624"),
        ("deit_base_patch16_224", 86_567_656, "17.564"),
        ("deit_base_distilled_patch16_224", 87_338_192, "17.657"),
        ("deit_base_patch16_384", 86_859_496, "55.484"),
        ("deit_base_distilled_patch16_384", 87_630_032, "55.591"),
        ("vit_base_patch16_clip_224", 86_568_424, "17.564"),
    ];
    for (name, parameters, gmacs) in cases {
        let cost = zoo::get(name).unwrap().spec.costs().unwrap();
        assert_eq!(cost.parameters(), parameters, "{name}");
        assert_eq!(format!("{:.3}", cost.macs() as f64 / 1e9), gmacs, "{name}");
    }
    // The same models at another size.
    for (name, gmacs) in [
        ("deit_tiny_patch16_224", "4.682"),
        ("deit_tiny_distilled_patch16_224", "4.693"),
        ("deit_small_patch16_224", "15.490"),
        ("deit_small_distilled_patch16_224", "15.523"),
    ] {
        let mut spec = zoo::get(name).unwrap().spec;
        if let vitesse_model::NetworkSpec::Vit(vit) = &mut spec.network {
            vit.img_size = [384, 384];
        }
        assert_eq!(
            format!("{:.3}", spec.costs().unwrap().macs() as f64 / 1e9),
            gmacs,
            "{name}"
        );
    }
}
