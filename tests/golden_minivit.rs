//! MiniViT against the original code: Mini-DeiT and Mini-Swin at every recorded layer, losses, gradients; relative positions, relations of
//! tokens, CKA. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod support;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;
use support::adapting::{by_name, tensor, values};
use support::{Report, Vectors, golden_root, notices, unknown, walk};
use vitesse::compress::share::distill::{self, Config, Hidden, WeightDistillation};
use vitesse::compress::share::relations;
use vitesse::engine::{Engine, Isa, Options};
use vitesse::measure::cka::Alignment;
use vitesse::model::network::{AttentionState, Ctx, Logits, Network, Trace};
use vitesse::model::ops::relative_positions::{Method, Mode, buckets};
use vitesse::model::ops::{HeadMixing, LocalConvolution, Op, OpKind, OpSpec, QkvPart, RelativePositions};
use vitesse::model::spec::{
    AttentionSpec, Groups, NetworkSpec, NormsOf, Pool, PrefixToken, SwinSpec, VitSpec, WindowRule,
};
use vitesse::model::{ModelSpec, Site, Sites, Tensors, minivit_names, swin_names};
use vitesse::train::loss::{self, Distillation, Kind};
use vitesse::train::objective::{Objective, Pass, total};

#[test]
fn golden_minivit() {
    if let Err(failures) = walk("golden_minivit", &golden_root().join("minivit"), check) {
        panic!("{failures}");
    }
}

#[test]
fn golden_minivit_notices_a_wrong_value() {
    for (file, key) in [
        ("mini_deit", "out.layer2.attn"),
        (
            "mini_deit_cls_token",
            "grad.blocks.1.block.attn.rpe_v.instances.1.lookup_table_weight",
        ),
        ("mini_swin", "out.layer3.k"),
        ("mini_swin_two_groups", "out.loss_hidden"),
        ("irpe_apply", "c1.out.y"),
        ("relation_losses", "grad.attn_relation.heads2.l1.q"),
    ] {
        notices(
            "golden_minivit",
            &format!("minivit/{file}.safetensors"),
            key,
            check,
            unknown,
        );
    }
}

#[test]
fn golden_minivit_refuses_empty_folders_and_unknown_files() {
    let folder = tempfile::tempdir().unwrap();
    assert!(walk("golden_minivit (empty)", folder.path(), check).is_err());
    std::fs::write(folder.path().join("notes.txt"), "?").unwrap();
    assert!(walk("golden_minivit (unknown)", folder.path(), check).is_err());
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    let first = |key: &str| v.config["cases"][0].get(key).is_some();
    match v.config["model"].as_str() {
        Some("mini_deit") => mini_deit(v, report),
        Some("mini_swin") => mini_swin(v, report),
        None if first("num_buckets") => piecewise_and_buckets(v, report),
        None if first("mode") => cases(v).for_each(|case| relative_positions(v, case, report)),
        None if first("samples") => cases(v).for_each(|case| alignment(v, case, report)),
        None if v.config.get("relation_heads").is_some() => relation_losses(v, report),
        _ => report.failures.push(format!("{}: unknown kind of file", v.file)),
    }
}

fn cases(v: &Vectors) -> impl Iterator<Item = &Value> {
    v.config["cases"]
        .as_array()
        .expect("config.cases is a list")
        .iter()
}

fn number(of: &Value, key: &str) -> usize {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} is no number")) as usize
}

fn numbers(of: &Value, key: &str) -> Vec<usize> {
    let list = of[key].as_array().unwrap_or_else(|| panic!("{key} is no list"));
    list.iter().map(|one| one.as_u64().unwrap() as usize).collect()
}

fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

fn method(name: &Value) -> Method {
    match name.as_str() {
        Some("product") => Method::Product,
        Some("euc") => Method::Euclidean,
        Some("quant") => Method::Quant,
        Some("cross" | "cross_rows" | "cross_cols") => Method::Cross,
        other => panic!("the method {other:?} is unknown"),
    }
}

fn part(name: char) -> QkvPart {
    match name {
        'q' => QkvPart::Q,
        'k' => QkvPart::K,
        'v' => QkvPart::V,
        other => panic!("relative positions on `{other}` are unknown"),
    }
}

