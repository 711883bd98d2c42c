//! A run of the real program that is killed, at any moment, and resumed ends with the same bytes as one that was not, for
//! any number of threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(unix)]

mod cli_support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use cli_support::Place;
use serde_json::Value;
use vitesse::rng::{Key, Rng};

/// A recipe with everything that draws random numbers or keeps a state.
fn recipe(place: &Place, model: &str, drop_path: f64) {
    let text = format!(
        r#"
        preset = "small"
        [model]
        name = "{model}"
        img_size = 16
        drop_path = {drop_path}
        [data]
        path = "shapes"
        limit = 240
        validation_limit = 60
        [train]
        epochs = 5
        batch_size = 16
        ema_decay = 0.9
        workers = 2
        save_every = 4
        keep = 2
        [schedule]
        warmup_epochs = 1
        [augment]
        reprob = 0.5
        mixup = 0.8
        cutmix = 1.0
        aug_repeats = 2
        "#
    );
    place.write("recipe.toml", text);
}

/// Starts a new run in the folder `name`, or resumes the one there.
fn start(place: &Place, name: &str, threads: usize) -> Child {
    let begin = if place.path(name).join("recipe.toml").exists() {
        "--resume"
    } else {
        "--recipe=recipe.toml"
    };
    spawn(place, &format!("train {begin} -o {name} --threads {threads}"))
}

fn spawn(place: &Place, args: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vitesse"))
        .args(args.split_whitespace())
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[track_caller]
fn finish(child: Child) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
}

