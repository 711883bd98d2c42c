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

/// Why the adapter in `folder`, which can be read, does not fit `base`.
fn not_attached(folder: &Path, base: &Checkpoint) -> String {
    let adapter = Adapter::read(folder).unwrap();
    adapter.attach(base).unwrap_err().to_string()
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
        ("vpt", &[("tokens", "2"), ("project", "5")]),
        ("adapter", &[]),
        ("adaptformer", &[("norm", "before")]),
        ("adaptformer", &[("norm", "after"), ("form", "sequential")]),
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
    // A field that chooses, or says where the adapter comes from, or is off, changes nothing.
    for (field, value) in [
        ("use_dora", json!(false)),
        ("some_new_field", Value::Null),
        ("some_new_config", json!({})),
        ("peft_version", json!("99.0")),
        ("qalora_group_size", json!(16)),
        ("exclude_modules", json!(["head"])),
        ("layers_to_transform", json!([0, 1])),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("bias", json!("lora_only")),
    ] {
        assert_eq!(set(field, value), "it was read", "{field}");
    }
    for (field, value) in [
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!({"embed": [1]})),
        ("target_parameters", json!(["blocks.0.attn.qkv.weight"])),
        ("some_new_field", json!("anything")),
        ("some_new_size", json!(3)),
    ] {
        let expected = format!("`{field}` is {value}, which is not implemented");
        let error = set(field, value);
        assert!(error.contains(&expected), "{error}");
    }
    for init in [
        "pissa",
        "pissa_niter_16",
        "olora",
        "loftq",
        "corda",
        "lora_ga",
        "of_tomorrow",
    ] {
        let error = set("init_lora_weights", json!(init));
        let expected = format!("`init_lora_weights` is \"{init}\"");
        assert!(
            error.contains(&expected) && error.contains("path_initial_model"),
            "{error}"
        );
    }
    assert!(set("bias", json!("some")).contains("`bias` should be `none`, `all` or `lora_only`"));
    assert!(set("rank_pattern", json!([1])).contains("`rank_pattern` should be an object"));
    assert!(set("modules_to_save", json!(["head", "ead"])) == "it was read");
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
    assert!(
        rename("blocks.0.attn.qkv", "patch_embed.proj").contains("3, 4, 4]; it belongs to another model")
    );
    assert!(rename("blocks.0.attn.qkv", "head").contains("another number of classes"));
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

/// A folder of PEFT's with these tensors, `MODULE.END` and a shape, every value 0.1.
fn folder(place: &Path, tensors: &[(&str, &[usize])], more: Value) -> std::path::PathBuf {
    let dir = place.join("foreign");
    std::fs::create_dir_all(&dir).unwrap();
    let mut out = Tensors::new();
    for (name, shape) in tensors {
        let values = vec![0.1; shape.iter().product()];
        out.insert_f32(format!("{PREFIX}{name}"), shape, values).unwrap();
    }
    safetensors::write(&dir.join(WEIGHTS_FILE), &out, &Default::default()).unwrap();
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    let (Value::Object(config), Value::Object(more)) = (&mut config, more) else {
        unreachable!()
    };
    config.extend(more);
    std::fs::write(dir.join(CONFIG_FILE), json!(config).to_string()).unwrap();
    dir
}

