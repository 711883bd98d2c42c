//! Checkpoint folders: what is saved is loaded, what does not fit is refused by name, what is changed is reported.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vitesse_data::CropMode;
use vitesse_model::checkpoint::{WEIGHTS_FILE, file_sha256};
use vitesse_model::storage::safetensors;
use vitesse_model::{Checkpoint, LoadOptions, Tensors, zoo};

const NANO: &str = "vit_nano_patch4_32";
const DISTILLED: &str = "deit_micro_distilled_patch4_32";

fn fresh(name: &str) -> Checkpoint {
    Checkpoint::fresh(name, None, None, 1).unwrap()
}

fn load(path: &Path) -> Checkpoint {
    Checkpoint::load(path, &LoadOptions::default()).unwrap()
}

fn load_error(path: &Path, options: &LoadOptions) -> String {
    Checkpoint::load(path, options).unwrap_err().to_string()
}

fn bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

/// A folder with a description and tensors, as somebody else may have written it.
fn write_folder(folder: &Path, config: &Value, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    safetensors::write(&folder.join(WEIGHTS_FILE), tensors, &safetensors::Metadata::new()).unwrap();
}

#[test]
fn what_is_saved_is_loaded_and_saved_alike() {
    let place = tempfile::tempdir().unwrap();
    for name in zoo::names().filter(|name| name.ends_with("_32")) {
        let (first, second) = (
            place.path().join(name),
            place.path().join(format!("{name}.again")),
        );
        let made = fresh(name);
        made.save(&first, false).unwrap();
        let loaded = load(&first);
        assert_eq!(
            (&loaded.spec, &loaded.tensors, &loaded.config),
            (&made.spec, &made.tensors, &made.config)
        );
        assert!(loaded.source.notes.is_empty());
        loaded.save(&second, false).unwrap();
        assert_eq!(bytes(&first), bytes(&second), "{name}");
        let names: Vec<String> = bytes(&first).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["config.json", "model.safetensors", "preprocessor_config.json"]
        );
        assert_eq!(
            loaded.source_sha256().unwrap(),
            Some(file_sha256(&second.join(WEIGHTS_FILE)).unwrap())
        );
    }
    let prefixed = format!("local-dir:{}", place.path().join(NANO).display());
    assert_eq!(load(Path::new(&prefixed)).spec.architecture, NANO);

    // An existing folder is kept unless told otherwise, and a folder of something else even then.
    let target = place.path().join(NANO);
    assert_eq!(fresh(NANO).save(&target, false).unwrap_err().code(), "E_EXISTS");
    Checkpoint::fresh(NANO, Some(3), None, 1)
        .unwrap()
        .save(&target, true)
        .unwrap();
    assert_eq!(load(&target).spec.num_classes, 3);
}

#[test]
fn a_checkpoint_replaces_the_folder_it_was_loaded_from() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let made = fresh(NANO);
    made.save(&folder, false).unwrap();
    let loaded = load(&folder);
    loaded.save(&folder, true).unwrap();
    assert_eq!(load(&folder).tensors, made.tensors);
}

#[test]
fn sha256_is_that_of_the_standard() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("abc");
    fs::write(&file, "abc").unwrap();
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(file_sha256(&file).unwrap(), expected);
}

#[test]
fn another_number_of_classes_gives_fresh_heads() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let mut made = fresh(DISTILLED);
    made.config.label_names = (0..10).map(|i| (i, format!("class {i}"))).collect();
    made.save(&folder, false).unwrap();

    let options = LoadOptions {
        num_classes: Some(3),
        seed: 5,
        ..LoadOptions::default()
    };
    let three = Checkpoint::load(&folder, &options).unwrap();
    assert_eq!(three.tensors.get("head.weight").unwrap().shape(), [3, 96]);
    assert_eq!(three.tensors.get("head_dist.bias").unwrap().shape(), [3]);
    assert_ne!(
        three.tensors.get("head.weight").unwrap(),
        three.tensors.get("head_dist.weight").unwrap()
    );
    assert_eq!(
        three.tensors.get("norm.weight").unwrap(),
        made.tensors.get("norm.weight").unwrap()
    );
    assert!(three.config.label_names.is_empty());
    assert_eq!(
        three.source.notes,
        ["`head` and `head_dist` drawn anew for 3 classes (the file has 10)"]
    );
    assert_eq!(
        Checkpoint::load(&folder, &options).unwrap().tensors,
        three.tensors,
        "the seed decides"
    );

    // The same number keeps the heads; none removes them, and from none they come back.
    let same = Checkpoint::load(
        &folder,
        &LoadOptions {
            num_classes: Some(10),
            ..LoadOptions::default()
        },
    )
    .unwrap();
    assert_eq!((&same.tensors, &same.config), (&made.tensors, &made.config));
    let mut none = Checkpoint::load(
        &folder,
        &LoadOptions {
            num_classes: Some(0),
            ..LoadOptions::default()
        },
    )
    .unwrap();
    assert!(!none.tensors.contains("head.weight") && !none.tensors.contains("head_dist.weight"));
    let headless = place.path().join("headless");
    none.save(&headless, false).unwrap();
    none = load(&headless);
    none.set_num_classes(4, 0).unwrap();
    none.spec.check(&none.tensors, "").unwrap();
}