/// A model that a file's config describes, as this project names it.
fn model(v: &Vectors, network: NetworkSpec) -> ModelSpec {
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network,
        ops: Vec::new(),
    }
}

fn targets(v: &Vectors, device: &Device) -> Tensor<2> {
    let labels: Vec<usize> = v
        .i64("in.labels")
        .into_iter()
        .map(|label| label as usize)
        .collect();
    let classes = v.usize("num_classes");
    let rows = loss::target_rows(&labels, classes, 0.0).unwrap();
    Tensor::from_data(TensorData::new(rows, [labels.len(), classes]), device)
}

/// One comparison of a key, and others that are made besides.
fn compare(report: &mut Report, v: &Vectors, key: &str, found: &[f32], also: Option<&str>) {
    match (also, v.has(key)) {
        (_, false) => {}
        (None, true) => report.compare(v, key, found),
        (Some(by), true) => report.compare_also(v, key, by, found),
    }
}

/// Every `grad.*` of a file, by the name that `memory` gives for it.
fn gradients(
    report: &mut Report,
    v: &Vectors,
    found: &BTreeMap<String, Vec<f32>>,
    memory: impl Fn(&str) -> String,
    also: Option<&str>,
) {
    for name in v.under("grad.").names() {
        match found.get(&memory(name)) {
            Some(gradient) => compare(report, v, &format!("grad.{name}"), gradient, also),
            None => report
                .failures
                .push(format!("{}/grad.{name}: no gradient", v.file)),
        }
    }
}

fn mini_deit(v: &Vectors, report: &mut Report) {
    let spec = mini_deit_spec(v);
    let weights = minivit_names::read(&spec, v.under("w.")).unwrap_or_else(|e| panic!("{e}"));
    let device = Device::flex().autodiff();
    let network = Network::new(&spec, &weights, &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let image = tensor::<4>(v, "in.image", &device).require_grad();
    let sites = [Site::PatchOut, Site::AttnOut, Site::BlockOut, Site::FinalNorm];
    let mut ctx = Ctx::tracing(Trace::sites(sites));
    let logits = network.forward(image.clone(), &mut ctx).unwrap().class;
    let traced = |site, layer| values(&ctx.trace.tokens(site, layer).expect("the site was traced"));
    report.compare(v, "out.patch_embed", &traced(Site::PatchOut, None));
    for layer in 0..spec.depth() {
        report.compare(
            v,
            &format!("out.layer{layer}.attn"),
            &traced(Site::AttnOut, Some(layer)),
        );
        report.compare(
            v,
            &format!("out.layer{layer}"),
            &traced(Site::BlockOut, Some(layer)),
        );
    }
    report.compare(v, "out.norm", &traced(Site::FinalNorm, None));
    report.compare(v, "out.logits", &values(&logits));
    engines(v, report, &spec, &weights);
    let distillation = Distillation {
        kind: Kind::Soft,
        ..Distillation::default()
    };
    for (fused, also) in [(true, None), (false, Some("composed"))] {
        let mut ctx = Ctx::eval();
        ctx.compute.fused = fused;
        let logits = network.forward(image.clone(), &mut ctx).unwrap().class;
        let leaf = logits.zeros_like().detach().require_grad();
        let logits = Logits {
            class: logits + leaf.clone(),
            distillation: None,
        };
        let teacher = Some(tensor(v, "in.teacher_logits", &device));
        let loss = distillation.loss(logits, targets(v, &device), teacher).unwrap();
        compare(report, v, "out.cross_entropy", &values(&loss.base), also);
        let soft = values(loss.distill.as_ref().unwrap());
        compare(report, v, "out.soft_distill_per_element", &soft, also);
        compare(report, v, "out.loss", &values(&loss.total), also);
        let found = loss.total.backward();
        compare(
            report,
            v,
            "gradin.image",
            &values(&image.grad(&found).unwrap()),
            also,
        );
        compare(
            report,
            v,
            "gradout.logits",
            &values(&leaf.grad(&found).unwrap()),
            also,
        );
        let found = by_name(&network, &spec, &found);
        let memory = |name: &str| minivit_names::memory_name(&spec, name).unwrap();
        gradients(report, v, &found, memory, also);
    }
}

/// The same logits from the engine: every instruction set that this processor has, one thread and several. What the engine does not have it
/// refuses with a sentence; that is listed.
fn engines(v: &Vectors, report: &mut Report, spec: &ModelSpec, tensors: &Tensors) {
    let under = v.under("in.");
    let image = under.get("image").unwrap();
    let of_keys_alone =
        |op: &OpSpec| !matches!(&op.kind, OpKind::RelativePositions(op) if op.of != QkvPart::K);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for threads in [1, 3] {
            let options = Options {
                threads,
                isa: Some(isa),
                ..Options::default()
            };
            let engine = match Engine::new(spec, tensors, &v.file, options) {
                Ok(engine) => engine,
                Err(error) if !spec.ops.iter().all(of_keys_alone) => {
                    assert!(
                        error.to_string().contains("no step for `relative-positions`"),
                        "{error}"
                    );
                    report
                        .skipped
                        .push(format!("{}/out.logits by the engine ({error})", v.file));
                    return;
                }
                Err(error) => panic!("{}: {error}", v.file),
            };
            let found = engine.run(&image.to_f32(), image.shape()[0]).unwrap();
            let by = format!("engine, {isa}, {threads} threads");
            report.compare_also(v, "out.logits", &by, &found.class);
        }
    }
}

