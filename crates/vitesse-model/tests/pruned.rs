//! Models that others pruned: files that describe themselves (`vit-pruned/1`), and state dicts whose heads are given.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vitesse_model::spec::{BlockSpec, LayerSpec, Pool, PrefixToken, VitSpec};
use vitesse_model::storage::safetensors;
use vitesse_model::{Checkpoint, Heads, LoadOptions, ModelSpec, NetworkSpec, Tensors};

/// Three blocks that differ in everything.
fn pruned() -> ModelSpec {
    let mut vit = VitSpec::plain(
        16,
        4,
        24,
        3,
        3,
        vec![PrefixToken::Class, PrefixToken::Distillation],
    );
    vit.norm_eps = 1e-5;
    let [first, second, third] = vit.cores.as_mut_slice() else {
        panic!("three blocks");
    };
    let attn = first.attn.as_mut().unwrap();
    (attn.qk_dims, attn.v_dims) = (vec![4, 8], vec![3, 5]);
    attn.out_idx = Some(vec![0, 3, 23]);
    first.mlp.as_mut().unwrap().hidden = 7;
    second.attn = None;
    second.mlp.as_mut().unwrap().out_idx = Some(vec![1, 2]);
    third.mlp = None;
    model(vit)
}

/// Blocks of equal heads, of which there are two or three, and no wider than `dim`.
fn uniform(dim: usize) -> ModelSpec {
    let mut vit = VitSpec::plain(32, 8, dim, 3, 3, vec![PrefixToken::Class]);
    for (block, core) in vit.cores.iter_mut().enumerate() {
        let attn = core.attn.as_mut().unwrap();
        let heads = 2 + block % 2;
        (attn.qk_dims, attn.v_dims) = (vec![5; heads], vec![6; heads]);
        attn.scale = 5f64.powf(-0.5);
        core.mlp.as_mut().unwrap().hidden = 9 + block;
    }
    model(vit)
}

