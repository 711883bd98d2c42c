//! `config.json`: reading is the inverse of writing, timm's forms are read as timm reads them, and what is wrong with a
//! file is said in a sentence.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use vitesse_data::{CropMode, Interpolation};
use vitesse_model::config::{Config, HistoryStep, PretrainedCfg};
use vitesse_model::ops::{OpKind, OpSpec, ScaleShift};
use vitesse_model::spec::{
    Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NetworkSpec, Pool, PrefixToken, VitSpec,
};
use vitesse_model::{Error, Site, Sites, zoo};
use vitesse_rng::{Key, Rng};

const FILE: &str = "run/config.json";

fn parse(value: &Value) -> Result<(ModelSpec, Config), Error> {
    Config::parse(&value.to_string(), Path::new(FILE))
}

/// The file of `spec` as JSON, after checking that it reads back to the same.
fn round_trip(spec: &ModelSpec, config: &Config) -> Value {
    let text = config.to_json(spec).unwrap();
    let (read_spec, read_config) = Config::parse(&text, Path::new(FILE)).unwrap();
    assert_eq!(&read_spec, spec, "{text}");
    assert_eq!(&read_config, config, "{text}");
    assert_eq!(read_config.to_json(&read_spec).unwrap(), text);
    serde_json::from_str(&text).unwrap()
}

fn vit(spec: &mut ModelSpec) -> &mut VitSpec {
    match &mut spec.network {
        NetworkSpec::Vit(vit) => vit,
        _ => panic!("not a ViT"),
    }
}

fn zoo(name: &str) -> (ModelSpec, Config) {
    let entry = zoo::get(name).unwrap();
    (
        entry.spec,
        Config {
            pretrained_cfg: entry.pretrained_cfg,
            ..Config::default()
        },
    )
}

#[test]
fn every_name_of_the_zoo_reads_back() {
    for name in zoo::names() {
        let (spec, config) = zoo(name);
        let file = round_trip(&spec, &config);
        let entry = zoo::get(name).unwrap();
        assert_eq!(file["architecture"], entry.timm_name);
        // timm builds its own from the name alone, and ours from another name and arguments.
        let ours = entry.timm_name != name;
        if name.starts_with("mini_") {
            of_a_minivit(&spec, &file, name);
            continue;
        }
        assert_eq!(file.get("model_args").is_some(), ours, "{name}");
        assert_eq!(
            file.get("vitesse"),
            ours.then(|| json!({ "schema": 1, "architecture": name }))
                .as_ref()
        );
    }
}

/// A MiniViT is a model of timm's whose layers share, with ops: both stand under our key.
fn of_a_minivit(spec: &ModelSpec, file: &Value, name: &str) {
    let own = file["vitesse"].as_object().unwrap();
    assert_eq!(own["architecture"], name);
    assert_eq!(own["ops"].as_array().unwrap().len(), spec.ops.len(), "{name}");
    let mut keys = vec!["schema", "architecture", "ops", "blocks", "share"];
    let mut args = Some(json!({ "class_token": false, "global_pool": "avg", "fc_norm": false }));
    if let NetworkSpec::Swin(_) = &spec.network {
        keys.insert(2, "mask_unshifted");
        args = None;
    }
    assert_eq!(own.keys().collect::<Vec<_>>(), keys, "{name}");
    assert_eq!(file.get("model_args"), args.as_ref(), "{name}");
}

#[test]
fn a_plain_file_is_timms() {
    let (mut spec, mut config) = zoo("deit_tiny_distilled_patch16_224");
    spec.num_classes = 3;
    config.label_names = ["cat", "dog", "owl"]
        .map(str::to_owned)
        .into_iter()
        .enumerate()
        .collect();
    config.pretrained_cfg.license = Some("apache-2.0".to_owned());
    let expected = json!({
        "architecture": "deit_tiny_distilled_patch16_224",
        "num_classes": 3,
        "num_features": 192,
        "global_pool": "token",
        "label_names": ["cat", "dog", "owl"],
        "pretrained_cfg": {
            "custom_load": false,
            "input_size": [3, 224, 224],
            "fixed_input_size": true,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 3,
            "pool_size": null,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"],
            "license": "apache-2.0",
        },
    });
    assert_eq!(round_trip(&spec, &config), expected);
}

