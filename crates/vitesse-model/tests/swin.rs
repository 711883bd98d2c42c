//! Swin: names, shapes and costs of real checkpoints, foreign names, windows of other sizes, what is refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vitesse_model::checkpoint::WEIGHTS_FILE;
use vitesse_model::spec::{NetworkSpec, SwinSpec, TensorSpec, WindowRule};
use vitesse_model::storage::safetensors;
use vitesse_model::{Checkpoint, DType, LoadOptions, ModelSpec, Tensor, Tensors, zoo};

fn listing(name: &str) -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/names");
    serde_json::from_str(&fs::read_to_string(root.join(format!("{name}.json"))).unwrap()).unwrap()
}

/// Tensors of the names and shapes of a listing, in few bytes; whole numbers where there are such.
fn listed(name: &str) -> Tensors {
    let file = listing(name);
    let tensors = file["tensors"].as_array().unwrap();
    tensors
        .iter()
        .map(|tensor| {
            let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
            let (dtype, bytes) = match tensor["dtype"].as_str().unwrap() {
                "int64" => (DType::I64, 8),
                _ => (DType::BF16, 2),
            };
            let bytes = vec![0; bytes * shape.iter().product::<usize>()];
            let tensor_name = tensor["name"].as_str().unwrap().to_owned();
            (tensor_name, Tensor::from_bytes(dtype, &shape, bytes).unwrap())
        })
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    safetensors::write(path, tensors, &safetensors::Metadata::new()).unwrap();
}

fn swin(spec: &ModelSpec) -> &SwinSpec {
    match &spec.network {
        NetworkSpec::Swin(swin) => swin,
        _ => panic!("no Swin"),
    }
}

/// A small model with weights that are all different.
fn small() -> Checkpoint {
    Checkpoint::fresh("swin_nano_patch2_window4_32", Some(3), None, 7).unwrap()
}

/// The same under the names of the original code, buffers too.
fn original(tensors: &Tensors) -> Tensors {
    let mut out: Tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            let name = name
                .replace("head.fc.", "head.")
                .replace("layers.1.downsample", "layers.0.downsample")
                .replace("layers.2.downsample", "layers.1.downsample");
            (name, tensor.clone())
        })
        .collect();
    let buffer = Tensor::from_bytes(DType::I64, &[1], vec![0; 8]).unwrap();
    out.insert("layers.0.blocks.1.attn.relative_position_index", buffer.clone());
    out.insert("layers.0.blocks.1.attn_mask", buffer);
    out
}

#[test]
fn costs_are_the_published_ones() {
    for (name, parameters, gmacs) in [
        ("swin_tiny_patch4_window7_224", 28_288_354, "4.494"),
        ("swin_small_patch4_window7_224", 49_606_258, "8.747"),
        ("swin_base_patch4_window7_224", 87_768_224, "15.438"),
        ("swin_base_patch4_window12_384", 87_903_584, "47.105"),
    ] {
        let spec = zoo::get(name).unwrap().spec;
        let cost = spec.costs().unwrap();
        let counted: usize = spec.tensors().unwrap().iter().map(TensorSpec::numel).sum();
        assert_eq!((cost.parameters(), counted), (parameters, parameters), "{name}");
        // The reference counts a norm's elements too, and those of the last norm four times.
        let swin = swin(&spec);
        let norms: usize = (0..swin.stages())
            .map(|stage| {
                let elements = swin.stage_dim(stage) * swin.stage_map(stage).iter().product::<usize>();
                // Two norms a block; that of the patches, that before each merging, and the last.
                let ends = usize::from(stage == 0) + if stage + 1 == swin.stages() { 4 } else { 1 };
                elements * (2 * swin.depths[stage] + ends)
            })
            .sum();
        assert_eq!(
            format!("{:.3}", (cost.macs() + norms as u64) as f64 / 1e9),
            gmacs,
            "{name}"
        );
    }
}

#[test]
fn real_names_of_the_original_code_load_strictly_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["swin_tiny_patch4_window7_224", "swin_base_patch4_window12_384"] {
        let file = folder.path().join("swin.safetensors");
        write(&file, &listed(&format!("official_{name}")));
        let loaded = Checkpoint::load(&file, &LoadOptions::default()).unwrap();
        assert_eq!(loaded.spec, zoo::get(name).unwrap().spec);
        assert!(loaded.source.notes.iter().any(|note| note.contains("buffers")));
        let out = folder.path().join(name);
        loaded.save(&out, false).unwrap();
        let config = fs::read_to_string(out.join("config.json")).unwrap();
        assert!(!config.contains("vitesse"), "{config}");
        let again = Checkpoint::load(&out, &LoadOptions::default()).unwrap();
        assert_eq!((again.spec, again.tensors), (loaded.spec, loaded.tensors));
        let names: Tensors = listed(name);
        let (written, _) = safetensors::read(&out.join(WEIGHTS_FILE)).unwrap();
        let shapes = |tensors: &Tensors| -> BTreeMap<String, Vec<usize>> {
            tensors
                .iter()
                .map(|(name, t)| (name.to_owned(), t.shape().to_vec()))
                .collect()
        };
        assert_eq!(shapes(&written), shapes(&names));
    }
}

