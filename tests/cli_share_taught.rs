//! `share --epochs`: what comes after sharing, weight distillation from a teacher.

#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::fs;

use cli_support::Place;
use serde_json::{Value, json};

/// What makes a run short.
const SHORT: &str = "[data]\nlimit = 32\nvalidation_limit = 16\n[train]\nbatch_size = 16\nsave_every = 1\n";
/// The command that is short with it.
const TAUGHT: &str = "share base --group 2 --images 4 --data shapes --recipe short.toml";

/// A place with a model of four blocks and 17 tokens.
fn place() -> Place {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 8);
    place.write("short.toml", SHORT);
    place
}

/// The terms in the first line of a run's log.
fn terms(place: &Place, run: &str) -> Vec<String> {
    let log = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let names = ["base", "distill", "truth", "soft", "attn", "hidden"];
    let there = names.into_iter().filter(|name| line.get(name).is_some());
    there.map(str::to_owned).collect()
}

#[test]
fn without_a_test_models_are_judged_on_what_the_recipe_holds_back() {
    let place = place();
    let ran = place
        .run(&format!("{TAUGHT} --epochs 1 -o shared --json"))
        .ended(0);
    let accuracy = &ran.json()["distilled"]["accuracy"];
    assert_eq!(
        (&accuracy["split"], &accuracy["images"]),
        (&"validation".into(), &16.into())
    );
}

#[test]
fn a_shared_model_learns_from_the_one_that_it_comes_from() {
    let place = place();
    let ran = place
        .run(&format!("{TAUGHT} --epochs 2 --test -o shared --json"))
        .ended(0);
    ran.says(&[
        "the teacher is the model that is shared",
        "layers 1, 3 learn the relations of the teacher `deit_nano_patch8_32` at layers 1, 3",
    ]);
    let document = ran.json();
    assert_eq!(document["lesson"]["method"]["name"], "minivit");
    assert_eq!(document["lesson"]["teacher_layers"], json!([1, 3]));
    let accuracy = &document["distilled"]["accuracy"];
    assert_eq!(accuracy["split"], "test");
    for key in ["base_top1", "shared_top1", "distilled_top1"] {
        assert!(accuracy[key].is_number(), "{key}: {accuracy}");
    }
    let run = &document["distilled"]["run"];
    assert_eq!((&run["epochs"], &run["steps"]), (&2.into(), &4.into()));
    // Tested once, all three alike.
    assert!(run.get("test").is_none());
    let tested = "eval --model shared/distilled/best --data shapes --split test --json";
    assert_eq!(place.run(tested).ended(0).json()["images"], accuracy["images"]);
    assert!(document["speed"][0]["ratio"].is_object());
    assert_eq!(
        terms(&place, "shared/distilled"),
        ["truth", "soft", "attn", "hidden"]
    );
    // The recipe repeats the run, whichever verb it is given to.
    let again = "distill --recipe shared/distilled/recipe.toml -o again";
    place.run(again).ended(0);
    let weights = |run: &str| fs::read(place.path(run).join("final/model.safetensors")).unwrap();
    assert!(weights("again") == weights("shared/distilled"));
    // What it learned is a model that shares.
    let inspected = place.run("inspect shared/distilled/best").ended(0).stdout;
    assert!(inspected.contains("matrices of core 1"), "{inspected}");
}

