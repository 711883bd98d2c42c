//! Structured pruning against the original implementations: groups, importance, kept units, sliced weights, logits with the
//! scale that is kept and with the one derived anew, norms of gradients. See `tests/golden/structured/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;

use burn::tensor::Device;
use serde_json::Value;
use support::adapting::{tensor, values};
use support::{Report, Vectors, agrees, golden_root, notices_each, refuses_other_folders};
use vitesse::compress::Error;
use vitesse::compress::structure::criteria::Criterion;
use vitesse::compress::structure::criteria::calibrate;
use vitesse::compress::structure::criteria::magnitude::Magnitude;
use vitesse::compress::structure::criteria::taylor::{Form, Taylor};
use vitesse::compress::structure::rank::{Ranking, Scope};
use vitesse::compress::structure::{Axis, Group, Kind, Selection, Sliced, groups, mask, slice};
use vitesse::engine::{Engine, Isa, Options};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::spec::{AttentionSpec, BlockSpec, NetworkSpec, PrefixToken, VitSpec};
use vitesse::model::storage::safetensors;
use vitesse::model::{Checkpoint, Heads, LoadOptions, ModelSpec, Tensors};
use vitesse::train::learner::Lesson;
use vitesse::train::loss::{Distillation, Kind as Loss, target_rows};

#[test]
fn golden_structured() {
    agrees("structured", check);
}

#[test]
fn golden_structured_notices_a_wrong_value() {
    let places = [
        ("torchpruning_uniform_l2", "out.slim.head.weight"),
        ("torchpruning_bottleneck_l2", "out.logits_slim_rescaled"),
        ("torchpruning_isomorphic_taylor", "out.importance.embed"),
        ("torchpruning_heads_global_taylor", "out.grad_norm.qkv.1"),
    ];
    notices_each("structured", &places, check);
}

#[test]
fn golden_structured_knows_every_field() {
    let mut v = Vectors::read(&golden_root().join("structured/torchpruning_bottleneck_l2.safetensors"));
    v.config["options"]["round_to"] = 8.into();
    v.config["drop_rate"] = 0.1.into();
    let mut report = Report::default();
    fields(&v, &mut report);
    assert_eq!(report.failures.len(), 2, "{:?}", report.failures);
}

#[test]
fn golden_structured_refuses_empty_folders_and_unknown_files() {
    refuses_other_folders("structured", check);
}

/// Methods whose files are walked once the methods are there.
const LATER: [&str; 4] = ["vit-slim", "wdpruning", "uvc", "x-pruner"];

/// Chooses the check by the method that the file's config names.
fn check(v: &Vectors, report: &mut Report) {
    match v.config["method"].as_str().unwrap_or_default() {
        "torch-pruning" => {
            fields(v, report);
            torch_pruning(v, report);
        }
        method if LATER.contains(&method) => report.skip_file(v, "later"),
        other => report
            .failures
            .push(format!("{}: config.method `{other}` is unknown", v.file)),
    }
}

/// Every field must be known, and what only describes must say what is taken for granted.
fn fields(v: &Vectors, report: &mut Report) {
    const READ: [&str; 14] = [
        "blocks",
        "depth",
        "embed_dim",
        "groups",
        "head_dim",
        "img_size",
        "mlp_hidden",
        "norm_eps",
        "num_classes",
        "num_heads",
        "options",
        "patch_size",
        "slim_params",
        "source_embed_dim",
    ];
    const OPTIONS: [&str; 6] = [
        "global_pruning",
        "head_pruning_ratio",
        "isomorphic",
        "prune_head_dims",
        "prune_num_heads",
        "pruning_ratio",
    ];
    let mut unknown = |key: &str, value: &Value| {
        report
            .failures
            .push(format!("{}: config.{key} is {value}, which is unknown", v.file));
    };
    for (key, value) in v.config.as_object().unwrap() {
        let known = match key.as_str() {
            "act" => value == "gelu_erf",
            "case" => v.file.ends_with(value.as_str().unwrap()),
            "class_token" => value == true,
            "format" => value == "vit-pruned/1",
            "importance" => value == "l2" || value == "taylor",
            "in_chans" => value == 3,
            "method" => true,
            "pool" => value == "token",
            other => READ.contains(&other),
        };
        if !known {
            unknown(key, value);
        }
    }
    for (key, value) in v.config["options"].as_object().unwrap() {
        if !OPTIONS.contains(&key.as_str()) {
            unknown(&format!("options.{key}"), value);
        }
    }
}

