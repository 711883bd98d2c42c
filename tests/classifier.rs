//! What an application that classifies pictures sees of this library.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use vitesse::data::{Image, decode_file};
use vitesse::engine::{Engine, Options, Precision};
use vitesse::measure::Labels;
use vitesse::model::config::{ProblemType, Scores};
use vitesse::model::{Checkpoint, Fusion};
use vitesse::{Class, Classifier, ClassifierOptions, Error};

/// A distilled model of `classes` classes with fresh weights. Both heads differ.
fn model(classes: usize) -> Checkpoint {
    let mut model = Checkpoint::fresh("deit_nano_distilled_patch8_32", Some(classes), None, 1).unwrap();
    for (head, shift) in [("head.bias", 0.5), ("head_dist.bias", -0.25)] {
        let bias: Vec<f32> = (0..classes).map(|i| shift * i as f32).collect();
        model.tensors.insert_f32(head, &[classes], bias).unwrap();
    }
    model.config.label_names = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu"]
        .into_iter()
        .map(str::to_owned)
        .enumerate()
        .take(classes)
        .collect();
    model
}

fn classifier(model: Checkpoint, options: ClassifierOptions) -> Classifier {
    Classifier::new(model, options, &mut ()).unwrap()
}

/// A folder with a picture that can be read, and one that cannot.
fn pictures() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (good, torn) = (folder.path().join("good.png"), folder.path().join("torn.png"));
    fs::write(&good, include_bytes!("cli_support/ok.png")).unwrap();
    fs::write(&torn, &include_bytes!("cli_support/ok.png")[..40]).unwrap();
    (folder, good, torn)
}

/// Runs the example, which `cargo test` builds beside the tests.
fn example(args: &[&Path]) -> Output {
    let tests = std::env::current_exe().unwrap();
    let name = format!("classify{}", std::env::consts::EXE_SUFFIX);
    let program = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        program.is_file(),
        "the example is not built: `cargo test` does it; before `--test classifier`, `cargo build --workspace --example classify`"
    );
    Command::new(program).args(args).output().unwrap()
}

#[test]
fn the_example_prints_labelled_scores() {
    let (folder, good, torn) = pictures();
    let model_folder = folder.path().join("model");
    model(3).save(&model_folder, false).unwrap();
    let ran = example(&[&model_folder, &good]);
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{said}");
    let mut lines = said.lines();
    assert_eq!(lines.next(), good.to_str());
    let rows: Vec<(f64, &str)> = lines
        .map(|line| {
            let (score, name) = line.split_once(" %  ").unwrap();
            (score.trim().parse().unwrap(), name)
        })
        .collect();
    assert!(rows.is_sorted_by(|a, b| a.0 >= b.0), "{said}");
    assert!(
        (rows.iter().map(|row| row.0).sum::<f64>() - 100.0).abs() < 0.05,
        "{said}"
    );
    let mut names: Vec<&str> = rows.iter().map(|row| row.1).collect();
    names.sort_unstable();
    assert_eq!(names, ["ant", "bee", "cow"]);

    // An error that `main` returns is its sentence.
    for (args, sentence) in [
        ([&model_folder, &torn], "torn.png` cannot be decoded: "),
        ([&folder.path().join("nowhere"), &good], "nowhere`"),
    ] {
        let ran = example(&[args[0], args[1]]);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(!ran.status.success() && said.starts_with("Error: "), "{said}");
        assert!(said.contains(sentence) && !said.contains(" { "), "{said}");
    }
}

#[test]
fn files_bytes_and_images_are_the_same() {
    let (_folder, good, torn) = pictures();
    let classifier = classifier(model(7), ClassifierOptions::default());
    let from_file = classifier.classify(&good).unwrap();
    assert_eq!(from_file.len(), 5);
    assert_eq!(classifier.classify(good.to_str().unwrap()).unwrap(), from_file);
    assert_eq!(classifier.classify(&fs::read(&good).unwrap()).unwrap(), from_file);
    let image = decode_file(&good, &Default::default()).unwrap();
    assert_eq!(classifier.classify(&image).unwrap(), from_file);

    // What cannot be read keeps the others from nothing, whatever the batch.
    let grey = Image::filled(50, 20, [128; 3]);
    let files = [&good, &torn, &good];
    for batch_size in [1, 2, 16] {
        let options = ClassifierOptions {
            batch_size,
            ..ClassifierOptions::default()
        };
        let found = self::classifier(model(7), options).classify_all(files).unwrap();
        let read: Vec<bool> = found.iter().map(Result::is_ok).collect();
        assert_eq!(read, [true, false, true]);
        assert_eq!(found[0].as_ref().unwrap(), &from_file);
        assert_eq!(found[2].as_ref().unwrap(), &from_file);
        let error = found[1].as_ref().unwrap_err();
        assert!(matches!(error, Error::Data(_)) && format!("{error:?}") == error.to_string());
    }
    assert_eq!(classifier.classify_all([&grey, &grey]).unwrap().len(), 2);
    assert!(classifier.classify_all([&good; 0]).unwrap().is_empty());
    let error = classifier.classify(&b"no picture"[..]).unwrap_err().to_string();
    assert!(error.contains("`bytes` cannot be decoded"), "{error}");
}

