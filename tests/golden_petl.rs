//! RepAdapter's peers against the original implementations: logits before and after, folded weights, gradients, a folder
//! that PEFT wrote, and lists of what learns. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, module};
use serde_json::Value;
use support::adapting::{
    activation, by_engine, by_name, checkpoint, compare_gradients, gradients, logits, merged, tensor, values,
    vit,
};
use support::{Report, Vectors, golden_root, notices, walk_with};
use vitesse::adapt::Method;
use vitesse::adapt::merge::{self, Options};
use vitesse::adapt::peft::{Adapter, CONFIG_FILE, Record, WEIGHTS_FILE};
use vitesse::measure::merge::{Merge, Settings};
use vitesse::model::network::{Ctx, Network, Trace, param_id};
use vitesse::model::ops::{
    Activation, Bottleneck, LowRank, NormPlace, Op, OpKind, OpSpec, Prompts, QkvPart, ScaleShift,
};
use vitesse::model::spec::{NetworkSpec, Pool, PrefixToken, VitSpec};
use vitesse::model::storage::safetensors;
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec, Site, Tensors, zoo};
use vitesse::train::method::Trainable;

#[test]
fn golden_petl() {
    let folder = golden_root().join("petl");
    if let Err(failures) = walk_with("golden_petl", &folder, check, other) {
        panic!("{failures}");
    }
}

#[test]
fn golden_petl_notices_a_wrong_value() {
    for (file, key) in [
        ("lora_qkv_fc1", "merged.blocks.0.mlp.fc1.weight"),
        ("ssf_vit", "out.logits_merged"),
        ("vpt_deep", "grad.transformer.deep_prompt_embeddings"),
        ("adaptformer_vit", "out.logits"),
        ("vpt_deep_project", "grad.transformer.prompt_proj.bias"),
        (
            "adaptformer_sequential_ln_out",
            "grad.blocks.0.adaptmlp.up_proj.weight",
        ),
        ("adaptformer_mean", "out.logits"),
        ("lora_patches", "merged.patch_embed.proj.weight"),
        ("peft_vit", "out.all_biases"),
        ("peft_deit", "out.updated_head"),
    ] {
        notices(
            "golden_petl",
            &format!("petl/{file}.safetensors"),
            key,
            check,
            other,
        );
    }
}

#[test]
fn golden_petl_knows_every_field() {
    let file = golden_root().join("petl/vpt_deep.safetensors");
    let mut v = Vectors::read(&file);
    v.config["drop_rate"] = 0.1.into();
    let mut report = Report::default();
    fields(&v, &mut report);
    assert!(
        report.failures[0].contains("config.drop_rate"),
        "{:?}",
        report.failures
    );
}

/// What a file's config may say of the model, all of which [`vit`] builds it from.
const MODEL: [&str; 12] = [
    "act",
    "depth",
    "embed_dim",
    "img_size",
    "mlp_dim",
    "mlp_ratio",
    "norm_eps",
    "num_classes",
    "num_heads",
    "patch_size",
    "pool",
    "qkv_bias",
];

/// What it says of the method, beside what describes the file.
fn of_method(v: &Vectors) -> &'static [&'static str] {
    match method(v) {
        "lora" if v.config.get("enable_lora").is_some() => &[
            "enable_lora",
            "in_features",
            "lora_alpha",
            "out_features",
            "r",
            "scaling",
        ],
        "lora" => &["adapter_config", "lora", "saved_keys", "trainable"],
        "bitfit" => &["trainable", "trainable_numel", "trainable_numel_without_head"],
        "vpt-deep" | "vpt-shallow" => &["num_tokens", "project"],
        "adaptformer" => &["bottleneck", "ffn_option", "layernorm_option", "scale"],
        "adapter" => &["bottleneck", "reduction"],
        "peft" => &["adapters", "config"],
        _ => &[],
    }
}

/// Every field of a file's config must be known, and those that only describe must say what is taken for granted.
fn fields(v: &Vectors, report: &mut Report) {
    const DESCRIPTION: [&str; 6] = ["case", "loss", "max_abs_diff_merge", "method", "mode", "model"];
    let own = of_method(v);
    for (key, value) in v.config.as_object().unwrap() {
        let known = [&MODEL[..], &DESCRIPTION[..], own]
            .iter()
            .any(|list| list.contains(&key.as_str()));
        let expected = match key.as_str() {
            "case" => Some(v.file.as_str()),
            "mode" => Some("eval"),
            "loss" => Some("0.5 * mean(y^2)"),
            _ => None,
        };
        if !known || expected.is_some_and(|expected| value != expected) {
            report
                .failures
                .push(format!("{}: config.{key} is {value}, which is unknown", v.file));
        }
    }
}

