//! The command line itself, and the verbs that need no model: `--help`, `inspect`, `data`, `doctor`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::fs;
use std::process::{Command, Stdio};

use cli_support::Place;

/// The verbs that the help of `command` lists, and theirs.
fn verbs(place: &Place, command: &str) -> Vec<String> {
    let help = place.run(&format!("{command} --help")).ended(0).stdout;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    // Descriptions that go on in another line are indented further.
    let names = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  "));
    let names = names
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next());
    let mut found = Vec::new();
    for name in names.filter(|name| *name != "help") {
        let verb = format!("{command} {name}").trim_start().to_owned();
        let inner = verbs(place, &verb);
        found.push(verb);
        found.extend(inner);
    }
    found
}

#[test]
fn every_verb_explains_itself() {
    let place = Place::new();
    let verbs = verbs(&place, "");
    for known in ["eval", "quickstart", "data", "data draw"] {
        assert!(verbs.iter().any(|verb| verb == known), "{verbs:?}");
    }
    for verb in &verbs {
        let help = place.run(&format!("{verb} --help")).ended(0);
        let has_verbs = help.stdout.contains("Commands:");
        assert!(help.stdout.contains("Usage: vitesse"), "{verb}: {}", help.stdout);
        assert!(
            has_verbs || help.stdout.contains("Examples:"),
            "{verb} has no example"
        );
        assert!(help.stderr.is_empty(), "{verb}: {}", help.stderr);
        place.run(&format!("{verb} -h")).ended(0);
    }
    let version = place.run("--version").ended(0);
    assert_eq!(version.stdout, format!("vitesse {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_ends_with_2_and_a_document() {
    let place = Place::new();
    for args in [
        "",
        "fly",
        "eval",
        "eval --model x --data y --fast",
        "inspect",
        "inspect --list --model x",
    ] {
        let ran = place.run(args).ended(2);
        assert!(
            ran.stdout.is_empty() && !ran.stderr.is_empty(),
            "{args}: {}",
            ran.stdout
        );
    }
    let ran = place
        .run("eval --model x --data y --precision int3 --json")
        .ended(2);
    ran.says(&["--precision", "f32"]);
    let document = ran.json();
    assert_eq!(document["error"]["code"], "E_USAGE");
    assert!(
        document["error"]["message"]
            .as_str()
            .unwrap()
            .contains("--precision")
    );
}

#[test]
fn an_error_is_a_sentence_and_with_json_a_document_too() {
    let ran = Place::new().run("inspect --model ./nothing --json").ended(1);
    ran.says(&["error: ", "./nothing"]);
    let error = &ran.json()["error"];
    assert_eq!(error["code"], "E_IO");
    assert!(
        error["message"].as_str().unwrap().contains("./nothing"),
        "{error}"
    );
}

/// `vitesse inspect --list | head -1`
#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vitesse"))
        .args(["data", "list", "--data", "shapes", "--split", "train", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = Place::new().run_into("inspect --list", full.into()).ended(1);
    ran.says(&["error: cannot write to standard output"]);
}

#[test]
fn inspect_lists_the_zoo() {
    let place = Place::new();
    let zoo = place.run("inspect --list --json").ended(0).json();
    let models = zoo["models"].as_array().unwrap();
    let tiny = models
        .iter()
        .find(|model| model["name"] == "deit_tiny_patch16_224")
        .unwrap();
    assert_eq!(tiny["param_count"], 5_717_416);
    assert_eq!(tiny["input_size"], serde_json::json!([3, 224, 224]));
    let text = place.run("inspect --list").ended(0).stdout;
    assert_eq!(text.lines().count(), models.len() + 2);
}

#[test]
fn inspect_shows_a_checkpoint() {
    let place = Place::new();
    let checkpoint = place.model("m", "deit_micro_distilled_patch4_32", 8);
    let found = place.run("inspect --model m --tensors --json").ended(0).json();
    assert_eq!(found["architecture"], "deit_micro_distilled_patch4_32");
    assert_eq!(
        found["param_count"],
        checkpoint.spec.costs().unwrap().parameters()
    );
    assert_eq!(
        found["file"]["tensors"].as_array().unwrap().len(),
        checkpoint.tensors.len()
    );
    assert_eq!(found["file"]["dtypes"]["F32"], checkpoint.tensors.parameters());
    assert_eq!(found["file"]["sha256"].as_str().unwrap().len(), 64);
    let layers = found["layers"].as_array().unwrap();
    let sum: u64 = layers.iter().map(|layer| layer["macs"].as_u64().unwrap()).sum();
    assert_eq!(found["macs"], sum);
    let text = place.run("inspect --model m").ended(0).stdout;
    for part in [
        "blocks.5.attn",
        "3 heads, q/k 32, v 32",
        "384 hidden",
        "head_dist",
        "bicubic",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A name is described without weights; a name with a tag means weights that are not there.
    assert!(
        place
            .run("inspect --model deit_base_patch16_224 --json")
            .ended(0)
            .json()["file"]
            .is_null()
    );
    place
        .run("inspect --model deit_base_patch16_224.fb_in1k")
        .ended(1)
        .says(&["fb_in1k", "hint: fetch"]);
}

#[test]
fn data_is_counted_listed_drawn_and_checked() {
    let place = Place::new();
    let info = place
        .run("data info --data shapes:location --json")
        .ended(0)
        .json();
    let parts = info["parts"].as_array().unwrap();
    let splits: Vec<&str> = parts.iter().map(|part| part["split"].as_str().unwrap()).collect();
    assert_eq!(splits, ["train", "validation", "test"]);
    assert_eq!(info["classes"].as_array().unwrap().len(), 9);
    assert_eq!(info["form"], "drawn by the program");

    let drawn = place
        .run("data draw shapes:location -o drawn --count 45")
        .ended(0)
        .stdout;
    assert!(drawn.contains("45 pictures of 9 classes in `drawn`"), "{drawn}");
    let png = fs::read(place.path("drawn/000_top_left/00000.png"));
    assert!(
        png.is_ok_and(|png| png.starts_with(b"\x89PNG")),
        "{:?}",
        place.listing()
    );

    let info = place.run("data info --data drawn").ended(0).stdout;
    assert!(
        info.contains("form           a list")
            && info.contains("45 images")
            && info.contains("32 x 32 pixels")
            && info.contains("top left"),
        "{info}"
    );
    let list = place.run("data list --data drawn").ended(0).stdout;
    assert_eq!(list, fs::read_to_string(place.path("drawn/labels.csv")).unwrap());

    let check = place.run("data check --data drawn").ended(0).stdout;
    assert!(check.starts_with("45 images: all can be read"), "{check}");
    place.write("drawn/000_top_left/00000.png", b"\x89PNG");
    let check = place.run("data check --data drawn --json").ended(3).json();
    assert_eq!(check["images"], 45);
    assert_eq!(check["unreadable"].as_array().unwrap().len(), 1);
    assert!(
        check["unreadable"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("00000.png"),
        "{check}"
    );

    place
        .run("data draw shapes -o drawn")
        .ended(1)
        .says(&["`drawn` exists already", "--force"]);
    place.run("data draw shapes -o drawn --count 8 --force").ended(0);
    place.run("data check --data drawn").ended(0);
}

/// A class folder set without a validation part holds some of train back, and says so.
#[test]
fn data_info_says_what_is_held_back() {
    let place = Place::new();
    place.run("data draw shapes:count -o drawn --count 24").ended(0);
    fs::remove_file(place.path("drawn/labels.csv")).unwrap();
    fs::create_dir(place.path("set")).unwrap();
    fs::rename(place.path("drawn"), place.path("set/train")).unwrap();
    place.run("data draw shapes:count -o drawn --count 6").ended(0);
    fs::remove_file(place.path("drawn/labels.csv")).unwrap();
    fs::rename(place.path("drawn"), place.path("set/test")).unwrap();
    let info = place.run("data info --data set").ended(0).stdout;
    for part in [
        "train",
        "validation",
        "held back from train",
        "test",
        "6 images",
        "000_1",
    ] {
        assert!(info.contains(part), "{part}: {info}");
    }
    // A whole without parts is shown as one.
    let whole = place.run("data info --data set/test --json").ended(0).json();
    assert_eq!(whole["parts"][0]["split"], "all");
    assert_eq!(whole["parts"][0]["images"], 6);
    assert_eq!(whole["form"], "class folders");
}

/// `data check` and `data list` look at every split, and name what is no part of the data set.
#[test]
fn all_splits_are_checked_and_listed() {
    let place = Place::new();
    place.run("data draw shapes:count -o drawn --count 5").ended(0);
    for name in ["Train/1", "Train/2", "test/1", "extra", "Train/1/@eaDir"] {
        fs::create_dir_all(place.path("set").join(name)).unwrap();
        fs::copy(
            place.path("drawn/000_1/00000.png"),
            place.path("set").join(name).join("a.png"),
        )
        .unwrap();
    }
    place.write("set/Train/2/broken.jpg", b"broken");
    place.write("set/test/1/cut.png", b"\x89PNG");
    let ran = place.run("data check --data set").ended(3);
    for part in [
        "Train/2/broken.jpg",
        "test/1/cut.png",
        "3 in train, 2 in test",
        "extra",
        "Train/1/@eaDir",
        "no pictures of `2`",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let check = place.run("data check --data set --json").ended(3).json();
    assert_eq!(
        (&check["images"], &check["unreadable"][0]["split"]),
        (&5.into(), &"train".into())
    );
    assert_eq!(check["ignored"][0]["reason"], "outside");
    let test = place
        .run("data check --data set --split test --json")
        .ended(3)
        .json();
    assert_eq!(
        (&test["images"], &test["unreadable"][0]["split"]),
        (&2.into(), &"test".into())
    );

    let list = place.run("data list --data set").ended(0);
    list.says(&["extra"]);
    assert_eq!(
        list.stdout,
        "filename,class_index,name,split\nTrain/1/a.png,0,1,train\nTrain/2/a.png,1,2,train\nTrain/2/broken.jpg,1,2,train\n\
         test/1/a.png,0,1,test\ntest/1/cut.png,0,1,test\n"
    );
    // The list is a data set with the same splits.
    place.write("set/all.csv", &list.stdout);
    let again = place.run("data list --data set/all.csv").ended(0).stdout;
    assert_eq!(again, list.stdout);
    let info = place.run("data info --data set/all.csv --json").ended(0).json();
    assert_eq!(
        (&info["parts"][0]["split"], &info["parts"][1]["images"]),
        (&"train".into(), &2.into())
    );
}

#[test]
fn too_many_threads_are_refused_at_once() {
    let place = Place::new();
    let most = vitesse::data::most_threads();
    assert!(most >= 64.max(4 * vitesse::data::cores()));
    for args in [
        "doctor --threads MORE",
        "eval --model x --data y --threads MORE",
        "eval --model x --data y --workers 100000",
        "bench --model x --threads 2,MORE",
        "predict --model x --threads 0 a.png",
        "quickstart -o q --threads MORE",
        "train --preset small --model deit_nano_patch8_32 --data shapes --threads MORE -o run",
    ] {
        place
            .run(&args.replace("MORE", &(most + 1).to_string()))
            .ended(2)
            .says(&[&format!("expected a whole number from 1 to {most};")]);
    }
    let train =
        "train --preset small --model deit_nano_patch8_32 --data shapes --limit 32 --batch-size 16 -o run";
    place
        .run(&format!("{train} --workers {}", most + 1))
        .ended(1)
        .says(&["workers", &format!("at most {most} on this machine")]);
    assert!(!place.path("run").exists());
}

#[test]
fn doctor_measures_this_machine() {
    let found = Place::new().run("doctor --threads 2 --json").ended(0).json();
    assert!(found["machine"]["cores"].as_u64().unwrap() >= 1);
    let peaks = found["peaks"].as_array().unwrap();
    assert_eq!(peaks.len(), 2);
    for peak in peaks {
        assert!(peak["memory_bytes_per_s"].as_f64().unwrap() > 1e8, "{peak}");
        for key in ["f32_flops", "bf16_flops", "int8_ops"] {
            assert!(peak[key].as_f64().unwrap() > 1e8, "{peak}");
        }
    }
    assert!(!found["advice"].as_str().unwrap().is_empty());
    assert!(found["isa"].is_string());
}

#[test]
fn a_lower_instruction_set_can_be_forced_and_an_unknown_one_is_refused() {
    let place = Place::new();
    let forced = place.run_with("doctor --threads 1 --json", &[("VITESSE_ISA", "scalar")]);
    let found = forced.ended(0).json();
    assert_eq!(found["isa"], "scalar");
    let refused = place.run_with("doctor --threads 1", &[("VITESSE_ISA", "mmx")]);
    refused
        .ended(2)
        .says(&["unknown instruction set `mmx`", "avx512-bf16"]);
}

#[test]
fn flags_of_other_programs_get_a_tip() {
    let place = Place::new();
    for (command, tip) in [
        ("eval m --data shapes --pretrained", "`--model`"),
        ("eval m --data shapes --bs 64", "`--batch-size`"),
        ("eval m --data shapes --device cuda", "`--threads`"),
        ("eval --initial-checkpoint m.pth --data shapes", "`--model`"),
        ("eval m --data shapes --input-size 3 224 224", "`--img-size`"),
        ("predict --model m --device=cpu cat.jpg", "`--threads`"),
        ("bench m --bs 64", "`--batch-size`"),
        ("bench m --input-size 224", "`--img-size`"),
        ("train --model m --data shapes --pretrained -o run", "`--model`"),
        ("train --model m --data shapes --opt sgd -o run", "AdamW"),
        (
            "train --model m --data shapes --sched step -o run",
            "`--warmup-epochs`",
        ),
        ("train --model m --data shapes --bs 64 -o run", "`--batch-size`"),
        (
            "train --model m --data shapes --wd 0.1 -o run",
            "`--weight-decay`",
        ),
        ("train --initial-checkpoint m --data shapes -o run", "`--model`"),
        (
            "train --model m --data shapes --input-size 3 64 64 -o run",
            "`--img-size`",
        ),
        (
            "distill --model m --data shapes --device cuda -o run",
            "`--threads`",
        ),
        ("adapt --model m --data shapes --rank 8 -o run", "`--set rank=8`"),
        (
            "adapt --model m --data shapes --lora_alpha 16 -o run",
            "`--set rank=8`",
        ),
        (
            "adapt --model m --data shapes --wd 0.1 -o run",
            "`--weight-decay`",
        ),
        // Words too many, verbs of other programs, and slips that clap finds itself.
        ("eval m photos", "`--data`"),
        ("train m photos -o run", "`--data`"),
        ("analyze tokens m photos", "`--data`"),
        ("finetune --model m", "`train`"),
        ("quantize m", "`--precision int8`"),
        ("export m", "timm"),
        ("convert m", "timm"),
        ("test m", "`eval`"),
        ("lora --model m", "`adapt`"),
        ("train-adapter --model m", "`adapt`"),
        ("benchmark m", "`bench`"),
        ("evla m", "'eval'"),
        ("eval m --data shapes --batchsize 4", "'--batch-size'"),
    ] {
        let ran = place.run(&format!("{command} --json")).ended(2);
        ran.says(&["error: ", tip]);
        let hint = ran.json()["error"]["hint"].clone();
        assert!(
            hint.as_str().is_some_and(|hint| hint.contains(tip)),
            "{command}: {hint}"
        );
    }
}

#[test]
fn a_model_stands_before_the_flags_too() {
    let place = Place::new();
    place.model("m", "deit_nano_patch8_32", 8);
    for command in [
        "inspect m",
        "eval m --data shapes --limit 16",
        "bench m --seconds 0.01 --min-runs 1",
        "analyze tokens m --data shapes --limit 16",
    ] {
        let ran = place.run(command);
        // The analysis asks for a distilled model: that one was found is enough.
        assert!(ran.code == 0 || ran.stderr.contains("distill"), "{}", ran.stderr);
        place
            .run(&command.replacen(" m", " m --model m", 1))
            .ended(2)
            .says(&["--model"]);
    }
}

/// Only `compare` takes `MODEL@int8`; the others say how they are told.
#[test]
fn a_precision_after_a_model_gets_a_tip() {
    let place = Place::new();
    place.model("m", "deit_nano_patch8_32", 8);
    for command in [
        "inspect m@int8",
        "eval m@int8 --data shapes",
        "bench m@int8",
        "predict --model m@int8 a.png",
        "eval deit_nano_patch8_32@int8 --data shapes",
    ] {
        let ran = place.run(command).ended(2);
        ran.says(&[
            "only `compare` takes a precision",
            "hint: give the model as `",
            "`--precision int8`",
        ]);
    }
}

#[test]
fn the_folder_of_a_run_stands_for_its_checkpoint() {
    let place = Place::new();
    place.model("run/final", "deit_nano_patch8_32", 8);
    place.write("run/recipe.toml", "");
    place
        .run("eval run --data shapes --limit 16")
        .ended(0)
        .says(&["note: `run` is the folder of a run: took the checkpoint of its last epoch, `final`"]);
    place.model("run/best", "deit_nano_patch8_32", 8);
    fs::copy("tests/cli_support/ok.png", place.path("a.png")).unwrap();
    let short = "--data shapes --limit 16 -b 8 --epochs 1 --dry-run -o new";
    for command in [
        "eval run --data shapes --limit 16",
        "predict --model run a.png",
        "bench run --seconds 0.01 --min-runs 1",
        "compare run run@int8 --seconds 0.01 --rounds 1",
        "merge --model run --adapter nothing -o new",
        &format!("train --model run {short}"),
        &format!("adapt --model run {short}"),
        &format!(
            "adapt --model run {}",
            short.replace("--dry-run -o new", "-o adapted")
        ),
        &format!("distill --model deit_nano_patch8_32 --teacher run {short}"),
    ] {
        let said = place.run(command).stderr;
        let note = "`run` is the folder of a run: took the checkpoint of its best epoch, `best`";
        assert_eq!(said.matches(note).count(), 1, "{command}: {said}");
    }
    let told = place.run("inspect run").ended(0).stdout;
    assert!(told.contains("took the checkpoint of its best epoch"), "{told}");
    // A run that has not come so far.
    place.write("begun/recipe.toml", "");
    place
        .run("eval begun --data shapes")
        .ended(1)
        .says(&["neither `best` nor `final`", "--resume"]);
}

#[test]
fn a_repository_is_fetched_first() {
    let place = Place::new();
    let fetch = "`hf download timm/deit_tiny --local-dir deit_tiny`";
    for (command, says) in [
        ("eval hf_hub:timm/deit_tiny --data shapes", fetch),
        ("bench hf-hub:timm/deit_tiny", fetch),
        ("inspect timm/deit_tiny", fetch),
        ("inspect hf-hub:deit_tiny", "Hugging Face hub"),
        ("merge --model timm/deit_tiny --adapter a -o b", fetch),
        ("train --model timm/deit_tiny --data shapes -o run", fetch),
        (
            "distill --model deit_nano_patch8_32 --teacher timm/deit_tiny --data shapes -o run",
            fetch,
        ),
    ] {
        place.run(command).ended(1).says(&[says]);
    }
    assert!(place.listing().is_empty());
    // What looks like a path is one.
    place.run("inspect runs/best.pth").ended(1).says(&["cannot read"]);
}
