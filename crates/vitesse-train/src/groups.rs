//! What a tensor's name and shape say about how it is trained: whether it decays, and its share of the learning rate.
//!
//! *Weight decay* spares tensors of one dimension, biases, `pos_embed` and `cls_token`. It does not spare
//! `dist_token`, an oversight of the reference program which the published weights were trained with; name it in
//! `no_weight_decay` to spare it.
//!
//! *Layer-wise decay* of the learning rate (Bao et al., *BEiT*, 2022, and timm's `--layer-decay`): with `L` blocks the
//! embeddings are layer 0, block `i` is layer `i + 1`, and whatever follows the blocks is layer `L + 1`; layer `l`
//! trains at `decay^(L + 1 − l)` of the rate. In a RegNet the blocks count through all stages.

use std::collections::BTreeSet;

/// How one tensor is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Whether weight decay applies.
    pub decays: bool,
    /// What the learning rate is multiplied by.
    pub lr_scale: f64,
}

/// Tensors of more than one dimension that do not decay.
const NO_DECAY: [&str; 2] = ["pos_embed", "cls_token"];

/// The group of each of `tensors` (name and shape), in the same order. `no_decay` names further tensors that do not
/// decay; `layer_decay` is 1 for equal rates.
pub fn groups(tensors: &[(&str, &[usize])], no_decay: &[String], layer_decay: f64) -> Vec<Group> {
    let blocks: BTreeSet<Place> = tensors
        .iter()
        .map(|(name, _)| place(name))
        .filter(|place| matches!(place, Place::Block(..)))
        .collect();
    let last = blocks.len() + 1;
    let layer = |name: &str| match place(name) {
        Place::Stem => 0,
        Place::Tail => last,
        block => 1 + blocks.iter().position(|other| *other == block).unwrap_or(0),
    };
    let group = |&(name, shape): &(&str, &[usize])| Group {
        decays: shape.len() > 1
            && !name.ends_with(".bias")
            && !NO_DECAY.contains(&name)
            && !no_decay.iter().any(|other| other == name),
        lr_scale: layer_decay.powi((last - layer(name)) as i32),
    };
    tensors.iter().map(group).collect()
}

/// Where in the model a tensor is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Before the blocks.
    Stem,
    /// In a block: the stage (0 in a transformer) and the index.
    Block(usize, usize),
    /// After the blocks.
    Tail,
}

fn place(name: &str) -> Place {
    let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
    let mut parts = name.split('.');
    match parts.next().unwrap_or(name) {
        "cls_token" | "dist_token" | "reg_token" | "pos_embed" | "patch_embed" | "stem" => Place::Stem,
        "blocks" => number(parts.next()).map_or(Place::Tail, |block| Place::Block(0, block)),
        // `ops.<index>.<layer>.<site>` in a block, `ops.<index>.<site>` outside.
        "ops" => match (number(parts.nth(1)), parts.next()) {
            (Some(block), _) => Place::Block(0, block),
            (None, _) if name.contains("patch.out") => Place::Stem,
            _ => Place::Tail,
        },
        // `s2.b3` in a RegNet.
        first => match (
            number(first.strip_prefix('s')),
            number(parts.next().and_then(|b| b.strip_prefix('b'))),
        ) {
            (Some(stage), Some(block)) => Place::Block(stage, block),
            _ => Place::Tail,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSORS: [(&str, &[usize]); 9] = [
        ("cls_token", &[1, 1, 8]),
        ("dist_token", &[1, 1, 8]),
        ("pos_embed", &[1, 5, 8]),
        ("patch_embed.proj.weight", &[8, 3, 4, 4]),
        ("blocks.0.attn.qkv.weight", &[24, 8]),
        ("blocks.0.norm1.weight", &[8]),
        ("blocks.1.attn.qkv.bias", &[24]),
        ("norm.weight", &[8]),
        ("head.weight", &[10, 8]),
    ];

    #[test]
    fn decay_follows_the_reference_and_can_spare_more() {
        let decays = |no_decay: &[String]| -> Vec<bool> {
            groups(&TENSORS, no_decay, 1.0)
                .iter()
                .map(|group| group.decays)
                .collect()
        };
        assert_eq!(
            decays(&[]),
            [false, true, false, true, true, false, false, false, true]
        );
        assert!(!decays(&["dist_token".into()])[1]);
        assert!(
            groups(&TENSORS, &[], 1.0)
                .iter()
                .all(|group| group.lr_scale == 1.0)
        );
    }

    #[test]
    fn layers_count_from_the_embeddings_to_the_head() {
        let scales: Vec<f64> = groups(&TENSORS, &[], 0.5)
            .iter()
            .map(|group| group.lr_scale)
            .collect();
        assert_eq!(scales, [0.125, 0.125, 0.125, 0.125, 0.25, 0.25, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn stages_and_ops_have_their_places() {
        assert_eq!(place("stem.conv.weight"), Place::Stem);
        assert_eq!(place("s2.b13.conv1.conv.weight"), Place::Block(2, 13));
        assert_eq!(place("head.fc.weight"), Place::Tail);
        assert_eq!(place("ops.0.3.attn.in.scale"), Place::Block(0, 3));
        assert_eq!(place("ops.1.patch.out.scale"), Place::Stem);
        assert_eq!(place("ops.1.final.norm.scale"), Place::Tail);
        let shape: &[usize] = &[1];
        let stages = [("s1.b1.w", shape), ("s1.b2.w", shape), ("s2.b1.w", shape)];
        let scales: Vec<f64> = groups(&stages, &[], 0.5)
            .iter()
            .map(|group| group.lr_scale)
            .collect();
        assert_eq!(scales, [0.125, 0.25, 0.5]);
    }
}
