//! `adapt --compare` and `--search`: what they train, choose, measure and write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli_support;

use std::fs;

use cli_support::Place;
use serde_json::Value;
use vitesse::model::Checkpoint;

/// A step or two on a few drawn images.
const SHORT: &str = "--limit 32 --batch-size 16 --epochs 1 --warmup-epochs 0 --rounds 1";

fn place() -> Place {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 7);
    place
}

fn labels(found: &Value) -> Vec<&str> {
    let trials = found["trials"].as_array().unwrap().iter();
    trials.map(|trial| trial["label"].as_str().unwrap()).collect()
}

#[test]
fn methods_are_trained_tested_merged_and_measured() {
    let place = place();
    let adapt = format!("adapt --model base --data shapes {SHORT} --json -o out");
    let ran = place
        .run(&format!(
            "{adapt} --compare linear,repadapter:hidden=4,vpt --seeds 0,1"
        ))
        .ended(0);
    ran.says(&[
        "run: 1 of 6: linear, seed 0",
        "run: 6 of 6: vpt, seed 1",
        " models in turns, batches of ",
    ]);
    let found = ran.json();
    let entries = ["linear", "repadapter:hidden=4", "vpt"];
    assert_eq!(labels(&found), [entries, entries].concat());
    let plans = serde_json::json!([["linear", true], ["repadapter:hidden=4", true], ["vpt", false]]);
    assert_eq!(found["speeds"]["same_plan"], plans);
    for trial in found["trials"].as_array().unwrap() {
        let test = &trial["test"];
        let right = test["right"].as_str().unwrap();
        let share = 100.0 * right.matches('1').count() as f64 / right.len() as f64;
        assert!((share - test["top1"].as_f64().unwrap()).abs() < 1e-9, "{trial}");
        assert!(trial["seconds"].as_f64().unwrap() > 0.0 && trial["validation_top1"].is_number());
        match trial["label"].as_str().unwrap() {
            "linear" => assert!(test["merged"].is_null()),
            "vpt" => assert!(test["merged"]["refused"]["reason"].is_string(), "{test}"),
            _ => assert!(test["merged"]["folded"]["largest_difference"].as_f64().unwrap() < 1e-4),
        }
    }
    // The plain model, RepAdapter with ops and merged, prompts: with three batch sizes.
    assert_eq!(found["speeds"]["latencies"].as_array().unwrap().len(), 4 * 3);
    let csv = fs::read_to_string(place.path("out/compare.csv")).unwrap();
    assert_eq!(
        (csv.lines().count(), csv.starts_with("method,seed,top1,")),
        (7, true)
    );
    let page = fs::read_to_string(place.path("out/compare.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("repadapter:hidden=4, merged"));
    let saved = fs::read_to_string(place.path("out/compare.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&saved).unwrap(), found);
    assert!(
        place
            .path("out/repadapter-hidden=4/seed1/adapter/adapter_config.json")
            .is_file()
    );

    // A comparison is gone on with, and takes in what is new; what was finished is not trained again.
    place
        .run(&format!("{adapt} --compare linear"))
        .ended(1)
        .says(&["`out` exists", "--resume"]);
    let more = place
        .run(&format!("{adapt} --compare linear,vpt,norm --seeds 0 --resume"))
        .ended(0);
    assert_eq!(more.stderr.matches("epoch: ").count(), 1, "{}", more.stderr);
    let more = more.json();
    assert_eq!(labels(&more), ["linear", "vpt", "norm"]);
    assert_eq!(more["trials"][0], found["trials"][0]);
    // With another recipe it would compare nothing.
    place
        .run(&format!("{adapt} --compare linear --seeds 0 --resume --lr 0.5"))
        .ended(1)
        .says(&["recipe"]);
}

#[test]
fn a_value_is_chosen_by_validation() {
    let place = place();
    let ran = place
        .run(&format!(
            "adapt --model base --data shapes --method repadapter --search scale=0.1,10 --lr 0.05 {SHORT} --json -o out"
        ))
        .ended(0);
    ran.says(&[
        "search: repadapter with 0.1, on validation",
        "search: repadapter with 10",
    ]);
    let found = ran.json();
    let candidates = found["chosen"][0]["candidates"].as_array().unwrap();
    let top1 = |candidate: &&Value| candidate["validation_top1"].as_f64().unwrap();
    let taken = candidates
        .iter()
        .find(|candidate| candidate["taken"] == true)
        .unwrap();
    assert!(
        candidates
            .iter()
            .all(|candidate| top1(&candidate) <= top1(&taken))
    );
    let scale: f64 = taken["value"].as_str().unwrap().parse().unwrap();
    assert_eq!(found["trials"][0]["method"]["scale"], scale);
    // Only what was taken was tested, and it is where `merge` finds it.
    for value in ["0.1", "10"] {
        let path = format!("out/repadapter-scale={value}/seed42/result.json");
        let result: Value = serde_json::from_str(&fs::read_to_string(place.path(&path)).unwrap()).unwrap();
        assert_eq!(
            result["test"].is_object(),
            value.parse::<f64>().unwrap() == scale,
            "{path}"
        );
    }
    place
        .run("merge --model base --adapter out/adapter -o merged")
        .ended(0);
}

/// Runs are there once latency is measured, and stay there.
#[cfg(unix)]
#[test]
fn a_comparison_is_interrupted_at_its_end_and_gone_on_with() {
    let (place, short) = (place(), SHORT.replace("--rounds 1", "--rounds 1000"));
    let adapt = format!("adapt --model base --data shapes {short} --compare linear,ssf -o out");
    let ran = place.interrupt(&adapt, " in turns, batches of ");
    ran.ended(130).says(&[
        "error: interrupted; every run's state is saved",
        "hint: go on with the same command and `--resume`",
    ]);
    assert!(place.path("out/ssf/seed42/result.json").is_file());
}

/// A folder of one's own photographs has no test part: enough to choose a value by, too little to compare methods.
#[test]
fn without_a_test_split_a_value_is_chosen_and_nothing_is_compared() {
    let place = place();
    place.run("data draw shapes -o photos --count 96").ended(0);
    fs::remove_file(place.path("photos/labels.csv")).unwrap();
    let adapt = format!("adapt --model base --data photos {SHORT}");
    let hint = "hint: keep pictures that nothing learns from in `test/`";
    place
        .run(&format!("{adapt} --compare linear,lora -o compared"))
        .ended(1)
        .says(&["`photos` has no test split", hint]);
    let single = adapt.replace("--rounds 1", "--method linear --test -o tested");
    place.run(&single).ended(1).says(&["no test split", hint]);
    assert!(!place.path("compared").exists() && !place.path("tested").exists());

    let ran = place
        .run(&format!(
            "{adapt} --method repadapter --search scale=0.1,10 -o searched"
        ))
        .ended(0);
    for part in [
        "not tested: the data have no test split",
        "validation top-1 %",
        "taken",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let found: Value =
        serde_json::from_str(&fs::read_to_string(place.path("searched/compare.json")).unwrap()).unwrap();
    assert!(found["test_images"] == 0 && found["trials"][0]["test"].is_null());
    assert!(place.path("searched/adapter/adapter_config.json").is_file());
}

#[test]
fn tasks_of_vtab_are_scored() {
    let (place, mut all) = (place(), Vec::new());
    for (task, shapes) in [("eurosat", "location"), ("kitti", "count")] {
        place
            .run(&format!(
                "data draw shapes:{shapes} --count 48 -o vtab/{task}/images"
            ))
            .ended(0);
        let mut lines: Vec<String> = Vec::new();
        for (label, class) in fs::read_dir(place.path(&format!("vtab/{task}/images")))
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .take(4)
            .enumerate()
        {
            for file in fs::read_dir(class.path()).unwrap().flatten() {
                let (class, file) = (class.file_name(), file.file_name());
                lines.push(format!("images/{}/{} {label}\n", class.display(), file.display()));
            }
        }
        lines.sort_by_key(|line| line.chars().rev().collect::<String>());
        let (learned, held) = lines.split_at(12);
        for (list, lines) in [
            ("train800", learned),
            ("val200", held),
            ("train800val200", &lines),
            ("test", held),
        ] {
            place.write(&format!("vtab/{task}/{list}.txt"), lines.concat());
        }
        all.push(lines.len());
    }
    let ran = place
        .run(
            "adapt --model base --data vtab --compare linear,repadapter --search optim.lr=0.001,0.01 --batch-size 4 --epochs 1 \
             --warmup-epochs 0 --rounds 1 --seeds 3 --json -o out",
        )
        .ended(0);
    ran.says(&["task: 1 of 2: eurosat", "task: 2 of 2: kitti"]);
    let found = ran.json();
    assert_eq!(found["tasks"].as_array().unwrap().len(), 2);
    let score = &found["scores"][1];
    let top1 = |task: usize| {
        found["tasks"][task]["trials"][1]["test"]["top1"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(score["method"], "repadapter");
    for (task, all) in all.iter().enumerate() {
        let task = &found["tasks"][task];
        assert_eq!(task["train_images"].as_u64().unwrap(), *all as u64);
        assert!(*all > 12 && task["test_images"].as_u64().unwrap() == *all as u64 - 12);
        // By the last epoch of a run that had nothing to validate on; the choice before it had.
        assert!(task["trials"][1]["validation_top1"].is_null());
        assert!(task["chosen"][1]["candidates"][0]["validation_top1"].is_number());
    }
    assert!((score["mean"].as_f64().unwrap() - (top1(0) + top1(1)) / 2.0).abs() < 1e-9);
    assert!(score["overall"].is_null() && score["missing"].as_array().unwrap().len() == 17);
    assert!(place.path("out/eurosat/compare.html").is_file() && place.path("out/vtab.csv").is_file());
    // What is tested learned from the validation images too.
    let lr = |text: String| {
        text.lines()
            .find(|line| line.starts_with("split"))
            .unwrap()
            .to_owned()
    };
    let folders = fs::read_dir(place.path("out/kitti")).unwrap().flatten();
    let runs = folders.filter(|entry| entry.path().join("seed3/recipe.toml").is_file());
    let splits: Vec<String> = runs
        .map(|entry| lr(fs::read_to_string(entry.path().join("seed3/recipe.toml")).unwrap()))
        .collect();
    assert_eq!(splits, ["split = \"trainval\"", "split = \"trainval\""]);
}

#[test]
fn mistakes_are_told_before_anything_is_trained() {
    let place = place();
    let adapt = format!("adapt --model base --data shapes {SHORT} -o out");
    for (more, code, say) in [
        ("--compare lroa", 2, "no method `lroa`"),
        ("--compare lora:rank", 2, "expected a key and a value"),
        ("--compare linear,lora:scale=2", 2, "scale"),
        ("--compare linear,lora:optim.rate=2", 2, "`optim.rate`"),
        (
            "--compare linear --search rank=1,2",
            2,
            "none of the methods has a setting `rank`",
        ),
        ("--search scale=1", 2, "nothing to choose"),
        ("--compare linear --method lora", 2, "cannot be used with"),
        ("--seeds 1,2", 2, "--compare"),
        ("--method lora", 2, "--search"),
        ("--compare linear --force", 2, "neither"),
        ("--compare lora,lora", 2, "`lora` is given twice"),
        ("--compare lora --seeds 4,3,4", 2, "the seed 4 is given twice"),
        ("--search scale=1,2 --split trainval", 2, "no validation images"),
    ] {
        place.run(&format!("{adapt} {more}")).ended(code).says(&[say]);
        assert!(!place.path("out").join("linear").exists(), "{more}");
    }
}

#[test]
fn a_folder_of_another_method_is_refused_before_anything_is_written() {
    let place = place();
    let adapt = format!("adapt --model base --data shapes {SHORT} -o out --compare");
    place.run(&format!("{adapt} linear,bitfit")).ended(0);
    fs::rename(place.path("out/bitfit"), place.path("out/norm")).unwrap();
    let before = place.listing();
    place.run(&format!("{adapt} ssf,norm --resume")).ended(1).says(&[
        "out/norm/seed42",
        "begun by the method `bitfit`, not by the method `norm`",
    ]);
    assert_eq!(place.listing(), before);
}

#[test]
fn a_single_run_is_none_to_go_on_with_even_if_its_recipe_cannot_be_read() {
    let place = place();
    place.write("out/recipe.toml", b"[train");
    place
        .run(&format!(
            "adapt --model base --data shapes {SHORT} -o out --compare linear,bitfit --resume"
        ))
        .ended(1)
        .says(&["`out`", "choose another folder"]);
    assert!(!place.path("out/linear").exists());
}

#[test]
fn a_finished_trial_of_another_base_is_not_taken() {
    let place = place();
    let adapt = format!("adapt --model base --data shapes {SHORT} -o out --compare bitfit");
    place.run(&adapt).ended(0);
    let other = Checkpoint::fresh("deit_nano_patch8_32", Some(7), None, 2).unwrap();
    other.save(&place.path("base"), true).unwrap();
    let before = place.listing();
    place.run(&format!("{adapt},linear --resume")).ended(1).says(&[
        "out/bitfit/seed42",
        "the base that it was begun with had weights with SHA-256",
    ]);
    assert_eq!(place.listing(), before);
}