fn model(vit: VitSpec) -> ModelSpec {
    ModelSpec {
        architecture: "deit_nano_patch8_32".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

/// What a file of the format says of a model.
fn description(spec: &ModelSpec) -> Value {
    let vit = spec.vit().unwrap();
    let blocks = vit.cores.iter().enumerate().map(|(index, core)| {
        let attn = core.attn.as_ref().map(|attn| {
            json!({"heads": null, "qk_dims": attn.qk_dims, "v_dims": attn.v_dims, "scale": attn.scale, "out_idx": attn.out_idx})
        });
        let mlp = core.mlp.as_ref().map(|mlp| json!({"hidden": mlp.hidden, "out_idx": mlp.out_idx}));
        json!({"src": 2 * index, "attn": attn, "mlp": mlp})
    });
    json!({
        "format": "vit-pruned/1", "img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 5,
        "embed_dim": 24, "source_embed_dim": 48, "norm_eps": vit.norm_eps, "act": "gelu_erf",
        "class_token": true, "dist_token": true, "pool": "token", "blocks": blocks.collect::<Vec<_>>(),
        "exits": [], "tokens": null, "provenance": {"method": "vit-slim", "budget": {"attn": 0.5}, "seed": 0},
        "a key of tomorrow": 1,
    })
}

fn write(path: &Path, tensors: &Tensors, description: Option<&Value>) {
    let metadata = description.map(|value| ("config".to_owned(), value.to_string()));
    safetensors::write(path, tensors, &metadata.into_iter().collect()).unwrap();
}

fn with_heads(counts: &[usize], scale_dim: Option<usize>) -> LoadOptions {
    let counts = counts.to_vec();
    LoadOptions {
        heads: Some(Heads { counts, scale_dim }),
        ..LoadOptions::default()
    }
}

fn load(path: &Path, options: &LoadOptions) -> Result<Checkpoint, String> {
    Checkpoint::load(path, options).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(path: &Path, options: &LoadOptions, says: &[&str]) {
    let error = load(path, options).unwrap_err();
    for part in says {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("pruned.safetensors")
    }
}

#[test]
fn a_file_that_describes_itself_is_read_and_becomes_a_folder_of_ours() {
    let (place, spec) = (Place::new(), pruned());
    let tensors = spec.init(1).unwrap();
    write(&place.file(), &tensors, Some(&description(&spec)));
    let found = load(&place.file(), &LoadOptions::default()).unwrap();
    assert_eq!((&found.spec.network, &found.tensors), (&spec.network, &tensors));
    assert_eq!(found.spec.num_classes, 5);
    let step = &found.config.history[0];
    assert_eq!(
        (step.step.as_str(), step.method.as_deref()),
        ("prune", Some("vit-slim"))
    );
    assert_eq!(step.config["budget"], json!({"attn": 0.5}));
    assert!(
        found.source.notes[0].contains("vit-pruned/1"),
        "{:?}",
        found.source.notes
    );

    let folder = place.0.path().join("ours");
    found.save(&folder, false).unwrap();
    let again = load(&folder, &LoadOptions::default()).unwrap();
    assert_eq!(
        (&again.spec, &again.tensors, &again.config),
        (&found.spec, &found.tensors, &found.config)
    );

    // The caller may know from what it was cut.
    let named = LoadOptions {
        architecture: Some("vit_micro_patch4_32".into()),
        ..LoadOptions::default()
    };
    let named = load(&place.file(), &named).unwrap();
    assert_eq!(named.config.pretrained_cfg.mean, [0.5; 3]);
    assert_eq!(named.spec.network, spec.network);
}

#[test]
fn blocks_may_be_numbered_as_in_the_dense_model() {
    let (place, spec) = (Place::new(), pruned());
    let tensors = spec.init(2).unwrap();
    let numbered = tensors.iter().map(|(name, tensor)| {
        let name = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            Some((number, rest)) => format!("blocks.{}.{rest}", 2 * number.parse::<usize>().unwrap()),
            None => name.to_owned(),
        };
        (name, tensor.clone())
    });
    write(&place.file(), &numbered.collect(), Some(&description(&spec)));
    let found = load(&place.file(), &LoadOptions::default()).unwrap();
    assert_eq!((&found.spec.network, &found.tensors), (&spec.network, &tensors));
}

#[test]
fn what_a_description_says_wrongly_is_refused_by_its_key() {
    let (place, spec) = (Place::new(), pruned());
    let tensors = spec.init(3).unwrap();
    let cases: [(&str, Value, &[&str]); 12] = [
        (
            "/format",
            json!("vit-pruned/2"),
            &["`config.format`", "vit-pruned/1", "vit-pruned/2"],
        ),
        ("/exits", json!([{"after": 2}]), &["`config.exits`", "not read"]),
        (
            "/tokens",
            json!([{"before_block": 1, "keep": [0]}]),
            &["`config.tokens`", "not read"],
        ),
        ("/act", json!("relu"), &["`config.act`", "gelu_erf"]),
        ("/pool", json!("max"), &["`config.pool`"]),
        ("/embed_dim", Value::Null, &["`config.embed_dim`", "missing"]),
        ("/embed_dim", json!(1_u64 << 40), &["`config.embed_dim`"]),
        ("/blocks", json!({}), &["`config.blocks`"]),
        (
            "/blocks/0/attn",
            json!({"qk_dims": [4, 8], "v_dims": [3, 5]}),
            &["`config.blocks.0`", "missing field `scale`"],
        ),
        (
            "/blocks/0/attn/qk_dims",
            json!([4, 0]),
            &["blocks.0.attn", "pruned.safetensors"],
        ),
        (
            "/blocks/0/mlp/hidden",
            json!(8),
            &["blocks.0.mlp.fc1.weight: expected [8, 24], found [7, 24]"],
        ),
        (
            "/blocks/1/mlp",
            Value::Null,
            &["unexpected", "blocks.1.mlp.fc1.weight"],
        ),
    ];
    for (pointer, value, says) in cases {
        let mut description = description(&spec);
        *description.pointer_mut(pointer).unwrap() = value;
        write(&place.file(), &tensors, Some(&description));
        refused(&place.file(), &LoadOptions::default(), says);
    }
    write(&place.file(), &tensors, Some(&description(&spec)));
    refused(
        &place.file(),
        &with_heads(&[3], None),
        &["leave `--num-heads` away"],
    );
    // What other programs keep there is no description.
    write(&place.file(), &tensors, Some(&json!({"epochs": 3})));
    refused(&place.file(), &LoadOptions::default(), &["without a description"]);
}

#[test]
fn a_sliced_state_dict_is_read_with_its_heads() {
    let place = Place::new();
    for dim in [24, 64, 100] {
        let spec = uniform(dim);
        let tensors = spec.init(4).unwrap();
        write(&place.file(), &tensors, None);
        let found = load(&place.file(), &with_heads(&[2, 3, 2], None)).unwrap();
        assert_eq!(
            (&found.spec.network, &found.tensors),
            (&spec.network, &tensors),
            "{dim}"
        );
        let found = load(&place.file(), &with_heads(&[2, 3, 2], Some(8))).unwrap();
        let scales = found
            .spec
            .vit()
            .unwrap()
            .cores
            .iter()
            .map(|core| core.attn.as_ref().unwrap().scale);
        assert!(scales.into_iter().all(|scale| scale == 8f64.powf(-0.5)));
        let folder = place.0.path().join("ours");
        found.save(&folder, true).unwrap();
        assert_eq!(load(&folder, &LoadOptions::default()).unwrap().spec, found.spec);
        refused(
            &folder,
            &with_heads(&[2, 3, 2], None),
            &["leave `--num-heads` away"],
        );
    }
}

#[test]
fn blocks_and_parts_that_a_state_dict_lacks_are_absent() {
    let place = Place::new();
    let mut spec = uniform(24);
    let NetworkSpec::Vit(vit) = &mut spec.network else {
        panic!("no vision transformer");
    };
    vit.pool = Pool::AvgThenNorm;
    vit.cores[0].mlp = None;
    vit.cores[1] = BlockSpec {
        attn: None,
        mlp: None,
    };
    vit.cores[2].attn.as_mut().unwrap().qkv_bias = false;
    vit.layers = (0..3).map(LayerSpec::of).collect();
    let tensors = spec.init(5).unwrap();
    write(&place.file(), &tensors, None);
    let found = load(&place.file(), &with_heads(&[2], None)).unwrap();
    assert_eq!((&found.spec.network, &found.tensors), (&spec.network, &tensors));
}

#[test]
fn heads_fit_weights_beside_the_description_of_the_dense_model() {
    let place = Place::new();
    let dense = Checkpoint::fresh("deit_nano_patch8_32", Some(5), None, 0).unwrap();
    dense.save(&place.0.path().join("model"), false).unwrap();
    let spec = uniform(24);
    let tensors = spec.init(6).unwrap();
    let folder = place.0.path().join("model");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    write(&folder.join("model.safetensors"), &tensors, None);
    refused(
        &folder,
        &LoadOptions::default(),
        &["of another shape", "`--num-heads`"],
    );
    let found = load(&folder, &with_heads(&[2, 3, 2], None)).unwrap();
    assert_eq!((&found.spec.network, &found.tensors), (&spec.network, &tensors));
}

#[test]
fn without_heads_or_with_wrong_ones_a_sliced_state_dict_is_refused() {
    let place = Place::new();
    let tensors = uniform(24).init(7).unwrap();
    write(&place.file(), &tensors, None);
    refused(
        &place.file(),
        &LoadOptions::default(),
        &["pruned.safetensors", "`--num-heads`"],
    );
    let named = LoadOptions {
        architecture: Some("deit_nano_patch8_32".into()),
        ..LoadOptions::default()
    };
    refused(&place.file(), &named, &["of another shape", "`--num-heads`"]);
    for counts in [[7, 3, 2], [0, 3, 2], [2, 3, 3]] {
        refused(
            &place.file(),
            &with_heads(&counts, None),
            &["equal width", ".attn.qkv.weight` has", "rows"],
        );
    }
    refused(
        &place.file(),
        &with_heads(&[2, 3], None),
        &["2 numbers", "3 blocks"],
    );
    let regnet = Checkpoint::fresh("regnety_nano_32", None, None, 0).unwrap();
    write(&place.file(), &regnet.tensors, None);
    let regnet = LoadOptions {
        architecture: Some("regnety_nano_32".into()),
        ..with_heads(&[3], None)
    };
    refused(&place.file(), &regnet, &["vision transformers"]);
}