#[test]
fn scores_are_what_the_checkpoint_says() {
    let image = Image::filled(32, 32, [200, 30, 90]);
    let distilled = model(4);
    let engine = Engine::new(&distilled.spec, &distilled.tensors, "it", Options::default()).unwrap();
    let pixels = distilled.preprocess().unwrap().run(&image).unwrap();
    let heads = engine.run(&pixels, 1).unwrap();
    let mean: Vec<f64> = heads
        .class
        .iter()
        .zip(&heads.distillation)
        .map(|(a, b)| f64::from((a + b) / 2.0))
        .collect();
    let sum: f64 = mean.iter().map(|x| x.exp()).sum();
    let expected = |scores: Scores, logit: f64| match scores {
        Scores::Softmax => logit.exp() / sum,
        Scores::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        Scores::Logits => logit,
    };
    for (problem_type, scores) in [
        (None, Scores::Softmax),
        (Some(ProblemType::MultiLabelClassification), Scores::Sigmoid),
        (Some(ProblemType::Regression), Scores::Logits),
    ] {
        let mut model = distilled.clone();
        model.config.problem_type = problem_type;
        let classifier = classifier(model.clone(), ClassifierOptions::default());
        assert_eq!(classifier.scores(), scores);
        let found = classifier.classify(&image).unwrap();
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        for Class {
            class_index, score, ..
        } in found
        {
            let expected = expected(scores, mean[class_index]);
            assert!(
                (score - expected).abs() < 1e-5,
                "{scores:?}: {score}, not {expected}"
            );
        }
        // Probabilities of both heads have a mean only where classes exclude each other.
        let options = ClassifierOptions {
            fusion: Fusion::SoftmaxMean,
            ..ClassifierOptions::default()
        };
        let joint = Classifier::new(model, options, &mut ());
        assert_eq!(joint.is_ok(), scores == Scores::Softmax);
    }
}

#[test]
fn options_are_followed() {
    let image = Image::filled(40, 32, [9, 80, 200]);
    let plain = classifier(model(7), ClassifierOptions::default())
        .classify(&image)
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let names = folder.path().join("labels.csv");
    fs::write(&names, "class_index,name\n0,Ameise\n1,Biene\n").unwrap();
    let options = ClassifierOptions {
        topk: 7,
        threads: 1,
        precision: Precision::Bf16,
        labels: Some(Labels::read(&names).unwrap()),
        ..ClassifierOptions::default()
    };
    let found = classifier(model(7), options).classify(&image).unwrap();
    assert_eq!(found.len(), 7);
    let spoken = |class: &Class| (class.class_index, class.to_string());
    let mut said: Vec<_> = found.iter().map(spoken).collect();
    said.sort();
    assert_eq!(
        said[..3],
        [(0, "Ameise".into()), (1, "Biene".into()), (2, "class 2".into())]
    );
    for class in plain {
        let other = found
            .iter()
            .find(|other| other.class_index == class.class_index)
            .unwrap();
        assert!((other.score - class.score).abs() < 0.02);
    }

    // Threads may share one.
    let shared = &classifier(model(7), ClassifierOptions::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(shared.classify(&image).unwrap().len(), 5));
        }
    });
}

#[test]
fn what_does_not_classify_is_refused() {
    let refused = |model: Checkpoint| Classifier::new(model, ClassifierOptions::default(), &mut ());
    let without = Checkpoint::fresh("deit_nano_patch8_32", Some(0), None, 1).unwrap();
    assert!(refused(without).unwrap_err().to_string().contains("no classes"));
    let mut wrong = model(3).preprocess().unwrap();
    wrong.input_size = [3, 48, 48];
    let options = ClassifierOptions {
        preprocess: Some(wrong),
        ..ClassifierOptions::default()
    };
    let error = Classifier::new(model(3), options, &mut ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[3, 32, 32]") && error.contains("[3, 48, 48]"),
        "{error}"
    );
}
