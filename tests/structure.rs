//! What structured pruning promises: the sliced model answers as its masked twin, in the network and in the engine; it is stored
//! and read as any model; slices compose; filled up with zeros it is dense again, and sliced again it is itself.
#![allow(clippy::unwrap_used, clippy::panic)]

mod small_model;
mod twins;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::compress::Error;
use vitesse::compress::structure::criteria::activation::Activation;
use vitesse::compress::structure::criteria::magnitude::Magnitude;
use vitesse::compress::structure::criteria::random::Random;
use vitesse::compress::structure::criteria::{Criterion, calibrate, fisher::Fisher};
use vitesse::compress::structure::rank::Ranking;
use vitesse::compress::structure::{Group, Kind, Selection, groups, mask, slice, to_dense};
use vitesse::engine::{Engine, Options};
use vitesse::model::spec::{PrefixToken, VitSpec};
use vitesse::model::{Checkpoint, ModelSpec};
use vitesse::rng::Key;
use vitesse::train::learner::Lesson;
use vitesse::train::loss::{Distillation, Kind as Loss, target_rows};

use small_model::{model, plain, weights};
use twins::{
    IMAGES, alike, alike_to, by_engine, by_network, images, largest, selection, sliced, stored_and_read, vary,
};

const SEEDS: u64 = 100;

/// A vision transformer whose blocks differ in everything, such as pruning makes them.
fn random(seed: u64) -> ModelSpec {
    let mut rng = Key::new(seed).with("spec").rng();
    let mut prefix = vec![PrefixToken::Class];
    if rng.bernoulli(0.4) {
        prefix.push(PrefixToken::Distillation);
    }
    let mut vit = VitSpec::plain(8, 4, 12, 3, 3, prefix);
    for core in &mut vit.cores {
        vary(core, 12, &mut rng);
    }
    model(vit)
}

#[test]
fn a_sliced_model_answers_as_its_masked_twin() {
    let mut changed = 0;
    for seed in 0..SEEDS {
        let spec = if seed % 4 == 0 { plain() } else { random(seed) };
        let (tensors, selection) = (weights(&spec, seed), selection(&spec, seed));
        let masked = mask(&spec, &tensors, &selection).unwrap();
        let sliced = sliced(&spec, &tensors, &selection);
        let what = format!("seed {seed}, {selection:?}");
        let expected = by_network(&spec, &masked);
        alike(&what, &by_network(&sliced.spec, &sliced.tensors), &expected);
        alike(&what, &by_engine(&spec, &masked), &expected);
        alike(&what, &by_engine(&sliced.spec, &sliced.tensors), &expected);
        changed += u64::from(by_network(&spec, &tensors) != expected);
        let cost = sliced.spec.costs().unwrap();
        let parameters: usize = cost.layers.iter().map(|layer| layer.parameters).sum();
        assert_eq!(parameters, sliced.tensors.parameters(), "{what}");
        let macs: u64 = cost.layers.iter().map(|layer| layer.macs).sum();
        let engine = Engine::new(&sliced.spec, &sliced.tensors, "test", Options::default()).unwrap();
        assert_eq!(engine.macs() + unread(&sliced.spec), macs, "{what}");
    }
    assert!(
        changed > 9 * SEEDS / 10,
        "{changed} of {SEEDS} selections change the model"
    );
}

/// What the engine does not compute: after the last keys and values only the tokens go on that the heads read.
fn unread(spec: &ModelSpec) -> u64 {
    let vit = spec.vit().unwrap();
    let dim = vit.embed_dim;
    let tokens = vit.patches() + vit.prefix.len();
    let (read, written) = (spec.classifiers().len(), |idx: &Option<Vec<usize>>| {
        idx.as_ref().map_or(dim, Vec::len)
    });
    let mut of_a_token = 0;
    for core in vit.layers.iter().rev().map(|layer| &vit.cores[layer.core]) {
        if let Some(mlp) = &core.mlp {
            of_a_token += mlp.hidden * (dim + written(&mlp.out_idx));
        }
        if let Some(attn) = &core.attn {
            let (queries, values) = (attn.qk_width(), attn.v_width());
            of_a_token += queries * dim + tokens * (queries + values) + values * written(&attn.out_idx);
            break;
        }
    }
    ((tokens - read) * of_a_token) as u64
}

