//! Training's attention with mixed heads and relative positions against its plain version, for every instruction set.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::training::{agree, agree_within, maths};
use common::{between, normals, rng};
use vitesse_kernels::train::{
    Attention, MixedAttention, Mixing, MixingGradients, Positions, Terms, reference,
};
use vitesse_rng::Rng;

/// What a case is made of; empty is absent.
struct Case {
    batch: usize,
    tokens: usize,
    qk: Vec<usize>,
    v: Vec<usize>,
    qkv: Vec<f32>,
    grad: Vec<f32>,
    terms: Option<[Vec<f32>; 2]>,
    positions: Option<(Vec<f32>, usize, Vec<u8>)>,
    mixings: [Option<[Vec<f32>; 2]>; 2],
}

impl Case {
    /// `what` is a bit for each of what can stand at the maps.
    fn new(rng: &mut Rng, [batch, tokens, heads, qk, v]: [usize; 5], what: usize) -> Self {
        let has = |bit: usize| what >> bit & 1 == 1;
        let small = |rng: &mut Rng, count: usize, scale: f32| -> Vec<f32> {
            normals(rng, count).iter().map(|x| x * scale).collect()
        };
        let area = tokens * tokens;
        let windows = if batch.is_multiple_of(2) { 2 } else { 0 };
        let mut mask = vec![0.0; windows * area];
        // The first window hides nothing; what the second hides is not symmetric.
        for x in mask.iter_mut().skip(area) {
            *x = if rng.bernoulli(0.3) { -100.0 } else { 0.0 };
        }
        let count = between(rng, 1, if has(5) { 255 } else { 60 });
        let bucket = |rng: &mut Rng| match rng.below(count + 1) {
            none if none == count => u8::MAX,
            bucket => bucket as u8,
        };
        let own = if has(7) { heads } else { 1 };
        let mixing = |rng: &mut Rng, bias: bool| {
            let mut weight = small(rng, heads * heads, 0.3);
            (0..heads).for_each(|h| weight[h * (heads + 1)] += 0.7);
            [weight, small(rng, if bias { heads } else { 0 }, 0.5)]
        };
        Case {
            batch,
            tokens,
            qk: vec![qk; heads],
            v: vec![v; heads],
            qkv: normals(rng, batch * tokens * heads * (2 * qk + v)),
            grad: normals(rng, batch * tokens * heads * v),
            terms: has(0).then(|| [normals(rng, heads * area), mask]),
            positions: has(1).then(|| {
                let table = small(rng, own * qk * count, 0.5);
                (table, count, (0..area).map(|_| bucket(rng)).collect())
            }),
            mixings: [has(2), has(3)].map(|has_it| has_it.then(|| mixing(rng, has(4)))),
        }
    }

    fn attention(&self) -> MixedAttention<'_> {
        fn mixing(of: &Option<[Vec<f32>; 2]>) -> Option<Mixing<'_>> {
            let [weight, bias] = of.as_ref()?;
            Some(Mixing { weight, bias })
        }
        let [before, after] = &self.mixings;
        MixedAttention {
            attention: Attention {
                qkv: &self.qkv,
                batch: self.batch,
                tokens: self.tokens,
                qk: &self.qk,
                v: &self.v,
                scale: (self.qk[0] as f32).powf(-0.5),
                terms: self.terms.as_ref().map(|[bias, mask]| Terms { bias, mask }),
            },
            positions: self.positions.as_ref().map(|(table, count, buckets)| Positions {
                table,
                count: *count,
                buckets,
            }),
            before: mixing(before),
            after: mixing(after),
        }
    }
}

#[test]
fn attention_with_what_stands_at_its_maps_is_the_plain_one() {
    // Batch, tokens, heads, widths of queries and of values; the first with more samples than parts.
    let shapes = [
        [34, 16, 3, 16, 16],
        [1, 1, 2, 4, 4],
        [2, 33, 3, 32, 32],
        [1, 70, 5, 64, 33],
        [3, 49, 4, 8, 40],
        [2, 65, 1, 40, 16],
        [1, 197, 3, 64, 64],
    ];
    for (i, what) in (0..64usize).enumerate() {
        let mut rng = rng("mixed attention", i as u64);
        let case = Case::new(&mut rng, shapes[i % shapes.len()], what | (i % 3 / 2) << 7);
        let of = case.attention();
        let (out, lse) = reference::mixed_attention(&of);
        let expected = reference::mixed_attention_backward(&of, &case.grad);
        for math in maths() {
            let name = |of: &str| format!("{of} of {:?}, {what:b}", shapes[i % shapes.len()]);
            let found = of.forward(math);
            agree(&name("result"), math, &found.0, &out);
            // Mixed logits are sums of those of several heads, each rounded.
            agree_within(2.0, &name("logs"), math, &found.1, &lse);
            let found = of.backward(math, &found.1, &case.grad);
            agree(&name("gradient"), math, &found.qkv, &expected.qkv);
            let pairs = [
                (&found.table, &expected.table, "table"),
                (&found.bias, &expected.bias, "biases"),
            ];
            for (found, expected, which) in pairs {
                match (found, expected) {
                    // The gradient of a single logit is zero: nothing but rounding is left of it.
                    (Some(_), Some(_)) if case.tokens == 1 => {}
                    (Some(found), Some(expected)) => agree(&name(which), math, found, expected),
                    (found, expected) => assert!(found.is_none() && expected.is_none()),
                }
            }
            let same = |which: &str, found: &Option<MixingGradients>, expected: &Option<MixingGradients>| {
                match (found, expected) {
                    (Some(_), Some(_)) if case.tokens == 1 => {}
                    (Some(found), Some(expected)) => {
                        // The gradients of a row of logits sum to 0.
                        agree_within(4.0, &name(which), math, &found.weight, &expected.weight);
                        // What is added to a head's logits changes nothing: its gradient is rounding.
                        if which == "after" {
                            agree_within(4.0, &name("bias after"), math, &found.bias, &expected.bias);
                        } else {
                            let most = found.bias.iter().fold(0f32, |most, x| most.max(x.abs()));
                            assert!(most < 0.05 * case.batch as f32, "{most}");
                        }
                    }
                    (found, expected) => assert!(found.is_none() && expected.is_none()),
                }
            };
            same("before", &found.before, &expected.before);
            same("after", &found.after, &expected.after);
        }
    }
}
