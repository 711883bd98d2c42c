//! The view of all families: a vision transformer's, and one of a family that nothing but the tests knows.
#![allow(clippy::unwrap_used)]

mod pyramid;

use pyramid::Pyramid;
use vitesse_model::ops::{self, Bottleneck, LowRank, OpKind, OpSpec, Prompts, QkvPart, ScaleShift};
use vitesse_model::spec::{Activation, Cost, LayerSpec, NetworkSpec, Pool, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Site, Sites, zoo};

fn op(site: Site, layer: impl Into<Option<usize>>, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: layer.into(),
        kind,
    }
}

fn scale() -> OpKind {
    OpKind::ScaleShift(ScaleShift { shift: false })
}

fn low_rank(parts: Option<Vec<QkvPart>>) -> OpKind {
    OpKind::LowRank(LowRank {
        rank: 2,
        alpha: 2.0,
        rank_stabilized: false,
        parts,
        dropout: 0.0,
    })
}

fn bottleneck() -> OpKind {
    OpKind::Bottleneck(Bottleneck {
        hidden: 4,
        groups: 1,
        activation: Activation::None,
        scale: 1.0,
        learned_scale: false,
        norm: None,
        from: None,
        dropout: 0.0,
    })
}

#[test]
fn ops_on_a_family_of_its_own_have_tensors_and_costs() {
    let model = Pyramid {
        ops: vec![
            op(Site::PatchOut, None, scale()),
            op(Site::AttnIn, 0, bottleneck()),
            op(Site::MlpHidden, 2, scale()),
            op(Site::Qkv, 3, low_rank(Some(vec![QkvPart::Q, QkvPart::V]))),
            op(Site::Fc2, 1, low_rank(None)),
            op(Site::FinalNorm, None, scale()),
        ],
    };
    ops::validate(&model).unwrap();
    let found: Vec<(String, Vec<usize>, usize, bool)> = ops::tensors(&model)
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape, tensor.depth, tensor.decays))
        .collect();
    let expected: [(&str, &[usize], usize, bool); 11] = [
        ("ops.0.patch.out.scale", &[8], 0, false),
        ("ops.1.0.attn.in.down.weight", &[4, 8], 1, true),
        ("ops.1.0.attn.in.down.bias", &[4], 1, false),
        ("ops.1.0.attn.in.up.weight", &[8, 4], 1, true),
        ("ops.1.0.attn.in.up.bias", &[8], 1, false),
        ("ops.2.2.mlp.hidden.scale", &[12], 3, false),
        ("ops.3.3.qkv.a", &[4, 16], 4, true),
        ("ops.3.3.qkv.b", &[32, 2], 4, true),
        ("ops.4.1.fc2.a", &[2, 12], 2, true),
        ("ops.4.1.fc2.b", &[3, 2], 2, true),
        ("ops.5.final.norm.scale", &[16], 5, false),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(name, shape, depth, decays)| (name.to_owned(), shape.to_vec(), depth, decays))
        .collect();
    assert_eq!(found, expected);

    let mut cost = Cost { layers: Vec::new() };
    ops::costs(&model, &mut cost);
    let macs: Vec<u64> = cost.layers.iter().map(|layer| layer.macs).collect();
    // Sixteen tokens in the first stage, four in the second and after it.
    assert_eq!(
        macs,
        [16 * 8, 16 * 64, 4 * 12, 4 * (64 + 64), 16 * (24 + 6), 4 * 16]
    );
    assert_eq!(cost.layers[3].parameters, 128);
    // The rows of queries and of values.
    let OpKind::LowRank(update) = &model.ops[3].kind else {
        unreachable!()
    };
    assert_eq!(update.ranges(Site::Qkv, 3, &model), [(0, 16), (32, 16)]);
}

#[test]
fn an_op_stands_only_where_the_family_has_a_place() {
    for (wrong, text) in [
        (op(Site::MlpIn, 3, scale()), "`mlp.in` of layer 3"),
        (op(Site::AttnIn, 4, scale()), "`attn.in` of layer 4"),
        (op(Site::Mid, None, scale()), "`mid` outside the blocks"),
        (op(Site::AttnProbs, 0, scale()), "attention maps"),
        (op(Site::AttnIn, 0, low_rank(None)), "must stand on a projection"),
        (
            op(
                Site::BlockIn,
                2,
                OpKind::Prompts(Prompts {
                    tokens: 2,
                    project: None,
                }),
            ),
            "0 in the first block",
        ),
    ] {
        let error = ops::validate(&Pyramid { ops: vec![wrong] })
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error}");
    }
    // A convolutional network of ours has no token stream.
    let mut regnet = zoo::get("regnety_nano_32").unwrap().spec;
    assert_eq!(
        regnet.depth(),
        regnet.tensors().unwrap().last().unwrap().depth - 1
    );
    regnet.ops = vec![op(Site::BlockOut, 0, scale())];
    assert!(regnet.validate().is_err());
}

