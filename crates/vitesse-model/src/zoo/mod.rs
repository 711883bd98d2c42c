//! Models by name.
//!
//! The published models have timm's names. Our own, for images of 32 pixels, are there to train and test without a
//! download. timm can build our transformers too, from another name and a few arguments ([`Entry::timm_name`]).

pub mod imagenet;
mod minivit;
pub mod regnet;
mod swin;
mod vit;

use crate::config::PretrainedCfg;
use crate::error::nearest;
use crate::spec::{ModelSpec, NetworkSpec};
use crate::{Error, Result};

pub use minivit::transformations;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The model, with as many classes as its published weights have, or 10 if it is ours.
    pub spec: ModelSpec,
    /// How images are prepared for it. Tag and licence are empty: they belong to weights, not to an architecture.
    pub pretrained_cfg: PretrainedCfg,
    /// The name under which timm builds it. Where it is not the architecture's own, timm needs `model_args` besides;
    /// our RegNetYs stand under their own name, which timm refuses, since no argument makes it build them.
    pub timm_name: &'static str,
}

/// Every name, small models first within a family.
pub fn names() -> impl Iterator<Item = &'static str> {
    vit::names()
        .chain(swin::names())
        .chain(minivit::names())
        .chain(regnet::NAMES)
}

/// What `name` stands for. A trailing tag, as in `deit_tiny_patch16_224.fb_in1k`, says where weights come from and is
/// ignored. An unknown name is an error with the names closest to it, or with all.
pub fn get(name: &str) -> Result<Entry> {
    let bare = name.split_once('.').map_or(name, |(bare, _tag)| bare);
    vit::get(bare)
        .or_else(|| swin::get(bare))
        .or_else(|| minivit::get(bare))
        .or_else(|| regnet(bare))
        .ok_or_else(|| Error::UnknownArchitecture {
            name: name.to_owned(),
            similar: nearest(bare, names()),
        })
}

fn regnet(name: &str) -> Option<Entry> {
    let name = *regnet::NAMES.iter().find(|known| **known == name)?;
    let spec = regnet::get(name)?;
    let ours = spec.img_size == [32, 32];
    // timm's evaluation of the weights it takes for a name; those that were trained for it gain from larger images.
    let (crop_pct, test_side) = match name {
        _ if ours => (1.0, None),
        "regnety_004" | "regnety_016" => (0.965, None),
        "regnety_002" | "regnety_008" => (0.875, None),
        _ => (0.95, Some(288)),
    };
    Some(Entry {
        pretrained_cfg: PretrainedCfg {
            crop_pct,
            test_input_size: test_side.map(|side| [3, side, side]),
            test_crop_pct: test_side.map(|_| 1.0),
            pool_size: Some(if ours { [4, 4] } else { [7, 7] }),
            ..PretrainedCfg::default()
        },
        spec: ModelSpec {
            architecture: name.to_owned(),
            num_classes: if ours { 10 } else { 1000 },
            network: NetworkSpec::RegNet(spec),
            ops: Vec::new(),
        },
        timm_name: name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_for_a_possible_model_of_that_name() {
        for name in names() {
            let entry = get(name).unwrap();
            assert_eq!(entry.spec.architecture, name);
            entry.spec.validate().unwrap();
            assert_eq!(get(&format!("{name}.fb_in1k")).unwrap(), entry);
            // What timm builds it from is itself a name of timm's.
            assert_eq!(get(entry.timm_name).unwrap().timm_name, entry.timm_name);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_closest() {
        let text = get("deit_tinny_patch16_224").unwrap_err().to_string();
        assert!(text.contains("did you mean `deit_tiny_patch16_224`"), "{text}");
        let stranger = get("swiss_cheese").unwrap_err();
        assert_eq!(stranger.code(), "E_ARCH_UNKNOWN");
        let counted = format!("none of the {} known ones", names().count());
        assert!(stranger.to_string().contains(&counted), "{stranger}");
    }
}
