//! Merging whole models, without running them: what goes where, what is refused, what comes out again. (That the
//! numbers are right is the affine maps' property, and the golden and engine tests'.)
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vitesse_model::ops::{Activation, Bottleneck, LowRank, OpKind, OpSpec, Prompts, QkvPart, ScaleShift};
use vitesse_model::spec::{LayerSpec, NetworkSpec, VitSpec};
use vitesse_model::{ModelSpec, Site, Tensors, zoo};
use vitesse_rng::Key;
use vitesse_train::method::Begun;

use super::*;
use crate::Method;
use crate::pyramid::Pyramid;

fn spec(edit: impl FnOnce(&mut VitSpec)) -> ModelSpec {
    use vitesse_model::spec::PrefixToken;
    let mut vit = VitSpec::plain(16, 4, 12, 2, 3, vec![PrefixToken::Class]);
    edit(&mut vit);
    ModelSpec {
        architecture: "vit_micro_patch4_32".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

fn with_ops(spec: ModelSpec, ops: Vec<OpSpec>) -> ModelSpec {
    ModelSpec { ops, ..spec }
}

fn random(spec: &ModelSpec, seed: u64) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(seed).with(&tensor.name).rng();
        let mean = if tensor.name.ends_with("scale") { 1.0 } else { 0.0 };
        let values = (0..tensor.numel())
            .map(|_| (mean + 0.3 * rng.normal()) as f32)
            .collect();
        out.insert_f32(&tensor.name, &tensor.shape, values).unwrap();
    }
    out
}

fn adapted(name: &str, settings: &[(&str, &str)], base: &ModelSpec) -> (Begun, Tensors) {
    let settings: Vec<(&str, String)> = settings.iter().map(|&(k, v)| (k, v.to_owned())).collect();
    let method = Method::parse(name, &settings).unwrap();
    let adapted = method.begin(base, &random(base, 1), 2).unwrap();
    let tensors = random(&adapted.spec, 1);
    (adapted, tensors)
}

fn largest(a: &Tensors, b: &Tensors) -> f32 {
    assert!(a.names().eq(b.names()));
    let pairs = a.iter().zip(b.iter());
    pairs
        .flat_map(|((_, a), (_, b))| {
            let (a, b) = (a.to_f32().into_owned(), b.to_f32().into_owned());
            a.into_iter().zip(b).map(|(a, b)| (a - b).abs())
        })
        .fold(0.0, f32::max)
}

fn op(site: Site, layer: Option<usize>, kind: OpKind) -> OpSpec {
    OpSpec { site, layer, kind }
}

fn scale_shift() -> OpKind {
    OpKind::ScaleShift(ScaleShift { shift: true })
}

