//! `adapt` and `merge`: what they refuse, what they write, what they prove.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli_support;

use std::path::PathBuf;

use cli_support::Place;
use vitesse::model::storage::safetensors;
use vitesse::model::{Checkpoint, LoadOptions};

/// A few steps on a few drawn images.
const SHORT: &str = "--data shapes --limit 32 --batch-size 16 --epochs 2 --warmup-epochs 0 --lr 0.01";

fn place() -> Place {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 7);
    place
}

fn load(place: &Place, name: &str) -> Checkpoint {
    Checkpoint::load(place.path(name), &LoadOptions::default()).unwrap()
}

#[test]
fn adapt_merge_and_unmerge() {
    let place = place();
    let ran = place
        .run(&format!(
            "adapt --model base --method repadapter --set scale=0.5 {SHORT} --json -o run"
        ))
        .ended(0);
    ran.says(&["repadapter: ", "parameters learn", "epoch: 2 of 2"]);
    let found = ran.json();
    assert_eq!(found["adapter"], "run/adapter");
    assert_eq!(found["method"]["scale"], 0.5);
    assert!(found["trainable"]["method_param_count"].as_u64().unwrap() > 100);

    let merged = place
        .run("merge --model base --adapter run/adapter --data shapes --json -o merged")
        .ended(0)
        .json();
    assert_eq!(merged["folds"]["kept"], serde_json::json!([]));
    let (plan, speed) = (&merged["plan"], &merged["speed"][0]);
    let size = |when: &str, what: &str| plan[when][what].as_u64().unwrap();
    for what in ["param_count", "macs", "weight_bytes"] {
        assert!(size("after", what) < size("before", what), "{what}");
    }
    assert!(speed["before_latency_ms"].as_f64().unwrap() > 0.0 && speed["ratio"]["median"].is_number());
    assert_eq!(speed["warning"].is_string(), speed["verdict"] != "faster");
    assert_eq!(
        (&merged["images"], &merged["data"]),
        (&"data".into(), &"shapes".into())
    );
    let (base, result, best) = (
        load(&place, "base"),
        load(&place, "merged"),
        load(&place, "run/best"),
    );
    assert_eq!(result.spec.network, base.spec.network);
    assert_eq!(result.config.label_names, best.config.label_names);
    assert_eq!(
        result.tensors.get("head.weight").unwrap(),
        best.tensors.get("head.weight").unwrap()
    );
    assert_eq!(result.config.history.last().unwrap().step, "merge");
    let eval = |model: &str| {
        let args = format!("eval --model {model} --data shapes --split validation --limit 64 --json");
        place.run(&args).ended(0).json()["top1"].clone()
    };
    assert_eq!(eval("merged"), eval("run/best"));

    // The folder of the run stands for what it learned.
    let with = place
        .run("eval base --adapter run --data shapes --split validation --limit 64 --json")
        .ended(0);
    with.says(&["`run` is the folder of a run: took what it learned, `adapter`"]);
    assert_eq!(with.json()["top1"], eval("run/best"));
    place
        .run("merge --model base --adapter run --dry-run -o other")
        .ended(0)
        .says(&["took what it learned"]);

    // A second fold would count the adapter twice.
    let twice = place
        .run("merge --model merged --adapter run/adapter -o twice")
        .ended(1);
    twice.says(&["merged into this one already"]);
    assert!(!place.path("twice").exists());

    place
        .run("merge --unmerge --model merged --adapter run/adapter -o back")
        .ended(0);
    let back = load(&place, "back");
    assert_eq!(back.spec.network, base.spec.network);
    for (name, tensor) in base.tensors.iter().filter(|(name, _)| !name.starts_with("head")) {
        let pairs = tensor
            .to_f32()
            .into_owned()
            .into_iter()
            .zip(back.tensors.get(name).unwrap().to_f32().into_owned());
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5), "{name}");
    }
    place
        .run("merge --unmerge --model back --adapter run/adapter -o again")
        .ended(1)
        .says(&["was not merged into"]);
}

