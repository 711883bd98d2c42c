//! Vision transformers by name: timm's ViT, DeiT and image encoders of CLIP, and small ones of our own for images of 32 pixels.
//!
//! Papers: Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021; Radford et al., ICML 2021. Normalisation and crop are
//! those with which timm evaluates the published weights of these names, and the classes are theirs.

use super::Entry;
use crate::config::PretrainedCfg;
use crate::config::preprocessor::{CLIP_MEAN, CLIP_STD};
use crate::spec::{Activation, ModelSpec, NetworkSpec, Pool, PrefixToken, VitSpec};

/// What the rows of one family have in common.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    /// Images scaled to ±1, a class token.
    Vit,
    /// ImageNet's mean and deviation, a class token.
    Deit,
    /// As [`Family::Deit`], with a distillation token and its head.
    Distilled,
    /// As [`Family::Deit`], without a class token: the head reads the mean of the patches, as Mini-DeiT's does.
    Pooled,
    /// CLIP's mean and deviation, a norm before the blocks; 1000 classes of later training.
    Clip,
    /// As [`Family::Clip`] with the quick GELU; the head is the projection to what images and texts have in common.
    ClipQuick,
}
use Family::{Clip, ClipQuick, Deit, Distilled, Pooled, Vit};

/// Name, family, image side, patch side, width, blocks, heads, crop ratio.
type Row = (&'static str, Family, usize, usize, usize, usize, usize, f64);

#[rustfmt::skip]
const TIMM: [Row; 24] = [
    ("vit_tiny_patch16_224",             Vit,       224, 16,  192, 12,  3, 0.9),
    ("vit_tiny_patch16_384",             Vit,       384, 16,  192, 12,  3, 1.0),
    ("vit_small_patch16_224",            Vit,       224, 16,  384, 12,  6, 0.9),
    ("vit_small_patch16_384",            Vit,       384, 16,  384, 12,  6, 1.0),
    ("vit_base_patch16_224",             Vit,       224, 16,  768, 12, 12, 0.9),
    ("vit_base_patch16_384",             Vit,       384, 16,  768, 12, 12, 1.0),
    ("vit_base_patch32_224",             Vit,       224, 32,  768, 12, 12, 0.9),
    ("vit_large_patch16_224",            Vit,       224, 16, 1024, 24, 16, 0.9),
    ("vit_large_patch16_384",            Vit,       384, 16, 1024, 24, 16, 1.0),
    ("deit_tiny_patch16_224",            Deit,      224, 16,  192, 12,  3, 0.9),
    ("deit_small_patch16_224",           Deit,      224, 16,  384, 12,  6, 0.9),
    ("deit_base_patch16_224",            Deit,      224, 16,  768, 12, 12, 0.9),
    ("deit_base_patch16_384",            Deit,      384, 16,  768, 12, 12, 1.0),
    ("deit_tiny_distilled_patch16_224",  Distilled, 224, 16,  192, 12,  3, 0.9),
    ("deit_small_distilled_patch16_224", Distilled, 224, 16,  384, 12,  6, 0.9),
    ("deit_base_distilled_patch16_224",  Distilled, 224, 16,  768, 12, 12, 0.9),
    ("deit_base_distilled_patch16_384",  Distilled, 384, 16,  768, 12, 12, 1.0),
    ("vit_base_patch32_clip_224",            Clip,      224, 32,  768, 12, 12, 0.9),
    ("vit_base_patch32_clip_quickgelu_224",  ClipQuick, 224, 32,  768, 12, 12, 0.9),
    ("vit_base_patch16_clip_224",            Clip,      224, 16,  768, 12, 12, 0.95),
    ("vit_base_patch16_clip_quickgelu_224",  ClipQuick, 224, 16,  768, 12, 12, 1.0),
    ("vit_large_patch14_clip_224",           Clip,      224, 14, 1024, 24, 16, 1.0),
    ("vit_large_patch14_clip_quickgelu_224", ClipQuick, 224, 14, 1024, 24, 16, 1.0),
    ("vit_large_patch14_clip_quickgelu_336", ClipQuick, 336, 14, 1024, 24, 16, 1.0),
];

#[rustfmt::skip]
const OURS: [Row; 10] = [
    ("deit_nano_patch8_32",              Deit,       32,  8,   64,  4,  2, 1.0),
    ("deit_nano_distilled_patch8_32",    Distilled,  32,  8,   64,  4,  2, 1.0),
    ("vit_nano_patch4_32",               Vit,        32,  4,   64,  4,  2, 1.0),
    ("vit_micro_patch4_32",              Vit,        32,  4,   96,  6,  3, 1.0),
    ("deit_micro_patch4_32",             Deit,       32,  4,   96,  6,  3, 1.0),
    ("deit_micro_distilled_patch4_32",   Distilled,  32,  4,   96,  6,  3, 1.0),
    // For studies of sharing: eight layers, which share in pairs; four with about as many parameters; and a wider teacher.
    ("deit_micro_depth8_patch4_gap_32",  Pooled,     32,  4,   96,  8,  3, 1.0),
    ("deit_micro_depth4_patch4_gap_32",  Pooled,     32,  4,   96,  4,  3, 1.0),
    ("deit_tiny_depth8_patch4_gap_32",   Pooled,     32,  4,  192,  8,  3, 1.0),
    ("vit_nano_patch8_clip_quickgelu_32", ClipQuick, 32,  8,   64,  4,  2, 1.0),
];

/// The names that [`get`] knows: ours, then timm's.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OURS.iter().chain(&TIMM).map(|row| row.0)
}

