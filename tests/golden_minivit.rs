//! MiniViT against the original code: Mini-DeiT and Mini-Swin at every recorded layer, losses, gradients; relative positions, relations of
//! tokens, CKA. See `tests/golden/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value
)]

mod minivit_vectors;
mod support;

use minivit_vectors::cases;
use minivit_vectors::deit::mini_deit;
use minivit_vectors::positions::{piecewise_and_buckets, relative_positions};
use minivit_vectors::relations::{alignment, relation_losses};
use minivit_vectors::swin::mini_swin;
use support::{Report, Vectors, agrees, notices_each, refuses_other_folders};

#[test]
fn golden_minivit() {
    agrees("minivit", check);
}

#[test]
fn golden_minivit_notices_a_wrong_value() {
    let places = [
        ("mini_deit", "out.layer2.attn"),
        (
            "mini_deit_cls_token",
            "grad.blocks.1.block.attn.rpe_v.instances.1.lookup_table_weight",
        ),
        ("mini_swin", "out.layer3.k"),
        ("mini_swin_two_groups", "out.loss_hidden"),
        ("irpe_buckets", "piecewise.ratio1.9"),
        ("irpe_apply", "c1.out.y"),
        ("relation_losses", "grad.attn_relation.heads2.l1.q"),
    ];
    notices_each("minivit", &places, check);
}

#[test]
fn golden_minivit_refuses_empty_folders_and_unknown_files() {
    refuses_other_folders("minivit", check);
}

/// Chooses the check by what the file's config describes.
fn check(v: &Vectors, report: &mut Report) {
    let first = |key: &str| v.config["cases"][0].get(key).is_some();
    match v.config["model"].as_str() {
        Some("mini_deit") => mini_deit(v, report),
        Some("mini_swin") => mini_swin(v, report),
        None if first("num_buckets") => piecewise_and_buckets(v, report),
        None if first("mode") => cases(v).for_each(|case| relative_positions(v, case, report)),
        None if first("samples") => cases(v).for_each(|case| alignment(v, case, report)),
        None if v.config.get("relation_heads").is_some() => relation_losses(v, report),
        _ => report.failures.push(format!("{}: unknown kind of file", v.file)),
    }
}