#[test]
fn a_dry_run_plans_a_merge_and_writes_nothing() {
    let place = place();
    for method in ["repadapter", "adapter"] {
        place
            .run(&format!(
                "adapt --model base --method {method} {SHORT} -o {method}"
            ))
            .ended(0);
    }
    let before = place.listing();
    let ends = |exit: i32, args: &str| {
        let args = format!("merge --model base --dry-run {args}");
        place.run(&args).ended(exit)
    };
    let plan = |args: &str| ends(0, &format!("-o merged {args}"));
    let found = plan("--adapter repadapter/adapter --json").json();
    assert_eq!(found["dry_run"], true);
    assert!(found["check"].is_null() && found["speed"].is_null() && found["refused"].is_null());
    let (folded, plan_of) = (found["folds"]["folded"].as_array().unwrap(), &found["plan"]);
    let tensors = plan_of["tensors"].as_array().unwrap();
    let gone = tensors
        .iter()
        .filter(|tensor| tensor["after"].is_null() && tensor["before"].is_array());
    assert!(!folded.is_empty() && gone.count() >= 2 * folded.len());
    let macs = |when: &str| plan_of[when]["macs"].as_u64().unwrap();
    assert!(macs("after") < macs("before"));
    let text = plan("--adapter repadapter/adapter").stdout;
    for part in ["parameters", "MACs", "→", "tensors: ", "nothing was written"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }

    // What cannot be folded: refused, unless it may be kept.
    let refused = ends(3, "-o merged --adapter adapter/adapter --json").json();
    assert!(refused["refused"][0]["reason"].as_str().unwrap().contains("gelu"));
    let kept = plan("--adapter adapter/adapter --keep-unfoldable --json").json();
    assert_eq!(kept["folds"]["kept"], refused["refused"]);

    // An output that is taken: said beside the plan, unless it may be replaced.
    let taken = ends(3, "-o base --adapter repadapter/adapter").stdout;
    assert!(
        taken.contains("folded") && taken.contains("`base` exists already"),
        "{taken}"
    );
    let taken = ends(3, "-o base --adapter repadapter/adapter --json").json();
    assert!(taken["occupied"].as_str().unwrap().contains("--force") && taken["plan"].is_object());
    ends(0, "-o base --force --adapter repadapter/adapter");
    assert_eq!(place.listing(), before);
}

#[test]
fn what_cannot_be_folded_is_kept_or_refused() {
    let place = place();
    let next = place
        .run(&format!(
            "adapt --model base --method adapter {SHORT} -o run --json"
        ))
        .ended(0)
        .json()["next"]
        .clone();
    // What leads on is a command that is not refused.
    let next = next
        .as_str()
        .unwrap()
        .strip_prefix("vitesse ")
        .unwrap()
        .to_owned();
    assert_eq!(next, "eval --model base --adapter run/adapter --data shapes");
    place.run(&format!("{next} --limit 32")).ended(0);
    place
        .run("merge --model base --adapter run/adapter -o merged")
        .ended(1)
        .says(&["an activation (gelu) inside", "--keep-unfoldable"]);
    assert!(!place.path("merged").exists());
    let kept = place
        .run("merge --model base --adapter run/adapter --keep-unfoldable -o merged")
        .ended(0);
    assert!(kept.stdout.contains("kept  bottleneck"), "{}", kept.stdout);
    assert!(!load(&place, "merged").spec.ops.is_empty());
}

#[test]
fn every_method_runs_and_a_run_is_resumed() {
    let place = place();
    for method in [
        "lora",
        "ssf",
        "vpt",
        "adaptformer",
        "bitfit",
        "norm",
        "linear",
        "partial",
        "full",
    ] {
        let ran = place.run(&format!(
            "adapt --model base --method {method} {} -o {method}",
            SHORT.replace("--epochs 2", "--epochs 1")
        ));
        ran.ended(0).says(&[method, "parameters ", " learn"]);
        assert!(
            place
                .path(method)
                .join("adapter/adapter_model.safetensors")
                .is_file()
        );
    }
    place.run("adapt --method lora --resume -o lora").ended(0);
}