#[test]
fn what_timm_cannot_express_stands_under_one_key() {
    let (mut spec, mut config) = zoo("deit_tiny_patch16_224");
    let model = vit(&mut spec);
    model.norm_eps = 1e-12;
    model.cores[3].mlp = Some(MlpSpec {
        hidden: 500,
        out_idx: None,
    });
    model.cores[4].attn = None;
    config.history = vec![HistoryStep {
        step: "prune".to_owned(),
        method: Some("vit-slim".to_owned()),
        config: json!({ "seed": 0 }).as_object().unwrap().clone(),
        parent_sha256: Some("ab".repeat(32)),
        metrics: json!({ "top1": 71.5 }).as_object().unwrap().clone(),
    }];
    let file = round_trip(&spec, &config);
    assert!(file.get("model_args").is_none());
    let own = &file["vitesse"];
    assert_eq!(
        own.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["schema", "norm_eps", "blocks", "history"]
    );
    assert_eq!(own["blocks"][3]["mlp"], json!({ "hidden": 500 }));
    assert_eq!(own["blocks"][4]["attn"], Value::Null);

    // Removing whole blocks, or the same hidden units from all, is something timm can express.
    let (mut spec, config) = zoo("deit_tiny_patch16_224");
    let model = vit(&mut spec);
    model.cores.truncate(7);
    model.layers.truncate(7);
    for core in &mut model.cores {
        core.mlp = Some(MlpSpec {
            hidden: 501,
            out_idx: None,
        });
    }
    let file = round_trip(&spec, &config);
    assert_eq!(file.get("vitesse"), None);
    let ratio = file["model_args"]["mlp_ratio"].as_f64().unwrap();
    assert_eq!((192.0 * ratio) as usize, 501);

    // Three blocks, each used twice.
    let (mut spec, config) = zoo("deit_micro_patch4_32");
    let model = vit(&mut spec);
    model.cores.truncate(3);
    model.layers = [0, 0, 1, 1, 2, 2].map(LayerSpec::of).to_vec();
    let file = round_trip(&spec, &config);
    assert_eq!(file["vitesse"]["share"]["layers"][3], json!({ "core": 1 }));

    // A layer may use the norms of another.
    vit(&mut spec).layers[3].norms = Some(2);
    let file = round_trip(&spec, &config);
    assert_eq!(
        file["vitesse"]["share"]["layers"][3],
        json!({ "core": 1, "norms": 2 })
    );

    // CLIP's activation and its norm before the blocks are arguments of timm's, which leaves out the bias there.
    let (mut spec, config) = zoo("vit_base_patch16_224");
    let model = vit(&mut spec);
    (model.activation, model.pre_norm, model.patch_bias) = (Activation::QuickGelu, true, false);
    let file = round_trip(&spec, &config);
    assert_eq!(
        file["model_args"],
        json!({ "pre_norm": true, "act_layer": "quick_gelu" })
    );
    assert_eq!(file.get("vitesse"), None);
    vit(&mut spec).patch_bias = true;
    assert_eq!(round_trip(&spec, &config)["vitesse"]["patch_bias"], json!(true));

    // Ops stand before the blocks, as they always have.
    let (mut spec, config) = zoo("deit_micro_patch4_32");
    vit(&mut spec).cores[0].mlp = None;
    spec.ops = vec![OpSpec {
        site: Site::AttnIn,
        layer: Some(1),
        kind: OpKind::ScaleShift(ScaleShift { shift: true }),
    }];
    let file = round_trip(&spec, &config);
    let own = file["vitesse"].as_object().unwrap();
    assert_eq!(
        own.keys().collect::<Vec<_>>(),
        ["schema", "architecture", "ops", "blocks"]
    );
    let op = json!([{ "site": "attn.in", "layer": 1, "op": "scale-shift", "shift": true }]);
    assert_eq!(own["ops"], op);

    // A convolutional network at another size needs no words of ours, with other stages it does.
    let (mut spec, config) = zoo("regnety_002");
    if let NetworkSpec::RegNet(regnet) = &mut spec.network {
        regnet.img_size = [64, 96];
    }
    assert_eq!(round_trip(&spec, &config).get("vitesse"), None);
    if let NetworkSpec::RegNet(regnet) = &mut spec.network {
        regnet.stages[0].depth += 1;
    }
    assert_eq!(round_trip(&spec, &config)["vitesse"]["stages"][0]["depth"], 2);
}

