//! MiniViTs of the zoo: parameters and costs as published, names of the original files in and out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::spec::{Groups, NetworkSpec, NormsOf};
use vitesse_model::storage::safetensors;
use vitesse_model::{
    Checkpoint, DType, LoadOptions, ModelSpec, Tensor, Tensors, minivit_names, swin_names, zoo,
};

/// Names of the zoo, the listings of the original files, parameters and billions of multiply-accumulates. The reference counts Swins' norms too.
const PUBLISHED: [(&str, &str, usize, f64); 9] = [
    (
        "mini_deit_tiny_patch16_224",
        "mini_deit_tiny_patch16_224",
        3_090_304,
        1.277,
    ),
    (
        "mini_deit_small_patch16_224",
        "mini_deit_small_patch16_224",
        11_450_824,
        4.651,
    ),
    (
        "mini_deit_base_patch16_224",
        "mini_deit_base_patch16_224",
        44_098_408,
        17.693,
    ),
    (
        "mini_deit_base_patch16_384",
        "mini_deit_base_patch16_384",
        44_390_248,
        56.785,
    ),
    ("mini_deit_base_share12_patch16_224", "", 8_674_408, 17.693),
    (
        "mini_swin_tiny_patch4_window7_224",
        "mini_swin_tiny",
        12_001_765,
        4.599,
    ),
    (
        "mini_swin_small_patch4_window7_224",
        "mini_swin_small",
        26_463_205,
        8.930,
    ),
    (
        "mini_swin_base_patch4_window7_224",
        "mini_swin_base",
        46_444_852,
        15.712,
    ),
    (
        "mini_swin_base_patch4_window12_384",
        "mini_swin_base_384",
        46_512_532,
        48.582,
    ),
];

fn spec(name: &str) -> ModelSpec {
    zoo::get(name).unwrap().spec
}

#[test]
fn parameters_and_costs_are_the_published_ones() {
    for (name, _, parameters, gmacs) in PUBLISHED {
        let cost = spec(name).costs().unwrap();
        assert_eq!(cost.parameters(), parameters, "{name}");
        let found = cost.macs() as f64 / 1e9;
        let tolerance = if name.starts_with("mini_swin") {
            0.0015
        } else {
            0.0
        } * gmacs
            + 0.0006;
        assert!(
            (found - gmacs).abs() < tolerance,
            "{name}: {found} instead of {gmacs}"
        );
    }
}

#[test]
fn each_part_of_a_mini_swin_has_the_published_parameters() {
    let is_local = |op: &OpSpec| matches!(op.kind, OpKind::LocalConvolution(_));
    for (name, base, counts) in [
        (
            "mini_swin_tiny_patch4_window7_224",
            "swin_tiny_patch4_window7_224",
            [11_755_741, 11_767_645, 11_772_133],
        ),
        (
            "mini_swin_small_patch4_window7_224",
            "swin_small_patch4_window7_224",
            [25_967_677, 25_985_725, 25_993_957],
        ),
        (
            "mini_swin_base_patch4_window7_224",
            "swin_base_patch4_window7_224",
            [45_780_740, 45_804_804, 45_819_188],
        ),
    ] {
        let whole = spec(name);
        let NetworkSpec::Swin(swin) = &whole.network else {
            panic!("a Swin")
        };
        let mut sizes = vec![0; swin.cores.len()];
        swin.layers.iter().for_each(|layer| sizes[layer.core] += 1);
        let groups = Groups::Sizes(sizes);
        let of = |norms| {
            spec(base)
                .share(&groups, norms)
                .unwrap()
                .costs()
                .unwrap()
                .parameters()
        };
        let mut mixed = whole.clone();
        mixed.ops.retain(|op| !is_local(op));
        let found = [
            of(NormsOf::Group),
            of(NormsOf::Layer),
            mixed.costs().unwrap().parameters(),
        ];
        assert_eq!(found, counts, "{name}");
    }
}

fn listing(name: &str) -> Option<Vec<(String, Vec<usize>, bool)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/names/{name}.json"));
    let file: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).unwrap();
    let tensors = file["tensors"].as_array().unwrap().iter().map(|tensor| {
        let shape = tensor["shape"].as_array().unwrap();
        let shape = shape.iter().map(|side| side.as_u64().unwrap() as usize).collect();
        let name = tensor["name"].as_str().unwrap().to_owned();
        (name, shape, tensor["kind"] == "buffer")
    });
    Some(tensors.collect())
}

/// The tensors of an original file, each with numbers of its own.
fn file(listing: &[(String, Vec<usize>, bool)], buffers: bool) -> Tensors {
    let mut tensors = Tensors::new();
    for (i, (name, shape, buffer)) in listing.iter().enumerate() {
        let count: usize = shape.iter().product();
        if *buffer && buffers {
            tensors.insert_f32(name, shape, vec![0.0; count]).unwrap();
        } else if !buffer {
            let mut bytes = vec![0; 2 * count];
            bytes[..2].copy_from_slice(&(0x3c00 + i as u16).to_le_bytes());
            let tensor = Tensor::from_bytes(DType::BF16, shape, bytes).unwrap();
            tensors.insert(name, tensor);
        }
    }
    tensors
}

fn shapes(tensors: &Tensors) -> BTreeMap<String, Vec<usize>> {
    let shape = |(name, tensor): (&str, &Tensor)| (name.to_owned(), tensor.shape().to_vec());
    tensors.iter().map(shape).collect()
}

