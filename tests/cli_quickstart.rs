//! `quickstart --short`: every step of the chain, on so few pictures that it takes seconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli_support;

use std::fs;

use cli_support::Place;
use serde_json::Value;

const RUNS: [&str; 5] = ["teacher", "none", "soft", "hard", "token"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// One run, looked at from all sides: it is the slowest test of the command line.
#[test]
fn the_chain_leaves_models_and_a_report() {
    let place = Place::new();
    let ran = place.run("quickstart --short -o q --seed 3 --json").ended(0);
    ran.says(&[
        "step: 1 of 9",
        "train the teacher",
        "step: 8 of 9",
        "step: 9 of 9",
        "epoch: 1 of 2",
    ]);
    let found = ran.json();
    let saved = fs::read_to_string(place.path("q/quickstart.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&saved).unwrap(), found);
    for key in ["chance", "seconds", "threads", "train_images", "test_images"] {
        assert!(number(&found[key]) > 0.0, "`{key}` in {found}");
    }
    assert_eq!(
        (number(&found["seed"]), found["short"].as_bool()),
        (3.0, Some(true))
    );

    let runs = found["runs"].as_array().unwrap();
    let methods: Vec<&str> = runs.iter().filter_map(|run| run["method"].as_str()).collect();
    assert_eq!(methods, RUNS);
    let images = number(&found["test_images"]);
    for run in runs {
        let (test, method) = (&run["test"], &run["method"]);
        assert_eq!(number(&test["samples"]), images, "{method}");
        assert!((0.0..=100.0).contains(&number(&test["top1"])), "{method}");
        let confusion = test["confusion"].as_array().unwrap().iter();
        let counted: f64 = confusion
            .flat_map(|row| row.as_array().unwrap())
            .map(number)
            .sum();
        assert_eq!(counted, images, "{method}");
        assert_eq!(run["curve"].as_array().unwrap().len(), 2, "{method}");
        assert_eq!(run["heads"].is_object(), method == "token");
    }
    // The best student is the one with the best validation accuracy.
    let best = found["best_student"].as_str().unwrap();
    let validation = |run: &&Value| number(&run["validation_top1"]);
    let (chosen, students) = (runs.iter().find(|run| run["method"] == best).unwrap(), &runs[1..]);
    assert!(students.iter().all(|run| validation(&run) <= validation(&chosen)));
    let adapted = &found["adapted"];
    let latency = &adapted["latency"];
    assert_eq!(latency["same_plan"], true);
    assert!(number(&latency["merged"]["median"]) > 0.0 && number(&latency["with_ops"]["median"]) > 0.0);
    let tasks = adapted["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 3);
    for task in tasks {
        assert!(number(&task["largest_difference"]) < 1e-4, "{task}");
        let (model, adapter) = (
            task["merged"].as_str().unwrap(),
            task["adapter"].as_str().unwrap(),
        );
        let test = format!(
            "--data {} --split test --limit 128",
            task["task"].as_str().unwrap()
        );
        let again = place
            .run(&format!("eval --model q/{model} {test} --json"))
            .ended(0)
            .json();
        assert!(
            (number(&again["top1"]) - number(&task["repadapter_top1"])).abs() < 1e-3,
            "{again}"
        );
        let merge = format!("merge --model q/none/best --adapter q/{adapter} -o q/{model}-again");
        place.run(&merge).ended(0);
        fs::remove_dir_all(place.path(&format!("q/{model}-again"))).unwrap();
    }
    assert_eq!(found["tokens"]["blocks"].as_array().unwrap().len(), 4);
    let predictions = found["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 7);

    the_page_stands_alone(&fs::read_to_string(place.path("q/report.html")).unwrap(), runs);
    nothing_names_the_temporary_folder(&place);
    what_it_left_can_be_used(&place, best, chosen, predictions);

    // A folder that is there stays as it is.
    let before = place.listing();
    place
        .run("quickstart --short -o q")
        .ended(1)
        .says(&["`q` exists already", "--force"]);
    assert_eq!(place.listing(), before);
}

fn the_page_stands_alone(html: &str, runs: &[Value]) {
    for outside in [
        "<script",
        "<link",
        "http://",
        "https://",
        "url(",
        "@import",
        "javascript:",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    for part in [
        "<svg",
        "data:image/png;base64,",
        "vitesse eval --model q/",
        "vitesse distill --recipe q/token/recipe.toml",
        "vitesse quickstart --short --seed 3 -o q",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(html.contains(part), "{part}");
    }
    for run in runs {
        let shown = format!("{:.1} %", number(&run["test"]["top1"]));
        assert!(html.contains(&shown), "{shown}");
    }
}

/// The folder was filled under another name, which nothing in it may remember.
fn nothing_names_the_temporary_folder(place: &Place) {
    for run in RUNS {
        for file in ["recipe.toml", "best/config.json"] {
            let text = fs::read_to_string(place.path(&format!("q/{run}/{file}"))).unwrap();
            assert!(!text.contains(".new-"), "{run}/{file}: {text}");
            let distils = !["teacher", "none"].contains(&run);
            assert_eq!(text.contains("q/teacher/best"), distils, "{run}/{file}");
        }
    }
    let left = fs::read_dir(place.path("")).unwrap().count();
    assert_eq!(left, 1, "the temporary folder is still there");
}

fn what_it_left_can_be_used(place: &Place, best: &str, chosen: &Value, predictions: &[Value]) {
    // What was said about the first picture is said again.
    let first = &predictions[0];
    let file = first["file"].as_str().unwrap();
    let again = place
        .run(&format!("predict --model q/{best}/best q/{file} --topk 1 --json"))
        .ended(0)
        .json();
    assert_eq!(again["predictions"][0]["classes"][0]["name"], first["name"]);
    let inspected = place
        .run(&format!("inspect --model q/{best}/best --json"))
        .ended(0)
        .json();
    assert_eq!(inspected["param_count"], chosen["param_count"]);
}

/// Whoever asks for the impossible waits for nothing.
#[test]
fn what_cannot_be_written_is_refused_first() {
    let place = Place::new();
    place.write("mine/letter.txt", "Dear");
    place
        .run("quickstart --short --force -o mine")
        .ended(1)
        .says(&["`mine` exists already", "quickstart.json"]);
    assert_eq!(fs::read(place.path("mine/letter.txt")).unwrap(), b"Dear");
    place.run("quickstart --threads 0").ended(2);
}

/// Ctrl-C in the middle of training: the status says so, and no half of a result is left.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let place = Place::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vitesse"))
        .args(["quickstart", "--short", "-o", "q"])
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("step: 2 of 9")));
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.map(|line| line.unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(
        rest.iter().any(|line| line.contains("nothing was written")),
        "{rest:?}"
    );
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 0);
}
