//! What structured pruning promises of a Swin too: windows that are shifted and filled up, stages of different width, tables of biases that lose a
//! column with each head.
#![allow(clippy::unwrap_used, clippy::panic)]

mod small_model;
mod twins;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::compress::Error;
use vitesse::compress::structure::criteria::calibrate;
use vitesse::compress::structure::{Kind, Selection, mask, slice, to_dense};
use vitesse::engine::{Engine, Options, Precision};
use vitesse::model::network::{Ctx, Network, Trace};
use vitesse::model::spec::{LayerSpec, NetworkSpec, SwinSpec, Transformer};
use vitesse::model::{Checkpoint, ModelSpec, Site};
use vitesse::rng::Key;

use small_model::{plain_swin, swin, weights};
use twins::{
    IMAGES, alike, alike_to, by_engine, by_engine_with, by_network, images, largest, selection, sliced,
    stored_and_read, vary,
};

const SEEDS: u64 = 60;

/// A Swin whose blocks differ in everything, and whose windows may fit or not.
fn random(seed: u64) -> ModelSpec {
    let mut rng = Key::new(seed).with("swin").rng();
    let mut body = SwinSpec::plain(16, 2, 4, 12, &[2, 3], &[3, 3]);
    body.window_size = [[4, 4], [3, 3], [2, 3], [5, 7]][rng.below(4)];
    if rng.bernoulli(0.3) {
        body.img_size = [16, 24];
    }
    for core in 0..body.cores.len() {
        let dim = body.dim(core).unwrap();
        vary(&mut body.cores[core], dim, &mut rng);
    }
    swin(body)
}

fn body(spec: &ModelSpec) -> &SwinSpec {
    match spec.transformer().unwrap() {
        Transformer::Swin(swin) => swin,
        Transformer::Vit(_) => panic!("no Swin"),
    }
}

fn keep(parts: &[(Kind, Option<usize>, &[usize])]) -> Selection {
    let mut selection = Selection::default();
    for (kind, core, units) in parts {
        selection.keep(*kind, *core, units.iter().copied());
    }
    selection
}

#[test]
fn a_sliced_swin_answers_as_its_masked_twin() {
    let (mut changed, mut counted) = (0, 0);
    for seed in 0..SEEDS {
        let spec = if seed % 4 == 0 { plain_swin() } else { random(seed) };
        let (tensors, selection) = (weights(&spec, seed), selection(&spec, seed));
        let masked = mask(&spec, &tensors, &selection).unwrap_or_else(|e| panic!("{e}"));
        let sliced = sliced(&spec, &tensors, &selection);
        let what = format!("seed {seed}, {selection:?}");
        let expected = by_network(&spec, &masked);
        let tolerance = 1e-5 * largest(&expected);
        alike_to(
            tolerance,
            &what,
            &by_network(&sliced.spec, &sliced.tensors),
            &expected,
        );
        alike_to(tolerance, &what, &by_engine(&spec, &masked), &expected);
        for threads in [1, 3] {
            let options = Options {
                threads,
                ..Options::default()
            };
            let found = by_engine_with(&sliced.spec, &sliced.tensors, options);
            alike_to(tolerance, &what, &found, &expected);
        }
        changed += u64::from(by_network(&spec, &tensors) != expected);
        let cost = sliced.spec.costs().unwrap();
        assert_eq!(cost.parameters(), sliced.tensors.parameters(), "{what}");
        let swin = body(&sliced.spec);
        if (0..swin.layers.len()).all(|layer| !swin.windows(layer).unwrap().pads()) {
            let engine = Engine::new(&sliced.spec, &sliced.tensors, "test", Options::default()).unwrap();
            assert_eq!(engine.macs(), cost.macs(), "{what}");
            counted += 1;
        }
    }
    assert!(
        changed > 9 * SEEDS / 10 && counted > 0,
        "{changed} of {SEEDS} selections change the model; MACs of {counted} were counted"
    );
}

#[test]
fn in_bf16_and_int8_too() {
    let spec = plain_swin();
    let tensors = weights(&spec, 3);
    let selection = keep(&[
        (Kind::Head, Some(0), &[1]),
        (Kind::Hidden, Some(1), &[0, 3, 4, 8, 19]),
        (Kind::Head, Some(3), &[0, 2]),
        (Kind::VDim, Some(2), &[0, 1, 2, 9, 17, 18, 23]),
    ]);
    let masked = mask(&spec, &tensors, &selection).unwrap();
    let found = sliced(&spec, &tensors, &selection);
    let expected = by_network(&spec, &masked);
    for (precision, tolerance) in [(Precision::Bf16, 0.03), (Precision::Int8, 0.06)] {
        let options = Options {
            threads: 2,
            precision,
            ..Options::default()
        };
        let answers = by_engine_with(&found.spec, &found.tensors, options);
        alike_to(
            tolerance * largest(&expected),
            precision.name(),
            &answers,
            &expected,
        );
    }
}

