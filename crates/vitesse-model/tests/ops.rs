//! Ops in the network: what they compute, that they start as the identity, and what is refused.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use vitesse_model::network::{AttentionState, Ctx, DropPath, Fusion, Network};
use vitesse_model::ops::relative_positions::{Method, Mode};
use vitesse_model::ops::{
    self, Activation, Bottleneck, HeadMixing, LocalConvolution, LowRank, NormPlace, Op, OpKind, OpSpec,
    Prompts, QkvPart, RelativePositions,
};
use vitesse_model::spec::{AttentionSpec, NetworkSpec, PrefixToken, SwinSpec, VitSpec};
use vitesse_model::{ModelSpec, Site, Sites, Tensors};
use vitesse_rng::Key;

const DIM: usize = 12;

fn spec(ops: Vec<OpSpec>) -> ModelSpec {
    ModelSpec {
        architecture: "test".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(VitSpec::plain(16, 4, DIM, 2, 3, vec![PrefixToken::Class])),
        ops,
    }
}

fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

fn low_rank(parts: Option<Vec<QkvPart>>) -> OpKind {
    OpKind::LowRank(LowRank {
        rank: 2,
        alpha: 3.0,
        rank_stabilized: false,
        parts,
        dropout: 0.0,
    })
}

fn bottleneck() -> Bottleneck {
    Bottleneck {
        hidden: 4,
        groups: 2,
        activation: Activation::None,
        scale: 0.5,
        learned_scale: false,
        norm: None,
        from: None,
        dropout: 0.0,
    }
}

/// Every tensor at random, the same for the same name.
fn weights(spec: &ModelSpec) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(7).with(&tensor.name).rng();
        let values = (0..tensor.numel())
            .map(|_| rng.uniform_in(-0.5, 0.7) as f32)
            .collect();
        out.insert_f32(&tensor.name, &tensor.shape, values).unwrap();
    }
    out
}

fn images(count: usize) -> Tensor<4> {
    let mut rng = Key::new(1).rng();
    let values: Vec<f32> = (0..count * 3 * 256).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(values, [count, 3, 16, 16]), &Device::flex())
}

fn run_in(spec: &ModelSpec, tensors: &Tensors, images: Tensor<4>, ctx: &mut Ctx) -> Vec<f32> {
    let network = Network::new(spec, tensors, "test", &Device::flex()).unwrap();
    let logits = network.forward(images, ctx).unwrap();
    logits.joint(Fusion::LogitMean).try_to_vec_as().unwrap()
}

