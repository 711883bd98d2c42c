//! Corrections after a cut: what another unit can make good for is made good for, to the last digit where damping allows; budgets are kept.
#![allow(clippy::unwrap_used, clippy::panic)]

mod small_model;

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::compress::Error;
use vitesse::compress::structure::budget::Budget;
use vitesse::compress::structure::correct::{Corrected, Settings, correct};
use vitesse::compress::structure::criteria::random::Random;
use vitesse::compress::structure::damage::eliminations;
use vitesse::compress::structure::rank::{Ranking, Scored};
use vitesse::compress::structure::{Group, Kind, Selection, groups, outline, slice};
use vitesse::model::network::{Ctx, Network};
use vitesse::model::spec::{Activation, LayerSpec, PrefixToken, VitSpec};
use vitesse::model::{ModelSpec, Tensors};
use vitesse::rng::Key;

use small_model::{model, plain, plain_swin, weights};

/// So little that duplicates come out exact.
const FREE: Settings = Settings { damping: 1e-9 };

fn images(spec: &ModelSpec, count: usize, seed: u64) -> Tensor<4> {
    let mut rng = Key::new(seed).with("images").rng();
    let [channels, height, width] = spec.input_size();
    let values: Vec<f32> = (0..count * channels * height * width)
        .map(|_| rng.normal() as f32)
        .collect();
    let data = TensorData::new(values, [count, channels, height, width]);
    Tensor::from_data(data, &Device::flex())
}

/// Some batches to correct by.
fn batches(spec: &ModelSpec) -> Vec<Result<Tensor<4>, Error>> {
    (0..4).map(|seed| Ok(images(spec, 16, seed))).collect()
}

fn corrected(spec: &ModelSpec, tensors: &Tensors, selection: &Selection, settings: Settings) -> Corrected {
    let found = correct(spec, tensors, selection, settings, batches(spec), |_| {
        Ok::<_, Error>(())
    });
    let found = found.unwrap_or_else(|e| panic!("{e}"));
    found.sliced.spec.check(&found.sliced.tensors, "test").unwrap();
    found
}

/// Logits of images that nothing was corrected by.
fn logits(spec: &ModelSpec, tensors: &Tensors) -> Vec<f32> {
    let network = Network::new(spec, tensors, "test", &Device::flex()).unwrap();
    let found = network.forward(images(spec, 8, 99), &mut Ctx::eval()).unwrap();
    found.class.try_to_vec_as().unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    // Not `f32::max`, which overlooks NaN.
    let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    each.fold(
        0.0,
        |most: f32, x| if most.is_nan() || x <= most { most } else { x },
    )
}

/// Rewrites a tensor.
fn change(tensors: &mut Tensors, name: &str, of: impl Fn(&mut [f32])) {
    let tensor = tensors.get(name).unwrap();
    let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32().into_owned());
    of(&mut values);
    tensors.insert_f32(name, &shape, values).unwrap();
}

/// Makes row `to` of a module a copy of row `from`.
fn copy_row(tensors: &mut Tensors, module: &str, from: usize, to: usize) {
    let width = tensors.get(&format!("{module}.weight")).unwrap().shape()[1];
    change(tensors, &format!("{module}.weight"), |values| {
        values.copy_within(from * width..(from + 1) * width, to * width);
    });
    change(tensors, &format!("{module}.bias"), |values| {
        values[to] = values[from];
    });
}

#[track_caller]
fn made_good(tensors: &Tensors, selection: &Selection) {
    made_good_in(&plain(), tensors, selection);
}

#[track_caller]
fn made_good_in(spec: &ModelSpec, tensors: &Tensors, selection: &Selection) {
    let dense = logits(spec, tensors);
    let cut = slice(spec, tensors, selection).unwrap();
    let found = corrected(spec, tensors, selection, FREE).sliced;
    let [before, after] = [cut, found].map(|model| distance(&logits(&model.spec, &model.tensors), &dense));
    assert!(after < before / 20.0, "{before} became {after}");
}

fn without(kind: Kind, core: usize, all: usize, gone: usize) -> Selection {
    let mut selection = Selection::default();
    selection.keep(kind, Some(core), (0..all).filter(|&unit| unit != gone));
    selection
}

#[test]
fn a_unit_that_another_one_repeats_is_made_good_for() {
    let mut tensors = weights(&plain(), 1);
    copy_row(&mut tensors, "blocks.1.mlp.fc1", 3, 11);
    made_good(&tensors, &without(Kind::Hidden, 1, 20, 11));

    // Values: rows 48.. of `qkv`; dimensions 2 and 5 belong to one head, whose maps they share.
    let mut tensors = weights(&plain(), 2);
    copy_row(&mut tensors, "blocks.0.attn.qkv", 48 + 2, 48 + 5);
    made_good(&tensors, &without(Kind::VDim, 0, 24, 5));
}

