//! ViT and DeiT against the original implementation: every recorded site, logits, losses, gradients, position
//! embeddings, preprocessing. See `tests/golden/README.md`.

mod support;

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use support::{Report, Vectors, golden_root, walk};
use vitesse::model::network::{Ctx, Fusion, Logits, Network, Trace, param_id};
use vitesse::model::pos_embed::{self, Flavour};
use vitesse::model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse::model::{ModelSpec, Site};

#[test]
fn golden_deit() {
    if let Err(failures) = walk("golden_deit", &golden_root().join("deit"), check) {
        panic!("{failures}");
    }
}

/// A comparison that could not fail would prove nothing: one expected value is moved by ten tolerances.
#[test]
fn golden_deit_notices_a_wrong_value() {
    let source = golden_root().join("deit");
    for (file, key) in [("vit_cls", "out.block1.attn"), ("vit_cls", "grad.pos_embed"), ("pos_embed_resize", "c2.out.pos_embed")] {
        let copy = tempfile::tempdir().unwrap();
        let path = source.join(format!("{file}.safetensors"));
        if !path.exists() {
            continue;
        }
        shift_one_value(&path, &copy.path().join(format!("{file}.safetensors")), key);
        let failures = walk("golden_deit (one value moved)", copy.path(), check).err().expect("the moved value passed");
        assert!(failures.contains(key) && failures.lines().count() == 1, "{failures}");
    }
}

#[test]
fn golden_deit_refuses_empty_folders_and_unknown_files() {
    let folder = tempfile::tempdir().unwrap();
    assert!(walk("golden_deit (empty)", folder.path(), check).is_err());
    std::fs::write(folder.path().join("notes.txt"), "?").unwrap();
    assert!(walk("golden_deit (unknown)", folder.path(), check).is_err());
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    let has = |key: &str| v.config.get(key).is_some();
    if has("model") && has("new_img_size") {
        resized_forward(v, report);
    } else if has("model") {
        forward_and_gradients(v, report);
    } else if has("combos") {
        distillation_losses(v, report);
    } else if has("cases") && has("mode") {
        position_embeddings(v, report);
    } else if has("cases") && has("crop_ratio") {
        preprocessing(v, report);
    } else if has("adamw") {
        recipe(v, report);
    } else {
        report.failures.push(format!("{}: unknown kind of file", v.file));
    }
}

/// `[32, 32]` or `32`.
fn sides(v: &Vectors, key: &str) -> [usize; 2] {
    let value = &v.config[key];
    let side = |x: &serde_json::Value| x.as_u64().unwrap_or_else(|| panic!("{}: config.{key}", v.file)) as usize;
    match value.as_array() {
        Some(sides) => [side(&sides[0]), side(&sides[1])],
        None => [side(value); 2],
    }
}

/// The model that a file's config describes, for images of `img_size`.
fn spec_of(v: &Vectors, img_size: [usize; 2]) -> ModelSpec {
    let prefix = match v.config["model"].as_str() {
        Some("vit") => vec![PrefixToken::Class],
        Some("deit_distilled") => vec![PrefixToken::Class, PrefixToken::Distillation],
        other => panic!("{}: config.model {other:?} is unknown", v.file),
    };
    let dim = v.usize("embed_dim");
    let heads = v.usize("num_heads");
    let mut vit = VitSpec::plain(img_size[0], v.usize("patch_size"), dim, v.usize("depth"), heads, prefix);
    vit.img_size = img_size;
    vit.norm_eps = v.number("norm_eps");
    vit.in_chans = v.config.get("in_chans").map_or(3, |c| c.as_u64().unwrap() as usize);
    for core in &mut vit.cores {
        core.mlp.as_mut().unwrap().hidden = (dim as f64 * v.number("mlp_ratio")) as usize;
        core.attn.as_mut().unwrap().qkv_bias = v.config.get("qkv_bias").is_none_or(|b| b.as_bool().unwrap());
    }
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network: NetworkSpec::Vit(vit),
    }
}

fn tensor<const D: usize>(v: &Vectors, key: &str, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(v.f32(key), v.shape(key)), device)
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().to_vec().unwrap()
}

/// Every parameter's gradient, compared under the parameter's own name.
struct CompareGradients<'a> {
    vectors: &'a Vectors,
    report: &'a mut Report,
    names: std::collections::HashMap<burn::module::ParamId, String>,
    gradients: &'a Gradients,
}

