//! A method that only this test knows, with everything that objectives and hooks can do: a loss on attention maps of student
//! and teacher whose weight is a multiplier that ascends, a penalty on a parameter, a mask that changes every third step, a
//! rate by tensor and step, a backbone that waits for two epochs. Broken off or killed at any step and resumed, with one
//! thread or two, it ends with the same bytes.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use tiny::{noise, pictures, vit};
use vitesse_model::{Site, Tensors};
use vitesse_train::adamw::Slot;
use vitesse_train::events::Events;
use vitesse_train::hooks::Hooks;
use vitesse_train::learner::Taken;
use vitesse_train::loss::Distillation;
use vitesse_train::objective::{At, Objective, Seen, Term, Wants};
use vitesse_train::run::{Existing, RunFolder, StepRecord};
use vitesse_train::state::State;
use vitesse_train::teacher::Teacher;
use vitesse_train::trainer::{Start, train};
use vitesse_train::weights::Gradients;
use vitesse_train::{Error, Recipe, Result};

/// Where the student's maps are, and the teacher's.
const STUDENT: (Site, Option<usize>) = (Site::AttnProbs, Some(0));
const TEACHER: (Site, Option<usize>) = (Site::AttnProbs, Some(1));
/// What the mask lies on.
const MASKED: &str = "blocks.1.mlp.fc1.weight";
/// Epochs in which only the head learns.
const WAITS: usize = 2;
const STEPS_PER_EPOCH: usize = 4;
const EPOCHS: usize = 4;

fn number(method: &Tensors, name: &str) -> f64 {
    let values = method.get(name).map(|tensor| tensor.to_f32().into_owned());
    values.map_or(0.0, |values| f64::from(values[0]))
}

fn remember(method: &mut Tensors, name: &str, number: f64) -> Result<()> {
    Ok(method.insert_f32(name, &[1], vec![number as f32])?)
}

#[derive(Debug)]
struct Maps;

impl Objective for Maps {
    fn wants(&self) -> Wants {
        Wants {
            student: vec![STUDENT],
            teacher: Some(vec![TEACHER]),
            outputs: false,
        }
    }

    fn terms(&self, seen: &Seen<'_>) -> Result<Vec<Term>> {
        let teacher = seen.teacher.as_ref().ok_or(Error::TeacherMissing)?;
        let difference = seen.student.map(STUDENT.0, STUDENT.1)? - teacher.map(TEACHER.0, TEACHER.1)?;
        let size = seen.parameter::<2>("head.weight")?;
        Ok(vec![
            Term {
                name: "attention",
                value: difference.powi_scalar(2).mean(),
                weight: number(seen.method, "multiplier"),
            },
            Term {
                name: "size",
                value: size.abs().mean(),
                weight: 0.1 * seen.at.progress(),
            },
        ])
    }
}

#[derive(Debug)]
struct Rules;

impl Hooks for Rules {
    fn begin_epoch(&self, _: At, _: &[Slot], method: &mut Tensors) -> Result<()> {
        let epochs = number(method, "epochs");
        remember(method, "epochs", epochs + 1.0)
    }

    /// The half of the smallest weights, every third step.
    fn begin_step(&self, at: At, slots: &[Slot], method: &mut Tensors) -> Result<()> {
        let slot = slots.iter().find(|slot| slot.name == MASKED).unwrap();
        if at.step.is_multiple_of(3) {
            let mut sizes: Vec<f32> = slot.weight.iter().map(|w| w.abs()).collect();
            let middle = sizes.len() / 2;
            let median = *sizes.select_nth_unstable_by(middle, f32::total_cmp).1;
            let mask = slot.weight.iter().map(|w| f32::from(w.abs() >= median));
            method.insert_f32("mask", &slot.shape, mask.collect())?;
        }
        Ok(())
    }

    fn gradients(&self, at: At, slots: &[Slot], gradients: &mut Gradients, _: &mut Tensors) -> Result<()> {
        for (slot, gradient) in slots.iter().zip(gradients) {
            if at.epoch < WAITS && !slot.name.starts_with("head.") {
                *gradient = None;
            }
        }
        Ok(())
    }

