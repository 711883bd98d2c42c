//! `bench` and `compare`: the shape of what they say, and what they refuse.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::fs;

use cli_support::Place;
use serde_json::Value;

const MODEL: &str = "deit_nano_patch8_32";
/// As short as can be: the numbers mean nothing, they are only there.
const SHORT: &str = "--seconds 0.01 --threads 2";

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn bench_measures_every_configuration() {
    let place = Place::new();
    let checkpoint = place.model("m", MODEL, 8);
    let command =
        format!("bench --model m {MODEL} --batch-size 1,3 --precision f32,int8 {SHORT} --min-runs 4");
    let ran = place.run(&format!("{command} --csv bench.csv --json")).ended(0);
    ran.says(&["step: 1 of 8", "int8", "2 threads", "batches of 3"]);
    let document = ran.json();
    assert_eq!(document.as_object().unwrap().len(), 1);
    let results = document["results"].as_array().unwrap();
    assert_eq!(results.len(), 8);
    for result in results {
        let latency = &result["latency_quantiles_ms"];
        let times: Vec<f64> = ["min", "p50", "p90", "p99"]
            .map(|key| number(&latency[key]))
            .to_vec();
        assert!(times[0] > 0.0 && times.is_sorted(), "{latency}");
        assert_eq!(result["latency_ms"], latency["p50"]);
        assert!(number(&result["runs"]) >= 4.0);
        assert_eq!(result["threads"], 2);
        assert!(result["isa"].is_string());
        for key in ["images_per_s", "peak_gops", "compile_ms"] {
            assert!(number(&result[key]) > 0.0, "{key}: {result}");
        }
        // Void where other programs slowed the peak, but never above 1.
        assert!(result["peak_fraction"].is_null() || (0.0..=1.0).contains(&number(&result["peak_fraction"])));
        // The last layer computes one token only, after its keys and values.
        let [nominal, executed] = ["macs", "macs_executed"].map(|key| number(&result[key]));
        assert!(executed < nominal && executed > nominal / 2.0, "{result}");
        if cfg!(target_os = "linux") {
            assert!(number(&result["peak_memory_bytes"]) > 1e6);
        }
    }
    let first = &results[0];
    let cost = checkpoint.spec.costs().unwrap();
    assert_eq!((&first["model"], &first["batch"]), (&"m".into(), &1.into()));
    assert_eq!(first["weights"], "loaded");
    assert_eq!(first["param_count"], cost.parameters());
    assert_eq!(first["weight_bytes"], checkpoint.tensors.total_bytes());
    assert_eq!(first["macs"], cost.macs());
    assert_eq!(
        (&results[3]["precision"], &results[3]["batch"]),
        (&"int8".into(), &3.into())
    );
    assert!(number(&results[3]["packed_bytes"]) < number(&first["packed_bytes"]));
    assert_eq!(
        (&results[7]["model"], &results[7]["weights"]),
        (&MODEL.into(), &"fresh".into())
    );

    let csv = fs::read_to_string(place.path("bench.csv")).unwrap();
    assert!(csv.starts_with("model,infer_samples_per_sec,infer_step_time,infer_batch_size,infer_img_size,"));
    assert_eq!(csv.lines().count(), 9);
}