#[test]
fn names_of_every_writer_mean_the_same_projections() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path());
    let dim = base.spec.vit().unwrap().embed_dim;
    let ops = |modules: [&str; 4]| {
        let names = modules.map(|module| ["A", "B"].map(|factor| format!("{module}.lora_{factor}.weight")));
        let shapes = [
            [2, dim],
            [dim, 2],
            [2, dim],
            [dim, 2],
            [2, dim],
            [4 * dim, 2],
            [2, 4 * dim],
            [dim, 2],
        ];
        let tensors: Vec<(&str, &[usize])> = names
            .iter()
            .flatten()
            .map(String::as_str)
            .zip(shapes.iter().map(|shape| &shape[..]))
            .collect();
        let dir = folder(place.path(), &tensors, json!({}));
        Adapter::read(&dir).unwrap().attach(&base).unwrap().spec.ops
    };
    let expected = ops([
        "vit.layers.1.attention.k_proj",
        "vit.layers.1.attention.o_proj",
        "vit.layers.1.mlp.fc1",
        "vit.layers.1.mlp.fc2",
    ]);
    let found: Vec<(Site, Option<usize>)> = expected.iter().map(|op| (op.site, op.layer)).collect();
    assert_eq!(
        found,
        [Site::Qkv, Site::Proj, Site::Fc1, Site::Fc2].map(|site| (site, Some(1)))
    );
    for (around, attention, inside) in [
        (
            "deit.layers.1",
            ["attention.k_proj", "attention.o_proj"],
            ["mlp.fc1", "mlp.fc2"],
        ),
        (
            "layers.1",
            ["attention.k_proj", "attention.o_proj"],
            ["mlp.fc1", "mlp.fc2"],
        ),
        (
            "model.backbone.vit.encoder.layer.1",
            ["attention.attention.key", "attention.output.dense"],
            ["intermediate.dense", "output.dense"],
        ),
        (
            "_orig_mod.encoder.layer.1",
            ["attention.attention.key", "attention.output.dense"],
            ["intermediate.dense", "output.dense"],
        ),
    ] {
        let [key, proj] = attention.map(|end| format!("{around}.{end}"));
        let [fc1, fc2] = inside.map(|end| format!("{around}.{end}"));
        assert_eq!(ops([&key, &proj, &fc1, &fc2]), expected, "{around}");
    }
}

/// A Swin under the names that transformers' files have had, and that its modules have.
#[test]
fn transformers_names_of_a_swin_are_read() {
    let place = tempfile::tempdir().unwrap();
    let base = Checkpoint::fresh("swin_nano_patch2_window4_32", Some(3), None, 1).unwrap();
    let attached = |modules: [&str; 5]| {
        let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
        // The second stage is 64 wide.
        for (module, [inputs, outputs]) in
            modules
                .iter()
                .zip([[64, 64], [64, 64], [64, 256], [256, 64], [128, 64]])
        {
            tensors.push((format!("{module}.lora_A.weight"), vec![2, inputs]));
            tensors.push((format!("{module}.lora_B.weight"), vec![outputs, 2]));
        }
        tensors.push(("swin.layernorm.bias".into(), vec![128]));
        tensors.push(("classifier.weight".into(), vec![4, 128]));
        tensors.push(("classifier.bias".into(), vec![4]));
        let tensors: Vec<(&str, &[usize])> = tensors
            .iter()
            .map(|(name, shape)| (name.as_str(), &shape[..]))
            .collect();
        let adapter = Adapter::read(&folder(place.path(), &tensors, json!({}))).unwrap();
        let attached = adapter.attach(&base).unwrap();
        (attached, adapter)
    };
    let block = "swin.encoder.layers.1.blocks.1";
    let named = |ends: [&str; 4]| ends.map(|end| format!("{block}.{end}"));
    let merging = "swin.encoder.layers.0.downsample.reduction";
    let of = |[a, b, c, d]: [String; 4]| attached([&a, &b, &c, &d, merging]);
    let (new, adapter) = of(named([
        "attention.v_proj",
        "attention.o_proj",
        "mlp.fc1",
        "mlp.fc2",
    ]));
    let (old, _) = of(named([
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]));
    assert_eq!((&new.spec, &new.tensors), (&old.spec, &old.tensors));
    let found: Vec<_> = new.spec.ops.iter().map(|op| (op.site, op.layer)).collect();
    assert_eq!(
        found,
        [Site::Qkv, Site::Proj, Site::Fc1, Site::Fc2].map(|site| (site, Some(3)))
    );
    assert!(matches!(
        &new.spec.ops[0].kind,
        vitesse_model::ops::OpKind::LowRank(kind) if kind.parts == Some(vec![vitesse_model::ops::QkvPart::V])
    ));
    assert_eq!(new.spec.num_classes, 4);
    assert_eq!(new.tensors.get("norm.bias").unwrap().to_f32()[5], 0.1);
    // No op stands at the merging: its weight has the update.
    let name = "layers.1.downsample.reduction.weight";
    let [before, after] = [&base, &new].map(|model| model.tensors.get(name).unwrap().to_f32()[7]);
    assert!((after - before - 2.0 * 2.0 * 0.1 * 0.1).abs() < 1e-6);
    let error = adapter.attach_again(&new).unwrap_err().to_string();
    assert!(
        error.contains("norm.bias") && error.contains("load the base"),
        "{error}"
    );
    let alone = folder(
        place.path(),
        &[
            (&format!("{merging}.lora_A.weight"), &[2, 128]),
            (&format!("{merging}.lora_B.weight"), &[64, 2]),
        ],
        json!({}),
    );
    let error = Adapter::read(&alone).unwrap().attach_again(&new).unwrap_err();
    assert!(error.to_string().contains(name), "{error}");
}

