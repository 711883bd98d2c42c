//! What the unit tests share: tiny models and a data set in memory.

use vitesse_data::{DataSet, Error, Image, Preprocess, Samples};
use vitesse_model::spec::{NetworkSpec, PrefixToken, RegNetSpec, RegNetStage, VitSpec};
use vitesse_model::{Checkpoint, ModelSpec};
use vitesse_rng::Key;

/// Classes of everything here.
pub(crate) const CLASSES: usize = 3;

/// Three blocks of width 12 on images of 8 pixels, distilled.
pub(crate) fn vit(seed: u64) -> Checkpoint {
    let prefix = vec![PrefixToken::Class, PrefixToken::Distillation];
    let body = NetworkSpec::Vit(VitSpec::plain(8, 4, 12, 3, 3, prefix));
    checkpoint("deit_micro_distilled_patch4_32", body, seed)
}

/// Two stages of one block on images of 8 pixels.
pub(crate) fn regnet(seed: u64) -> Checkpoint {
    let stage = |width| RegNetStage {
        depth: 1,
        width,
        group_width: 4,
        stride: 2,
    };
    let body = NetworkSpec::RegNet(RegNetSpec {
        img_size: [8, 8],
        in_chans: 3,
        stem_width: 4,
        stem_stride: 1,
        stages: vec![stage(8), stage(12)],
        se_ratio: 0.25,
        bn_eps: 1e-5,
    });
    checkpoint("regnety_nano_32", body, seed)
}

fn checkpoint(architecture: &str, network: NetworkSpec, seed: u64) -> Checkpoint {
    let spec = ModelSpec {
        architecture: architecture.into(),
        num_classes: CLASSES,
        network,
    };
    let tensors = spec.init(seed).unwrap();
    let mut checkpoint = Checkpoint {
        spec,
        tensors,
        config: Default::default(),
        source: Default::default(),
    };
    checkpoint.config.pretrained_cfg.crop_pct = 1.0;
    checkpoint
}

/// How images are prepared for the models here.
pub(crate) fn prepared() -> Preprocess {
    let checkpoint = vit(0);
    crate::prepare::preprocess(&checkpoint.spec, &checkpoint.config.pretrained_cfg).unwrap()
}

/// Noise of 8 x 8 pixels; every 10th picture from the 5th on cannot be read.
#[derive(Debug)]
struct Noise(usize);

impl Samples for Noise {
    fn len(&self) -> usize {
        self.0
    }

    fn label(&self, index: usize) -> Option<usize> {
        Some(index % CLASSES)
    }

    fn name(&self, index: usize) -> String {
        format!("noise-{index}")
    }

    fn load(&self, index: usize) -> vitesse_data::Result<Image> {
        if index % 10 == 5 {
            return Err(Error::Decode {
                name: self.name(index),
                reason: "torn".into(),
            });
        }
        let mut rng = Key::new(index as u64).rng();
        Image::new(8, 8, (0..8 * 8 * 3).map(|_| rng.below(256) as u8).collect())
    }
}

/// Labelled noise.
pub(crate) fn noise(n: usize) -> DataSet {
    DataSet::new(Noise(n), (0..CLASSES).map(|class| class.to_string()).collect())
}
