//! Attention in which heads are mixed, or relative positions are looked up.

use super::*;

/// Attention with what can stand at its maps, each there or not; of a tracked bit for each input.
pub(super) fn outcome(seed: u64, compute: Compute, tracked: usize) -> Outcome {
    let mut rng = Key::new(seed).with("mixed").rng();
    let heads = between(&mut rng, 1, 6);
    let (qk, v) = (between(&mut rng, 1, 40), between(&mut rng, 1, 40));
    let spec = AttentionSpec {
        qk_dims: vec![qk; heads],
        v_dims: vec![v; heads],
        scale: 0.3,
        qkv_bias: true,
        out_idx: None,
    };
    let (batch, tokens) = (2 * between(&mut rng, 1, 12), between(&mut rng, 2, 70));
    let asks = |i: usize| tracked >> i & 1 == 1;
    let small = |rng: &mut Rng, len| {
        normals(rng, len)
            .into_iter()
            .map(|x| x * 0.3)
            .collect::<Vec<f32>>()
    };
    let shape = [batch, tokens, heads * (2 * qk + v)];
    let qkv = leaf(&normals(&mut rng, shape.iter().product()), shape, asks(0));
    let area = tokens * tokens;
    let bias = seed.is_multiple_of(2).then(|| {
        leaf(
            &normals(&mut rng, heads * area),
            [1, heads, tokens, tokens],
            asks(1),
        )
    });
    let mask: Vec<f32> = (0..2 * area)
        .map(|_| if rng.bernoulli(0.2) { -100.0 } else { 0.0 })
        .collect();
    let (count, own) = (
        between(&mut rng, 1, 70),
        if rng.bernoulli(0.5) { heads } else { 1 },
    );
    let table = (!seed.is_multiple_of(3))
        .then(|| leaf(&small(&mut rng, own * qk * count), [own, qk, count], asks(2)));
    let buckets: Vec<u8> = (0..area)
        .map(|_| match rng.below(count + 1) {
            none if none == count => u8::MAX,
            bucket => bucket as u8,
        })
        .collect();
    let mut mixing = |first: usize| Mixing {
        weight: leaf(&small(&mut rng, heads * heads), [heads, heads], asks(first)),
        bias: (seed % 4 < 2).then(|| leaf(&small(&mut rng, heads), [heads], asks(first + 1))),
    };
    let (before, after) = (mixing(3), mixing(5));
    let between = Between {
        positions: table.clone().map(|table| Positions {
            table,
            buckets: buckets.as_slice().into(),
        }),
        bias: bias.as_ref(),
        before: (!seed.is_multiple_of(5)).then(|| before.clone()),
        mask: bias.is_some().then(|| mask.as_slice().into()),
        after: (seed % 5 != 1).then(|| after.clone()),
    };
    let found = attention(&qkv, &spec, &between, compute);
    assert_eq!(found.is_some(), compute.fused, "seed {seed}");
    let out = found.unwrap_or_else(|| {
        let part = |start, width| {
            let part = qkv.clone().narrow(2, start, heads * width);
            part.reshape([batch, tokens, heads, width]).swap_dims(1, 2)
        };
        let (q, k) = (part(0, qk) * 0.3, part(heads * qk, qk));
        let mut logits = q.clone().matmul(k.swap_dims(2, 3));
        if let Some(table) = table.clone() {
            // A last bucket of zeros for pairs that have none.
            let zeros = Tensor::zeros([own, qk, 1], &table.device());
            let table: Tensor<4> = Tensor::cat(vec![table, zeros], 2).unsqueeze();
            let products = q.matmul(table.repeat_dim(0, batch).repeat_dim(1, heads / own));
            let at: Vec<i64> = (0..area)
                .map(|pair| (pair / tokens * (count + 1) + usize::from(buckets[pair]).min(count)) as i64)
                .collect();
            let at = Tensor::<1, burn::tensor::Int>::from_data(at.as_slice(), &products.device());
            let products = products.reshape([batch * heads, tokens * (count + 1)]);
            logits = logits + products.select(1, at).reshape([batch, heads, tokens, tokens]);
        }
        if let Some(bias) = &bias {
            logits = logits + bias.clone();
        }
        let mix = |maps: Tensor<4>, mixing: &Option<Mixing>| {
            let Some(mixing) = mixing else { return maps };
            let maps = maps.reshape([batch, heads, area]);
            let mixed = mixing.weight.clone().unsqueeze::<3>().matmul(maps);
            let mixed = mixed.reshape([batch, heads, tokens, tokens]);
            match &mixing.bias {
                Some(bias) => mixed + bias.clone().reshape([1, heads, 1, 1]),
                None => mixed,
            }
        };
        let mut logits = mix(logits, &between.before);
        if bias.is_some() {
            let mask = leaf(&mask, [2, 1, tokens, tokens], false);
            logits = logits + mask.repeat_dim(0, batch / 2);
        }
        let probs = mix(burn::tensor::activation::softmax(logits, 3), &between.after);
        let out = probs.matmul(part(2 * heads * qk, v));
        out.swap_dims(1, 2).reshape([batch, tokens, heads * v])
    });
    let gradients = backward(&out, &normals(&mut rng, batch * tokens * heads * v));
    let gradients = gradients.as_ref();
    let of_mixing = |mixing: &Option<Mixing>| {
        let mixing = mixing.as_ref();
        [
            gradient(mixing.map(|mixing| &mixing.weight), gradients),
            gradient(mixing.and_then(|mixing| mixing.bias.as_ref()), gradients),
        ]
    };
    let mut found = vec![
        gradient(Some(&qkv), gradients),
        gradient(bias.as_ref(), gradients),
        gradient(table.as_ref(), gradients),
    ];
    found.extend(of_mixing(&between.before));
    found.extend(of_mixing(&between.after));
    (values(&out), found)
}

#[test]
fn mixed_attention_with_every_subset_of_gradients() {
    let all = (0..60).map(|seed| (seed, 127));
    let subsets = (0..128usize).map(|tracked| (tracked as u64 % 60, tracked));
    for (seed, tracked) in all.chain(subsets) {
        let [fused, composed] = [FUSED, COMPOSED].map(|compute| outcome(seed, compute, tracked));
        assert_same(
            &fused,
            &composed,
            &format!("mixed attention {seed}, tracked {tracked:b}"),
        );
    }
}

#[test]
fn mixed_attention_in_bf16_is_near_that_in_f32() {
    let bf16 = Compute {
        precision: Precision::Bf16,
        ..FUSED
    };
    for seed in 0..12 {
        let (low, high) = (outcome(seed, bf16, 127), outcome(seed, FUSED, 127));
        let all = std::iter::once((&low.0, &high.0)).chain(
            (low.1.iter().zip(&high.1)).filter_map(|(low, high)| Some((low.as_ref()?, high.as_ref()?))),
        );
        for (low, high) in all {
            let scale = high.iter().fold(1.0f32, |m, x| m.max(x.abs()));
            let apart = low.iter().zip(high).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart <= 0.02 * scale, "{seed}: {apart} of {scale}");
        }
    }
}