fn run(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    run_in(spec, tensors, images(2), &mut Ctx::eval())
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_low_rank_op_is_a_change_of_the_weight() {
    for parts in [None, Some(vec![QkvPart::Q, QkvPart::V]), Some(vec![QkvPart::K])] {
        let with = spec(vec![at(Site::Qkv, 1, low_rank(parts.clone()))]);
        let tensors = weights(&with);
        let (a, b) = (
            tensors.get("ops.0.1.qkv.a").unwrap().to_f32().into_owned(),
            tensors.get("ops.0.1.qkv.b").unwrap().to_f32().into_owned(),
        );
        let rows: Vec<usize> = match &parts {
            None => (0..3 * DIM).collect(),
            Some(parts) => parts
                .iter()
                .flat_map(|&part| part as usize * DIM..(part as usize + 1) * DIM)
                .collect(),
        };
        let plain = spec(Vec::new());
        let mut changed = weights(&plain);
        let name = "blocks.1.attn.qkv.weight";
        let mut weight = changed.get(name).unwrap().to_f32().into_owned();
        for (i, &row) in rows.iter().enumerate() {
            let part = if parts.is_some() { i / DIM } else { 0 };
            for column in 0..DIM {
                let sum: f32 = (0..2)
                    .map(|r| b[i * 2 + r] * a[(part * 2 + r) * DIM + column])
                    .sum();
                weight[row * DIM + column] += 1.5 * sum;
            }
        }
        changed.insert_f32(name, &[3 * DIM, DIM], weight).unwrap();
        let (with, plain) = (run(&with, &tensors), run(&plain, &changed));
        assert!(
            distance(&with, &plain) < 2e-5,
            "{parts:?}: {}",
            distance(&with, &plain)
        );
    }
}

#[test]
fn fresh_adapters_change_nothing_and_trained_ones_do() {
    let adapter = |edit: fn(&mut Bottleneck)| {
        let mut op = bottleneck();
        edit(&mut op);
        OpKind::Bottleneck(op)
    };
    let cases = [
        at(Site::Fc2, 0, low_rank(None)),
        at(Site::AttnIn, 0, adapter(|_| {})),
        at(Site::MlpOut, 1, adapter(|op| op.activation = Activation::Gelu)),
        at(
            Site::AttnOut,
            1,
            adapter(|op| {
                op.activation = Activation::QuickGelu;
                op.learned_scale = true;
            }),
        ),
        at(
            Site::MlpOut,
            0,
            adapter(|op| {
                op.activation = Activation::Relu;
                op.norm = Some(NormPlace::Before);
                op.from = Some(Site::Mid);
            }),
        ),
        at(Site::AttnOut, 1, adapter(|op| op.from = Some(Site::BlockIn))),
    ];
    let plain = spec(Vec::new());
    let expected = run(&plain, &weights(&plain));
    for op in cases {
        let with = spec(vec![op]);
        let mut tensors = weights(&with);
        assert!(distance(&run(&with, &tensors), &expected) > 1e-3, "{with:?}");
        for tensor in with.tensors().unwrap() {
            if tensor.name.starts_with("ops.") {
                tensors.insert(tensor.name.clone(), tensor.init(3).unwrap());
            }
        }
        assert_eq!(run(&with, &tensors), expected, "{with:?}");
    }
}

#[test]
fn dropout_depends_on_the_sample_and_not_on_the_batch() {
    let mut op = bottleneck();
    op.dropout = 0.5;
    let mut other = LowRank {
        rank: 2,
        alpha: 1.0,
        rank_stabilized: true,
        parts: None,
        dropout: 0.5,
    };
    let with = spec(vec![
        at(Site::MlpIn, 1, OpKind::Bottleneck(op)),
        at(Site::Fc1, 0, OpKind::LowRank(other.clone())),
    ]);
    let tensors = weights(&with);
    let context = |first_sample| {
        Ctx::train(DropPath {
            rate: 0.0,
            key: Key::new(4),
            first_sample,
        })
    };
    let whole = run_in(&with, &tensors, images(4), &mut context(0));
    let half = run_in(&with, &tensors, images(4).narrow(0, 2, 2), &mut context(2));
    assert!(distance(&whole[10..], &half) < 1e-5);
    let elsewhere = run_in(&with, &tensors, images(4).narrow(0, 2, 2), &mut context(0));
    assert!(distance(&whole[10..], &elsewhere) > 1e-3);
    // Nothing is dropped in evaluation.
    other.dropout = 0.0;
    let mut calm = with.clone();
    calm.ops[1].kind = OpKind::LowRank(other);
    if let OpKind::Bottleneck(op) = &mut calm.ops[0].kind {
        op.dropout = 0.0;
    }
    assert_eq!(run(&with, &tensors), run(&calm, &tensors));
}

#[test]
fn prompts_lengthen_the_stream_and_are_replaced() {
    let prompts = |layer, tokens| {
        at(
            Site::BlockIn,
            layer,
            OpKind::Prompts(Prompts {
                tokens,
                project: None,
            }),
        )
    };
    let deep = spec(vec![prompts(0, 3), prompts(1, 3)]);
    assert_eq!(deep.tokens_at(0), 1 + 3 + 16);
    let tensors = weights(&deep);
    let mut first_changed = tensors.clone();
    first_changed
        .insert_f32("ops.0.0.block.in.tokens", &[1, 3, DIM], vec![0.3; 3 * DIM])
        .unwrap();
    // The first prompts act through what the first block makes of the other tokens.
    assert!(distance(&run(&deep, &tensors), &run(&deep, &first_changed)) > 1e-5);
    // Narrower ones share the map of the first, which is trained by all of them, however the blocks are computed.
    let narrow = |layer, project| {
        let kind = Prompts { tokens: 3, project };
        at(Site::BlockIn, layer, OpKind::Prompts(kind))
    };
    let shared = spec(vec![narrow(0, Some(5)), narrow(1, Some(5))]);
    let shapes: Vec<(String, Vec<usize>)> = ops::tensors(&shared)
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect();
    let expected = [
        ("ops.0.0.block.in.tokens", vec![1, 3, 5]),
        ("ops.0.0.block.in.proj.weight", vec![DIM, 5]),
        ("ops.0.0.block.in.proj.bias", vec![DIM]),
        ("ops.1.1.block.in.tokens", vec![1, 3, 5]),
    ];
    assert_eq!(shapes, expected.map(|(name, shape)| (name.to_owned(), shape)));
    let error = spec(vec![narrow(0, Some(5)), narrow(1, None)]).validate();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("whose map all prompts share"), "{error}");
    for ops in [
        vec![narrow(0, Some(0))],
        vec![prompts(1, 3)],
        vec![prompts(0, 3), prompts(1, 2)],
        vec![prompts(0, 0)],
        vec![prompts(0, 3), prompts(0, 3)],
    ] {
        assert!(spec(ops).validate().is_err());
    }
}

