//! What the golden tests of adapters share: the model that a config describes, its logits, loss and gradients, and the
//! same logits from the engine.

#![allow(dead_code, unreachable_pub, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use vitesse::adapt::merge;
use vitesse::engine::{Engine, Isa, Options};
use vitesse::model::network::{Ctx, Network, Trace, param_id};
use vitesse::model::ops::Activation;
use vitesse::model::spec::{NetworkSpec, Pool, PrefixToken, TensorSpec, VitSpec};
use vitesse::model::{Checkpoint, ModelSpec, Site, Tensors};
use vitesse::train::loss::{self, Distillation, Kind};
use vitesse::train::method::Finished;

use super::{Report, Vectors};

/// The plain ViT that a file's config describes.
pub fn vit(v: &Vectors) -> ModelSpec {
    let dim = v.usize("embed_dim");
    let mut vit = VitSpec::plain(
        v.usize("img_size"),
        v.usize("patch_size"),
        dim,
        v.usize("depth"),
        v.usize("num_heads"),
        vec![PrefixToken::Class],
    );
    vit.norm_eps = v.number("norm_eps");
    vit.activation = activation(v);
    vit.pool = match v.config.get("pool").map(|pool| pool.as_str().unwrap()) {
        None | Some("cls token" | "cls token after norm") => Pool::Token,
        Some("mean then fc_norm" | "mean of the patch tokens, then fc_norm") => Pool::AvgThenNorm,
        Some(other) => panic!("{}: config.pool is `{other}`, which is unknown", v.file),
    };
    let hidden = if v.config.get("mlp_dim").is_some() {
        v.usize("mlp_dim")
    } else {
        (dim as f64 * v.number("mlp_ratio")) as usize
    };
    for core in &mut vit.cores {
        core.mlp.as_mut().unwrap().hidden = hidden;
        core.attn.as_mut().unwrap().qkv_bias = v.config.get("qkv_bias").is_none_or(|b| b.as_bool().unwrap());
    }
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

/// The activation that a file's config names; the exact GELU where it names none.
pub fn activation(v: &Vectors) -> Activation {
    match v.config.get("act").map(|act| act.as_str().unwrap()) {
        None | Some("gelu_erf") => Activation::Gelu,
        Some("quick_gelu") => Activation::QuickGelu,
        Some("relu") => Activation::Relu,
        Some(other) => panic!("{}: config.act is `{other}`, which is unknown", v.file),
    }
}

/// A checkpoint that no file holds.
pub fn checkpoint(spec: ModelSpec, tensors: Tensors) -> Checkpoint {
    Checkpoint {
        spec,
        tensors,
        config: Default::default(),
        source: Default::default(),
    }
}

pub fn tensor<const D: usize>(v: &Vectors, key: &str, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(v.f32(key), v.shape(key)), device)
}

pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.try_to_vec_as::<f32>().unwrap()
}

fn images(v: &Vectors) -> Tensor<4> {
    tensor(v, "in.images", &Device::flex())
}

/// The network's logits, and what passed the given sites.
pub fn traced(v: &Vectors, spec: &ModelSpec, tensors: &Tensors, sites: Vec<Site>) -> (Vec<f32>, Trace) {
    let network =
        Network::new(spec, tensors, &v.file, &Device::flex()).unwrap_or_else(|e| panic!("{}: {e}", v.file));
    let mut ctx = Ctx::tracing(Trace::sites(sites));
    let logits = network.forward(images(v), &mut ctx).unwrap();
    let distillation = logits.distillation.as_ref().map(values).unwrap_or_default();
    (mean(values(&logits.class), &distillation), ctx.trace)
}

/// What the heads of a model say together; the second says nothing where there is but one.
fn mean(class: Vec<f32>, distillation: &[f32]) -> Vec<f32> {
    if distillation.is_empty() {
        return class;
    }
    class
        .iter()
        .zip(distillation)
        .map(|(a, b)| (a + b) / 2.0)
        .collect()
}

/// Logits under `key` from the network and from the engine: every instruction set of this processor, one thread and three.
pub fn logits(v: &Vectors, report: &mut Report, key: &str, spec: &ModelSpec, tensors: &Tensors) {
    report.compare(v, key, &traced(v, spec, tensors, Vec::new()).0);
    by_engine(v, report, key, spec, tensors);
}

