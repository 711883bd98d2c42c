//! What no spec can ask for yet: tokens that leave in the middle, formats by projection, ops without a step.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use vitesse_kernels::{Isa, Real};
use vitesse_model::ops::relative_positions::{Method, Mode};
use vitesse_model::ops::{LocalConvolution, OpKind, OpSpec, QkvPart, RelativePositions, ScaleShift};
use vitesse_model::spec::{Pool, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Site, Tensors};

use crate::engine::Output;
use crate::plan::{Placed, Plan};
use crate::profile::Stage;
use crate::session::{Runner, Session};
use crate::steps::Regroup;
use crate::weights::Format;
use common::*;

fn plan<T: Real>(spec: &ModelSpec, tensors: &Tensors) -> Plan<T> {
    Plan::new(spec, tensors, &[], &|_| Format::Real).unwrap()
}

fn run<T: Real>(plan: Plan<T>, isa: Isa, threads: usize, images: &[f32], count: usize) -> Vec<f32> {
    let mut out = Output::default();
    let mut session = Session::new(plan, isa, threads).unwrap();
    // Twice, so that what an image leaves behind meets the next.
    session.run(images, count, &mut out);
    session.run(images, count, &mut out);
    out.class
}

/// Nine rows of nine patches and a class token.
fn vit(pool: Pool) -> VitSpec {
    let mut vit = VitSpec::plain(36, 4, 48, 4, 3, vec![PrefixToken::Class]);
    vit.pool = pool;
    vit
}

/// Which tokens go on after a layer: many, which are divided anew, then few, which are not.
fn survivors(layer: usize) -> Option<Vec<usize>> {
    match layer {
        0 => Some((0..82).filter(|token| token % 3 != 1).collect()),
        1 => Some((0..55).filter(|&token| token == 0 || token > 20).collect()),
        2 => Some(vec![0, 1, 13, 14, 15, 34]),
        _ => None,
    }
}

fn with_survivors(mut plan: Plan<f32>) -> Plan<f32> {
    for layer in 0..plan.layers {
        let Some(tokens) = survivors(layer) else { continue };
        let last = plan.steps.iter().rposition(|placed| placed.layer == Some(layer));
        let step = Placed {
            layer: Some(layer),
            stage: Stage::Fc2,
            step: Box::new(Regroup::new(tokens)),
        };
        plan.steps.insert(last.unwrap() + 1, step);
    }
    plan
}

#[test]
fn tokens_can_leave_in_the_middle_whatever_the_number_of_threads() {
    for (pool, seed) in [(Pool::Token, 1), (Pool::Avg, 2), (Pool::AvgThenNorm, 3)] {
        let spec = model(vit(pool));
        let (tensors, images) = (weights(&spec, seed), images(&spec, 5, seed));
        let size = images.len() / 5;
        let after = |layer: usize, x: Rows| match survivors(layer) {
            Some(tokens) => tokens.into_iter().map(|token| x[token].clone()).collect(),
            None => x,
        };
        let each = images.chunks_exact(size);
        let expected: Vec<f64> = each
            .flat_map(|image| forward_with(&spec, &tensors, image, &after).class)
            .collect();
        for isa in isas() {
            for threads in 1..=5 {
                for count in [1, 2, 5] {
                    let plan = with_survivors(plan(&spec, &tensors));
                    let found = run(plan, isa, threads, &images[..count * size], count);
                    let error = distance(&found, &expected[..found.len()]);
                    assert!(
                        found.len() == 5 * count && error <= 1e-5,
                        "{error:e}: {pool:?} {isa}, {threads} threads, {count} images"
                    );
                }
            }
        }
    }
}

/// Products of a block of width 48 with so many keys and queries.
fn block(keys: usize, queries: usize) -> usize {
    let (d, hidden) = (48, 192);
    2 * keys * d * d + queries * (2 * d * d + 2 * keys * d + 2 * d * hidden)
}

#[test]
fn counting_follows_the_tokens() {
    let spec = model(vit(Pool::Token));
    let tensors = weights(&spec, 1);
    let outside = 81 * 48 * 48 + 5 * 48;
    let whole = plan::<f32>(&spec, &tensors);
    // In the last layer only the class token has a query, and what follows it.
    let expected = outside + 3 * block(82, 82) + block(82, 1);
    assert_eq!(whole.macs(), expected as u64);
    let skipped = block(82, 82) - block(82, 1);
    assert_eq!(whole.macs(), spec.costs().unwrap().macs() - skipped as u64);
    let reduced = with_survivors(plan(&spec, &tensors));
    let expected = outside + block(82, 82) + block(55, 55) + block(35, 35) + block(6, 1);
    assert_eq!(reduced.macs(), expected as u64);
    assert_eq!(reduced.bytes(), whole.bytes());
}