/// The entry of this name.
pub(super) fn get(name: &str) -> Option<Entry> {
    let timm = TIMM.iter().find(|row| row.0 == name);
    let &(name, family, image, patch, dim, depth, heads, crop_pct) =
        timm.or_else(|| OURS.iter().find(|row| row.0 == name))?;
    let prefix = match family {
        Distilled => vec![PrefixToken::Class, PrefixToken::Distillation],
        Pooled => Vec::new(),
        Vit | Deit | Clip | ClipQuick => vec![PrefixToken::Class],
    };
    let timm_name = match family {
        _ if timm.is_some() => name,
        Vit => "vit_tiny_patch16_224",
        Deit | Pooled => "deit_tiny_patch16_224",
        Distilled => "deit_tiny_distilled_patch16_224",
        Clip => "vit_base_patch32_clip_224",
        ClipQuick => "vit_base_patch32_clip_quickgelu_224",
    };
    let imagenet = PretrainedCfg::default();
    let (mean, std) = match family {
        Vit => (vec![0.5; 3], vec![0.5; 3]),
        // Published weights of this name were trained with images scaled to ±1.
        Clip if dim == 1024 => (vec![0.5; 3], vec![0.5; 3]),
        Deit | Distilled | Pooled => (imagenet.mean.clone(), imagenet.std.clone()),
        Clip | ClipQuick => (CLIP_MEAN.to_vec(), CLIP_STD.to_vec()),
    };
    let plain = VitSpec::plain(image, patch, dim, depth, heads, prefix);
    let vit = match family {
        Vit | Deit | Distilled => plain,
        Pooled => VitSpec {
            pool: Pool::Avg,
            ..plain
        },
        Clip => plain.into_clip(Activation::Gelu),
        ClipQuick => plain.into_clip(Activation::QuickGelu),
    };
    let num_classes = match family {
        _ if timm.is_none() => 10,
        // OpenAI's projections are so wide.
        ClipQuick if dim == 768 => 512,
        ClipQuick => 768,
        _ => 1000,
    };
    Some(Entry {
        spec: ModelSpec {
            architecture: name.to_owned(),
            num_classes,
            network: NetworkSpec::Vit(vit),
            ops: Vec::new(),
        },
        pretrained_cfg: PretrainedCfg {
            crop_pct,
            mean,
            std,
            ..imagenet
        },
        timm_name,
    })
}
