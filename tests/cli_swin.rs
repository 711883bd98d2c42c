//! A Swin through the verbs: described, trained, tested, timed, adapted, merged; what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli_support;

use cli_support::Place;

const NAME: &str = "swin_nano_patch2_window4_32";
const DATA: &str = "--data shapes --limit 24 -b 8";

#[test]
fn it_learns_and_its_folder_goes_through_the_verbs() {
    let place = Place::new();
    let inspected = place.run(&format!("inspect {NAME}")).ended(0).stdout;
    for part in ["windows of 4x4, shifted", "8x8 tokens, width 64", "10 classes"] {
        assert!(inspected.contains(part), "`{part}` is not in: {inspected}");
    }
    // The same bits for any number of threads, and with blocks computed again.
    let train = format!("train --preset small --model {NAME} {DATA} --epochs 2");
    place.run(&format!("{train} -j 1 -o run")).ended(0);
    place
        .run(&format!("{train} -j 3 --grad-checkpointing -o again"))
        .ended(0);
    let weights = |run: &str| std::fs::read(place.path(run).join("final/model.safetensors")).unwrap();
    assert!(weights("run") == weights("again"));

    let eval = |more: &str| {
        let command = format!("eval run/final --data shapes --limit 24 --json {more}");
        place.run(&command).ended(0).json()["loss"].as_f64().unwrap()
    };
    let (engine, network) = (eval(""), eval("--engine burn"));
    assert!((engine - network).abs() < 1e-4, "{engine} and {network}");
    // Maps that the windows do not fit are filled up.
    for sizes in ["--img-size 48", "--img-size 64x48 --window-size 8"] {
        let (engine, network) = (eval(sizes), eval(&format!("{sizes} --engine burn")));
        assert!((engine - network).abs() < 1e-4, "{sizes}: {engine} and {network}");
    }
    place
        .run(&format!(
            "bench run/final --batch-size 1,2 --precision f32,bf16,int8 {SHORT}"
        ))
        .ended(0);
}

/// As short as a measurement can be.
const SHORT: &str = "--seconds 0.01 --min-runs 2 --threads 2";

#[test]
fn it_is_adapted_and_merged() {
    let place = Place::new();
    place.model("base", NAME, 10);
    for method in ["repadapter", "lora", "ssf", "bitfit", "norm", "adapter", "linear"] {
        place
            .run(&format!(
                "adapt --model base --method {method} {DATA} --epochs 1 -o {method}"
            ))
            .ended(0);
    }
    for method in ["repadapter", "lora", "ssf"] {
        let merged = format!("merge --model base --adapter {method}/adapter --images 4 -o {method}-merged");
        place.run(&merged).ended(0);
        place.run(&format!("inspect {method}-merged")).ended(0);
    }
    for (command, said) in [
        (
            format!("adapt --model base --method vpt {DATA} -o vpt"),
            "windows of a Swin",
        ),
        (
            "prune base --macs 0.8 --data shapes -o cut".to_owned(),
            "is a Swin",
        ),
        ("analyze tokens base --data shapes".to_owned(), "is a Swin"),
        (format!("bench {NAME} --img-size 36"), "even sides"),
    ] {
        let ran = place.run(&command);
        assert!(
            ran.code != 0 && ran.stderr.contains(said),
            "{command}: {}",
            ran.stderr
        );
    }
}
