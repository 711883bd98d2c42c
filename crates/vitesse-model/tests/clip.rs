//! CLIP's image encoder from the files of OpenAI, OpenCLIP and transformers: hand-made files of a tiny model in which every
//! tensor has values of its own.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vitesse_model::spec::{Activation, VitSpec};
use vitesse_model::storage::safetensors::{self, Metadata};
use vitesse_model::tensors::DType;
use vitesse_model::{Checkpoint, LoadOptions, Tensor, Tensors};

/// Width, hidden units, outputs of the projection, patches of 8 in images of 32: 16 of them.
const DIM: usize = 128;
const HIDDEN: usize = 96;
const OUT: usize = 24;
const ROWS: usize = 17;

const OPENAI_BLOCK: [(&str, &[usize]); 12] = [
    ("ln_1.weight", &[DIM]),
    ("ln_1.bias", &[DIM]),
    ("attn.in_proj_weight", &[3 * DIM, DIM]),
    ("attn.in_proj_bias", &[3 * DIM]),
    ("attn.out_proj.weight", &[DIM, DIM]),
    ("attn.out_proj.bias", &[DIM]),
    ("ln_2.weight", &[DIM]),
    ("ln_2.bias", &[DIM]),
    ("mlp.c_fc.weight", &[HIDDEN, DIM]),
    ("mlp.c_fc.bias", &[HIDDEN]),
    ("mlp.c_proj.weight", &[DIM, HIDDEN]),
    ("mlp.c_proj.bias", &[DIM]),
];

const OPENAI: [(&str, &[usize]); 8] = [
    ("class_embedding", &[DIM]),
    ("positional_embedding", &[ROWS, DIM]),
    ("conv1.weight", &[DIM, 3, 8, 8]),
    ("ln_pre.weight", &[DIM]),
    ("ln_pre.bias", &[DIM]),
    ("ln_post.weight", &[DIM]),
    ("ln_post.bias", &[DIM]),
    ("proj", &[DIM, OUT]),
];

/// What is in a file of OpenAI's besides the image encoder.
const TEXT: [(&str, &[usize]); 6] = [
    ("positional_embedding", &[7, 32]),
    ("text_projection", &[32, OUT]),
    ("logit_scale", &[]),
    ("token_embedding.weight", &[9, 32]),
    ("transformer.resblocks.0.attn.in_proj_weight", &[96, 32]),
    ("ln_final.weight", &[32]),
];

const HF_BLOCK: [(&str, &[usize]); 16] = [
    ("layer_norm1.weight", &[DIM]),
    ("layer_norm1.bias", &[DIM]),
    ("self_attn.q_proj.weight", &[DIM, DIM]),
    ("self_attn.q_proj.bias", &[DIM]),
    ("self_attn.k_proj.weight", &[DIM, DIM]),
    ("self_attn.k_proj.bias", &[DIM]),
    ("self_attn.v_proj.weight", &[DIM, DIM]),
    ("self_attn.v_proj.bias", &[DIM]),
    ("self_attn.out_proj.weight", &[DIM, DIM]),
    ("self_attn.out_proj.bias", &[DIM]),
    ("layer_norm2.weight", &[DIM]),
    ("layer_norm2.bias", &[DIM]),
    ("mlp.fc1.weight", &[HIDDEN, DIM]),
    ("mlp.fc1.bias", &[HIDDEN]),
    ("mlp.fc2.weight", &[DIM, HIDDEN]),
    ("mlp.fc2.bias", &[DIM]),
];

const HF: [(&str, &[usize]); 7] = [
    ("embeddings.class_embedding", &[DIM]),
    ("embeddings.position_embedding.weight", &[ROWS, DIM]),
    ("embeddings.patch_embedding.weight", &[DIM, 3, 8, 8]),
    ("pre_layrnorm.weight", &[DIM]),
    ("pre_layrnorm.bias", &[DIM]),
    ("post_layernorm.weight", &[DIM]),
    ("post_layernorm.bias", &[DIM]),
];

/// Adds a tensor whose values no other has: they count on.
fn add(tensors: &mut Tensors, name: &str, shape: &[usize]) {
    let (count, first) = (shape.iter().product::<usize>(), tensors.len() as f32);
    let values = (0..count).map(|i| first + i as f32 / 65536.0).collect();
    tensors.insert_f32(name, shape, values).unwrap();
}

/// OpenAI's names, behind `prefix`.
fn openai(prefix: &str) -> Tensors {
    let mut tensors = Tensors::new();
    for (name, shape) in OPENAI {
        add(&mut tensors, &format!("{prefix}{name}"), shape);
    }
    for block in 0..2 {
        for (name, shape) in OPENAI_BLOCK {
            add(
                &mut tensors,
                &format!("{prefix}transformer.resblocks.{block}.{name}"),
                shape,
            );
        }
    }
    tensors
}