#[test]
fn queries_make_good_for_a_key_that_another_one_repeats() {
    let mut tensors = weights(&plain(), 3);
    copy_row(&mut tensors, "blocks.2.attn.qkv", 24 + 9, 24 + 14);
    made_good(&tensors, &without(Kind::QkDim, 2, 24, 14));
}

#[test]
fn a_half_that_is_gone_leaves_its_mean() {
    for (core, kind, projection) in [
        (0, Kind::Attn, "attn.proj"),
        (1, Kind::Attn, "attn.proj"),
        (1, Kind::Mlp, "mlp.fc2"),
        (2, Kind::Mlp, "mlp.fc2"),
    ] {
        let mut tensors = weights(&plain(), 4);
        // What it writes is its bias, whatever it reads.
        change(
            &mut tensors,
            &format!("blocks.{core}.{projection}.weight"),
            |values| {
                values.fill(0.0);
            },
        );
        let mut selection = Selection::default();
        selection.drop_all(kind, Some(core));
        made_good(&tensors, &selection);
    }
    let mut tensors = weights(&plain(), 5);
    for projection in ["attn.proj", "mlp.fc2"] {
        change(&mut tensors, &format!("blocks.1.{projection}.weight"), |values| {
            values.fill(0.0);
        });
    }
    let mut selection = Selection::default();
    selection.keep(Kind::Block, None, [0, 2]);
    made_good(&tensors, &selection);
}

#[test]
fn what_a_swin_loses_in_its_windows_is_made_good_for_in_its_stream() {
    let spec = plain_swin();
    let mut tensors = weights(&spec, 1);
    copy_row(&mut tensors, "layers.1.blocks.0.mlp.fc1", 3, 11);
    made_good_in(&spec, &tensors, &without(Kind::Hidden, 2, 20, 11));
    // In windows that are shifted: values are rows 24.. of `qkv`, keys of the next stage, whose attention is sharp, as well.
    let mut tensors = weights(&spec, 2);
    copy_row(&mut tensors, "layers.0.blocks.1.attn.qkv", 24 + 1, 24 + 2);
    made_good_in(&spec, &tensors, &without(Kind::VDim, 1, 12, 2));
    let mut tensors = weights(&spec, 3);
    change(&mut tensors, "layers.1.blocks.1.attn.qkv.weight", |values| {
        values.iter_mut().for_each(|value| *value *= 3.0);
    });
    copy_row(&mut tensors, "layers.1.blocks.1.attn.qkv", 24 + 9, 24 + 14);
    made_good_in(&spec, &tensors, &without(Kind::QkDim, 3, 24, 14));
    // A head that repeats another one: rows of queries, keys and values, and the column of the table.
    let mut tensors = weights(&spec, 4);
    for part in 0..3 {
        for dim in 0..8 {
            let row = 24 * part + dim;
            copy_row(&mut tensors, "layers.1.blocks.1.attn.qkv", row, row + 16);
        }
    }
    let table = "layers.1.blocks.1.attn.relative_position_bias_table";
    change(&mut tensors, table, |values| {
        values.chunks_mut(3).for_each(|row| row[2] = row[0]);
    });
    made_good_in(&spec, &tensors, &without(Kind::Head, 3, 3, 2));
}

/// What a head's queries, of tokens that all read `x`, give with the keys of such tokens and with those of zeros; `width` queries stand before
/// the keys.
fn products(tensors: &Tensors, module: &str, x: &[f32], head: Range<usize>, width: usize) -> [f32; 2] {
    let [weight, bias] = ["weight", "bias"].map(|part| {
        tensors
            .get(&format!("{module}.{part}"))
            .unwrap()
            .to_f32()
            .into_owned()
    });
    let of = |row: usize| -> f32 {
        let weight = &weight[row * x.len()..(row + 1) * x.len()];
        weight.iter().zip(x).map(|(weight, x)| weight * x).sum::<f32>() + bias[row]
    };
    let among = head.clone().map(|dim| of(dim) * of(width + dim)).sum();
    [among, head.map(|dim| of(dim) * bias[width + dim]).sum()]
}