impl ModuleVisitor for CompareGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = &self.names[&param.id];
        match param.val().grad(self.gradients) {
            Some(grad) => self.report.compare(self.vectors, &format!("grad.{name}"), &values(&grad)),
            None => self.report.failures.push(format!("{}: no gradient for {name}", self.vectors.file)),
        }
    }
}

fn forward_and_gradients(v: &Vectors, report: &mut Report) {
    let spec = spec_of(v, sides(v, "img_size"));
    let device = Device::flex().autodiff();
    let network = Network::new(&spec, &v.under("w."), &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let image = tensor::<4>(v, "in.image", &device).require_grad();
    let sites = [Site::PatchOut, Site::BlockIn, Site::AttnOut, Site::BlockOut, Site::FinalNorm];
    let mut ctx = Ctx::tracing(Trace::sites(sites));
    let logits = network.forward(image.clone(), &mut ctx).unwrap_or_else(|e| panic!("{e}"));

    let traced = |site, layer| values(&ctx.trace.tokens(site, layer).expect("the site was traced"));
    let mut compare = |key: &str, found: Vec<f32>| {
        if v.has(key) {
            report.compare(v, key, &found);
        }
    };
    compare("out.patch_embed", traced(Site::PatchOut, None));
    compare("out.tokens", traced(Site::BlockIn, Some(0)));
    compare("out.norm", traced(Site::FinalNorm, None));
    compare("out.features_after_norm", traced(Site::FinalNorm, None));
    for layer in 0..v.usize("depth") {
        compare(&format!("out.block{layer}"), traced(Site::BlockOut, Some(layer)));
        compare(&format!("out.block{layer}.attn"), traced(Site::AttnOut, Some(layer)));
    }
    compare("out.logits", values(&logits.class));
    compare("out.logits_class", values(&logits.class));
    if let Some(distillation) = &logits.distillation {
        compare("out.logits_distill", values(distillation));
        compare("out.eval_logits_mean", values(&logits.clone().joint(Fusion::LogitMean)));
        compare("out.eval_prob_mean", values(&logits.clone().joint(Fusion::SoftmaxMean)));
    }
    if v.config.get("loss_for_gradients").is_some() {
        losses_and_gradients(v, report, &network, &image, logits);
    }
}

fn resized_forward(v: &Vectors, report: &mut Report) {
    let old = spec_of(v, sides(v, "img_size"));
    let spec = spec_of(v, sides(v, "new_img_size"));
    let grid = |spec: &ModelSpec| spec.vit().unwrap().grid();
    let mut tensors = v.under("w.");
    let resized = pos_embed::resize(
        tensors.get("pos_embed").unwrap(),
        spec.vit().unwrap().prefix.len(),
        grid(&old),
        grid(&spec),
        Flavour::Deit,
    )
    .unwrap_or_else(|e| panic!("{e}"));
    report.compare(v, "out.pos_embed_resized", &resized.to_f32());
    tensors.insert("pos_embed", resized);
    let device = Device::flex();
    let network = Network::new(&spec, &tensors, &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let logits = network.forward(tensor(v, "in.image", &device), &mut Ctx::eval()).unwrap();
    report.compare(v, "out.eval_logits_mean", &values(&logits.joint(Fusion::LogitMean)));
}

fn position_embeddings(v: &Vectors, report: &mut Report) {
    for case in v.config["cases"].as_array().expect("config.cases is a list") {
        let prefix = case["prefix"].as_str().unwrap();
        let number = |x: &serde_json::Value| x.as_u64().unwrap() as usize;
        let grid = |key: &str| [number(&case[key][0]), number(&case[key][1])];
        let input = v.tensors.get(&format!("{prefix}in.pos_embed")).unwrap();
        let extra = number(&case["extra_tokens"]);
        for (key, flavour) in [
            ("out.pos_embed", Flavour::Deit),
            ("out.antialias_false", Flavour::Deit),
            ("out.antialias_true", Flavour::Timm),
        ] {
            let key = format!("{prefix}{key}");
            if v.has(&key) {
                let resized = pos_embed::resize(input, extra, grid("old_grid"), grid("new_grid"), flavour).unwrap();
                report.compare(v, &key, &resized.to_f32());
            }
        }
    }
}
