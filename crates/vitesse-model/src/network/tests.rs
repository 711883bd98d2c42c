//! The places that ops of later kinds use: what the context offers, what survives a block that is computed again, and which
//! segments stay whole. Where no kind uses a place, a [`Probe`] does.

mod maps;

use std::collections::{BTreeMap, HashMap};

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Gradients, TensorData};
use vitesse_rng::Key;

use super::*;
use crate::Site;
use crate::ops::{Activation, AttentionPart, Op, OpKind, OpSpec, Probe, QkvPart, ScaleShift};
use crate::spec::{LayerSpec, Pool, PrefixToken, VitSpec};

const BATCH: usize = 3;
const CLASSES: usize = 5;
const DIM: usize = 12;

fn spec(edit: impl FnOnce(&mut VitSpec)) -> ModelSpec {
    let mut vit = VitSpec::plain(16, 4, DIM, 3, 3, vec![PrefixToken::Class]);
    edit(&mut vit);
    ModelSpec {
        architecture: "test".into(),
        num_classes: CLASSES,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

/// Every tensor at random, so that nothing hides behind a zero.
fn weights(spec: &ModelSpec) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(5).with(&tensor.name).rng();
        let values = (0..tensor.numel())
            .map(|_| rng.uniform_in(-0.4, 0.5) as f32)
            .collect();
        out.insert_f32(&tensor.name, &tensor.shape, values).unwrap();
    }
    out
}

/// A network in which the probes stand in their blocks, after the ops of the spec.
fn network(spec: &ModelSpec, tensors: &Tensors, probes: Vec<(usize, Op)>, device: &Device) -> Network {
    let mut network = Network::new(spec, tensors, "test", device).unwrap();
    let Body::Vit(vit) = &mut network.body else {
        unreachable!()
    };
    for (layer, op) in probes {
        vit.layer_mut(layer).push(op);
    }
    network
}

fn images(device: &Device) -> Tensor<4> {
    let mut rng = Key::new(1).rng();
    let values: Vec<f32> = (0..BATCH * 3 * 256).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(values, [BATCH, 3, 16, 16]), device)
}

/// A probe; what it learns is a tensor of the site's name.
fn probe(site: Site, learned: &[f32], device: &Device, edit: impl FnOnce(&mut Probe)) -> Op {
    let mut probe = Probe::new(site.name(), Tensor::from_data(learned, device));
    edit(&mut probe);
    Op::probe(site, probe)
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.try_to_vec_as().unwrap()
}

#[track_caller]
fn assert_near(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest <= 2e-5 * scale, "{what}: {largest} of {scale}");
}

/// Logits, what the ops said, and gradients by parameter.
#[derive(Debug, PartialEq)]
struct Outcome {
    logits: Vec<f32>,
    outputs: BTreeMap<String, Vec<f32>>,
    gradients: HashMap<ParamId, Vec<f32>>,
}

impl Outcome {
    #[track_caller]
    fn gradient(&self, name: &str) -> &[f32] {
        &self.gradients[&param_id(name)]
    }
}

/// A forward pass on an autodiff device, and the gradients of a loss of logits and outputs.
fn run(network: &Network, ctx: Ctx) -> Outcome {
    struct Collect<'a>(&'a Gradients, HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(self.0);
            self.1
                .extend(gradient.map(|gradient| (param.id, values(&gradient))));
        }
    }
    let mut ctx = ctx;
    let logits = network
        .forward(images(&Device::flex().autodiff()), &mut ctx)
        .unwrap()
        .class;
    let mut loss = logits.clone().powf_scalar(2.0).sum();
    for output in ctx.outputs.values() {
        loss = loss + output.clone().powf_scalar(3.0).sum();
    }
    let gradients = loss.backward();
    let mut collect = Collect(&gradients, HashMap::new());
    network.visit(&mut collect);
    Outcome {
        logits: values(&logits),
        outputs: ctx
            .outputs
            .iter()
            .map(|(name, x)| (name.clone(), values(x)))
            .collect(),
        gradients: collect.1,
    }
}

fn recomputed() -> Ctx {
    let mut ctx = Ctx::eval();
    ctx.compute.grad_checkpointing = true;
    ctx
}

/// The segments of one forward pass.
fn segments(network: &Network, edit: impl FnOnce(&mut Ctx)) -> Vec<String> {
    let mut ctx = Ctx::eval();
    ctx.compute.fused = true;
    edit(&mut ctx);
    fused::log::take();
    network.forward(images(&Device::flex()), &mut ctx).unwrap();
    fused::log::take()
}

