//! MiniViTs by name: DeiT and Swin whose layers share matrices and differ by small transformations.
//!
//! Paper: Zhang et al., *MiniViT: Compressing Vision Transformers with Weight Multiplexing*, CVPR 2022. Mini-DeiT has no class token: the
//! head reads the mean of the patches. Crops are those of the published evaluation, which resizes to 256/224 of the image's side.

use super::Entry;
use crate::config::PretrainedCfg;
use crate::ops::{OpSpec, Transformation};
use crate::spec::{Groups, ModelSpec, NetworkSpec, NormsOf, Pool};

/// Name, the model that it is made of, sizes of its groups.
type Row = (&'static str, &'static str, &'static [usize]);

const PAIRS: &[usize] = &[2; 6];
const PAIRS_OF_24: &[usize] = &[2; 12];

#[rustfmt::skip]
const PUBLISHED: [Row; 9] = [
    ("mini_deit_tiny_patch16_224",         "deit_tiny_patch16_224",         PAIRS),
    ("mini_deit_small_patch16_224",        "deit_small_patch16_224",        PAIRS),
    ("mini_deit_base_patch16_224",         "deit_base_patch16_224",         PAIRS),
    ("mini_deit_base_patch16_384",         "deit_base_patch16_384",         PAIRS),
    // The articles' 9 M model: one block that is executed 12 times.
    ("mini_deit_base_share12_patch16_224", "deit_base_patch16_224",         &[12]),
    ("mini_swin_tiny_patch4_window7_224",  "swin_tiny_patch4_window7_224",  &[2, 2, 6, 2]),
    ("mini_swin_small_patch4_window7_224", "swin_small_patch4_window7_224", PAIRS_OF_24),
    ("mini_swin_base_patch4_window7_224",  "swin_base_patch4_window7_224",  PAIRS_OF_24),
    ("mini_swin_base_patch4_window12_384", "swin_base_patch4_window12_384", PAIRS_OF_24),
];

/// The names that [`get`] knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PUBLISHED.iter().map(|row| row.0)
}

/// The entry of this name.
pub(super) fn get(name: &str) -> Option<Entry> {
    let &(name, base, sizes) = PUBLISHED.iter().find(|row| row.0 == name)?;
    let base = super::get(base).ok()?;
    let mut spec = base
        .spec
        .share(&Groups::Sizes(sizes.to_vec()), NormsOf::Layer)
        .ok()?;
    spec.architecture = name.to_owned();
    match &mut spec.network {
        NetworkSpec::Vit(vit) => {
            vit.prefix.clear();
            vit.pool = Pool::Avg;
        }
        NetworkSpec::Swin(swin) => swin.mask_unshifted = true,
        NetworkSpec::RegNet(_) => return None,
    }
    spec.ops = transformations(&spec);
    Some(Entry {
        spec,
        pretrained_cfg: PretrainedCfg {
            crop_pct: 0.875,
            ..base.pretrained_cfg
        },
        timm_name: base.timm_name,
    })
}

/// What the published models put into each layer so that layers with the same matrices differ. In a ViT relative positions of keys
/// and the mixing of heads before and after the softmax; in a Swin the mixing, with biases, and a local convolution between the sub-layers.
pub fn transformations(spec: &ModelSpec) -> Vec<OpSpec> {
    spec.transformed_by(&Transformation::published(spec))
}