/// Waits until the run has logged `lines` steps. False if it ended before.
fn reached(child: &mut Child, run: &Path, lines: usize) -> bool {
    while logged(run) < lines {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

/// The steps in the log of a run.
fn logged(run: &Path) -> usize {
    fs::read(run.join("metrics.jsonl")).map_or(0, |log| log.iter().filter(|&&byte| byte == b'\n').count())
}

/// Asks `child`, whose run is in `name`, to end after a few steps; what it said.
fn interrupt(mut child: Child, place: &Place, name: &str, signal: &str) -> String {
    assert!(reached(&mut child, &place.path(name), 6));
    let kill = ["kill", signal, &child.id().to_string()].map(str::to_owned);
    assert!(
        Command::new(&kill[0])
            .args(&kill[1..])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    stderr
}

/// Kills the run in `name` three times, at moments that `rng` chooses, then lets it finish. The run is long enough that at
/// least one of the three is in its middle, however slow the machine.
fn kill_and_resume(place: &Place, name: &str, threads: usize, rng: &mut Rng) {
    let run = place.path(name);
    let mut killed = Vec::new();
    for _ in 0..3 {
        let mut child = start(place, name, threads);
        let lines = logged(&run) + 3 + rng.below(12);
        if !reached(&mut child, &run, lines) {
            break;
        }
        // Anywhere between two steps, two states or two epochs.
        sleep(Duration::from_millis(rng.below(30) as u64));
        child.kill().unwrap();
        if child.wait().unwrap().signal() == Some(9) {
            killed.push(logged(&run));
        }
    }
    println!("`{name}`, with {threads} threads, was killed after these many steps: {killed:?}");
    assert!(!killed.is_empty(), "no kill came in time");
    finish(start(place, name, threads));
}

/// Asserts that two runs left the same bytes, but for times.
#[track_caller]
fn assert_same(place: &Place, one: &str, other: &str) {
    let (one, other) = (place.path(one), place.path(other));
    let mut files: Vec<PathBuf> = [
        "last/state.safetensors",
        "final/model.safetensors",
        "final/config.json",
        "best/model.safetensors",
        "best/config.json",
    ]
    .map(PathBuf::from)
    .to_vec();
    let kept = |run: &Path| -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(run.join("epochs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(kept(&one), kept(&other));
    files.extend(
        kept(&one)
            .iter()
            .map(|name| Path::new("epochs").join(name).join("model.safetensors")),
    );
    for file in files {
        assert!(
            fs::read(one.join(&file)).unwrap() == fs::read(other.join(&file)).unwrap(),
            "{} differs between {} and {}",
            file.display(),
            one.display(),
            other.display()
        );
    }
    assert_eq!(steps(&one), steps(&other));
    assert_eq!(epochs(&one), epochs(&other));
}

/// The log of a run's steps, without what depends on the clock.
fn steps(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        assert!(fields.remove("seconds").is_some() && fields.remove("wait").is_some());
        line
    };
    text.lines().map(line).collect()
}

/// The rows of a run's summary, without their last field, the seconds.
fn epochs(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("summary.csv")).unwrap();
    text.lines()
        .map(|line| line.rsplit_once(',').unwrap().0.to_owned())
        .collect()
}

/// Moments that differ from run to run.
fn moments() -> Rng {
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    println!("the moments are drawn from {seed}");
    Key::new(u64::from(seed)).with("kill").rng()
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bytes() {
    let place = Place::new();
    recipe(&place, "deit_nano_patch8_32", 0.2);
    finish(start(&place, "whole", 1));
    assert_eq!(steps(&place.path("whole")).len(), 75);

    let mut rng = moments();
    kill_and_resume(&place, "killed-1", 1, &mut rng);
    assert_same(&place, "whole", "killed-1");
    kill_and_resume(&place, "killed-2", 2, &mut rng);
    assert_same(&place, "whole", "killed-2");
}

/// A convolutional network, whose running statistics are a state that no gradient trains.
#[test]
fn batch_norm_resumes_as_well() {
    let place = Place::new();
    recipe(&place, "regnety_nano_32", 0.0);
    finish(start(&place, "whole", 2));
    kill_and_resume(&place, "killed", 1, &mut moments());
    assert_same(&place, "whole", "killed");
}

#[test]
fn ctrl_c_saves_the_state_and_says_how_to_go_on() {
    let place = Place::new();
    recipe(&place, "deit_nano_patch8_32", 0.2);
    finish(start(&place, "whole", 1));
    for signal in ["-INT", "-TERM"] {
        let name = format!("stopped{signal}");
        let stderr = interrupt(start(&place, &name, 1), &place, &name, signal);
        for part in [
            format!("interrupted; the state is saved in `{name}`"),
            format!("continue with `vitesse train --resume -o {name}`"),
        ] {
            assert!(stderr.contains(&part), "`{part}` is not in: {stderr}");
        }
        finish(start(&place, &name, 2));
        assert_same(&place, "whole", &name);
    }
}

/// What is printed after Ctrl-C goes on by the same method with the same settings.
#[test]
fn an_adaptation_goes_on_as_printed() {
    let place = Place::new();
    place.model("base", "deit_nano_patch8_32", 7);
    let options =
        "--model base --data shapes --limit 160 --method lora --set rank=2 --batch-size 16 --epochs 6";
    let run = |args: &str, name: &str| spawn(&place, &format!("{args} -o {name} --threads 1"));
    let adapt = format!("adapt {options}");
    finish(run(&adapt, "whole"));
    let read = |name: &str| fs::read(place.path(name).join("adapter/adapter_model.safetensors")).unwrap();
    let is_whole = |name: &str| {
        assert!(read("whole") == read(name), "{name}");
        assert_eq!(steps(&place.path("whole")), steps(&place.path(name)));
    };
    // Whichever verb follows the recipe.
    for (args, name) in [
        (&*adapt, "adapted"),
        ("train --recipe whole/recipe.toml", "trained"),
    ] {
        let stderr = interrupt(run(args, name), &place, name, "-INT");
        let command = stderr.split("continue with `vitesse ").nth(1).unwrap();
        finish(spawn(&place, command.split('`').next().unwrap()));
        is_whole(name);
    }

    let mut child = run(&adapt, "killed");
    assert!(reached(&mut child, &place.path("killed"), 25));
    child.kill().unwrap();
    child.wait().unwrap();
    finish(run("train --resume", "killed"));
    is_whole("killed");
}