/// Patch embedding, blocks, head.
fn expected(blocks: [&[&str]; 3]) -> Vec<String> {
    let parts = [&["Map"], blocks[0], blocks[1], blocks[2], &["Map"]];
    parts.concat().iter().map(|name| (*name).to_owned()).collect()
}

/// A block in which nothing stands.
const WHOLE: &[&str] = &["Map", "Heads", "Map", "Perceptron"];

#[test]
fn a_plain_network_runs_in_whole_segments_and_an_op_cuts_only_its_own() {
    let device = Device::flex();
    let plain = spec(|_| {});
    let network = network(&plain, &weights(&plain), Vec::new(), &device);
    assert_eq!(segments(&network, |_| {}), expected([WHOLE; 3]));
    let maps = segments(&network, |ctx| {
        ctx.trace = Trace::pairs([(Site::AttnProbs, Some(1))]);
    });
    assert_eq!(maps, expected([WHOLE, &["Map", "Map", "Perceptron"], WHOLE]));
    for (site, block) in [
        (
            Site::AttnIn,
            &["Norm", "Map", "Heads", "Map", "Perceptron"] as &[&str],
        ),
        (Site::AttnQkv, WHOLE),
        (Site::AttnOut, WHOLE),
        (Site::Mid, WHOLE),
        (Site::MlpFc1, &["Map", "Heads", "Map", "Map", "Map"]),
        (Site::MlpHidden, &["Map", "Heads", "Map", "Map", "Gelu", "Map"]),
    ] {
        let mut with = plain.clone();
        with.ops = vec![OpSpec {
            site,
            layer: Some(1),
            kind: OpKind::ScaleShift(ScaleShift { shift: true }),
        }];
        let network = Network::new(&with, &weights(&with), "test", &device).unwrap();
        assert_eq!(
            segments(&network, |_| {}),
            expected([WHOLE, block, WHOLE]),
            "{site}"
        );
    }
}

#[test]
fn an_op_that_changes_a_weight_leaves_the_segment_whole() {
    const FACTOR: f32 = 1.5;
    let plain = spec(|_| {});
    let tensors = weights(&plain);
    let sites = [
        (Site::Qkv, "attn.qkv"),
        (Site::Proj, "attn.proj"),
        (Site::Fc1, "mlp.fc1"),
        (Site::Fc2, "mlp.fc2"),
    ];
    // A factor on every projection of block 1, and the same model with the product as its weights.
    let device = Device::flex().autodiff();
    let scaled = |device: &Device| {
        let op = |(site, _)| {
            let op = probe(site, &[FACTOR], device, |probe| {
                probe.weight = Some(|learned, weight| weight * learned.clone().reshape([1, 1]));
            });
            (1, op)
        };
        network(&plain, &tensors, sites.map(op).into(), device)
    };
    let mut folded = tensors.clone();
    for (_, name) in sites {
        let name = format!("blocks.1.{name}.weight");
        let weight = tensors.get(&name).unwrap();
        let product = weight.to_f32().iter().map(|x| x * FACTOR).collect();
        folded.insert_f32(&name, weight.shape(), product).unwrap();
    }
    assert_eq!(segments(&scaled(&Device::flex()), |_| {}), expected([WHOLE; 3]));

    let found = run(&scaled(&device), Ctx::eval());
    let product = run(&network(&plain, &folded, Vec::new(), &device), Ctx::eval());
    assert_near(&found.logits, &product.logits, "logits");
    // A weight's gradient is the product's times the factor; the factor's is the sum of weights times the product's.
    for (site, name) in sites {
        let name = format!("blocks.1.{name}.weight");
        let of_product = product.gradient(&name);
        let weight = tensors.get(&name).unwrap().to_f32();
        let of_weight: Vec<f32> = of_product.iter().map(|g| g * FACTOR).collect();
        let of_factor = of_product.iter().zip(weight.iter()).map(|(g, w)| g * w).sum();
        assert_near(found.gradient(&name), &of_weight, &name);
        assert_near(found.gradient(site.name()), &[of_factor], site.name());
    }
    assert!(run(&scaled(&device), recomputed()) == found);
}