/// A model that need not make sense to anyone, drawn from a seed.
fn draw_spec(rng: &mut Rng) -> ModelSpec {
    let names: Vec<&str> = zoo::names()
        .filter(|name| zoo::get(name).unwrap().spec.vit().is_ok())
        .collect();
    let (mut spec, _) = zoo(names[rng.below(names.len())]);
    spec.num_classes = [0, 7, 1000][rng.below(3)];
    let model = vit(&mut spec);
    let usual = rng.below(2) == 0;
    if !usual {
        let heads = 1 + rng.below(4);
        let dim = heads * (1 + rng.below(40));
        let depth = rng.below(5);
        let prefix = model.prefix.clone();
        *model = VitSpec::plain(0, 1 + rng.below(16), dim, depth, heads, prefix);
        let hidden = 1 + rng.below(5 * dim);
        let qkv_bias = rng.below(2) == 0;
        for core in &mut model.cores {
            core.attn.as_mut().unwrap().qkv_bias = qkv_bias;
            core.mlp.as_mut().unwrap().hidden = hidden;
        }
        model.img_size = [1 + rng.below(9), 1 + rng.below(9)].map(|side| side * model.patch_size);
        model.in_chans = [1, 3, 4][rng.below(3)];
        model.norm_eps = [1e-6, 1e-12, rng.uniform() * 1e-5][rng.below(3)];
        if !model.is_distilled() && rng.below(2) == 0 {
            model.pool = [Pool::Token, Pool::Avg, Pool::AvgThenNorm][rng.below(3)];
            model.embed_prefix = rng.below(2) == 0;
            if model.pool != Pool::Token && rng.below(2) == 0 {
                model.prefix.clear();
            }
        }
        model.prefix.extend(vec![PrefixToken::Register; rng.below(3)]);
    }
    model.activation = [Activation::Gelu, Activation::QuickGelu, Activation::Relu][rng.below(3)];
    (model.pre_norm, model.patch_bias) = (rng.below(4) == 0, rng.below(4) > 0);
    // Prune.
    let (dim, depth) = (model.embed_dim, model.layers.len());
    for core in &mut model.cores {
        if rng.below(3) > 0 {
            continue;
        }
        let heads = 1 + rng.below(4);
        let mut widths = || (0..heads).map(|_| 1 + rng.below(20)).collect::<Vec<_>>();
        let (qk_dims, v_dims) = (widths(), widths());
        let scale = rng.uniform();
        let out_idx = (rng.below(2) == 0).then(|| (0..dim).step_by(2).collect::<Vec<_>>());
        let attn = AttentionSpec {
            qk_dims,
            v_dims,
            scale,
            qkv_bias: rng.below(2) == 0,
            out_idx: out_idx.clone(),
        };
        let mlp = MlpSpec {
            hidden: 1 + rng.below(99),
            out_idx,
        };
        core.attn = (rng.below(4) > 0).then_some(attn);
        core.mlp = (rng.below(4) > 0).then_some(mlp);
    }
    // Share.
    if depth > 1 && rng.below(3) == 0 {
        let cores = 1 + rng.below(depth - 1);
        model.cores.truncate(cores);
        model.layers = (0..depth).map(|i| LayerSpec::of(i * cores / depth)).collect();
    }
    if depth > 1 && rng.below(4) == 0 {
        model.layers[depth - 1].norms = Some(rng.below(depth - 1));
    }
    // Insert ops.
    for _ in 0..rng.below(3) {
        let site = Site::ALL[rng.below(Site::ALL.len())];
        let layer = site.in_block().then(|| rng.below(depth.max(1)));
        let kind = OpKind::ScaleShift(ScaleShift {
            shift: rng.below(2) == 0,
        });
        spec.ops.push(OpSpec { site, layer, kind });
    }
    spec
}

fn draw_config(rng: &mut Rng, in_chans: usize) -> Config {
    let mut flip = || rng.next_u64() & 1 == 0;
    let mut config = Config {
        pretrained_cfg: PretrainedCfg {
            tag: flip().then(|| "fb_in1k".to_owned()),
            test_input_size: flip().then_some([3, 288, 288]),
            interpolation: if flip() {
                Interpolation::Lanczos
            } else {
                Interpolation::Bilinear
            },
            crop_mode: if flip() {
                CropMode::Squash
            } else {
                CropMode::Border
            },
            pool_size: flip().then_some([7, 7]),
            ..PretrainedCfg::default()
        },
        ..Config::default()
    };
    if flip() {
        config
            .extra
            .insert("description".to_owned(), json!({ "text": ["a", null] }));
        config
            .pretrained_cfg
            .extra
            .insert("notes".to_owned(), json!(["kept as it is"]));
    }
    if flip() {
        config.label_names = [(0, "cat".to_owned()), (6, "owl".to_owned())].into();
        config.label_descriptions = [("cat".to_owned(), "a small tiger".to_owned())].into();
    }
    config.pretrained_cfg.crop_pct = rng.uniform() + 0.1;
    config.pretrained_cfg.mean = (0..in_chans).map(|_| rng.normal()).collect();
    config.pretrained_cfg.std = (0..in_chans).map(|_| rng.uniform() + 0.01).collect();
    config
}