    fn rate(&self, at: At, slot: &Slot, rate: f64, _: &Tensors) -> f64 {
        match slot.name.as_str() {
            "head.bias" if at.step < 6 => 0.0,
            _ => rate,
        }
    }

    fn updated(&self, _: At, slots: &mut [Slot], taken: &Taken, method: &mut Tensors) -> Result<()> {
        let slot = slots.iter_mut().find(|slot| slot.name == MASKED).unwrap();
        let mask = method.get("mask")?.to_f32().into_owned();
        slot.weight.iter_mut().zip(mask).for_each(|(w, kept)| *w *= kept);
        let multiplier = number(method, "multiplier") + 10.0 * (taken.term("attention") - 1e-4);
        remember(method, "multiplier", multiplier.max(0.0))
    }
}

fn recipe() -> Recipe {
    let text = format!(
        "[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"memory\"\n\
         [train]\nepochs = {EPOCHS}\nbatch_size = 8\naccumulate = 2\nworkers = 1\nema_decay = 0.9\nsave_every = 3\n\
         [optim]\nlr = 1e-2\nclip_grad = 1.0\n[schedule]\nwarmup_epochs = 0\n[method]\nname = \"test\"\n"
    );
    Recipe::parse(&text, "test.toml", &[]).unwrap()
}

/// Does something after each step.
struct After<'a>(&'a mut dyn FnMut(usize));

impl Events for After<'_> {
    fn step(&mut self, record: &StepRecord) {
        (self.0)(record.step + 1);
    }
}

/// Runs the method in the folder `path` with so many threads, or goes on with it; `after` is told the steps that are taken,
/// and returns whether to stop.
fn go(path: &Path, threads: usize, after: &mut (dyn FnMut(usize) -> bool + Send)) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        let (recipe, device, stop) = (recipe(), Device::flex(), AtomicBool::new(false));
        let (student, mut teacher) = (vit(1), vit(2));
        // Fresh weights look everywhere alike: these look somewhere.
        let looks = "blocks.1.attn.qkv.weight";
        let (shape, mut values) = {
            let tensor = teacher.tensors.get(looks)?;
            (tensor.shape().to_vec(), tensor.to_f32().into_owned())
        };
        values.iter_mut().for_each(|value| *value *= 20.0);
        teacher.tensors.insert_f32(looks, &shape, values)?;
        let saved = RunFolder::state_in(path);
        let state = if saved.is_file() {
            State::load(&saved, &recipe.optim)?
        } else {
            State::new(&student, &recipe.optim, true, &|_| true)?
        };
        let prepared = student.preprocess()?;
        let objectives: Vec<Box<dyn Objective>> = vec![Box::new(Distillation::default()), Box::new(Maps)];
        let start = Start {
            state,
            train: pictures(STEPS_PER_EPOCH * 8 + 2, noise),
            validation: Some(pictures(9, noise)),
            objective: Box::new(objectives),
            hooks: vec![Box::new(Rules)],
            teacher: Some(Teacher::new(&teacher, &student.spec, &prepared, &device)?),
            device,
        };
        let existing = if path.join("recipe.toml").is_file() {
            Existing::Resume
        } else {
            Existing::Refuse
        };
        let mut each = |step| stop.store(after(step), Ordering::Relaxed);
        train(&recipe, start, path, existing, &stop, &mut After(&mut each)).map(|_| ())
    })
}

/// Asserts that two runs left the same bytes, but for times.
#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let read = |run: &Path, file: &str| fs::read(run.join(file)).unwrap();
    for file in [
        "last/state.safetensors",
        "best/model.safetensors",
        "final/model.safetensors",
        "final/config.json",
    ] {
        assert!(
            read(one, file) == read(other, file),
            "{file} of {}",
            other.display()
        );
    }
    assert_eq!(records(one), records(other));
}

/// The log without what depends on the clock.
fn records(run: &Path) -> Vec<StepRecord> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let record = |line| StepRecord {
        seconds: 0.0,
        wait: 0.0,
        ..serde_json::from_str(line).unwrap()
    };
    text.lines().map(record).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