#[test]
fn real_names_of_transformers_become_timms() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join(WEIGHTS_FILE), &listed("hf_swin_tiny"));
    let config = |more: Value| {
        let mut config = json!({"model_type": "swin", "embed_dim": 96, "window_size": 7});
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    };
    config(json!({}));
    let loaded = Checkpoint::load(folder.path(), &LoadOptions::default()).unwrap();
    assert_eq!(
        loaded.spec,
        zoo::get("swin_tiny_patch4_window7_224").unwrap().spec
    );
    for (key, value, said) in [
        ("image_size", json!(256), "no multiple of the window"),
        ("use_absolute_embeddings", json!(true), "absolute"),
        ("num_heads", json!([3, 6]), "one for each stage"),
        ("num_heads", json!([5, 6, 12, 24]), "divisor"),
        ("depths", json!([2, 2, 6, 0]), "depths"),
        ("hidden_act", json!("relu"), "gelu"),
    ] {
        config(json!({ key: value }));
        let text = Checkpoint::load(folder.path(), &LoadOptions::default())
            .unwrap_err()
            .to_string();
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn files_of_the_original_code_are_told_by_where_patches_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let model = small();
    let file = folder.path().join("swin.safetensors");
    write(&file, &original(&model.tensors));
    let loaded = Checkpoint::load(&file, &LoadOptions::default()).unwrap();
    assert_eq!((&loaded.spec, &loaded.tensors), (&model.spec, &model.tensors));
    // A folder that an older timm wrote.
    let old = folder.path().join("old");
    model.save(&old, false).unwrap();
    write(&old.join(WEIGHTS_FILE), &original(&model.tensors));
    assert_eq!(
        Checkpoint::load(&old, &LoadOptions::default()).unwrap().tensors,
        model.tensors
    );
    // Where the two codes choose other windows, a bare file has the rule of the code whose layout it has, a folder timm's.
    let wide = LoadOptions {
        img_size: Some([32, 64]),
        ..LoadOptions::default()
    };
    for (path, rule) in [(&file, WindowRule::Joint), (&old, WindowRule::PerAxis)] {
        let loaded = Checkpoint::load(path, &wide).unwrap();
        let joint = rule == WindowRule::Joint;
        assert_eq!(swin(&loaded.spec).window_rule, rule);
        let said = loaded.source.notes.iter().any(|note| note.contains("joint"));
        assert_eq!(said, joint, "{:?}", loaded.source.notes);
    }
    let padded = LoadOptions {
        img_size: Some([40, 40]),
        ..LoadOptions::default()
    };
    let refused = Checkpoint::load(&file, &padded).unwrap_err().to_string();
    assert!(
        refused.contains("the map of 10x10 that `layers.1` has"),
        "{refused}"
    );
    assert!(Checkpoint::load(&old, &padded).is_ok());
    // Half of one layout and half of the other is neither.
    let mut mixed = original(&model.tensors);
    let moved = mixed.remove("layers.1.downsample.norm.bias").unwrap();
    mixed.insert("layers.9.downsample.norm.bias", moved);
    write(&old.join(WEIGHTS_FILE), &mixed);
    let text = Checkpoint::load(&old, &LoadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(text.contains("layers.10.downsample.norm.bias"), "{text}");
}

#[test]
fn windows_of_another_size_bring_tables_of_another_size() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("swin");
    let model = small();
    model.save(&dir, false).unwrap();
    let options = LoadOptions {
        img_size: Some([64, 48]),
        window_size: Some([8, 8]),
        ..LoadOptions::default()
    };
    let loaded = Checkpoint::load(&dir, &options).unwrap();
    let shape = |stage: usize| {
        let name = format!("layers.{stage}.blocks.0.attn.relative_position_bias_table");
        loaded.tensors.get(&name).unwrap().shape().to_vec()
    };
    // Maps of 32x24, 16x12 and 8x6: the last one is narrower than a window.
    assert_eq!(
        [shape(0), shape(1), shape(2)],
        [vec![225, 1], vec![225, 2], vec![15 * 11, 4]]
    );
    assert!(
        loaded.source.notes.iter().any(|note| note.contains("6 tables")),
        "{:?}",
        loaded.source.notes
    );
    // A folder of it says all of it in timm's words.
    let out = folder.path().join("large");
    loaded.save(&out, false).unwrap();
    let again = Checkpoint::load(&out, &LoadOptions::default()).unwrap();
    assert_eq!((&again.spec, &again.tensors), (&loaded.spec, &loaded.tensors));
    // Corners stay where bicubic interpolation has them: a table that is the same everywhere stays so.
    let mut flat = small();
    let table = "layers.0.blocks.1.attn.relative_position_bias_table";
    flat.tensors.insert_f32(table, &[49, 1], vec![0.25; 49]).unwrap();
    flat.set_window_size([5, 7]).unwrap();
    let resized = flat.tensors.get(table).unwrap();
    assert_eq!(resized.shape(), [9 * 13, 1]);
    assert!(resized.to_f32().iter().all(|x| (x - 0.25).abs() < 1e-6));
    let mut vit = Checkpoint::fresh("vit_nano_patch4_32", None, None, 0).unwrap();
    assert!(
        vit.set_window_size([4, 4])
            .unwrap_err()
            .to_string()
            .contains("only Swins")
    );
}

