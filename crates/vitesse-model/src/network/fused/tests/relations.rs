//! Relations of tokens.

use super::*;

fn outcome(seed: u64, compute: Compute) -> Outcome {
    let mut rng = Key::new(seed).with("relations").rng();
    let (samples, tokens) = (between(&mut rng, 1, 3), between(&mut rng, 1, 70));
    let (parts, heads) = ([1, 3][rng.below(2)], between(&mut rng, 1, 3));
    let [own, other] = [(); 2].map(|()| parts * heads * between(&mut rng, 1, 40));
    let student = leaf(
        &normals(&mut rng, samples * tokens * own),
        [samples, tokens, own],
        true,
    );
    let teacher = leaf(
        &normals(&mut rng, samples * tokens * other),
        [samples, tokens, other],
        false,
    );
    let loss = relation_cross_entropy(&student, &teacher, parts, heads, compute);
    let gradients = (loss.clone() * 300.0).backward();
    (values(&loss), vec![gradient(Some(&student), Some(&gradients))])
}

#[test]
fn relations_of_one_matrix_and_of_three() {
    for seed in 0..40 {
        assert_same(
            &outcome(seed, FUSED),
            &outcome(seed, COMPOSED),
            &format!("relations {seed}"),
        );
    }
}

#[test]
fn relations_are_the_same_bits_on_any_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| [3, 4, 5].map(|seed| outcome(seed, FUSED)))
    };
    assert_eq!(run(1), run(3));
}
