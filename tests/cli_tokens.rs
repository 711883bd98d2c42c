//! `tokens`: from a model to one whose tokens become fewer from block to block.

#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::Place;
use serde_json::Value;
use vitesse::model::{Checkpoint, LoadOptions, Sites};

/// A place with a model of four blocks and sixteen patches.
fn place() -> Place {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 8);
    place
}

/// The tokens that the perceptron of each block sees.
fn perceptron(document: &Value) -> Vec<u64> {
    let tokens = document["tokens"].as_array().unwrap().iter();
    tokens
        .map(|tokens| tokens["perceptron"].as_u64().unwrap())
        .collect()
}

#[test]
fn each_method_is_proved_written_and_loaded_again() {
    let place = place();
    let base = Checkpoint::load(place.path("base"), &LoadOptions::default()).unwrap();
    for (out, args, left) in [
        ("tome", "--r 3", [14, 11, 8, 5]),
        ("sloped", "--r 2 --inflect -1 --plain-attention", [13, 11, 10, 10]),
        ("list", "--r 8,2", [9, 7, 7, 7]),
        ("evit", "--method evit --keep 0.5", [17, 10, 7, 5]),
        (
            "dropped",
            "--method evit --keep 0.5 --drop --blocks 2",
            [17, 17, 9, 9],
        ),
        ("cait", "--method cait", [17, 9, 5, 5]),
        ("area", "--method cait --layout 3v --merge area", [17, 17, 17, 9]),
        ("random", "--method random --keep 0.5 --seed 4", [17, 9, 5, 3]),
    ] {
        let ran = place
            .run(&format!("tokens base {args} --images 4 -o {out} --json"))
            .ended(0);
        let document = ran.json();
        assert_eq!(perceptron(&document), left, "{args}");
        assert_eq!(document["check"]["agreeing"], 4, "{args}: {document}");
        let (plan, speed) = (&document["plan"], document["speed"].as_array().unwrap());
        assert!(
            plan["after"]["macs"].as_u64() < plan["before"]["macs"].as_u64(),
            "{args}"
        );
        assert_eq!(plan["after"]["param_count"], plan["before"]["param_count"]);
        assert!(speed[0]["ratio"]["median"].as_f64().unwrap() > 0.0);
        assert_eq!(document["from_base"]["images"], 4);

        let reduced = Checkpoint::load(place.path(out), &LoadOptions::default()).unwrap();
        assert_eq!(reduced.tensors, base.tensors, "{args}");
        let counts = reduced.spec.token_counts();
        let counted = counts.iter().map(|tokens| tokens.perceptron.count() as u64);
        assert_eq!(counted.collect::<Vec<_>>(), left, "{args}");
        let step = reduced.config.history.last().unwrap();
        assert_eq!(
            (step.step.as_str(), step.method.as_deref()),
            ("tokens", document["method"].as_str())
        );
        assert_eq!(Value::from(step.config.clone()), document["settings"]);
        assert_eq!(
            step.metrics["agreeing_with_base"],
            document["from_base"]["agreeing"]
        );
        assert!(step.parent_sha256.is_some());
    }
    // They are models like any other.
    for args in [
        "eval tome --data shapes --limit 16",
        "compare base tome --seconds 0.01 --rounds 2 --batch-size 1 --data shapes --limit 16",
        "adapt --model evit --method lora --data shapes --limit 32 -b 16 --epochs 1 --warmup-epochs 0 -o adapted",
        "prune base --method magnitude --macs 0.7 --round-to 4 --images 4 -o pruned",
        "tokens pruned --macs 0.8 --images 4 -o both",
    ] {
        place.run(args).ended(0);
    }
}

#[test]
fn a_budget_finds_the_mildest_setting_and_the_plan_writes_nothing() {
    let place = place();
    place.model("deep", "deit_tiny_patch16_224", 8);
    for (method, settings) in [
        ("tome", "r 16 in each block"),
        ("evit", "in blocks 3, 6 and 9, the others fused"),
        ("random", "in blocks 3, 6 and 9, a fixed set drawn with seed 0"),
    ] {
        let command = format!("tokens deep --method {method} --macs 0.5 --dry-run -o out");
        let text = place.run(&command).ended(0).stdout;
        for said in [settings, "0.5 of the MACs, 0.", "dry run", "in the perceptron"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let document = place.run(&format!("{command} --json")).ended(0).json();
        let of = |when: &str| document["plan"][when]["macs"].as_f64().unwrap();
        let left = of("after") / of("before");
        assert!(left <= 0.5 && left > 0.47, "{method}: {left}");
    }
    assert!(!place.path("out").exists());
    let ran = place.run("tokens base --r 2 --dry-run -o base").ended(3);
    assert!(ran.stdout.contains("nothing was written"), "{}", ran.stdout);
}

#[test]
fn an_output_that_is_there_is_not_touched_without_force() {
    let place = place();
    place.run("tokens base --r 2 --images 2 -o out").ended(0);
    let before = place.listing();
    place
        .run("tokens base --r 3 --images 2 -o out")
        .ended(1)
        .says(&["--force"]);
    assert_eq!(place.listing(), before);
    place.run("tokens base --r 3 --images 2 --force -o out").ended(0);
    place
        .run("tokens out --r 2 -o again")
        .ended(1)
        .says(&["become fewer already, by `bipartite-matching`"]);
}

#[test]
fn what_cannot_be_reduced_is_refused_in_sentences() {
    let place = place();
    place.model("swin", "swin_nano_patch2_window4_32", 8);
    for (args, code, said) in [
        ("base --method evit --keep 0", 2, "a share above 0"),
        ("base --r 9", 1, "at most half, 8, can merge"),
        ("base", 1, "13 pairs of tokens are to merge"),
        (
            "base --method evit --blocks 1,4",
            1,
            "the blocks of this model are 0 to 3",
        ),
        ("base --method random --blocks 1,1", 1, "named twice"),
        (
            "base --method cait --layout 1h,2h,3h",
            1,
            "nothing in it lies side by side",
        ),
        ("base --method cait --layout 1x", 2, "such as 4h"),
        ("base --method cait --macs 0.65", 1, "1h,2v leaves"),
        ("base --macs 0.1", 1, "leaves at least"),
        ("base --r 2,2,2,2,2", 1, "has 5 numbers, but the model has 4"),
        ("base --r 2,2 --inflect 1", 2, "a number for each block"),
        (
            "base --r 2 --keep 0.5",
            2,
            "--keep is a setting of --method evit and --method random",
        ),
        ("base --r 2 --macs 0.5", 2, "cannot be used with"),
        ("swin --r 2", 1, "the windows of a Swin"),
        (
            "deit_nano_patch8_32 --r 2",
            2,
            "names an architecture without weights",
        ),
    ] {
        place
            .run(&format!("tokens {args} -o out"))
            .ended(code)
            .says(&[said]);
        assert!(!place.path("out").exists(), "{args}");
    }
}
