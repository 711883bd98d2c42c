//! Mini-DeiT at every recorded layer, its loss and gradients.

use burn::tensor::Device;
use vitesse::model::network::{Ctx, Logits, Network, Trace};
use vitesse::model::ops::{HeadMixing, OpKind, RelativePositions};
use vitesse::model::spec::{Groups, NetworkSpec, NormsOf, Pool, PrefixToken, VitSpec};
use vitesse::model::{ModelSpec, Site, Sites, minivit_names};
use vitesse::train::loss::{Distillation, Kind};

use super::{at, compare, engines, gradients, method, mode, model, number, part, targets};
use crate::support::adapting::{by_name, tensor, values};
use crate::support::{Report, Vectors};

pub(crate) fn mini_deit(v: &Vectors, report: &mut Report) {
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
