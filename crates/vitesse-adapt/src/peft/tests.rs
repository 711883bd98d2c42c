//! Adapters that are written and read back, and those that are refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Map, Value, json};
use vitesse_model::storage::safetensors;
use vitesse_model::{Checkpoint, LoadOptions, Site, Tensors};
use vitesse_rng::Key;

use super::*;
use crate::Method;
use crate::pyramid::Pyramid;

/// A base in a folder, and loaded from it.
fn base(place: &Path) -> Checkpoint {
    let folder = place.join("base");
    let fresh = Checkpoint::fresh("deit_micro_patch4_32", Some(7), None, 1).unwrap();
    fresh.save(&folder, true).unwrap();
    Checkpoint::load(&folder, &LoadOptions::default()).unwrap()
}

/// Everything that learns moved by something.
fn learned(base: &Checkpoint, name: &str, settings: &[(&str, &str)]) -> (Checkpoint, Trainable) {
    let settings: Vec<(&str, String)> = settings.iter().map(|&(k, v)| (k, v.to_owned())).collect();
    let mut model = base.clone();
    model.set_num_classes(3, 5).unwrap();
    let adapted = Method::parse(name, &settings)
        .unwrap()
        .begin(&model.spec, &model.tensors, 1)
        .unwrap();
    (model.spec, model.tensors) = (adapted.spec, adapted.tensors);
    for name in adapted.trained.names() {
        let tensor = model.tensors.get(name).unwrap();
        let shape = tensor.shape().to_vec();
        let mut rng = Key::new(9).with(name).rng();
        let values = tensor.to_f32().iter().map(|x| x + rng.normal() as f32).collect();
        model.tensors.insert_f32(name, &shape, values).unwrap();
    }
    (model, adapted.trained)
}

fn written(place: &Path, name: &str, settings: &[(&str, &str)]) -> (Checkpoint, Checkpoint, Adapter) {
    let base = base(place);
    let (model, trainable) = learned(&base, name, settings);
    let record = Record {
        base_sha256: base.source_sha256().unwrap(),
        architecture: Some(base.spec.architecture.clone()),
        label_names: (0..3).map(|i| (i, format!("class {i}"))).collect(),
        ..Record::default()
    };
    let ops = model.spec.ops.len();
    let adapter = Adapter::of(&model.spec, &model.tensors, &trainable, ops, record).unwrap();
    let folder = place.join("adapter");
    adapter.write(&folder, true).unwrap();
    (base, model, Adapter::read(&folder).unwrap())
}

fn config(place: &Path) -> Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(place.join("adapter").join(CONFIG_FILE)).unwrap()).unwrap()
}

