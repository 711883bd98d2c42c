//! ViT and DeiT against the original implementation: every recorded site, logits, losses, gradients, position
//! embeddings, preprocessing. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod support;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use support::{Report, Vectors, agrees, notices_each, refuses_other_folders};
use vitesse::data::{CropMode, CutBox, Image, Interpolation, Mix, Preprocess, Replica};
use vitesse::engine::{Engine, Isa, Options};
use vitesse::model::network::{Ctx, Fusion, Logits, Network, Trace, param_id};
use vitesse::model::pos_embed::{self, Flavour};
use vitesse::model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse::model::{ModelSpec, Site, Sites, Tensors, zoo};
use vitesse::train::adamw::{self, OptimConfig, Slot, Step};
use vitesse::train::groups::groups;
use vitesse::train::loss::{self, Distillation, Kind, Normaliser};
use vitesse::train::schedule::Schedule;

#[test]
fn golden_deit() {
    agrees("deit", check);
}

#[test]
fn golden_deit_notices_a_wrong_value() {
    let places = [
        ("vit_cls", "out.block1.attn"),
        ("vit_cls", "grad.pos_embed"),
        ("pos_embed_resize", "c2.out.pos_embed"),
    ];
    notices_each("deit", &places, check);
}

#[test]
fn golden_deit_refuses_empty_folders_and_unknown_files() {
    refuses_other_folders("deit", check);
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
    let side =
        |x: &serde_json::Value| x.as_u64().unwrap_or_else(|| panic!("{}: config.{key}", v.file)) as usize;
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
    let mut vit = VitSpec::plain(
        img_size[0],
        v.usize("patch_size"),
        dim,
        v.usize("depth"),
        heads,
        prefix,
    );
    vit.img_size = img_size;
    vit.norm_eps = v.number("norm_eps");
    vit.in_chans = v
        .config
        .get("in_chans")
        .map_or(3, |c| c.as_u64().unwrap() as usize);
    for core in &mut vit.cores {
        core.mlp.as_mut().unwrap().hidden = (dim as f64 * v.number("mlp_ratio")) as usize;
        core.attn.as_mut().unwrap().qkv_bias = v.config.get("qkv_bias").is_none_or(|b| b.as_bool().unwrap());
    }
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.usize("num_classes"),
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

fn tensor<const D: usize>(v: &Vectors, key: &str, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(v.f32(key), v.shape(key)), device)
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.try_to_vec_as::<f32>().unwrap()
}

/// Every parameter's gradient, compared under the parameter's own name.
struct CompareGradients<'a> {
    vectors: &'a Vectors,
    report: &'a mut Report,
    how: Segments,
    names: std::collections::HashMap<burn::module::ParamId, String>,
    gradients: &'a Gradients,
}

impl ModuleVisitor for CompareGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = &self.names[&param.id];
        match param.val().grad(self.gradients) {
            Some(grad) => {
                self.how
                    .compare(self.report, self.vectors, &format!("grad.{name}"), &values(&grad));
            }
            None => self
                .report
                .failures
                .push(format!("{}: no gradient for {name}", self.vectors.file)),
        }
    }
}

fn forward_and_gradients(v: &Vectors, report: &mut Report) {
    let spec = spec_of(v, sides(v, "img_size"));
    let device = Device::flex().autodiff();
    let network = Network::new(&spec, &v.under("w."), &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let image = tensor::<4>(v, "in.image", &device).require_grad();
    let sites = [
        Site::PatchOut,
        Site::BlockIn,
        Site::AttnOut,
        Site::BlockOut,
        Site::FinalNorm,
    ];
    let mut ctx = Ctx::tracing(Trace::sites(sites));
    let logits = network
        .forward(image.clone(), &mut ctx)
        .unwrap_or_else(|e| panic!("{e}"));

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
        compare(
            &format!("out.block{layer}.attn"),
            traced(Site::AttnOut, Some(layer)),
        );
    }
    compare("out.logits", values(&logits.class));
    compare("out.logits_class", values(&logits.class));
    if let Some(distillation) = &logits.distillation {
        compare("out.logits_distill", values(distillation));
        compare(
            "out.eval_logits_mean",
            values(&logits.clone().joint(Fusion::LogitMean)),
        );
        compare(
            "out.eval_prob_mean",
            values(&logits.clone().joint(Fusion::SoftmaxMean)),
        );
    }
    engines(v, report, &spec, &v.under("w."));
    if v.config.get("loss_for_gradients").is_some() {
        // Without the trace no segment is cut.
        for how in [Segments::Fused, Segments::Composed] {
            let logits = network
                .forward(image.clone(), &mut how.ctx())
                .unwrap_or_else(|e| panic!("{e}"));
            losses_and_gradients(v, report, &network, &image, logits, how);
        }
    }
}

