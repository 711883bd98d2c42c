//! A run allocates nothing once it has been warmed up. One test to a binary, because all of its threads count.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use vitesse_engine::{Engine, Options, Output, Precision};
use vitesse_model::Site;
use vitesse_model::ops::{
    AttentiveTokens, BipartiteMatching, Direction, GridMerging, MergeValue, OpKind, OpSpec, TokenPredictor,
};
use vitesse_model::spec::{Activation, Pool, PrefixToken, VitSpec};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Ops of each kind that makes tokens fewer and has a step.
fn reducing() -> Vec<Vec<OpSpec>> {
    let at = |site, layer, kind| OpSpec {
        site,
        layer: Some(layer),
        kind,
    };
    let matching = |layer, r| {
        let kind = BipartiteMatching {
            r,
            proportional: true,
        };
        at(Site::Mid, layer, OpKind::BipartiteMatching(kind))
    };
    let attentive = |layer| {
        let kind = AttentiveTokens {
            keep: 0.6,
            fuse: true,
        };
        at(Site::Mid, layer, OpKind::AttentiveTokens(kind))
    };
    let merging = |layer, direction| {
        let value = MergeValue::Area;
        at(
            Site::BlockIn,
            layer,
            OpKind::GridMerging(GridMerging { direction, value }),
        )
    };
    let predictor = |layer, ratio| {
        let kind = TokenPredictor { ratio };
        at(Site::BlockIn, layer, OpKind::TokenPredictor(kind))
    };
    vec![
        vec![matching(0, 9), matching(1, 5)],
        vec![attentive(0), attentive(1)],
        vec![predictor(1, 0.7), predictor(2, 0.4)],
        vec![merging(1, Direction::Horizontal), merging(2, Direction::Vertical)],
    ]
}

#[test]
fn a_run_allocates_nothing_after_the_first() {
    let mut plain = VitSpec::plain(
        32,
        4,
        64,
        3,
        2,
        vec![PrefixToken::Class, PrefixToken::Distillation],
    );
    let mut mean = plain.clone();
    plain.cores[1].attn.as_mut().unwrap().out_idx = Some((5..50).collect());
    mean.prefix.clear();
    mean.pool = Pool::Avg;
    mean.pre_norm = true;
    mean.activation = Activation::QuickGelu;
    let mut specs = vec![model(plain.clone()), model(mean)];
    plain.cores[1].attn.as_mut().unwrap().out_idx = None;
    for reducing in reducing() {
        let mut spec = model(plain.clone());
        spec.ops = reducing;
        specs.push(spec);
    }
    for spec in specs {
        let tensors = weights(&spec, 1);
        let images = images(&spec, 5, 1);
        let size = images.len() / 5;
        for isa in isas() {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                for threads in 1..=3 {
                    let options = Options {
                        threads,
                        precision,
                        isa: Some(isa),
                    };
                    let engine = Engine::new(&spec, &tensors, "test", options).unwrap();
                    let mut out = Output::default();
                    for count in [1, 5] {
                        let images = &images[..count * size];
                        engine.run_into(images, count, &mut out).unwrap();
                        let before = ALLOCATIONS.load(Ordering::Relaxed);
                        (0..3).for_each(|_| engine.run_into(images, count, &mut out).unwrap());
                        let more = ALLOCATIONS.load(Ordering::Relaxed) - before;
                        assert_eq!(more, 0, "{precision} {isa}, {threads} threads, {count} images");
                    }
                }
            }
        }
    }
}