fn method(v: &Vectors) -> &str {
    let method = v.config["method"].as_str().unwrap_or_default();
    method.split([' ', ',']).next().unwrap_or_default()
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    fields(v, report);
    match method(v) {
        "lora" if v.config.get("adapter_config").is_some() => lora(v, report),
        "lora" if v.config.get("enable_lora").is_some() => lora_parts(v, report),
        "bitfit" => bitfit(v, report),
        "ssf" => ssf(v, report),
        "vpt-deep" | "vpt-shallow" => vpt(v, report),
        "adaptformer" => adaptformer(v, report),
        "adapter" => one_block(v, report),
        "peft" => peft(v, report),
        other => report
            .failures
            .push(format!("{}: config.method `{other}` is unknown", v.file)),
    }
}

/// Folders of PEFT's, and lists.
fn other(path: &Path, report: &mut Report) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    if let Some(file) = name.strip_suffix("_adapter").filter(|_| path.is_dir()) {
        peft_folder(path, &path.with_file_name(format!("{file}.safetensors")), report);
    } else if let Some(file) = name.strip_suffix("_adapters").filter(|_| path.is_dir()) {
        let v = Vectors::read(&path.with_file_name(format!("{file}.safetensors")));
        let listing = std::fs::read_dir(path).unwrap();
        let found: BTreeSet<String> = listing
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        let listed = names(&v.config["adapters"]).into_iter().collect();
        report.expect(&name, found == listed, || {
            "its folders are not those of `adapters`".into()
        });
    } else if name == "bitfit_trainable.json" {
        trainable_lists(path, report);
    } else {
        report
            .failures
            .push(format!("{}: unknown kind of file", path.display()));
    }
}

fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

/// The base with ops, whose tensors are handed over op by op as (end of the name, shape, values).
fn with_ops(base: &Checkpoint, ops: Vec<(OpSpec, Vec<Part>)>) -> Checkpoint {
    let mut out = base.clone();
    for (index, (op, parts)) in ops.iter().enumerate() {
        for (end, shape, values) in parts {
            let name = format!("{}.{end}", op.prefix(index));
            out.tensors.insert_f32(name, shape, values.clone()).unwrap();
        }
    }
    out.spec.ops = ops.into_iter().map(|(op, _)| op).collect();
    out
}