#[test]
fn a_model_of_the_mean_skips_nothing() {
    let spec = model(vit(Pool::Avg));
    let plan = plan::<f32>(&spec, &weights(&spec, 1));
    assert_eq!(plan.macs(), spec.costs().unwrap().macs());
}

#[test]
fn each_projection_has_its_format() {
    let spec = model(vit(Pool::Token));
    let (tensors, images) = (weights(&spec, 4), images(&spec, 1, 4));
    let expected = forward(&spec, &tensors, &images).class;
    for isa in isas() {
        let compiled = |format: fn(&str) -> Format| {
            let plan =
                Plan::<f32>::new(&spec, &tensors, &[], &|projection| format(&projection.name)).unwrap();
            let rounded = plan.outline().iter().filter(|line| line.contains("int8")).count();
            (plan.bytes(), rounded, run(plan, isa, 2, &images, 1))
        };
        let real = compiled(|_| Format::Real);
        let some = compiled(|name| match name {
            "blocks.1.mlp.fc1" | "blocks.3.attn.proj" => Format::Int8,
            _ => Format::Real,
        });
        let all = compiled(|_| Format::Int8);
        assert_eq!([real.1, some.1, all.1], [0, 2, 16]);
        assert!(real.0 > some.0 && some.0 > all.0);
        let [real, some, all] = [real.2, some.2, all.2].map(|found| distance(&found, &expected));
        assert!(
            real < 1e-5 && real < some && some < all && all < 0.2,
            "{real} {some} {all}"
        );
    }
}

#[test]
fn an_op_that_finds_no_step_is_refused() {
    let mut spec = model(vit(Pool::Token));
    let plain = weights(&spec, 1);
    let kind = OpKind::ScaleShift(ScaleShift { shift: false });
    for (site, layer, text) in [
        (
            Site::AttnProbs,
            Some(2),
            "ops[0]: the engine has no step for `scale-shift` at `attn.probs` of layer 2",
        ),
        (
            Site::Mid,
            None,
            "ops[0]: the engine has no step for `scale-shift` at `mid`;",
        ),
    ] {
        spec.ops = vec![OpSpec {
            site,
            layer,
            kind: kind.clone(),
        }];
        let error = Plan::<f32>::new(&spec, &plain, &[], &|_| Format::Real).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn relative_positions_and_convolutions_without_a_step_are_refused() {
    let positions = |edit: fn(&mut RelativePositions)| {
        let mut kind = RelativePositions::published(true);
        edit(&mut kind);
        (kind.site(), OpKind::RelativePositions(kind))
    };
    let convolution = |norm, residual| {
        OpKind::LocalConvolution(LocalConvolution {
            norm,
            residual,
            ..LocalConvolution::published()
        })
    };
    let keys = positions(|_| {});
    for (what, ops, refused) in [
        ("of queries", vec![positions(|kind| kind.of = QkvPart::Q)], 0),
        ("of values", vec![positions(|kind| kind.of = QkvPart::V)], 0),
        (
            "of rows and of columns",
            vec![positions(|kind| kind.method = Method::Cross)],
            0,
        ),
        ("biases", vec![positions(|kind| kind.mode = Mode::Bias)], 0),
        ("of keys twice", vec![keys.clone(), keys.clone()], 1),
        (
            "before the perceptron",
            vec![(Site::MlpIn, convolution(false, false))],
            0,
        ),
        ("without norm", vec![(Site::Mid, convolution(false, true))], 0),
        ("without sum", vec![(Site::Mid, convolution(true, false))], 0),
    ] {
        let mut spec = model(vit(Pool::Token));
        let ops = ops.into_iter().map(|(site, kind)| OpSpec {
            site,
            layer: Some(1),
            kind,
        });
        spec.ops = ops.collect();
        let (name, site) = (spec.ops[refused].kind.name(), spec.ops[refused].site);
        let text = format!(
            "ops[{refused}]: the engine has no step for `{name}` at `{site}` of layer 1; use the network"
        );
        let error = Plan::<f32>::new(&spec, &weights(&spec, 1), &[], &|_| Format::Real).unwrap_err();
        assert!(error.to_string().contains(&text), "{what}: {error}");
    }
    let mut spec = model(vit(Pool::Token));
    spec.ops = vec![OpSpec {
        site: keys.0,
        layer: Some(1),
        kind: keys.1,
    }];
    assert!(Plan::<f32>::new(&spec, &weights(&spec, 1), &[], &|_| Format::Real).is_ok());
}