/// How a network computes: the fused segments are what everything else uses, the composed ones are compared besides.
#[derive(Clone, Copy, PartialEq)]
enum Segments {
    Fused,
    Composed,
}

impl Segments {
    fn ctx(self) -> Ctx {
        let mut ctx = Ctx::eval();
        ctx.compute.fused = self == Segments::Fused;
        ctx
    }

    fn compare(self, report: &mut Report, v: &Vectors, key: &str, found: &[f32]) {
        match self {
            Segments::Fused => report.compare(v, key, found),
            Segments::Composed => report.compare_also(v, key, "composed", found),
        }
    }
}

/// The same logits from the engine: every instruction set that this processor has, one thread and several.
fn engines(v: &Vectors, report: &mut Report, spec: &ModelSpec, tensors: &Tensors) {
    let under = v.under("in.");
    let image = under.get("image").unwrap();
    let (images, count) = (image.to_f32(), image.shape()[0]);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for threads in [1, 3] {
            let options = Options {
                threads,
                isa: Some(isa),
                ..Options::default()
            };
            let engine = Engine::new(spec, tensors, &v.file, options).unwrap_or_else(|e| panic!("{e}"));
            let found = engine.run(&images, count).unwrap_or_else(|e| panic!("{e}"));
            let by = format!("engine, {isa}, {threads} threads");
            for key in ["out.logits", "out.logits_class"] {
                if v.has(key) {
                    report.compare_also(v, key, &by, &found.class);
                }
            }
            if v.has("out.logits_distill") {
                report.compare_also(v, "out.logits_distill", &by, &found.distillation);
            }
        }
    }
}

fn resized_forward(v: &Vectors, report: &mut Report) {
    let old = spec_of(v, sides(v, "img_size"));
    let spec = spec_of(v, sides(v, "new_img_size"));
    let grid = |spec: &ModelSpec| {
        let [rows, columns] = spec.vit().unwrap().grid();
        (rows, columns)
    };
    let mut tensors = v.under("w.");
    let resized = pos_embed::resize(
        tensors.get("pos_embed").unwrap(),
        spec.vit().unwrap().prefix.len(),
        Some(grid(&old)),
        grid(&spec),
        Flavour::Deit,
    )
    .unwrap_or_else(|e| panic!("{e}"));
    report.compare(v, "out.pos_embed_resized", &resized.to_f32());
    tensors.insert("pos_embed", resized);
    engines(v, report, &spec, &tensors);
    let device = Device::flex();
    let network = Network::new(&spec, &tensors, &v.file, &device).unwrap_or_else(|e| panic!("{e}"));
    let logits = network
        .forward(tensor(v, "in.image", &device), &mut Ctx::eval())
        .unwrap();
    report.compare(
        v,
        "out.eval_logits_mean",
        &values(&logits.joint(Fusion::LogitMean)),
    );
}

fn position_embeddings(v: &Vectors, report: &mut Report) {
    for case in v.config["cases"].as_array().expect("config.cases is a list") {
        let prefix = case["prefix"].as_str().unwrap();
        let number = |x: &serde_json::Value| x.as_u64().unwrap() as usize;
        let grid = |key: &str| (number(&case[key][0]), number(&case[key][1]));
        let input = v.tensors.get(&format!("{prefix}in.pos_embed")).unwrap();
        let extra = number(&case["extra_tokens"]);
        for (key, flavour) in [
            ("out.pos_embed", Flavour::Deit),
            ("out.antialias_false", Flavour::Deit),
            ("out.antialias_true", Flavour::Timm),
        ] {
            let key = format!("{prefix}{key}");
            if v.has(&key) {
                let resized =
                    pos_embed::resize(input, extra, Some(grid("old_grid")), grid("new_grid"), flavour)
                        .unwrap();
                report.compare(v, &key, &resized.to_f32());
            }
        }
    }
}

/// `[batch, classes]` targets of the file: recorded, or from its labels with the smoothing its config names.
fn targets(v: &Vectors, smoothing: f64) -> Tensor<2> {
    let device = Device::flex().autodiff();
    if v.has("in.targets") && v.shape("in.targets").len() == 2 {
        return tensor(v, "in.targets", &device);
    }
    smoothed(&v.i64("in.labels"), v.usize("num_classes"), smoothing)
}