/// What a probe at `attn.logits` or behind the maps finds in the context: outputs by the attention's parts.
fn tell_attention(ctx: &mut Ctx) {
    let state = ctx.attention.clone().unwrap();
    let [batch, tokens, width] = state.qkv.dims();
    ctx.outputs
        .insert("qkv".into(), state.qkv.clone().reshape([batch, tokens * width]));
    for (name, part) in [("q", QkvPart::Q), ("k", QkvPart::K), ("v", QkvPart::V)] {
        let heads: Vec<Tensor<3>> = (0..3).map(|head| state.head(part, head)).collect();
        if let Some(all) = state.heads(part) {
            let stacked: Tensor<4> = Tensor::stack(heads.clone(), 1);
            assert_eq!(values(&all), values(&stacked));
        }
        let parts = Tensor::cat(heads, 2);
        let width = parts.dims()[2];
        ctx.outputs
            .insert(name.into(), parts.reshape([batch, tokens * width]));
    }
    if let Some(probs) = state.probs {
        ctx.outputs
            .insert("probs".into(), probs.reshape([batch, 3 * tokens * tokens]));
    }
}

#[test]
fn queries_keys_and_values_are_there_before_the_maps() {
    let device = Device::flex();
    let equal = spec(|_| {});
    let ragged = spec(|vit| {
        let attn = vit.cores[1].attn.as_mut().unwrap();
        (attn.qk_dims, attn.v_dims) = (vec![3, 5, 2], vec![4, 1, 6]);
    });
    for spec in [equal, ragged] {
        let at_logits = probe(Site::AttnLogits, &[0.0], &device, |probe| {
            probe.map = Some(|_, x, ctx| {
                assert!(ctx.attention.as_ref().unwrap().probs.is_none());
                tell_attention(ctx);
                x
            });
        });
        let network = network(&spec, &weights(&spec), vec![(1, at_logits)], &device);
        let mut ctx = Ctx::tracing(Trace::pairs([(Site::AttnQkv, Some(1))]));
        network.forward(images(&device), &mut ctx).unwrap();
        let told = |name: &str| values(&ctx.outputs[name]);
        let qkv = ctx.trace.tokens(Site::AttnQkv, Some(1)).unwrap();
        assert_eq!(told("qkv"), values(&qkv));
        let attn = spec.vit().unwrap().block(1).unwrap().attn.as_ref().unwrap();
        let (qk, v) = (attn.qk_width(), attn.v_width());
        for (name, start, width) in [("q", 0, qk), ("k", qk, qk), ("v", 2 * qk, v)] {
            assert_eq!(told(name), values(&qkv.clone().narrow(2, start, width)), "{name}");
        }
    }
}

#[test]
fn an_op_that_reads_keys_leaves_the_attention_fused_and_one_that_reads_maps_does_not() {
    let device = Device::flex();
    let spec = spec(|_| {});
    for (part, block) in [
        (AttentionPart::Qkv, WHOLE),
        (AttentionPart::Probs, &["Map", "Map", "Perceptron"]),
    ] {
        let reads = probe(Site::Mid, &[0.0], &device, |probe| {
            probe.reads_attention = Some(part);
            probe.tokens = Some(|_, x, ctx| {
                tell_attention(ctx);
                x
            });
        });
        let network = network(&spec, &weights(&spec), vec![(1, reads)], &device);
        assert_eq!(segments(&network, |_| {}), expected([WHOLE, block, WHOLE]));
        let mut ctx = Ctx::tracing(Trace::pairs([(Site::AttnProbs, Some(1))]));
        network.forward(images(&device), &mut ctx).unwrap();
        let maps = ctx.trace.map(Site::AttnProbs, Some(1)).unwrap();
        assert_eq!(values(&ctx.outputs["probs"]), values(&maps));
        // Block 2 has no op that reads its attention.
        assert!(ctx.attention.is_none());
    }
}

/// A policy that depends on the stream and on what the op learned, and sizes.
fn choose(learned: &Tensor<1>, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
    let [batch, tokens, dim] = x.dims();
    let scores = (x.clone() * learned.clone().reshape([1, 1, dim])).mean_dim(2);
    let policy = sigmoid(scores.reshape([batch, tokens]));
    ctx.stream.sizes = Some(policy.clone() * 2.0 + 1.0);
    ctx.stream.policy = Some(policy);
    x
}

/// The same, and it says what it decided.
fn decide(learned: &Tensor<1>, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
    let x = choose(learned, x, ctx);
    ctx.outputs
        .insert("decision".into(), ctx.stream.policy.clone().unwrap());
    x
}