#[test]
fn what_is_left_of_little_answers_as_its_masked_twin() {
    let spec = plain();
    let tensors = weights(&spec, 6);
    // Three heads, eight dimensions each.
    let but_the_second: Vec<usize> = (0..24).filter(|dim| dim / 8 != 1).collect();
    let cases: [(&str, Kind, Option<usize>, &[usize]); 7] = [
        ("a head without values", Kind::VDim, Some(1), &but_the_second),
        ("a head without queries", Kind::QkDim, Some(1), &but_the_second),
        ("one hidden unit", Kind::Hidden, Some(1), &[13]),
        ("one place of all heads", Kind::Position, Some(1), &[5]),
        ("one channel written", Kind::AttnOut, Some(1), &[7]),
        ("no first block", Kind::Block, None, &[1, 2]),
        ("no last block", Kind::Block, None, &[0, 1]),
    ];
    for (what, kind, core, units) in cases {
        let mut selection = Selection::default();
        selection.keep(kind, core, units.iter().copied());
        let found = sliced(&spec, &tensors, &selection);
        let masked = mask(&spec, &tensors, &selection).unwrap();
        let expected = by_network(&spec, &masked);
        alike(what, &by_network(&found.spec, &found.tensors), &expected);
        alike(what, &by_engine(&found.spec, &found.tensors), &expected);
        assert_ne!(expected, by_network(&spec, &tensors), "{what}");
        let vit = found.spec.vit().unwrap();
        let heads: Vec<usize> = vit
            .cores
            .iter()
            .map(|core| core.attn.as_ref().unwrap().num_heads())
            .collect();
        match (kind, core) {
            (Kind::VDim, _) => assert_eq!(heads, [3, 2, 3]),
            (Kind::Block, _) => assert_eq!(heads, [3, 3]),
            _ => assert_eq!(heads, [3, 3, 3]),
        }
    }
}

#[test]
fn a_sliced_model_is_stored_and_read_as_any_other() {
    let place = tempfile::tempdir().unwrap();
    for seed in 0..10 {
        let spec = random(seed);
        let tensors = weights(&spec, seed);
        let sliced = sliced(&spec, &tensors, &selection(&spec, seed));
        stored_and_read(&place.path().join(seed.to_string()), &sliced);
    }
}

#[test]
fn what_timm_can_build_needs_no_key_of_ours() {
    let spec = plain();
    let tensors = weights(&spec, 0);
    let mut selection = Selection::default();
    selection.keep(Kind::Block, None, [0, 2]);
    (0..3).for_each(|core| selection.keep(Kind::Hidden, Some(core), 3..16));
    let timm = |selection: &Selection| {
        let place = tempfile::tempdir().unwrap();
        let sliced = sliced(&spec, &tensors, selection);
        let mut checkpoint = Checkpoint::fresh(&spec.architecture, Some(5), None, 0).unwrap();
        (checkpoint.spec, checkpoint.tensors) = (sliced.spec, sliced.tensors);
        checkpoint.save(&place.path().join("model"), false).unwrap();
        let config = std::fs::read_to_string(place.path().join("model/config.json")).unwrap();
        !config.contains("\"blocks\"")
    };
    assert!(timm(&selection));
    // Two heads of eight that are left, in a stream as wide as they are.
    selection.keep(Kind::Embed, None, 0..16);
    (0..3).for_each(|core| selection.keep(Kind::Head, Some(core), [0, 2]));
    assert!(timm(&selection));
    let mut narrow = selection.clone();
    narrow.keep(Kind::Embed, None, 0..15);
    assert!(!timm(&narrow));
    selection.keep(Kind::Hidden, Some(0), 0..5);
    assert!(!timm(&selection));
}

#[test]
fn slices_compose_and_nothing_cut_is_the_model() {
    let spec = plain();
    let tensors = weights(&spec, 1);
    let whole = sliced(&spec, &tensors, &Selection::default());
    assert_eq!((&whole.spec, &whole.tensors), (&spec, &tensors));
    let keep = |parts: &[(Kind, Option<usize>, &[usize])]| {
        let mut selection = Selection::default();
        for (kind, core, units) in parts {
            selection.keep(*kind, *core, units.iter().copied());
        }
        selection
    };
    let first = keep(&[
        (Kind::Block, None, &[0, 2]),
        (Kind::Embed, None, &[0, 3, 4, 5, 9, 10, 23]),
        (Kind::Hidden, Some(2), &[1, 3, 4, 8, 19]),
        (Kind::Head, Some(2), &[0, 2]),
        (Kind::AttnOut, Some(2), &[3, 4, 5, 6, 9, 10]),
    ]);
    // Block 2 is block 1 now, and its units are counted anew.
    let second = keep(&[
        (Kind::Embed, None, &[1, 2, 4, 6]),
        (Kind::Hidden, Some(1), &[0, 3, 4]),
        (Kind::QkDim, Some(1), &[0, 7, 9]),
        (Kind::AttnOut, Some(1), &[0, 1, 2]),
    ]);
    let both = keep(&[
        (Kind::Block, None, &[0, 2]),
        (Kind::Embed, None, &[3, 4, 9, 23]),
        (Kind::Hidden, Some(2), &[1, 8, 19]),
        (Kind::Head, Some(2), &[0, 2]),
        (Kind::QkDim, Some(2), &[0, 7, 17]),
        (Kind::AttnOut, Some(2), &[3, 4, 5]),
    ]);
    let once = sliced(&spec, &tensors, &both);
    let half = sliced(&spec, &tensors, &first);
    let twice = sliced(&half.spec, &half.tensors, &second);
    assert_eq!((&once.spec, &once.tensors), (&twice.spec, &twice.tensors));
    assert_eq!(
        once.spec.vit().unwrap().cores[1].attn.as_ref().unwrap().out_idx,
        Some(vec![0, 1])
    );
}

