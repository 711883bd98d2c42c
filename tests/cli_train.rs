//! `train`, `distill` and `analyze`: what they refuse, what they write, what they report.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli_support;

use cli_support::Place;
use serde_json::Value;

/// A run of four steps.
const TINY: &str = r#"
preset = "small"
[model]
name = "deit_nano_patch8_32"
[data]
path = "shapes"
limit = 32
validation_limit = 16
[train]
epochs = 2
batch_size = 16
[schedule]
warmup_epochs = 1
"#;

fn place() -> Place {
    let place = Place::new();
    place.write("tiny.toml", TINY);
    place
}

/// A model of one channel learns from luminance, also from a teacher of one channel that normalises differently.
#[test]
fn one_channel_learns() {
    let place = Place::new();
    place.one_channel("grey");
    let data = "--data shapes:plain-count --limit 40 --epochs 1 -b 8";
    place.run(&format!("train --model grey {data} -o run")).ended(0);
    let config = std::fs::read_to_string(place.path("grey/config.json")).unwrap();
    place.one_channel("teacher");
    place.write("teacher/config.json", config.replace("0.449", "0.3"));
    place
        .run(&format!(
            "distill --model grey --teacher teacher {data} -o taught"
        ))
        .ended(0);
    let tested = place
        .run("eval --model taught/best --data shapes:plain-count --limit 40 --json")
        .ended(0);
    assert_eq!(tested.json()["images"], 40);
}