#[test]
fn gradients_through_a_policy_are_the_same_where_blocks_are_computed_again() {
    let device = Device::flex().autodiff();
    for pool in [Pool::Token, Pool::Avg, Pool::AvgThenNorm] {
        let spec = spec(|vit| vit.pool = pool);
        let run = |op: fn(&Tensor<1>, Tensor<3>, &mut Ctx) -> Tensor<3>, ctx| {
            let probe = probe(Site::BlockIn, &[0.7; DIM], &device, |probe| {
                probe.tokens = Some(op);
            });
            let network = network(&spec, &weights(&spec), vec![(1, probe)], &device);
            run(&network, ctx)
        };
        // What the op learns through attention and pooling, and what through the output that the loss reads.
        let learned = [choose, decide].map(|op| {
            let (kept, again) = (run(op, Ctx::eval()), run(op, recomputed()));
            assert_eq!((&again.logits, &again.outputs), (&kept.logits, &kept.outputs));
            assert_eq!(again.gradients.len(), kept.gradients.len());
            // Sums over the uses of a policy are taken in another order.
            for (id, gradient) in &kept.gradients {
                assert_near(&again.gradients[id], gradient, &format!("{pool:?}, {id}"));
            }
            kept.gradient(Site::BlockIn.name()).to_vec()
        });
        assert!(learned[0].iter().any(|g| *g != 0.0), "{pool:?}");
        assert!(learned[0] != learned[1], "{pool:?}");
    }
}

/// Halves the patches and puts what left into a token at the end; uses everything that the context offers.
fn halve(learned: &Tensor<1>, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
    let [batch, tokens, dim] = x.dims();
    let (prefix, patches) = (ctx.stream.prefix, tokens - ctx.stream.prefix);
    let kept = prefix + patches / 2;
    let noise: Vec<f32> = (0..batch)
        .map(|i| ctx.draws.of_sample(ctx.draws.key.with("halve"), i).normal() as f32)
        .collect();
    let labels = ctx.labels.clone().unwrap();
    let weight = labels.max_dim(1) * ctx.progress as f32;
    let left = x.clone().narrow(1, kept, tokens - kept).mean_dim(1);
    let left = left * learned.clone().reshape([1, 1, dim]) * weight.reshape([batch, 1, 1]);
    let left = layers::times(left, noise, [batch, 1, 1]);
    ctx.stream.tail = 1;
    ctx.stream.grid = [2, 4];
    ctx.buffers
        .push(("seen".into(), x.clone().inner().mean().reshape([1])));
    Tensor::cat(vec![x.narrow(1, 0, kept), left], 1)
}

#[test]
fn a_block_that_is_computed_again_hands_on_what_it_did_to_the_stream() {
    let device = Device::flex().autodiff();
    let spec = spec(|vit| vit.pool = Pool::Avg);
    let halves = probe(Site::Mid, &[0.7; DIM], &device, |probe| {
        probe.tokens = Some(halve);
    });
    let network = network(&spec, &weights(&spec), vec![(1, halves)], &device);
    let context = |compute: Ctx| {
        let mut ctx = Ctx::train(DropPath {
            rate: 0.3,
            key: Key::new(3),
            first_sample: 5,
        });
        ctx.compute = compute.compute;
        ctx.progress = 0.25;
        let labels: Vec<f32> = (0..BATCH * CLASSES).map(|i| i as f32 / 10.0).collect();
        ctx.labels = Some(Tensor::from_data(
            TensorData::new(labels, [BATCH, CLASSES]),
            &device,
        ));
        ctx
    };
    let kept = run(&network, context(Ctx::eval()));
    assert!(kept.gradient(Site::Mid.name()).iter().any(|g| *g != 0.0));
    assert!(run(&network, context(recomputed())) == kept);
    for mode in [Ctx::eval(), recomputed()] {
        let mut ctx = context(mode);
        network.forward(images(&device), &mut ctx).unwrap();
        assert_eq!((ctx.stream.prefix, ctx.stream.tail), (1, 1));
        assert_eq!(ctx.stream.grid, [2, 4]);
        assert_eq!(ctx.buffers.len(), 1);
    }
}

