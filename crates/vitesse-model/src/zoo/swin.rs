//! Swins by name: the published ones, and small ones of our own for images of 32 pixels.
//!
//! Paper: Liu et al., *Swin Transformer*, ICCV 2021. Crops are those with which timm evaluates the published weights.

use super::Entry;
use crate::config::PretrainedCfg;
use crate::spec::{ModelSpec, NetworkSpec, SwinSpec};

/// Name, image side, patch side, window side, width, blocks and heads of each stage, crop ratio.
type Row = (
    &'static str,
    usize,
    usize,
    usize,
    usize,
    &'static [usize],
    &'static [usize],
    f64,
);

#[rustfmt::skip]
const TIMM: [Row; 6] = [
    ("swin_tiny_patch4_window7_224",   224, 4,  7,  96, &[2, 2,  6, 2], &[3,  6, 12, 24], 0.9),
    ("swin_small_patch4_window7_224",  224, 4,  7,  96, &[2, 2, 18, 2], &[3,  6, 12, 24], 0.9),
    ("swin_base_patch4_window7_224",   224, 4,  7, 128, &[2, 2, 18, 2], &[4,  8, 16, 32], 0.9),
    ("swin_large_patch4_window7_224",  224, 4,  7, 192, &[2, 2, 18, 2], &[6, 12, 24, 48], 0.9),
    ("swin_base_patch4_window12_384",  384, 4, 12, 128, &[2, 2, 18, 2], &[4,  8, 16, 32], 1.0),
    ("swin_large_patch4_window12_384", 384, 4, 12, 192, &[2, 2, 18, 2], &[6, 12, 24, 48], 1.0),
];

#[rustfmt::skip]
const OURS: [Row; 2] = [
    ("swin_nano_patch2_window4_32",     32, 2,  4,  32, &[2, 2,  2],    &[1,  2,  4],     1.0),
    ("swin_micro_patch2_window4_32",    32, 2,  4,  64, &[2, 2,  2],    &[2,  4,  8],     1.0),
];

/// The names that [`get`] knows: ours, then timm's.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OURS.iter().chain(&TIMM).map(|row| row.0)
}

/// The entry of this name.
pub(super) fn get(name: &str) -> Option<Entry> {
    let timm = TIMM.iter().find(|row| row.0 == name);
    let &(name, image, patch, window, dim, depths, heads, crop_pct) =
        timm.or_else(|| OURS.iter().find(|row| row.0 == name))?;
    let swin = SwinSpec::plain(image, patch, window, dim, depths, heads);
    let last = swin.stage_map(swin.stages() - 1);
    Some(Entry {
        pretrained_cfg: PretrainedCfg {
            crop_pct,
            pool_size: Some(last),
            ..PretrainedCfg::default()
        },
        spec: ModelSpec {
            architecture: name.to_owned(),
            num_classes: if timm.is_some() { 1000 } else { 10 },
            network: NetworkSpec::Swin(swin),
            ops: Vec::new(),
        },
        timm_name: if timm.is_some() {
            name
        } else {
            "swin_tiny_patch4_window7_224"
        },
    })
}
