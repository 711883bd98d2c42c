//! Swin against the original code and timm: every recorded place of the forward pass, logits, loss, gradients, masks and
//! relative positions. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod support;

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor};
use support::adapting::{tensor, values};
use support::{Report, Vectors, agrees, notices_each, refuses_other_folders};
use vitesse::engine::{Engine, FeatureExtractor, Isa, Options};
use vitesse::model::network::{Ctx, Network, Trace, param_id};
use vitesse::model::spec::{NetworkSpec, SwinSpec, WindowRule};
use vitesse::model::{ModelSpec, Site, Tensors, swin_names};
use vitesse::train::loss;

#[test]
fn golden_swin() {
    agrees("swin", check);
}

#[test]
fn golden_swin_notices_a_wrong_value() {
    let places = [
        ("swin_official", "out.stage0.downsample"),
        ("swin_official", "buf.layers.0.blocks.1.attn_mask"),
        ("swin_timm", "out.stage1.block1"),
        (
            "swin_timm",
            "grad.layers.0.blocks.1.attn.relative_position_bias_table",
        ),
    ];
    notices_each("swin", &places, check);
}

#[test]
fn golden_swin_refuses_empty_folders_and_unknown_files() {
    refuses_other_folders("swin", check);
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    match (v.config["model"].as_str(), v.config["layout"].as_str()) {
        (Some("swin"), Some("official")) => whole_model(v, true, report),
        (Some("swin"), Some("timm")) => whole_model(v, false, report),
        other => report.failures.push(format!(
            "{}: config.model and config.layout {other:?} are unknown",
            v.file
        )),
    }
}

/// One number for both sides, or two.
fn sides(v: &Vectors, key: &str) -> [usize; 2] {
    match v.config[key].as_array() {
        Some(sides) => [0, 1].map(|axis| sides[axis].as_u64().unwrap() as usize),
        None => [v.usize(key); 2],
    }
}

/// A number for each stage.
fn stages(v: &Vectors, key: &str) -> Vec<usize> {
    let list = v.config[key]
        .as_array()
        .unwrap_or_else(|| panic!("{}: config.{key} is no list", v.file));
    list.iter().map(|one| one.as_u64().unwrap() as usize).collect()
}

/// The model that a file's config describes.
fn swin(v: &Vectors, original: bool) -> SwinSpec {
    let (dim, depths, heads) = (v.usize("embed_dim"), stages(v, "depths"), stages(v, "num_heads"));
    let mut swin = SwinSpec {
        img_size: sides(v, "img_size"),
        window_size: sides(v, "window_size"),
        norm_eps: v.number("norm_eps"),
        in_chans: v.config.get("in_chans").map_or(3, |_| v.usize("in_chans")),
        window_rule: if original {
            WindowRule::Joint
        } else {
            WindowRule::PerAxis
        },
        ..SwinSpec::plain(0, v.usize("patch_size"), 0, dim, &depths, &heads)
    };
    for core in 0..swin.cores.len() {
        let dim = swin.stage_dim(swin.core_stage(core).unwrap());
        let core = &mut swin.cores[core];
        core.mlp.as_mut().unwrap().hidden = (dim as f64 * v.number("mlp_ratio")) as usize;
        core.attn.as_mut().unwrap().qkv_bias = v.config.get("qkv_bias").is_none_or(|b| b.as_bool().unwrap());
    }
    swin
}

/// The weights under the names they have in memory.
fn weights(v: &Vectors, old: bool) -> Tensors {
    let named = |(name, tensor)| Some((swin_names::timm_name(name, old)?, Clone::clone(tensor)));
    v.under("w.").iter().filter_map(named).collect()
}

fn whole_model(v: &Vectors, original: bool, report: &mut Report) {
    // The layouts are told apart by their names, as in files of weights.
    let old = swin_names::is_old(&v.under("w."));
    let body = swin(v, original);
    buffers(v, &body, report);
    let spec = ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network: NetworkSpec::Swin(body.clone()),
        ops: Vec::new(),
    };
    let device = Device::flex().autodiff();
    let network = Network::new(&spec, &weights(v, old), &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let image = tensor::<4>(v, "in.image", &device).require_grad();

    let mut ctx = Ctx::tracing(Trace::sites([Site::BlockIn, Site::BlockOut, Site::FinalNorm]));
    let logits = network
        .forward(image.clone(), &mut ctx)
        .unwrap_or_else(|e| panic!("{e}"));
    let mut compare = |key: &str, site, layer| {
        if v.has(key) {
            let traced = ctx.trace.tokens(site, layer).expect("the site was traced");
            report.compare(v, key, &values(&traced));
        }
    };
    compare("out.patch_embed", Site::BlockIn, Some(0));
    compare("out.norm", Site::FinalNorm, None);
    for (stage, &depth) in body.depths.iter().enumerate() {
        let first = body.first_layer(stage);
        for block in 0..depth {
            compare(
                &format!("out.stage{stage}.block{block}"),
                Site::BlockOut,
                Some(first + block),
            );
        }
        if stage > 0 {
            compare(
                &format!("out.stage{}.downsample", stage - 1),
                Site::BlockIn,
                Some(first),
            );
        }
    }
    report.compare(v, "out.logits", &values(&logits.class));
    engines(v, report, &spec, &weights(v, old));
    if v.config.get("loss_for_gradients").is_some() {
        // Without the trace no segment is cut.
        for fused in [true, false] {
            gradients(v, report, (&network, &spec), &image, (old, fused));
        }
    }
}

