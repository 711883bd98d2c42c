//! Token reduction against the original code: DynamicViT, SPViT, EViT, ToMe; CAIT's merging against its definition. Decisions are
//! compared exactly. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod support;
mod token_vectors;

use support::{Report, Vectors, agrees, notices_each, refuses_other_folders};
use token_vectors::{cait, dynamicvit, evit, policy, spvit, tome};

#[test]
fn golden_token() {
    agrees("token", check);
}

#[test]
fn golden_token_notices_a_wrong_value() {
    let places = [
        ("cait_merge", "out.case1.area.x"),
        ("cait_merge", "out.case1.token_of_cell"),
        ("cait_vit", "out.area.logits"),
        ("dynamicvit_eval", "out.stage1.keep_original"),
        ("dynamicvit_train", "out.loss_kl"),
        ("dynamicvit_train", "out.grad.score_predictor.0.in_conv.1.weight"),
        ("evit_drop", "out.block4.keep_local"),
        ("evit_fuse", "out.block2.x"),
        ("evit_keep_schedule", "out.keep_rate"),
        ("policy_softmax", "out.attn"),
        ("spvit_eval", "out.stage2.kept_total"),
        ("spvit_selector", "out.package_normalized"),
        ("spvit_train", "out.mask1"),
        ("tome_matching", "out.case1.dst_idx"),
        ("tome_vit", "out.prop.list.source"),
    ];
    notices_each("token", &places, check);
}

#[test]
fn golden_token_refuses_empty_folders_and_unknown_files() {
    refuses_other_folders("token", check);
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    let has = |key: &str| v.config.get(key).is_some();
    let first = |key: &str| v.config["cases"][0].get(key).is_some();
    if first("sequence") {
        cait::merging(v, report);
    } else if first("distill_token") {
        tome::matching(v, report);
    } else if has("merge") {
        cait::model(v, report);
    } else if has("r_list") {
        tome::model(v, report);
    } else if has("keep_counts") {
        dynamicvit::inference(v, report);
    } else if has("clf_weight") {
        dynamicvit::training(v, report);
    } else if has("keep_rate_per_block") {
        evit::blocks(v, report);
    } else if has("base_keep_rate") {
        evit::schedule(v, report);
    } else if has("head_mlp_shared") {
        spvit::selector(v, report);
    } else if has("keep_layout") {
        spvit::inference(v, report);
    } else if has("package") {
        spvit::training(v, report);
    } else if has("eps") {
        policy::softmax(v, report);
    } else {
        report.failures.push(format!("{}: unknown kind of file", v.file));
    }
}