#[test]
fn what_timm_cannot_build_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let model = small();
    let mut spec = model.spec.clone();
    if let NetworkSpec::Swin(swin) = &mut spec.network {
        swin.img_size = [32, 64];
        swin.window_size = [8, 8];
        swin.window_rule = WindowRule::Joint;
        swin.norm_eps = 1e-6;
        let attn = swin.cores[3].attn.as_mut().unwrap();
        attn.qk_dims[1] = 5;
        swin.cores[1].mlp = None;
        swin.layers[5].core = 4;
        swin.cores.truncate(5);
    }
    let pruned = Checkpoint {
        tensors: spec.init(1).unwrap(),
        spec,
        ..model
    };
    let dir = folder.path().join("pruned");
    pruned.save(&dir, false).unwrap();
    let again = Checkpoint::load(&dir, &LoadOptions::default()).unwrap();
    assert_eq!((again.spec, again.tensors), (pruned.spec, pruned.tensors));
}

#[test]
fn impossible_models_get_a_sentence() {
    let refused = |change: &dyn Fn(&mut SwinSpec), said: &str| {
        let mut spec = small().spec;
        if let NetworkSpec::Swin(swin) = &mut spec.network {
            change(swin);
        }
        let text = spec.tensors().unwrap_err().to_string();
        assert!(text.contains(said), "{text}");
    };
    refused(&|swin| swin.img_size = [36, 32], "even sides");
    refused(&|swin| swin.img_size = [33, 32], "multiple of the patch size");
    refused(&|swin| swin.window_size = [0, 4], "must be positive");
    refused(&|swin| swin.depths = vec![2, 2, 0], "at least one block");
    refused(&|swin| swin.depths = vec![2, 2, 3], "7 blocks");
    refused(&|swin| swin.layers[2].core = 1, "another stage");
    refused(&|swin| swin.layers[0].core = 9, "names core 9");
    refused(&|swin| swin.layers[3].norms = Some(0), "same stage");
    refused(&|swin| swin.embed_dim = 1 << 40, "width");
    refused(
        &|swin| swin.depths = vec![usize::MAX, usize::MAX, 2],
        "number of blocks",
    );
    refused(
        &|swin| {
            swin.img_size = [40, 40];
            swin.window_rule = WindowRule::Joint;
            swin.window_size = [3, 3];
        },
        "do not fit",
    );
    refused(
        &|swin| {
            swin.img_size = [2048, 2048];
            swin.window_size = [512, 512];
        },
        "pairs of tokens",
    );
    // timm fills the map up.
    let mut padded = small();
    padded.set_img_size([40, 48], None).unwrap();
    padded.spec.tensors().unwrap();
}

#[test]
fn tables_do_not_decay() {
    let decays: BTreeMap<String, bool> = small()
        .spec
        .tensors()
        .unwrap()
        .into_iter()
        .map(|tensor| (tensor.name, tensor.decays))
        .collect();
    for (name, expected) in [
        ("layers.0.blocks.1.attn.relative_position_bias_table", false),
        ("layers.1.downsample.reduction.weight", true),
        ("layers.1.downsample.norm.weight", false),
        ("patch_embed.proj.weight", true),
        ("patch_embed.norm.bias", false),
        ("head.fc.weight", true),
        ("head.fc.bias", false),
    ] {
        assert_eq!(decays[name], expected, "{name}");
    }
}