/// The dense model.
fn dense(v: &Vectors) -> ModelSpec {
    let (dim, heads) = (v.usize("source_embed_dim"), v.usize("num_heads"));
    assert_eq!(dim, heads * v.usize("head_dim"), "{}", v.file);
    let mut vit = VitSpec::plain(
        v.usize("img_size"),
        v.usize("patch_size"),
        dim,
        v.usize("depth"),
        heads,
        vec![PrefixToken::Class],
    );
    vit.norm_eps = v.number("norm_eps");
    for core in &mut vit.cores {
        core.mlp.as_mut().unwrap().hidden = v.usize("mlp_hidden");
    }
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

fn torch_pruning(v: &Vectors, report: &mut Report) {
    let (spec, weights) = (dense(v), v.under("w."));
    let groups = groups(&spec).unwrap();
    logits(v, report, "out.logits_dense", &spec, &weights);
    let named = named_groups(v, report, &groups);
    let criterion: Box<dyn Criterion> = match v.config["importance"].as_str().unwrap() {
        "l2" => Box::new(Magnitude::default()),
        _ => {
            let all: Vec<&Group> = named.iter().map(|(_, group)| *group).collect();
            let gradients = taylor_gradients(v, &spec, &weights, &all);
            norms(v, report, &gradients);
            Box::new(Taylor {
                gradients,
                form: Form::Elementwise,
            })
        }
    };
    for (root, group) in &named {
        let found: Vec<f32> = criterion
            .scores(&weights, group)
            .unwrap()
            .into_iter()
            .map(|score| score as f32)
            .collect();
        report.compare(v, &format!("out.importance.{root}"), &found);
    }
    let selection = select(v, &groups, &named, criterion.as_ref(), &weights);
    kept(v, report, &groups, &selection);
    let sliced = slice(&spec, &weights, &selection).unwrap();
    assert!(sliced.readmitted.is_empty(), "{}", v.file);
    compare_model(v, report, &sliced);
    logits(
        v,
        report,
        "out.logits_slim_original_scale",
        &sliced.spec,
        &sliced.tensors,
    );
    if selection.of(Kind::Embed, None).is_none() {
        let masked = mask(&spec, &weights, &selection).unwrap();
        for (by, found) in computed(v, &spec, &masked) {
            report.compare_also(
                v,
                "out.logits_slim_original_scale",
                &format!("masked, {by}"),
                &found,
            );
        }
    }
    let mut rescaled = sliced.spec.clone();
    for attn in attentions(&mut rescaled) {
        attn.scale = (attn.qk_dims[0] as f64).powf(-0.5);
    }
    logits(v, report, "out.logits_slim_rescaled", &rescaled, &sliced.tensors);
    imported(v, report, &sliced, &rescaled);
}

/// The sliced model is the one that is read from a file with its description, and from a state dict with its heads given.
fn imported(v: &Vectors, report: &mut Report, sliced: &Sliced, rescaled: &ModelSpec) {
    let (place, stored) = (tempfile::tempdir().unwrap(), v.under("out.slim."));
    let mut compare = |how: &str, heads: Option<Heads>, spec: &ModelSpec| {
        let file = place.path().join("pruned.safetensors");
        let description = ("config".to_owned(), v.config.to_string());
        let metadata = heads.is_none().then_some(description).into_iter().collect();
        safetensors::write(&file, &stored, &metadata).unwrap();
        let options = LoadOptions {
            heads,
            ..LoadOptions::default()
        };
        let found = Checkpoint::load(&file, &options).unwrap_or_else(|e| panic!("{e}"));
        let same = found.spec.network == spec.network && found.tensors == stored;
        report.expect(&format!("{}: import {how}", v.file), same, || {
            format!("{:?} expected, {:?} found", spec.network, found.spec.network)
        });
    };
    let counts = attentions(&mut sliced.spec.clone())
        .map(|attn| attn.num_heads())
        .collect();
    let heads = Heads {
        counts,
        scale_dim: Some(v.usize("head_dim")),
    };
    let left = Heads {
        scale_dim: None,
        ..heads.clone()
    };
    compare("by its description", None, &sliced.spec);
    compare("with heads and their width", Some(heads), &sliced.spec);
    compare("with heads", Some(left), rescaled);
}

fn attentions(spec: &mut ModelSpec) -> impl Iterator<Item = &mut AttentionSpec> {
    let NetworkSpec::Vit(vit) = &mut spec.network else {
        panic!("no vision transformer");
    };
    vit.cores.iter_mut().filter_map(|core| core.attn.as_mut())
}

/// The groups that the file lists, under its name of their root, each compared member by member.
fn named_groups<'a>(v: &Vectors, report: &mut Report, groups: &'a [Group]) -> Vec<(String, &'a Group)> {
    type Members = BTreeSet<(String, bool, usize)>;
    let ours = |group: &Group| -> Members {
        let members = group.members.iter();
        members
            .map(|member| {
                let places = member.places.iter().map(Vec::len).sum();
                (member.module.clone(), member.axis == Axis::Out, places)
            })
            .collect()
    };
    let listed = v.config["groups"].as_array().unwrap().iter();
    listed
        .map(|entry| {
            let members: Members = entry["members"]
                .as_array()
                .unwrap()
                .iter()
                .map(|member| {
                    (
                        member[0].as_str().unwrap().to_owned(),
                        member[1] == "out",
                        member[2].as_u64().unwrap() as usize,
                    )
                })
                .collect();
            let (root, units) = (entry["key"].as_str().unwrap(), entry["size"].as_u64().unwrap());
            let kind = match root.rsplit('.').next().unwrap() {
                "proj" => Kind::Dim,
                "fc1" => Kind::Hidden,
                _ => Kind::Embed,
            };
            let found = groups
                .iter()
                .find(|group| group.id.kind == kind && ours(group) == members);
            report.expect(&format!("{}: group {root}", v.file), found.is_some(), || {
                "no group has these members".into()
            });
            let found = found.unwrap();
            assert_eq!(found.units as u64, units, "{}: {root}", v.file);
            (root.to_owned(), found)
        })
        .collect()
}