fn mini_deit_spec(v: &Vectors) -> ModelSpec {
    let class_token = v.config["use_cls_token"].as_bool().unwrap();
    let prefix = if class_token {
        vec![PrefixToken::Class]
    } else {
        Vec::new()
    };
    let dim = v.usize("embed_dim");
    let mut vit = VitSpec::plain(
        v.usize("img_size"),
        v.usize("patch_size"),
        dim,
        v.usize("depth"),
        v.usize("num_heads"),
        prefix,
    );
    vit.norm_eps = v.number("norm_eps");
    vit.pool = if class_token { Pool::Token } else { Pool::Avg };
    for core in &mut vit.cores {
        core.mlp.as_mut().unwrap().hidden = (dim as f64 * v.number("mlp_ratio")) as usize;
        core.attn.as_mut().unwrap().qkv_bias = v.config["qkv_bias"].as_bool().unwrap();
    }
    let groups = Groups::Of(v.usize("repeated_times"));
    let mut spec = model(v, NetworkSpec::Vit(vit))
        .share(&groups, NormsOf::Layer)
        .unwrap();
    let rpe = &v.config["rpe"];
    for layer in 0..spec.depth() {
        for on in rpe["rpe_on"].as_str().unwrap_or("").chars() {
            let positions = RelativePositions {
                of: part(on),
                method: method(&rpe["method"]),
                mode: mode(&rpe["mode"]),
                ratio: rpe["ratio"].as_f64().unwrap(),
                shared_heads: rpe["shared_head"].as_bool().unwrap(),
                special: number(rpe, "skip") > 0,
            };
            spec.ops
                .push(at(positions.site(), layer, OpKind::RelativePositions(positions)));
        }
        if v.config["use_transform"].as_bool().unwrap() {
            let mixing = |site| at(site, layer, OpKind::HeadMixing(HeadMixing { bias: false }));
            spec.ops.extend([Site::AttnLogits, Site::AttnProbs].map(mixing));
        }
    }
    spec
}

fn mode(name: &Value) -> Mode {
    match name.as_str() {
        Some("ctx") => Mode::Contextual,
        Some("bias") => Mode::Bias,
        other => panic!("the mode {other:?} is unknown"),
    }
}

/// The Swin that a config describes, student or teacher.
fn swin(config: &Value, norm_eps: f64) -> SwinSpec {
    let (dim, depths, heads) = (
        number(config, "embed_dim"),
        numbers(config, "depths"),
        numbers(config, "num_heads"),
    );
    assert_eq!(config["mlp_ratio"].as_f64(), Some(4.0));
    SwinSpec {
        norm_eps,
        window_rule: WindowRule::Joint,
        ..SwinSpec::plain(
            number(config, "img_size"),
            number(config, "patch_size"),
            number(config, "window_size"),
            dim,
            &depths,
            &heads,
        )
    }
}

