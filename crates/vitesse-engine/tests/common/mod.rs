//! A vision transformer in plain loops over `f64`, the engine's oracle, and models to try it on.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

use std::cell::RefCell;

use vitesse_engine::Isa;
use vitesse_model::ops::{
    Activation, Bottleneck, LowRank, NORM_EPS, NormPlace, OpKind, OpSpec, Prompts, QkvPart, ScaleShift,
};
use vitesse_model::spec::{
    AttentionSpec, BlockSpec, LayerSpec, MlpSpec, NetworkSpec, Pool, PrefixToken, VitSpec,
};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_rng::{Key, Rng};

/// Every level that this processor has.
pub fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect()
}

pub fn rng(test: &str, case: u64) -> Rng {
    Key::new(11).with(test).at(case).rng()
}

/// `low ..= high`
pub fn between(rng: &mut Rng, low: usize, high: usize) -> usize {
    low + rng.below(high - low + 1)
}

/// A model of this body with five classes.
pub fn model(vit: VitSpec) -> ModelSpec {
    ModelSpec {
        architecture: "test".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

/// Images that a model takes, one after the other.
pub fn images(spec: &ModelSpec, count: usize, seed: u64) -> Vec<f32> {
    let mut rng = rng("images", seed);
    (0..count * spec.input_size().iter().product::<usize>())
        .map(|_| rng.normal() as f32)
        .collect()
}

/// Weights of a size that keeps the stream's, and nothing that is exactly 0 or 1.
pub fn weights(spec: &ModelSpec, seed: u64) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(seed).with(&tensor.name).rng();
        let inputs: usize = tensor.shape[1..].iter().product();
        let (mean, deviation) = match tensor.name.rsplit('.').next().unwrap() {
            "scale" => (1.0, 0.3),
            "weight" if tensor.shape.len() == 1 => (1.0, 0.3),
            "weight" => (0.0, (inputs as f64).powf(-0.5)),
            _ => (0.0, 0.3),
        };
        let values = (0..tensor.numel())
            .map(|_| (mean + deviation * rng.normal()) as f32)
            .collect();
        out.insert_f32(&tensor.name, &tensor.shape, values).unwrap();
    }
    out
}

/// A model of any shape that a spec can describe.
pub fn random_spec(rng: &mut Rng) -> ModelSpec {
    let side = [4, 5, 6, 8, 16][rng.below(5)];
    let mut vit = VitSpec::plain(side, side, between(rng, 4, 100), 0, 1, Vec::new());
    vit.img_size = [side * between(rng, 1, 7), side * between(rng, 1, 7)];
    vit.in_chans = between(rng, 1, 4);
    vit.pool = [Pool::Token, Pool::Token, Pool::Avg, Pool::AvgThenNorm][rng.below(4)];
    if vit.pool == Pool::Token || rng.bernoulli(0.5) {
        vit.prefix.push(PrefixToken::Class);
    }
    vit.embed_prefix = rng.bernoulli(0.6);
    if vit.pool == Pool::Token && vit.embed_prefix && rng.bernoulli(0.5) {
        vit.prefix.push(PrefixToken::Distillation);
    }
    if rng.bernoulli(0.3) {
        vit.prefix.extend(vec![PrefixToken::Register; between(rng, 1, 4)]);
    }
    vit.norm_eps = [1e-6, 1e-5][rng.below(2)];
    vit.patch_bias = rng.bernoulli(0.8);
    vit.pre_norm = rng.bernoulli(0.3);
    let activations = [Activation::Gelu, Activation::Gelu, Activation::QuickGelu];
    vit.activation = activations[rng.below(3)];
    let cores = rng.below(4);
    vit.cores = (0..cores).map(|_| random_block(rng, vit.embed_dim)).collect();
    let shared = if cores > 0 && rng.bernoulli(0.4) {
        between(rng, 1, 2)
    } else {
        0
    };
    let order: Vec<usize> = (0..cores).chain((0..shared).map(|_| rng.below(cores))).collect();
    vit.layers = rng
        .permutation(order.len())
        .into_iter()
        .map(|i| LayerSpec::of(order[i]))
        .collect();
    let mut spec = model(vit);
    let depth = spec.depth();
    for _ in 0..rng.below(12) {
        let site = Site::ALL[rng.below(Site::ALL.len())];
        let layer = site.in_block().then(|| rng.below(depth.max(1)));
        if !site.is_map() && spec.has(site, layer) {
            let kind = OpKind::ScaleShift(ScaleShift {
                shift: rng.bernoulli(0.6),
            });
            spec.ops.push(OpSpec { site, layer, kind });
        }
    }
    if rng.bernoulli(0.5) && depth > 0 {
        for _ in 0..rng.below(6) {
            spec.ops.extend(random_op(rng, &spec));
        }
        let tokens = between(rng, 1, 9);
        let project = rng.bernoulli(0.5).then(|| between(rng, 1, 60));
        for layer in 0..depth {
            if rng.bernoulli(0.3) && (layer == 0 || spec.sites().prompts() > 0) {
                let kind = OpKind::Prompts(Prompts { tokens, project });
                let (site, layer) = (Site::BlockIn, Some(layer));
                spec.ops.insert(0, OpSpec { site, layer, kind });
            }
        }
    }
    spec.num_classes = if rng.bernoulli(0.2) {
        0
    } else {
        between(rng, 1, 70)
    };
    spec
}

