//! `analyze cka` and `analyze gradients`: what they tell of plain, shared and multiplexed models, and what they refuse.

#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::fs;

use cli_support::Place;
use serde_json::Value;
use vitesse::model::{Checkpoint, LoadOptions};

/// A place with a model of four blocks, and two of the same whose blocks share in pairs: without and with transformations.
fn place() -> Place {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 8);
    place
        .run("share base --group 2 --transform none --images 2 -o shared")
        .ended(0);
    place
        .run("share base --group 2 --images 2 -o multiplexed")
        .ended(0);
    place
}

/// The numbers under a key of each layer of a result.
fn norms(result: &Value, key: &str) -> Vec<Vec<f64>> {
    let numbers = |layer: &Value| {
        let list = layer[key].as_array().unwrap().iter();
        list.map(|norm| norm.as_f64().unwrap()).collect()
    };
    result["layers"].as_array().unwrap().iter().map(numbers).collect()
}

/// Whether every tag of the page that is opened is closed, and it has so many charts, each with a line for each of these models. A wide
/// chart counts twice: it is there once more for narrow screens.
fn draws(page: &str, charts: usize, models: &[&str]) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    let mut open = Vec::new();
    for piece in page.split('<').skip(1) {
        let tag = piece.split('>').next().unwrap();
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "</{closed}>"),
            None if tag.ends_with('/') || tag.starts_with('!') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    // With several models a legend shows each line once more.
    let shown = if models.len() > 1 { 2 } else { 1 };
    let lines = page.matches("class=\"line ").count();
    assert_eq!(lines, charts * models.len() * shown, "lines");
    for model in models {
        let drawn = page.matches(&format!("<title>{model}</title>")).count();
        assert_eq!(drawn, charts, "{model}");
    }
    assert!(!page.contains("NaN"));
}