fn mini_swin_spec(v: &Vectors) -> ModelSpec {
    let said = |key: &str| v.config[key].as_bool().unwrap();
    let body = SwinSpec {
        mask_unshifted: true,
        ..swin(&v.config, v.number("norm_eps"))
    };
    let stages = body
        .depths
        .clone()
        .into_iter()
        .zip(numbers(&v.config, "separate_layers"));
    let sizes = stages.flat_map(|(depth, unique)| vec![depth / unique; unique]);
    let norms = if said("sep_layernorm") {
        NormsOf::Layer
    } else {
        NormsOf::Group
    };
    let groups = Groups::Sizes(sizes.collect());
    let mut spec = model(v, NetworkSpec::Swin(body)).share(&groups, norms).unwrap();
    for layer in 0..spec.depth() {
        if said("transform_heads") {
            let mixing = |site| at(site, layer, OpKind::HeadMixing(HeadMixing { bias: true }));
            spec.ops.extend([Site::AttnLogits, Site::AttnProbs].map(mixing));
        }
        if said("transform_ffn") {
            let local = LocalConvolution {
                kernel: v.usize("local_kernel"),
                ..LocalConvolution::published()
            };
            spec.ops
                .push(at(Site::Mid, layer, OpKind::LocalConvolution(local)));
        }
    }
    spec
}

/// Weights of a Swin of the original code under timm's names.
fn timms(tensors: &Tensors) -> Tensors {
    let old = swin_names::is_old(tensors);
    let named = |(name, tensor)| Some((swin_names::timm_name(name, old)?, Clone::clone(tensor)));
    tensors.iter().filter_map(named).collect()
}

fn mini_swin(v: &Vectors, report: &mut Report) {
    let spec = mini_swin_spec(v);
    buffers(v, &spec, report);
    let weights = minivit_names::read(&spec, timms(&v.under("w."))).unwrap_or_else(|e| panic!("{e}"));
    let device = Device::flex().autodiff();
    let network = Network::new(&spec, &weights, &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let image = tensor::<4>(v, "in.image", &device).require_grad();
    let mut ctx = Ctx::tracing(Trace::sites([Site::AttnQkv, Site::BlockOut]));
    let logits = network.forward(image.clone(), &mut ctx).unwrap().class;
    report.compare(v, "out.logits", &values(&logits));
    engines(v, report, &spec, &weights);
    for layer in 0..spec.depth() {
        let qkv = ctx.trace.tokens(Site::AttnQkv, Some(layer)).unwrap();
        let width = qkv.dims()[2] / 3;
        for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
            let found = values(&qkv.clone().narrow(2, i * width, width));
            compare(report, v, &format!("out.layer{layer}.{name}"), &found, None);
        }
        let hidden = ctx.trace.tokens(Site::BlockOut, Some(layer)).unwrap();
        report.compare(v, &format!("out.layer{layer}.hidden"), &values(&hidden));
    }
    weight_distillation(v, report, &spec, &network, &image);
}

/// Masks and relative positions, which the original code keeps in its files, one for each group.
fn buffers(v: &Vectors, spec: &ModelSpec, report: &mut Report) {
    let NetworkSpec::Swin(swin) = &spec.network else {
        panic!("a Swin was described")
    };
    for name in v.under("buf.").names() {
        let key = format!("buf.{name}");
        let core = (0..swin.cores.len())
            .find(|&core| name.starts_with(&format!("{}.", swin.core_name(core))))
            .unwrap_or_else(|| panic!("{}/{key}: an unknown buffer", v.file));
        let layers = swin
            .layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| layer.core == core);
        // A shared block has one of each, which all its layers use.
        let each: Vec<Vec<f64>> = layers
            .map(|(layer, _)| {
                let windows = swin.windows(layer).unwrap();
                match name.ends_with(".attn_mask") {
                    true => windows
                        .mask()
                        .unwrap_or_default()
                        .into_iter()
                        .map(f64::from)
                        .collect(),
                    false => windows.relative().into_iter().map(|row| row as f64).collect(),
                }
            })
            .collect();
        report.compare_f64(v, &key, &each[0], 0.0);
        assert!(each.iter().all(|one| *one == each[0]), "{}/{key}", v.file);
    }
}

