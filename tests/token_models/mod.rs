//! Small models in which every kind of op makes tokens fewer, and what computes them.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::ops::{
    AttentiveTokens, BipartiteMatching, Direction, GridMerging, LocalConvolution, MergeValue, OpKind, OpSpec,
    Package, Prompts, RelativePositions, StaticTokens, TokenPredictor, TokenSelector,
};
use vitesse::model::spec::{Pool, PrefixToken, VitSpec};
use vitesse::model::{ModelSpec, Site, Sites, Tensors};
use vitesse::rng::Key;

use crate::small_model::model;

pub(crate) const BATCH: usize = 3;

pub(crate) fn at(site: Site, layer: usize, kind: OpKind) -> OpSpec {
    OpSpec {
        site,
        layer: Some(layer),
        kind,
    }
}

pub(crate) fn matching(layer: usize, r: usize, proportional: bool) -> OpSpec {
    let kind = BipartiteMatching { r, proportional };
    at(Site::Mid, layer, OpKind::BipartiteMatching(kind))
}

pub(crate) fn attentive(layer: usize, keep: f64, fuse: bool) -> OpSpec {
    at(
        Site::Mid,
        layer,
        OpKind::AttentiveTokens(AttentiveTokens { keep, fuse }),
    )
}

pub(crate) fn predictor(layer: usize, ratio: f64) -> OpSpec {
    at(
        Site::BlockIn,
        layer,
        OpKind::TokenPredictor(TokenPredictor { ratio }),
    )
}

pub(crate) fn selector(layer: usize, shared: bool, ratio: Option<f64>) -> OpSpec {
    let package = if shared { Package::Normalised } else { Package::Sum };
    let kind = TokenSelector {
        heads: 3,
        shared,
        package,
        ratio,
    };
    at(Site::BlockIn, layer, OpKind::TokenSelector(kind))
}

pub(crate) fn merging(layer: usize, direction: Direction, value: MergeValue) -> OpSpec {
    let kind = GridMerging { direction, value };
    at(Site::BlockIn, layer, OpKind::GridMerging(kind))
}

pub(crate) fn positions(layer: usize) -> OpSpec {
    let kind = RelativePositions::published(true);
    at(Site::AttnLogits, layer, OpKind::RelativePositions(kind))
}

pub(crate) fn local(layer: usize) -> OpSpec {
    let kind = LocalConvolution {
        kernel: 3,
        ..LocalConvolution::published()
    };
    at(Site::Mid, layer, OpKind::LocalConvolution(kind))
}

pub(crate) fn fixed(layer: usize, keep: &[usize]) -> OpSpec {
    let keep = keep.to_vec();
    at(Site::BlockIn, layer, OpKind::StaticTokens(StaticTokens { keep }))
}

/// Four blocks over a grid of 3 by 5 patches.
pub(crate) fn body(prefix: &[PrefixToken]) -> ModelSpec {
    let mut vit = VitSpec::plain(4, 4, 24, 4, 3, prefix.to_vec());
    vit.img_size = [12, 20];
    if !prefix.contains(&PrefixToken::Class) {
        vit.pool = Pool::Avg;
    }
    model(vit)
}

pub(crate) fn with(mut spec: ModelSpec, ops: Vec<OpSpec>) -> ModelSpec {
    spec.ops.extend(ops);
    spec
}

/// The prefixes there are, with prompts and without.
pub(crate) fn bodies() -> Vec<ModelSpec> {
    use PrefixToken::{Class, Distillation, Register};
    let prompts = at(
        Site::BlockIn,
        0,
        OpKind::Prompts(Prompts {
            tokens: 2,
            project: None,
        }),
    );
    vec![
        body(&[Class]),
        body(&[Class, Distillation]),
        body(&[Class, Register, Register]),
        body(&[]),
        with(body(&[Class]), vec![prompts]),
    ]
}

/// Every kind of op, in two layers; those that go by the class token not where there is none. Selectors without a ratio are not
/// among them.
pub(crate) fn kinds(spec: &ModelSpec) -> Vec<Vec<OpSpec>> {
    use Direction::{Horizontal, Vertical};
    let mut all = vec![
        vec![matching(0, 4, true), matching(2, 3, true)],
        vec![matching(1, 5, false), matching(2, 1, false)],
        vec![predictor(1, 0.7), predictor(3, 0.3)],
        vec![selector(1, true, Some(0.7)), selector(2, true, Some(0.4))],
        vec![selector(0, false, Some(0.5)), selector(3, false, Some(0.2))],
        vec![
            merging(1, Horizontal, MergeValue::Mean),
            merging(2, Vertical, MergeValue::Mean),
        ],
        vec![
            merging(1, Vertical, MergeValue::Area),
            merging(3, Horizontal, MergeValue::Area),
        ],
        // The odd row that passed stands for half as many patches as those beside it.
        vec![
            merging(1, Vertical, MergeValue::Mean),
            merging(2, Horizontal, MergeValue::Area),
            merging(3, Vertical, MergeValue::Area),
        ],
        vec![fixed(1, &[0, 2, 3, 7, 14]), fixed(2, &[1, 4])],
        vec![merging(1, Horizontal, MergeValue::Mean), positions(1), local(1)],
        vec![matching(1, 3, false), positions(1)],
    ];
    if spec.has_class_token() {
        all.push(vec![attentive(0, 0.7, false), attentive(2, 0.5, false)]);
        // One token leaves and one comes: as many as before, twice.
        all.push(vec![attentive(0, 0.9, true), attentive(2, 0.9, true)]);
        all.push(vec![
            attentive(0, 0.7, true),
            attentive(1, 0.6, true),
            attentive(3, 0.6, true),
        ]);
    }
    all
}

pub(crate) fn images(spec: &ModelSpec) -> Tensor<4> {
    let [channels, height, width] = spec.input_size();
    let mut rng = Key::new(3).with("images").rng();
    let values: Vec<f32> = (0..BATCH * channels * height * width)
        .map(|_| rng.uniform_in(-1.0, 1.0) as f32)
        .collect();
    let shape = [BATCH, channels, height, width];
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

pub(crate) fn network(spec: &ModelSpec, tensors: &Tensors) -> Network {
    Network::new(spec, tensors, "test", &Device::flex()).unwrap()
}

pub(crate) fn class(network: &Network, images: Tensor<4>, ctx: &mut Ctx) -> Vec<f32> {
    let class = network.forward(images, ctx).unwrap().class;
    class.try_to_vec_as::<f32>().unwrap()
}

pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    largest.fold(
        0.0,
        |most: f32, d| if most.is_nan() || d <= most { most } else { d },
    )
}
