//! RegNetY: convolutional networks of bottleneck blocks, the teachers of DeiT.
//!
//! Paper: Radosavovic et al., *Designing Network Design Spaces*, CVPR 2020. A stem, then stages of equal blocks. A block
//! is a 1×1, a grouped 3×3 and a 1×1 convolution, each followed by a batch norm, with a squeeze-and-excitation (SE)
//! gate before the last, around a shortcut. The bottleneck ratio is 1, as in every RegNetY.

mod sites;

use serde::{Deserialize, Serialize};

use super::{Cost, Family, FeatureMap, FeatureMaps, Init, LayerTokens, Role, TensorSpec};
use crate::{Error, Result};

/// The largest image side, width or stride, of a stage or of them all, that is believed, so that costs cannot overflow.
const LARGEST: usize = 4096;
/// The largest number of blocks that is believed.
const MOST_BLOCKS: usize = 256;

/// A RegNetY.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegNetSpec {
    /// Image height and width in pixels. The weights do not depend on them.
    pub img_size: [usize; 2],
    /// Image channels.
    pub in_chans: usize,
    /// Channels after the stem, a 3×3 convolution.
    pub stem_width: usize,
    /// Stride of the stem: 2 in the published models, 1 in ours for small images.
    pub stem_stride: usize,
    /// The stages in the order of the forward pass.
    pub stages: Vec<RegNetStage>,
    /// Channels inside a squeeze-and-excitation gate, as a fraction of the channels that enter the block.
    pub se_ratio: f64,
    /// Epsilon of every batch norm.
    pub bn_eps: f64,
}

/// Equal blocks, of which the first changes width and resolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegNetStage {
    /// Number of blocks.
    pub depth: usize,
    /// Channels of every block.
    pub width: usize,
    /// Channels of one group of the 3×3 convolutions; divides `width`.
    pub group_width: usize,
    /// Stride of the first block.
    pub stride: usize,
}

/// A convolution without bias, padded to keep the size at stride 1, and the batch norm behind it.
#[derive(Debug, Clone)]
pub(crate) struct ConvNormSpec {
    /// Prefix of its tensors, such as `s1.b2.conv3`.
    pub(crate) name: String,
    pub(crate) in_chans: usize,
    pub(crate) out_chans: usize,
    /// 1 or 3.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) groups: usize,
    /// Height and width of the input.
    pub(crate) in_size: [usize; 2],
}

/// One bottleneck block.
#[derive(Debug, Clone)]
pub(crate) struct RegNetBlock {
    /// Prefix of its tensors, such as `s1.b2`.
    pub(crate) name: String,
    pub(crate) conv1: ConvNormSpec,
    pub(crate) conv2: ConvNormSpec,
    /// Channels inside the squeeze-and-excitation gate, which stands between `conv2` and `conv3`.
    pub(crate) se_chans: usize,
    pub(crate) conv3: ConvNormSpec,
    /// The shortcut where the block changes width or resolution; it is the identity elsewhere.
    pub(crate) downsample: Option<ConvNormSpec>,
}

impl ConvNormSpec {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> [usize; 2] {
        self.in_size.map(|side| side.div_ceil(self.stride))
    }

    fn weight_shape(&self) -> [usize; 4] {
        [
            self.out_chans,
            self.in_chans / self.groups,
            self.kernel,
            self.kernel,
        ]
    }

    /// `gamma` is how the norm's weight starts.
    fn tensors(&self, gamma: Init) -> Vec<TensorSpec> {
        let name = &self.name;
        let fan_out = self.kernel * self.kernel * self.out_chans / self.groups;
        let he = Init::Normal {
            std: (2.0 / fan_out as f64).sqrt(),
        };
        let chans = &[self.out_chans];
        let buffer = |name: String, shape: &[usize], init, role| TensorSpec {
            name,
            shape: shape.to_vec(),
            init,
            role,
            depth: 0,
            decays: false,
        };
        vec![
            TensorSpec::parameter(format!("{name}.conv.weight"), &self.weight_shape(), he),
            TensorSpec::parameter(format!("{name}.bn.weight"), chans, gamma),
            TensorSpec::parameter(format!("{name}.bn.bias"), chans, Init::Zeros),
            buffer(
                format!("{name}.bn.running_mean"),
                chans,
                Init::Zeros,
                Role::Buffer,
            ),
            buffer(format!("{name}.bn.running_var"), chans, Init::Ones, Role::Buffer),
            buffer(
                format!("{name}.bn.num_batches_tracked"),
                &[],
                Init::Zeros,
                Role::Counter,
            ),
        ]
    }

    fn macs(&self) -> usize {
        self.weight_shape().iter().chain(&self.out_size()).product()
    }
}