fn smoothed(labels: &[i64], classes: usize, smoothing: f64) -> Tensor<2> {
    let labels: Vec<usize> = labels.iter().map(|&label| label as usize).collect();
    let rows = loss::target_rows(&labels, classes, smoothing).unwrap();
    let shape = [labels.len(), classes];
    Tensor::from_data(TensorData::new(rows, shape), &Device::flex().autodiff())
}

/// The distillation that a config names, `None` when it names none.
fn distillation(config: &serde_json::Value, kind: &str) -> Distillation {
    let kind = match config.get(kind).map(|kind| kind.as_str().expect("a name")) {
        None | Some("none") => Kind::None,
        Some("hard") => Kind::Hard,
        Some("soft") => Kind::Soft,
        Some(other) => panic!("unknown kind of distillation {other}"),
    };
    let number = |key: &str, default| config.get(key).map_or(default, |x| x.as_f64().expect("a number"));
    Distillation {
        kind,
        alpha: number("alpha", 0.5),
        tau: number("tau", 1.0),
        normaliser: Normaliser::PerElement,
    }
}

fn scalar(x: &Tensor<1>) -> Vec<f32> {
    values(x)
}

fn losses_and_gradients(
    v: &Vectors,
    report: &mut Report,
    network: &Network,
    image: &Tensor<4>,
    logits: Logits,
    how: Segments,
) {
    let device = Device::flex().autodiff();
    let distill = distillation(&v.config, "distillation");
    let teacher = v
        .has("in.teacher_logits")
        .then(|| tensor::<2>(v, "in.teacher_logits", &device));

    // Leaves of zeros, so that the gradients of the logits themselves can be read.
    let leaf = |x: &Tensor<2>| x.zeros_like().detach().require_grad();
    let class_leaf = leaf(&logits.class);
    let other_leaf = logits.distillation.as_ref().map(leaf);
    let logits = Logits {
        class: logits.class + class_leaf.clone(),
        distillation: logits
            .distillation
            .zip(other_leaf.clone())
            .map(|(x, leaf)| x + leaf),
    };
    let loss = |smoothing, normaliser| {
        let distill = Distillation {
            normaliser,
            ..distill
        };
        distill
            .loss(logits.clone(), targets(v, smoothing), teacher.clone())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let smoothing = 0.1;
    let code = loss(smoothing, Normaliser::PerElement);
    let paper = loss(smoothing, Normaliser::PerSample);
    let plain = loss(0.0, Normaliser::PerElement);
    let mut compare = |key: &str, found: Option<&Tensor<1>>| {
        if v.has(key) {
            how.compare(report, v, key, &scalar(found.expect("the loss has this part")));
        }
    };
    compare("out.loss_cross_entropy", Some(&plain.base));
    compare("out.loss_label_smoothing_0.1", Some(&code.base));
    compare("out.loss_base", Some(&code.base));
    compare("out.loss_total", Some(&code.total));
    compare("out.loss_total_per_sample", Some(&paper.total));
    compare("out.distill_hard", code.distill.as_ref());
    compare("out.distill_code_per_element", code.distill.as_ref());
    compare("out.distill_per_sample", paper.distill.as_ref());
    if v.has("out.distill_kl_sum") {
        // τ² · sum / (batch · classes) is the per-element loss: the sum is it times what it was divided by.
        let elements = (logits.class.dims()[0] * logits.class.dims()[1]) as f64;
        let sum = code.distill.as_ref().unwrap().clone() * (elements / (distill.tau * distill.tau));
        how.compare(report, v, "out.distill_kl_sum", &scalar(&sum));
    }

    let gradients = code.total.backward();
    let image_gradient = image.grad(&gradients).expect("the image asked for its gradient");
    how.compare(report, v, "gradin.image", &values(&image_gradient));
    let class_gradient = values(
        &class_leaf
            .grad(&gradients)
            .expect("the class logits have a gradient"),
    );
    for key in ["gradout.logits", "gradout.logits_class"] {
        if v.has(key) {
            how.compare(report, v, key, &class_gradient);
        }
    }
    if let Some(leaf) = other_leaf {
        how.compare(
            report,
            v,
            "gradout.logits_distill",
            &values(&leaf.grad(&gradients).unwrap()),
        );
    }
    let tensors = network.spec().tensors().unwrap();
    let names = tensors
        .into_iter()
        .map(|tensor| (param_id(&tensor.name), tensor.name))
        .collect();
    network.visit(&mut CompareGradients {
        vectors: v,
        report,
        how,
        names,
        gradients: &gradients,
    });
}

fn distillation_losses(v: &Vectors, report: &mut Report) {
    let device = Device::flex().autodiff();
    for combo in v.config["combos"].as_array().expect("config.combos is a list") {
        let at = |key: &str| format!("{}{key}", combo["prefix"].as_str().unwrap());
        let class = tensor::<2>(v, &at("in.class"), &device).require_grad();
        let other = tensor::<2>(v, &at("in.distill"), &device).require_grad();
        let distill = distillation(combo, "kind");
        let targets = smoothed(&v.i64(&at("in.labels")), v.usize("classes"), 0.0);
        let logits = Logits {
            class: class.clone(),
            distillation: Some(other.clone()),
        };
        let loss = distill
            .loss(logits, targets, Some(tensor(v, &at("in.teacher"), &device)))
            .unwrap();
        report.compare(v, &at("out.base"), &scalar(&loss.base));
        report.compare(v, &at("out.total"), &scalar(&loss.total));
        let gradients = loss.total.backward();
        for (key, leaf) in [("grad.class", class), ("grad.distill", other)] {
            // A head that the loss does not touch has no gradient; the reference writes zeros.
            let zeros = || vec![0.0; v.f32(&at(key)).len()];
            let found = leaf
                .grad(&gradients)
                .map_or_else(zeros, |gradient| values(&gradient));
            report.compare(v, &at(key), &found);
        }
    }
}

fn preprocessing(v: &Vectors, report: &mut Report) {
    let list = |key: &str| -> [f32; 3] {
        let numbers = v.config[key].as_array().expect("three numbers");
        [0, 1, 2].map(|i| numbers[i].as_f64().unwrap() as f32)
    };
    for case in v.config["cases"].as_array().expect("config.cases is a list") {
        let at = |key: &str| format!("{}{key}", case["prefix"].as_str().unwrap());
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let bytes = |key: &str| v.tensors.get(&at(key)).unwrap().bytes().to_vec();
        let image = Image::new(number("width"), number("height"), bytes("in.rgb_u8_hwc")).unwrap();
        let crop = number("crop");
        let preprocess = Preprocess {
            input_size: [3, crop, crop],
            interpolation: Interpolation::Bicubic,
            crop_pct: v.number("crop_ratio"),
            crop_mode: CropMode::Center,
            mean: list("mean").into(),
            std: list("std").into(),
        };
        let shape = v.shape(&at("out.resized_u8_hwc"));
        let resized = vitesse::data::resize(&image, shape[1], shape[0], Interpolation::Bicubic);
        report.compare_levels(v, &at("out.resized_u8_hwc"), resized.data());
        let cropped = preprocess.resize_and_crop(&image).unwrap();
        report.compare_levels(v, &at("out.cropped_u8_hwc"), cropped.data());
        // From the recorded pixels, so that a level of difference there does not count twice.
        let recorded = Image::new(crop, crop, bytes("out.cropped_u8_hwc")).unwrap();
        let only_normalise = Preprocess {
            crop_pct: 1.0,
            ..preprocess
        };
        report.compare(
            v,
            &at("out.normalized_chw"),
            &only_normalise.run(&recorded).unwrap(),
        );
    }
}

fn recipe(v: &Vectors, report: &mut Report) {
    learning_rates(v, report);
    mixing(v, report);
    repeated_augmentation(v, report);
    adamw_and_ema(v, report);
}

fn learning_rates(v: &Vectors, report: &mut Report) {
    let lr = &v.config["lr"];
    let number = |key: &str| {
        lr[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{}: config.lr.{key}", v.file))
    };
    let optim = OptimConfig {
        lr: number("base_lr"),
        lr_base_size: Some(512),
        ..OptimConfig::default()
    };
    let peak = optim.peak_lr(number("global_batch") as usize);
    assert!(
        (peak - number("scaled_lr")).abs() < 1e-12,
        "{}: scaled_lr",
        v.file
    );
    let schedule = Schedule {
        warmup_epochs: number("warmup_epochs"),
        warmup_lr: number("warmup_lr"),
        min_lr: number("min_lr"),
        ..Schedule::default()
    };
    let epochs = number("epochs") as usize;
    let count = v.shape("f64.out.lr_after_step")[0];
    let found: Vec<f64> = (0..count)
        .map(|epoch| schedule.lr(peak, epochs, 1, epoch))
        .collect();
    report.compare_f64(v, "f64.out.lr_after_step", &found, 1e-12);
}

fn repeated_augmentation(v: &Vectors, report: &mut Report) {
    let config = &v.config["repeated_augmentation"];
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let permutation: Vec<usize> = v.i64("in.ra.permutation").iter().map(|&i| i as usize).collect();
    for rank in 0..number("replicas") {
        let replica = Replica {
            rank,
            of: number("replicas"),
        };
        let picks = vitesse::data::repeated_augmentation(&permutation, number("repeats"), replica);
        let found: Vec<f64> = picks.iter().map(|pick| pick.index as f64).collect();
        report.compare_f64(v, &format!("out.ra.rank{rank}"), &found, 0.0);
    }
}

fn adamw_and_ema(v: &Vectors, report: &mut Report) {
    let config = &v.config["adamw"];
    let number = |key: &str| config[key].as_f64().unwrap();
    let names = ["bias", "dist_token", "pos_embed", "weight"];
    let shapes: Vec<Vec<usize>> = names
        .iter()
        .map(|name| v.shape(&format!("in.adamw.init.{name}")))
        .collect();
    // The model's tensors of these kinds say what decays.
    let model = zoo::get("deit_tiny_distilled_patch16_224").unwrap().spec;
    let specs = model.tensors().unwrap();
    let kinds = ["head.bias", "dist_token", "pos_embed", "head.weight"]
        .map(|name| specs.iter().find(|spec| spec.name == name).unwrap().clone());
    let optim = OptimConfig {
        weight_decay: number("weight_decay"),
        betas: [
            config["betas"][0].as_f64().unwrap(),
            config["betas"][1].as_f64().unwrap(),
        ],
        eps: number("eps"),
        ..OptimConfig::default()
    };
    let groups = groups(&kinds, model.depth(), &optim.no_weight_decay, optim.layer_decay);
    let mut slots: Vec<Slot> = names
        .iter()
        .zip(&shapes)
        .zip(groups)
        .map(|((name, shape), group)| {
            Slot::new(*name, shape, group, v.f32(&format!("in.adamw.init.{name}")), true)
        })
        .collect();
    let steps = (0..)
        .take_while(|step| v.has(&format!("in.adamw.grad{step}.weight")))
        .count();
    for step in 0..steps {
        let gradients: Vec<Option<Vec<f32>>> = names
            .iter()
            .map(|name| Some(v.f32(&format!("in.adamw.grad{step}.{name}"))))
            .collect();
        let numbers = Step {
            t: step as u64 + 1,
            lr: number("lr"),
            ema_decay: number("ema_decay"),
        };
        adamw::step(&optim, &mut slots, &gradients, 1.0, numbers);
        for slot in &slots {
            report.compare(v, &format!("out.adamw.step{step}.{}", slot.name), &slot.weight);
        }
    }
    for slot in &slots {
        report.compare(
            v,
            &format!("out.ema.{}", slot.name),
            slot.ema.as_ref().expect("an average is kept"),
        );
    }
}

fn mixing(v: &Vectors, report: &mut Report) {
    let mix = &v.config["mix"];
    let lam = mix["lam"].as_f64().unwrap();
    let smoothing = mix["smoothing"].as_f64().unwrap();
    let classes = mix["classes"].as_u64().unwrap() as usize;
    let labels: Vec<usize> = v
        .i64("in.mix.labels")
        .iter()
        .map(|&label| label as usize)
        .collect();
    let shape: [usize; 4] = v.shape("in.mix.image").try_into().unwrap();

    let mut images = v.f32("in.mix.image");
    Mix::Mixup(lam).apply(&mut images, shape).unwrap();
    report.compare(v, "out.mixup.image", &images);
    report.compare(
        v,
        "out.mixup.targets",
        &vitesse::data::targets(&labels, lam, smoothing, classes).unwrap(),
    );

    let side = |i: usize| mix["cutmix_box_y0_y1_x0_x1"][i].as_u64().unwrap() as usize;
    let cut = CutBox {
        top: side(0),
        bottom: side(1),
        left: side(2),
        right: side(3),
    };
    let mut images = v.f32("in.mix.image");
    let lam = Mix::Cutmix(cut).apply(&mut images, shape).unwrap();
    let corrected = mix["cutmix_lam_after_area_correction"].as_f64().unwrap();
    assert!(
        (lam - corrected).abs() < 1e-12,
        "{}: lambda {lam} after the cut, expected {corrected}",
        v.file
    );
    report.compare(v, "out.cutmix.image", &images);
    report.compare(
        v,
        "out.cutmix.targets",
        &vitesse::data::targets(&labels, lam, smoothing, classes).unwrap(),
    );
}