#[test]
fn another_image_size_resizes_the_positions() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let made = fresh(DISTILLED);
    made.save(&folder, false).unwrap();
    let options = LoadOptions {
        img_size: Some([48, 32]),
        ..LoadOptions::default()
    };
    let wide = Checkpoint::load(&folder, &options).unwrap();
    assert_eq!(wide.spec.input_size(), [3, 48, 32]);
    let table = wide.tensors.get("pos_embed").unwrap();
    assert_eq!(table.shape(), [1, 2 + 12 * 8, 96]);
    let old = made.tensors.get("pos_embed").unwrap().to_f32();
    assert_eq!(
        table.to_f32()[..2 * 96],
        old[..2 * 96],
        "the rows of the two tokens stay"
    );
    assert_eq!(
        wide.source.notes,
        ["`pos_embed` resized from 8x8 to 12x8 patches, for images of 48x32, as timm does, antialiased"]
    );
    // Reads back, and transformers has no words for this crop.
    let again = place.path().join("wide");
    wide.save(&again, false).unwrap();
    assert_eq!(load(&again).spec, wide.spec);
    assert!(!again.join("preprocessor_config.json").exists());

    let odd = LoadOptions {
        img_size: Some([30, 30]),
        ..LoadOptions::default()
    };
    assert!(load_error(&folder, &odd).contains("must be a multiple of the patch size 4"));
    let huge = LoadOptions {
        img_size: Some([1 << 40; 2]),
        ..LoadOptions::default()
    };
    assert!(
        load_error(&folder, &huge)
            .contains("the image height is 1099511627776, but at most 4096 is supported")
    );
    let convolutional = Checkpoint::fresh("regnety_nano_32", None, Some([64, 64]), 1).unwrap();
    assert_eq!(convolutional.spec.input_size(), [3, 64, 64]);
}

#[test]
fn a_mismatch_names_the_tensors() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let made = fresh(DISTILLED);
    let config: Value = serde_json::from_str(&made.config.to_json(&made.spec).unwrap()).unwrap();
    let options = LoadOptions::default();

    let mut tensors = made.tensors.clone();
    tensors.remove("blocks.2.norm1.bias").unwrap();
    tensors
        .insert_f32("blocks.9.norm1.bias", &[96], vec![0.0; 96])
        .unwrap();
    // The heads disagree about the number of classes.
    tensors
        .insert_f32("head_dist.weight", &[7, 96], vec![0.0; 7 * 96])
        .unwrap();
    write_folder(&folder, &config, &tensors);
    let error = load_error(&folder, &options);
    for part in [
        "model.safetensors",
        "1 missing:\n    blocks.2.norm1.bias",
        "1 unexpected:\n    blocks.9.norm1.bias",
        "head_dist.weight: expected [10, 96], found [7, 96]",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }

    // A plain model in a distilled one, and the reverse.
    let plain = fresh("deit_micro_patch4_32");
    write_folder(&folder, &config, &plain.tensors);
    let error = load_error(&folder, &options);
    assert!(
        error.contains("the file holds a plain model and the architecture is a distilled one"),
        "{error}"
    );
    let config: Value = serde_json::from_str(&plain.config.to_json(&plain.spec).unwrap()).unwrap();
    write_folder(&folder, &config, &made.tensors);
    let error = load_error(&folder, &options);
    assert!(
        error.contains("the file holds a distilled model and the architecture is a plain one"),
        "{error}"
    );

    // What is in memory is checked before it is written.
    let mut broken = plain;
    broken.tensors.remove("norm.weight").unwrap();
    let error = broken
        .save(&place.path().join("new"), false)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("`the model` does not hold") && error.contains("norm.weight"),
        "{error}"
    );
    assert!(!place.path().join("new").exists());

    assert!(load_error(&place.path().join("nowhere"), &options).contains("cannot read"));
    fs::create_dir(place.path().join("empty")).unwrap();
    assert!(load_error(&place.path().join("empty"), &options).contains("it holds no weights"));
    let other = LoadOptions {
        architecture: Some(NANO.to_owned()),
        ..LoadOptions::default()
    };
    let error = load_error(&folder, &other);
    assert!(
        error.contains("key `architecture` should be `vit_nano_patch4_32`, as asked for"),
        "{error}"
    );
}