/// A bottleneck or a low-rank update somewhere; nothing where the block has no such place.
pub fn random_op(rng: &mut Rng, sites: &dyn Sites) -> Option<OpSpec> {
    let layer = rng.below(sites.depth());
    let choose = |rng: &mut Rng, sites: &[Site]| sites[rng.below(sites.len())];
    if rng.bernoulli(0.4) {
        let [qkv, proj, fc1, fc2] = Site::PROJECTIONS;
        let site = choose(rng, &[qkv, proj, fc1, fc2, Site::Embed]);
        sites.matrix(site, layer)?;
        let parts = [QkvPart::Q, QkvPart::K, QkvPart::V];
        let parts: Vec<QkvPart> = parts.into_iter().filter(|_| rng.bernoulli(0.5)).collect();
        return Some(OpSpec {
            site,
            layer: site.in_block().then_some(layer),
            kind: OpKind::LowRank(LowRank {
                rank: between(rng, 1, 40),
                alpha: 2.0,
                rank_stabilized: rng.bernoulli(0.5),
                parts: (site == Site::Qkv && !parts.is_empty()).then_some(parts),
                dropout: 0.5,
            }),
        });
    }
    let site = choose(rng, &Bottleneck::SITES);
    let width = sites.width_at(site, Some(layer))?;
    let groups = if width.is_multiple_of(2) {
        between(rng, 1, 2)
    } else {
        1
    };
    let from = match site {
        Site::AttnOut => [None, Some(Site::BlockIn)][rng.below(2)],
        Site::MlpOut => [None, Some(Site::BlockIn), Some(Site::Mid)][rng.below(3)],
        _ => None,
    };
    let norm = [None, Some(NormPlace::Before), Some(NormPlace::After)][rng.below(3)];
    let activations = [
        Activation::None,
        Activation::Gelu,
        Activation::QuickGelu,
        Activation::Relu,
    ];
    Some(OpSpec {
        site,
        layer: Some(layer),
        kind: OpKind::Bottleneck(Bottleneck {
            hidden: groups * between(rng, 1, 20),
            groups,
            activation: activations[rng.below(4)],
            scale: 0.5,
            learned_scale: rng.bernoulli(0.3),
            norm: norm.filter(|_| site != Site::AttnHeads),
            from,
            dropout: 0.5,
        }),
    })
}

