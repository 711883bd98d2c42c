//! `eval`, `predict` and `run`: what they compute, and the accuracy of published weights on real images.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;
#[path = "../crates/vitesse-model/tests/pickle/mod.rs"]
mod pickle;
mod support;

use std::fs;
use std::process::Command;

use cli_support::Place;
use pickle::Object;
use serde_json::Value;
use vitesse::model::config::ProblemType;
use vitesse::model::storage::safetensors::{self, Metadata};
use vitesse::model::{Checkpoint, Tensors};

fn number(document: &Value, key: &str) -> f64 {
    document[key]
        .as_f64()
        .unwrap_or_else(|| panic!("`{key}` is no number in {document}"))
}

#[test]
fn eval_reports_numbers() {
    let place = Place::new();
    let ran = place
        .run("eval --model vit_nano_patch4_32 --data shapes --limit 60 -b 7 --json")
        .ended(0);
    ran.says(&["note: `vit_nano_patch4_32` is a name: its weights are fresh"]);
    let found = ran.json();
    for key in [
        "top1",
        "top5",
        "top1_err",
        "top5_err",
        "loss",
        "balanced_accuracy",
        "param_count",
        "macs",
        "crop_pct",
        "images",
        "unreadable",
        "images_per_s",
        "seconds",
        "load_seconds",
        "forward_seconds",
        "threads",
    ] {
        assert!(found[key].is_number(), "`{key}` in {found}");
    }
    assert_eq!(number(&found, "images"), 60.0);
    assert_eq!(found["img_size"], serde_json::json!([32, 32]));
    // The name got the data set's eight classes.
    assert_eq!(number(&found, "num_classes"), 8.0);
    assert!((number(&found, "top1") + number(&found, "top1_err") - 100.0).abs() < 1e-6);
    assert_eq!(
        (found["interpolation"].as_str(), found["weights"].as_str()),
        (Some("bicubic"), Some("fresh"))
    );

    // Neither the batch size nor the threads change the result.
    let other =
        place.run("eval --model vit_nano_patch4_32 --data shapes --limit 60 -b 60 --threads 1 -j 1 --json");
    let other = other.ended(0).json();
    assert_eq!(other["top1"], found["top1"]);
    assert!((number(&other, "loss") - number(&found, "loss")).abs() < 1e-5);
    assert_eq!(number(&other, "threads"), 1.0);

    let text =
        place.run("eval --model vit_nano_patch4_32 --data shapes --limit 16 --crop-pct 0.9 --img-size 48");
    let text = text.ended(0).stdout;
    for part in [
        "top-1",
        "balanced accuracy",
        "48 x 48 pixels, crop 0.9, bicubic",
        "images/s",
        "waiting for images",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn shifted_versions_are_matched_by_name() {
    let place = Place::new();
    place.model("m", "deit_nano_patch8_32", 8);
    place
        .run("data draw shapes:silhouette -o clean --count 80")
        .ended(0);
    // Its names are the figures; those of the folders have numbers besides.
    fs::remove_file(place.path("clean/labels.csv")).unwrap();
    let copy = |class: &str, to: &str| {
        let to = place.path(to);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(place.path("clean").join(class)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    };
    let mut classes: Vec<String> = fs::read_dir(place.path("clean"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    classes.sort();
    assert_eq!(classes.len(), 8);
    classes
        .iter()
        .for_each(|class| copy(class, &format!("all/{class}")));
    // Not the first ones, so that their numbers are others.
    classes[5..]
        .iter()
        .for_each(|class| copy(class, &format!("some/{class}")));

    let ran = place
        .run("eval --model m --data clean --shifted all some --json")
        .ended(0)
        .json();
    let (all, some) = (&ran["shifted"]["sets"][0], &ran["shifted"]["sets"][1]);
    assert_eq!((&all["classes"], &some["classes"]), (&8.into(), &3.into()));
    assert_eq!(all["images"], ran["images"]);
    assert!(some["images"].as_u64() < all["images"].as_u64());
    for key in ["top1", "balanced_accuracy"] {
        assert_eq!(all[key], ran[key]);
        // The same pictures, so the same answers.
        assert_eq!(some[key], some[&format!("clean_{key}")]);
    }
    assert_eq!(
        (
            number(some, "difference"),
            number(&ran["shifted"]["mean"], "difference")
        ),
        (0.0, 0.0)
    );
    let mean = (number(all, "top1") + number(some, "top1")) / 2.0;
    assert!((number(&ran["shifted"]["mean"], "top1") - mean).abs() < 1e-3);
    // Fewer classes are easier to tell apart.
    assert!(
        number(some, "top1") >= 20.0 && number(&ran, "top1") < 100.0,
        "{ran}"
    );

    let text = place
        .run("eval --model m --data clean --shifted some")
        .ended(0)
        .stdout;
    assert!(text.contains("difference") && text.contains("mean"), "{text}");
    copy(&classes[0], "other/unheard-of");
    place
        .run("eval --model m --data clean --shifted other")
        .ended(1)
        .says(&[
            "`other` has the class `unheard-of`, and `clean` has none",
            "matched by name",
        ]);
}

#[test]
fn eval_of_a_distilled_model_shows_both_heads() {
    let place = Place::new();
    let checkpoint = place.model("m", "deit_micro_distilled_patch4_32", 8);
    assert!(checkpoint.spec.vit().unwrap().is_distilled());
    let args = "eval --model m --data shapes --limit 24 --json --joint";
    let found = |joint: &str| place.run(&format!("{args} {joint}")).ended(0).json();
    let (mean, class, distillation) = (found("logit-mean"), found("class"), found("distillation"));
    assert_eq!(class["loss"], class["heads"]["class"]["loss"]);
    assert_eq!(
        distillation["loss"],
        distillation["heads"]["distillation"]["loss"]
    );
    assert_ne!(class["loss"], distillation["loss"]);
    assert_ne!(mean["loss"], class["loss"]);
    found("softmax");
}

#[test]
fn eval_leaves_out_and_names_what_cannot_be_read() {
    let place = Place::new();
    place.run("data draw shapes -o drawn --count 16").ended(0);
    place.write("drawn/000_circle/00000.png", "no picture");
    let args = "eval --model vit_nano_patch4_32 --data drawn";
    let found = place.run(&format!("{args} --json")).ended(0).json();
    assert_eq!(
        (number(&found, "images"), number(&found, "unreadable")),
        (15.0, 1.0)
    );
    assert_eq!(found["unreadable_files"][0]["name"], "000_circle/00000.png");
    let strict = place.run(&format!("{args} --strict")).ended(3);
    assert!(
        strict.stdout.contains("000_circle/00000.png"),
        "{}",
        strict.stdout
    );
}

#[test]
fn predict_names_classes_and_survives_a_bad_file() {
    let place = Place::new();
    place.model("m", "vit_nano_patch4_32", 8);
    place.run("data draw shapes -o d --count 16").ended(0);
    place.write("bad.jpg", "no picture");
    let files = "d/000_circle/00000.png bad.jpg d/001_ring/00001.png";
    let ran = place
        .run(&format!(
            "predict --model m --labels d/labels.csv --topk 3 --json {files}"
        ))
        .ended(1);
    ran.says(&["error: `bad.jpg` cannot be decoded"]);
    let found = ran.json();
    let predictions = found["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 3);
    assert!(
        predictions[1]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("bad.jpg")
    );
    for prediction in [&predictions[0], &predictions[2]] {
        let classes = prediction["classes"].as_array().unwrap();
        let scores: Vec<f64> = classes.iter().map(|class| number(class, "score")).collect();
        assert_eq!(scores.len(), 3);
        assert!(
            scores.is_sorted_by(|a, b| a >= b) && scores.iter().sum::<f64>() <= 1.0,
            "{scores:?}"
        );
        assert!(
            classes
                .iter()
                .all(|class| class["name"].as_str().unwrap().parse::<usize>().is_err()),
            "{classes:?}"
        );
    }
    // Each file by itself says the same, whatever the batch.
    let alone = place
        .run("predict --model m --topk 8 -b 1 --json d/001_ring/00001.png")
        .ended(0)
        .json();
    let alone = &alone["predictions"][0]["classes"];
    assert_eq!(
        alone[0]["class_index"],
        predictions[2]["classes"][0]["class_index"]
    );
    assert!((number(&alone[0], "score") - number(&predictions[2]["classes"][0], "score")).abs() < 1e-6);
    let sum: f64 = alone
        .as_array()
        .unwrap()
        .iter()
        .map(|class| number(class, "score"))
        .sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    // Without names, classes are numbers.
    assert!(alone[0]["name"].is_null());
}

/// What `predict` says with more arguments, by class.
fn scores(place: &Place, args: &str) -> Vec<f64> {
    let found = place
        .run(&format!("predict --topk 9 --json {args}"))
        .ended(0)
        .json();
    let classes = found["predictions"][0]["classes"].as_array().unwrap().clone();
    let mut scores = vec![0.0; classes.len()];
    for class in classes {
        scores[class["class_index"].as_u64().unwrap() as usize] = number(&class, "score");
    }
    scores
}

#[test]
fn scores_are_as_the_checkpoint_says() {
    let place = Place::new();
    place.run("data draw shapes:silhouette -o d --count 8").ended(0);
    for (name, classes) in [("several", 8), ("one", 1)] {
        let mut model = Checkpoint::fresh("deit_nano_patch8_32", Some(classes), None, 1).unwrap();
        // Not so small that nothing could be told apart.
        let bias = (0..classes).map(|class| class as f32 - 2.0).collect();
        model.tensors.insert_f32("head.bias", &[classes], bias).unwrap();
        model.save(&place.path(name), false).unwrap();
        for problem in [ProblemType::MultiLabelClassification, ProblemType::Regression] {
            model.config.problem_type = Some(problem);
            let kind = serde_json::to_value(problem).unwrap();
            model
                .save(&place.path(&format!("{name}-{}", kind.as_str().unwrap())), false)
                .unwrap();
        }
    }
    let picture = "d/000_circle/00000.png";
    let logits = scores(&place, &format!("--model several-regression {picture}"));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let near = |found: &[f64], expected: Vec<f64>| {
        assert_eq!(found.len(), expected.len());
        assert!(
            found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{found:?} {expected:?}"
        );
    };
    let several = scores(
        &place,
        &format!("--model several-multi_label_classification {picture}"),
    );
    near(&several, logits.iter().copied().map(sigmoid).collect());
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    let single = scores(&place, &format!("--model several {picture}"));
    near(&single, logits.iter().map(|x| x.exp() / sum).collect());
    // One class alone is a yes or no, unless it is a value.
    let value = scores(&place, &format!("--model one-regression {picture}"));
    let yes = scores(&place, &format!("--model one {picture}"));
    near(&yes, value.iter().copied().map(sigmoid).collect());
    place
        .run(&format!(
            "predict --model several-multi_label_classification --joint softmax {picture}"
        ))
        .ended(2)
        .says(&["--joint softmax"]);
    place
        .run("eval --model several-multi_label_classification --data d --labels-by index --json")
        .ended(0)
        .says(&["scores each class by itself"]);
    let text = place
        .run(&format!("predict --model several-regression {picture}"))
        .ended(0)
        .stdout;
    assert!(text.contains("value") && !text.contains('%'), "{text}");
}

#[test]
fn a_folder_is_its_pictures() {
    let place = Place::new();
    place.model("m", "deit_nano_patch8_32", 8);
    place.run("data draw shapes:silhouette -o d --count 24").ended(0);
    fs::remove_file(place.path("d/labels.csv")).unwrap();
    place.write("d/.hidden.png", "");
    let found = place
        .run("predict --model m --json d d/000_circle")
        .ended(0)
        .json();
    let files: Vec<&str> = found["predictions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["file"].as_str().unwrap())
        .collect();
    assert_eq!(files.len(), 24 + 3, "{files:?}");
    assert!(files.contains(&"d/001_ring/00001.png"), "{files:?}");
    // Whatever the folder looks like: beside folders, listed or not.
    fs::create_dir_all(place.path("mix/sub")).unwrap();
    for (from, to) in [
        ("d/000_circle/00000.png", "mix/a.png"),
        ("d/001_ring/00001.png", "mix/sub/x.png"),
    ] {
        fs::copy(place.path(from), place.path(to)).unwrap();
    }
    place.write("mix/labels.csv", "filename,class_index\na.png,0\n");
    place.write("mix/scan.tif", "");
    let ran = place.run("predict --model m --json mix").ended(0);
    assert_eq!(ran.json()["predictions"].as_array().unwrap().len(), 2);
    ran.says(&["scan.tif"]);
    place.write("empty/notes.txt", "");
    place.run("predict --model m empty").ended(1).says(&["empty"]);
}

/// A pipe would be waited for, and a device never ends.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_at_once() {
    let place = Place::new();
    place.model("m", "deit_nano_patch8_32", 2);
    let made = Command::new("mkfifo")
        .arg(place.path("pipe.png"))
        .status()
        .unwrap();
    assert!(made.success());
    for path in ["pipe.png", "/dev/zero"] {
        place
            .run(&format!("predict --model m {path}"))
            .ended(1)
            .says(&["a pipe or a device"]);
    }
}

/// The smallest JPEG that a camera held on its side could have written: `picture` behind a flag that it is to be turned.
fn turned(picture: &image::RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95)
        .encode_image(picture)
        .unwrap();
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    bytes.splice(2..2, exif.iter().copied());
    bytes
}

#[test]
fn rotation_flags_and_limits_are_followed_where_asked_for() {
    let place = Place::new();
    place.model("m", "deit_nano_patch8_32", 2);
    let picture = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(8 * x) as u8, (8 * y) as u8, 0]));
    place.write("d/a/1.jpg", turned(&picture));
    place.write("plain/a/1.jpg", {
        let mut bytes = turned(&picture);
        bytes.drain(2..2 + 36);
        bytes
    });
    let say = |args: &str| scores(&place, &format!("--model m {args}"));
    let plain = say("plain/a/1.jpg");
    assert_eq!(say("d/a/1.jpg"), plain);
    assert_ne!(say("--exif d/a/1.jpg"), plain);
    let loss = |args: &str| {
        let found = place
            .run(&format!("eval --model m --json {args}"))
            .ended(0)
            .json();
        number(&found, "loss")
    };
    assert_eq!(loss("--data d"), loss("--data plain"));
    assert_ne!(loss("--data d --exif"), loss("--data plain"));

    for verb in [
        "eval --model m --data d --strict",
        "data check --data d",
        "predict --model m d/a/1.jpg",
    ] {
        place.run(&format!("{verb} --max-pixels 1024")).ended(0);
        let refused = place.run(&format!("{verb} --max-pixels 1023"));
        assert_ne!(refused.code, 0, "{verb}");
        let said = refused.stdout + &refused.stderr;
        assert!(
            said.contains("too large") && said.contains("--max-pixels"),
            "{verb}: {said}"
        );
    }
}

/// The logits that `run` writes for raw tensors.
/// A model of one channel sees a picture's luminance: a colour picture and its grey one are the same to it.
#[test]
fn one_channel_is_luminance() {
    let place = Place::new();
    place.one_channel("grey");
    let colour = image::RgbImage::from_fn(40, 33, |x, y| {
        image::Rgb([(x * 6) as u8, (y * 7) as u8, (x * y) as u8])
    });
    let grey = image::GrayImage::from_fn(40, 33, |x, y| {
        let [red, green, blue] = colour.get_pixel(x, y).0.map(u32::from);
        image::Luma([((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8])
    });
    colour.save(place.path("colour.png")).unwrap();
    grey.save(place.path("grey.png")).unwrap();
    let predicted = place
        .run("predict --model grey colour.png grey.png --json")
        .ended(0)
        .json();
    let [one, other] = [0, 1].map(|i| predicted["predictions"][i]["classes"].clone());
    assert!(
        one == other && one.as_array().is_some_and(|classes| classes.len() == 5),
        "{one} {other}"
    );
    let eval = place
        .run("eval --model grey --data shapes:plain-count --limit 30 --json")
        .ended(0)
        .json();
    assert_eq!(eval["images"], 30);
}

#[test]
fn run_writes_what_the_heads_say() {
    let place = Place::new();
    place.model("m", "deit_micro_distilled_patch4_32", 8);
    let pixels: Vec<f32> = (0..5 * 3 * 32 * 32)
        .map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0)
        .collect();
    let mut tensors = Tensors::new();
    tensors
        .insert_f32("pixel_values", &[5, 3, 32, 32], pixels)
        .unwrap();
    safetensors::write(&place.path("x.safetensors"), &tensors, &Metadata::new()).unwrap();

    let args = "run --model m --input x.safetensors --output";
    let report = place
        .run(&format!("{args} y.safetensors -b 2 --json"))
        .ended(0)
        .json();
    assert_eq!(report["shape"], serde_json::json!([5, 8]));
    let read = |name: &str| safetensors::read(&place.path(name)).unwrap().0;
    let y = read("y.safetensors");
    let values = |key: &str| y.get_shaped(key, &[5, 8]).unwrap().to_f32().into_owned();
    let (joint, class, distill) = (values("logits"), values("logits_class"), values("logits_distill"));
    for ((joint, class), distill) in joint.iter().zip(&class).zip(&distill) {
        assert_eq!(*joint, (class + distill) / 2.0);
    }
    // Another batch size, the same logits.
    place.run(&format!("{args} z.safetensors -b 5")).ended(0);
    for (a, b) in joint
        .iter()
        .zip(read("z.safetensors").get("logits").unwrap().to_f32().iter())
    {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }

    let before = fs::read(place.path("y.safetensors")).unwrap();
    place
        .run(&format!("{args} y.safetensors"))
        .ended(1)
        .says(&["`y.safetensors` exists already", "--force"]);
    assert_eq!(fs::read(place.path("y.safetensors")).unwrap(), before);
    place
        .run(&format!("{args} y.safetensors --force --joint class"))
        .ended(0);
    assert_eq!(read("y.safetensors").get("logits").unwrap().to_f32(), class);
}

/// Ctrl-C ends a run between two batches, with a status of its own.
#[cfg(unix)]
#[test]
fn a_run_can_be_interrupted() {
    // Once it has spoken, it listens.
    let ran = Place::new().interrupt(
        "eval --model vit_micro_patch4_32 --data shapes --split train",
        "note",
    );
    ran.ended(130).says(&["error: interrupted; nothing was written"]);
}

const WEIGHTS: &str = "weights/deit_tiny_patch16_224.fb_in1k";
const IMAGES: &str = "data/imagenet-sample";

/// The published weights on a thousand real images, against PyTorch and timm.
#[test]
fn published_weights_have_their_published_accuracy() {
    accuracy("", 78.1, 94.0);
}

/// The same with another crop.
#[test]
fn published_weights_with_another_crop() {
    accuracy("--crop-pct 0.875", 78.7, 93.5);
}

#[track_caller]
fn accuracy(args: &str, top1: f64, top5: f64) {
    let (Some(weights), Some(images)) = (support::shared(WEIGHTS), support::shared(IMAGES)) else {
        return;
    };
    let command = format!(
        "eval --model {} --data {} --json {args}",
        weights.display(),
        images.display()
    );
    let found = Place::new().run(&command).ended(0).json();
    assert_eq!(number(&found, "images"), 1000.0);
    println!(
        "top-1 {}, top-5 {}, {} images/s",
        found["top1"], found["top5"], found["images_per_s"]
    );
    assert!(
        (number(&found, "top1") - top1).abs() < 0.1 + 1e-9,
        "top-1 {}",
        found["top1"]
    );
    assert!(
        (number(&found, "top5") - top5).abs() < 0.1 + 1e-9,
        "top-5 {}",
        found["top5"]
    );
}

#[test]
fn a_state_dict_is_chosen_and_an_image_size_has_two_sides() {
    let place = Place::new();
    let dict = |seed| {
        let made = Checkpoint::fresh("deit_nano_patch8_32", Some(4), None, seed).unwrap();
        Object::StateDict(made.tensors)
    };
    let file = pickle::dict([("model", dict(1)), ("model_ema", dict(2)), ("teacher", dict(3))]);
    pickle::save(&place.path("x.pth"), &file);
    let mut tensors = Tensors::new();
    tensors
        .insert_f32("pixel_values", &[1, 3, 32, 48], vec![0.5; 3 * 32 * 48])
        .unwrap();
    safetensors::write(&place.path("i.safetensors"), &tensors, &Metadata::new()).unwrap();

    let report = place.run("inspect --model x.pth --json").ended(0).json();
    let dicts = &report["file"]["state_dicts"];
    assert_eq!(
        dicts,
        &serde_json::json!(
            ["model", "model_ema", "teacher"].map(|key| serde_json::json!({ "key": key, "tensors": 56 }))
        )
    );
    assert!(
        place
            .run("inspect --model x.pth")
            .ended(0)
            .stdout
            .contains("teacher (56)")
    );

    let logits = |flags: &str| {
        let args = format!("run --model x.pth --input i.safetensors --output y.safetensors --force {flags}");
        let ran = place.run(&args).ended(0);
        let (y, _) = safetensors::read(&place.path("y.safetensors")).unwrap();
        (y.get("logits").unwrap().to_f32().into_owned(), ran.stderr)
    };
    let (averaged, said) = logits("--img-size 32x48");
    assert!(
        said.contains("`model_ema`, the moving average, as timm does"),
        "{said}"
    );
    assert!(
        said.contains("from 4x4 to 4x6 patches") && said.contains("original DeiT code"),
        "{said}"
    );
    let (plain, _) = logits("--img-size 32x48 --key model");
    let (antialiased, said) = logits("--img-size 32x48 --key model --pos-resize timm");
    assert!(said.contains("as timm does, antialiased"), "{said}");
    let (hf, _) = logits("--img-size 32x48 --key model --pos-resize hf");
    assert!(averaged != plain && plain != antialiased && plain == hf);

    place.run("inspect --model x.pth --key student").ended(1).says(&[
        "x.pth",
        "`student`",
        "`model` (56 tensors)",
        "`teacher` (56 tensors)",
    ]);
    place
        .run("inspect --model vit_nano_patch4_32 --key model")
        .ended(2)
        .says(&["--key describes a weights file"]);
    place
        .run("eval --model x.pth --data shapes --pos-resize timm")
        .ended(2)
        .says(&["--img-size"]);
    for size in ["0", "32x", "x32", "32x48x3", "9999", "a"] {
        place
            .run(&format!("eval --model x.pth --data shapes --img-size {size}"))
            .ended(2)
            .says(&["such as 224x448"]);
    }
    place
        .run("eval --model x.pth --data shapes --img-size 30x32")
        .ended(1)
        .says(&["multiple of the patch size 8"]);
    // Rectangles are evaluated, too.
    place
        .run("eval --model x.pth --data shapes:plain-count --num-classes 5 --img-size 32x48 --limit 20")
        .ended(0);
}

#[test]
fn a_sliced_state_dict_is_told_its_heads() {
    let place = Place::new();
    // A file without a description, whose blocks may have one head as well as the two they were made with.
    let made = Checkpoint::fresh("deit_nano_patch8_32", Some(4), None, 0).unwrap();
    safetensors::write(&place.path("x.safetensors"), &made.tensors, &Metadata::new()).unwrap();
    let said = place.run("inspect --model x.safetensors --num-heads 2,1,2,2 --head-dim 32");
    let said = said.ended(0).stdout;
    assert!(
        said.contains("the attention scale is that of heads 32 wide"),
        "{said}"
    );
    place
        .run("run --model x.safetensors --num-heads 2,1 --input i.safetensors --output y.safetensors")
        .ended(1)
        .says(&["x.safetensors", "2 numbers", "4 blocks"]);
    let recipe = place
        .run("train --model x.safetensors --num-heads 2,1,2,2 --head-dim 32 --data shapes --dry-run -o out");
    let recipe = recipe.ended(0).stdout;
    assert!(
        recipe.contains("num_heads = [") && recipe.contains("head_dim = 32"),
        "{recipe}"
    );
    for (flags, says) in [
        ("--model x.safetensors --num-heads 0", "--num-heads"),
        ("--model x.safetensors --head-dim 32", "--num-heads"),
        (
            "--model vit_nano_patch4_32 --num-heads 2",
            "--num-heads describes a weights file",
        ),
    ] {
        place.run(&format!("inspect {flags}")).ended(2).says(&[says]);
    }
}
