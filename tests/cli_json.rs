//! One vocabulary in the documents of `--json`: the table of `docs/json.md`, which this test reads.

#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cli_support::Place;
use serde_json::Value;

/// What stands under these keys is spelt as in the files it comes from.
const ELSEWHERE: [&str; 3] = ["recipe", "spec", "method"];

/// The names of the table, and those that it retires.
fn vocabulary() -> (BTreeSet<String>, BTreeSet<String>) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    let quoted =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let (mut names, mut retired) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').collect();
        names.extend(quoted(cells[1]));
        retired.extend(quoted(cells[4]));
    }
    (names, retired)
}

/// Every key of a document with its value, and where it stands.
fn walk<'a>(value: &'a Value, place: &str, found: &mut Vec<(String, &'a str, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                found.push((format!("{place}.{key}"), key, value));
                if !ELSEWHERE.contains(&key.as_str()) {
                    walk(value, &format!("{place}.{key}"), found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, place, found)),
        _ => {}
    }
}

/// Whether a value has the unit that its key says.
fn has_unit(key: &str, value: &Value) -> bool {
    let sides = |n: usize| {
        value
            .as_array()
            .is_some_and(|sides| sides.len() == n && sides.iter().all(Value::is_u64))
    };
    match key {
        _ if value.is_null() => true,
        "img_size" => sides(2),
        "input_size" | "test_input_size" => sides(3),
        "macs" | "macs_executed" => value.is_u64(),
        "images_per_s" => value.is_number(),
        _ if key.ends_with("param_count") || key.ends_with("_bytes") => value.is_u64(),
        _ if key.ends_with("latency_ms") => value.is_number(),
        _ => true,
    }
}

#[test]
fn one_vocabulary() {
    let (names, retired) = vocabulary();
    assert!(names.contains("param_count") && retired.contains("gmacs"));
    let place = Place::new();
    place.model("m", "deit_nano_distilled_patch8_32", 8);
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli_support/ok.png"),
        place.path("a.png"),
    )
    .unwrap();
    let pixels = vitesse::model::Tensor::from_f32(&[2, 3, 32, 32], vec![0.5; 2 * 3 * 32 * 32]).unwrap();
    let mut tensors = vitesse::model::Tensors::new();
    tensors.insert("pixel_values", pixels);
    vitesse::model::storage::safetensors::write(&place.path("x.safetensors"), &tensors, &Default::default())
        .unwrap();
    place.write(
        "study.toml",
        "name = \"one\"\nseeds = [1]\nbudget_hours = 1.0\ntest = \"shapes\"\n[base]\npreset = \"small\"\n[base.model]\n\
         name = \"deit_nano_patch8_32\"\n[base.data]\npath = \"shapes\"\nlimit = 32\nval_fraction = 0.0\n\
         validation_limit = 16\n[base.train]\nepochs = 1\nbatch_size = 16\n[base.schedule]\nwarmup_epochs = 0\n[[arm]]\nname = \"a\"\n",
    );
    place.write(
        "short.toml",
        "[data]\nlimit = 32\nvalidation_limit = 16\n[train]\nbatch_size = 16\n",
    );
    let short = "--data shapes --limit 32 -b 16 --epochs 1 --warmup-epochs 0";
    let mut seen = BTreeSet::new();
    for command in [
        "inspect m --tensors",
        "inspect --list",
        "eval m --data shapes --limit 16",
        "eval m --data shapes --limit 16 --shifted shapes",
        "predict --model m a.png",
        "features --model m -o maps.safetensors a.png",
        "run m --input x.safetensors --output y.safetensors",
        "analyze tokens m --data shapes --limit 16",
        "analyze cka m m --images 8",
        "analyze gradients m --data shapes --batches 1 --lr 1e-3",
        "bench m --seconds 0.01 --min-runs 1 --batch-size 1 --profile",
        "bench m --seconds 0.01 --min-runs 1 --batch-size 1 --train --profile",
        "compare m m@int8 --seconds 0.01 --rounds 2 --batch-size 1 --data shapes --limit 16",
        "data info --data shapes",
        "data list --data shapes --split test",
        "data check --data shapes --split test",
        "data draw shapes -o drawn --count 8",
        "doctor",
        &format!("train --model m {short} --dry-run -o run"),
        &format!("train --model m {short} --test -o run"),
        &format!("distill --model deit_nano_patch8_32 --teacher m {short} -o taught"),
        &format!("adapt --model m {short} --method lora --dry-run -o adapted"),
        &format!("adapt --model m {short} --method lora -o adapted"),
        &format!("adapt --model m {short} --compare linear,lora --rounds 1 -o compared"),
        "merge --model m --adapter adapted --dry-run -o merged",
        "merge --model m --adapter adapted -o merged",
        "prune m --method magnitude --macs 0.8 --dry-run -o half",
        "prune m --macs 0.8 --data shapes --calibration 32 --round-to 4 --eval-images 16 -o half",
        "share m --data shapes --images 4 --epochs 1 --recipe short.toml --dry-run -o shared",
        "share m --data shapes --images 4 --epochs 1 --recipe short.toml -o shared",
        "tokens m --r 3 --dry-run -o fewer",
        "tokens m --macs 0.8 --images 4 -o fewer",
        "train --sweep study.toml --dry-run -o study",
        "train --sweep study.toml -o study",
    ] {
        let ran = place.run(&format!("{command} --json")).ended(0);
        let document = ran.json();
        let mut found = Vec::new();
        walk(&document, "", &mut found);
        for (path, key, value) in found {
            assert!(
                !retired.contains(key),
                "{command}: `{path}` is not called so any more"
            );
            assert!(has_unit(key, value), "{command}: `{path}` is {value}");
            seen.insert(key.to_owned());
        }
    }
    let unseen: Vec<&String> = names.difference(&seen).collect();
    assert!(unseen.is_empty(), "no document has {unseen:?}");
}