#[test]
fn tokens_that_left_by_policy_say_as_little_as_tokens_that_are_gone() {
    let device = Device::flex();
    for pool in [Pool::Token, Pool::Avg] {
        let spec = spec(|vit| vit.pool = pool);
        let logits = |tokens: fn(&Tensor<1>, Tensor<3>, &mut Ctx) -> Tensor<3>| {
            let drops = probe(Site::BlockIn, &[0.0], &device, |probe| {
                probe.tokens = Some(tokens);
            });
            let network = network(&spec, &weights(&spec), vec![(1, drops)], &device);
            let logits = network.forward(images(&device), &mut Ctx::eval()).unwrap();
            values(&logits.class)
        };
        let masked = logits(|_, x, ctx| {
            let [batch, tokens, _] = x.dims();
            let left: Vec<f32> = (0..batch * tokens)
                .map(|i| if i % tokens < 7 { 1.0 } else { 0.0 })
                .collect();
            let policy = TensorData::new(left, [batch, tokens]);
            ctx.stream.policy = Some(Tensor::from_data(policy, &x.device()));
            x
        });
        let gathered = logits(|_, x, _| x.narrow(1, 0, 7));
        let all = logits(|_, x, _| x);
        // The softmax gives tokens that left a share of a millionth.
        assert_near(&masked, &gathered, "masked and gathered");
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance(&masked, &all) > 1e-2);
    }
}

#[test]
fn other_activations_stand_where_the_gelu_stands() {
    let device = Device::flex();
    for activation in [Activation::QuickGelu, Activation::Relu, Activation::Gelu] {
        let spec = spec(|vit| vit.activation = activation);
        let network = network(&spec, &weights(&spec), Vec::new(), &device);
        // Both forms of the GELU are part of a segment.
        let pieces: &[&str] = if activation == Activation::Relu {
            &["Map", "Heads", "Map", "Map", "Map"]
        } else {
            WHOLE
        };
        assert_eq!(segments(&network, |_| {}), expected([pieces; 3]));
        let mut ctx = Ctx::tracing(Trace::sites([Site::MlpFc1, Site::MlpHidden]));
        let traced = network.forward(images(&device), &mut ctx).unwrap();
        let of = |z: f32| match activation {
            Activation::QuickGelu => z / (1.0 + (-1.702 * z).exp()),
            Activation::Relu => z.max(0.0),
            _ => z * 0.5 * (1.0 + erf(z / 2f32.sqrt())),
        };
        let hidden = |site| values(&ctx.trace.tokens(site, Some(1)).unwrap());
        let expected: Vec<f32> = hidden(Site::MlpFc1).into_iter().map(of).collect();
        assert_near(&hidden(Site::MlpHidden), &expected, activation.name());
        let whole = network.forward(images(&device), &mut Ctx::eval()).unwrap();
        assert_near(&values(&whole.class), &values(&traced.class), activation.name());
    }
}

/// The error function by its series, for small numbers.
fn erf(x: f32) -> f32 {
    let (x, mut term, mut sum) = (f64::from(x), f64::from(x), f64::from(x));
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    (sum * 2.0 / std::f64::consts::PI.sqrt()) as f32
}

#[test]
fn a_norm_can_stand_before_the_blocks() {
    let device = Device::flex();
    let spec = spec(|vit| {
        vit.pre_norm = true;
        vit.patch_bias = false;
    });
    let mut tensors = weights(&spec);
    assert!(!tensors.contains("patch_embed.proj.bias"));
    tensors
        .insert_f32("norm_pre.weight", &[DIM], vec![1.0; DIM])
        .unwrap();
    tensors
        .insert_f32("norm_pre.bias", &[DIM], vec![2.0; DIM])
        .unwrap();
    let network = network(&spec, &tensors, Vec::new(), &device);
    let mut ctx = Ctx::tracing(Trace::pairs([(Site::BlockIn, Some(0))]));
    network.forward(images(&device), &mut ctx).unwrap();
    for token in values(&ctx.trace.tokens(Site::BlockIn, Some(0)).unwrap()).chunks_exact(DIM) {
        let mean = token.iter().sum::<f32>() / DIM as f32;
        let variance = token.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / DIM as f32;
        assert!((mean - 2.0).abs() < 1e-4 && (variance - 1.0).abs() < 1e-3);
    }
}

#[test]
fn what_layers_share_exists_once() {
    struct Count(HashMap<ParamId, usize>);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            *self.0.entry(param.id).or_default() += 1;
        }
    }
    let spec = spec(|vit| {
        vit.cores.truncate(2);
        vit.layers = vec![LayerSpec::of(0), LayerSpec::of(1), LayerSpec::of(1)];
        vit.layers[2].norms = Some(1);
    });
    let network = network(&spec, &weights(&spec), Vec::new(), &Device::flex());
    let mut count = Count(HashMap::new());
    network.visit(&mut count);
    assert_eq!(count.0.len(), spec.tensors().unwrap().len());
    assert!(count.0.values().all(|&times| times == 1));
}
