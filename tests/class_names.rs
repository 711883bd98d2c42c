//! The classes of data and models find each other by their names, in every verb that knows both.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{Place, Ran};
use serde_json::Value;
use vitesse::data::{Image, OpenOptions, open};
use vitesse::model::{Checkpoint, LoadOptions, Tensors};

/// Pictures in `name`, a folder for each of `classes`, that a fresh model tells apart no better than by chance.
fn pictures(place: &Place, name: &str, classes: &[&str]) {
    let drawn = open("shapes:silhouette", &OpenOptions::default()).unwrap();
    for (class, folder) in classes.iter().enumerate() {
        for i in 0..6 {
            let picture = drawn.load(8 * i + class).unwrap();
            place.write(&format!("{name}/{folder}/{i}.png"), png(&picture));
        }
    }
}

fn png(picture: &Image) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let buffer = image::RgbImage::from_raw(width, height, picture.data().to_vec()).unwrap();
    buffer.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A copy of the model `of` whose classes stand in `order`, called `names` in that order.
fn ordered(place: &Place, of: &str, name: &str, order: &[usize], names: &[&str]) {
    let mut model = Checkpoint::load(place.path(of), &LoadOptions::default()).unwrap();
    let rows = |tensors: &Tensors, name: &str| {
        let tensor = tensors.get(name).unwrap();
        let (shape, values) = (tensor.shape().to_vec(), tensor.to_f32().into_owned());
        let width = values.len() / shape[0];
        let moved: Vec<f32> = order
            .iter()
            .flat_map(|&row| values[row * width..][..width].to_vec())
            .collect();
        (shape, moved)
    };
    for head in ["head.weight", "head.bias"] {
        let (shape, moved) = rows(&model.tensors, head);
        model.tensors.insert_f32(head, &shape, moved).unwrap();
    }
    model.config.label_names = names.iter().map(|&name| name.to_owned()).enumerate().collect();
    model.save(&place.path(name), true).unwrap();
}

const CLASSES: [&str; 3] = ["ant", "bee", "cow"];

/// The models `plain`, whose classes are in the order of the folders, `turned`, the same with another order, `others`, with
/// other names, and `bare`, without.
fn models(place: &Place) {
    place.model("bare", "deit_nano_patch8_32", 3);
    ordered(place, "bare", "plain", &[0, 1, 2], &CLASSES);
    ordered(place, "bare", "turned", &[2, 0, 1], &["cow", "ant", "bee"]);
    ordered(place, "bare", "others", &[0, 1, 2], &["dog", "eel", "fox"]);
}

fn loss(ran: &Ran) -> f64 {
    ran.json()["loss"].as_f64().unwrap()
}

#[test]
fn eval_matches_by_name() {
    let place = Place::new();
    pictures(&place, "data", &CLASSES);
    models(&place);
    let eval = |rest: &str| place.run(&format!("eval --data data --json {rest}"));
    let plain = eval("--model plain").ended(0);
    assert!(!plain.stderr.contains("order"), "{}", plain.stderr);
    let turned = eval("--model turned").ended(0);
    turned.says(&["another order", "`ant` is class 0 of the data and 1 of the model"]);
    assert!((loss(&turned) - loss(&plain)).abs() < 1e-6);

    let by_index = eval("--model turned --labels-by index").ended(0);
    by_index.says(&["by position, as asked", "`ant` is the model's `cow`"]);
    assert!((loss(&by_index) - loss(&plain)).abs() > 1e-4);
    let bare = eval("--model bare").ended(0);
    assert_eq!(loss(&bare), loss(&plain));

    eval("--model others")
        .ended(1)
        .says(&["`ant`, `bee`, `cow`", "`dog`", "--labels-by index"]);
    assert_eq!(
        loss(&eval("--model others --labels-by index").ended(0)),
        loss(&plain)
    );

    // A part of the classes, in folders that are numbered and written otherwise.
    pictures(&place, "some", &["1_Cow"]);
    eval("--model turned --data some").ended(2);
    let part = place.run("eval --data some --model turned --json").ended(0);
    part.says(&["1 of the model's 3 classes"]);
    assert_eq!(part.json()["images"], 6);
}