impl RegNetBlock {
    fn tensors(&self) -> Vec<TensorSpec> {
        let (name, width, inner) = (&self.name, self.conv2.out_chans, self.se_chans);
        // Fan-out initialisation, as for the other convolutions.
        let se = |part: &str, out: usize, fan_in: usize| {
            let he = Init::Normal {
                std: (2.0 / out as f64).sqrt(),
            };
            [
                TensorSpec::parameter(format!("{name}.se.{part}.weight"), &[out, fan_in, 1, 1], he),
                TensorSpec::parameter(format!("{name}.se.{part}.bias"), &[out], Init::Zeros),
            ]
        };
        let mut out = self.conv1.tensors(Init::Ones);
        out.extend(self.conv2.tensors(Init::Ones));
        out.extend(se("fc1", inner, width));
        out.extend(se("fc2", width, inner));
        // A block starts as its shortcut.
        out.extend(self.conv3.tensors(Init::Zeros));
        out.extend(self.downsample.iter().flat_map(|conv| conv.tensors(Init::Ones)));
        out
    }

    fn macs(&self) -> usize {
        let convs = [&self.conv1, &self.conv2, &self.conv3]
            .into_iter()
            .chain(&self.downsample);
        convs.map(ConvNormSpec::macs).sum::<usize>() + 2 * self.conv2.out_chans * self.se_chans
    }
}

impl RegNetSpec {
    pub(crate) fn stem(&self) -> ConvNormSpec {
        ConvNormSpec {
            name: "stem".into(),
            in_chans: self.in_chans,
            out_chans: self.stem_width,
            kernel: 3,
            stride: self.stem_stride,
            groups: 1,
            in_size: self.img_size,
        }
    }

    /// The blocks of all stages, in the order of the forward pass.
    pub(crate) fn blocks(&self) -> Vec<RegNetBlock> {
        let mut blocks = Vec::new();
        let (mut in_chans, mut in_size) = (self.stem_width, self.stem().out_size());
        for (s, stage) in self.stages.iter().enumerate() {
            for b in 0..stage.depth {
                let name = format!("s{}.b{}", s + 1, b + 1);
                let stride = if b == 0 { stage.stride } else { 1 };
                let pointwise = |part: &str, in_chans, in_size, stride| ConvNormSpec {
                    name: format!("{name}.{part}"),
                    in_chans,
                    out_chans: stage.width,
                    kernel: 1,
                    stride,
                    groups: 1,
                    in_size,
                };
                let conv2 = ConvNormSpec {
                    kernel: 3,
                    groups: stage.width / stage.group_width,
                    ..pointwise("conv2", stage.width, in_size, stride)
                };
                let out_size = conv2.out_size();
                let changes = stride != 1 || in_chans != stage.width;
                blocks.push(RegNetBlock {
                    conv1: pointwise("conv1", in_chans, in_size, 1),
                    conv2,
                    se_chans: self.se_chans(in_chans),
                    conv3: pointwise("conv3", stage.width, out_size, 1),
                    downsample: changes.then(|| pointwise("downsample", in_chans, in_size, stride)),
                    name,
                });
                (in_chans, in_size) = (stage.width, out_size);
            }
        }
        blocks
    }

    fn se_chans(&self, in_chans: usize) -> usize {
        (in_chans as f64 * self.se_ratio).round_ties_even() as usize
    }

    fn head(&self, num_classes: usize) -> Vec<TensorSpec> {
        if num_classes == 0 {
            return Vec::new();
        }
        let weight = Init::Normal { std: 0.01 };
        vec![
            TensorSpec::parameter("head.fc.weight", &[num_classes, self.num_features()], weight),
            TensorSpec::parameter("head.fc.bias", &[num_classes], Init::Zeros),
        ]
    }
}