fn taylor_gradients(v: &Vectors, spec: &ModelSpec, weights: &Tensors, groups: &[&Group]) -> Tensors {
    let labels: Vec<usize> = v.i64("in.calib_label").into_iter().map(|x| x as usize).collect();
    let shape = <[usize; 4]>::try_from(v.shape("in.calib_image")).unwrap();
    let targets = target_rows(&labels, spec.num_classes, 0.0).unwrap();
    let lesson = Lesson::new(
        v.f32("in.calib_image"),
        shape,
        targets,
        spec.num_classes,
        &Device::flex(),
    );
    let plain = Distillation {
        kind: Loss::None,
        ..Distillation::default()
    };
    calibrate::taylor(spec, weights, groups, &plain, [Ok::<_, Error>(lesson.unwrap())]).unwrap()
}

fn norms(v: &Vectors, report: &mut Report, gradients: &Tensors) {
    for (name, gradient) in gradients.iter() {
        let parts: Vec<&str> = name.split('.').collect();
        if let ["blocks", block, _, module, "weight"] = parts[..] {
            let squares = gradient
                .to_f32()
                .iter()
                .map(|x| f64::from(*x).powi(2))
                .sum::<f64>();
            let key = format!("out.grad_norm.{module}.{block}");
            // Norms are far below 1, so the tolerance is relative.
            let expected = f64::from(v.f32(&key)[0]);
            report.compare_f64(v, &key, &[squares.sqrt()], 1e-4 * expected.min(1.0));
        }
    }
}

/// What the file's options leave.
fn select(
    v: &Vectors,
    groups: &[Group],
    named: &[(String, &Group)],
    criterion: &dyn Criterion,
    weights: &Tensors,
) -> Selection {
    let options = &v.config["options"];
    let flag = |key: &str, default: bool| options.get(key).map_or(default, |flag| flag.as_bool().unwrap());
    assert_eq!(
        flag("isomorphic", false),
        flag("global_pruning", false),
        "{}: a scope that is not walked",
        v.file
    );
    let scope = if flag("isomorphic", false) {
        Scope::Kind
    } else {
        Scope::Local
    };
    let mut out = Selection::default();
    let mut add = |kind: Kind, ratio: &Value| {
        let ranking = Ranking {
            scope: scope.clone(),
            ratio: ratio.as_f64().unwrap(),
            round_to: 1,
        };
        let of_kind: Vec<&Group> = groups.iter().filter(|group| group.id.kind == kind).collect();
        out.meet(&ranking.select(criterion, weights, &of_kind).unwrap());
    };
    let ratio = &options["pruning_ratio"];
    add(Kind::Hidden, ratio);
    if named.iter().any(|(root, _)| root == "embed") {
        add(Kind::Embed, ratio);
    }
    if flag("prune_head_dims", true) {
        add(Kind::Position, ratio);
    }
    if flag("prune_num_heads", false) {
        add(Kind::Head, &options["head_pruning_ratio"]);
    }
    out
}