fn bottleneck(activation: Activation) -> OpKind {
    OpKind::Bottleneck(Bottleneck {
        hidden: 4,
        groups: 2,
        activation,
        scale: 0.5,
        learned_scale: false,
        norm: None,
        from: None,
        dropout: 0.0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn unmerging_gives_back_the_base(
        which in 0usize..6,
        scale in prop::sample::select(vec!["0.1", "1", "5"]),
        qkv_bias in any::<bool>(),
    ) {
        let base = spec(|vit| {
            for core in &mut vit.cores {
                core.attn.as_mut().unwrap().qkv_bias = qkv_bias;
            }
        });
        let settings: [(&str, Vec<(&str, &str)>); 6] = [
            ("repadapter", vec![("scale", scale)]),
            ("repadapter", vec![("scale", scale), ("targets", "all-linear"), ("hidden", "2")]),
            ("repadapter", vec![("scale", scale), ("position", "after"), ("groups", "4")]),
            ("lora", vec![("targets", "all-linear"), ("rank", "2")]),
            ("lora", vec![("parts", r#"["q","v"]"#), ("rank", "3")]),
            ("ssf", vec![]),
        ];
        let (name, settings) = &settings[which];
        let (adapted, tensors) = adapted(name, settings, &base);
        let merged = merge(&adapted.spec, &tensors, Options::default()).unwrap();
        prop_assert_eq!(merged.report.folded.len(), adapted.spec.ops.len());
        // Only a map with a constant part makes a bias.
        let creates = !qkv_bias && which != 2 && which != 3 && which != 4;
        prop_assert_eq!(merged.report.created_bias, creates);
        if !creates {
            prop_assert_eq!(&merged.spec, &base);
        }
        // The merged weights with the adapter's tensors beside them.
        let mut attached = adapted.spec.clone();
        let mut all = merged.tensors.clone();
        for (name, tensor) in tensors.iter().filter(|(name, _)| name.starts_with("ops.")) {
            all.insert(name, tensor.clone());
        }
        if creates && let NetworkSpec::Vit(vit) = &mut attached.network {
            vit.cores.iter_mut().for_each(|core| core.attn.as_mut().unwrap().qkv_bias = true);
        }
        match unmerge(&attached, &all, creates) {
            Ok(back) => {
                prop_assert_eq!(&back.spec, &base);
                let difference = largest(&back.tensors, &random(&base, 1));
                prop_assert!(f64::from(difference) < 1e-6 * (10.0 + back.condition), "{} {}", difference, back.condition);
            }
            Err(error) => prop_assert!(matches!(error, Error::Singular { .. }), "{}", error),
        }
    }
}

#[test]
fn a_fresh_adapter_merges_into_the_same_weights() {
    let base = spec(|_| {});
    let weights = random(&base, 1);
    for name in ["repadapter", "lora"] {
        let adapted = Method::parse(name, &[])
            .unwrap()
            .begin(&base, &weights, 2)
            .unwrap();
        let merged = merge(&adapted.spec, &adapted.tensors, Options::default()).unwrap();
        assert_eq!(merged.spec, base);
        assert_eq!(merged.tensors, weights, "{name}");
    }
}

#[test]
fn what_cannot_be_folded_is_refused_with_the_reason_or_kept() {
    let base = spec(|_| {});
    for (name, settings, reason) in [
        ("adapter", &[][..], "an activation (gelu) inside"),
        ("adaptformer", &[], "parallel to what lies between `mid`"),
        ("vpt", &[], "the token sequence longer"),
        ("repadapter", &[("activation", "relu")], "(relu)"),
        ("repadapter", &[("position", "parallel")], "`block.in`"),
    ] {
        let (adapted, tensors) = adapted(name, settings, &base);
        let error = merge(&adapted.spec, &tensors, Options::default()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(reason) && text.contains("--keep-unfoldable"),
            "{text}"
        );
        let kept = merge(
            &adapted.spec,
            &tensors,
            Options {
                keep_unfoldable: true,
            },
        )
        .unwrap();
        assert_eq!(kept.spec, adapted.spec);
        assert_eq!(kept.tensors, tensors);
    }
    let error = merge(&base, &random(&base, 1), Options::default()).unwrap_err();
    assert!(error.to_string().contains("merged already"), "{error}");
}

#[test]
fn kept_ops_move_up_and_keep_their_tensors() {
    let model = with_ops(
        spec(|_| {}),
        vec![
            op(Site::PatchOut, None, scale_shift()),
            op(Site::MlpOut, Some(0), bottleneck(Activation::Gelu)),
            op(Site::MlpOut, Some(0), scale_shift()),
            op(Site::AttnIn, Some(1), bottleneck(Activation::None)),
            op(Site::AttnIn, Some(1), bottleneck(Activation::Relu)),
            op(Site::AttnIn, Some(1), scale_shift()),
            op(Site::Mid, Some(1), scale_shift()),
            op(
                Site::BlockIn,
                Some(0),
                OpKind::Prompts(Prompts {
                    tokens: 2,
                    project: None,
                }),
            ),
        ],
    );
    let tensors = random(&model, 4);
    let merged = merge(
        &model,
        &tensors,
        Options {
            keep_unfoldable: true,
        },
    )
    .unwrap();
    let into: Vec<&str> = merged.report.folded.iter().map(|folded| &*folded.into).collect();
    assert_eq!(into, ["patch_embed.proj", "blocks.1.attn.qkv"]);
    let reasons: Vec<&str> = merged.report.kept.iter().map(|kept| &*kept.reason).collect();
    assert!(
        reasons[0].contains("gelu") && reasons[1].contains("another op"),
        "{reasons:?}"
    );
    assert!(
        reasons[2].contains("another op") && reasons[3].contains("relu"),
        "{reasons:?}"
    );
    assert!(
        reasons[4].contains("residual stream") && reasons[5].contains("longer"),
        "{reasons:?}"
    );
    assert_eq!(
        merged.tensors.get("ops.0.0.mlp.out.up.weight").unwrap(),
        tensors.get("ops.1.0.mlp.out.up.weight").unwrap()
    );
    assert_eq!(
        merged.tensors.get("ops.5.0.block.in.tokens").unwrap(),
        tensors.get("ops.7.0.block.in.tokens").unwrap()
    );
}

#[test]
fn what_mixes_heads_or_tokens_is_kept_and_never_dropped() {
    let plain = with_ops(spec(|_| {}), zoo::transformations(&spec(|_| {})));
    let (adapted, tensors) = adapted("lora", &[], &plain);
    let error = merge(&adapted.spec, &tensors, Options::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("it mixes the attention maps of different heads"),
        "{error}"
    );
    let options = Options {
        keep_unfoldable: true,
    };
    let merged = merge(&adapted.spec, &tensors, options).unwrap();
    assert_eq!(merged.spec, plain);
    assert_eq!(
        merged.report.folded.len() + merged.report.kept.len(),
        adapted.spec.ops.len()
    );
}

#[test]
fn matrices_of_several_blocks_and_unwritten_channels_are_refused() {
    let shared = with_ops(
        spec(|vit| {
            vit.layers = [0, 1, 0].map(LayerSpec::of).to_vec();
        }),
        vec![
            op(Site::AttnIn, Some(0), scale_shift()),
            op(Site::AttnIn, Some(2), bottleneck(Activation::None)),
            op(Site::MlpFc1, Some(1), scale_shift()),
            op(Site::MlpFc1, Some(2), scale_shift()),
        ],
    );
    let options = Options {
        keep_unfoldable: true,
    };
    let merged = merge(&shared, &random(&shared, 1), options).unwrap();
    let into: Vec<&str> = merged.report.folded.iter().map(|folded| &*folded.into).collect();
    // Norms are private, and core 1 has one user.
    assert_eq!(into, ["blocks.0.norm1", "blocks.1.mlp.fc1"]);
    assert!(
        merged
            .report
            .kept
            .iter()
            .all(|kept| kept.reason.contains("shared by blocks 0, 2"))
    );

    let narrow = with_ops(
        spec(|vit| {
            vit.cores[0].attn.as_mut().unwrap().out_idx = Some(vec![1, 4]);
        }),
        vec![op(Site::AttnOut, Some(0), scale_shift())],
    );
    let mut tensors = random(&narrow, 1);
    let error = merge(&narrow, &tensors, Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not write"), "{error}");
    let mut shift = vec![0.0; 12];
    (shift[1], shift[4]) = (0.5, -0.5);
    tensors
        .insert_f32("ops.0.0.attn.out.shift", &[12], shift)
        .unwrap();
    let merged = merge(&narrow, &tensors, Options::default()).unwrap();
    let bias = |tensors: &Tensors| {
        tensors
            .get("blocks.0.attn.proj.bias")
            .unwrap()
            .to_f32()
            .into_owned()
    };
    let scale = tensors
        .get("ops.0.0.attn.out.scale")
        .unwrap()
        .to_f32()
        .into_owned();
    let expected = bias(&tensors)[1] * scale[4] - 0.5;
    assert!((bias(&merged.tensors)[1] - expected).abs() < 1e-6);
}

/// `W x + b` with the tensors of `module`.
fn project(tensors: &Tensors, module: &str, x: &[f64]) -> Vec<f64> {
    let values = |end: &str| {
        tensors
            .get(&format!("{module}.{end}"))
            .unwrap()
            .to_f32()
            .into_owned()
    };
    let (weight, bias) = (values("weight"), values("bias"));
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    let rows = weight.chunks_exact(x.len()).zip(&bias);
    rows.map(|(row, bias)| dot(row) + f64::from(*bias)).collect()
}

#[test]
fn a_family_of_the_tests_own_is_folded_by_its_sites_alone() {
    let low_rank = OpKind::LowRank(LowRank {
        rank: 2,
        alpha: 3.0,
        rank_stabilized: false,
        parts: Some(vec![QkvPart::V]),
        dropout: 0.0,
    });
    let model = Pyramid {
        ops: vec![
            op(Site::MlpIn, Some(2), bottleneck(Activation::None)),
            op(Site::AttnIn, Some(2), scale_shift()),
            op(Site::Qkv, Some(1), low_rank),
            op(Site::MlpFc1, Some(0), scale_shift()),
            op(Site::MlpIn, Some(0), scale_shift()),
            op(Site::AttnOut, Some(3), scale_shift()),
            op(Site::MlpOut, Some(1), scale_shift()),
            op(Site::FinalNorm, None, scale_shift()),
        ],
    };
    let tensors = model.tensors(7);
    let options = Options {
        keep_unfoldable: true,
    };
    let folded = fold(&model, &tensors, options).unwrap();
    let into: Vec<(&str, &str)> = folded
        .report
        .folded
        .iter()
        .map(|one| (&*one.op, &*one.into))
        .collect();
    assert_eq!(
        into,
        [
            // The norm is that of layer 1 too, so this goes into the projection behind it.
            ("scale-shift at `mlp.in` of block 0", "layers.0.blocks.0.mlp.fc1"),
            ("scale-shift at `mlp.fc1` of block 0", "layers.0.blocks.0.mlp.fc1"),
            ("low-rank at `qkv` of block 1", "layers.0.blocks.1.attn.qkv"),
            ("scale-shift at `attn.in` of block 2", "layers.1.blocks.0.norm1"),
            ("bottleneck at `mlp.in` of block 2", "layers.1.blocks.0.mlp.fc1"),
            ("scale-shift at `final.norm`", "norm"),
        ]
    );
    let reasons: Vec<&str> = folded.report.kept.iter().map(|one| &*one.reason).collect();
    assert!(reasons[0].contains("shared by blocks 2, 3"), "{reasons:?}");
    assert!(reasons[1].contains("does not write"), "{reasons:?}");
    assert_eq!(folded.ops.len(), 2);

    // What was folded computes what stood there.
    let mut rng = Key::new(3).rng();
    let mut vector = |width| -> Vec<f64> { (0..width).map(|_| rng.normal()).collect() };
    let close = |a: &[f64], b: &[f64]| {
        a.iter()
            .zip(b)
            .all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()))
    };
    let affine = |index: usize| {
        Affine::of(&model.ops[index], index, &model, &tensors)
            .unwrap()
            .unwrap()
    };
    let x = vector(16);
    let fc1 = "layers.1.blocks.0.mlp.fc1";
    let expected = project(&tensors, fc1, &affine(0).apply(&x));
    assert!(close(&project(&folded.tensors, fc1, &x), &expected));
    let (x, fc1) = (vector(8), "layers.0.blocks.0.mlp.fc1");
    let expected = affine(3).apply(&project(&tensors, fc1, &affine(4).apply(&x)));
    assert!(close(&project(&folded.tensors, fc1, &x), &expected));
    // Only the values' rows are updated.
    let qkv = "layers.0.blocks.1.attn.qkv";
    let (before, after) = (project(&tensors, qkv, &x), project(&folded.tensors, qkv, &x));
    assert!(close(&after[..16], &before[..16]) && !close(&after[16..], &before[16..]));
}