#[test]
fn original_names_load_strictly_and_come_back() {
    let mut compared = 0;
    for (name, listed, ..) in PUBLISHED {
        let Some(listing) = listing(listed) else {
            continue;
        };
        let (spec, original) = (spec(name), file(&listing, false));
        let timms = original.iter().map(|(name, tensor)| {
            let name = match name.starts_with("layers.") || name.starts_with("head.") {
                true if listed.starts_with("mini_swin") => swin_names::timm_name(name, true).unwrap(),
                _ => name.to_owned(),
            };
            (name, tensor.clone())
        });
        let read = minivit_names::read(&spec, timms.collect()).unwrap();
        spec.check(&read, name).unwrap_or_else(|e| panic!("{e}"));
        let written = minivit_names::write(&spec, &read).unwrap();
        assert_eq!(shapes(&written), shapes(&original), "{name}");
        assert!(written == original, "{name}: numbers went to other tensors");
        compared += 1;
    }
    assert_eq!(compared, PUBLISHED.len() - 1);
}

#[test]
fn files_without_a_description_are_recognised_and_saved_as_they_were() {
    for (name, listed, ..) in [PUBLISHED[0], PUBLISHED[5]] {
        let listing = listing(listed).expect("a listing");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("original.safetensors");
        safetensors::write(&path, &file(&listing, true), &Default::default()).unwrap();
        let loaded = Checkpoint::load(&path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.spec, spec(name));
        let saved: PathBuf = folder.path().join("saved");
        loaded.save(&saved, false).unwrap();
        let (written, _) = safetensors::read(&saved.join("model.safetensors")).unwrap();
        assert!(written == file(&listing, false), "{name}");
        let again = Checkpoint::load(&saved, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(again.spec, loaded.spec);
        assert!(again.tensors == loaded.tensors, "{name}");
    }
}

#[test]
fn a_class_token_is_not_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("with_a_class_token.safetensors");
    let mut tensors = file(&listing("mini_deit_tiny_patch16_224").expect("a listing"), false);
    tensors
        .insert_f32("cls_token", &[1, 1, 192], vec![0.0; 192])
        .unwrap();
    safetensors::write(&path, &tensors, &Default::default()).unwrap();
    let options = LoadOptions {
        architecture: Some("mini_deit_tiny_patch16_224".into()),
        ..LoadOptions::default()
    };
    let error = Checkpoint::load(&path, &options).unwrap_err().to_string();
    assert!(
        error.contains("class token") && error.contains("mean of the patches"),
        "{error}"
    );
    // A whole DeiT, whose table of positions has a row more.
    let deit = Checkpoint::fresh("deit_tiny_patch16_224", None, None, 1).unwrap();
    safetensors::write(&path, &deit.tensors, &Default::default()).unwrap();
    let error = Checkpoint::load(&path, &options).unwrap_err().to_string();
    assert!(error.contains("the file holds a class token"), "{error}");
}

#[test]
fn larger_images_need_no_other_tables() {
    let mut small = Checkpoint::fresh("mini_deit_tiny_patch16_224", None, Some([64, 64]), 1).unwrap();
    small.set_img_size([96, 96], None).unwrap();
    assert_eq!(small.tensors.get("pos_embed").unwrap().shape(), [1, 36, 192]);
    small.spec.check(&small.tensors, "the resized model").unwrap();
}

#[test]
fn fresh_ones_are_drawn_and_decay_as_in_the_reference() {
    let specs = spec("mini_deit_tiny_patch16_224").tensors().unwrap();
    let swins = spec("mini_swin_tiny_patch4_window7_224").tensors().unwrap();
    let decays = |tensors: &[vitesse_model::spec::TensorSpec], end: &str| -> Vec<bool> {
        let found: Vec<bool> = tensors
            .iter()
            .filter(|tensor| tensor.name.ends_with(end))
            .map(|tensor| tensor.decays)
            .collect();
        assert!(!found.is_empty(), "{end}");
        found
    };
    for (tensors, end, expected) in [
        (&specs, "attn.logits.lookup_table_weight", true),
        (&specs, "attn.probs.weight", true),
        (&specs, "pos_embed", false),
        (&swins, "attn.logits.weight", true),
        (&swins, "attn.logits.bias", false),
        (&swins, "mid.conv.weight", true),
        (&swins, "mid.conv.bias", false),
        (&swins, "mid.norm.weight", false),
        (&swins, "relative_position_bias_table", false),
    ] {
        assert!(
            decays(tensors, end).into_iter().all(|found| found == expected),
            "{end}"
        );
    }
    let largest = |tensors: &[vitesse_model::spec::TensorSpec], name: &str| -> f32 {
        let tensor = tensors
            .iter()
            .find(|tensor| tensor.name.ends_with(name))
            .expect("a tensor");
        let values = tensor.init(3).unwrap();
        values.to_f32().iter().fold(0.0, |most, x| x.abs().max(most))
    };
    assert_eq!(largest(&specs, "attn.logits.lookup_table_weight"), 0.0);
    let mixing = largest(&swins, "attn.probs.weight");
    assert!(mixing > 0.0 && mixing < 0.2, "{mixing}");
    let convolution = largest(&swins, "mid.conv.weight");
    assert!(convolution > 0.13 && convolution <= 1.0 / 7.0, "{convolution}");
}