fn kept(v: &Vectors, report: &mut Report, groups: &[Group], selection: &Selection) {
    let exactly = |report: &mut Report, key: &str, found: &[usize]| {
        let found: Vec<f64> = found.iter().map(|&unit| unit as f64).collect();
        report.compare_f64(v, key, &found, 0.0);
    };
    for (id, units) in selection.iter() {
        match (id.kind, id.core) {
            (Kind::Embed, _) => exactly(report, "out.keep.embed", units),
            (Kind::Hidden, Some(core)) => exactly(report, &format!("out.keep.hidden.{core}"), units),
            (_, core) => {
                let group = groups.iter().find(|group| group.id == id).unwrap();
                let places = &group.members[0].places;
                let mut rows: Vec<usize> = units.iter().flat_map(|&unit| places[unit].clone()).collect();
                rows.sort_unstable();
                exactly(report, &format!("out.keep.qkv_rows.{}", core.unwrap()), &rows);
            }
        }
    }
}

/// Description and weights.
fn compare_model(v: &Vectors, report: &mut Report, sliced: &Sliced) {
    let vit = sliced.spec.vit().unwrap();
    assert_eq!(vit.embed_dim, v.usize("embed_dim"), "{}", v.file);
    let blocks: Vec<BlockSpec> = v.config["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| {
            let mut block = block.clone();
            // Where a block and its heads came from is for information.
            let source = block.as_object_mut().unwrap().remove("src");
            assert!(source.is_some());
            block["attn"].as_object_mut().unwrap().remove("heads");
            serde_json::from_value(block).unwrap()
        })
        .collect();
    report.expect(&format!("{}: blocks", v.file), vit.cores == blocks, || {
        format!("{blocks:?} expected, {:?} found", vit.cores)
    });
    let parameters: usize = sliced
        .spec
        .costs()
        .unwrap()
        .layers
        .iter()
        .map(|layer| layer.parameters)
        .sum();
    let expected = v.usize("slim_params");
    report.expect(
        &format!("{}: slim_params", v.file),
        sliced.tensors.parameters() == expected && parameters == expected,
        || format!("{expected} expected, {parameters} found"),
    );
    sliced
        .spec
        .check(&sliced.tensors, &v.file)
        .unwrap_or_else(|e| panic!("{e}"));
    for (name, tensor) in sliced.tensors.iter() {
        report.compare(v, &format!("out.slim.{name}"), &tensor.to_f32());
    }
}

/// Logits of the images under `in.image`, from the network and from the engine with every instruction set.
fn computed(v: &Vectors, spec: &ModelSpec, tensors: &Tensors) -> Vec<(String, Vec<f32>)> {
    let device = Device::flex();
    let network = Network::new(spec, tensors, &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let found = network
        .forward(tensor(v, "in.image", &device), &mut Ctx::eval())
        .unwrap();
    let mut out = vec![("network".to_owned(), values(&found.class))];
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let options = Options {
            threads: 1,
            isa: Some(isa),
            ..Options::default()
        };
        let engine = Engine::new(spec, tensors, &v.file, options).unwrap_or_else(|e| panic!("{e}"));
        let found = engine.run(&v.f32("in.image"), v.shape("in.image")[0]).unwrap();
        out.push((format!("engine, {isa}"), found.class));
    }
    out
}

fn logits(v: &Vectors, report: &mut Report, key: &str, spec: &ModelSpec, tensors: &Tensors) {
    for (i, (by, found)) in computed(v, spec, tensors).into_iter().enumerate() {
        match i {
            0 => report.compare(v, key, &found),
            _ => report.compare_also(v, key, &by, &found),
        }
    }
}
