//! `eval`, `predict` and `run`: what they compute, and the accuracy of published weights on real images.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;
#[path = "../crates/vitesse-model/tests/pickle/mod.rs"]
mod pickle;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use cli_support::Place;
use pickle::Object;
use serde_json::Value;
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
        "img_size",
        "crop_pct",
        "images",
        "unreadable",
        "images_per_second",
        "seconds",
        "load_seconds",
        "forward_seconds",
        "threads",
    ] {
        assert!(found[key].is_number(), "`{key}` in {found}");
    }
    assert_eq!(number(&found, "images"), 60.0);
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
    assert_eq!(alone[0]["name"], alone[0]["class_index"].to_string());
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
    let mut child = Command::new(env!("CARGO_BIN_EXE_vitesse"))
        .args([
            "eval",
            "--model",
            "vit_micro_patch4_32",
            "--data",
            "shapes",
            "--split",
            "train",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // Once it has spoken, it listens.
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("error: interrupted"), "{said}");
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
        found["top1"], found["top5"], found["images_per_second"]
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
