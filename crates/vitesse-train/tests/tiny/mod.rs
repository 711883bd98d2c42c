//! What the tests of this crate share, those inside of it too: a model that learns in no time, and pictures in memory.

#![allow(dead_code, clippy::unwrap_used)]

use vitesse_data::{DataSet, Image, Result, Samples};
use vitesse_model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse_model::{Checkpoint, ModelSpec};
use vitesse_rng::{Key, Rng};

/// Classes of everything here.
pub(crate) const CLASSES: usize = 3;

/// Two blocks of width 12 on images of 8 pixels.
pub(crate) fn vit(seed: u64) -> Checkpoint {
    let body = VitSpec::plain(8, 4, 12, 2, 3, vec![PrefixToken::Class]);
    checkpoint("vit_nano_patch4_32", NetworkSpec::Vit(body), seed)
}

/// A network with fresh weights.
pub(crate) fn checkpoint(architecture: &str, network: NetworkSpec, seed: u64) -> Checkpoint {
    let spec = ModelSpec {
        architecture: architecture.into(),
        num_classes: CLASSES,
        network,
        ops: Vec::new(),
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

/// How a picture comes to be.
type Draw = fn(usize) -> Result<Image>;

/// Pictures that are drawn whenever one is asked for.
#[derive(Debug)]
struct Pictures(usize, Draw);

impl Samples for Pictures {
    fn len(&self) -> usize {
        self.0
    }

    fn label(&self, index: usize) -> Option<usize> {
        Some(index % CLASSES)
    }

    fn name(&self, index: usize) -> String {
        format!("picture-{index}")
    }

    fn load(&self, index: usize) -> Result<Image> {
        self.1(index)
    }
}

/// `n` pictures, the classes in turn.
pub(crate) fn pictures(n: usize, draw: Draw) -> DataSet {
    DataSet::new(
        Pictures(n, draw),
        (0..CLASSES).map(|class| class.to_string()).collect(),
    )
}

/// 8 × 8 pixels, of which `value` says every number, given its channel.
pub(crate) fn picture(index: usize, value: impl Fn(usize, &mut Rng) -> usize) -> Result<Image> {
    let mut rng = Key::new(3).at(index as u64).rng();
    Image::new(
        8,
        8,
        (0..8 * 8 * 3).map(|i| value(i % 3, &mut rng) as u8).collect(),
    )
}

/// A picture of noise.
pub(crate) fn noise(index: usize) -> Result<Image> {
    picture(index, |_, rng| rng.below(256))
}