#[test]
fn dense_again_it_answers_the_same_and_slices_back() {
    for seed in 0..20 {
        let spec = plain();
        let tensors = weights(&spec, seed);
        let pruned = sliced(&spec, &tensors, &selection(&spec, seed));
        let dense = to_dense(&pruned.spec, &pruned.tensors).unwrap_or_else(|e| panic!("{e}"));
        dense
            .spec
            .check(&dense.tensors, "dense")
            .unwrap_or_else(|e| panic!("{e}"));
        let expected = by_engine(&pruned.spec, &pruned.tensors);
        let what = format!("seed {seed}");
        alike_to(
            1e-5 * largest(&expected),
            &what,
            &by_engine(&dense.spec, &dense.tensors),
            &expected,
        );
        let back = sliced(&dense.spec, &dense.tensors, &dense.selection);
        assert_eq!(
            (&back.spec, &back.tensors),
            (&pruned.spec, &pruned.tensors),
            "seed {seed}"
        );
    }
    let spec = plain();
    let tensors = weights(&spec, 0);
    let mut narrow = Selection::default();
    narrow.keep(Kind::Embed, None, 0..20);
    let narrow = sliced(&spec, &tensors, &narrow);
    let error = to_dense(&narrow.spec, &narrow.tensors).unwrap_err().to_string();
    assert!(error.contains("timm cannot build"), "{error}");
}

#[test]
fn an_emptied_sub_layer_gets_its_best_unit_back_and_a_dropped_one_is_gone() {
    let spec = plain();
    let mut tensors = weights(&spec, 2);
    let mut best = tensors
        .get("blocks.0.mlp.fc2.weight")
        .unwrap()
        .to_f32()
        .into_owned();
    best.chunks_mut(20).for_each(|row| row[7] = 3.0);
    tensors
        .insert_f32("blocks.0.mlp.fc2.weight", &[24, 20], best)
        .unwrap();
    let mut selection = Selection::default();
    for kind in [Kind::Hidden, Kind::Head, Kind::QkDim] {
        selection.drop_all(kind, Some(0));
    }
    selection.drop_all(Kind::Attn, Some(1));
    selection.drop_all(Kind::MlpOut, Some(2));
    let found = sliced(&spec, &tensors, &selection);
    let back: Vec<_> = found
        .readmitted
        .iter()
        .map(|unit| (unit.group.kind, unit.unit))
        .collect();
    assert_eq!(back.len(), 3);
    assert!(back.contains(&(Kind::Hidden, 7)), "{back:?}");
    let vit = found.spec.vit().unwrap();
    let attn = vit.cores[0].attn.as_ref().unwrap();
    assert_eq!(
        (attn.qk_dims.as_slice(), attn.v_dims.as_slice()),
        (&[1][..], &[8][..])
    );
    assert_eq!(attn.scale, 8f64.powf(-0.5));
    assert_eq!(vit.cores[0].mlp.as_ref().unwrap().hidden, 1);
    assert!(vit.cores[1].attn.is_none() && !found.tensors.contains("blocks.1.norm1.weight"));
    assert!(vit.cores[2].mlp.is_none() && found.tensors.contains("blocks.2.norm1.weight"));
    let masked = mask(&spec, &tensors, &selection).unwrap();
    alike(
        "emptied",
        &by_engine(&found.spec, &found.tensors),
        &by_engine(&spec, &masked),
    );
}

#[test]
fn what_cannot_be_cut_is_refused_in_a_sentence() {
    let spec = plain();
    let tensors = weights(&spec, 0);
    let refused = |edit: &dyn Fn(&mut Selection)| {
        let mut selection = Selection::default();
        edit(&mut selection);
        mask(&spec, &tensors, &selection).unwrap_err().to_string()
    };
    let found = refused(&|selection| selection.keep(Kind::Hidden, Some(0), [20]));
    assert_eq!(
        found,
        "`blocks.0.hidden` has 20 units, but unit 20 was to be kept"
    );
    assert!(refused(&|selection| selection.drop_all(Kind::Embed, None)).contains("leaves no model"));
    assert!(refused(&|selection| selection.keep(Kind::Embed, None, [1])).contains("no masked twin"));
    assert!(refused(&|selection| selection.drop_all(Kind::Head, Some(3))).contains("names no units"));
    assert!(refused(&|selection| selection.keep(Kind::Embed, Some(0), [1])).contains("names no units"));
    let regnet = Checkpoint::fresh("regnety_nano_32", None, None, 0).unwrap();
    let found = slice(&regnet.spec, &regnet.tensors, &Selection::default())
        .unwrap_err()
        .to_string();
    assert!(
        found.contains("needs a vision transformer, such as ViT, DeiT or Swin"),
        "{found}"
    );
}