/// A base may know as many classes as there are, of other names: its head goes, and they with it.
#[test]
fn classes_of_the_base_are_forgotten() {
    let place = place();
    let mut base = Checkpoint::fresh("deit_nano_patch8_32", Some(8), None, 1).unwrap();
    base.config.label_names = (0..8).map(|class| (class, format!("other {class}"))).collect();
    base.save(&place.path("named"), false).unwrap();
    for more in ["--dry-run", "--json"] {
        let ran = place.run(&format!(
            "adapt --model named --method linear {SHORT} -o run {more}"
        ));
        assert!(!ran.ended(0).stderr.contains("drawn anew"));
    }
    let names = load(&place, "run/best").config.label_names;
    assert!(names.len() == 8 && names.values().all(|name| !name.contains("other")));
}

/// The files of a run, with their content.
fn files(place: &Place, run: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let all = place.listing().into_iter().map(|(path, _)| path);
    all.filter(|path| path.starts_with(place.path(run)) && path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_run_goes_on_by_the_method_and_settings_that_began_it_or_not_at_all() {
    let place = place();
    place
        .run(&format!("adapt --model base --method bitfit {SHORT} -o bitfit"))
        .ended(0);
    place
        .run(&format!(
            "adapt --model base --method lora --set rank=4 {SHORT} -o lora"
        ))
        .ended(0);
    place
        .run(&format!("train --model base {SHORT} -o plain"))
        .ended(0);
    let refused = |args: &str, run: &str, parts: &[&str]| {
        let before = files(&place, run);
        let ran = place.run(&format!("{args} --resume -o {run}"));
        assert_ne!(ran.code, 0, "{args}");
        ran.says(parts);
        assert!(files(&place, run) == before, "{args} has changed {run}");
    };
    let alone = "`--resume` that names neither method nor settings";
    refused(
        "adapt --method linear",
        "bitfit",
        &["begun by the method `bitfit`, not by the method `linear`", alone],
    );
    refused(
        "adapt --set rank=2",
        "lora",
        &["begun by the method `lora` with `rank = 4`, not with `rank = 2`"],
    );
    refused(
        "adapt --method lora",
        "lora",
        &["with `rank = 4`, not with `rank = 8`"],
    );
    refused("adapt --set optim.lr=0.5", "lora", &["`lr = 0.5` is new"]);
    for args in ["adapt", "adapt --method lora", "adapt --recipe lora/recipe.toml"] {
        let parts = [
            "begun without a method",
            "`vitesse train --resume` goes on with it",
        ];
        refused(args, "plain", &parts);
    }
    refused(
        "train --recipe plain/recipe.toml",
        "bitfit",
        &["begun by the method `bitfit`, not without a method"],
    );
    refused("distill", "bitfit", &["needs a teacher"]);
    for verb in ["adapt", "train"] {
        place.run(&format!("{verb} --resume -o lora")).ended(0);
    }

    // The recipe alone repeats the run, whichever verb it is given to.
    let read = |path: &str| std::fs::read(place.path(path)).unwrap();
    for (verb, run) in [("adapt", "again"), ("train", "trained")] {
        let ran = place.run(&format!("{verb} --recipe lora/recipe.toml --json -o {run}"));
        assert_eq!(ran.ended(0).json()["adapter"], format!("{run}/adapter"));
        for file in [
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "best/config.json",
            "recipe.toml",
        ] {
            assert!(
                read(&format!("lora/{file}")) == read(&format!("{run}/{file}")),
                "{verb}: {file}"
            );
        }
    }
    let step = load(&place, "again/best").config.history.pop().unwrap();
    assert_eq!(
        (step.method.as_deref(), &step.config["method"]["rank"]),
        (Some("lora"), &4.into())
    );
    let plan = place
        .run("adapt --recipe lora/recipe.toml --set rank=2 --dry-run -o none")
        .ended(0);
    for part in ["[method]\n", "name = \"lora\"\n", "rank = 2\n"] {
        assert!(plan.stdout.contains(part), "`{part}` is not in: {}", plan.stdout);
    }
    // One that names only what is not as usual is filled up in the same way.
    place.write(
        "short.toml",
        "[model]\ncheckpoint = \"base\"\n[data]\npath = \"shapes\"\n[method]\nname = \"lora\"\nrank = 3\n",
    );
    let plans = ["adapt", "train"].map(|verb| {
        let args = format!("{verb} --recipe short.toml --epochs 3 --dry-run -o none");
        place.run(&args).ended(0).stdout
    });
    assert!(plans[0] == plans[1], "{} {}", plans[0], plans[1]);
    for part in [
        "# lora: ",
        "rank = 3\n",
        "alpha = 8.0\n",
        "eval_mode = false\n",
        "epochs = 3\n",
    ] {
        assert!(plans[0].contains(part), "`{part}` is not in: {}", plans[0]);
    }
    for (method, says) in [
        ("name = \"loras\"", "there is no method `loras`"),
        ("name = \"lora\"\nranks = 2", "lora has no setting `ranks`"),
    ] {
        place.write(
            "wrong.toml",
            format!("[data]\npath = \"shapes\"\n[method]\n{method}\n"),
        );
        for verb in ["adapt", "train"] {
            let args = format!("{verb} --recipe wrong.toml --model base -o none");
            place.run(&args).ended(2).says(&[says]);
        }
    }
    assert!(!place.path("none").exists());
}

#[test]
fn a_run_does_not_go_on_on_another_base() {
    let place = place();
    place
        .run(&format!("adapt --model base --method lora {SHORT} -o run"))
        .ended(0);
    let first = place.path("base/model.safetensors");
    std::fs::copy(&first, place.path("kept")).unwrap();
    let other = Checkpoint::fresh("deit_nano_patch8_32", Some(7), None, 2).unwrap();
    other.save(&place.path("base"), true).unwrap();
    let refused = || {
        let before = files(&place, "run");
        let ran = place.run("adapt --resume -o run").ended(1);
        ran.says(&[
            "the base that it was begun with had weights with SHA-256",
            "restore",
        ]);
        assert!(files(&place, "run") == before, "the run has changed");
    };
    refused();
    // Also where the state is lost, and only the adapter tells.
    std::fs::rename(place.path("run/last"), place.path("last")).unwrap();
    refused();
    std::fs::rename(place.path("last"), place.path("run/last")).unwrap();
    std::fs::copy(place.path("kept"), &first).unwrap();
    place.run("adapt --resume -o run").ended(0);
}

#[test]
fn what_cannot_be_meant_is_refused_in_sentences() {
    let place = place();
    let refused = |args: &str, code: i32, parts: &[&str]| {
        place
            .run(&format!("adapt --model base {SHORT} -o run {args}"))
            .ended(code)
            .says(parts);
        assert!(!place.path("run").exists(), "{args}");
    };
    refused("--method loras", 2, &["loras", "repadapter"]);
    refused("--method lora --set rank", 2, &["rank=4"]);
    refused(
        "--method lora --set ranks=4",
        2,
        &["lora has no setting `ranks`", "`rank`"],
    );
    refused("--method linear --set rank=4", 2, &["it has no settings"]);
    refused(
        "--method lora --set rank=1.5",
        2,
        &["lora: `rank` is `1.5`, but must be a whole number"],
    );
    refused(
        "--method lora --set targets=query",
        2,
        &["`query` names no module", "attn.qkv"],
    );
    refused(
        "--method lora --set targets=proj",
        2,
        &["patch_embed.proj", "attn.proj"],
    );
    refused(
        "--method repadapter --set groups=5",
        2,
        &["groups is 5, but must divide both"],
    );
    place.write("one/train/only/a.png", b"");
    place.run("adapt --model base --data one -o run").ended(1);

    place
        .run("merge --model base --adapter nothing -o merged")
        .ended(1);
    std::fs::create_dir(place.path("empty")).unwrap();
    place
        .run("merge --model base --adapter empty -o merged")
        .ended(1)
        .says(&["adapter_config.json"]);

    // Known before anything is read: neither the model nor the adapter is there.
    place
        .run("merge --model nothing --adapter nothing -o empty")
        .ended(1)
        .says(&["`empty` exists already", "--force"]);
    place
        .run("merge --model base --adapter empty --scale 2 -o merged")
        .ended(2)
        .says(&[
            "`empty` is a folder",
            "--scale is for a file of the RepAdapter program",
        ]);
}

#[test]
fn an_adapter_brings_the_size_of_the_images_it_learned_from() {
    let place = place();
    place
        .run(&format!(
            "adapt --model base --method lora --img-size 40 {SHORT} -o run"
        ))
        .ended(0);
    let eval = "eval --model base --adapter run --data shapes --limit 8 --json";
    let ran = place.run(eval).ended(0);
    ran.says(&["the adapter learned from images of 40x40", "`pos_embed` resized"]);
    assert_eq!(ran.json()["img_size"][0], 40);
    let asked = place.run(&format!("{eval} --img-size 32")).ended(0).json();
    assert_eq!(asked["img_size"][0], 32);
    place
        .run("merge --model base --adapter run --images 4 -o merged")
        .ended(0);
    assert_eq!(load(&place, "merged").spec.input_size(), [3, 40, 40]);
    // What is no number is no adapter.
    let file = place.path("run/adapter/adapter_model.safetensors");
    let (mut tensors, metadata) = safetensors::read(&file).unwrap();
    let name = tensors
        .names()
        .find(|name| name.ends_with("lora_B.weight"))
        .unwrap()
        .to_owned();
    let shape = tensors.get(&name).unwrap().shape().to_vec();
    let values = vec![f32::INFINITY; shape.iter().product()];
    tensors.insert_f32(name.clone(), &shape, values).unwrap();
    safetensors::write(&file, &tensors, &metadata).unwrap();
    place
        .run(eval)
        .ended(1)
        .says(&[&name, "adapter_model.safetensors", "infinity"]);
}

#[test]
fn a_folder_that_is_no_adapter_is_told_what_it_is() {
    let place = place();
    let tuned = "train --model base --preset small";
    place.run(&format!("{tuned} {SHORT} -o tuned")).ended(0);
    place
        .run(&format!(
            "adapt --model base --compare linear,lora {SHORT} -o compared"
        ))
        .ended(0);
    place.write("begun/recipe.toml", "[method]\nname = \"lora\"\n");
    let merge = |adapter: &str| {
        place
            .run(&format!("merge --model base --adapter {adapter} -o merged"))
            .ended(1)
    };
    merge("tuned").says(&["changed the whole model", "`--model tuned`"]);
    merge("begun").says(&["has learned none yet", "`vitesse adapt --resume -o begun`"]);
    merge("compared").says(&["several runs", "`compared/linear/seed42`"]);
    merge("base").says(&["a model and no adapter"]);
    place.run("adapt --resume -o compared").ended(1).says(&[
        "several runs",
        "--compare",
        "`-o compared/linear/seed42`",
    ]);
    place
        .run("eval compared --data shapes")
        .ended(1)
        .says(&["several runs", "`compared/linear/seed42`"]);
    place.run("inspect compared/lora/seed42/adapter").ended(1).says(&[
        "adapter and not a model",
        "give `eval`",
        "`vitesse merge`",
    ]);
    place
        .run("train --resume -o tuned --preset finetune")
        .ended(2)
        .says(&["`--preset finetune` is for a new run", "hint: "]);
}

/// Whoever tests a model on what it learned from is told, and where other pictures are.
#[test]
fn accuracy_on_pictures_that_were_learned_from_is_said_to_be() {
    let place = place();
    place.run("data draw shapes -o photos --count 96").ended(0);
    std::fs::remove_file(place.path("photos/labels.csv")).unwrap();
    let short = SHORT.replace("--data shapes --limit 32", "--data photos");
    let next = place
        .run(&format!("adapt --model base --method lora {short} -o run --json"))
        .ended(0)
        .json()["next"]
        .clone();
    assert_eq!(
        next,
        "vitesse merge --model base --adapter run/adapter -o run-merged"
    );
    place
        .run("merge --model base --adapter run/adapter -o merged")
        .ended(0);
    for model in ["run", "merged", "base --adapter run/adapter"] {
        let note = "note: the model learned from pictures of `photos`, all";
        let all = place.run(&format!("eval {model} --data ./photos/")).ended(0);
        all.says(&[
            &note.replace("`photos`", "`./photos/`"),
            "`--split validation` takes those that were held back",
        ]);
        let unseen = place
            .run(&format!("eval {model} --data photos --split validation"))
            .ended(0);
        assert!(!unseen.stderr.contains("learned from"), "{}", unseen.stderr);
    }
    place
        .run("compare merged merged@int8 --data photos --rounds 1 --seconds 0.01")
        .ended(0)
        .says(&["merged@int8: the model learned from pictures of `photos`"]);
    let next = place
        .run(&format!(
            "train --model base --preset small {short} -o tuned --json"
        ))
        .ended(0)
        .json()["next"]
        .clone();
    assert_eq!(
        next,
        "vitesse eval --model tuned/best --data photos --split validation"
    );
}

#[test]
fn many_adapters_stand_on_one_base() {
    let place = place();
    for (task, method, classes) in [("count", "lora", 5), ("silhouette", "repadapter", 8)] {
        let short = SHORT.replace("--data shapes", &format!("--data shapes:{task}"));
        place
            .run(&format!("adapt --model base --method {method} {short} -o {task}"))
            .ended(0);
        let merged = place
            .run(&format!(
                "merge --model base --adapter {task}/adapter -o {task}-merged --json"
            ))
            .ended(0)
            .json();
        // The adapter knows what it learned from.
        assert_eq!(merged["images"], "training");
        assert_eq!(merged["data"], format!("shapes:{task}"));

        let eval = |model: &str| {
            let args =
                format!("eval --model {model} --data shapes:{task} --split validation --limit 64 --json");
            place.run(&args).ended(0).json()
        };
        let (unmerged, merged) = (
            eval(&format!("base --adapter {task}/adapter")),
            eval(&format!("{task}-merged")),
        );
        assert_eq!(unmerged["num_classes"], classes);
        assert_eq!(unmerged["top1"], merged["top1"]);
        let loss = |found: &serde_json::Value| found["loss"].as_f64().unwrap();
        assert!((loss(&unmerged) - loss(&merged)).abs() < 1e-5);

        place
            .run(&format!("data draw shapes:{task} -o {task}-drawn --count 1"))
            .ended(0);
        let pictures = place.listing();
        let picture = pictures
            .iter()
            .map(|(path, _)| path)
            .find(|path| path.starts_with(place.path(&format!("{task}-drawn"))) && path.is_file())
            .unwrap();
        let predict = |model: &str| {
            let args = format!(
                "predict --model {model} --topk {classes} --json {}",
                picture.display()
            );
            let found = place.run(&args).ended(0).json();
            let classes = found["predictions"][0]["classes"].as_array().unwrap().clone();
            classes
                .iter()
                .map(|class| (class["name"].clone(), class["score"].as_f64().unwrap()))
                .collect::<Vec<_>>()
        };
        let (unmerged, merged) = (
            predict(&format!("base --adapter {task}/adapter")),
            predict(&format!("{task}-merged")),
        );
        assert_eq!(unmerged.len(), classes);
        for (a, b) in unmerged.iter().zip(&merged) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-5, "{unmerged:?} {merged:?}");
        }
    }
    place
        .run("bench --model base --adapter count/adapter --batch-size 1 --seconds 0 --min-runs 1 --json")
        .ended(0);
    place
        .run("eval --model count-merged --adapter count/adapter --data shapes:count")
        .ended(1)
        .says(&["merged into this one already"]);
    place
        .run("eval --model deit_nano_patch8_32 --adapter count/adapter --data shapes:count")
        .ended(2)
        .says(&["`deit_nano_patch8_32` is only a name"]);
}

#[test]
fn a_merge_is_proved_on_drawn_pictures_where_there_are_no_others() {
    let place = place();
    let picture = include_bytes!("cli_support/ok.png");
    for file in ["a/1", "a/2", "b/1", "b/2"] {
        place.write(&format!("mine/train/{file}.png"), picture);
        place.write(&format!("mine/val/{file}.png"), picture);
    }
    place
        .run(
            "adapt --model base --method lora --data mine --batch-size 2 --epochs 1 --warmup-epochs 0 -o run",
        )
        .ended(0);
    let merge = |output: &str| {
        place.run(&format!(
            "merge --model base --adapter run/adapter -o {output} --json"
        ))
    };
    let found = merge("near").ended(0).json();
    assert_eq!(
        (&found["images"], &found["data"]),
        (&"training".into(), &"mine".into())
    );
    std::fs::rename(place.path("mine"), place.path("gone")).unwrap();
    let ran = merge("far").ended(0);
    ran.says(&[
        "the images that the adapter learned from cannot be compared",
        "mine",
    ]);
    assert_eq!(
        (&ran.json()["images"], &ran.json()["data"]),
        (&"drawn".into(), &"shapes".into())
    );
}
