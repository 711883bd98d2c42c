//! `share`: from a model to one whose layers share their matrices.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::Place;
use vitesse::model::Checkpoint;
#[cfg(feature = "train")]
use vitesse::model::LoadOptions;

/// A place with a model of four blocks.
fn place() -> Place {
    let place = Place::new();
    let base = Checkpoint::fresh("deit_nano_patch8_32", Some(8), None, 1).unwrap();
    base.save(&place.path("base"), false).unwrap();
    place
}

#[test]
#[cfg(feature = "train")]
fn a_model_is_shared_proved_and_loaded_again() {
    let place = place();
    let ran = place
        .run("share base --group 2 --init mean --images 4 -o shared --json")
        .ended(0);
    let document = ran.json();
    assert_eq!(document["step"], "share");
    assert_eq!(
        document["transformations"],
        serde_json::json!(["positions", "mixing"])
    );
    assert_eq!(document["check"]["agreeing"], 4);
    let shared = Checkpoint::load(place.path("shared"), &LoadOptions::default()).unwrap();
    assert_eq!(shared.spec.group_of(3), [2, 3]);
    let count = |model: &Checkpoint| model.spec.costs().unwrap().parameters();
    let base = Checkpoint::load(place.path("base"), &LoadOptions::default()).unwrap();
    assert!(count(&shared) < count(&base) * 6 / 10);
    let step = shared.config.history.last().unwrap();
    assert_eq!(
        (step.step.as_str(), &step.config["init"]),
        ("share", &"mean".into())
    );
    // It is a model like any other, and learns from the one that it comes from.
    let short = "--data shapes --limit 32 -b 16 --epochs 1 --warmup-epochs 0";
    for args in [
        "bench shared --seconds 0.01 --min-runs 1 --batch-size 1",
        &format!("distill --model shared --teacher base {short} -o taught"),
        &format!("adapt --model shared --method lora {short} -o adapted"),
        "merge --model shared --adapter adapted/adapter --keep-unfoldable -o merged",
        "eval merged --data shapes --limit 16",
    ] {
        place.run(args).ended(0);
    }
    let alike = place
        .run("analyze cka base shared --images 24 --json")
        .ended(0)
        .json();
    let layers = alike["results"][0]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    // Fresh blocks change the stream little, so their mean gives almost the same features.
    let close = |cka: &serde_json::Value| (0.9..=1.0 + 1e-9).contains(&cka.as_f64().unwrap());
    assert!(layers.iter().all(close), "{layers:?}");
    let same = place
        .run("analyze cka base base --images 24 --flatten")
        .ended(0)
        .stdout;
    assert_eq!(same.matches("1.0000").count(), 4, "{same}");
    assert!(same.contains("all tokens"), "{same}");
    place.model("deeper", "deit_micro_patch4_32", 8);
    let refused = place.run("analyze cka base deeper").ended(1);
    refused.says(&["compared are layers with the same number"]);
    let refused = place.run("prune shared --macs 0.8 -o cut").ended(1);
    refused.says(&[
        "the op `relative-positions` at `attn.logits` of layer 0",
        "structured pruning does not cut",
    ]);
    let taught = Checkpoint::load(place.path("taught"), &LoadOptions::default()).unwrap();
    assert_eq!(taught.spec.ops, shared.spec.ops);
    let moved = "ops.1.0.attn.logits.weight";
    assert_ne!(
        taught.tensors.get(moved).unwrap(),
        shared.tensors.get(moved).unwrap()
    );
}

#[test]
fn the_plan_writes_nothing_and_says_that_time_stays() {
    let place = place();
    let ran = place
        .run("share base --groups 1,3 --transform none --dry-run -o shared")
        .ended(0);
    for said in ["none: plain sharing", "time do not", "dry run"] {
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
    }
    assert!(!place.path("shared").exists());
}

#[test]
fn what_cannot_be_shared_is_refused_in_sentences() {
    let place = place();
    for (args, said) in [
        (
            "--group 3",
            "groups of 3 do not divide the 4 layers; choose 1 or 2 or 4",
        ),
        ("--groups 2,1", "3 layers together, but the model has 4"),
        ("--init 2", "has no layer number 2"),
    ] {
        let ran = place.run(&format!("share base {args} -o shared")).ended(1);
        ran.says(&[said]);
        assert!(!place.path("shared").exists(), "{args}");
    }
    place
        .run("share base --init last -o shared")
        .ended(2)
        .says(&["expected `first`, `mean`"]);
    place
        .run("share base --transform none,mixing -o shared")
        .ended(2)
        .says(&["`none` stands beside other transformations"]);
    place.run("share base --group 2 -o shared").ended(0);
    let ran = place.run("share shared --group 2 -o again").ended(1);
    ran.says(&["has ops of its own"]);
}