impl Family for RegNetSpec {
    fn validate(&self) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(text));
        let sized = |what: &str, value: usize| {
            if (1..=LARGEST).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid_spec(format!(
                "{what} must be between 1 and {LARGEST}, but is {value}"
            )))
        };
        sized("the image height", self.img_size[0])?;
        sized("the image width", self.img_size[1])?;
        sized("in_chans", self.in_chans)?;
        sized("stem_width", self.stem_width)?;
        sized("stem_stride", self.stem_stride)?;
        if self.stages.is_empty() {
            return fail("a RegNet needs at least one stage".into());
        }
        let mut blocks = 0;
        let (mut in_chans, mut stride) = (self.stem_width, self.stem_stride);
        for (i, stage) in self.stages.iter().enumerate() {
            let name = format!("s{}", i + 1);
            sized(&format!("the depth of stage {name}"), stage.depth)?;
            sized(&format!("the width of stage {name}"), stage.width)?;
            sized(&format!("the group width of stage {name}"), stage.group_width)?;
            sized(&format!("the stride of stage {name}"), stage.stride)?;
            stride *= stage.stride;
            sized(&format!("the product of the strides up to stage {name}"), stride)?;
            if stage.width % stage.group_width != 0 {
                return fail(format!(
                    "stage {name} has {} channels, which cannot be split into groups of {}",
                    stage.width, stage.group_width
                ));
            }
            for chans in [in_chans, stage.width] {
                let inner = self.se_chans(chans);
                if !(1..=LARGEST).contains(&inner) {
                    return fail(format!(
                        "se_ratio {} gives the squeeze-and-excitation of stage {name} {inner} of {chans} channels; \
                         the published models have 0.25",
                        self.se_ratio
                    ));
                }
            }
            in_chans = stage.width;
            blocks += stage.depth;
        }
        if blocks > MOST_BLOCKS {
            return fail(format!(
                "a RegNet may have {MOST_BLOCKS} blocks, but this has {blocks}"
            ));
        }
        if !(self.bn_eps.is_finite() && self.bn_eps > 0.0) {
            return fail(format!(
                "bn_eps must be a positive number, but is {}",
                self.bn_eps
            ));
        }
        Ok(())
    }

    fn tensors(&self, num_classes: usize) -> Vec<TensorSpec> {
        let at = |depth: usize, tensors: Vec<TensorSpec>| {
            tensors
                .into_iter()
                .map(move |tensor| TensorSpec { depth, ..tensor })
        };
        let blocks = self.blocks();
        let mut out = self.stem().tensors(Init::Ones);
        out.extend(
            blocks
                .iter()
                .enumerate()
                .flat_map(|(i, block)| at(i + 1, block.tensors())),
        );
        out.extend(at(blocks.len() + 1, self.head(num_classes)));
        out
    }

    fn costs(&self, _tokens: &[LayerTokens]) -> Cost {
        let mut cost = Cost { layers: Vec::new() };
        let mut push = |name: &str, tensors: &[TensorSpec], macs| {
            let trained = tensors.iter().filter(|tensor| tensor.role == Role::Parameter);
            cost.push(name, trained.map(TensorSpec::numel).sum(), macs);
        };
        let stem = self.stem();
        push(&stem.name, &stem.tensors(Init::Ones), stem.macs());
        for block in self.blocks() {
            push(&block.name, &block.tensors(), block.macs());
        }
        cost
    }

    fn input_size(&self) -> [usize; 3] {
        [self.in_chans, self.img_size[0], self.img_size[1]]
    }

    fn num_features(&self) -> usize {
        self.stages.last().map_or(self.stem_width, |stage| stage.width)
    }

    fn classifiers(&self) -> Vec<&'static str> {
        vec!["head.fc"]
    }

    fn maps(&self) -> FeatureMaps {
        let blocks = self.blocks();
        let (mut maps, mut ends, mut stride) = (Vec::new(), 0, self.stem_stride);
        for (stage, spec) in self.stages.iter().enumerate() {
            ends += spec.depth;
            stride *= spec.stride;
            let Some(block) = blocks.get(ends.wrapping_sub(1)) else {
                continue;
            };
            maps.push(FeatureMap {
                name: format!("stage{}", stage + 1),
                module: format!("s{}", stage + 1),
                layer: ends - 1,
                channels: spec.width,
                size: block.conv3.in_size,
                stride,
            });
        }
        FeatureMaps::OfStages(maps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ModelSpec, NetworkSpec};

    fn tiny() -> RegNetSpec {
        let stage = |depth, width, stride| RegNetStage {
            depth,
            width,
            group_width: 8,
            stride,
        };
        RegNetSpec {
            img_size: [20, 14],
            in_chans: 3,
            stem_width: 16,
            stem_stride: 2,
            stages: vec![stage(1, 16, 1), stage(2, 64, 2)],
            se_ratio: 0.25,
            bn_eps: 1e-5,
        }
    }

    fn model(regnet: RegNetSpec, num_classes: usize) -> ModelSpec {
        ModelSpec {
            architecture: "tiny".into(),
            num_classes,
            network: NetworkSpec::RegNet(regnet),
            ops: Vec::new(),
        }
    }

    #[test]
    fn names_stand_in_the_order_of_the_forward_pass() {
        let tensors = model(tiny(), 5).tensors().unwrap();
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let norm = [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ];
        assert_eq!(names[0], "stem.conv.weight");
        assert_eq!(names[1..6], norm.map(|part| format!("stem.bn.{part}")));
        let block: Vec<&str> = names
            .iter()
            .filter_map(|name| name.strip_prefix("s2.b1."))
            .collect();
        assert_eq!(
            block[12..16],
            ["se.fc1.weight", "se.fc1.bias", "se.fc2.weight", "se.fc2.bias"]
        );
        assert_eq!(
            (block[6], block[16], block[22]),
            ("conv2.conv.weight", "conv3.conv.weight", "downsample.conv.weight")
        );
        assert!(names.contains(&"s2.b2.conv3.bn.num_batches_tracked"));
        // The first stage keeps width and resolution, so that its shortcut is the identity.
        assert!(
            !names
                .iter()
                .any(|name| name.starts_with("s1.b1.downsample") || name.starts_with("s2.b2.down"))
        );
        assert_eq!(names[names.len() - 2..], ["head.fc.weight", "head.fc.bias"]);
        assert_eq!(model(tiny(), 0).tensors().unwrap().len(), names.len() - 2);
    }

    #[test]
    fn costs_count_trained_tensors_and_odd_sizes() {
        let model = model(tiny(), 5);
        let cost = model.costs().unwrap();
        let tensors = model.tensors().unwrap();
        let trained = tensors.iter().filter(|tensor| tensor.role == Role::Parameter);
        assert_eq!(cost.parameters(), trained.map(TensorSpec::numel).sum::<usize>());
        // 20×14 becomes 10×7 after the stem and 5×4 in the second stage.
        let second_block = 70 * 16 * 64 + 20 * (64 * 8 * 9 + 64 * 64 + 16 * 64) + 2 * 64 * 4;
        let layer = cost.layers.iter().find(|layer| layer.layer == "s2.b1").unwrap();
        assert_eq!(layer.macs, second_block);
        assert_eq!(cost.layers.first().unwrap().macs, 70 * 27 * 16);
        assert_eq!(cost.layers.last().unwrap().macs, 5 * 64);
    }

    #[test]
    fn fresh_weights_have_the_moments_of_their_layer() {
        let weights = model(tiny(), 50).init(3).unwrap();
        let moments = |name: &str| {
            let tensor = weights.get(name).unwrap();
            let values = tensor.to_f32();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / values.len() as f32;
            (mean, variance.sqrt())
        };
        let normal = |name: &str, std: f32| {
            let (mean, found) = moments(name);
            assert!(
                mean.abs() < 0.1 * std && (found / std - 1.0).abs() < 0.1,
                "{name}: {mean}, {found}"
            );
        };
        normal("s2.b1.conv1.conv.weight", (2.0f32 / 64.0).sqrt());
        // A group has 8 outputs.
        normal("s2.b1.conv2.conv.weight", (2.0f32 / (9.0 * 8.0)).sqrt());
        normal("s2.b2.se.fc2.weight", (2.0f32 / 64.0).sqrt());
        normal("head.fc.weight", 0.01);
        for (name, value) in [
            ("s2.b1.conv2.bn.weight", 1.0),
            ("s2.b1.conv3.bn.weight", 0.0),
            ("s2.b1.downsample.bn.weight", 1.0),
            ("s2.b1.conv3.bn.running_var", 1.0),
            ("s2.b1.conv3.bn.running_mean", 0.0),
            ("s2.b1.se.fc1.bias", 0.0),
        ] {
            assert_eq!(moments(name), (value, 0.0), "{name}");
        }
    }

    #[test]
    fn impossible_specs_are_answered_with_a_sentence() {
        let check = |change: &dyn Fn(&mut RegNetSpec), wanted: &str| {
            let mut spec = tiny();
            change(&mut spec);
            let text = spec.validate().unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
        };
        tiny().validate().unwrap();
        check(
            &|spec| spec.img_size[1] = 0,
            "the image width must be between 1 and 4096, but is 0",
        );
        check(
            &|spec| spec.stem_width = usize::MAX,
            "stem_width must be between 1 and 4096",
        );
        check(&|spec| spec.stages.clear(), "at least one stage");
        check(
            &|spec| spec.stages[1].depth = 0,
            "the depth of stage s2 must be between 1 and",
        );
        check(
            &|spec| spec.stages[1].depth = 4000,
            "may have 256 blocks, but this has 4001",
        );
        check(
            &|spec| spec.stages[1].group_width = 24,
            "stage s2 has 64 channels, which cannot be split into groups of 24",
        );
        check(
            &|spec| spec.stages[1].stride = 4096,
            "the product of the strides up to stage s2 must be between 1 and 4096, but is 8192",
        );
        check(&|spec| spec.se_ratio = 0.01, "0 of 16 channels");
        check(&|spec| spec.se_ratio = f64::NAN, "se_ratio NaN");
        check(
            &|spec| spec.bn_eps = 0.0,
            "bn_eps must be a positive number, but is 0",
        );
    }

    #[test]
    fn a_spec_survives_json_and_unknown_keys_do_not() {
        let text = serde_json::to_string(&tiny()).unwrap();
        assert_eq!(serde_json::from_str::<RegNetSpec>(&text).unwrap(), tiny());
        let text = text.replace("se_ratio", "se_width");
        assert!(serde_json::from_str::<RegNetSpec>(&text).is_err());
    }
}
