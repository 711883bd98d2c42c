//! Training's relations of tokens against their plain version, for every instruction set.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::training::{agree_within, maths};
use common::{between, normals, rng};
use vitesse_kernels::train::{Relations, reference};

#[test]
fn relations_are_the_plain_ones() {
    for case in 0..16u64 {
        let mut rng = rng("relations", case);
        let (samples, tokens) = (between(&mut rng, 1, 3), between(&mut rng, 2, 80));
        let (parts, heads) = ([1, 3][case as usize % 2], between(&mut rng, 1, 3));
        let model = |rng: &mut vitesse_rng::Rng| {
            let width = between(rng, 2, 70);
            normals(rng, samples * tokens * parts * heads * width)
        };
        let (student, teacher) = (model(&mut rng), model(&mut rng));
        let relations = Relations {
            student: &student,
            teacher: &teacher,
            samples,
            tokens,
            parts,
            heads,
        };
        let expected = reference::relation_cross_entropy(&relations);
        // The numbers are small: with the limit of the largest.
        let large = |gradient: &[f32]| -> Vec<f32> {
            let rows = (samples * tokens * heads * parts) as f32;
            gradient.iter().map(|x| x * rows).collect()
        };
        for math in maths() {
            let name = format!("{samples} samples of {tokens} tokens, {parts} parts, {heads} heads");
            let found = relations.cross_entropy(math);
            agree_within(1.0, &format!("loss of {name}"), math, &[found.0], &[expected.0]);
            agree_within(
                2.0,
                &format!("gradient of {name}"),
                math,
                &large(&found.1),
                &large(&expected.1),
            );
        }
    }
}
