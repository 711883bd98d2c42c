//! RegNetY by name: ten of the published models, and two of our own for images of 32 pixels.
//!
//! Paper: Radosavovic et al., *Designing Network Design Spaces*, CVPR 2020. A published model is five numbers, from
//! which a rule derives the stages (section 3.3, equations 2 to 4). The number in a name is its multiply-accumulates
//! for a 224-pixel image, in units of 10⁸.

use crate::spec::{RegNetSpec, RegNetStage};

/// The names that [`get`] knows, small models first.
pub const NAMES: [&str; 12] = [
    "regnety_nano_32",
    "regnety_micro_32",
    "regnety_002",
    "regnety_004",
    "regnety_008",
    "regnety_016",
    "regnety_032",
    "regnety_040",
    "regnety_064",
    "regnety_080",
    "regnety_120",
    "regnety_160",
];

/// The spec of this name for RGB images of its usual size.
pub fn get(name: &str) -> Option<RegNetSpec> {
    Some(match name {
        "regnety_nano_32" => small(16, &[(1, 32), (2, 64), (4, 96)]),
        "regnety_micro_32" => small(32, &[(2, 64), (3, 128), (5, 208)]),
        "regnety_002" => published(24, 36.44, 2.49, 13, 8),
        "regnety_004" => published(48, 27.89, 2.09, 16, 8),
        "regnety_008" => published(56, 38.84, 2.4, 14, 16),
        "regnety_016" => published(48, 20.71, 2.65, 27, 24),
        "regnety_032" => published(80, 42.63, 2.66, 21, 24),
        "regnety_040" => published(96, 31.41, 2.24, 22, 64),
        "regnety_064" => published(112, 33.22, 2.27, 25, 72),
        "regnety_080" => published(192, 76.82, 2.19, 17, 56),
        "regnety_120" => published(168, 73.36, 2.37, 19, 112),
        "regnety_160" => published(200, 106.23, 2.48, 18, 112),
        _ => return None,
    })
}

/// A published model from the paper's parameters: initial width `w0`, slope `wa` and quantisation `wm` of the
/// widths, number of blocks, and channels of a group.
fn published(w0: usize, wa: f64, wm: f64, depth: usize, group_width: usize) -> RegNetSpec {
    RegNetSpec {
        img_size: [224, 224],
        in_chans: 3,
        stem_width: 32,
        stem_stride: 2,
        stages: stages(w0, wa, wm, depth, group_width),
        se_ratio: 0.25,
        bn_eps: 1e-5,
    }
}

/// A model for 32-pixel images whose last map is 4×4: three stages of `(depth, width)`, each halving the resolution.
fn small(stem_width: usize, stages: &[(usize, usize)]) -> RegNetSpec {
    let stage = |&(depth, width)| RegNetStage { depth, width, group_width: 16, stride: 2 };
    RegNetSpec {
        img_size: [32, 32],
        in_chans: 3,
        stem_width,
        stem_stride: 1,
        stages: stages.iter().map(stage).collect(),
        se_ratio: 0.25,
        bn_eps: 1e-5,
    }
}

/// Widths grow linearly with the block (`w0 + wa·j`, equation 2), are rounded to the nearest `w0·wm^s` with an integer
/// `s` (equations 3 and 4) and to a multiple of 8; the blocks of one width are a stage. A stage's width is then rounded
/// to a multiple of its group width.
fn stages(w0: usize, wa: f64, wm: f64, depth: usize, group_width: usize) -> Vec<RegNetStage> {
    let multiple = |width: f64, of: usize| (width / of as f64).round_ties_even() as usize * of;
    let initial = w0 as f64;
    let widths = (0..depth).map(|block| {
        let power = (1.0 + wa * block as f64 / initial).log(wm).round_ties_even();
        multiple(initial * wm.powf(power), 8)
    });
    let mut stages: Vec<RegNetStage> = Vec::new();
    for width in widths {
        match stages.last_mut() {
            Some(stage) if stage.width == width => stage.depth += 1,
            _ => stages.push(RegNetStage { depth: 1, width, group_width, stride: 2 }),
        }
    }
    for stage in &mut stages {
        stage.group_width = group_width.min(stage.width);
        stage.width = multiple(stage.width as f64, stage.group_width);
    }
    stages
}