fn with_text(mut tensors: Tensors, prefix: &str) -> Tensors {
    for (name, shape) in TEXT {
        add(&mut tensors, &format!("{prefix}{name}"), shape);
    }
    tensors
}

/// transformers' names, behind `prefix`.
fn hf(prefix: &str) -> Tensors {
    let mut tensors = Tensors::new();
    for (name, shape) in HF {
        add(&mut tensors, &format!("{prefix}{name}"), shape);
    }
    for block in 0..2 {
        for (name, shape) in HF_BLOCK {
            add(
                &mut tensors,
                &format!("{prefix}encoder.layers.{block}.{name}"),
                shape,
            );
        }
    }
    tensors
}

fn write(place: &Path, name: &str, tensors: &Tensors) -> PathBuf {
    let file = place.join(name);
    safetensors::write(&file, tensors, &Metadata::new()).unwrap();
    file
}

fn load(path: &Path) -> Checkpoint {
    Checkpoint::load(path, &LoadOptions::default()).unwrap()
}

fn refusal(path: &Path) -> String {
    Checkpoint::load(path, &LoadOptions::default())
        .unwrap_err()
        .to_string()
}

fn vit(checkpoint: &Checkpoint) -> &VitSpec {
    checkpoint.spec.vit().unwrap()
}

fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
    tensors.get(name).unwrap().to_f32().into_owned()
}

/// Width, blocks, heads, hidden units, side of the images, classes.
fn shape(checkpoint: &Checkpoint) -> [usize; 6] {
    let vit = vit(checkpoint);
    let (attn, mlp) = (
        vit.cores[0].attn.as_ref().unwrap(),
        vit.cores[0].mlp.as_ref().unwrap(),
    );
    let classes = checkpoint.spec.num_classes;
    [
        vit.embed_dim,
        vit.layers.len(),
        attn.num_heads(),
        mlp.hidden,
        vit.img_size[0],
        classes,
    ]
}

#[test]
fn openais_own_are_read_with_the_quick_gelu() {
    let place = tempfile::tempdir().unwrap();
    let stored = with_text(openai("visual."), "");
    let mut own = stored.clone();
    for name in ["input_resolution", "context_length", "vocab_size"] {
        own.insert_f32(name, &[], vec![1.0]).unwrap();
    }
    let file = write(place.path(), "clip.safetensors", &own);
    let read = load(&file);
    assert_eq!(shape(&read), [DIM, 2, 2, HIDDEN, 32, OUT]);
    let found = vit(&read);
    assert_eq!(found.activation, Activation::QuickGelu);
    assert!(found.pre_norm && !found.patch_bias);
    assert_eq!(found.norm_eps, 1e-5);
    assert_eq!(read.spec.architecture, "vit_base_patch32_clip_quickgelu_224");
    let cfg = &read.config.pretrained_cfg;
    assert_eq!((cfg.crop_pct, cfg.mean[0]), (1.0, 0.48145466));

    // Every tensor is where it belongs.
    for (ours, theirs) in [
        ("cls_token", "class_embedding"),
        ("pos_embed", "positional_embedding"),
        ("patch_embed.proj.weight", "conv1.weight"),
        ("norm_pre.weight", "ln_pre.weight"),
        ("norm_pre.bias", "ln_pre.bias"),
        ("norm.bias", "ln_post.bias"),
        ("blocks.1.norm1.bias", "transformer.resblocks.1.ln_1.bias"),
        ("blocks.1.norm2.weight", "transformer.resblocks.1.ln_2.weight"),
        (
            "blocks.0.attn.qkv.weight",
            "transformer.resblocks.0.attn.in_proj_weight",
        ),
        (
            "blocks.1.attn.qkv.bias",
            "transformer.resblocks.1.attn.in_proj_bias",
        ),
        (
            "blocks.1.attn.proj.weight",
            "transformer.resblocks.1.attn.out_proj.weight",
        ),
        (
            "blocks.0.mlp.fc1.weight",
            "transformer.resblocks.0.mlp.c_fc.weight",
        ),
        ("blocks.1.mlp.fc2.bias", "transformer.resblocks.1.mlp.c_proj.bias"),
    ] {
        let theirs = values(&stored, &format!("visual.{theirs}"));
        assert_eq!(values(&read.tensors, ours), theirs, "{ours}");
    }
    let (head, proj) = (
        values(&read.tensors, "head.weight"),
        values(&stored, "visual.proj"),
    );
    for (row, column) in [(0, 5), (23, 127), (7, 0)] {
        assert_eq!(head[row * DIM + column], proj[column * OUT + row]);
    }
    assert_eq!(values(&read.tensors, "head.bias"), [0.0; OUT]);

    // The text encoder is told once, and so is what the head is.
    let notes = read.source.notes.join("\n");
    assert_eq!(notes.matches("left out the text encoder").count(), 1, "{notes}");
    assert!(
        notes.contains("9 tensors") && notes.contains("quick GELU"),
        "{notes}"
    );
    assert!(notes.contains("image features"), "{notes}");

    // What is saved is a folder of timm's.
    let folder = place.path().join("saved");
    read.save(&folder, false).unwrap();
    let again = load(&folder);
    assert_eq!((&again.spec, &again.tensors), (&read.spec, &read.tensors));
    let config: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config.get("vitesse"), None);
}