#[test]
fn a_head_takes_its_column_of_the_table_with_it() {
    let spec = plain_swin();
    let tensors = weights(&spec, 1);
    let selection = keep(&[(Kind::Head, Some(2), &[0, 2])]);
    let name = "layers.1.blocks.0.attn.relative_position_bias_table";
    let before = tensors.get(name).unwrap().to_f32().into_owned();
    let columns = |kept: &[usize]| -> Vec<f32> {
        let row = |row: &[f32]| kept.iter().map(|&head| row[head]).collect::<Vec<_>>();
        before.chunks(3).flat_map(row).collect()
    };
    let found = sliced(&spec, &tensors, &selection);
    assert_eq!(*found.tensors.get(name).unwrap().to_f32(), columns(&[0, 2]));
    // A head without values is gone as well, and so is its column.
    let values = (0..24).filter(|dim| dim / 8 != 0);
    let mut without = Selection::default();
    without.keep(Kind::VDim, Some(2), values);
    let found = sliced(&spec, &tensors, &without);
    assert_eq!(*found.tensors.get(name).unwrap().to_f32(), columns(&[1, 2]));
    let masked = mask(&spec, &tensors, &without).unwrap();
    let masked = masked.get(name).unwrap().to_f32();
    assert!(masked.chunks(3).all(|row| row[0] == 0.0 && row[1] != 0.0));
}

#[test]
fn a_block_that_goes_leaves_an_empty_one_where_windows_are_shifted_in_turn() {
    let spec = plain_swin();
    let tensors = weights(&spec, 2);
    for kept in [&[0, 2, 3][..], &[1, 3], &[0, 1], &[3], &[]] {
        let selection = keep(&[(Kind::Block, None, kept)]);
        let found = sliced(&spec, &tensors, &selection);
        let swin = body(&found.spec);
        for (layer, core) in swin.cores.iter().enumerate() {
            let there = kept.contains(&layer);
            assert!(
                core.attn.is_some() == there && core.mlp.is_some() == there,
                "{kept:?}"
            );
        }
        let expected = by_network(&spec, &mask(&spec, &tensors, &selection).unwrap());
        alike("network", &by_network(&found.spec, &found.tensors), &expected);
        alike("engine", &by_engine(&found.spec, &found.tensors), &expected);
    }
    // Blocks that share matrices go together or not at all.
    let NetworkSpec::Swin(mut shared) = spec.network.clone() else {
        panic!("no Swin")
    };
    shared.cores.truncate(3);
    shared.layers = [0, 1, 2, 2].map(LayerSpec::of).to_vec();
    let shared = small_model::swin(shared);
    let tensors = weights(&shared, 2);
    let together = keep(&[(Kind::Block, None, &[0, 1])]);
    let found = sliced(&shared, &tensors, &together);
    let expected = by_network(&shared, &mask(&shared, &tensors, &together).unwrap());
    alike("shared", &by_engine(&found.spec, &found.tensors), &expected);
    // Norms that an emptied block owned go to the next one that uses them.
    let NetworkSpec::Swin(mut normed) = spec.network.clone() else {
        panic!("no Swin")
    };
    normed.layers[1].norms = Some(0);
    let normed = small_model::swin(normed);
    let tensors_of_normed = weights(&normed, 2);
    let owner = keep(&[(Kind::Block, None, &[1, 2, 3])]);
    let found = sliced(&normed, &tensors_of_normed, &owner);
    assert_eq!(body(&found.spec).layers[1].norms, None);
    let expected = by_network(&normed, &mask(&normed, &tensors_of_normed, &owner).unwrap());
    alike("norms", &by_engine(&found.spec, &found.tensors), &expected);
    let apart = keep(&[(Kind::Block, None, &[0, 1, 2])]);
    let error = slice(&shared, &tensors, &apart).unwrap_err().to_string();
    assert!(error.contains("block 3 shares its matrices"), "{error}");
}