type Part = (&'static str, Vec<usize>, Vec<f32>);

fn part(v: &Vectors, end: &'static str, key: &str) -> Part {
    (end, v.shape(key), v.f32(key))
}

/// A folder with what PEFT would have written.
fn write_peft(v: &Vectors, folder: &Path) {
    let config = v.config["adapter_config"].to_string();
    std::fs::write(folder.join(CONFIG_FILE), config).unwrap();
    safetensors::write(&folder.join(WEIGHTS_FILE), &v.under("a."), &Default::default()).unwrap();
}

fn lora(v: &Vectors, report: &mut Report) {
    for (field, prefix) in [("saved_keys", "a."), ("trainable", "grad.")] {
        if let Some(list) = v.config.get(field) {
            let (under, listed) = (v.under(prefix), names(list));
            let same = under.names().eq(listed.iter().map(String::as_str));
            report.expect(&format!("{}: {field}", v.file), same, || {
                format!("not the keys under `{prefix}`")
            });
        }
    }
    let base = checkpoint(vit(v), v.under("w."));
    let place = tempfile::tempdir().unwrap();
    write_peft(v, place.path());
    let adapter = Adapter::read(place.path()).unwrap_or_else(|e| panic!("{e}"));
    let attached = adapter.attach(&base).unwrap_or_else(|e| panic!("{e}"));
    logits(v, report, "out.logits_base", &base.spec, &base.tensors);
    logits(v, report, "out.logits", &attached.spec, &attached.tensors);
    let spec = &attached.spec;
    let found = gradients(v, report, &attached.spec, &attached.tensors);
    compare_gradients(v, report, &found, |key| {
        let path = key.strip_prefix("base_model.model.").unwrap();
        let path = path.replace(".modules_to_save.default", "");
        for (end, factor) in [(".lora_A.default.weight", "a"), (".lora_B.default.weight", "b")] {
            if let Some(module) = path.strip_suffix(end) {
                let named = |(_, op): &(usize, &OpSpec)| {
                    let projection = spec.sites().matrix(op.site, op.layer.unwrap_or(0));
                    projection.is_some_and(|projection| projection.name == module)
                };
                let (index, op) = spec.ops.iter().enumerate().find(named).unwrap();
                return vec![format!("{}.{factor}", op.prefix(index))];
            }
        }
        vec![path]
    });
    let merged = merged(v, report, &attached);
    logits(v, report, "out.logits_merged", &merged.spec, &merged.tensors);

    // Written again, it is what PEFT wrote: the same tensors, and every field that PEFT needs.
    let lora = Method::parse("lora", &[("targets", "all-linear".into())]).unwrap();
    let trainable = lora.plan(&base.spec).unwrap().trainable;
    let heads_only = Trainable {
        method: Vec::new(),
        ..trainable
    };
    let ops = spec.ops.len();
    let ours = Adapter::of(
        &attached.spec,
        &attached.tensors,
        &heads_only,
        ops,
        Record::default(),
    )
    .unwrap();
    let folder = place.path().join("ours");
    ours.write(&folder, false).unwrap();
    let (tensors, _) = safetensors::read(&folder.join(WEIGHTS_FILE)).unwrap();
    let at = format!("{} (written)", v.file);
    report.expect(&at, tensors == v.under("a."), || "the tensors differ".into());
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join(CONFIG_FILE)).unwrap()).unwrap();
    for key in [
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "modules_to_save",
        "bias",
    ] {
        let expected = &v.config["adapter_config"][key];
        let same = match (config[key].as_f64(), expected.as_f64()) {
            (Some(found), Some(expected)) => found == expected,
            _ => config[key] == *expected,
        };
        report.expect(&format!("{at}: {key}"), same, || {
            format!("{expected} expected, {} found", config[key])
        });
    }
}

fn peft_folder(folder: &Path, vectors: &Path, report: &mut Report) {
    let v = Vectors::read(vectors);
    let base = checkpoint(vit(&v), v.under("w."));
    let adapter = Adapter::read(folder).unwrap_or_else(|e| panic!("{e}"));
    let attached = adapter.attach(&base).unwrap_or_else(|e| panic!("{e}"));
    let merged = merge::merge(&attached.spec, &attached.tensors, Options::default()).unwrap();
    for (key, spec, tensors) in [
        ("out.logits", &attached.spec, &attached.tensors),
        ("out.logits_merged", &merged.spec, &merged.tensors),
    ] {
        let (found, _) = support::adapting::traced(&v, spec, tensors, Vec::new());
        report.compare_also(&v, key, "from the folder", &found);
    }
    report.files += 1;
}