#[test]
fn modules_that_are_shared_are_known_as_such() {
    let model: &dyn Sites = &Pyramid::default();
    assert_eq!(model.sharing(Site::Qkv, 3), [2, 3]);
    assert_eq!(model.sharing(Site::Qkv, 1), [1]);
    assert_eq!(model.sharing(Site::AttnIn, 1), [0, 1]);
    assert_eq!(model.sharing(Site::Fc1, 3), [] as [usize; 0]);
    assert_eq!(model.projections().count(), 14);
    assert_eq!(
        model.norms(),
        [
            "layers.0.blocks.0.norm1",
            "layers.0.blocks.0.norm2",
            "layers.1.blocks.0.norm1",
            "layers.1.blocks.0.norm2",
            "layers.1.blocks.1.norm1",
            "norm"
        ]
    );
}

fn vit(edit: impl FnOnce(&mut VitSpec)) -> ModelSpec {
    let mut vit = VitSpec::plain(16, 4, 12, 3, 3, vec![PrefixToken::Class]);
    edit(&mut vit);
    ModelSpec {
        architecture: "test".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

fn names(spec: &ModelSpec) -> Vec<String> {
    spec.tensors()
        .unwrap()
        .into_iter()
        .map(|tensor| tensor.name)
        .collect()
}

#[test]
fn every_place_of_a_vision_transformer_is_among_its_tensors() {
    let spec = vit(|vit| {
        vit.cores.truncate(2);
        vit.layers = [0, 1, 0].map(LayerSpec::of).to_vec();
        vit.cores[1].mlp = None;
        vit.activation = Activation::QuickGelu;
    });
    let (sites, names) = (spec.sites(), names(&spec));
    let mut places: Vec<String> = sites.norms();
    places.extend(sites.projections().map(|(_, _, projection)| projection.name));
    places.extend(sites.embedding().map(|embedding| embedding.name));
    for place in &places {
        assert!(names.contains(&format!("{place}.weight")), "{place}");
    }
    assert_eq!(sites.sharing(Site::Fc1, 2), [0, 2]);
    assert_eq!(sites.norm(Site::MlpIn, Some(1)), None);
    assert_eq!(sites.activation(2), Activation::QuickGelu);
    assert_eq!(sites.tokens_at(0), 17);
    // No token is normed where the mean is.
    let pooled = vit(|vit| vit.pool = Pool::AvgThenNorm);
    assert!(!pooled.has(Site::FinalNorm, None));
    assert_eq!(pooled.norm(Site::FinalNorm, None).unwrap(), "fc_norm");
}

#[test]
fn layers_that_share_norms_have_one_and_count_it_once() {
    let shared = vit(|vit| vit.layers[2].norms = Some(0));
    let (found, plain) = (names(&shared), names(&vit(|_| {})));
    let missing: Vec<&String> = plain.iter().filter(|name| !found.contains(name)).collect();
    assert_eq!(
        missing,
        [
            "blocks.2.norm1.weight",
            "blocks.2.norm1.bias",
            "blocks.2.norm2.weight",
            "blocks.2.norm2.bias"
        ]
    );
    assert_eq!(shared.norm(Site::MlpIn, Some(2)).unwrap(), "blocks.0.norm2");
    assert_eq!(
        shared.costs().unwrap().parameters() + 4 * 12,
        vit(|_| {}).costs().unwrap().parameters()
    );
    for (norms, has_mlp) in [(2, true), (1, false)] {
        let wrong = vit(|vit| {
            vit.layers[2].norms = Some(norms);
            if !has_mlp {
                vit.cores[1].mlp = None;
            }
        });
        let error = wrong.validate().unwrap_err().to_string();
        assert!(
            error.contains(&format!("layer 2 uses the norms of layer {norms}")),
            "{error}"
        );
    }
}

#[test]
fn clips_norm_and_missing_bias_are_tensors_that_cost() {
    let clip = vit(|vit| (vit.pre_norm, vit.patch_bias) = (true, false));
    let (found, plain) = (names(&clip), names(&vit(|_| {})));
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|name| !b.contains(name)).cloned().collect()
    };
    assert_eq!(only(&found, &plain), ["norm_pre.weight", "norm_pre.bias"]);
    assert_eq!(only(&plain, &found), ["patch_embed.proj.bias"]);
    let numel: usize = clip.tensors().unwrap().iter().map(|tensor| tensor.numel()).sum();
    assert_eq!(clip.costs().unwrap().parameters(), numel);
}