#[test]
fn criteria_score_what_they_can_and_the_same_seed_keeps_the_same() {
    let spec = plain();
    let tensors = weights(&spec, 4);
    let all = groups(&spec).unwrap();
    let of = |kind: Kind| all.iter().filter(move |group| group.id.kind == kind);
    let hidden: Vec<&Group> = of(Kind::Hidden).collect();
    let block = of(Kind::Block).next().unwrap();
    let error = Magnitude::default()
        .scores(&tensors, block)
        .unwrap_err()
        .to_string();
    assert!(error.contains("whole modules"), "{error}");
    let ranking = Ranking::default();
    let kept = |seed| ranking.select(&Random { seed }, &tensors, &hidden).unwrap();
    assert_eq!(kept(1), kept(1));
    assert_ne!(kept(1), kept(2));
    assert_eq!(kept(1).of(Kind::Hidden, Some(2)).unwrap().len(), 10);

    const SAMPLES: usize = 3;
    let lesson = |samples: std::ops::Range<usize>| {
        let pixels = samples.clone().flat_map(|sample| {
            let mut rng = Key::new(5).at(sample as u64).rng();
            (0..3 * 16 * 16).map(move |_| rng.normal() as f32)
        });
        let labels: Vec<usize> = samples.clone().map(|sample| 2 * sample).collect();
        let targets = target_rows(&labels, 5, 0.0).unwrap();
        let shape = [samples.len(), 3, 16, 16];
        Lesson::new(pixels.collect(), shape, targets, 5, &Device::flex()).unwrap()
    };
    let plain = Distillation {
        kind: Loss::None,
        ..Distillation::default()
    };
    let together = calibrate::fisher(
        &spec,
        &tensors,
        &hidden,
        &plain,
        [Ok::<_, Error>(lesson(0..SAMPLES))],
    )
    .unwrap();
    // A sample's squared gradient, and the mean of them.
    let name = "blocks.1.mlp.fc1.weight";
    let mut mean = vec![0.0; 20 * 24];
    for sample in 0..SAMPLES {
        let one = [Ok::<_, Error>(lesson(sample..sample + 1))];
        let gradient = calibrate::taylor(&spec, &tensors, &hidden, &plain, one).unwrap();
        let gradient = gradient.get(name).unwrap();
        mean.iter_mut()
            .zip(gradient.to_f32().iter())
            .for_each(|(mean, x)| *mean += x * x / SAMPLES as f32);
    }
    alike("fisher", &together.get(name).unwrap().to_f32(), &mean);
    let fisher = Fisher { curvature: together };
    let scores = fisher.scores(&tensors, hidden[1]).unwrap();
    assert!((scores.iter().sum::<f64>() - 20.0).abs() < 1e-9);
    let head = of(Kind::Head).next().unwrap();
    // A unit that passes nothing is worth nothing.
    let mut mute = tensors.clone();
    for (name, shape) in [("weight", &[20, 24][..]), ("bias", &[20])] {
        let name = format!("blocks.1.mlp.fc1.{name}");
        let mut values = mute.get(&name).unwrap().to_f32().into_owned();
        let width = values.len() / 20;
        values[3 * width..4 * width].fill(0.0);
        mute.insert_f32(&name, shape, values).unwrap();
    }
    let images = Tensor::from_data(
        TensorData::new(images(&spec), [IMAGES, 3, 16, 16]),
        &Device::flex(),
    );
    let squares = calibrate::activations(&spec, &mute, [Ok::<_, Error>(images)]).unwrap();
    let activation = Activation { squares };
    let scores = activation.scores(&mute, hidden[1]).unwrap();
    assert!(
        scores
            .iter()
            .enumerate()
            .all(|(unit, score)| (*score == 0.0) == (unit == 3)),
        "{scores:?}"
    );
    assert_eq!(activation.scores(&mute, head).unwrap().len(), 3);
    let queries = of(Kind::QkDim).next().unwrap();
    let error = activation.scores(&mute, queries).unwrap_err().to_string();
    assert!(error.contains("are not what `proj` or `fc2` read"), "{error}");
    let error = fisher.scores(&tensors, head).unwrap_err().to_string();
    assert!(
        error.contains("nothing was measured of `blocks.0.attn.qkv.weight`"),
        "{error}"
    );
}