#[test]
fn every_method_comes_back_as_it_was() {
    for (name, settings) in [
        ("repadapter", &[("scale", "0.5")][..]),
        (
            "lora",
            &[
                ("targets", "qkv,fc1"),
                ("alpha", "5"),
                ("rank_pattern", r#"{"fc1": 3}"#),
            ],
        ),
        ("lora", &[("parts", r#"["q","v"]"#)]),
        ("ssf", &[]),
        ("vpt", &[("tokens", "2")]),
        ("adapter", &[]),
        ("adaptformer", &[("norm", "before")]),
        ("bitfit", &[]),
        ("norm", &[]),
        ("linear", &[]),
        ("partial", &[]),
        ("full", &[]),
    ] {
        let place = tempfile::tempdir().unwrap();
        let (base, model, adapter) = written(place.path(), name, settings);
        assert!(adapter.check_base(&base).unwrap());
        let attached = adapter.attach(&base).unwrap();
        assert_eq!(attached.spec, model.spec, "{name}");
        assert_eq!(attached.tensors, model.tensors, "{name}");
        assert_eq!(attached.config.label_names[&2], "class 2");
        let peft = config(place.path())["peft_type"].clone();
        let is_lora = name == "lora" && settings.len() == 3;
        assert_eq!(peft, if is_lora { "LORA" } else { "VITESSE" });
    }
}

#[test]
fn another_base_is_refused_and_a_merged_one_named() {
    let place = tempfile::tempdir().unwrap();
    let (base, _, adapter) = written(place.path(), "repadapter", &[]);
    let mut other = Checkpoint::fresh("deit_micro_patch4_32", Some(7), None, 2).unwrap();
    let error = adapter.check_base(&other).unwrap_err();
    assert_eq!(error.code(), "E_ADAPTER_BASE");
    assert!(error.to_string().contains("fresh weights"), "{error}");
    other.config.history.push(vitesse_model::config::HistoryStep {
        step: "merge".into(),
        ..Default::default()
    });
    other.save(&place.path().join("merged"), false).unwrap();
    let merged = Checkpoint::load(place.path().join("merged"), &LoadOptions::default()).unwrap();
    let error = adapter.check_base(&merged).unwrap_err().to_string();
    assert!(error.contains("merged into this one already"), "{error}");
    assert!(error.contains(&base.source_sha256().unwrap().unwrap()), "{error}");

    let wide = Checkpoint::fresh("deit_tiny_patch16_224", Some(7), None, 2).unwrap();
    let error = adapter.attach(&wide).unwrap_err().to_string();
    assert!(
        error.contains("head.weight") && error.contains("another model"),
        "{error}"
    );
}

#[test]
fn folders_that_cannot_be_used_are_refused_in_sentences() {
    let place = tempfile::tempdir().unwrap();
    let refused = |edit: &dyn Fn(&mut Map<String, Value>, &mut Tensors)| -> String {
        let (base, _, _) = written(place.path(), "lora", &[("targets", "qkv")]);
        let folder = place.path().join("adapter");
        let mut config = config(place.path());
        let (mut tensors, metadata) = safetensors::read(&folder.join(WEIGHTS_FILE)).unwrap();
        edit(&mut config, &mut tensors);
        std::fs::write(folder.join(CONFIG_FILE), Value::Object(config).to_string()).unwrap();
        safetensors::write(&folder.join(WEIGHTS_FILE), &tensors, &metadata).unwrap();
        match Adapter::read(&folder).and_then(|adapter| adapter.attach(&base)) {
            Ok(_) => "it was read".into(),
            Err(error) => error.to_string(),
        }
    };
    let set = |key: &'static str, value: Value| {
        refused(&|config, _| {
            config.insert(key.to_owned(), value.clone());
        })
    };
    assert_eq!(set("some_new_field", json!("anything")), "it was read");
    assert_eq!(set("use_dora", json!(false)), "it was read");
    assert!(set("use_dora", json!(true)).contains("`use_dora` is true, which is not implemented"));
    assert!(set("layer_replication", json!([[0, 2]])).contains("layer_replication"));
    assert!(set("peft_type", json!("IA3")).contains("`peft_type` is `IA3`"));
    assert!(set("r", json!("eight")).contains("`r` should be a whole number"));
    assert!(set("r", json!(4)).contains("the rank of this module is 4"));
    assert!(set("lora_alpha", Value::Null).contains("`lora_alpha` is missing"));
    let rename = |from: &'static str, to: &'static str| {
        refused(&|_, tensors| {
            for end in ["lora_A.weight", "lora_B.weight"] {
                tensors
                    .rename(&format!("{PREFIX}{from}.{end}"), &format!("{PREFIX}{to}.{end}"))
                    .unwrap();
            }
        })
    };
    assert!(rename("blocks.0.attn.qkv", "patch_embed.proj").contains("attn.proj"));
    assert!(rename("blocks.0.attn.qkv", "blocks.99.attn.qkv").contains("does not have"));
    let half = refused(&|_, tensors| {
        tensors
            .remove("base_model.model.blocks.0.attn.qkv.lora_B.weight")
            .unwrap();
    });
    assert!(half.contains("but not the other"), "{half}");

    let nothing = Adapter::read(&place.path().join("nothing"))
        .unwrap_err()
        .to_string();
    assert!(nothing.contains(CONFIG_FILE), "{nothing}");
}

#[test]
fn transformers_names_are_parts_of_the_fused_projection() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path());
    let dim = base.spec.vit().unwrap().embed_dim;
    let folder = place.path().join("hf");
    std::fs::create_dir(&folder).unwrap();
    let mut tensors = Tensors::new();
    for module in ["attention.attention.query", "attention.attention.value"] {
        let path = format!("{PREFIX}vit.encoder.layer.1.{module}");
        tensors
            .insert_f32(format!("{path}.lora_A.weight"), &[2, dim], vec![0.1; 2 * dim])
            .unwrap();
        tensors
            .insert_f32(format!("{path}.lora_B.weight"), &[dim, 2], vec![0.2; 2 * dim])
            .unwrap();
    }
    tensors
        .insert_f32(format!("{PREFIX}classifier.bias"), &[7], vec![1.0; 7])
        .unwrap();
    safetensors::write(&folder.join(WEIGHTS_FILE), &tensors, &Default::default()).unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]});
    std::fs::write(folder.join(CONFIG_FILE), config.to_string()).unwrap();
    let adapter = Adapter::read(&folder).unwrap();
    assert!(!adapter.check_base(&base).unwrap());
    let attached = adapter.attach(&base).unwrap();
    let merged = crate::merge::merge(&attached.spec, &attached.tensors, Default::default()).unwrap();
    let name = "blocks.1.attn.qkv.weight";
    let (old, new) = (base.tensors.get(name).unwrap(), merged.tensors.get(name).unwrap());
    for (i, (old, new)) in old.to_f32().iter().zip(new.to_f32().iter()).enumerate() {
        let key = (dim * dim..2 * dim * dim).contains(&i);
        let expected = if key { 0.0 } else { 2.0 * 2.0 * 0.1 * 0.2 };
        assert!((new - old - expected).abs() < 1e-6, "{i}");
    }
    assert_eq!(merged.tensors.get("head.bias").unwrap().to_f32()[0], 1.0);
}

