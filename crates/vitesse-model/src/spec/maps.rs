//! Feature maps: what detectors and segmenters read of a network.
//!
//! A network with stages gives a map a stage, each at a larger stride than the one before; a vision transformer of one width
//! the grid of its patches, after any of its layers. A map is what leaves a block, before any norm that follows: that of timm's
//! `features_only`, and of `forward_intermediates` with `norm=False`.

use serde::Serialize;

use super::ModelSpec;
use crate::ops::OpSpec;
use crate::{Error, Result};

/// A feature map, `[channels, height, width]` an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeatureMap {
    /// `stage1`, `stage2`, … in a network with stages; `layer12` after the twelfth layer of a vision transformer.
    pub name: String,
    /// timm's name of the module that it leaves, such as `layers.0`, `s1` or `blocks.11`.
    pub module: String,
    /// The layer that it leaves, counted from 0.
    #[serde(skip)]
    pub layer: usize,
    /// Its channels: the width of the tokens.
    pub channels: usize,
    /// Its height and width.
    pub size: [usize; 2],
    /// Pixels of the image from one of its positions to the next.
    pub stride: usize,
}

/// The maps that a family has.
#[derive(Debug)]
pub(crate) enum FeatureMaps {
    /// One a stage.
    OfStages(Vec<FeatureMap>),
    /// One a layer, all of one size.
    OfLayers(Vec<FeatureMap>),
}

impl FeatureMap {
    /// Numbers of an image.
    pub fn numel(&self) -> usize {
        self.channels * self.size[0] * self.size[1]
    }
}

impl ModelSpec {
    /// The feature maps of a network with stages, one a stage; of a vision transformer those after these `layers`, counted
    /// from 1, and the one after the last where none are given. They stand in the order of the forward pass.
    ///
    /// # Errors
    /// A layer that the model does not have; layers of a network with stages.
    pub fn feature_maps(&self, layers: &[usize]) -> Result<Vec<FeatureMap>> {
        self.validate()?;
        let name = &self.architecture;
        let mut maps = match self.family().maps() {
            FeatureMaps::OfStages(maps) if layers.is_empty() => return Ok(maps),
            FeatureMaps::OfStages(maps) => {
                return Err(Error::invalid_spec(format!(
                    "`{name}` has a feature map for each of its {} stages, and none at chosen layers; leave the layers out",
                    maps.len()
                )));
            }
            FeatureMaps::OfLayers(maps) => maps,
        };
        let last = maps.len();
        if last == 0 {
            return Err(Error::invalid_spec(format!(
                "`{name}` has no layers, and so no feature maps"
            )));
        }
        let first_drop = self.first_drop();
        if let Some(wrong) = layers.iter().find(|layer| !(1..=last).contains(layer)) {
            return Err(Error::invalid_spec(format!(
                "`{name}` has the layers 1 to {last}, and {wrong} is none of them; timm counts them from 0, its 0 is layer 1"
            )));
        }
        maps.retain(|map| match layers {
            [] => map.layer + 1 == last,
            layers => layers.contains(&(map.layer + 1)),
        });
        let holey = maps
            .iter()
            .find(|map| first_drop.is_some_and(|drop| map.layer >= drop));
        if let Some(map) = holey {
            return Err(Error::invalid_spec(format!(
                "the map after layer {} of `{name}` would have holes, since tokens leave from layer {} on; take maps of earlier layers, or a \
                 model whose tokens merge",
                map.layer + 1,
                first_drop.unwrap_or(0) + 1
            )));
        }
        Ok(maps)
    }

    /// The first layer in which tokens leave, so that some cells of the map have none any more; where they merge, all have one.
    fn first_drop(&self) -> Option<usize> {
        let drops = |op: &OpSpec| op.kind.drops_tokens();
        if !self.ops.iter().any(drops) {
            return None;
        }
        let counts = self.sites().token_counts();
        let patches = counts.first()?.entering.patches;
        counts.iter().position(|layer| layer.perceptron.patches < patches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    #[test]
    fn stages_have_strides_and_layers_are_chosen() {
        let of = |name: &str, layers: &[usize]| zoo::get(name).unwrap().spec.feature_maps(layers).unwrap();
        let map = |name: &str, module: &str, layer, channels, side, stride| FeatureMap {
            name: name.to_owned(),
            module: module.to_owned(),
            layer,
            channels,
            size: [side; 2],
            stride,
        };
        assert_eq!(
            of("swin_tiny_patch4_window7_224", &[]),
            [
                map("stage1", "layers.0", 1, 96, 56, 4),
                map("stage2", "layers.1", 3, 192, 28, 8),
                map("stage3", "layers.2", 9, 384, 14, 16),
                map("stage4", "layers.3", 11, 768, 7, 32),
            ]
        );
        assert_eq!(
            of("regnety_002", &[]),
            [
                map("stage1", "s1", 0, 24, 56, 4),
                map("stage2", "s2", 1, 56, 28, 8),
                map("stage3", "s3", 5, 152, 14, 16),
                map("stage4", "s4", 12, 368, 7, 32),
            ]
        );
        let layer12 = map("layer12", "blocks.11", 11, 192, 14, 16);
        assert_eq!(
            of("deit_tiny_distilled_patch16_224", &[]),
            std::slice::from_ref(&layer12)
        );
        // In the order of the forward pass, each once.
        assert_eq!(
            of("deit_tiny_patch16_224", &[12, 3, 12]),
            [map("layer3", "blocks.2", 2, 192, 14, 16), layer12]
        );
    }

    #[test]
    fn layers_that_are_not_there_are_refused() {
        for (name, layers, said) in [
            ("deit_tiny_patch16_224", &[0][..], "layers 1 to 12, and 0 is none"),
            ("deit_tiny_patch16_224", &[3, 13], "and 13 is none"),
            ("swin_tiny_patch4_window7_224", &[1], "each of its 4 stages"),
        ] {
            let error = zoo::get(name).unwrap().spec.feature_maps(layers).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