/// Replaces something in a file by something else.
fn spoil(value: &mut Value, rng: &mut Rng) {
    let inner: Vec<&mut Value> = match value {
        Value::Object(map) => map.values_mut().collect(),
        Value::Array(list) => list.iter_mut().collect(),
        _ => Vec::new(),
    };
    let count = inner.len();
    if count > 0 && rng.below(5) > 0 {
        let chosen = rng.below(count);
        inner
            .into_iter()
            .skip(chosen)
            .take(1)
            .for_each(|value| spoil(value, rng));
        return;
    }
    let others = [
        json!(0),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(1u64 << 33),
        json!(0.5),
        json!(1e300),
        json!(true),
        json!(null),
        json!(""),
        json!("avg"),
        json!([]),
        json!([1, 1]),
        json!([u64::MAX, 2]),
        json!({}),
    ];
    *value = others[rng.below(others.len())].clone();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_value_makes_reading_panic(seed: u64) {
        let mut rng = Key::new(seed).rng();
        let spec = draw_spec(&mut rng);
        prop_assume!(spec.validate().is_ok());
        let config = draw_config(&mut rng, spec.input_size()[0]);
        let mut file: Value = serde_json::from_str(&config.to_json(&spec).unwrap()).unwrap();
        for _ in 0..3 {
            spoil(&mut file, &mut rng);
        }
        // Whatever is read can be counted and written again.
        if let Ok((spec, config)) = parse(&file) {
            prop_assert!(spec.costs().is_ok());
            let text = config.to_json(&spec).unwrap();
            prop_assert_eq!(parse(&serde_json::from_str(&text).unwrap()).unwrap().0, spec);
        }
    }

    #[test]
    fn any_model_reads_back_exactly(seed: u64) {
        let mut rng = Key::new(seed).rng();
        let spec = draw_spec(&mut rng);
        prop_assume!(spec.validate().is_ok());
        let config = draw_config(&mut rng, spec.input_size()[0]);
        round_trip(&spec, &config);
    }
}

#[test]
fn files_of_timm_are_read_as_timm_reads_them() {
    // As the current release writes it: arguments for everything, whatever their values.
    let (spec, config) = parse(&json!({
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": 192,
        "global_pool": "avg",
        "model_args": {
            "in_chans": 1, "depth": 1, "img_size": [32, 48], "num_classes": 0, "reg_tokens": 2,
            "no_embed_class": true, "global_pool": "avg", "fc_norm": false, "qkv_bias": false, "mlp_ratio": 2.5,
            "dynamic_img_size": true, "drop_path_rate": 0.1, "init_values": null, "qk_norm": false,
        },
        "pretrained_cfg": {
            "tag": "augreg_in21k_ft_in1k", "custom_load": true, "input_size": [1, 224, 224],
            "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
            "mean": [0.5], "std": [0.5], "num_classes": 0, "pool_size": null, "first_conv": "patch_embed.proj",
            "classifier": "head", "license": "apache-2.0", "hf_hub_id": "timm/", "origin_url": "somewhere",
        },
    }))
    .unwrap();
    let model = spec.vit().unwrap();
    assert_eq!(
        (
            spec.num_classes,
            model.in_chans,
            model.img_size,
            model.layers.len()
        ),
        (0, 1, [32, 48], 1)
    );
    assert_eq!(
        (spec.tokens_at(0), model.pos_rows(), model.pool),
        (9, 6, Pool::Avg)
    );
    let block = &model.cores[0];
    assert_eq!(
        (
            block.attn.as_ref().unwrap().qkv_bias,
            block.mlp.as_ref().unwrap().hidden
        ),
        (false, 480)
    );
    let cfg = &config.pretrained_cfg;
    assert_eq!(
        (cfg.tag.as_deref(), cfg.crop_pct, cfg.mean.as_slice()),
        (Some("augreg_in21k_ft_in1k"), 0.9, &[0.5][..])
    );
    assert_eq!(cfg.extra.keys().collect::<Vec<_>>(), ["origin_url"]);
    round_trip(&spec, &config);

    // The old flat form; timm's defaults for what is absent.
    let (spec, config) = parse(&json!({
        "architecture": "deit_tiny_patch16_224", "num_classes": 2, "num_features": 192, "labels": ["no", "yes"],
        "input_size": [3, 384, 384], "std": [0.5, 0.5, 0.5], "crop_pct": 1, "first_conv": "patch_embed.proj",
    }))
    .unwrap();
    assert_eq!((spec.num_classes, spec.input_size()), (2, [3, 384, 384]));
    assert_eq!(config.label_names[&1], "yes");
    assert_eq!(
        config.pretrained_cfg,
        PretrainedCfg {
            crop_pct: 1.0,
            std: vec![0.5; 3],
            ..PretrainedCfg::default()
        }
    );
    assert!(config.extra.is_empty());
    round_trip(&spec, &config);

    // Labels by index, and those of `pretrained_cfg` where the file has none of its own.
    let (_, config) = parse(&json!({
        "architecture": "regnety_040", "pretrained_cfg": { "label_names": { "3": "c", "10": "j" } },
    }))
    .unwrap();
    assert_eq!(config.label_names.keys().collect::<Vec<_>>(), [&3, &10]);
}