#[test]
fn an_emptied_half_gets_its_best_unit_back_and_a_dropped_one_is_gone() {
    let spec = plain_swin();
    let tensors = weights(&spec, 4);
    let mut selection = Selection::default();
    for kind in [Kind::Hidden, Kind::Head] {
        selection.drop_all(kind, Some(1));
    }
    selection.drop_all(Kind::Attn, Some(2));
    selection.drop_all(Kind::Mlp, Some(3));
    let found = sliced(&spec, &tensors, &selection);
    assert_eq!(found.readmitted.len(), 2);
    let swin = body(&found.spec);
    assert_eq!(swin.cores[1].attn.as_ref().unwrap().num_heads(), 1);
    assert_eq!(swin.cores[1].mlp.as_ref().unwrap().hidden, 1);
    assert!(swin.cores[2].attn.is_none() && swin.cores[3].mlp.is_none());
    assert!(!found.tensors.contains("layers.1.blocks.0.norm1.weight"));
    let table = "layers.1.blocks.0.attn.relative_position_bias_table";
    assert!(!found.tensors.contains(table) && tensors.contains(table));
    let expected = by_network(&spec, &mask(&spec, &tensors, &selection).unwrap());
    alike("network", &by_network(&found.spec, &found.tensors), &expected);
    alike("engine", &by_engine(&found.spec, &found.tensors), &expected);
}

#[test]
fn a_sliced_swin_is_stored_and_read_as_any_other() {
    let place = tempfile::tempdir().unwrap();
    for seed in 0..12 {
        let spec = if seed < 2 { plain_swin() } else { random(seed) };
        let tensors = weights(&spec, seed);
        let sliced = sliced(&spec, &tensors, &selection(&spec, seed));
        stored_and_read(&place.path().join(seed.to_string()), &sliced);
    }
}

#[test]
fn dense_again_it_answers_the_same_slices_back_and_is_timms() {
    let place = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let spec = plain_swin();
        let tensors = weights(&spec, seed);
        let pruned = sliced(&spec, &tensors, &selection(&spec, seed));
        let dense = to_dense(&pruned.spec, &pruned.tensors).unwrap_or_else(|e| panic!("{e}"));
        dense
            .spec
            .check(&dense.tensors, "dense")
            .unwrap_or_else(|e| panic!("{e}"));
        let what = format!("seed {seed}");
        let expected = by_engine(&pruned.spec, &pruned.tensors);
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
            "{what}"
        );
        // Perceptrons twice as wide in a stage twice as wide: timm has one ratio for all.
        let swin = body(&dense.spec);
        let hidden = |core: usize| swin.cores[core].mlp.as_ref().unwrap().hidden;
        assert_eq!((hidden(1), hidden(2)), (hidden(0), 2 * hidden(0)), "{what}");
        let mut checkpoint = Checkpoint::fresh(&spec.architecture, Some(5), None, 0).unwrap();
        (checkpoint.spec, checkpoint.tensors) = (dense.spec, dense.tensors);
        let folder = place.path().join(seed.to_string());
        checkpoint.save(&folder, false).unwrap();
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        assert!(!config.contains("\"blocks\""), "{config}");
    }
}

#[test]
fn what_a_swin_cannot_lose_is_refused_in_a_sentence() {
    let spec = plain_swin();
    let tensors = weights(&spec, 0);
    let error = |selection: &Selection| slice(&spec, &tensors, selection).unwrap_err().to_string();
    let stream = error(&keep(&[(Kind::Embed, None, &[0, 1])]));
    assert!(stream.contains("patch merging"), "{stream}");
    let found = error(&keep(&[(Kind::Head, Some(4), &[0])]));
    assert!(found.contains("names no units"), "{found}");
}

#[test]
fn tokens_with_which_a_map_is_filled_up_do_not_count() {
    let spec = plain_swin();
    let tensors = weights(&spec, 5);
    let size = spec.input_size();
    let data = TensorData::new(images(&spec), [IMAGES, size[0], size[1], size[2]]);
    let pixels = Tensor::from_data(data, &Device::flex());
    let squares = calibrate::activations(&spec, &tensors, [Ok::<_, Error>(pixels.clone())]).unwrap();
    let network = Network::new(&spec, &tensors, "test", &Device::flex()).unwrap();
    let mut ctx = Ctx::tracing(Trace::sites([Site::AttnHeads]));
    network.forward(pixels, &mut ctx).unwrap();
    for layer in 0..4 {
        let swin = body(&spec);
        let windows = swin.windows(layer).unwrap();
        assert!(windows.pads());
        let passed = ctx.trace.tokens(Site::AttnHeads, Some(layer)).unwrap();
        let [_, _, width] = passed.dims();
        let passed: Vec<f32> = passed.try_to_vec_as().unwrap();
        let mut sums = vec![0.0f64; width];
        let places = windows.tokens();
        for image in passed.chunks(places.len() * width) {
            for (row, token) in image.chunks(width).zip(&places) {
                if token.is_some() {
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
                }
            }
        }
        let tokens = (IMAGES * windows.map[0] * windows.map[1]) as f64;
        let expected: Vec<f32> = sums.iter().map(|sum| (sum / tokens) as f32).collect();
        let name = format!("{}.attn.proj.weight", swin.core_name(layer));
        let found = squares.get(&name).unwrap().to_f32();
        alike_to(1e-4 * largest(&expected), &name, &found, &expected);
    }
}