#[test]
fn ops_that_cannot_stand_there_are_refused_in_sentences() {
    let with = |edit: fn(&mut Bottleneck)| {
        let mut op = bottleneck();
        edit(&mut op);
        OpKind::Bottleneck(op)
    };
    let rank = |rank| {
        OpKind::LowRank(LowRank {
            rank,
            alpha: 1.0,
            rank_stabilized: false,
            parts: None,
            dropout: 0.0,
        })
    };
    for (op, expected) in [
        (at(Site::AttnIn, 0, low_rank(None)), "must stand on a projection"),
        (
            at(Site::Fc1, 0, low_rank(Some(vec![QkvPart::Q]))),
            "only `qkv` has parts",
        ),
        (
            at(Site::Qkv, 0, low_rank(Some(vec![QkvPart::V, QkvPart::Q]))),
            "in this order",
        ),
        (at(Site::Qkv, 0, rank(0)), "rank must be from 1"),
        (at(Site::Qkv, 2, rank(1)), "which this model does not have"),
        (at(Site::Mid, 0, with(|_| {})), "cannot stand at `mid`"),
        (
            at(Site::AttnIn, 0, with(|op| op.groups = 3)),
            "groups is 3, but must divide both",
        ),
        (at(Site::AttnIn, 0, with(|op| op.groups = 0)), "groups is 0"),
        (at(Site::AttnIn, 0, with(|op| op.scale = f64::NAN)), "finite"),
        (at(Site::AttnIn, 0, with(|op| op.dropout = 1.0)), "below 1"),
        (
            at(Site::AttnIn, 0, with(|op| op.from = Some(Site::Mid))),
            "`from` may be",
        ),
        (
            at(
                Site::AttnOut,
                0,
                OpKind::Prompts(Prompts {
                    tokens: 1,
                    project: None,
                }),
            ),
            "stand at `block.in`",
        ),
        (
            at(Site::AttnIn, 0, OpKind::HeadMixing(HeadMixing { bias: true })),
            "head-mixing acts on attention maps",
        ),
        (
            at(Site::AttnProbs, 0, positions(|_| {})),
            "relative positions of keys stand at `attn.logits`",
        ),
        (
            at(Site::AttnLogits, 0, positions(|op| op.ratio = f64::NAN)),
            "the ratio of relative positions must be from 0.5",
        ),
        (
            at(
                Site::AttnHeads,
                0,
                positions(|op| (op.of, op.mode) = (QkvPart::V, Mode::Bias)),
            ),
            "a bias is for queries and keys",
        ),
        (
            at(Site::MlpOut, 0, local(|_| {})),
            "can stand at `mid` and `mlp.in`",
        ),
        (at(Site::Mid, 0, local(|op| op.kernel = 4)), "an odd number"),
    ] {
        let error = spec(vec![op.clone()]).validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{op:?}: {error}");
    }
}

fn positions(edit: fn(&mut RelativePositions)) -> OpKind {
    let mut op = RelativePositions::published(true);
    edit(&mut op);
    OpKind::RelativePositions(op)
}

fn local(edit: fn(&mut LocalConvolution)) -> OpKind {
    let mut op = LocalConvolution::published();
    edit(&mut op);
    OpKind::LocalConvolution(op)
}

