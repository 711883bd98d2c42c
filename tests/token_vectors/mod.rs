//! What the vectors of token reduction describe, and what is compared with them: one file for each method.

pub(crate) mod cait;
pub(crate) mod dynamicvit;
pub(crate) mod evit;
pub(crate) mod policy;
pub(crate) mod spvit;
pub(crate) mod tome;

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use vitesse::engine::{Engine, Isa, Options};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::ops::{OpKind, OpSpec};
use vitesse::model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse::model::{ModelSpec, Site, Tensors, token_names};

use crate::support::{Report, Vectors};

/// What no float can be rounded to: decisions agree or not.
pub(crate) const EXACT: f64 = 0.0;

pub(crate) fn cases(v: &Vectors) -> impl Iterator<Item = (String, &Value)> {
    let cases = v.config["cases"].as_array().expect("config.cases is a list");
    let named = cases.iter().enumerate();
    named.map(|(i, case)| (format!("case{i}"), case))
}

pub(crate) fn list(of: &Value) -> Vec<f64> {
    let list = of.as_array().expect("the config has a list");
    list.iter().map(|one| one.as_f64().unwrap()).collect()
}

/// A plain ViT with a grid of `grid` patches.
pub(crate) fn vit(
    grid: [usize; 2],
    dim: usize,
    depth: usize,
    heads: usize,
    prefix: &[PrefixToken],
) -> VitSpec {
    let mut vit = VitSpec::plain(4, 4, dim, depth, heads, prefix.to_vec());
    vit.img_size = grid.map(|side| 4 * side);
    vit
}

/// The model that a file's config describes, with `ops`.
pub(crate) fn model(v: &Vectors, ops: Vec<OpSpec>) -> ModelSpec {
    let dim = v.usize("dim");
    let (depth, heads) = (v.usize("depth"), v.usize("heads"));
    let mut vit = match v.config.get("img") {
        Some(_) => VitSpec::plain(
            v.usize("img"),
            v.usize("patch"),
            dim,
            depth,
            heads,
            vec![PrefixToken::Class],
        ),
        // Blocks alone.
        None => {
            let side = v.usize("tokens").isqrt();
            self::vit([side; 2], dim, depth, heads, &[PrefixToken::Class])
        }
    };
    for core in &mut vit.cores {
        core.mlp.as_mut().unwrap().hidden = (dim as f64 * v.number("mlp_ratio")) as usize;
    }
    ModelSpec {
        architecture: v.file.clone(),
        num_classes: v.config.get("classes").map_or(0, |_| v.usize("classes")),
        network: NetworkSpec::Vit(vit),
        ops,
    }
}

pub(crate) fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

/// Ops at `block.in` of the layers that a file names, by what its config says of each stage.
pub(crate) fn stages(v: &Vectors, kind: impl Fn(f64) -> OpKind) -> Vec<OpSpec> {
    let stages = list(&v.config["loc"]).into_iter().zip(list(&v.config["ratio"]));
    stages
        .map(|(layer, ratio)| at(Site::BlockIn, layer as usize, kind(ratio)))
        .collect()
}

/// A file's weights under this project's names.
pub(crate) fn weights(v: &Vectors, spec: &ModelSpec) -> Tensors {
    let mut own = Tensors::new();
    for (name, tensor) in v.under("w.").iter() {
        if !name.starts_with("teacher.") {
            own.insert(name, tensor.clone());
        }
    }
    token_names::read(spec, &own).unwrap_or_else(|e| panic!("{}: {e}", v.file))
}

pub(crate) fn network(v: &Vectors, spec: &ModelSpec, weights: &Tensors, device: &Device) -> Network {
    Network::new(spec, weights, &v.file, device).unwrap_or_else(|e| panic!("{}: {e}", v.file))
}

/// Any values as doubles, to be compared with whatever a file holds.
pub(crate) fn doubles<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

/// An output of the op of this number.
pub(crate) fn output(spec: &ModelSpec, index: usize, name: &str, ctx: &Ctx) -> Tensor<2> {
    let key = format!("{}.{name}", spec.ops[index].prefix(index));
    let output = ctx.outputs.get(&key);
    output.unwrap_or_else(|| panic!("no output {key}")).clone()
}

/// For every token that there is, which of `original` tokens went into it: `[batch, tokens, original]`, 0 or 1.
pub(crate) fn sources(ctx: &Ctx, batch: usize, tokens: usize) -> Vec<f64> {
    let places = ctx.stream.places.as_ref().unwrap();
    let mut out = Vec::new();
    for image in 0..batch {
        for token in 0..tokens {
            let of = places.of_image(image).iter();
            out.extend(of.map(|place| f64::from(u8::from(*place == Some(token)))));
        }
    }
    out
}

/// The same logits from the engine: every instruction set that this processor has, one thread and several. What the engine does not have
/// it refuses with a sentence; that is listed.
pub(crate) fn engines(v: &Vectors, report: &mut Report, key: &str, spec: &ModelSpec, tensors: &Tensors) {
    let under = v.under("in.");
    let image = under.get("image").unwrap();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for threads in [1, 2, 3] {
            let options = Options {
                threads,
                isa: Some(isa),
                ..Options::default()
            };
            let engine = match Engine::new(spec, tensors, &v.file, options) {
                Ok(engine) => engine,
                Err(error) => {
                    assert!(error.to_string().contains("has no step for"), "{error}");
                    report
                        .skipped
                        .push(format!("{}/{key} by the engine ({error})", v.file));
                    return;
                }
            };
            let found = engine.run(&image.to_f32(), image.shape()[0]).unwrap();
            let by = format!("engine, {isa}, {threads} threads");
            report.compare_also(v, key, &by, &found.class);
        }
    }
}