#[test]
fn what_peft_and_others_wrap_modules_in_is_no_part_of_a_name() {
    for (in_file, name) in [
        (
            "blocks.0.attn.qkv.base_layer.bias",
            Some("blocks.0.attn.qkv.bias"),
        ),
        ("norm.modules_to_save.weight", Some("norm.weight")),
        ("norm.modules_to_save.default.weight", Some("norm.weight")),
        ("norm.original_module.weight", None),
        ("head.lora_A.default.weight", Some("head.lora_A.weight")),
        (
            "timm_model.blocks.0.mlp.fc1.lora_B.weight",
            Some("blocks.0.mlp.fc1.lora_B.weight"),
        ),
        ("module._orig_mod.head.bias", Some("head.bias")),
        ("vit.default.module.bias", Some("vit.default.module.bias")),
    ] {
        assert_eq!(names::unwrapped(in_file).as_deref(), name, "{in_file}");
    }
}

#[test]
fn biases_and_whole_modules_take_the_place_of_the_bases() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path());
    let dim = base.spec.vit().unwrap().embed_dim;
    let factors: [(&str, &[usize]); 2] = [
        ("vit.layers.0.attention.q_proj.lora_A.weight", &[2, dim]),
        ("vit.layers.0.attention.q_proj.lora_B.weight", &[dim, 2]),
    ];
    let with = |more: &[(&str, &[usize])]| {
        folder(
            place.path(),
            &[&factors[..], more].concat(),
            json!({"bias": "all"}),
        )
    };
    let dir = with(&[
        ("vit.layers.0.attention.q_proj.base_layer.bias", &[dim]),
        ("vit.layers.1.attention.v_proj.bias", &[dim]),
        ("vit.layers.1.layernorm_after.weight", &[dim]),
        ("vit.layernorm.modules_to_save.bias", &[dim]),
        ("vit.layernorm.bias", &[dim]),
        ("vit.layernorm.original_module.bias", &[dim]),
        ("vit.pooler.dense.bias", &[dim]),
        ("classifier.weight", &[2, dim]),
        ("classifier.bias", &[2]),
    ]);
    let adapter = Adapter::read(&dir).unwrap();
    let attached = adapter.attach(&base).unwrap();
    assert_eq!(attached.spec.num_classes, 2);
    let changed = |name: &str| -> Vec<bool> {
        let of = |model: &Checkpoint| model.tensors.get(name).unwrap().to_f32().into_owned();
        of(&attached)
            .iter()
            .zip(of(&base))
            .map(|(new, old)| *new == 0.1 && old != 0.1)
            .collect()
    };
    let part = |first: usize| -> Vec<bool> { (0..3 * dim).map(|i| i / dim == first).collect() };
    assert_eq!(changed("blocks.0.attn.qkv.bias"), part(0));
    assert_eq!(changed("blocks.1.attn.qkv.bias"), part(2));
    for name in ["blocks.1.norm2.weight", "norm.bias"] {
        assert!(changed(name).iter().all(|changed| *changed), "{name}");
    }
    // Written, the biases are where PEFT looks for them.
    let again = place.path().join("again");
    adapter.write(&again, true).unwrap();
    let (tensors, _) = safetensors::read(&again.join(WEIGHTS_FILE)).unwrap();
    assert!(tensors.contains(&format!("{PREFIX}vit.layers.0.attention.q_proj.base_layer.bias")));
    assert_eq!(
        Adapter::read(&again).unwrap().attach(&base).unwrap().tensors,
        attached.tensors
    );
    // What the base had in the places of biases and norms is lost by a merge.
    let merged = crate::merge::merge(&attached.spec, &attached.tensors, Default::default()).unwrap();
    let merged = Checkpoint {
        spec: merged.spec,
        tensors: merged.tensors,
        ..attached.clone()
    };
    let error = adapter.attach_again(&merged).unwrap_err().to_string();
    assert!(error.contains("not in the merged model"), "{error}");

    for (more, expected) in [
        (
            ("vit.layers.9.attention.v_proj.bias", &[dim][..]),
            "does not have",
        ),
        (("text.layers.0.mlp.fc1.bias", &[dim]), "does not have"),
        (
            ("vit.layers.0.attention.v_proj.bias", &[dim + 1]),
            "belongs to another model",
        ),
        (("cls_token", &[1, 1, dim + 1]), "belongs to another model"),
        (("classifier.weight", &[2, dim]), "lacks `head.bias`"),
    ] {
        let error = Adapter::read(&with(&[more])).and_then(|adapter| adapter.attach(&base));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let twice = with(&[("norm.bias", &[dim]), ("vit.layernorm.bias", &[dim])]);
    let error = not_attached(&twice, &base);
    assert!(error.contains("under another name"), "{error}");
}