#[test]
fn queries_make_good_for_their_products_with_the_zeros_of_a_map_that_is_filled_up() {
    let spec = plain_swin();
    let mut tensors = weights(&spec, 3);
    // All tokens read the norm's bias, so that two dimensions of keys are enough for them and the zeros.
    change(&mut tensors, "layers.1.blocks.1.norm1.weight", |values| {
        values.fill(0.0);
    });
    let x = tensors
        .get("layers.1.blocks.1.norm1.bias")
        .unwrap()
        .to_f32()
        .into_owned();
    let module = "layers.1.blocks.1.attn.qkv";
    let selection = without(Kind::QkDim, 3, 24, 14);
    let cut = slice(&spec, &tensors, &selection).unwrap();
    let found = corrected(&spec, &tensors, &selection, Settings { damping: 1e-5 }).sliced;
    let dense = products(&tensors, module, &x, 8..16, 24);
    let [cut, found] = [cut, found].map(|model| products(&model.tensors, module, &x, 8..15, 23));
    for ((dense, cut), found) in dense.into_iter().zip(cut).zip(found) {
        assert!(
            (found - dense).abs() < (cut - dense).abs() / 20.0,
            "{dense}: {cut} became {found}"
        );
    }
}

#[test]
fn a_half_of_a_swin_that_is_gone_leaves_its_mean_in_whatever_comes_before() {
    let spec = plain_swin();
    // In the norm of the patches, in a projection, in the norm before patch merging.
    for (core, kind, name) in [
        (0, Kind::Attn, "layers.0.blocks.0.attn.proj"),
        (0, Kind::Mlp, "layers.0.blocks.0.mlp.fc2"),
        (1, Kind::Attn, "layers.0.blocks.1.attn.proj"),
        (2, Kind::Attn, "layers.1.blocks.0.attn.proj"),
        (3, Kind::Mlp, "layers.1.blocks.1.mlp.fc2"),
    ] {
        let mut tensors = weights(&spec, 4);
        change(&mut tensors, &format!("{name}.weight"), |values| values.fill(0.0));
        let mut selection = Selection::default();
        selection.drop_all(kind, Some(core));
        made_good_in(&spec, &tensors, &selection);
    }
    // Two blocks, the first of which begins a stage.
    let mut tensors = weights(&spec, 5);
    for block in ["layers.1.blocks.0", "layers.1.blocks.1"] {
        for projection in ["attn.proj", "mlp.fc2"] {
            change(&mut tensors, &format!("{block}.{projection}.weight"), |values| {
                values.fill(0.0);
            });
        }
    }
    let mut selection = Selection::default();
    selection.keep(Kind::Block, None, [0, 1]);
    made_good_in(&spec, &tensors, &selection);
}

#[test]
fn a_half_behind_clips_first_norm_leaves_its_mean_there() {
    let spec = model(plain().vit().unwrap().clone().into_clip(Activation::QuickGelu));
    let mut tensors = weights(&spec, 4);
    change(&mut tensors, "blocks.0.attn.proj.weight", |values| {
        values.fill(0.0);
    });
    let mut selection = Selection::default();
    selection.drop_all(Kind::Attn, Some(0));
    made_good_in(&spec, &tensors, &selection);
}

#[test]
fn nothing_cut_is_nothing_changed() {
    let (spec, tensors) = (plain(), weights(&plain(), 6));
    let found = corrected(&spec, &tensors, &Selection::default(), Settings::default());
    assert_eq!(found.sliced.tensors, tensors);
    assert_eq!(found.fits, []);
}

#[test]
fn a_correction_brings_the_model_closer_to_what_it_was() {
    for spec in [plain(), plain_swin()] {
        brings_closer(&spec);
    }
}

#[track_caller]
fn brings_closer(spec: &ModelSpec) {
    let mut closer = 0;
    for seed in 0..20 {
        let tensors = weights(spec, seed);
        let mut rng = Key::new(seed).with("cut").rng();
        let mut selection = Selection::default();
        for group in groups(spec).unwrap() {
            if matches!(group.id.kind, Kind::Hidden | Kind::Position | Kind::MlpOut) {
                let kept: Vec<usize> = (0..group.units).filter(|_| rng.bernoulli(0.7)).collect();
                selection.keep(group.id.kind, group.id.core, kept);
            }
        }
        let cut = slice(spec, &tensors, &selection).unwrap();
        let found = corrected(spec, &tensors, &selection, Settings::default());
        for fit in &found.fits {
            assert!(fit.corrected <= fit.cut * 1.001, "seed {seed}: {fit:?}");
        }
        let dense = logits(spec, &tensors);
        let [cut, after] =
            [&cut, &found.sliced].map(|model| distance(&logits(&model.spec, &model.tensors), &dense));
        closer += usize::from(after < cut);
    }
    assert!(closer >= 18, "{closer} of 20 are closer");
}

