//! `prune`: what it cuts, proves, writes and refuses.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::Place;
use vitesse::model::{Checkpoint, LoadOptions};

#[test]
fn half_a_model_is_proved_and_written_and_loads() {
    let place = Place::new();
    let before = place.model("base", "deit_micro_distilled_patch4_32", 16);
    for method in ["magnitude", "taylor", "random"] {
        let args = format!("prune --model base --method {method} --macs 0.5 --round-to 2 -o {method}");
        let shown = place.run(&format!("{args} --dry-run --json")).ended(0).json();
        assert!(shown["check"].is_null() && !place.path(method).exists());
        let found = place.run(&format!("{args} --json")).ended(0).json();
        assert_eq!(found["plan"], shown["plan"], "{method}");
        assert_eq!(found["method"], method);
        let macs = |when: &str| found["plan"][when]["macs"].as_f64().unwrap();
        assert!(
            (0.4..=0.5).contains(&(macs("after") / macs("before"))),
            "{method}"
        );
        assert!(found["check"]["images"].as_u64().unwrap() > 0 && found["speed"]["rounds"].is_u64());

        let after = Checkpoint::load(place.path(method), &LoadOptions::default()).unwrap();
        let (dense, vit) = (before.spec.vit().unwrap(), after.spec.vit().unwrap());
        let mlp = vit.cores[0].mlp.as_ref().unwrap();
        assert!(vit.cores.iter().all(|core| core == &vit.cores[0]) && mlp.hidden.is_multiple_of(2));
        let scale = |core: &vitesse::model::spec::BlockSpec| core.attn.as_ref().unwrap().scale;
        assert_eq!(scale(&vit.cores[0]), scale(&dense.cores[0]));
        let step = after.config.history.last().unwrap();
        assert_eq!(
            (step.step.as_str(), step.method.as_deref()),
            ("prune", Some(method))
        );
        assert!(step.parent_sha256.is_some());
    }
}

#[test]
fn a_budget_that_cannot_be_met_is_refused_and_nothing_is_written() {
    let place = Place::new();
    place.model("base", "deit_micro_patch4_32", 5);
    for (macs, code, says) in [
        ("0.001", 1, "these units leave at least"),
        ("1.5", 2, "a share above 0"),
        ("NaN", 2, "a share above 0"),
    ] {
        let ran = place.run(&format!("prune --model base --macs {macs} -o out"));
        assert!(ran.code == code && ran.stderr.contains(says), "{}", ran.stderr);
        assert!(!place.path("out").exists());
    }
    place.model("regnet", "regnety_nano_32", 5);
    let ran = place.run("prune --model regnet --macs 0.5 -o out");
    assert!(
        ran.code == 1 && ran.stderr.contains("needs a vision transformer"),
        "{}",
        ran.stderr
    );
    assert!(!place.path("out").exists());
}