fn random_block(rng: &mut Rng, dim: usize) -> BlockSpec {
    let out_idx = |rng: &mut Rng| {
        let count = between(rng, 1, dim);
        let mut idx = rng.permutation(dim)[..count].to_vec();
        idx.sort_unstable();
        rng.bernoulli(0.3).then_some(idx)
    };
    let attn = rng.bernoulli(0.8).then(|| {
        let heads = between(rng, 1, 4);
        let alike = rng.bernoulli(0.3).then(|| between(rng, 1, 50));
        let mut widths = || {
            (0..heads)
                .map(|_| alike.unwrap_or_else(|| between(rng, 1, 50)))
                .collect::<Vec<_>>()
        };
        let (qk_dims, v_dims) = (widths(), widths());
        AttentionSpec {
            scale: 1.3 * (qk_dims[0] as f64).powf(-0.5),
            qk_dims,
            v_dims,
            qkv_bias: rng.bernoulli(0.7),
            out_idx: out_idx(rng),
        }
    });
    let mlp = rng.bernoulli(0.8).then(|| MlpSpec {
        hidden: between(rng, 1, 150),
        out_idx: out_idx(rng),
    });
    BlockSpec { attn, mlp }
}

/// One row for each token.
pub type Rows = Vec<Vec<f64>>;

/// What the heads say about one image.
pub struct Expected {
    pub class: Vec<f64>,
    pub distillation: Vec<f64>,
}

/// The forward pass of one image, in the words of the spec.
pub fn forward(spec: &ModelSpec, tensors: &Tensors, image: &[f32]) -> Expected {
    forward_with(spec, tensors, image, &|_, x| x)
}

/// The same with something done to the stream after each layer.
pub fn forward_with(
    spec: &ModelSpec,
    tensors: &Tensors,
    image: &[f32],
    after: &dyn Fn(usize, Rows) -> Rows,
) -> Expected {
    let vit = spec.vit().unwrap();
    let model = Model {
        spec,
        vit,
        tensors,
        held: RefCell::default(),
    };
    let mut x = model.embed(image);
    for layer in 0..vit.layers.len() {
        x = after(layer, model.layer(layer, x));
    }
    let mean = |rows: &Rows| -> Vec<f64> {
        let patches = &rows[vit.prefix.len() + spec.sites().prompts()..];
        (0..vit.embed_dim)
            .map(|c| patches.iter().map(|row| row[c]).sum::<f64>() / patches.len() as f64)
            .collect()
    };
    let head = |name: &str, x: Vec<f64>| {
        if spec.num_classes == 0 {
            x
        } else {
            model.linear(name, true, &[x]).remove(0)
        }
    };
    if vit.pool == Pool::AvgThenNorm {
        let pooled = model.norm("fc_norm", &[mean(&x)]).remove(0);
        return Expected {
            class: head("head", pooled),
            distillation: Vec::new(),
        };
    }
    let x = model.ops(Site::FinalNorm, None, model.norm("norm", &x));
    Expected {
        class: head(
            "head",
            if vit.pool == Pool::Avg {
                mean(&x)
            } else {
                x[0].clone()
            },
        ),
        distillation: if vit.is_distilled() {
            head("head_dist", x[1].clone())
        } else {
            Vec::new()
        },
    }
}

struct Model<'a> {
    spec: &'a ModelSpec,
    vit: &'a VitSpec,
    tensors: &'a Tensors,
    /// The stream at `block.in` and at `mid`.
    held: RefCell<[Rows; 2]>,
}

/// Between the projections of a bottleneck or a perceptron.
fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x / (1.0 + libm::exp(-1.702 * x)),
        Activation::Relu => x.max(0.0),
    }
}

