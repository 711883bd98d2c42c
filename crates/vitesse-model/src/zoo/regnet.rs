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
        "regnety_nano_32" => small(16, &[(1, 32), (2, 64), (4, 128)]),
        "regnety_micro_32" => small(24, &[(1, 48), (3, 112), (6, 240)]),
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
    let stage = |&(depth, width)| RegNetStage {
        depth,
        width,
        group_width: 16,
        stride: 2,
    };
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
            _ => stages.push(RegNetStage {
                depth: 1,
                width,
                group_width,
                stride: 2,
            }),
        }
    }
    for stage in &mut stages {
        stage.group_width = group_width.min(stage.width);
        stage.width = multiple(stage.width as f64, stage.group_width);
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ModelSpec, NetworkSpec};

    fn model(name: &str) -> ModelSpec {
        let regnet = get(name).unwrap();
        let num_classes = if regnet.img_size == [32, 32] { 10 } else { 1000 };
        ModelSpec {
            architecture: name.into(),
            num_classes,
            network: NetworkSpec::RegNet(regnet),
            ops: Vec::new(),
        }
    }

    /// Counted on timm's models at 224 pixels and 1000 classes; ours at 32 pixels and 10 classes.
    #[test]
    fn parameters_and_macs_are_the_published_ones() {
        let counts = [
            ("regnety_nano_32", 285_318, 8_864_256),
            ("regnety_micro_32", 1_218_420, 29_109_792),
            ("regnety_002", 3_162_996, 199_514_080),
            ("regnety_004", 4_344_144, 401_842_848),
            ("regnety_008", 6_263_168, 797_176_832),
            ("regnety_016", 11_202_430, 1_612_076_160),
            ("regnety_032", 19_436_338, 3_176_482_752),
            ("regnety_040", 20_646_656, 3_973_288_448),
            ("regnety_064", 30_583_252, 6_355_204_992),
            ("regnety_080", 39_180_068, 7_963_057_312),
            ("regnety_120", 51_822_544, 12_092_376_576),
            ("regnety_160", 83_590_140, 15_911_510_272),
        ];
        assert_eq!(counts.map(|(name, ..)| name), NAMES);
        for (name, parameters, macs) in counts {
            let cost = model(name).costs().unwrap();
            assert_eq!((cost.parameters(), cost.macs()), (parameters, macs), "{name}");
        }
        assert_eq!(get("regnety_320"), None);
    }

    #[test]
    fn stages_follow_from_the_parameters() {
        let shape = |name| -> Vec<_> {
            let stages = get(name).unwrap().stages;
            stages
                .iter()
                .map(|stage| (stage.depth, stage.width, stage.group_width))
                .collect()
        };
        assert_eq!(
            shape("regnety_160"),
            [(2, 224, 112), (4, 448, 112), (11, 1232, 112), (1, 3024, 112)]
        );
        assert_eq!(
            shape("regnety_080"),
            [(2, 168, 56), (4, 448, 56), (10, 896, 56), (1, 2016, 56)]
        );
        assert_eq!(
            shape("regnety_002"),
            [(1, 24, 8), (1, 56, 8), (4, 152, 8), (7, 368, 8)]
        );
    }

    #[test]
    fn our_small_models_end_in_a_map_of_four_by_four() {
        for name in ["regnety_nano_32", "regnety_micro_32"] {
            let last = get(name).unwrap().blocks().pop().unwrap();
            assert_eq!(last.conv3.out_size(), [4, 4], "{name}");
        }
    }
}
