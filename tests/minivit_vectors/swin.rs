//! Mini-Swin at every recorded layer, its masks, and weight distillation from the file's teacher.

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use vitesse::compress::share::distill::{Hidden, WeightDistillation};
use vitesse::compress::share::minivit::Config;
use vitesse::model::network::{Ctx, Network, Trace};
use vitesse::model::ops::{HeadMixing, LocalConvolution, OpKind};
use vitesse::model::spec::{Groups, NetworkSpec, NormsOf, SwinSpec, WindowRule};
use vitesse::model::{ModelSpec, Site, Sites, Tensors, minivit_names, swin_names};
use vitesse::train::objective::{Objective, Pass, total};

use super::{at, compare, engines, gradients, model, number, numbers, targets};
use crate::support::adapting::{by_name, tensor, values};
use crate::support::{Report, Vectors};

pub(crate) fn mini_swin(v: &Vectors, report: &mut Report) {
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

/// Weights of a Swin of the original code under timm's names.
fn timms(tensors: &Tensors) -> Tensors {
    let old = swin_names::is_old(tensors);
    let named = |(name, tensor)| Some((swin_names::timm_name(name, old)?, Clone::clone(tensor)));
    tensors.iter().filter_map(named).collect()
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
        ..Config::default()
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