#[test]
fn heads_are_updated_at_once_and_those_of_a_distilled_model_are_told_apart() {
    let place = tempfile::tempdir().unwrap();
    let fresh = Checkpoint::fresh("deit_micro_distilled_patch4_32", Some(3), None, 1).unwrap();
    let dim = fresh.spec.vit().unwrap().embed_dim;
    let update = |module: &str| {
        let [a, b] = ["A", "B"].map(|factor| format!("{module}.lora_{factor}.weight"));
        folder(place.path(), &[(&a, &[2, dim]), (&b, &[3, 2])], json!({}))
    };
    for (module, name) in [
        ("head_dist", "head_dist.weight"),
        ("cls_classifier", "head.weight"),
        ("distillation_classifier", "head_dist.weight"),
    ] {
        let adapter = Adapter::read(&update(module)).unwrap();
        let attached = adapter.attach(&fresh).unwrap();
        assert_eq!(attached.spec, fresh.spec);
        for (tensor, old) in fresh.tensors.iter() {
            let new = attached.tensors.get(tensor).unwrap().to_f32();
            let expected = if tensor == name {
                2.0 * 2.0 * 0.1 * 0.1
            } else {
                0.0
            };
            let near = |(new, old): (&f32, &f32)| (new - old - expected).abs() < 1e-6;
            assert!(
                new.iter().zip(old.to_f32().iter()).all(near),
                "{module}: {tensor}"
            );
        }
        // A merged model has it already.
        assert_eq!(adapter.attach_again(&attached).unwrap().tensors, attached.tensors);
    }
    // A DeiT whose file has one `classifier` answers with that alone, and this model with the mean of two.
    for dir in [
        update("classifier"),
        folder(
            place.path(),
            &[
                ("deit.layers.0.mlp.fc1.lora_A.weight", &[2, dim]),
                ("deit.layers.0.mlp.fc1.lora_B.weight", &[4 * dim, 2]),
                ("classifier.weight", &[3, dim]),
                ("classifier.bias", &[3]),
            ],
            json!({}),
        ),
    ] {
        let error = not_attached(&dir, &fresh);
        assert!(
            error.contains("`classifier") && error.contains("does not have"),
            "{error}"
        );
    }
    // Another number of classes needs both heads.
    let error = folder(
        place.path(),
        &[("head.weight", &[4, dim]), ("head.bias", &[4])],
        json!({}),
    );
    let error = not_attached(&error, &fresh);
    assert!(error.contains("lacks `head_dist.bias`"), "{error}");
}