#[test]
fn compare_matches_each_model_and_compares_answers_by_name() {
    let place = Place::new();
    pictures(&place, "data", &CLASSES);
    models(&place);
    place.model("five", "deit_nano_patch8_32", 5);
    let compare = |rest: &str| {
        place.run(&format!(
            "compare --data data --rounds 1 --seconds 0.01 -b 1 --json {rest}"
        ))
    };
    let found = compare("plain turned bare").ended(0);
    found.says(&["turned: the data's classes stand in another order"]);
    let document = found.json();
    let results = &document["results"];
    let results = if results.is_array() {
        results
    } else {
        &document["evaluated"]["results"]
    };
    for i in 0..3 {
        assert_eq!(results[i]["top1"], results[0]["top1"], "{document}");
        assert_eq!(results[i]["agreement"], Value::from(100.0), "{document}");
    }
    let document = compare("plain five").ended(0).json();
    let results = &document["results"];
    let results = if results.is_array() {
        results
    } else {
        &document["evaluated"]["results"]
    };
    assert!(results[1]["agreement"].is_null(), "{document}");
    compare("plain others")
        .ended(1)
        .says(&["`ant`", "--labels-by index"]);
    compare("plain others --labels-by index").ended(0);
}

#[test]
fn names_of_another_number_of_classes_are_refused() {
    let place = Place::new();
    place.model("bare", "deit_nano_patch8_32", 3);
    for names in [&["cow", "ant", "bee", "dog"][..], &["cow", "ant"]] {
        ordered(&place, "bare", "wrong", &[0, 1, 2], names);
        let says = format!(
            "`label_names` has {} names, but the model has 3 classes",
            names.len()
        );
        place.run("inspect --model wrong").ended(1).says(&[&says]);
    }
}

/// The flags of a run of one epoch.
const SHORT: &str = "--data data --epochs 1 -b 6 --preset finetune --warmup-epochs 0 --workers 1 --aa none --reprob 0 --mixup 0 \
                     --cutmix 0 --hflip 0 --drop-path 0 --lr 1e-4 --threads 1";

fn final_names(place: &Place, run: &str) -> Vec<String> {
    let model = Checkpoint::load(place.path(run).join("final"), &LoadOptions::default()).unwrap();
    model.config.label_names.into_values().collect()
}

#[test]
fn training_goes_on_with_the_models_classes() {
    let place = Place::new();
    pictures(&place, "data", &CLASSES);
    models(&place);
    let train = |rest: &str| place.run(&format!("train {SHORT} {rest} --json"));
    train("--model turned --dry-run -o never")
        .ended(0)
        .says(&["another order"]);
    train("--model turned -o turned-run")
        .ended(0)
        .says(&["another order"]);
    train("--model plain -o plain-run").ended(0);
    assert_eq!(final_names(&place, "turned-run"), ["cow", "ant", "bee"]);
    assert_eq!(final_names(&place, "plain-run"), CLASSES);
    // The same class has learned the same, wherever it stands.
    let eval = |run: &str| {
        loss(
            &place
                .run(&format!("eval --data data --json --model {run}/final"))
                .ended(0),
        )
    };
    assert!((eval("turned-run") - eval("plain-run")).abs() < 1e-4);

    // Other pictures under the run are not gone on with.
    place.run("train --resume -o plain-run").ended(0);
    pictures(&place, "more", &CLASSES);
    std::fs::copy(place.path("more/ant/0.png"), place.path("data/ant/new.png")).unwrap();
    place
        .run("train --resume -o plain-run")
        .ended(1)
        .says(&["the pictures that it learned from are not those"]);
    std::fs::remove_file(place.path("data/ant/new.png")).unwrap();

    train("--model others -o refused")
        .ended(1)
        .says(&["`ant`", "--labels-by index"]);
    assert!(!place.path("refused").exists());
    train("--model others --labels-by index -o renamed")
        .ended(0)
        .says(&["by position, as asked"]);
    assert_eq!(final_names(&place, "renamed"), CLASSES);
}

#[test]
fn a_teacher_answers_for_the_students_classes() {
    let place = Place::new();
    pictures(&place, "data", &CLASSES);
    models(&place);
    let distill = |teacher: &str, rest: &str| {
        place.run(&format!(
            "distill {SHORT} --model deit_nano_patch8_32 --teacher {teacher} --distillation-type soft --json {rest}"
        ))
    };
    distill("turned", "-o by-turned")
        .ended(0)
        .says(&["`turned", "classes in another order"]);
    distill("plain", "-o by-plain").ended(0);
    let weights = |run: &str| std::fs::read(place.path(run).join("final/model.safetensors")).unwrap();
    assert_eq!(weights("by-turned"), weights("by-plain"));
    distill("others", "-o refused")
        .ended(1)
        .says(&["cannot be the teacher", "`ant`", "--labels-by index"]);
    assert!(!place.path("refused").exists());
    distill("turned", "--labels-by index -o by-index").ended(0);
    assert_ne!(weights("by-index"), weights("by-plain"));
}