/// All terms of the loss with the file's teacher, and gradients.
fn weight_distillation(
    v: &Vectors,
    report: &mut Report,
    spec: &ModelSpec,
    network: &Network,
    image: &Tensor<4>,
) {
    let teacher_spec = ModelSpec {
        architecture: format!("{}, teacher", v.file),
        ..model(
            v,
            NetworkSpec::Swin(swin(&v.config["teacher"], v.number("norm_eps"))),
        )
    };
    let teacher = timms(&v.under("t."));
    let teacher =
        Network::new(&teacher_spec, &teacher, &v.file, &Device::flex()).unwrap_or_else(|e| panic!("{e}"));
    let losses = &v.config["losses"];
    let weight = |key: &str| losses[key].as_f64().unwrap();
    let config = Config {
        alpha: weight("alpha"),
        temperature: weight("temperature"),
        attn_weight: weight("attn_weight"),
        hidden_weight: weight("hidden_weight"),
        relation_heads: number(losses, "relation_heads"),
        hidden: Hidden::CosineMse,
    };
    let (own, others) = (
        numbers(&v.config, "student_layers"),
        numbers(&v.config, "teacher_layers"),
    );
    let objective = WeightDistillation::new(config, (spec, &teacher_spec), [&own, &others]).unwrap();
    let wants = objective.wants();

    let wanted = wants.teacher.unwrap();
    let mut ctx = Ctx::tracing(Trace::pairs(wanted.clone()));
    let logits = teacher
        .forward(tensor(v, "in.image", &Device::flex()), &mut ctx)
        .unwrap();
    report.compare(v, "out.teacher_logits", &values(&logits.class));
    let teacher = Pass::new("the teacher", logits, &ctx, &wanted).unwrap();
    for &layer in &others {
        let hidden = teacher.tokens(Site::BlockOut, Some(layer)).unwrap();
        report.compare(v, &format!("out.teacher.layer{layer}.hidden"), &values(&hidden));
    }
    let teacher = teacher.constant();

    let device = Device::flex().autodiff();
    let old = swin_names::is_old(&v.under("w."));
    for (fused, also) in [(true, None), (false, Some("composed"))] {
        let mut ctx = Ctx::tracing(Trace::pairs(wants.student.clone()));
        ctx.compute.fused = fused;
        let mut logits = network.forward(image.clone(), &mut ctx).unwrap();
        let leaf = logits.class.zeros_like().detach().require_grad();
        logits.class = logits.class + leaf.clone();
        let student = Pass::new("the student", logits, &ctx, &wants.student).unwrap();
        let terms = objective
            .compare(&student, &teacher, &targets(v, &device))
            .unwrap();
        for term in &terms {
            let weighted = values(&(term.value.clone() * term.weight));
            compare(report, v, &format!("out.loss_{}", term.name), &weighted, also);
        }
        let loss = total(&terms).unwrap();
        compare(report, v, "out.loss_total", &values(&loss), also);
        let found = loss.backward();
        compare(
            report,
            v,
            "gradin.image",
            &values(&image.grad(&found).unwrap()),
            also,
        );
        compare(
            report,
            v,
            "gradout.logits",
            &values(&leaf.grad(&found).unwrap()),
            also,
        );
        let found = by_name(network, spec, &found);
        let memory = |name: &str| {
            let name = swin_names::timm_name(name, old).unwrap();
            minivit_names::memory_name(spec, &name).unwrap()
        };
        gradients(report, v, &found, memory, also);
    }
}

fn piecewise_and_buckets(v: &Vectors, report: &mut Report) {
    let offsets = v.f32("in.piecewise.offsets");
    for name in v.under("piecewise.ratio").names() {
        let ratio: f64 = name.parse().unwrap();
        let found = offsets.iter().map(|&x| buckets::piecewise(x, ratio) as f64);
        report.compare_f64(
            v,
            &format!("piecewise.ratio{name}"),
            &found.collect::<Vec<_>>(),
            0.0,
        );
    }
    for case in cases(v) {
        let positions = RelativePositions {
            of: QkvPart::K,
            method: method(&case["method"]),
            mode: Mode::Contextual,
            ratio: case["ratio"].as_f64().unwrap(),
            shared_heads: true,
            special: number(case, "skip") > 0,
        };
        assert_eq!(positions.count(), number(case, "num_buckets"));
        let tables = positions.tables([number(case, "height"), number(case, "width")]);
        let table = usize::from(case["method"] == "cross_cols");
        let pairs = tables[table].1.pairs(number(case, "skip"), 0);
        let found: Vec<f64> = pairs.into_iter().map(|bucket| bucket.unwrap() as f64).collect();
        let key = format!("{}out.bucket_ids", case["prefix"].as_str().unwrap());
        report.compare_f64(v, &key, &found, 0.0);
    }
}