#[test]
fn a_bare_file_is_recognised_or_named() {
    let place = tempfile::tempdir().unwrap();
    let save = |name: &str, tensors: &Tensors| {
        let path = place.path().join(name);
        safetensors::write(&path, tensors, &safetensors::Metadata::new()).unwrap();
        path
    };
    let made = Checkpoint::fresh("deit_micro_patch4_32", Some(5), None, 1).unwrap();
    let file = save("model.safetensors", &made.tensors);
    let loaded = load(&file);
    assert_eq!((&loaded.spec, &loaded.tensors), (&made.spec, &made.tensors));
    let notes = loaded.source.notes.join("\n");
    assert!(
        notes.contains("taken for `deit_micro_patch4_32`") && notes.contains("`vit_micro_patch4_32`"),
        "{notes}"
    );
    // A folder without a description is its weights file.
    assert_eq!(load(place.path()).spec, made.spec);

    let named = LoadOptions {
        architecture: Some("vit_micro_patch4_32.tag".to_owned()),
        ..LoadOptions::default()
    };
    let loaded = Checkpoint::load(&file, &named).unwrap();
    assert_eq!(loaded.spec.architecture, "vit_micro_patch4_32");
    assert_eq!(loaded.config.pretrained_cfg.mean, [0.5; 3]);
    assert_eq!(
        loaded.source.notes,
        ["read as `vit_micro_patch4_32` with 5 classes"]
    );

    // The table says which images the model was fine-tuned for.
    let large = Checkpoint::fresh("vit_micro_patch4_32", None, Some([64, 64]), 1).unwrap();
    let file = save("large.safetensors", &large.tensors);
    let loaded = Checkpoint::load(&file, &named).unwrap();
    assert_eq!(loaded.spec, large.spec);
    assert!(
        loaded.source.notes[0].contains("images of 64x64"),
        "{:?}",
        loaded.source.notes
    );
    let loaded = load(&file);
    assert_eq!(loaded.spec.architecture, "deit_micro_patch4_32");
    assert_eq!(loaded.spec.network, large.spec.network);
    let strange = save("strange.safetensors", &fresh("regnety_nano_32").tensors);
    let (mut tensors, _) = safetensors::read(&strange).unwrap();
    tensors.remove("stem.conv.weight").unwrap();
    let error = load_error(&save("strange.safetensors", &tensors), &LoadOptions::default());
    assert!(
        error.contains("no architecture of the zoo has these tensors"),
        "{error}"
    );
    let unknown = LoadOptions {
        architecture: Some("vit_mikro_patch4_32".to_owned()),
        ..LoadOptions::default()
    };
    assert!(load_error(&file, &unknown).contains("did you mean `vit_micro_patch4_32`"));
}