/// Folders that PEFT wrote for a model of transformers: read, run and merged.
fn peft(v: &Vectors, report: &mut Report) {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(place.path().join(name), text).unwrap();
    write("config.json", v.config["config"].to_string());
    safetensors::write(
        &place.path().join("model.safetensors"),
        &v.under("w."),
        &Default::default(),
    )
    .unwrap();
    let base = Checkpoint::load(place.path(), &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    logits(v, report, "out.logits_base", &base.spec, &base.tensors);
    let folders = golden_root().join("petl").join(format!("{}_adapters", v.file));
    for name in names(&v.config["adapters"]) {
        let key = format!("out.{name}");
        let adapter = Adapter::read(&folders.join(&name)).unwrap_or_else(|e| panic!("{e}"));
        let attached = adapter.attach(&base).unwrap_or_else(|e| panic!("{e}"));
        logits(v, report, &key, &attached.spec, &attached.tensors);
        let merge = Merge::open(
            place.path(),
            &LoadOptions::default(),
            &folders.join(&name),
            None,
            &mut (),
        );
        let merge = merge.unwrap_or_else(|e| panic!("{name}: {e}"));
        let merged = merge.plan(&Settings::default(), &mut ()).unwrap().checkpoint;
        report.expect(
            &format!("{}: {name} (merged)", v.file),
            merged.spec.ops.is_empty(),
            || "ops are left".into(),
        );
        by_engine(v, report, &key, &merged.spec, &merged.tensors);
        // Written again, it is read as the same.
        let again = place.path().join(&name);
        adapter.write(&again, false).unwrap();
        let again = Adapter::read(&again).unwrap().attach(&base).unwrap();
        let same = (&again.spec, &again.tensors) == (&attached.spec, &attached.tensors);
        report.expect(&format!("{}: {name} (written)", v.file), same, || {
            "it differs".into()
        });
    }
}

/// One fused projection of which thirds are updated.
fn lora_parts(v: &Vectors, report: &mut Report) {
    let (inputs, outputs) = (v.usize("in_features"), v.usize("out_features"));
    assert_eq!(outputs, 3 * inputs, "{}: no square thirds", v.file);
    let parts = [QkvPart::Q, QkvPart::K, QkvPart::V];
    let enabled = v.config["enable_lora"].as_array().unwrap();
    let parts: Vec<QkvPart> = parts
        .into_iter()
        .zip(enabled)
        .filter(|(_, on)| on.as_bool().unwrap())
        .map(|(part, _)| part)
        .collect();
    let kind = LowRank {
        rank: v.usize("r"),
        alpha: v.number("lora_alpha"),
        rank_stabilized: false,
        parts: Some(parts),
        dropout: 0.0,
    };
    assert_eq!(kind.factor(), v.number("scaling"));
    let op = at(Site::Qkv, 0, OpKind::LowRank(kind));
    let spec = ModelSpec {
        architecture: v.file.clone(),
        num_classes: 2,
        network: NetworkSpec::Vit(VitSpec::plain(4, 4, inputs, 1, 1, vec![PrefixToken::Class])),
        ops: vec![op.clone()],
    };
    // A model around the projection, so that it can be merged.
    let mut tensors = spec.init(0).unwrap();
    let mut put = |name: &str, key: &str| {
        tensors.insert_f32(name, &v.shape(key), v.f32(key)).unwrap();
    };
    put("blocks.0.attn.qkv.weight", "w.weight");
    put("blocks.0.attn.qkv.bias", "w.bias");
    put("ops.0.0.qkv.a", "a.lora_A");
    put("ops.0.0.qkv.b", "a.lora_B");
    let merged = merge::merge(&spec, &tensors, Options::default()).unwrap();
    let weight = merged
        .tensors
        .get("blocks.0.attn.qkv.weight")
        .unwrap()
        .to_f32()
        .into_owned();
    report.compare(v, "merged.weight", &weight);
    let delta: Vec<f32> = weight.iter().zip(v.f32("w.weight")).map(|(a, b)| a - b).collect();
    report.compare(v, "merged.delta", &delta);

    let device = Device::flex().autodiff();
    let network = Op::alone(&op, 0, &spec, &tensors, &device).unwrap();
    let x = tensor::<3>(v, "in.x", &device);
    let bias = tensor::<1>(v, "w.bias", &device);
    let project = |weight: Tensor<2>| module::linear(x.clone(), weight.transpose(), Some(bias.clone()));
    let y = network.forward_projection(&x, project(tensor(v, "w.weight", &device)), &mut Ctx::eval());
    report.compare(v, "out.y", &values(&y));
    let merged = burn::tensor::TensorData::new(weight, [outputs, inputs]);
    report.compare(
        v,
        "out.y_merged",
        &values(&project(Tensor::from_data(merged, &device))),
    );
    let gradients = (y.powi_scalar(2).mean() * 0.5).backward();
    struct Collect<'a>(&'a burn::tensor::Gradients, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            for end in ["a", "b"] {
                if param.id == param_id(&format!("ops.0.0.qkv.{end}")) {
                    self.1
                        .insert(end.into(), values(&param.val().grad(self.0).unwrap()));
                }
            }
        }
    }
    let mut collect = Collect(&gradients, BTreeMap::new());
    network.visit(&mut collect);
    report.compare(v, "grad.lora_A", &collect.1["a"]);
    report.compare(v, "grad.lora_B", &collect.1["b"]);
}