/// The same logits and the same maps of the stages from the engine: every instruction set that this processor has, one thread
/// and several.
fn engines(v: &Vectors, report: &mut Report, spec: &ModelSpec, tensors: &Tensors) {
    let under = v.under("in.");
    let image = under.get("image").unwrap();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for threads in [1, 3, 5] {
            let options = Options {
                threads,
                isa: Some(isa),
                ..Options::default()
            };
            let engine = Engine::new(spec, tensors, &v.file, options).unwrap_or_else(|e| panic!("{e}"));
            let found = engine
                .run(&image.to_f32(), image.shape()[0])
                .unwrap_or_else(|e| panic!("{e}"));
            let by = format!("engine, {isa}, {threads} threads");
            report.compare_also(v, "out.logits", &by, &found.class);
            stage_maps(v, report, (spec, tensors), options, &by);
        }
    }
}

/// What the last block of each stage leaves, as feature maps.
fn stage_maps(
    v: &Vectors,
    report: &mut Report,
    (spec, tensors): (&ModelSpec, &Tensors),
    options: Options,
    by: &str,
) {
    let under = v.under("in.");
    let image = under.get("image").unwrap();
    let extractor =
        FeatureExtractor::new(spec, tensors, &v.file, &[], options).unwrap_or_else(|e| panic!("{e}"));
    let maps = extractor
        .run(&image.to_f32(), image.shape()[0])
        .unwrap_or_else(|e| panic!("{e}"));
    for (stage, (depth, values)) in stages(v, "depths").into_iter().zip(&maps).enumerate() {
        let positions: usize = extractor.maps()[stage].size.iter().product();
        let channels = extractor.maps()[stage].channels;
        // Recorded are tokens, one after the other.
        let images = values.chunks_exact(positions * channels);
        let tokens: Vec<f32> = images
            .flat_map(|map| {
                (0..positions * channels).map(move |i| map[i % channels * positions + i / channels])
            })
            .collect();
        report.compare_also(v, &format!("out.stage{stage}.block{}", depth - 1), by, &tokens);
    }
    report.expect(&v.file, maps.len() == stages(v, "depths").len(), || {
        format!("{} maps, {by}", maps.len())
    });
}

/// Masks and relative positions, which the original code keeps in its files.
fn buffers(v: &Vectors, swin: &SwinSpec, report: &mut Report) {
    for name in v.under("buf.").names() {
        let key = format!("buf.{name}");
        let parts: Vec<&str> = name.split('.').collect();
        let ["layers", stage, "blocks", block, ref rest @ ..] = parts[..] else {
            report
                .failures
                .push(format!("{}/{key}: an unknown buffer", v.file));
            continue;
        };
        let layer = swin.first_layer(stage.parse().unwrap()) + block.parse::<usize>().unwrap();
        let windows = swin.windows(layer).unwrap();
        let found: Vec<f64> = match rest.last() {
            Some(&"relative_position_index") => {
                windows.relative().into_iter().map(|row| row as f64).collect()
            }
            Some(&"attn_mask") => {
                let mask = windows.mask().unwrap_or_default();
                mask.into_iter().map(f64::from).collect()
            }
            _ => panic!("{}/{key}: an unknown buffer", v.file),
        };
        report.compare_f64(v, &key, &found, 0.0);
    }
}

/// The mean cross-entropy with the file's labels, and its gradients.
fn gradients(
    v: &Vectors,
    report: &mut Report,
    (network, spec): (&Network, &ModelSpec),
    image: &Tensor<4>,
    (old, fused): (bool, bool),
) {
    let mut ctx = Ctx::eval();
    ctx.compute.fused = fused;
    let logits = network.forward(image.clone(), &mut ctx).unwrap().class;
    // A leaf of zeros, so that the gradient of the logits themselves can be read.
    let leaf = logits.zeros_like().detach().require_grad();
    let logits = logits + leaf.clone();
    let labels: Vec<usize> = v
        .i64("in.labels")
        .into_iter()
        .map(|label| label as usize)
        .collect();
    let rows = loss::target_rows(&labels, spec.num_classes, 0.0).unwrap();
    let targets = burn::tensor::TensorData::new(rows, [labels.len(), spec.num_classes]);
    let targets = Tensor::<2>::from_data(targets, &Device::flex().autodiff());
    let loss = loss::cross_entropy(logits, targets).unwrap();
    let mut compare = |key: &str, found: &[f32]| match (fused, v.has(key)) {
        (_, false) => {}
        (true, true) => report.compare(v, key, found),
        (false, true) => report.compare_also(v, key, "composed", found),
    };
    compare("out.cross_entropy", &values(&loss));
    let gradients = loss.backward();
    compare("gradin.image", &values(&image.grad(&gradients).unwrap()));
    compare("gradout.logits", &values(&leaf.grad(&gradients).unwrap()));
    let found = by_parameter(network, &gradients);
    for name in v.under("grad.").names() {
        let ours = swin_names::timm_name(name, old).unwrap();
        let gradient = found
            .get(&param_id(&ours))
            .unwrap_or_else(|| panic!("no gradient of {ours}"));
        compare(&format!("grad.{name}"), gradient);
    }
    let trained = spec.tensors().unwrap().len();
    report.expect(&v.file, found.len() == trained, || {
        format!("{} gradients for {trained} parameters", found.len())
    });
}

/// The gradient of each parameter.
fn by_parameter(network: &Network, gradients: &Gradients) -> HashMap<ParamId, Vec<f32>> {
    struct Collect<'a>(&'a Gradients, HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                self.1.insert(param.id, values(&gradient));
            }
        }
    }
    let mut collect = Collect(gradients, HashMap::new());
    network.visit(&mut collect);
    collect.1
}