/// One op by itself: what it adds where queries, keys or maps are given and nothing is there before.
fn relative_positions(v: &Vectors, case: &Value, report: &mut Report) {
    let key = |key: &str| format!("{}{key}", case["prefix"].as_str().unwrap());
    let positions = RelativePositions {
        of: part(case["on"].as_str().unwrap().chars().next().unwrap()),
        method: method(&case["method"]),
        mode: mode(&case["mode"]),
        ratio: case["ratio"].as_f64().unwrap(),
        shared_heads: case["shared_head"].as_bool().unwrap(),
        special: number(case, "skip") > 0,
    };
    let (heads, width, skip) = (
        number(case, "heads"),
        number(case, "head_dim"),
        number(case, "skip"),
    );
    let (grid, batch) = (
        [number(case, "height"), number(case, "width")],
        number(case, "batch"),
    );
    let (dim, tokens) = (heads * width, skip + grid[0] * grid[1]);
    let prefix = vec![PrefixToken::Class; skip];
    let mut vit = VitSpec {
        img_size: grid,
        ..VitSpec::plain(1, 1, dim, 1, heads, prefix)
    };
    vit.pool = if skip > 0 { Pool::Token } else { Pool::Avg };
    let mut spec = ModelSpec {
        architecture: v.file.clone(),
        num_classes: 0,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    };
    let (of, site) = (positions.of, positions.site());
    spec.ops.push(at(site, 0, OpKind::RelativePositions(positions)));
    let ops_prefix = spec.ops[0].prefix(0);
    let file = v.under(&key("w."));
    let named = file
        .iter()
        .map(|(name, tensor)| (format!("{ops_prefix}.{name}"), tensor.clone()));
    let device = Device::flex().autodiff();
    let op = Op::alone(&spec.ops[0], 0, &spec, &named.collect(), &device).unwrap_or_else(|e| panic!("{e}"));

    let x = tensor::<4>(v, &key("in.x"), &device).require_grad();
    let attention = AttentionSpec::uniform(dim, heads);
    let mut ctx = Ctx::eval();
    (ctx.stream.grid, ctx.stream.prefix) = (grid, skip);
    let zeros = |width| Tensor::<3>::zeros([batch, tokens, width], &device);
    let maps = || Tensor::<4>::zeros([batch, heads, tokens, tokens], &device);
    let y = if of == QkvPart::V {
        let mut state = AttentionState::new(zeros(3 * dim), &attention);
        state.probs = Some(x.clone());
        ctx.attention = Some(state);
        let y = op.forward(zeros(dim), &mut ctx);
        y.reshape([batch, tokens, heads, width]).swap_dims(1, 2)
    } else {
        // What is looked up is scaled as queries are.
        let rows = x.clone().swap_dims(1, 2).reshape([batch, tokens, dim]) / attention.scale;
        let mut parts = vec![zeros(dim); 3];
        parts[usize::from(of == QkvPart::Q)] = rows;
        ctx.attention = Some(AttentionState::new(Tensor::cat(parts, 2), &attention));
        let y = op.forward_map(maps(), &mut ctx);
        if of == QkvPart::Q { y.swap_dims(2, 3) } else { y }
    };
    report.compare(v, &key("out.y"), &values(&y));
    let loss = (y * tensor::<4>(v, &key("in.upstream"), &device)).sum();
    let found = loss.backward();
    if v.has(&key("grad.x")) {
        // A bias does not read it; the reference writes zeros.
        let zeros = || vec![0.0; v.f32(&key("grad.x")).len()];
        let gradient = x.grad(&found).map_or_else(zeros, |gradient| values(&gradient));
        report.compare(v, &key("grad.x"), &gradient);
    }
    let by_name = support::adapting::by_module(&op, &spec.ops[0].tensors(0, &spec), &found);
    for name in file.names() {
        report.compare(
            v,
            &key(&format!("grad.{name}")),
            &by_name[&format!("{ops_prefix}.{name}")],
        );
    }
}