fn names(value: &Value) -> Vec<String> {
    let names = value.as_array().expect("a list of names");
    names
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// Whether what BitFit trains is the list, as a set.
fn same_names(trainable: &Trainable, expected: &Value) -> bool {
    let mut found: Vec<String> = trainable.names().map(str::to_owned).collect();
    let mut expected = names(expected);
    found.sort();
    expected.sort();
    found == expected
}

fn bitfit(v: &Vectors, report: &mut Report) {
    let base = checkpoint(vit(v), v.under("w."));
    logits(v, report, "out.logits", &base.spec, &base.tensors);
    let found = gradients(v, report, &base.spec, &base.tensors);
    compare_gradients(v, report, &found, |key| vec![key.to_owned()]);
    let method = Method::parse("bitfit", &[]).unwrap();
    let trainable = method.plan(&base.spec).unwrap().trainable;
    counts(&v.file, report, &trainable, &v.config);
}

fn counts(at: &str, report: &mut Report, trainable: &Trainable, expected: &Value) {
    report.expect(
        &format!("{at}: trainable"),
        same_names(trainable, &expected["trainable"]),
        || "the lists differ".into(),
    );
    for (key, found) in [
        ("trainable_numel_without_head", trainable.method_param_count),
        (
            "trainable_numel",
            trainable.method_param_count + trainable.head_param_count,
        ),
        ("total", trainable.param_count),
    ] {
        if let Some(expected) = expected.get(key).and_then(Value::as_u64) {
            report.expect(&format!("{at}: {key}"), found as u64 == expected, || {
                format!("{expected} expected, {found} found")
            });
        }
    }
}

fn trainable_lists(path: &Path, report: &mut Report) {
    let lists: BTreeMap<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (name, expected) in lists.iter().filter(|(_, list)| list.is_object()) {
        let Ok(entry) = zoo::get(name) else {
            report
                .skipped
                .push(format!("{name} of the lists (no network of this project yet)"));
            continue;
        };
        let mut spec = entry.spec;
        spec.num_classes = expected["num_classes"].as_u64().unwrap() as usize;
        let method = Method::parse("bitfit", &[]).unwrap();
        let trainable = method.plan(&spec).unwrap().trainable;
        counts(name, report, &trainable, expected);
    }
    report.files += 1;
}

/// Where SSF's pairs stand: the name of the scale without its number, the number, the site.
const SSF: [(&str, &str, Site); 6] = [
    ("", "1", Site::AttnIn),
    ("", "2", Site::MlpIn),
    ("attn.", "1", Site::AttnQkv),
    ("attn.", "2", Site::AttnOut),
    ("mlp.", "1", Site::MlpFc1),
    ("mlp.", "2", Site::MlpOut),
];

fn ssf(v: &Vectors, report: &mut Report) {
    let base = checkpoint(vit(v), v.under("w."));
    let kind = || OpKind::ScaleShift(ScaleShift { shift: true });
    let mut places = vec![
        ("patch_embed.ssf_KIND_1".to_owned(), Site::PatchOut, None),
        ("ssf_KIND_1".to_owned(), Site::FinalNorm, None),
    ];
    for layer in 0..v.usize("depth") {
        for (module, number, site) in SSF {
            let name = format!("blocks.{layer}.{module}ssf_KIND_{number}");
            places.push((name, site, Some(layer)));
        }
    }
    let ops = places.iter().map(|(name, site, layer)| {
        let op = OpSpec {
            site: *site,
            layer: *layer,
            kind: kind(),
        };
        let key = |kind| format!("a.{}", name.replace("KIND", kind));
        (
            op,
            vec![part(v, "scale", &key("scale")), part(v, "shift", &key("shift"))],
        )
    });
    let attached = with_ops(&base, ops.collect());
    logits(v, report, "out.logits_base", &base.spec, &base.tensors);
    logits(v, report, "out.logits", &attached.spec, &attached.tensors);
    let found = gradients(v, report, &attached.spec, &attached.tensors);
    let ops = &attached.spec.ops;
    compare_gradients(v, report, &found, |key| {
        let place = |kind: &str| {
            let mut names = places.iter().map(|(name, _, _)| name.replace("KIND", kind));
            names.position(|name| name == key)
        };
        for kind in ["scale", "shift"] {
            if let Some(index) = place(kind) {
                return vec![format!("{}.{kind}", ops[index].prefix(index))];
            }
        }
        vec![key.to_owned()]
    });
    // The method puts the same ops in the same places.
    let method = Method::parse("ssf", &[]).unwrap().plan(&base.spec).unwrap();
    let sorted = |ops: &[OpSpec]| {
        let mut places: Vec<(Option<usize>, Site)> = ops.iter().map(|op| (op.layer, op.site)).collect();
        places.sort();
        places
    };
    let same = sorted(&method.spec.ops) == sorted(ops);
    report.expect(&format!("{}: sites", v.file), same, || "they differ".into());
    let merged = merged(v, report, &attached);
    logits(v, report, "out.logits_merged", &merged.spec, &merged.tensors);
}

/// VPT's names in a ViT's.
fn vpt_names(tensors: &Tensors, depth: usize) -> Tensors {
    let mut out = Tensors::new();
    let get = |name: &str| tensors.get(&format!("transformer.{name}")).unwrap().clone();
    out.insert("cls_token", get("embeddings.cls_token"));
    out.insert("pos_embed", get("embeddings.position_embeddings"));
    for end in ["weight", "bias"] {
        out.insert(
            format!("patch_embed.proj.{end}"),
            get(&format!("embeddings.patch_embeddings.{end}")),
        );
        out.insert(format!("norm.{end}"), get(&format!("encoder.encoder_norm.{end}")));
        out.insert(
            format!("head.{end}"),
            tensors.get(&format!("head.{end}")).unwrap().clone(),
        );
        for i in 0..depth {
            let layer = |name: &str| get(&format!("encoder.layer.{i}.{name}.{end}"));
            for (to, from) in [
                ("norm1", "attention_norm"),
                ("norm2", "ffn_norm"),
                ("attn.proj", "attn.out"),
                ("mlp.fc1", "ffn.fc1"),
                ("mlp.fc2", "ffn.fc2"),
            ] {
                out.insert(format!("blocks.{i}.{to}.{end}"), layer(from));
            }
            let thirds = ["query", "key", "value"].map(|third| layer(&format!("attn.{third}")));
            insert_rows(&mut out, &format!("blocks.{i}.attn.qkv.{end}"), &thirds);
        }
    }
    out
}

/// Tensors one below the other.
fn insert_rows(out: &mut Tensors, name: &str, parts: &[vitesse::model::Tensor]) {
    let mut shape = parts[0].shape().to_vec();
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    let values = parts.iter().flat_map(|part| part.to_f32().into_owned()).collect();
    out.insert_f32(name, &shape, values).unwrap();
}

fn vpt(v: &Vectors, report: &mut Report) {
    let depth = v.usize("depth");
    let base = checkpoint(vit(v), vpt_names(&v.under("w."), depth));
    let count = v.usize("num_tokens");
    let project = v.config["project"].as_i64().unwrap();
    let project = usize::try_from(project).ok();
    let width = project.unwrap_or_else(|| v.usize("embed_dim"));
    let mut prompts = vec![v.f32("a.transformer.prompt_embeddings")];
    if method(v) == "vpt-deep" {
        let deep = v.f32("a.transformer.deep_prompt_embeddings");
        prompts.extend(deep.chunks_exact(count * width).map(<[f32]>::to_vec));
    }
    let mut ops: Vec<(OpSpec, Vec<Part>)> = prompts
        .into_iter()
        .enumerate()
        .map(|(layer, values)| {
            let kind = OpKind::Prompts(Prompts {
                tokens: count,
                project,
            });
            (
                at(Site::BlockIn, layer, kind),
                vec![("tokens", vec![1, count, width], values)],
            )
        })
        .collect();
    if project.is_some() {
        for (end, key) in [("proj.weight", "weight"), ("proj.bias", "bias")] {
            ops[0]
                .1
                .push(part(v, end, &format!("a.transformer.prompt_proj.{key}")));
        }
    }
    let mut settings = vec![
        ("tokens", count.to_string()),
        ("deep", (ops.len() > 1).to_string()),
    ];
    settings.extend(project.map(|width| ("project", width.to_string())));
    let attached = with_ops(&base, ops);
    logits(v, report, "out.logits_base", &base.spec, &base.tensors);
    logits(v, report, "out.logits", &attached.spec, &attached.tensors);
    same_plan(v, report, ("vpt", &settings), &base, &attached);
    let found = gradients(v, report, &attached.spec, &attached.tensors);
    let ops = &attached.spec.ops;
    compare_gradients(v, report, &found, |key| {
        let tokens = |layer: usize| format!("{}.tokens", ops[layer].prefix(layer));
        match key {
            "transformer.prompt_embeddings" => vec![tokens(0)],
            "transformer.deep_prompt_embeddings" => (1..ops.len()).map(tokens).collect(),
            other => match other.strip_prefix("transformer.prompt_") {
                Some(end) => vec![format!("{}.{end}", ops[0].prefix(0))],
                None => vec![other.to_owned()],
            },
        }
    });
    refused(v, report, &attached);
}

/// The method with these settings puts the same ops in the same places.
fn same_plan(
    v: &Vectors,
    report: &mut Report,
    (name, settings): (&str, &[(&str, String)]),
    base: &Checkpoint,
    attached: &Checkpoint,
) {
    let method = Method::parse(name, settings).unwrap_or_else(|e| panic!("{}: {e}", v.file));
    let same = method.plan(&base.spec).unwrap().spec == attached.spec;
    report.expect(&format!("{}: ops of the method", v.file), same, || {
        "they differ".into()
    });
}

/// What is not linear must not be folded.
fn refused(v: &Vectors, report: &mut Report, attached: &Checkpoint) {
    let merged = merge::merge(&attached.spec, &attached.tensors, Options::default());
    report.expect(&format!("{}: merge", v.file), merged.is_err(), || {
        "it was folded, but it is not linear".into()
    });
}

fn adaptformer(v: &Vectors, report: &mut Report) {
    let form = v.config["ffn_option"].as_str().unwrap();
    let from = match form {
        "parallel" => Some(Site::Mid),
        "sequential" => None,
        other => panic!("{}: config.ffn_option {other}", v.file),
    };
    let mut tensors = Tensors::new();
    let weights = v.under("w.");
    for (name, tensor) in weights.iter() {
        let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
        if let Some(block) = stem.strip_suffix(".attn.q_proj") {
            let thirds = ["q", "k", "v"].map(|third| {
                let third = format!("{block}.attn.{third}_proj.{end}");
                weights.get(&third).unwrap().clone()
            });
            insert_rows(&mut tensors, &format!("{block}.attn.qkv.{end}"), &thirds);
        } else if !stem.ends_with("k_proj") && !stem.ends_with("v_proj") {
            let name = name.replace(".fc1.", ".mlp.fc1.").replace(".fc2.", ".mlp.fc2.");
            tensors.insert(name, tensor.clone());
        }
    }
    let base = checkpoint(vit(v), tensors);
    let norm = match v.config["layernorm_option"].as_str() {
        Some("none") => None,
        Some("in") => Some(NormPlace::Before),
        Some("out") => Some(NormPlace::After),
        other => panic!("{}: config.layernorm_option {other:?}", v.file),
    };
    let mut names = vec![
        ("down_proj.weight", "down.weight"),
        ("down_proj.bias", "down.bias"),
        ("up_proj.weight", "up.weight"),
        ("up_proj.bias", "up.bias"),
    ];
    if norm.is_some() {
        names.push(("adapter_layer_norm_before.weight", "norm.weight"));
        names.push(("adapter_layer_norm_before.bias", "norm.bias"));
    }
    let scale = &v.config["scale"];
    let learned_scale = scale == "learnable_scalar";
    let scale = if learned_scale {
        1.0
    } else {
        scale.as_f64().unwrap()
    };
    if learned_scale {
        names.push(("scale", "scale"));
    }
    let kind = OpKind::Bottleneck(Bottleneck {
        hidden: v.usize("bottleneck"),
        groups: 1,
        activation: Activation::Relu,
        scale,
        learned_scale,
        norm,
        from,
        dropout: 0.1,
    });
    let mut settings = vec![
        ("form", form.to_owned()),
        ("hidden", v.usize("bottleneck").to_string()),
        ("scale", scale.to_string()),
        ("learned_scale", learned_scale.to_string()),
    ];
    settings.extend(norm.map(|place| {
        let place = if place == NormPlace::Before {
            "before"
        } else {
            "after"
        };
        ("norm", place.to_owned())
    }));
    let ops = (0..v.usize("depth")).map(|layer| {
        let parts = names
            .iter()
            .map(|(from, to)| part(v, to, &format!("a.blocks.{layer}.adaptmlp.{from}")));
        (at(Site::MlpOut, layer, kind.clone()), parts.collect())
    });
    let attached = with_ops(&base, ops.collect());
    same_plan(v, report, ("adaptformer", &settings), &base, &attached);
    logits(v, report, "out.logits", &attached.spec, &attached.tensors);
    let found = gradients(v, report, &attached.spec, &attached.tensors);
    compare_gradients(v, report, &found, |key| {
        let op_tensor = names.iter().find_map(|(from, to)| {
            let block = key.strip_suffix(from)?.strip_suffix(".adaptmlp.")?;
            let layer: usize = block.strip_prefix("blocks.")?.parse().ok()?;
            Some(format!("ops.{layer}.{layer}.mlp.out.{to}"))
        });
        vec![op_tensor.unwrap_or_else(|| key.to_owned())]
    });
    refused(v, report, &attached);
}

/// One block on given tokens: a model whose patches are the tokens' channels, so that its stream starts as they are.
fn one_block(v: &Vectors, report: &mut Report) {
    let shape = v.shape("in.x");
    let [batch, tokens, dim] = shape[..] else {
        panic!("{}: in.x is no batch of tokens", v.file)
    };
    let mut vit = VitSpec::plain(1, 1, dim, 1, v.usize("num_heads"), Vec::new());
    (vit.img_size, vit.in_chans, vit.pool) = ([1, tokens], dim, Pool::Avg);
    vit.norm_eps = v.number("norm_eps");
    let hidden = (dim as f64 * v.number("mlp_ratio")) as usize;
    vit.cores[0].mlp.as_mut().unwrap().hidden = hidden;
    // The activation is the adapter's; the reduction says once more how wide it is.
    assert_eq!(v.usize("bottleneck") * v.usize("reduction"), dim, "{}", v.file);
    let spec = ModelSpec {
        architecture: v.file.clone(),
        num_classes: 0,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    };
    let mut plain = spec.init(0).unwrap();
    let identity = (0..dim * dim).map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 });
    plain
        .insert_f32("patch_embed.proj.weight", &[dim, dim, 1, 1], identity.collect())
        .unwrap();
    for (name, shape) in [
        ("patch_embed.proj.bias", vec![dim]),
        ("pos_embed", vec![1, tokens, dim]),
    ] {
        plain
            .insert_f32(name, &shape, vec![0.0; shape.iter().product()])
            .unwrap();
    }
    for (name, tensor) in v.under("w.").iter() {
        plain.insert(format!("blocks.0.{name}"), tensor.clone());
    }
    let kind = OpKind::Bottleneck(Bottleneck {
        hidden: v.usize("bottleneck"),
        groups: 1,
        activation: activation(v),
        scale: 1.0,
        learned_scale: false,
        norm: None,
        from: None,
        dropout: 0.0,
    });
    let names = [
        ("adapter_downsample.weight", "down.weight"),
        ("adapter_downsample.bias", "down.bias"),
        ("adapter_upsample.weight", "up.weight"),
        ("adapter_upsample.bias", "up.bias"),
    ];
    let parts = names.iter().map(|(from, to)| part(v, to, &format!("a.{from}")));
    let op = (at(Site::MlpOut, 0, kind), parts.collect());
    let attached = with_ops(&checkpoint(spec, plain), vec![op]);

    let device = Device::flex().autodiff();
    let network = Network::new(&attached.spec, &attached.tensors, &v.file, &device).unwrap();
    // Tokens last in an image: [batch, dim, 1, tokens].
    let x = tensor::<3>(v, "in.x", &device)
        .swap_dims(1, 2)
        .reshape([batch, dim, 1, tokens]);
    let mut ctx = Ctx::tracing(Trace::sites([Site::BlockOut]));
    network.forward(x, &mut ctx).unwrap();
    let y = ctx.trace.tokens(Site::BlockOut, Some(0)).unwrap();
    report.compare(v, "out.y", &values(&y));
    let gradients = (y.powi_scalar(2).mean() * 0.5).backward();
    let found = by_name(&network, &attached.spec, &gradients);
    compare_gradients(v, report, &found, |key| {
        let end = names.iter().find(|(from, _)| *from == key).unwrap().1;
        vec![format!("ops.0.0.mlp.out.{end}")]
    });
    refused(v, report, &attached);
}