/// Logits under `key` from the engine, beside those that were compared already.
pub fn by_engine(v: &Vectors, report: &mut Report, key: &str, spec: &ModelSpec, tensors: &Tensors) {
    let under = v.under("in.");
    let images = under.get("images").unwrap();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for threads in [1, 3] {
            let options = Options {
                threads,
                isa: Some(isa),
                ..Options::default()
            };
            let engine = Engine::new(spec, tensors, &v.file, options).unwrap_or_else(|e| panic!("{e}"));
            let found = engine.run(&images.to_f32(), images.shape()[0]).unwrap();
            let by = format!("engine, {isa}, {threads} threads");
            report.compare_also(v, key, &by, &mean(found.class, &found.distillation));
        }
    }
}

/// Mean cross-entropy, compared with `out.loss`, and its gradients by tensor name.
pub fn gradients(
    v: &Vectors,
    report: &mut Report,
    spec: &ModelSpec,
    tensors: &Tensors,
) -> BTreeMap<String, Vec<f32>> {
    let device = Device::flex().autodiff();
    let network = Network::new(spec, tensors, &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let images = tensor::<4>(v, "in.images", &device);
    let labels: Vec<usize> = v.i64("in.labels").into_iter().map(|x| x as usize).collect();
    let rows = loss::target_rows(&labels, spec.num_classes, 0.0).unwrap();
    let targets = TensorData::new(rows, [labels.len(), spec.num_classes]);
    let logits = network.forward(images, &mut Ctx::eval()).unwrap();
    let plain = Distillation {
        kind: Kind::None,
        ..Distillation::default()
    };
    let loss = plain
        .loss(logits, Tensor::from_data(targets, &device), None)
        .unwrap();
    report.compare(v, "out.loss", &values(&loss.total));
    by_name(&network, spec, &loss.total.backward())
}

/// The gradients of a network's parameters.
pub fn by_name(network: &Network, spec: &ModelSpec, gradients: &Gradients) -> BTreeMap<String, Vec<f32>> {
    by_module(network, &spec.tensors().unwrap(), gradients)
}

/// The gradients of the parameters of a module that has these tensors.
pub fn by_module<M: Module>(
    module: &M,
    tensors: &[TensorSpec],
    gradients: &Gradients,
) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a> {
        names: HashMap<ParamId, String>,
        gradients: &'a Gradients,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                self.found
                    .insert(self.names[&param.id].clone(), values(&gradient));
            }
        }
    }
    let named = |tensor: &TensorSpec| (param_id(&tensor.name), tensor.name.clone());
    let mut collect = Collect {
        names: tensors.iter().map(named).collect(),
        gradients,
        found: BTreeMap::new(),
    };
    module.visit(&mut collect);
    collect.found
}

/// Compares every `grad.*` of a file with the gradients of the tensors that `names` gives for it, one after the other.
pub fn compare_gradients(
    v: &Vectors,
    report: &mut Report,
    found: &BTreeMap<String, Vec<f32>>,
    names: impl Fn(&str) -> Vec<String>,
) {
    let keys: Vec<String> = v.under("grad.").names().map(str::to_owned).collect();
    for key in keys {
        let mut all = Vec::new();
        for name in names(&key) {
            match found.get(&name) {
                Some(values) => all.extend_from_slice(values),
                None => report
                    .failures
                    .push(format!("{}/grad.{key}: no gradient for `{name}`", v.file)),
            }
        }
        report.compare(v, &format!("grad.{key}"), &all);
    }
}

/// Merges, compares every `merged.*` that is a tensor of the model, and un-merges again.
pub fn merged(v: &Vectors, report: &mut Report, attached: &Checkpoint) -> Finished {
    let merged = merge::merge(&attached.spec, &attached.tensors, merge::Options::default())
        .unwrap_or_else(|e| panic!("{}: {e}", v.file));
    let keys: Vec<String> = v.under("merged.").names().map(str::to_owned).collect();
    for key in keys {
        if let Ok(tensor) = merged.tensors.get(&key) {
            report.compare(v, &format!("merged.{key}"), &tensor.to_f32());
        }
    }
    let mut all = merged.tensors.clone();
    for (name, tensor) in attached
        .tensors
        .iter()
        .filter(|(name, _)| name.starts_with("ops."))
    {
        all.insert(name, tensor.clone());
    }
    let mut spec = attached.spec.clone();
    if let (NetworkSpec::Vit(vit), NetworkSpec::Vit(plain)) = (&mut spec.network, &merged.spec.network) {
        vit.cores = plain.cores.clone();
    }
    let back =
        merge::unmerge(&spec, &all, merged.report.created_bias).unwrap_or_else(|e| panic!("{}: {e}", v.file));
    for name in v.under("w.").names() {
        if let Ok(found) = back.tensors.get(name)
            && !name.starts_with("head")
        {
            report.compare_also(v, &format!("w.{name}"), "un-merged", &found.to_f32());
        }
    }
    merged
}