#[test]
fn the_widths_of_least_damage_keep_the_budget() {
    for (spec, least) in [(plain(), 0.3), (plain_swin(), 0.5)] {
        damage_keeps_the_budget(&spec, least);
    }
}

#[track_caller]
fn damage_keeps_the_budget(spec: &ModelSpec, least: f64) {
    let tensors = weights(spec, 7);
    let all = groups(spec).unwrap();
    let units: Vec<&Group> = all
        .iter()
        .filter(|group| matches!(group.id.kind, Kind::Head | Kind::Hidden))
        .collect();
    let found = eliminations(
        spec,
        &tensors,
        &units,
        1e-2,
        batches(spec),
        |_| Ok::<_, Error>(()),
    );
    let found = found.unwrap_or_else(|e| panic!("{e}"));
    for one in &found {
        assert!(one.damage.is_sorted() && one.damage.len() == one.order.len() + 1);
    }
    let macs = |spec: &ModelSpec| Ok(spec.costs()?.macs() as f64);
    let dense = macs(spec).unwrap();
    let within = |share: f64, whole: &[Kind]| {
        let budget = Budget {
            what: "MACs",
            cost: &macs,
            most: share * dense,
        };
        budget.by_damage(spec, &tensors, &found, 2, whole)
    };
    for share in [0.9, 0.7, 0.5, 0.3].into_iter().filter(|share| *share >= least) {
        let fit = within(share, &[Kind::Attn, Kind::Mlp]).unwrap();
        let left = macs(&fit.spec).unwrap() / dense;
        assert!(left <= share && left > share - 0.1, "{left} of {share}");
        assert_eq!(fit.spec, outline(spec, &tensors, &fit.selection).unwrap());
    }
    assert_eq!(&within(1.0, &[]).unwrap().spec, spec);
    let refused = within(0.05, &[]).unwrap_err().to_string();
    assert!(
        refused.contains("at least") && refused.contains("MACs"),
        "{refused}"
    );
}

#[test]
fn too_few_images_and_shared_blocks_are_refused() {
    let (spec, tensors) = (plain(), weights(&plain(), 8));
    let few = vec![Ok(images(&spec, 2, 0))];
    let found = correct(
        &spec,
        &tensors,
        &without(Kind::Hidden, 0, 20, 3),
        Settings::default(),
        few,
        |_| Ok::<_, Error>(()),
    );
    let said = found.unwrap_err().to_string();
    assert!(
        said.contains("twice as many tokens") && said.contains("give at least 3 images"),
        "{said}"
    );

    let mut shared = VitSpec::plain(16, 4, 24, 1, 3, vec![PrefixToken::Class]);
    shared.layers = vec![LayerSpec::of(0), LayerSpec::of(0)];
    let shared = model(shared);
    let tensors = weights(&shared, 9);
    let selection = without(Kind::Hidden, 0, 96, 3);
    let found = correct(&shared, &tensors, &selection, FREE, batches(&shared), |_| {
        Ok::<_, Error>(())
    });
    let said = found.unwrap_err().to_string();
    assert!(said.contains("share their matrices"), "{said}");
}

#[test]
fn a_kind_that_rounding_would_let_jump_is_held_back() {
    let mut wide = plain().vit().unwrap().clone();
    wide.cores
        .iter_mut()
        .for_each(|core| core.mlp.as_mut().unwrap().hidden = 96);
    let spec = model(wide);
    let tensors = weights(&spec, 10);
    let all = groups(&spec).unwrap();
    let units: Vec<&Group> = all
        .iter()
        .filter(|group| matches!(group.id.kind, Kind::Position | Kind::Hidden))
        .collect();
    let scored = Scored::all(&Random { seed: 1 }, &tensors, &units).unwrap();
    let macs = |spec: &ModelSpec| Ok(spec.costs()?.macs() as f64);
    let dense = macs(&spec).unwrap();
    // Positions go from 8 to 4 at once, and a quarter of all multiply-accumulates with them.
    let ranking = Ranking {
        round_to: 4,
        ..Ranking::default()
    };
    for share in [0.9, 0.8, 0.7] {
        let budget = Budget {
            what: "MACs",
            cost: &macs,
            most: share * dense,
        };
        let fit = budget.by_ranking(&spec, &tensors, &ranking, &scored).unwrap();
        let left = macs(&fit.spec).unwrap() / dense;
        assert!(left <= share && left > share - 0.1, "{left} of {share}");
    }
}