#[test]
fn official_files_need_a_scale_and_whole_adapters() {
    let mut tensors = Tensors::new();
    for (end, shape) in [
        ("conv_A.weight", &[4, 12, 1][..]),
        ("conv_A.bias", &[4]),
        ("conv_B.weight", &[12, 2, 1]),
        ("conv_B.bias", &[12]),
    ] {
        let values = vec![0.5; shape.iter().product()];
        tensors
            .insert_f32(format!("blocks.1.adapter_mlp.{end}"), shape, values)
            .unwrap();
    }
    let path = Path::new("repblock.safetensors");
    let error = official::parse(tensors.clone(), None, path)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`--scale`"), "{error}");
    let adapter = official::parse(tensors.clone(), Some(0.5), path).unwrap();
    let Content::Ops(ops, _) = &adapter.content else {
        unreachable!()
    };
    assert!(matches!(&ops[0].kind, vitesse_model::ops::OpKind::Bottleneck(op) if op.groups == 2));
    let mut half = tensors.clone();
    half.remove("blocks.1.adapter_mlp.conv_B.bias").unwrap();
    let error = official::parse(half, Some(1.0), path).unwrap_err().to_string();
    assert!(error.contains("lacks `conv_B.bias`"), "{error}");
    for end in ["conv_A.weight", "conv_A.bias", "conv_B.weight", "conv_B.bias"] {
        tensors
            .rename(
                &format!("blocks.1.adapter_mlp.{end}"),
                &format!("stages.1.adapter_mlp.{end}"),
            )
            .unwrap();
    }
    let error = official::parse(tensors, Some(1.0), path).unwrap_err().to_string();
    assert!(error.contains("no place for one"), "{error}");
}

#[test]
fn modules_of_any_family_are_found_by_their_path() {
    let model = Pyramid::default();
    let found = names::module("layers.0.blocks.1.mlp.fc2", &model).unwrap();
    assert_eq!((found.site, found.layer, found.part), (Site::Fc2, Some(1), None));
    // The path of a shared matrix does not say in which of its layers the update stands.
    assert_eq!(names::module("layers.1.blocks.0.attn.qkv", &model), None);
    assert_eq!(names::module("blocks.0.attn.qkv", &model), None);
}
