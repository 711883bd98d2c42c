//! Transformers so small that a test can cut them a hundred times.
#![allow(dead_code, clippy::unwrap_used)]

use vitesse::model::spec::{NetworkSpec, PrefixToken, SwinSpec, VitSpec};
use vitesse::model::{ModelSpec, Tensors};
use vitesse::rng::Key;

/// A description with five classes around a vision transformer.
pub(crate) fn model(vit: VitSpec) -> ModelSpec {
    ModelSpec {
        architecture: "deit_micro_patch4_32".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(vit),
        ops: Vec::new(),
    }
}

/// Three blocks of three heads of eight, with twenty hidden units each.
pub(crate) fn plain() -> ModelSpec {
    let mut vit = VitSpec::plain(16, 4, 24, 3, 3, vec![PrefixToken::Class]);
    vit.cores
        .iter_mut()
        .for_each(|core| core.mlp.as_mut().unwrap().hidden = 20);
    model(vit)
}

/// A description with five classes around a Swin.
pub(crate) fn swin(swin: SwinSpec) -> ModelSpec {
    ModelSpec {
        architecture: "swin_nano_patch2_window4_32".into(),
        num_classes: 5,
        network: NetworkSpec::Swin(swin),
        ops: Vec::new(),
    }
}

/// Two stages of two blocks, 12 and 24 wide, of three heads and twenty hidden units each; the windows of 3 by 3 fit neither the map of
/// 8 by 8 nor that of 4 by 4.
pub(crate) fn plain_swin() -> ModelSpec {
    let mut body = SwinSpec::plain(16, 2, 3, 12, &[2, 2], &[3, 3]);
    body.cores
        .iter_mut()
        .for_each(|core| core.mlp.as_mut().unwrap().hidden = 20);
    swin(body)
}

/// Every tensor at random, biases too.
pub(crate) fn weights(spec: &ModelSpec, seed: u64) -> Tensors {
    let mut out = Tensors::new();
    for tensor in spec.tensors().unwrap() {
        let mut rng = Key::new(seed).with(&tensor.name).rng();
        let values = (0..tensor.numel()).map(|_| rng.uniform_in(-0.5, 0.6) as f32);
        out.insert_f32(&tensor.name, &tensor.shape, values.collect())
            .unwrap();
    }
    out
}