fn whole(place: &Path) -> PathBuf {
    let path = place.join("whole");
    go(&path, 1, &mut |_| false).unwrap();
    path
}

#[test]
fn objectives_and_hooks_do_what_they_say() {
    let place = tempfile::tempdir().unwrap();
    let begun = State::new(&vit(1), &recipe().optim, true, &|_| true).unwrap();
    let waits = place.path().join("waits");
    let state = |path: &Path| State::load(&RunFolder::state_in(path), &recipe().optim).unwrap();
    let moved = |path: &Path, name: &str| {
        let weight = |state: &State| {
            let slot = state.slots.iter().find(|slot| slot.name == name).unwrap();
            slot.weight.clone()
        };
        weight(&begun) != weight(&state(path))
    };
    // In the second epoch the backbone waits still, and the bias of the head has begun to move.
    go(&waits, 1, &mut |step| step == 5).unwrap_err();
    assert!(!moved(&waits, "blocks.0.attn.qkv.weight") && !moved(&waits, "head.bias"));
    assert!(moved(&waits, "head.weight") && moved(&waits, MASKED));
    go(&waits, 1, &mut |step| step == WAITS * STEPS_PER_EPOCH).unwrap_err();
    assert!(!moved(&waits, "blocks.0.attn.qkv.weight") && moved(&waits, "head.bias"));

    let whole = whole(place.path());
    let found = state(&whole);
    assert!(moved(&whole, "blocks.0.attn.qkv.weight"));
    let masked = found.slots.iter().find(|slot| slot.name == MASKED).unwrap();
    let zeros = masked.weight.iter().filter(|w| **w == 0.0).count();
    assert!(
        zeros >= masked.weight.len() / 2,
        "{zeros} of {}",
        masked.weight.len()
    );
    assert_eq!(number(&found.method, "epochs"), EPOCHS as f64);

    // The loss is what its terms say, with the multiplier as it has ascended.
    let records = records(&whole);
    assert_eq!(records.len(), EPOCHS * STEPS_PER_EPOCH);
    let mut multiplier = 0.0;
    for record in &records {
        let progress = record.step as f64 / records.len() as f64;
        let sum = record.terms["base"]
            + multiplier * record.terms["attention"]
            + 0.1 * progress * record.terms["size"];
        assert!((record.loss - sum).abs() < 1e-4, "{record:?} {multiplier}");
        multiplier = (multiplier + 10.0 * (record.terms["attention"] - 1e-4)).max(0.0);
    }
    let remembered = number(&found.method, "multiplier");
    assert!(
        multiplier > 0.1 && (remembered - multiplier).abs() < 1e-4,
        "{remembered} {multiplier}"
    );
    let config = fs::read_to_string(whole.join("final/config.json")).unwrap();
    assert!(config.contains("\"method\": \"test\""), "{config}");
}

#[test]
fn broken_off_at_any_step_it_ends_with_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let whole = whole(place.path());
    for at in [1, 3, 4, 7, 8, 9, 14] {
        for threads in [1, 2] {
            let path = place.path().join(format!("stopped-{at}-{threads}"));
            let stopped = go(&path, threads, &mut |step| step == at);
            assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
            let saved = State::load(&RunFolder::state_in(&path), &recipe().optim).unwrap();
            assert_eq!(saved.progress.step, at);
            go(&path, 3 - threads, &mut |_| false).unwrap();
            assert_same(&whole, &path);
        }
    }
}

/// What is on the disk at some moment is what a killed program leaves.
#[test]
fn killed_at_any_step_it_ends_with_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let moments = [1, 2, 3, 5, 8, 9, 10, 13];
    go(&path("whole"), 2, &mut |step| {
        if moments.contains(&step) {
            copy(&path("whole"), &path(&format!("killed-{step}")));
        }
        false
    })
    .unwrap();
    for step in moments {
        let killed = path(&format!("killed-{step}"));
        assert_eq!(records(&killed).len(), step);
        go(&killed, 1 + step % 2, &mut |_| false).unwrap();
        assert_same(&path("whole"), &killed);
    }
}