#[test]
fn relative_positions_need_one_map_and_heads_of_one_width() {
    let op = || at(Site::AttnLogits, 1, positions(|_| {}));
    let mut uneven = spec(vec![op()]);
    if let NetworkSpec::Vit(vit) = &mut uneven.network {
        vit.cores[1].attn.as_mut().unwrap().qk_dims = vec![3, 5, 2];
    }
    let swin = ModelSpec {
        network: NetworkSpec::Swin(SwinSpec::plain(32, 4, 2, 6, &[2], &[2])),
        ..spec(vec![op()])
    };
    // Four windows of 36 have as many pairs as one map of 72.
    let mut filled = SwinSpec::plain(32, 4, 6, 6, &[2], &[2]);
    filled.img_size = [32, 36];
    let filled = ModelSpec {
        network: NetworkSpec::Swin(filled),
        ..spec(vec![op()])
    };
    let mut large = spec(vec![op()]);
    if let NetworkSpec::Vit(vit) = &mut large.network {
        vit.img_size = [4096, 4096];
    }
    for (spec, expected) in [
        (uneven, "heads of one width"),
        (swin, "attends in windows"),
        (filled, "attends in windows"),
        (large, "pairs of tokens in attention maps"),
    ] {
        let error = spec.validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn relative_positions_add_nothing_for_tokens_that_came_behind_the_patches() {
    let spec = spec(vec![at(Site::AttnLogits, 0, positions(|op| op.special = false))]);
    let device = Device::flex();
    let op = Op::alone(&spec.ops[0], 0, &spec, &weights(&spec), &device).unwrap();
    let added = |tail: usize| {
        let tokens = 17 + tail;
        let mut ctx = Ctx::eval();
        (ctx.stream.grid, ctx.stream.prefix, ctx.stream.tail) = ([4, 4], 1, tail);
        let qkv: Vec<f32> = (0..tokens * 3 * DIM).map(|i| (i as f32 * 0.37).sin()).collect();
        let qkv = Tensor::from_data(TensorData::new(qkv, [1, tokens, 3 * DIM]), &device);
        ctx.attention = Some(AttentionState::new(qkv, &AttentionSpec::uniform(DIM, 3)));
        op.forward_map(Tensor::<4>::zeros([1, 3, tokens, tokens], &device), &mut ctx)
    };
    let values = |x: Tensor<4>| -> Vec<f32> { x.into_data().try_to_vec().unwrap() };
    let (plain, longer) = (values(added(0)), added(1));
    assert!(plain.iter().any(|x| *x != 0.0));
    assert_eq!(values(longer.clone().narrow(2, 0, 17).narrow(3, 0, 17)), plain);
    for of_last in [longer.clone().narrow(2, 17, 1), longer.narrow(3, 17, 1)] {
        assert!(values(of_last).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn transformations_that_start_as_the_identity_change_nothing() {
    let mixing = |site| at(site, 1, OpKind::HeadMixing(HeadMixing { bias: true }));
    let with = spec(vec![
        mixing(Site::AttnLogits),
        mixing(Site::AttnProbs),
        at(Site::AttnLogits, 0, positions(|op| op.method = Method::Cross)),
        at(Site::Mid, 0, local(|op| op.norm = false)),
    ]);
    let mut tensors = weights(&with);
    let identity = |n: usize| {
        (0..n * n)
            .map(|i| f32::from(u8::from(i % (n + 1) == 0)))
            .collect()
    };
    for site in ["logits", "probs"] {
        let name = format!("ops.{}.1.attn.{site}", usize::from(site == "probs"));
        tensors
            .insert_f32(format!("{name}.weight"), &[3, 3], identity(3))
            .unwrap();
        tensors
            .insert_f32(format!("{name}.bias"), &[3], vec![0.0; 3])
            .unwrap();
    }
    let zero = |tensors: &mut Tensors, name: &str| {
        let shape = tensors.get(name).unwrap().shape().to_vec();
        let count = shape.iter().product();
        tensors.insert_f32(name, &shape, vec![0.0; count]).unwrap();
    };
    for table in ["rp_rows", "rp_cols"] {
        zero(
            &mut tensors,
            &format!("ops.2.0.attn.logits.{table}.lookup_table_weight"),
        );
    }
    zero(&mut tensors, "ops.3.0.mid.conv.weight");
    zero(&mut tensors, "ops.3.0.mid.conv.bias");
    let plain = spec(Vec::new());
    let expected = run(&plain, &weights(&plain));
    assert!(distance(&run(&with, &tensors), &expected) < 1e-5);
    // Each of them does something when its tensors say so.
    for name in [
        "ops.0.1.attn.logits.weight",
        "ops.1.1.attn.probs.bias",
        "ops.2.0.attn.logits.rp_cols.lookup_table_weight",
        "ops.3.0.mid.conv.weight",
    ] {
        let mut moved = tensors.clone();
        moved.insert(name, weights(&with).get(name).unwrap().clone());
        assert!(distance(&run(&with, &moved), &expected) > 1e-4, "{name}");
    }
}