impl Model<'_> {
    fn get(&self, name: &str) -> Vec<f64> {
        self.tensors
            .get(name)
            .unwrap()
            .to_f32()
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    }

    fn linear(&self, name: &str, has_bias: bool, x: &[Vec<f64>]) -> Rows {
        let weight = self.get(&format!("{name}.weight"));
        let inputs = x[0].len();
        let bias = if has_bias {
            self.get(&format!("{name}.bias"))
        } else {
            vec![0.0; weight.len() / inputs]
        };
        let output = |x: &[f64], n: usize| dot(x, &weight[n * inputs..(n + 1) * inputs]) + bias[n];
        x.iter()
            .map(|x| (0..bias.len()).map(|n| output(x, n)).collect())
            .collect()
    }

    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Rows {
        self.norm_with(name, self.vit.norm_eps, x)
    }

    fn norm_with(&self, name: &str, eps: f64, x: &[Vec<f64>]) -> Rows {
        let (gain, bias) = (
            self.get(&format!("{name}.weight")),
            self.get(&format!("{name}.bias")),
        );
        let normed = |x: &Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
            let each = x.iter().map(|x| (x - mean) / (variance + eps).sqrt());
            each.zip(&gain)
                .zip(&bias)
                .map(|((x, gain), bias)| x * gain + bias)
                .collect()
        };
        x.iter().map(normed).collect()
    }

    fn ops(&self, site: Site, layer: Option<usize>, mut x: Rows) -> Rows {
        let vit = self.vit;
        for (i, op) in self.spec.ops.iter().enumerate() {
            if op.site != site || op.layer != layer {
                continue;
            }
            let get = |end: &str| self.get(&format!("{}.{end}", op.prefix(i)));
            match &op.kind {
                OpKind::ScaleShift(kind) => {
                    let scale = get("scale");
                    let shift = if kind.shift {
                        get("shift")
                    } else {
                        vec![0.0; scale.len()]
                    };
                    for row in &mut x {
                        row.iter_mut()
                            .zip(&scale)
                            .zip(&shift)
                            .for_each(|((x, scale), shift)| *x = *x * scale + shift);
                    }
                }
                OpKind::Prompts(_) => {
                    let (first, prompts) = Prompts::first(self.spec).unwrap();
                    let width = prompts.project.unwrap_or(vit.embed_dim);
                    let tokens: Rows = get("tokens").chunks_exact(width).map(<[f64]>::to_vec).collect();
                    let tokens = match prompts.project {
                        Some(_) => {
                            let map = self.spec.ops[first].prefix(first);
                            self.linear(&format!("{map}.proj"), true, &tokens)
                        }
                        None => tokens,
                    };
                    let (first, old) = (vit.prefix.len(), x.len() - vit.prefix.len() - vit.patches());
                    x.splice(first..first + old, tokens);
                }
                OpKind::Bottleneck(kind) => {
                    let held = self.held.borrow();
                    let source = match kind.from {
                        Some(site) => held[usize::from(site == Site::Mid)].clone(),
                        None => x.clone(),
                    };
                    drop(held);
                    let normed = |place: NormPlace, rows: Rows| {
                        if kind.norm == Some(place) {
                            self.norm_with(&format!("{}.norm", op.prefix(i)), NORM_EPS, &rows)
                        } else {
                            rows
                        }
                    };
                    let mut z = self.linear(
                        &format!("{}.down", op.prefix(i)),
                        true,
                        &normed(NormPlace::Before, source),
                    );
                    z.iter_mut()
                        .flatten()
                        .for_each(|z| *z = activate(kind.activation, *z));
                    let (up, bias) = (get("up.weight"), get("up.bias"));
                    let scale = if kind.learned_scale {
                        get("scale")[0]
                    } else {
                        kind.scale
                    };
                    let (width, each) = (bias.len(), kind.hidden / kind.groups);
                    let output = |z: &Vec<f64>, c: usize| {
                        let first = c * kind.groups / width * each;
                        scale * (dot(&z[first..first + each], &up[c * each..(c + 1) * each]) + bias[c])
                    };
                    let u = z
                        .iter()
                        .map(|z| (0..width).map(|c| output(z, c)).collect())
                        .collect();
                    add(&mut x, &normed(NormPlace::After, u));
                }
                OpKind::LowRank(_)
                | OpKind::HeadMixing(_)
                | OpKind::RelativePositions(_)
                | OpKind::LocalConvolution(_)
                | OpKind::BipartiteMatching(_)
                | OpKind::AttentiveTokens(_)
                | OpKind::TokenPredictor(_)
                | OpKind::TokenSelector(_)
                | OpKind::GridMerging(_)
                | OpKind::StaticTokens(_) => unreachable!("{} is not computed here", op.kind.name()),
            }
        }
        x
    }

    /// A projection of `layer` with the updates on it.
    fn project(&self, site: Site, layer: usize, has_bias: bool, x: &[Vec<f64>]) -> Rows {
        let projection = self.spec.sites().matrix(site, layer).unwrap();
        let mut y = self.linear(&projection.name, has_bias, x);
        for (i, op) in self.spec.ops_at(site, site.in_block().then_some(layer)) {
            let OpKind::LowRank(kind) = &op.kind else {
                unreachable!("only low-rank updates stand on projections")
            };
            let (a, b) = (
                self.get(&format!("{}.a", op.prefix(i))),
                self.get(&format!("{}.b", op.prefix(i))),
            );
            let mut row = 0;
            for (part, (first, count)) in kind.ranges(site, layer, self.spec).into_iter().enumerate() {
                for (x, y) in x.iter().zip(&mut y) {
                    let z: Vec<f64> = (0..kind.rank)
                        .map(|r| dot(x, &a[(part * kind.rank + r) * x.len()..][..x.len()]))
                        .collect();
                    for n in 0..count {
                        y[first + n] += kind.factor() * dot(&z, &b[(row + n) * kind.rank..][..kind.rank]);
                    }
                }
                row += count;
            }
        }
        y
    }

    fn embed(&self, image: &[f32]) -> Rows {
        let vit = self.vit;
        let ([height, width], side) = (vit.img_size, vit.patch_size);
        let mut patches = Vec::new();
        for top in (0..height).step_by(side) {
            for left in (0..width).step_by(side) {
                let mut patch = Vec::new();
                for channel in 0..vit.in_chans {
                    for y in top..top + side {
                        let line = &image[(channel * height + y) * width + left..][..side];
                        patch.extend(line.iter().map(|&x| f64::from(x)));
                    }
                }
                patches.push(patch);
            }
        }
        let patches = self.ops(
            Site::PatchOut,
            None,
            self.project(Site::Embed, 0, vit.patch_bias, &patches),
        );
        let mut rows = Rows::new();
        let mut registers = 0;
        for token in &vit.prefix {
            let values = match token {
                PrefixToken::Class => self.get("cls_token"),
                PrefixToken::Distillation => self.get("dist_token"),
                PrefixToken::Register => {
                    registers += 1;
                    self.get("reg_token")[(registers - 1) * vit.embed_dim..registers * vit.embed_dim].to_vec()
                }
            };
            rows.push(values);
        }
        rows.extend(patches);
        let pos = self.get("pos_embed");
        let first = if vit.embed_prefix { 0 } else { vit.prefix.len() };
        for (row, pos) in rows[first..].iter_mut().zip(pos.chunks_exact(vit.embed_dim)) {
            row.iter_mut().zip(pos).for_each(|(x, pos)| *x += pos);
        }
        if vit.pre_norm {
            rows = self.norm("norm_pre", &rows);
        }
        rows
    }

    fn layer(&self, layer: usize, x: Rows) -> Rows {
        let (vit, at) = (self.vit, Some(layer));
        let core = vit.layers[layer].core;
        let block = &vit.cores[core];
        let mut x = self.ops(Site::BlockIn, at, x);
        self.held.borrow_mut()[0] = x.clone();
        if let Some(attn) = &block.attn {
            let branch = self.ops(Site::AttnIn, at, self.norm(&vit.norm_name(layer, 1), &x));
            let qkv = self.project(Site::Qkv, layer, attn.qkv_bias, &branch);
            let heads = attention(attn, &self.ops(Site::AttnQkv, at, qkv));
            let heads = self.ops(Site::AttnHeads, at, heads);
            let branch = self.project(Site::Proj, layer, true, &heads);
            let branch = scatter(branch, attn.out_idx.as_deref(), vit.embed_dim);
            add(&mut x, &self.ops(Site::AttnOut, at, branch));
        }
        x = self.ops(Site::Mid, at, x);
        self.held.borrow_mut()[1] = x.clone();
        if let Some(mlp) = &block.mlp {
            let branch = self.ops(Site::MlpIn, at, self.norm(&vit.norm_name(layer, 2), &x));
            let mut hidden = self.ops(Site::MlpFc1, at, self.project(Site::Fc1, layer, true, &branch));
            let activation = vit.activation;
            hidden
                .iter_mut()
                .flatten()
                .for_each(|x| *x = activate(activation, *x));
            let hidden = self.ops(Site::MlpHidden, at, hidden);
            let branch = self.project(Site::Fc2, layer, true, &hidden);
            let branch = scatter(branch, mlp.out_idx.as_deref(), vit.embed_dim);
            add(&mut x, &self.ops(Site::MlpOut, at, branch));
        }
        self.ops(Site::BlockOut, at, x)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut Rows, branch: &Rows) {
    x.iter_mut()
        .flatten()
        .zip(branch.iter().flatten())
        .for_each(|(x, branch)| *x += branch);
}

