//! How each tensor is trained: whether it decays, and its share of the learning rate.
//!
//! *Weight decay* spares what the spec spares ([`TensorSpec::decays`]), and what `no_weight_decay` names: `dist_token`, for
//! one, which the reference program forgot.
//!
//! *Layer-wise decay* of the learning rate (Bao et al., *BEiT*, 2022, and timm's `--layer-decay`): with `L` blocks a tensor
//! of depth `d` ([`TensorSpec::depth`], from 0 for the embeddings to `L + 1` for what follows the blocks) trains at
//! `decay^(L + 1 − d)` of the rate.

use vitesse_model::spec::TensorSpec;

/// How one tensor is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Whether weight decay applies.
    pub decays: bool,
    /// What the learning rate is multiplied by.
    pub lr_scale: f64,
}

/// The group of each of `tensors` of a model with `depth` blocks, in the same order. `no_decay` names further tensors that
/// do not decay; `layer_decay` is 1 for equal rates.
pub fn groups(tensors: &[TensorSpec], depth: usize, no_decay: &[String], layer_decay: f64) -> Vec<Group> {
    let group = |tensor: &TensorSpec| Group {
        decays: tensor.decays && !no_decay.contains(&tensor.name),
        lr_scale: layer_decay.powi((depth + 1).saturating_sub(tensor.depth) as i32),
    };
    tensors.iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use vitesse_model::ops::{OpKind, OpSpec, ScaleShift};
    use vitesse_model::spec::{LayerSpec, NetworkSpec};
    use vitesse_model::{ModelSpec, Site, Sites, zoo};

    fn of(spec: &ModelSpec, no_decay: &[String], layer_decay: f64) -> BTreeMap<String, Group> {
        let tensors = spec.tensors().unwrap();
        let groups = groups(&tensors, spec.depth(), no_decay, layer_decay);
        tensors
            .into_iter()
            .map(|tensor| tensor.name)
            .zip(groups)
            .collect()
    }

    #[test]
    fn decay_follows_the_reference_and_can_spare_more() {
        let spec = zoo::get("deit_micro_distilled_patch4_32").unwrap().spec;
        let found = of(&spec, &[], 1.0);
        for (name, decays) in [
            ("cls_token", false),
            ("dist_token", true),
            ("pos_embed", false),
            ("patch_embed.proj.weight", true),
            ("patch_embed.proj.bias", false),
            ("blocks.0.attn.qkv.weight", true),
            ("blocks.0.norm1.weight", false),
            ("blocks.1.attn.qkv.bias", false),
            ("head_dist.weight", true),
        ] {
            assert_eq!(found[name].decays, decays, "{name}");
        }
        assert!(found.values().all(|group| group.lr_scale == 1.0));
        assert!(!of(&spec, &["dist_token".into()], 1.0)["dist_token"].decays);
    }

    #[test]
    fn layers_count_from_the_embeddings_to_the_head() {
        let mut spec = zoo::get("deit_micro_patch4_32").unwrap().spec;
        let NetworkSpec::Vit(vit) = &mut spec.network else {
            panic!("no vision transformer");
        };
        vit.cores.truncate(2);
        vit.layers = [0, 1, 0].map(LayerSpec::of).to_vec();
        let op = |site, layer| OpSpec {
            site,
            layer,
            kind: OpKind::ScaleShift(ScaleShift { shift: false }),
        };
        spec.ops = vec![
            op(Site::AttnIn, Some(2)),
            op(Site::PatchOut, None),
            op(Site::FinalNorm, None),
        ];
        let found = of(&spec, &[], 0.5);
        for (name, scale) in [
            ("cls_token", 0.0625),
            ("patch_embed.proj.weight", 0.0625),
            // A matrix that two layers share stands with the first.
            ("blocks.0.mlp.fc1.weight", 0.125),
            ("blocks.1.mlp.fc1.weight", 0.25),
            ("blocks.2.norm2.bias", 0.5),
            ("norm.weight", 1.0),
            ("head.weight", 1.0),
            ("ops.0.2.attn.in.scale", 0.5),
            ("ops.1.patch.out.scale", 0.0625),
            ("ops.2.final.norm.scale", 1.0),
        ] {
            assert_eq!(found[name].lr_scale, scale, "{name}");
        }
        // Through all stages of a convolutional network.
        let spec = zoo::get("regnety_nano_32").unwrap().spec;
        let found = of(&spec, &[], 0.5);
        let last = spec.depth() as i32;
        for (name, depth) in [
            ("stem.conv.weight", 0),
            ("s1.b1.conv1.bn.weight", 1),
            ("head.fc.bias", last + 1),
        ] {
            assert_eq!(found[name].lr_scale, 0.5f64.powi(last + 1 - depth), "{name}");
        }
        let second = found["s2.b1.conv1.conv.weight"];
        assert!(second.decays && second.lr_scale > found["s1.b1.conv1.conv.weight"].lr_scale);
    }
}