#[test]
fn two_updates_of_one_module_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path());
    let dim = base.spec.vit().unwrap().embed_dim;
    for (names, outs) in [
        (["blocks.0.mlp.fc1", "vit.layers.0.mlp.fc1"], [4 * dim; 2]),
        // The whole projection, and a part of it.
        (
            ["blocks.0.attn.qkv", "vit.layers.0.attention.v_proj"],
            [3 * dim, dim],
        ),
        (
            ["vit.layers.1.attention.k_proj", "deit.layers.1.attention.k_proj"],
            [dim; 2],
        ),
        (["head", "classifier"], [7; 2]),
    ] {
        let names = names.map(|name| ["A", "B"].map(|factor| format!("{name}.lora_{factor}.weight")));
        let shapes = [[2, dim], [outs[0], 2], [2, dim], [outs[1], 2]];
        let tensors: Vec<(&str, &[usize])> = names
            .iter()
            .flatten()
            .map(String::as_str)
            .zip(shapes.iter().map(|shape| &shape[..]))
            .collect();
        let dir = folder(place.path(), &tensors, json!({}));
        let error = not_attached(&dir, &base);
        assert!(error.contains("under another name"), "{error}");
    }
}

#[test]
fn one_of_two_copies_is_not_guessed() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path());
    let dim = base.spec.vit().unwrap().embed_dim;
    let dir = folder(
        place.path(),
        &[
            ("blocks.0.mlp.fc1.lora_A.weight", &[2, dim]),
            ("blocks.0.mlp.fc1.lora_B.weight", &[4 * dim, 2]),
            ("norm.bias", &[dim]),
        ],
        json!({}),
    );
    let path = dir.join(WEIGHTS_FILE);
    let (mut tensors, metadata) = safetensors::read(&path).unwrap();
    let other = format!("{PREFIX}norm.modules_to_save.bias");
    tensors.insert_f32(other, &[dim], vec![0.2; dim]).unwrap();
    safetensors::write(&path, &tensors, &metadata).unwrap();
    let error = Adapter::read(&dir).unwrap_err().to_string();
    assert!(
        error.contains("`norm.bias` twice, with different values"),
        "{error}"
    );

    let dir = folder(
        place.path(),
        &[
            ("blocks.0.mlp.fc1.lora_A.weight", &[2, dim]),
            ("blocks.0.mlp.fc1.lora_B.weight", &[4 * dim, 2]),
            ("vit.embeddings.patch_embeddings.projection.bias", &[dim]),
        ],
        json!({"modules_to_save": ["embeddings"]}),
    );
    let error = Adapter::read(&dir).unwrap_err().to_string();
    assert!(
        error.contains("`modules_to_save` names `vit.embeddings` and `vit.embeddings.patch_embeddings`"),
        "{error}"
    );
}

#[test]
fn an_update_of_the_patches_is_peft_s_own_kernels() {
    let place = tempfile::tempdir().unwrap();
    let settings = [("targets", "patch_embed.proj,attn.proj"), ("rank", "3")];
    let (base, model, adapter) = written(place.path(), "lora", &settings);
    let [dim, channels, side] = {
        let vit = base.spec.vit().unwrap();
        [vit.embed_dim, vit.in_chans, vit.patch_size]
    };
    let (tensors, _) = safetensors::read(&place.path().join("adapter").join(WEIGHTS_FILE)).unwrap();
    let shape = |factor: &str| {
        let name = format!("{PREFIX}patch_embed.proj.lora_{factor}.weight");
        tensors.get(&name).unwrap().shape().to_vec()
    };
    assert_eq!(shape("A"), [3, channels, side, side]);
    assert_eq!(shape("B"), [dim, 3, 1, 1]);
    let targets = config(place.path())["target_modules"].clone();
    assert_eq!(targets, json!(["attn.proj", "patch_embed.proj"]));
    assert_eq!(adapter.attach(&base).unwrap().tensors, model.tensors);
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