/// The tensors of a model of ours under transformers' names. `version` is 4 for the names in files, 5 for those of the
/// modules; `prefix` is what stands before the body's names.
fn to_transformers(checkpoint: &Checkpoint, prefix: &str, version: u32) -> Tensors {
    let distilled = checkpoint.spec.vit().unwrap().is_distilled();
    let mut out = Tensors::new();
    for (name, tensor) in checkpoint.tensors.iter() {
        let body = |rest: &str| format!("{prefix}{rest}");
        let (module, parameter) = name.rsplit_once('.').unwrap_or((name, ""));
        let parts: Vec<&str> = module.splitn(3, '.').collect();
        if let ["blocks", layer, part] = parts[..] {
            let layer = if version == 4 {
                format!("encoder.layer.{layer}")
            } else {
                format!("layers.{layer}")
            };
            let (new, newer) = match part {
                "norm1" => ("layernorm_before", "layernorm_before"),
                "norm2" => ("layernorm_after", "layernorm_after"),
                "attn.proj" => ("attention.output.dense", "attention.o_proj"),
                "mlp.fc1" => ("intermediate.dense", "mlp.fc1"),
                "mlp.fc2" => ("output.dense", "mlp.fc2"),
                _ => {
                    let (values, rows) = (tensor.to_f32(), tensor.shape()[0] / 3);
                    let mut shape = tensor.shape().to_vec();
                    shape[0] = rows;
                    let names = match version {
                        4 => ["query", "key", "value"].map(|third| format!("attention.attention.{third}")),
                        _ => ["q", "k", "v"].map(|third| format!("attention.{third}_proj")),
                    };
                    for (third, values) in names.iter().zip(values.chunks(values.len() / 3)) {
                        let name = body(&format!("{layer}.{third}.{parameter}"));
                        out.insert_f32(name, &shape, values.to_vec()).unwrap();
                    }
                    continue;
                }
            };
            let part = if version == 4 { new } else { newer };
            out.insert(body(&format!("{layer}.{part}.{parameter}")), tensor.clone());
            continue;
        }
        let name = match module {
            "cls_token" => body("embeddings.cls_token"),
            "dist_token" | "reg_token" => body("embeddings.distillation_token"),
            "pos_embed" => body("embeddings.position_embeddings"),
            "patch_embed.proj" => body(&format!("embeddings.patch_embeddings.projection.{parameter}")),
            "norm" => body(&format!("layernorm.{parameter}")),
            "head" if distilled => format!("cls_classifier.{parameter}"),
            "head" => format!("classifier.{parameter}"),
            "head_dist" => format!("distillation_classifier.{parameter}"),
            other => panic!("{other}"),
        };
        out.insert(name, tensor.clone());
    }
    out
}

fn transformers_config(kind: &str, checkpoint: &Checkpoint) -> Value {
    let vit = checkpoint.spec.vit().unwrap();
    let block = &vit.cores[0];
    json!({
        "model_type": kind,
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.layers.len(),
        "num_attention_heads": block.attn.as_ref().unwrap().num_heads(),
        "intermediate_size": block.mlp.as_ref().unwrap().hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": vit.norm_eps,
        "image_size": vit.img_size[0],
        "patch_size": vit.patch_size,
        "id2label": (0..checkpoint.spec.num_classes).map(|i| (i.to_string(), json!(format!("class {i}"))))
            .collect::<serde_json::Map<_, _>>(),
        "transformers_version": "5.0.0",
    })
}

#[test]
fn folders_of_transformers_are_imported() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("hf");
    for (name, kind, architecture) in [
        ("vit_micro_patch4_32", "vit", "vit_base_patch16_224"),
        (DISTILLED, "deit", "deit_base_distilled_patch16_224"),
    ] {
        for version in [4, 5] {
            let made = fresh(name);
            write_folder(
                &folder,
                &transformers_config(kind, &made),
                &to_transformers(&made, &format!("{kind}."), version),
            );
            let loaded = load(&folder);
            assert_eq!(
                (&loaded.spec.network, &loaded.tensors),
                (&made.spec.network, &made.tensors)
            );
            assert_eq!(loaded.spec.architecture, architecture);
            assert_eq!(loaded.config.label_names[&9], "class 9");
            let ours = place.path().join("ours");
            loaded.save(&ours, true).unwrap();
            assert_eq!(load(&ours).spec, loaded.spec);
        }
    }

    // The epsilon comes from the file and survives in ours; the pooler of a model without a head is left out.
    let made = Checkpoint::fresh("vit_micro_patch4_32", Some(0), None, 1).unwrap();
    let mut tensors = to_transformers(&made, "", 4);
    tensors
        .insert_f32("pooler.dense.bias", &[96], vec![0.0; 96])
        .unwrap();
    let mut config = transformers_config("vit", &made);
    config["layer_norm_eps"] = json!(1e-12);
    config["id2label"] = json!({ "0": "LABEL_0", "1": "LABEL_1" });
    write_folder(&folder, &config, &tensors);
    let preprocessor = json!({ "size": 40, "do_center_crop": true, "crop_size": 32, "resample": 1, "image_std": [0.2, 0.3, 0.4] });
    fs::write(folder.join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
    let loaded = load(&folder);
    assert_eq!(
        (loaded.spec.vit().unwrap().norm_eps, loaded.spec.num_classes),
        (1e-12, 0)
    );
    assert!(
        loaded
            .source
            .notes
            .iter()
            .any(|note| note.contains("left out `pooler.dense.bias`"))
    );
    let cfg = &loaded.config.pretrained_cfg;
    assert_eq!(
        (cfg.crop_pct, cfg.crop_mode, cfg.std.as_slice()),
        (0.8, CropMode::Squash, &[0.2, 0.3, 0.4][..])
    );
    let ours = place.path().join("eps");
    loaded.save(&ours, false).unwrap();
    assert_eq!(load(&ours).spec, loaded.spec);
}