#[test]
fn errors_name_file_key_expected_and_found() {
    let plain = |key: &str, value: Value| {
        let mut file =
            json!({ "architecture": "deit_tiny_patch16_224", "num_classes": 10, "pretrained_cfg": {} });
        let (place, key) = key.rsplit_once('.').unwrap_or(("", key));
        let object = if place.is_empty() {
            &mut file
        } else {
            &mut file[place]
        };
        object[key] = value;
        parse(&file).unwrap_err()
    };
    let cases = [
        ("architecture", json!(7), "the name of an architecture"),
        ("num_classes", json!(-3), "a whole number from 0"),
        ("num_classes", json!("ten"), "a whole number from 0"),
        ("label_names", json!([1, 2]), "a list of class names"),
        ("pretrained_cfg", json!([]), "a JSON object"),
        (
            "pretrained_cfg.input_size",
            json!([224, 224]),
            "three whole numbers",
        ),
        ("pretrained_cfg.mean", json!([0.5]), "a list of 3 numbers"),
        (
            "pretrained_cfg.std",
            json!([0.5, 0.5, 0.0]),
            "a list of 3 positive numbers",
        ),
        ("pretrained_cfg.crop_pct", json!(0.0), "a positive number"),
        ("pretrained_cfg.interpolation", json!("cubic"), "`bicubic`"),
        (
            "pretrained_cfg.crop_mode",
            json!("middle"),
            "`center`, `squash` or `border`",
        ),
        ("model_args.embed_dim", json!(0), "a whole number from 1"),
        (
            "model_args.depth",
            json!(1_000_000_000),
            "a whole number from 0 to 256",
        ),
        ("model_args.num_heads", json!(5), "a divisor of the width 192"),
        ("model_args.patch_size", json!([16, 8]), "a square patch"),
        ("model_args.mlp_ratio", json!(-1.0), "a positive number"),
        ("model_args.global_pool", json!("map"), "`token` or `avg`"),
        (
            "model_args.fc_norm",
            json!(true),
            "`false` where `global_pool` is `token`",
        ),
        ("model_args.init_values", json!(1e-5), "left out"),
        ("model_args.qk_norm", json!(true), "false"),
        (
            "model_args.act_layer",
            json!("swish"),
            "`gelu`, `quick_gelu`, `relu` or `identity`",
        ),
        (
            "vitesse.schema",
            json!(2),
            "1, the only schema this version knows",
        ),
        ("vitesse.blocks", json!([]), "missing"),
    ];
    for (key, value, expected) in cases {
        let found = value.to_string();
        let error = plain(key, value);
        let text = error.to_string();
        if key == "vitesse.blocks" {
            assert_eq!(
                text,
                "`run/config.json`: key `vitesse.schema` should be the number 1, but is missing"
            );
            continue;
        }
        assert_eq!(error.code(), "E_CONFIG_KEY", "{text}");
        assert!(
            text.starts_with(&format!("`{FILE}`: key `{key}` should be ")),
            "{text}"
        );
        assert!(
            text.contains(expected) && text.ends_with(&format!("but is {found}")),
            "{text}"
        );
    }

    let own = |value: Value| {
        let mut vitesse = json!({ "schema": 1 });
        vitesse
            .as_object_mut()
            .unwrap()
            .extend(value.as_object().unwrap().clone());
        parse(&json!({ "architecture": "deit_tiny_patch16_224", "vitesse": vitesse }))
            .unwrap_err()
            .to_string()
    };
    assert!(
        own(json!({ "blocks": [{ "attn": 3 }] })).contains("`vitesse.blocks` should be a list of blocks")
    );
    assert!(own(json!({ "tonkens": [] })).contains("`vitesse.tonkens`"));
    // A misspelt key is refused wherever it stands.
    let layers = json!([{ "core": 0 }]);
    assert!(own(json!({ "share": { "layer": layers } })).ends_with(
        "key `vitesse.share.layer` should be left out, since only `layers` is known here, but is [{\"core\":0}]"
    ));
    for (value, key) in [
        (
            json!({ "share": { "layers": layers, "cores": [] } }),
            "vitesse.share.cores",
        ),
        (
            json!({ "share": { "layers": [{ "core": 0, "norm": 0 }] } }),
            "vitesse.share.layers",
        ),
        (
            json!({ "blocks": [{ "attn": null, "mlp": { "hidden": 8 }, "norms": 0 }] }),
            "vitesse.blocks",
        ),
        (
            json!({ "blocks": [{ "attn": null, "mlp": { "hidden": 8, "idx": [] } }] }),
            "vitesse.blocks",
        ),
        (
            json!({ "blocks": [{ "attn": { "qk_dims": [8], "v_dims": [8], "scale": 1.0, "idx": [] }, "mlp": null }] }),
            "vitesse.blocks",
        ),
        (json!({ "prefix": [{ "class": true }] }), "vitesse.prefix"),
    ] {
        let error = own(value);
        assert!(error.contains(&format!("key `{key}` should be ")), "{error}");
        assert!(
            key != "vitesse.blocks" || error.contains("unknown field `"),
            "{error}"
        );
    }
    for (op, text) in [
        (
            json!({ "site": "attn.in", "op": "scale-shift", "shift": true, "shfit": 1 }),
            "unknown field `shfit`",
        ),
        (
            json!({ "site": "qkv", "op": "low-rank", "rank": 2, "alpha": 2.0, "ranks": 3 }),
            "unknown field `ranks`",
        ),
        (
            json!({ "site": "attn.in", "op": "bottleneck", "hidden": 2, "scale": 1.0, "groop": 2 }),
            "unknown field `groop`",
        ),
        (
            json!({ "site": "block.in", "op": "prompts", "tokens": 2, "deep": true }),
            "unknown field `deep`",
        ),
        (json!({ "site": "mid", "op": "gate" }), "unknown variant `gate`"),
        (
            json!({ "op": "prompts", "tokens": 2, "site": "attn.nope" }),
            "unknown site `attn.nope`",
        ),
    ] {
        let error = own(json!({ "ops": [op] }));
        assert!(error.contains("`vitesse.ops`") && error.contains(text), "{error}");
    }
    assert!(own(json!({ "norm_eps": "small" })).contains("`vitesse.norm_eps`"));
    assert!(
        own(json!({ "history": [{ "stop": "prune" }] }))
            .contains("`vitesse.history` should be a list of steps")
    );
    assert!(
        own(json!({ "architecture": "vit_nano_patch4_32" }))
            .contains("timm builds as `deit_tiny_patch16_224`")
    );
    assert!(own(json!({ "norm_eps": 0.0 })).contains("must be a positive number, but is 0"));
    // What no model can be is said with the file's name.
    let block = json!({ "attn": null, "mlp": { "hidden": 0 } });
    assert!(
        own(json!({ "blocks": [block] })).starts_with("`run/config.json`: blocks.0.mlp has no hidden unit")
    );

    let unknown = plain("architecture", json!("deit_tiny_patch16_244"));
    assert_eq!(unknown.code(), "E_ARCH_UNKNOWN");
    assert!(
        unknown.to_string().contains("`deit_tiny_patch16_224`"),
        "{unknown}"
    );
    let missing = parse(&json!({ "num_classes": 10 })).unwrap_err().to_string();
    assert!(
        missing.contains("key `architecture`") && missing.ends_with("but is missing"),
        "{missing}"
    );
    let syntax = Config::parse("{\"architecture\": ", Path::new(FILE)).unwrap_err();
    assert_eq!(syntax.code(), "E_CONFIG_SYNTAX");
}