#[test]
fn gradients_are_told_by_layer_and_by_use() {
    let place = place();
    let look = "analyze gradients base shared multiplexed --data shapes --batches 3 -b 8";
    let ran = place.run(&format!("{look} --json -o gradients.html")).ended(0);
    ran.says(&["step: gradients of `multiplexed`"]);
    let document = ran.json();
    assert_eq!(
        (&document["batches"], &document["split"]),
        (&3.into(), &"train".into())
    );
    let results = document["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for (result, shares) in results.iter().zip([false, true, true]) {
        assert_eq!((&result["batch_size"], result.get("loss")), (&8.into(), None));
        let (summed, alone) = (norms(result, "summed"), norms(result, "per_use"));
        assert_eq!(summed.len(), 4);
        for (layer, (summed, alone)) in summed.iter().zip(&alone).enumerate() {
            assert_eq!((summed.len(), alone.len()), (3, 3));
            assert!(summed.iter().chain(alone).all(|norm| *norm > 0.0), "{layer}");
            assert_eq!(summed != alone, shares, "{layer}");
        }
        assert_eq!(summed[0] == summed[1], shares);
        let group = &result["layers"][3]["group"];
        let expected = if shares { vec![2, 3] } else { vec![3] };
        assert_eq!(group, &Value::from(expected));
        let all = result["grad_norm"].as_array().unwrap();
        // No part is longer than the whole.
        assert!(
            all.iter()
                .zip(&summed[3])
                .all(|(all, part)| all.as_f64().unwrap() >= *part)
        );
    }
    // Fewer parameters, and the same batches.
    assert!(results[1]["param_count"].as_u64() < results[0]["param_count"].as_u64());
    let page = fs::read_to_string(place.path("gradients.html")).unwrap();
    // By layer two charts beside each other, by batch a wide one.
    draws(&page, 4, &["base", "shared", "multiplexed"]);

    let text = place.run(&look.replace(" base", "")).ended(0).stdout;
    for part in [
        "shares with",
        "this layer alone",
        "3 of 8 images; the model stays as it is",
        " to ",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn a_model_learns_from_the_batches_it_is_looked_at_with() {
    let place = place();
    let look = "analyze gradients multiplexed --data shapes --batches 3 -b 8 --lr 1e-3";
    let ran = place
        .run(&format!("{look} --threads 1 --json -o steps.html"))
        .ended(0);
    let document = ran.json();
    let result = &document["results"][0];
    assert_eq!(
        (result["loss"].as_array().unwrap().len(), &document["lr"]),
        (3, &1e-3.into())
    );
    draws(
        &fs::read_to_string(place.path("steps.html")).unwrap(),
        4,
        &["multiplexed"],
    );
    let still = place
        .run("analyze gradients multiplexed --data shapes --batches 3 -b 8 --json")
        .ended(0)
        .json();
    let (learning, still) = (norms(result, "per_use"), norms(&still["results"][0], "per_use"));
    assert_eq!(
        learning[0][0], still[0][0],
        "before the first step it is the same model"
    );
    assert!(learning[0][1] != still[0][1] && learning[0][2] != still[0][2]);
    // Neither the number of threads nor who looks changes a number, and the model on disk is as it was.
    let again = place.run(&format!("{look} --threads 2 --json")).ended(0).json();
    assert_eq!(again["results"], document["results"]);
    let refused = place
        .run("analyze gradients multiplexed --data shapes --batches 3 -b 8 --lr 1e30")
        .ended(1);
    refused.says(&["at step 1", "learning rate", "the batch was shapes-train["]);
}

#[test]
fn several_models_are_compared_with_the_first() {
    let place = place();
    let ran = place
        .run("analyze cka base base shared multiplexed --images 24 --json -o cka.html")
        .ended(0);
    let document = ran.json();
    let results = document["results"].as_array().unwrap();
    let cka = |result: &Value| -> Vec<f64> {
        let layers = result["layers"].as_array().unwrap().iter();
        layers.map(|cka| cka.as_f64().unwrap()).collect()
    };
    assert_eq!((results.len(), &document["images"]), (3, &24.into()));
    assert!(cka(&results[0]).iter().all(|cka| (cka - 1.0).abs() < 1e-9));
    for result in &results[1..] {
        // The first layer of a group is as in the model that it comes from.
        let [first, others @ ..] = &cka(result)[..] else {
            panic!("no layers")
        };
        assert!((first - 1.0).abs() < 1e-4, "{first}");
        assert!(
            others.iter().all(|cka| (0.0..1.0 - 1e-4).contains(cka)),
            "{others:?}"
        );
    }
    let page = fs::read_to_string(place.path("cka.html")).unwrap();
    draws(&page, 2, &["base", "shared", "multiplexed"]);
    let text = place
        .run("analyze cka base shared multiplexed --images 24")
        .ended(0)
        .stdout;
    assert!(text.contains("multiplexed") && !text.contains("CKA"), "{text}");
}

#[test]
fn pages_are_replaced_only_when_told() {
    let place = place();
    place.write("page.html", "mine");
    for analysis in [
        "cka base shared --images 8",
        "gradients shared --data shapes --batches 1",
    ] {
        let command = format!("analyze {analysis} -o page.html");
        let before = place.listing();
        place
            .run(&command)
            .ended(1)
            .says(&["`page.html` exists already", "--force"]);
        assert_eq!(place.listing(), before);
        assert_eq!(fs::read(place.path("page.html")).unwrap(), b"mine");
        place.run(&format!("{command} --force")).ended(0);
        draws(
            &fs::read_to_string(place.path("page.html")).unwrap(),
            2,
            &["shared"],
        );
        place.write("page.html", "mine");
        let nowhere = format!("analyze {analysis} -o nowhere/page.html");
        place.run(&nowhere).ended(1).says(&["its folder does not exist"]);
    }
}

#[test]
fn what_has_no_gradients_or_no_likeness_is_refused_in_sentences() {
    let place = place();
    let mut broken = Checkpoint::load(place.path("shared"), &LoadOptions::default()).unwrap();
    let name = "blocks.1.mlp.fc1.weight";
    let tensor = broken.tensors.get(name).unwrap().clone();
    let mut values = tensor.to_f32().into_owned();
    (values[5], values[7]) = (f32::NAN, f32::INFINITY);
    broken.tensors.insert_f32(name, tensor.shape(), values).unwrap();
    broken.save(&place.path("broken"), false).unwrap();
    place.model("three", "deit_nano_patch8_32", 3);
    place.model("headless", "deit_nano_patch8_32", 0);
    place.model("regnet", "regnety_nano_32", 8);
    let picture = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli_support/ok.png")).unwrap();
    place.write("pictures/a.png", picture);
    let not_finite =
        "`blocks.1.mlp.fc1.weight` holds infinities or NaN in 2 of 16384 places, first in place 5";
    let gradients = "gradients --batches 1 --data shapes";
    for (args, said) in [
        (format!("{gradients} broken"), not_finite),
        ("cka base broken --images 8".to_owned(), not_finite),
        (
            format!("{gradients} three"),
            "`shapes` has 8 classes, the model 3",
        ),
        (
            format!("{gradients} headless"),
            "has no classes and returns features",
        ),
        (format!("{gradients} regnet"), "is a convolutional network"),
        (
            "gradients base --batches 1 --data pictures --split all".to_owned(),
            "`pictures` has no labels, and gradients are those of a loss on labels",
        ),
        (
            "gradients deit_nano_patch8_32 --batches 1 --data pictures --split all".to_owned(),
            "`pictures` has no labels",
        ),
        ("cka base shared --images 1".to_owned(), "take at least 2 images"),
        (
            "gradients base --data nothing".to_owned(),
            "cannot read `nothing`",
        ),
    ] {
        let ran = place.run(&format!("analyze {args} -o page.html")).ended(1);
        ran.says(&[said]);
        assert!(!place.path("page.html").exists(), "{args}");
    }
    for (args, said) in [
        ("gradients --data shapes", "MODEL"),
        ("gradients base", "--data"),
        ("gradients base --data shapes --lr 0", "expected a number above 0"),
        (
            "gradients base --data shapes --batches 0",
            "expected a whole number from 1",
        ),
        ("cka base", "MODEL"),
    ] {
        place.run(&format!("analyze {args}")).ended(2).says(&[said]);
    }
}