#[test]
#[cfg(unix)]
fn a_run_that_was_interrupted_ends_with_the_same_bytes() {
    let place = place();
    let taught = format!("{TAUGHT} --epochs 6");
    place.run(&format!("{taught} -o whole")).ended(0);
    let stopped = place.interrupt(&format!("{taught} -o cut"), "epoch: 1 of 6");
    stopped
        .ended(130)
        .says(&["the state is saved in `cut/distilled`"]);
    let other = place
        .run(&format!("{taught} --init mean --resume -o cut"))
        .ended(2);
    other.says(&["`cut` holds another model than this command makes"]);
    let text = place.run(&format!("{taught} --resume -o cut")).ended(0).stdout;
    for part in [
        "accuracy",
        "shared →",
        "honest speed",
        "Distillation:",
        "6 epochs in",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    for file in [
        "model.safetensors",
        "distilled/final/model.safetensors",
        "distilled/best/model.safetensors",
    ] {
        let read = |run: &str| fs::read(place.path(run).join(file)).unwrap();
        assert!(read("whole") == read("cut"), "{file}");
    }
}

#[test]
fn a_dry_run_names_the_lesson_and_writes_nothing() {
    let place = place();
    let before = place.listing();
    let ran = place
        .run(&format!("{TAUGHT} --epochs 2 --dry-run -o shared --json"))
        .ended(0);
    assert_eq!(ran.json()["lesson"]["student_layers"], json!([1, 3]));
    assert_eq!(place.listing(), before);
}

#[test]
fn a_teacher_of_another_kind_teaches_by_its_predictions_alone() {
    let place = place();
    place.model("cnn", "regnety_nano_32", 8);
    let taught = format!("{TAUGHT} --epochs 1 --teacher cnn");
    let ran = place.run(&format!("{taught} -o shared")).ended(0);
    ran.says(&["the teacher `regnety_nano_32` is no transformer: only its predictions are learned"]);
    assert_eq!(terms(&place, "shared/distilled"), ["base", "distill"]);
    let recipe = fs::read_to_string(place.path("shared/distilled/recipe.toml")).unwrap();
    assert!(recipe.contains("kind = \"soft\"\nalpha = 1.0"), "{recipe}");
    let refused = place
        .run(&format!("{taught} --set hidden_weight=0 -o again"))
        .ended(1);
    refused.says(&["`regnety_nano_32` is no transformer", "leave them out"]);
}

#[test]
fn lessons_that_do_not_fit_are_refused_before_anything_is_made() {
    let place = place();
    place.model("finer", "deit_micro_patch4_32", 8);
    place.model("windows", "swin_nano_patch2_window4_32", 8);
    place.model("others", "deit_nano_patch8_32", 5);
    place.write("lora.toml", format!("{SHORT}[method]\nname = \"lora\"\n"));
    for (args, code, said) in [
        ("--teacher finer", 1, "17 tokens and layer 2 of the teacher 65"),
        ("--teacher windows", 1, "1 stage of layers and the teacher 3"),
        ("--set relation_heads=5", 1, "5 relation heads"),
        (
            "--set student_layers=[1]",
            1,
            "`student_layers` needs `teacher_layers`",
        ),
        (
            "--set student_layers=[1,3] --set teacher_layers=[1]",
            1,
            "each needs its partner",
        ),
        (
            "--set student_layers=[7] --set teacher_layers=[1]",
            1,
            "the student has no layer 7",
        ),
        ("--set attn_wieght=2", 2, "minivit has no setting `attn_wieght`"),
        ("--set alpha=2", 1, "alpha must be from 0 to 1"),
        ("--set group=2", 1, "has ops of its own; share its matrices first"),
        (
            "--recipe lora.toml",
            2,
            "the method of the recipe is not `minivit`",
        ),
        ("--teacher nowhere", 1, "cannot read `nowhere`"),
        ("--teacher others", 1, "it knows 5 classes and the student 8"),
    ] {
        let command = match args.contains("--recipe") {
            true => format!("share base --group 2 --images 4 --data shapes --epochs 1 {args} -o shared"),
            false => format!("{TAUGHT} --epochs 1 {args} -o shared"),
        };
        place.run(&command).ended(code).says(&[said]);
        assert!(!place.path("shared").exists(), "{args}");
    }
    let refused = place.run("share base --group 2 --epochs 1 -o shared").ended(2);
    refused.says(&["--data"]);
    for name in ["held", "held/teacher"] {
        place.model(name, "deit_nano_patch8_32", 8);
    }
    let refused = place
        .run(&format!(
            "{TAUGHT} --epochs 1 --teacher held/teacher --force -o held"
        ))
        .ended(2);
    refused.says(&["`held/teacher` is the teacher of --epochs and would be replaced"]);
}