/// A branch that writes only some channels, widened with zeros.
fn scatter(branch: Rows, out_idx: Option<&[usize]>, dim: usize) -> Rows {
    let Some(idx) = out_idx else { return branch };
    let widened = |row: &Vec<f64>| {
        let mut out = vec![0.0; dim];
        idx.iter().zip(row).for_each(|(&channel, &x)| out[channel] = x);
        out
    };
    branch.iter().map(widened).collect()
}

/// Heads one after the other, from queries, keys and values, each head-major.
fn attention(spec: &AttentionSpec, qkv: &Rows) -> Rows {
    let mut out: Rows = vec![Vec::new(); qkv.len()];
    let qk: usize = spec.qk_dims.iter().sum();
    let (mut q_at, mut v_at) = (0, 2 * qk);
    for (&width, &v) in spec.qk_dims.iter().zip(&spec.v_dims) {
        for (row, out) in qkv.iter().zip(&mut out) {
            let q = &row[q_at..q_at + width];
            let logits: Vec<f64> = qkv
                .iter()
                .map(|k| spec.scale * dot(q, &k[qk + q_at..][..width]))
                .collect();
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let e: Vec<f64> = logits.iter().map(|x| libm::exp(x - most)).collect();
            let sum: f64 = e.iter().sum();
            let column = |c: usize| {
                e.iter()
                    .zip(qkv)
                    .map(|(e, row)| e / sum * row[v_at + c])
                    .sum::<f64>()
            };
            out.extend((0..v).map(column));
        }
        q_at += width;
        v_at += v;
    }
    out
}

/// The greatest difference, in relation to the greatest number where that is above 1.
pub fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let most = expected.iter().fold(1f64, |most, x| most.max(x.abs()));
    let differences = found
        .iter()
        .zip(expected)
        .map(|(&found, expected)| (f64::from(found) - expected).abs());
    // Not `f64::max`, which overlooks NaN.
    differences.fold(
        0.0,
        |most: f64, x| if most.is_nan() || x <= most { most } else { x },
    ) / most
}

/// The cosine of the angle between the two.
pub fn cosine(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
    dot(&found, expected) / (dot(&found, &found) * dot(expected, expected)).sqrt()
}
