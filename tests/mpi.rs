//! The real program, started several times by `mpirun`: it trains as one process with the whole batch does, evaluates as
//! one does, and a run of which a process is stopped or killed goes on. Needs the feature `mpi`; without an `mpirun` every
//! test says that it was skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(target_os = "linux")]

mod cli_support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use cli_support::Place;
use serde_json::Value;

/// 20 steps, each of 16 images of all processes together.
fn recipe(place: &Place, name: &str, batch_size: usize) {
    let text = format!(
        r#"
        preset = "small"
        [model]
        name = "deit_nano_patch8_32"
        drop_path = 0.2
        [data]
        path = "shapes"
        limit = 80
        validation_limit = 33
        [train]
        epochs = 4
        batch_size = {batch_size}
        ema_decay = 0.9
        save_every = 3
        [optim]
        lr_base_size = 16
        [schedule]
        warmup_epochs = 1
        [augment]
        mixup = 0.0
        cutmix = 0.0
        "#
    );
    place.write(name, text);
}

/// `vitesse` with these arguments, as two processes; `None` where there is no `mpirun`.
fn launch(place: &Place, args: &str) -> Option<Child> {
    let launched = Command::new("mpirun")
        .args(["-n", "2", "--oversubscribe", env!("CARGO_BIN_EXE_vitesse")])
        .args(args.split_whitespace())
        // A container's only user may be root; the tests may have fewer cores than processes.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        // Seconds until mpirun kills what it has asked to end.
        .env("OMPI_MCA_odls_base_sigkill_timeout", "3")
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match launched {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: no mpirun");
            None
        }
        launched => Some(launched.unwrap()),
    }
}

/// Waits for the end, which must have this status; standard output and standard error.
#[track_caller]
fn ended(child: Child, code: i32) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(status.code(), Some(code), "\nstdout: {stdout}\nstderr: {stderr}");
    (stdout, stderr)
}

/// The steps in the log of a run, without what depends on the clock.
fn steps(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).ok()?;
        let fields = line.as_object_mut()?;
        fields.remove("seconds");
        fields.remove("wait");
        Some(line)
    };
    text.lines().filter_map(line).collect()
}

/// The rows of a run's summary, without their last field, the seconds.
fn epochs(run: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(run.join("summary.csv")).unwrap();
    let row = |line: &str| line.split(',').take(10).map(str::to_owned).collect();
    text.lines().map(row).collect()
}

/// Waits until a run is in its middle.
fn reached(launcher: &mut Child, run: &Path) {
    while steps(run).len() < 7 {
        assert!(launcher.try_wait().unwrap().is_none(), "it ended before");
        sleep(Duration::from_millis(1));
    }
}

fn kill(signal: &str, pid: &str) {
    let killed = Command::new("kill").args([signal, pid]).status();
    assert!(killed.unwrap().success());
}

/// Sends a signal to one of the processes that Open MPI has started, once the run is in its middle.
fn signal(launcher: &mut Child, run: &Path, rank: usize, signal: &str) {
    reached(launcher, run);
    let mark = format!("OMPI_COMM_WORLD_RANK={rank}");
    let id = launcher.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let is_it = |pid: &&str| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        variables.any(|variable| variable == mark.as_bytes())
    };
    let pid = children.split_whitespace().find(is_it);
    kill(signal, pid.expect("a process of this rank"));
}

#[test]
fn two_processes_learn_what_one_learns() {
    let place = Place::new();
    recipe(&place, "two.toml", 8);
    recipe(&place, "one.toml", 16);
    let Some(child) = launch(&place, "train --recipe two.toml --test -o two --threads 1") else {
        return;
    };
    let (stdout, stderr) = ended(child, 0);
    // One process speaks.
    assert_eq!(stdout.matches("Next:").count(), 1, "{stdout}");
    assert_eq!(stderr.matches("epoch: 1 of 4").count(), 1, "{stderr}");
    assert!(
        stderr.contains("2 processes with 8 images of each batch"),
        "{stderr}"
    );
    place
        .run("train --recipe one.toml --test -o one --threads 1")
        .ended(0);

    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let (one, two) = (steps(&place.path("one")), steps(&place.path("two")));
    assert_eq!((one.len(), two.len()), (20, 20));
    let mut largest = 0f64;
    for (one, two) in one.iter().zip(&two) {
        assert_eq!((&one["samples"], &one["lr"]), (&two["samples"], &two["lr"]));
        largest = largest.max((number(one, "loss") - number(two, "loss")).abs());
    }
    println!("the losses of 20 steps differ by at most {largest:.1e}");
    assert!(largest < 1e-4);
    let (one, two) = (epochs(&place.path("one")), epochs(&place.path("two")));
    for (one, two) in one.iter().zip(&two) {
        // Top-1 of the weights and of their average.
        assert_eq!((&one[3], &one[8]), (&two[3], &two[8]));
    }
    let test = |run: &str| -> Value {
        serde_json::from_slice(&fs::read(place.path(run).join("test.json")).unwrap()).unwrap()
    };
    assert_eq!(
        (&test("one")["top1"], &test("one")["images"]),
        (&test("two")["top1"], &test("two")["images"])
    );

    // Another number of processes would not go on with the same run.
    place
        .run("train --resume -o two")
        .ended(1)
        .says(&["its steps were taken by 2 processes with 8 images each, and now there are 1"]);
}