#[test]
fn a_run_reports_what_it_came_to() {
    let place = place();
    let ran = place
        .run("train --recipe tiny.toml --epochs 3 --test --json -o run")
        .ended(0);
    ran.says(&["epoch: 1 of 3: loss", "top-1", "left", "epoch: 3 of 3: loss"]);
    let found = ran.json();
    assert_eq!((&found["epochs"], &found["steps"]), (&3.into(), &6.into()));
    assert_eq!(found["plan"]["train_images"], 32);
    assert_eq!(found["checkpoint"], "run/best");
    for key in ["top1", "balanced_accuracy", "loss"] {
        assert!(found["test"][key].is_number(), "`{key}` in {found}");
    }
    assert_eq!(found["test"]["split"], "test");
    let kept = std::fs::read_to_string(place.path("run/test.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), found["test"]);
    let best = found["best"]["epoch"].as_u64().unwrap();
    assert!(best < 3);

    // The checkpoint that is named is one, the command that is named works.
    let next = found["next"].as_str().unwrap();
    place.run(next.strip_prefix("vitesse ").unwrap()).ended(0);
    // Nothing is left to do; the same is said again, as text.
    let text = place.run("train --resume -o run").ended(0).stdout;
    for part in [
        "deit_nano_patch8_32",
        "3 epochs in",
        "validation top-1",
        "run/best",
        "Next:\n  vitesse eval",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    // What is saved is the effective recipe, and repeats the run.
    place.run("train --recipe run/recipe.toml -j 3 -o again").ended(0);
    for file in ["final/model.safetensors", "best/config.json"] {
        let read = |run: &str| std::fs::read(place.path(run).join(file)).unwrap();
        assert!(read("run") == read("again"), "{file}");
    }
}

#[test]
fn blocks_computed_again_leave_the_same_bytes_and_bf16_does_not() {
    let place = place();
    for (run, flags) in [
        ("plain", ""),
        ("again", "--grad-checkpointing"),
        ("low", "--amp bf16"),
    ] {
        place
            .run(&format!("train --recipe tiny.toml {flags} -o {run}"))
            .ended(0);
    }
    let weights = |run: &str| std::fs::read(place.path(run).join("final/model.safetensors")).unwrap();
    assert!(weights("plain") == weights("again"));
    assert!(weights("plain") != weights("low"));
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let place = place();
    place.model("teacher", "deit_nano_patch8_32", 8);
    let before = place.listing();
    let text = place
        .run("train --recipe tiny.toml --dry-run -o run")
        .ended(0)
        .stdout;
    for part in [
        "# parameters",
        "# steps",
        "4 = 2 epochs of 2, 16 images each",
        "warmup_epochs = 1.0",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    // Flags are over the file, and a checkpoint takes the place of a name.
    let flags = "--lr 0.25 -b 8 --smoothing 0 --img-size 48 --model ./teacher --teacher teacher --seed 7";
    let found = place
        .run(&format!(
            "distill --recipe tiny.toml --dry-run -o run --json {flags}"
        ))
        .ended(0)
        .json();
    let recipe = &found["recipe"];
    assert_eq!(recipe["optim"]["lr"], 0.25);
    assert_eq!(recipe["train"]["smoothing"], 0.0);
    assert_eq!(recipe["train"]["seed"], 7);
    assert_eq!(recipe["model"]["name"], Value::Null);
    assert_eq!(recipe["model"]["checkpoint"], "./teacher");
    assert_eq!(found["plan"]["steps_per_epoch"], 4);
    assert!(found["plan"]["teacher"].as_str().unwrap().starts_with("teacher"));
    assert_eq!(place.listing(), before);

    // What is shown is a recipe.
    place.write("shown.toml", &text);
    assert_eq!(
        place
            .run("train --recipe shown.toml --dry-run -o run")
            .ended(0)
            .stdout,
        text
    );
}

#[test]
fn recipes_that_cannot_be_meant_are_refused() {
    let place = place();
    let wrong = [
        (
            "epochs",
            "epoch",
            "unknown key `train.epoch`; did you mean `train.epochs`?",
        ),
        ("[schedule]", "[shedule]", "did you mean [schedule]?"),
        (
            "limit = 32",
            "lr = 1",
            "unknown key `data.lr`; it belongs in [optim]",
        ),
        ("preset = \"small\"", "preset = \"tiny\"", "`preset`"),
        ("epochs = 2", "epochs = \"two\"", "[train]"),
        ("epochs = 2", "epochs = = 2", "wrong.toml"),
    ];
    for (right, wrong, sentence) in wrong {
        place.write("wrong.toml", TINY.replacen(right, wrong, 1));
        let ran = place.run("train --recipe wrong.toml -o run --json").ended(2);
        ran.says(&[sentence]);
        assert_eq!(ran.json()["error"]["code"], "E_RECIPE");
    }
    let flags = [
        (
            "--mixup 0.8 -b 15",
            "an even number, since mixup and cutmix pair the samples of a batch",
        ),
        (
            "--drop-path 1",
            "`model.drop_path` is 1, expected at least 0 and below 1",
        ),
        ("--epochs 0", "`train.epochs` is 0, expected at least 1"),
        ("--epochs two", "expected a whole number"),
        ("--aa rand-x", "`augment.aa`"),
        ("--amp fp16", "[possible values: bf16]"),
        ("--lr -1", "`optim.lr` is -1"),
        ("--mixup -1", "`augment.mixup` is -1"),
    ];
    for (flags, sentence) in flags {
        place
            .run(&format!("train --recipe tiny.toml -o run {flags}"))
            .ended(2)
            .says(&[sentence]);
    }
    place
        .run("train -o run --data shapes")
        .ended(2)
        .says(&["`model.name` is not set"]);
    place
        .run("train -o run --model deit_nano_patch8_32")
        .ended(2)
        .says(&["`data.path` is not set"]);
    place
        .run("train --recipe none.toml -o run")
        .ended(1)
        .says(&["cannot read `none.toml`"]);
    place
        .run("train --recipe tiny.toml -o run -b 64")
        .ended(2)
        .says(&["the 32 images"]);
    assert!(!place.path("run").exists());
}

#[test]
fn a_folder_that_exists_is_left_alone() {
    let place = place();
    place.run("train --recipe tiny.toml -o run").ended(0);
    let before = place.listing();
    let refused = [
        (
            "train --recipe tiny.toml -o run",
            "`run` exists already; continue its run with `--resume`",
            "E_EXISTS",
        ),
        (
            "train --recipe tiny.toml --seed 3 --resume -o run",
            "`seed = 3` is new",
            "E_RESUME",
        ),
        ("train --resume -o nothing", "holds no recipe.toml", "E_RESUME"),
    ];
    for (args, sentence, code) in refused {
        let ran = place.run(&format!("{args} --json")).ended(1);
        ran.says(&[sentence]);
        assert_eq!(ran.json()["error"]["code"], code);
    }
    assert_eq!(place.listing(), before);
    place
        .run("train --recipe tiny.toml --resume --force -o run")
        .ended(2);

    place.write("mine/thesis.txt", "years of work");
    place
        .run("train --recipe tiny.toml --force -o mine")
        .ended(1)
        .says(&["`mine` is not replaced"]);
    assert!(place.path("mine/thesis.txt").exists());
    place
        .run("train --recipe tiny.toml --force --seed 3 -o run")
        .ended(0);
}

#[test]
fn a_student_learns_from_a_teacher_of_its_classes() {
    let place = place();
    place.model("teacher", "regnety_nano_32", 8);
    place.model("stranger", "deit_nano_patch8_32", 3);
    let distill = "distill --recipe tiny.toml --model deit_nano_distilled_patch8_32 -o run";
    place
        .run(distill)
        .ended(2)
        .says(&["needs a teacher", "--teacher"]);
    place
        .run(&format!("{distill} --teacher ./nobody"))
        .ended(1)
        .says(&["`./nobody` cannot be the teacher: there is no such file"]);
    place
        .run(&format!("{distill} --teacher regnety_004"))
        .ended(2)
        .says(&["nothing to teach"]);
    let refused = place
        .run(&format!("{distill} --teacher stranger --json"))
        .ended(1);
    refused.says(&["it knows 3 classes and the student 8"]);
    assert_eq!(refused.json()["error"]["code"], "E_TEACHER");
    assert!(!place.path("run").exists());

    let soft =
        "--distillation-type soft --distillation-alpha 0.1 --distillation-tau 3 --normaliser per-sample";
    let found = place
        .run(&format!("{distill} --teacher teacher {soft} --json"))
        .ended(0)
        .json();
    assert!(found["plan"]["teacher"].as_str().unwrap().starts_with("teacher"));
    let saved = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();
    for line in [
        "kind = \"soft\"",
        "alpha = 0.1",
        "tau = 3.0",
        "normaliser = \"per-sample\"",
    ] {
        assert!(saved.contains(line), "`{line}` is not in: {saved}");
    }
    let log = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert!(log.lines().all(|line| line.contains("\"distill\":")), "{log}");

    let tokens = "analyze tokens --model run/best --data shapes --limit 12";
    let found = place.run(&format!("{tokens} --json")).ended(0).json();
    assert_eq!(
        (found["images"].as_u64(), found["split"].as_str()),
        (Some(12), Some("test"))
    );
    let blocks = found["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 4);
    assert!(blocks.iter().all(|cosine| cosine.as_f64().unwrap().abs() <= 1.0));
    let text = place.run(tokens).ended(0).stdout;
    for part in [
        "as learned",
        "input of the first block",
        "after block 3",
        "after the final norm",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    place
        .run("analyze tokens --model teacher --data shapes --limit 4")
        .ended(1);
}

#[test]
fn a_diverging_run_says_where() {
    let place = place();
    let ran = place
        .run("train --recipe tiny.toml --lr 1e30 --warmup-epochs 0 --json -o run")
        .ended(1);
    ran.says(&[
        "the loss is NaN at step 1",
        "learning rate",
        "the batch was shapes-train[",
    ]);
    assert_eq!(ran.json()["error"]["code"], "E_DIVERGED");
}

#[test]
fn a_study_compares_its_arms() {
    let place = place();
    let study = r#"
name = "With and without a token"
seeds = [1, 2]
budget_hours = 1.0
test = "shapes"
[base]
preset = "small"
[base.model]
name = "deit_nano_patch8_32"
[base.data]
path = "shapes"
limit = 32
val_fraction = 0.0
validation_limit = 16
[base.train]
epochs = 1
batch_size = 16
[base.schedule]
warmup_epochs = 0
[first.teacher.model]
name = "regnety_nano_32"
[[arm]]
name = "none"
[[arm]]
name = "token"
[arm.set.model]
name = "deit_nano_distilled_patch8_32"
[arm.set.distill]
teacher = "@teacher"
"#;
    place.write("study.toml", study);
    let dry = "train --sweep study.toml --dry-run -o study";
    let planned = place.run(&format!("{dry} --json")).ended(0).json();
    let states = |planned: &serde_json::Value| -> Vec<String> {
        let runs = planned["runs"].as_array().unwrap();
        runs.iter()
            .map(|run| run["state"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(states(&planned), ["new"; 5]);
    assert_eq!(planned["budget_hours"], 1.0);
    assert!(!place.path("study").exists());
    let ran = place.run("train --sweep study.toml -o study").ended(0);
    ran.says(&["run: 1 of 5: teacher, seed 1", "tested: token, seed 2"]);
    for part in [
        "With and without a token",
        "teacher ",
        "distillation head %",
        "cosine of the two tokens",
        "after block 3",
    ] {
        assert!(ran.stdout.contains(part), "`{part}` is not in: {}", ran.stdout);
    }
    // What is finished is kept, and said again.
    let again = place.run("train --sweep study.toml -o study").ended(0);
    assert_eq!(again.stdout, ran.stdout);
    assert!(!again.stderr.contains("epoch:"), "{}", again.stderr);
    assert_eq!(
        states(&place.run(&format!("{dry} --json")).ended(0).json()),
        ["finished"; 5]
    );
    let text = place.run(dry).ended(0).stdout;
    assert!(text.contains("5 runs, 5 finished in "), "{text}");
    let kept = |name: &str| std::fs::read_to_string(place.path("study").join(name)).unwrap();
    let csv = kept("study.csv");
    assert!(
        csv.starts_with(
            "arm,seed,param_count,weight_bytes,top1,class_top1,distillation_top1,epochs,seconds\nteacher,1,"
        ),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 6);
    let json: serde_json::Value = serde_json::from_str(&kept("study.json")).unwrap();
    assert_eq!(
        (&json["runs"][4]["arm"], &json["page"]),
        (&"token".into(), &"study/study.html".into())
    );
    let page = kept("study.html");
    for part in ["With and without a token", "<svg", "Every run"] {
        assert!(page.contains(part), "{part}");
    }

    // A study that was begun otherwise, or by a method, is not gone on with.
    let before = place.listing();
    let changed = |from: &str, to: &str, code, parts: &[&str]| {
        place.write("study.toml", study.replace(from, to));
        place
            .run("train --sweep study.toml -o study")
            .ended(code)
            .says(parts);
        let after = place
            .listing()
            .into_iter()
            .filter(|(path, _)| !path.ends_with("study.toml"));
        assert!(
            after.eq(before
                .iter()
                .filter(|(path, _)| !path.ends_with("study.toml"))
                .cloned())
        );
    };
    let arm = "[arm.set.distill]\n";
    changed(
        arm,
        "[arm.set.distill]\nalpha = 0.25\n",
        1,
        &["study/token/seed1", "`alpha = 0.25` is new"],
    );
    changed(
        arm,
        "[arm.set.method]\nname = \"lroa\"\n[arm.set.distill]\n",
        2,
        &["there is no method `lroa`"],
    );
}

/// Each of several processes would do the whole work.
#[test]
#[cfg(not(feature = "mpi"))]
fn without_mpi_several_processes_are_refused() {
    let place = place();
    let launched = |processes| [("OMPI_COMM_WORLD_SIZE", processes)];
    let refused = place
        .run_with("train --recipe tiny.toml -o run", &launched("2"))
        .ended(1);
    refused.says(&["built without MPI", "--features mpi"]);
    assert!(!place.path("run").exists());
    place
        .run_with("train --recipe tiny.toml --dry-run -o run", &launched("1"))
        .ended(0);
}

#[test]
fn shots_take_what_there_is_and_say_so() {
    let place = place();
    let picture = include_bytes!("cli_support/ok.png");
    for file in ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "b/4"] {
        place.write(&format!("few/train/{file}.png"), picture);
        place.write(&format!("few/val/{file}.png"), picture);
    }
    let train = |more: &str| {
        let args = format!("train --recipe tiny.toml --data few --epochs 1 --batch-size 2 {more} -o run");
        place.run(&args)
    };
    // The flag takes the place of the recipe's limit.
    let ran = train("--shots 4 --dry-run").ended(0);
    ran.says(&["not every class has the 4 images", "`a` 3"]);
    assert!(
        ran.stdout.contains("shots = 4") && !ran.stdout.contains("\nlimit"),
        "{}",
        ran.stdout
    );
    train("--shots 2 --limit 3")
        .ended(2)
        .says(&["cannot be used with"]);
    let ran = train("--shots 4 --json").ended(0);
    ran.says(&["those give all they have: `a` 3"]);
    let plan = &ran.json()["plan"];
    assert_eq!(
        (&plan["train_images"], &plan["validation_images"]),
        (&7.into(), &7.into())
    );

    // With train and validation there is nothing to evaluate on, and the last epoch is the result.
    let ran = train("--split trainval --force --json").ended(0).json();
    assert_eq!(
        (&ran["plan"]["train_images"], &ran["checkpoint"]),
        (&14.into(), &"run/final".into())
    );

    place.write("none/train/a/1.png", picture);
    place.write("none/val/a/1.png", picture);
    place.write("none/val/b/1.png", picture);
    place
        .run("train --recipe tiny.toml --data none --shots 1 -o none-run")
        .ended(1)
        .says(&["`none` has no image of the class `b` to learn from"]);
}