#[test]
fn bench_shows_where_the_time_goes() {
    let place = Place::new();
    let command = format!("bench --model {MODEL} --batch-size 2 {SHORT} --min-runs 2 --profile");
    let profile = &place.run(&format!("{command} --json")).ended(0).json()["results"][0]["profile"];
    assert!(number(&profile["runs"]) >= 5.0);
    let layers = profile["layers"].as_array().unwrap();
    assert!(layers.len() > 1);
    for stage in ["embed", "qkv", "wait", "attention", "proj", "fc1", "fc2", "head"] {
        assert!(number(&profile["stages"][stage]) >= 0.0, "{stage}");
        assert!(layers.iter().all(|layer| layer[stage].is_number()));
    }
    assert!(number(&profile["stages"]["fc1"]) > 0.0);
    let text = place.run(&command).ended(0).stdout;
    for part in ["images/s", "of peak", "packed", "layer", "attention", "share"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[cfg(feature = "train")]
#[test]
fn bench_times_steps_of_training() {
    let place = Place::new();
    let command = format!("bench --model {MODEL} --batch-size 4 {SHORT} --min-runs 3 --json --train");
    let all = &place.run(&command).ended(0).json()["results"][0];
    let head = &place.run(&format!("{command} head")).ended(0).json()["results"][0];
    let step = &all["step_ms"];
    let quartiles = ["p25", "median", "p75"].map(|key| number(&step[key]));
    assert!(quartiles[0] > 0.0 && quartiles.is_sorted(), "{step}");
    assert_eq!(all["trained_param_count"], all["param_count"]);
    assert_eq!(number(&head["trained_param_count"]), 64.0 * 10.0 + 10.0);
    let losses =
        |result: &Value| -> Vec<f64> { result["losses"].as_array().unwrap().iter().map(number).collect() };
    // Both begin with the same weights on the same batch, and learn it.
    let (all, head) = (losses(all), losses(head));
    assert_eq!(all[0], head[0]);
    assert!(
        all.len() >= 5 && all[4] < all[0] && head[4] < head[0],
        "{all:?} {head:?}"
    );
}

#[cfg(feature = "train")]
#[test]
fn bench_shows_where_the_time_of_a_step_goes() {
    let place = Place::new();
    let command = format!("bench --model {MODEL} --batch-size 4 {SHORT} --min-runs 3 --train --profile");
    let result = &place.run(&format!("{command} --json")).ended(0).json()["results"][0];
    let profile = &result["profile"];
    assert!(number(&profile["peak_gflops"]) > 0.0 && number(&profile["memory_gbytes_per_s"]) > 0.0);
    let parts = profile["parts"].as_array().unwrap();
    let of = |pass: &str, name: &str| {
        let found = parts
            .iter()
            .find(|part| part["pass"] == pass && part["name"] == name);
        found.unwrap_or_else(|| panic!("{pass}, {name}: {parts:?}"))
    };
    for pass in ["forward", "backward"] {
        let perceptron = of(pass, "perceptron");
        assert!(number(&perceptron["gflops"]) > 0.0 && number(&perceptron["gbytes_per_s"]) > 0.0);
    }
    assert!(of("update", "AdamW")["gflops"].is_null());
    // The parts are all there is to a step but for what the machine does besides.
    let sum: f64 = parts.iter().map(|part| number(&part["time_ms"])).sum();
    assert!(sum > 0.2 * number(&result["step_ms"]["p25"]), "{sum} {result}");
    let text = place.run(&command).ended(0).stdout;
    for part in ["of peak", "perceptron", "backward", "rest"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn bench_refuses_in_sentences() {
    let place = Place::new();
    place.write("bench.csv", "mine");
    for (args, code, parts) in [
        ("", 2, vec!["MODEL"]),
        ("--model nothing", 1, vec!["nothing", "hint: "]),
        (
            "--model regnety_nano_32",
            1,
            vec!["regnety_nano_32", "vision transformers"],
        ),
        (
            "--model m --batch-size 0",
            2,
            vec!["expected a whole number from 1"],
        ),
        ("--model m --precision int3", 2, vec!["int3", "bf16"]),
        ("--model m --isa avx1024", 2, vec!["avx1024", "avx512-bf16"]),
        ("--model m --seconds soon", 2, vec!["seconds from 0"]),
        (
            "--model m --csv bench.csv",
            1,
            vec!["`bench.csv` exists already", "--force"],
        ),
        ("--model m --csv no/bench.csv", 1, vec!["no/bench.csv", "folder"]),
    ] {
        place.run(&format!("bench {args}")).ended(code).says(&parts);
    }
    let error = &place.run("bench --model nothing --json").ended(1).json()["error"];
    assert_eq!(error["code"], "E_MODEL_UNKNOWN");
    assert_eq!(fs::read_to_string(place.path("bench.csv")).unwrap(), "mine");
}

#[test]
fn compare_measures_in_turns() {
    let place = Place::new();
    place.model("m", MODEL, 8);
    let command = format!("compare m m@int8 m vit_nano_patch4_32 --batch-size 1,2 --rounds 3 {SHORT}");
    let document = place.run(&format!("{command} --json")).ended(0).json();
    let labels: Vec<&str> = document["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["label"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["m@f32", "m@int8", "m@f32 (2)", "vit_nano_patch4_32@f32"]);
    assert!(document.get("evaluated").is_none());
    let batches = document["batches"].as_array().unwrap();
    assert_eq!(batches.len(), 2);
    for batch in batches {
        let results = batch["results"].as_array().unwrap();
        assert_eq!(results.len(), 4);
        assert_eq!(
            results[0]["ratio"],
            serde_json::json!({"median": 1.0, "min": 1.0, "max": 1.0, "rounds": 3})
        );
        for result in results {
            assert_eq!(result["rounds_ms"].as_array().unwrap().len(), 3);
            let [min, median, max] = ["min", "median", "max"].map(|key| number(&result["ratio"][key]));
            assert!(0.0 < min && min <= median && median <= max, "{result}");
            assert!(number(&result["latency_ms"]) > 0.0 && number(&result["images_per_s"]) > 0.0);
        }
    }
    let text = place.run(&command).ended(0).stdout;
    for part in [
        "parameters",
        "batches of 2",
        "ratio",
        "median of 3 rounds",
        "too few rounds to tell",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn compare_tells_accuracy_and_agreement_and_writes_a_page() {
    let place = Place::new();
    let command = format!("compare {MODEL} {MODEL}@bf16 {MODEL} --batch-size 1 --rounds 2 {SHORT}");
    let command = format!("{command} --data shapes --split test --limit 40 -o page.html");
    let document = place.run(&format!("{command} --json")).ended(0).json();
    let evaluated = &document["evaluated"];
    assert_eq!(
        (&evaluated["data"], &evaluated["split"]),
        (&"shapes".into(), &"test".into())
    );
    let results = evaluated["results"].as_array().unwrap();
    assert!(
        results
            .iter()
            .all(|result| result["images"] == 40 && result["unreadable"] == 0)
    );
    assert!(number(&results[1]["agreement"]) >= 50.0, "{evaluated}");
    // The same model again answers the same.
    assert_eq!(
        (number(&results[0]["agreement"]), number(&results[2]["agreement"])),
        (100.0, 100.0)
    );
    assert_eq!(results[0]["top1"], results[2]["top1"]);
    // `eval` finds the same.
    let eval = format!("eval --model {MODEL} --data shapes --split test --limit 40 --json");
    let alone = place.run(&eval).ended(0).json();
    assert!((number(&alone["top1"]) - number(&results[0]["top1"])).abs() < 1e-3);

    assert_eq!(document["page"], "page.html");
    let page = fs::read_to_string(place.path("page.html")).unwrap();
    for part in [
        "<svg",
        "Latency and accuracy",
        "Latency and size",
        "deit_nano_patch8_32@bf16",
    ] {
        assert!(page.contains(part), "{part}");
    }
    place
        .run(&command)
        .ended(1)
        .says(&["`page.html` exists already", "--force"]);
    place.run(&format!("{command} --force")).ended(0);
}

#[test]
fn compare_refuses_in_sentences() {
    let place = Place::new();
    place.model("two", MODEL, 2);
    let mut other = place.model("other", MODEL, 8);
    other.config.label_names = (0..8).map(|class| (class, format!("other {class}"))).collect();
    other.save(&place.path("other"), true).unwrap();
    for (args, code, parts) in [
        ("", 2, vec!["MODEL"]),
        (MODEL, 2, vec!["only one model", "--precision f32,int8"]),
        ("two two@int3", 2, vec!["`two@int3`", "int8"]),
        ("two nothing", 1, vec!["nothing", "hint: "]),
        ("two two --split test", 2, vec!["--data"]),
        ("two two --data nowhere", 1, vec!["nowhere"]),
        ("two two --data shapes", 1, vec!["classes", "`two` 2", "hint: "]),
        ("two regnety_nano_32", 1, vec!["vision transformers"]),
        (
            "other deit_nano_patch8_32 --data shapes",
            1,
            vec!["`other`: the data's classes do not fit"],
        ),
    ] {
        let ran = place.run(&format!("compare {args}")).ended(code);
        ran.says(&parts);
        assert!(
            !ran.stderr.contains("in turns"),
            "refused before anything is timed: {}",
            ran.stderr
        );
    }
}