#[test]
fn a_process_that_is_stopped_or_killed_ends_all_and_the_run_goes_on() {
    let place = Place::new();
    recipe(&place, "recipe.toml", 8);
    let train = |name: &str| {
        launch(
            &place,
            &format!("train --recipe recipe.toml -o {name} --threads 1"),
        )
    };
    let Some(whole) = train("whole") else { return };
    ended(whole, 0);
    let read = |run: &str, file: &str| fs::read(place.path(run).join(file)).unwrap();
    let goes_on = |run: &str| {
        let resumed = launch(&place, &format!("train --resume -o {run} --threads 1")).unwrap();
        let (_, stderr) = ended(resumed, 0);
        assert!(stderr.contains("resumed after step"), "{stderr}");
        for file in [
            "last/state.safetensors",
            "final/model.safetensors",
            "best/config.json",
        ] {
            assert!(read(run, file) == read("whole", file), "{file} of {run}");
        }
        assert_eq!(steps(&place.path(run)), steps(&place.path("whole")));
        assert_eq!(epochs(&place.path(run)), epochs(&place.path("whole")));
    };

    for rank in [0, 1] {
        let run = format!("stopped-{rank}");
        let mut child = train(&run).unwrap();
        signal(&mut child, &place.path(&run), rank, "-TERM");
        let (stdout, stderr) = ended(child, 130);
        for part in [
            format!("interrupted; the state is saved in `{run}`"),
            format!("continue with `mpirun -n 2 vitesse train --resume -o {run}`"),
        ] {
            assert_eq!(stderr.matches(&part).count(), 1, "`{part}` in: {stderr}");
        }
        assert_eq!(stdout, "");
        goes_on(&run);
    }

    // Ctrl-C: mpirun asks all of them.
    let mut child = train("interrupted").unwrap();
    reached(&mut child, &place.path("interrupted"));
    kill("-INT", &child.id().to_string());
    assert!(!child.wait_with_output().unwrap().status.success());
    goes_on("interrupted");

    for rank in [0, 1] {
        let run = format!("killed-{rank}");
        let mut child = train(&run).unwrap();
        signal(&mut child, &place.path(&run), rank, "-KILL");
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(!status.success());
        assert!(
            stderr.contains("another process has ended, or does not answer"),
            "{stderr}"
        );
        if rank != 0 {
            let hint = format!("continue with `mpirun -n 2 vitesse train --resume -o {run}`");
            assert!(stderr.contains(&hint), "{stderr}");
        }
        goes_on(&run);
    }
}

#[test]
fn a_method_is_followed_together() {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 7);
    place.write(
        "recipe.toml",
        "[model]\ncheckpoint = \"base\"\n[data]\npath = \"shapes\"\nlimit = 80\nvalidation_limit = 33\n\
         [train]\nepochs = 2\nbatch_size = 8\n[optim]\nlr = 0.01\n[schedule]\nwarmup_epochs = 0\n\
         [method]\nname = \"lora\"\nrank = 2\n",
    );
    let train = "train --recipe recipe.toml --threads 1";
    let Some(child) = launch(&place, &format!("{train} --json -o run")) else {
        return;
    };
    let (stdout, _) = ended(child, 0);
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(found["adapter"], "run/adapter");
    assert!(place.path("run/adapter/adapter_model.safetensors").is_file());
    place.run(&format!("{train} -b 16 -o alone")).ended(0);
    let losses = |run: &str| -> Vec<f64> {
        let steps = steps(&place.path(run));
        steps.iter().map(|step| step["loss"].as_f64().unwrap()).collect()
    };
    let (shared, alone) = (losses("run"), losses("alone"));
    assert_eq!((shared.len(), alone.len()), (10, 10));
    for (a, b) in shared.iter().zip(&alone) {
        assert!((a - b).abs() < 1e-4, "{shared:?} {alone:?}");
    }
    ended(launch(&place, "train --resume -o run --threads 1").unwrap(), 0);
}

#[test]
fn an_evaluation_is_shared() {
    let place = Place::new();
    place.model("model", "deit_nano_patch8_32", 8);
    let args = "eval --model model --data shapes --split test --limit 101 --json --threads 1";
    let Some(child) = launch(&place, args) else { return };
    let (stdout, _) = ended(child, 0);
    let shared: Value = serde_json::from_str(&stdout).unwrap();
    let alone = place.run(args).ended(0).json();
    for key in ["top1", "top5", "balanced_accuracy", "images"] {
        assert_eq!(shared[key], alone[key], "{key}");
    }
    assert!((shared["loss"].as_f64().unwrap() - alone["loss"].as_f64().unwrap()).abs() < 1e-9);
    assert_eq!(shared["images"], 101);
}

#[test]
fn what_one_cannot_do_none_does() {
    let place = Place::new();
    recipe(&place, "recipe.toml", 8);
    let Some(child) = launch(&place, "inspect --list") else {
        return;
    };
    let (_, stderr) = ended(child, 2);
    assert!(
        stderr.contains("this verb runs in one process, but 2 were launched"),
        "{stderr}"
    );
    // The first process refuses; the second learns of it and is not left waiting.
    place.write("taken/notes.txt", "mine");
    let (_, stderr) = ended(launch(&place, "train --recipe recipe.toml -o taken").unwrap(), 1);
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    assert!(stderr.contains("`taken` exists already"), "{stderr}");
}