#[test]
fn openclips_need_to_be_told_their_activation() {
    let place = tempfile::tempdir().unwrap();
    // As its training saves it, data-parallel.
    let file = write(
        place.path(),
        "epoch.safetensors",
        &with_text(openai("module.visual."), "module."),
    );
    let text = refusal(&file);
    for part in [
        "--architecture",
        "`vit_base_patch32_clip_224`",
        "`vit_base_patch32_clip_quickgelu_224`",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let config = place.path().join("open_clip_config.json");
    let with = |quick: bool, more: Value| {
        let mut vision =
            json!({ "image_size": 32, "layers": 2, "width": DIM, "patch_size": 8, "head_width": 32 });
        vision
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let text = json!({
            "model_cfg": { "embed_dim": OUT, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": {} },
            "preprocess_cfg": { "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25] },
        });
        fs::write(&config, text.to_string()).unwrap();
    };
    for (quick, activation) in [(true, Activation::QuickGelu), (false, Activation::Gelu)] {
        with(quick, json!({}));
        let read = load(&file);
        assert_eq!(vit(&read).activation, activation);
        assert_eq!(
            shape(&read),
            [DIM, 2, 4, HIDDEN, 32, OUT],
            "heads are as wide as it says"
        );
        assert_eq!(read.config.pretrained_cfg.std, [0.25; 3]);
    }
    with(false, json!({ "attentional_pool": true }));
    assert!(refusal(&file).contains("model_cfg.vision_cfg.attentional_pool"));

    // An encoder that was saved alone, named by the caller: here it is no model of the zoo.
    let file = write(place.path(), "alone.safetensors", &openai(""));
    fs::remove_file(&config).unwrap();
    let named = LoadOptions {
        architecture: Some("vit_base_patch32_clip_224".to_owned()),
        ..LoadOptions::default()
    };
    let text = Checkpoint::load(&file, &named).unwrap_err().to_string();
    assert!(text.contains("blocks.11") || text.contains("missing"), "{text}");
    with(true, json!({}));
    assert_eq!(
        load(&file).tensors,
        load(&write(place.path(), "visual.safetensors", &openai("visual."))).tensors
    );
    assert_eq!(
        load(&file).tensors,
        load(&write(place.path(), "ddp.safetensors", &openai("module."))).tensors
    );
    // What is known of a file is not overruled by a name, and a file that describes nothing proves nothing.
    let text = Checkpoint::load(&file, &named).unwrap_err().to_string();
    assert!(text.contains("leave `--architecture` out"), "{text}");
    fs::write(&config, "{}").unwrap();
    assert!(refusal(&file).contains("model_cfg"));
}

#[test]
fn half_precision_stays_half() {
    let place = tempfile::tempdir().unwrap();
    let mut tensors = Tensors::new();
    for (name, tensor) in openai("visual.") {
        let values = tensor.to_f32().into_owned();
        let half = Tensor::rounded(DType::F16, tensor.shape(), values).unwrap();
        tensors.insert(name, half);
    }
    for name in ["input_resolution", "context_length", "vocab_size"] {
        tensors.insert_f32(name, &[], vec![1.0]).unwrap();
    }
    let read = load(&write(place.path(), "half.safetensors", &tensors));
    for name in ["head.weight", "head.bias", "blocks.1.attn.qkv.weight"] {
        assert_eq!(read.tensors.get(name).unwrap().dtype(), DType::F16, "{name}");
    }
}

#[test]
fn what_is_no_vision_transformer_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let mut resnet = Tensors::new();
    add(&mut resnet, "visual.conv1.weight", &[32, 3, 3, 3]);
    add(&mut resnet, "visual.attnpool.positional_embedding", &[50, 64]);
    let text = refusal(&write(place.path(), "rn50.safetensors", &resnet));
    assert!(text.contains("ResNet"), "{text}");
    // A tensor that no model here has is named.
    let mut scaled = openai("visual.");
    add(&mut scaled, "visual.transformer.resblocks.0.ls_1.gamma", &[DIM]);
    for name in ["input_resolution", "context_length", "vocab_size"] {
        add(&mut scaled, name, &[]);
    }
    let text = refusal(&write(place.path(), "scaled.safetensors", &scaled));
    assert!(text.contains("transformer.resblocks.0.ls_1.gamma"), "{text}");
}

/// A folder as transformers writes it.
fn folder(place: &Path, name: &str, config: &Value, tensors: &Tensors) -> PathBuf {
    let folder = place.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write(&folder, "model.safetensors", tensors);
    folder
}

#[test]
fn transformers_folders_are_read() {
    let place = tempfile::tempdir().unwrap();
    let sizes = json!({
        "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": HIDDEN,
        "image_size": 32, "patch_size": 8, "projection_dim": OUT, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    });
    let mut flat = sizes.clone();
    flat["model_type"] = json!("clip_vision_model");
    let whole =
        json!({ "model_type": "clip", "projection_dim": OUT, "vision_config": sizes, "text_config": {} });

    let alone = folder(place.path(), "alone", &flat, &hf(""));
    let older = folder(place.path(), "older", &flat, &hf("vision_model."));
    let mut projected = hf("vision_model.");
    add(&mut projected, "visual_projection.weight", &[OUT, DIM]);
    let with_projection = folder(place.path(), "projected", &flat, &projected);
    let mut both = projected.clone();
    add(&mut both, "text_projection.weight", &[OUT, 32]);
    add(
        &mut both,
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        &[32, 32],
    );
    add(&mut both, "text_model.embeddings.position_ids", &[1, 7]);
    add(&mut both, "vision_model.embeddings.position_ids", &[1, ROWS]);
    add(&mut both, "logit_scale", &[]);
    let clip = folder(place.path(), "clip", &whole, &both);

    for (folder, classes) in [(&alone, 0), (&older, 0), (&with_projection, OUT), (&clip, OUT)] {
        let read = load(folder);
        assert_eq!(shape(&read), [DIM, 2, 4, HIDDEN, 32, classes]);
        assert_eq!(vit(&read).activation, Activation::QuickGelu);
        let stored = hf("");
        for (ours, theirs) in [
            ("cls_token", "embeddings.class_embedding"),
            ("pos_embed", "embeddings.position_embedding.weight"),
            ("patch_embed.proj.weight", "embeddings.patch_embedding.weight"),
            ("norm_pre.weight", "pre_layrnorm.weight"),
            ("norm.bias", "post_layernorm.bias"),
            ("blocks.0.norm1.weight", "encoder.layers.0.layer_norm1.weight"),
            (
                "blocks.1.attn.proj.bias",
                "encoder.layers.1.self_attn.out_proj.bias",
            ),
            ("blocks.1.mlp.fc2.weight", "encoder.layers.1.mlp.fc2.weight"),
        ] {
            assert_eq!(values(&read.tensors, ours), values(&stored, theirs), "{ours}");
        }
        let parts = ["q", "k", "v"]
            .map(|part| values(&stored, &format!("encoder.layers.1.self_attn.{part}_proj.weight")));
        assert_eq!(values(&read.tensors, "blocks.1.attn.qkv.weight"), parts.concat());
        if classes > 0 {
            let projection = values(&projected, "visual_projection.weight");
            assert_eq!(values(&read.tensors, "head.weight"), projection);
            assert_eq!(values(&read.tensors, "head.bias"), [0.0; OUT]);
        }
        let notes = read.source.notes.join("\n");
        assert!(!notes.contains("epsilon"), "it is timm's: {notes}");
        let told = usize::from(folder == &clip);
        assert_eq!(
            notes.matches("left out the text encoder").count(),
            told,
            "{notes}"
        );
    }

    let mut other = whole.clone();
    other["vision_config"]["hidden_act"] = json!("silu");
    let text = refusal(&folder(place.path(), "silu", &other, &both));
    assert!(
        text.contains("vision_config.hidden_act") && text.contains("`quick_gelu` or `gelu`"),
        "{text}"
    );
    let mut classifier = hf("vision_model.");
    add(&mut classifier, "classifier.weight", &[3, DIM]);
    let text = refusal(&folder(place.path(), "classifier", &whole, &classifier));
    assert!(text.contains("CLIPForImageClassification"), "{text}");
    let text = refusal(&folder(
        place.path(),
        "siglip",
        &json!({ "model_type": "siglip" }),
        &both,
    ));
    assert!(text.contains("`clip_vision_model`"), "{text}");
}