fn alignment(v: &Vectors, case: &Value, report: &mut Report) {
    let prefix = case["prefix"].as_str().unwrap();
    let features = |name: &str| -> Vec<f64> {
        let values = v.f32(&format!("{prefix}in.{name}"));
        values.into_iter().map(f64::from).collect()
    };
    let found = Alignment::of(&features("x"), &features("y"), number(case, "samples"));
    let values = [
        ("cka", found.cka()),
        ("hsic_xy", found.xy),
        ("hsic_xx", found.xx),
        ("hsic_yy", found.yy),
    ];
    for (name, value) in values {
        report.compare_f64(v, &format!("f64.{prefix}out.{name}"), &[value], 1e-10);
    }
}

fn relation_losses(v: &Vectors, report: &mut Report) {
    let device = Device::flex().autodiff();
    let layers = v.config["layers"].as_array().unwrap().len();
    let of =
        |who: &str, layer: usize, name: &str| tensor::<3>(v, &format!("in.{who}.l{layer}.{name}"), &device);
    let mean = |terms: Vec<Tensor<1>>| {
        let share = 1.0 / terms.len() as f64;
        terms.into_iter().reduce(|sum, term| sum + term).unwrap() * share
    };
    for heads in numbers(&v.config, "relation_heads") {
        let parts = |who: &str, layer| ["q", "k", "v"].map(|name| of(who, layer, name));
        let student: Vec<[Tensor<3>; 3]> = (0..layers)
            .map(|layer| parts("student", layer).map(Tensor::require_grad))
            .collect();
        let terms = student.iter().enumerate();
        let terms = terms.map(|(layer, own)| relations::attention(own, &parts("teacher", layer), heads));
        let loss = mean(terms.collect());
        report.compare(v, &format!("out.attn_relation.heads{heads}"), &values(&loss));
        let found = loss.backward();
        for (layer, own) in student.iter().enumerate() {
            for (x, name) in own.iter().zip(["q", "k", "v"]) {
                let key = format!("grad.attn_relation.heads{heads}.l{layer}.{name}");
                report.compare(v, &key, &values(&x.grad(&found).unwrap()));
            }
        }
    }
    type Compare = fn(&Tensor<3>, &Tensor<3>) -> Tensor<1>;
    let hidden: [(_, Compare); 2] = [("code", relations::cosines), ("paper", relations::products)];
    for (name, compare) in hidden {
        let student: Vec<Tensor<3>> = (0..layers)
            .map(|layer| of("student", layer, "hidden").require_grad())
            .collect();
        let terms = student.iter().enumerate();
        let terms = terms.map(|(layer, own)| compare(own, &of("teacher", layer, "hidden")));
        let loss = mean(terms.collect());
        report.compare(v, &format!("out.hidden_relation_{name}"), &values(&loss));
        let found = loss.backward();
        for (layer, own) in student.iter().enumerate() {
            let key = format!("grad.hidden_relation_{name}.l{layer}.hidden");
            report.compare(v, &key, &values(&own.grad(&found).unwrap()));
        }
    }
    for temperature in v.config["temperatures"].as_array().unwrap() {
        let logits = tensor::<2>(v, "in.student.logits", &device).require_grad();
        let teacher = tensor::<2>(v, "in.teacher.logits", &device);
        let loss = distill::soft(logits.clone(), teacher, temperature.as_f64().unwrap());
        report.compare(v, &format!("out.soft_ce.T{temperature}"), &values(&loss));
        let gradient = logits.grad(&loss.backward()).unwrap();
        report.compare(
            v,
            &format!("grad.soft_ce.T{temperature}.logits"),
            &values(&gradient),
        );
    }
    report.skip(
        v,
        "out.hidden_mse",
        "a projection of hidden states, which no published model was trained with",
    );
}