#[test]
fn a_deit_with_one_classifier_has_a_register() {
    let place = tempfile::tempdir().unwrap();
    let mut made = fresh("deit_micro_patch4_32");
    if let vitesse_model::NetworkSpec::Vit(vit) = &mut made.spec.network {
        vit.prefix.push(vitesse_model::spec::PrefixToken::Register);
    }
    made.tensors = made.spec.init(3).unwrap();
    write_folder(
        place.path(),
        &transformers_config("deit", &made),
        &to_transformers(&made, "deit.", 4),
    );
    let loaded = load(place.path());
    assert_eq!(
        (&loaded.spec.network, &loaded.tensors),
        (&made.spec.network, &made.tensors)
    );
}

#[test]
fn transformers_folders_are_refused_in_sentences() {
    let place = tempfile::tempdir().unwrap();
    let made = fresh("vit_micro_patch4_32");
    let good = to_transformers(&made, "vit.", 4);
    let config = transformers_config("vit", &made);
    let error = |change: &dyn Fn(&mut Value, &mut Tensors)| {
        let (mut config, mut tensors) = (config.clone(), good.clone());
        change(&mut config, &mut tensors);
        write_folder(place.path(), &config, &tensors);
        load_error(place.path(), &LoadOptions::default())
    };
    type Change = dyn Fn(&mut Value, &mut Tensors);
    let set = |key: &'static str, value: Value| {
        Box::new(move |c: &mut Value, _: &mut Tensors| c[key] = value.clone())
    };
    let cases: [(Box<Change>, &str); 7] = [
        (
            set("model_type", json!("beit")),
            "key `model_type` should be one of `vit`, `deit`, `clip`, `clip_vision_model`, `swin`, but is \"beit\"",
        ),
        (
            set("hidden_act", json!("quick_gelu")),
            "key `hidden_act` should be `gelu`, the exact one",
        ),
        (
            set("num_attention_heads", json!(5)),
            "key `num_attention_heads` should be a divisor of 96, but is 5",
        ),
        (
            set("hidden_size", json!(-1)),
            "key `hidden_size` should be a whole number from 1",
        ),
        (
            set("id2label", json!({ "0": "cat" })),
            "key `id2label` should be an object of 10 labels",
        ),
        (
            Box::new(|_, tensors| {
                tensors
                    .remove("vit.encoder.layer.1.attention.attention.key.bias")
                    .unwrap();
            }),
            "missing:\n    blocks.1.attn.qkv.bias",
        ),
        (
            Box::new(|_, tensors| tensors.insert_f32("vit.mystery", &[1], vec![0.0]).unwrap()),
            "unexpected:\n    vit.mystery",
        ),
    ];
    for (change, expected) in cases {
        let text = error(&*change);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_published_model_loads() {
    let weights = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/weights/deit_tiny_patch16_224.fb_in1k");
    if !weights.is_dir() {
        println!("skipped: no data");
        return;
    }
    let loaded = load(&weights);
    assert_eq!(loaded.tensors.parameters(), 5_717_416);
    assert_eq!(loaded.config.pretrained_cfg.tag.as_deref(), Some("fb_in1k"));
    assert!(loaded.source.notes.is_empty());
    // Alone, its file is known by its shapes.
    let place = tempfile::tempdir().unwrap();
    let bare = place.path().join("bare.safetensors");
    fs::copy(weights.join(WEIGHTS_FILE), &bare).unwrap();
    assert_eq!(load(&bare).spec, loaded.spec);
    loaded.save(&place.path().join("copy"), false).unwrap();
    assert_eq!(load(&place.path().join("copy")).tensors, loaded.tensors);
}
