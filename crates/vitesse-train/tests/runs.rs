//! Whole runs on a tiny model: they learn, and they can be killed and continued.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use tiny::{CLASSES, picture, pictures, vit};
use vitesse_data::DataSet;
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::evaluate::EvalProgress;
use vitesse_train::events::{Events, Outcome};
use vitesse_train::loss::Distillation;
use vitesse_train::run::{Existing, RunFolder, StepRecord};
use vitesse_train::state::State;
use vitesse_train::trainer::{Start, train};
use vitesse_train::{Error, Recipe};

/// Noisy pictures, each of one of three colours.
fn data(n: usize) -> DataSet {
    pictures(n, |index| {
        picture(index, |channel, rng| {
            let colour = if channel == index % CLASSES { 160 } else { 90 };
            colour + rng.below(60)
        })
    })
}

fn recipe(more: &str) -> Recipe {
    let text = format!(
        "[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"memory\"\n[schedule]\nwarmup_epochs = 1\n{more}"
    );
    Recipe::parse(&text, "test.toml", &[]).unwrap()
}

const TRAIN: &str =
    "[train]\nepochs = 3\nbatch_size = 8\nworkers = 1\nema_decay = 0.9\naccumulate = 2\nkeep = 2\n";

fn state(recipe: &Recipe) -> State {
    state_of(recipe, |_| true)
}

fn state_of(recipe: &Recipe, trained: impl Fn(&str) -> bool) -> State {
    let checkpoint = vit(recipe.train.seed);
    State::new(
        &checkpoint,
        &recipe.optim,
        recipe.train.ema_decay.is_some(),
        &trained,
    )
    .unwrap()
}

/// Sets the flag once so many steps were taken.
struct StopAt<'a>(usize, &'a AtomicBool);

impl Events for StopAt<'_> {
    fn step(&mut self, record: &StepRecord) {
        if record.step + 1 >= self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

/// Trains from `state`, stopping after `steps` steps.
fn go(
    recipe: &Recipe,
    path: &Path,
    existing: Existing,
    state: State,
    steps: usize,
) -> Result<Outcome, Error> {
    let stop = AtomicBool::new(false);
    let start = Start {
        state,
        train: data(36),
        validation: Some(data(12)),
        objective: Box::new(Distillation::default()),
        hooks: Vec::new(),
        teacher: None,
        device: Device::flex(),
    };
    train(recipe, start, path, existing, &stop, &mut StopAt(steps, &stop))
}

fn bytes(path: &Path, file: &str) -> Vec<u8> {
    std::fs::read(path.join(file)).unwrap()
}

/// The log with what depends on the clock left out.
fn log(path: &Path) -> Vec<(usize, f64, f64)> {
    let text = String::from_utf8(bytes(path, "metrics.jsonl")).unwrap();
    let records = text
        .lines()
        .map(|line| serde_json::from_str::<StepRecord>(line).unwrap());
    records
        .map(|record| (record.step, record.loss, record.lr))
        .collect()
}

#[test]
fn a_run_that_is_killed_and_continued_ends_with_the_same_bits() {
    let place = tempfile::tempdir().unwrap();
    let recipe = recipe(&format!("{TRAIN}save_every = 3\n"));
    let whole = place.path().join("whole");
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    };
    let outcome = pool(1)
        .install(|| go(&recipe, &whole, Existing::Refuse, state(&recipe), usize::MAX))
        .unwrap();
    assert_eq!(
        (outcome.epochs, outcome.steps, outcome.stopped_early),
        (3, 12, false)
    );

    // Interrupted in the middle of an epoch, and once more at an epoch's end; two threads; a log that is ahead.
    let cut = place.path().join("cut");
    let stopped = pool(2).install(|| go(&recipe, &cut, Existing::Refuse, state(&recipe), 6));
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    let folder = RunFolder::open(&cut, &recipe, Existing::Resume).unwrap();
    let load = || State::load(&folder.state(), &recipe.optim).unwrap();
    assert_eq!((load().progress.step, load().progress.epochs), (6, 1));
    let ahead = bytes(&cut, "metrics.jsonl");
    std::fs::write(
        cut.join("metrics.jsonl"),
        [&ahead[..], b"{\"step\":6,\"epoch\":1,\"lr\":0"].concat(),
    )
    .unwrap();
    assert!(go(&recipe, &cut, Existing::Resume, load(), 8).is_err());
    let resumed = go(&recipe, &cut, Existing::Resume, load(), usize::MAX).unwrap();

    assert_eq!(resumed, outcome);
    for file in [
        "final/model.safetensors",
        "final/config.json",
        "best/model.safetensors",
        "best/config.json",
    ] {
        assert!(bytes(&whole, file) == bytes(&cut, file), "{file}");
    }
    assert_eq!(log(&whole), log(&cut));
    let summary = |path: &Path| -> Vec<_> {
        let rows = RunFolder::summary(path).unwrap();
        rows.into_iter()
            .map(|row| (row.epoch, row.train_loss, row.eval_loss, row.ema_top1, row.steps))
            .collect()
    };
    assert_eq!(summary(&whole), summary(&cut));
    assert_eq!(
        std::fs::read_dir(cut.join("epochs")).unwrap().count(),
        2,
        "the best two are kept"
    );
    // Nothing is left to do, and doing it changes nothing.
    let again = go(&recipe, &cut, Existing::Resume, load(), usize::MAX).unwrap();
    assert_eq!(again, outcome);
    assert!(bytes(&whole, "final/config.json") == bytes(&cut, "final/config.json"));
}

#[test]
fn a_run_learns_and_leaves_a_checkpoint_that_loads() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    let recipe =
        recipe("[train]\nepochs = 12\nbatch_size = 12\nworkers = 1\nearly_stop = 3\n[optim]\nlr = 5e-3\n");
    let outcome = go(&recipe, &path, Existing::Refuse, state(&recipe), usize::MAX).unwrap();
    let best = outcome.best.unwrap();
    assert!(best.top1 > 90.0, "{best:?}");
    assert!(outcome.stopped_early == (outcome.epochs < 12));
    let loaded = Checkpoint::load(path.join("best"), &LoadOptions::default()).unwrap();
    assert_eq!(loaded.config.label_names[&1], "1");
    let step = loaded.config.history.last().unwrap();
    assert_eq!(
        (step.step.as_str(), &step.metrics["eval_top1"]),
        ("train", &serde_json::json!(best.top1))
    );

    let refused = go(&recipe, &path, Existing::Refuse, state(&recipe), 1)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("`--resume`"), "{refused}");
    let mut other = recipe.clone();
    other.optim.lr = 1e-3;
    let refused = go(&other, &path, Existing::Resume, state(&recipe), 1)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("lr = 0.001"), "{refused}");
    let loaded = State::load(&RunFolder::state_in(&path), &recipe.optim).unwrap();
    let changed = Start {
        state: loaded,
        train: data(30),
        validation: None,
        objective: Box::new(Distillation::default()),
        hooks: Vec::new(),
        teacher: None,
        device: Device::flex(),
    };
    let stop = AtomicBool::new(false);
    let refused = train(&recipe, changed, &path, Existing::Resume, &stop, &mut ())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("the pictures that it learned from"), "{refused}");
    let foreign = place.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "").unwrap();
    assert!(matches!(
        go(&recipe, &foreign, Existing::Replace, state(&recipe), 1),
        Err(Error::NotARun { .. })
    ));
    let replaced = go(&recipe, &path, Existing::Replace, state(&recipe), 1);
    assert!(matches!(replaced, Err(Error::Interrupted)) && !path.join("best").exists());
}

#[test]
fn a_run_that_diverges_says_where() {
    let place = tempfile::tempdir().unwrap();
    let recipe = recipe("[train]\nepochs = 2\nbatch_size = 6\nworkers = 1\n");
    let mut state = state(&recipe);
    state.slots[0].weight[0] = f32::NAN;
    let error = go(&recipe, &place.path().join("run"), Existing::Refuse, state, 9)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the loss is NaN at step 0 (epoch 0, learning rate 1.000e-6)"),
        "{error}"
    );
    assert!(error.contains("picture-"), "{error}");
}

/// Counts what is computed once.
#[derive(Default)]
struct Caching(usize);

impl Events for Caching {
    fn caching(&mut self, at: EvalProgress) {
        self.0 += usize::from(at.done == at.total);
    }
}

/// The recipe of runs in which an image is the same each time, but for flips.
fn fixed(flip: f64) -> Recipe {
    let augment = "[augment]\ncrop = \"resized\"\nscale = [1.0, 1.0]\nratio = [1.0, 1.0]\naa = \"none\"\n\
                   color_jitter = 0.0\nreprob = 0.0\nmixup = 0.0\ncutmix = 0.0\naug_repeats = 1\n";
    let mut recipe = recipe(&format!("{TRAIN}{augment}hflip = {flip:?}\n"));
    recipe.model.eval_mode = true;
    recipe
}

#[test]
fn heads_alone_learn_from_features_as_from_images() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, flip: f64| {
        let recipe = fixed(flip);
        let start = Start {
            state: state_of(&recipe, |name| name.starts_with("head.")),
            train: data(36),
            validation: Some(data(12)),
            objective: Box::new(Distillation::default()),
            hooks: Vec::new(),
            teacher: None,
            device: Device::flex(),
        };
        let (path, stop, mut events) = (
            folder.path().join(name),
            AtomicBool::new(false),
            Caching::default(),
        );
        train(&recipe, start, &path, Existing::Refuse, &stop, &mut events).unwrap();
        (events.0, RunFolder::summary(&path).unwrap())
    };
    // So rare a flip never happens, but keeps the images from being always the same.
    let ((cached, fast), (none, slow)) = (run("features", 0.0), run("images", 1e-15));
    assert_eq!(
        (cached, none),
        (2, 0),
        "training and validation images, and nothing"
    );
    assert_eq!(fast.len(), 3);
    for (fast, slow) in fast.iter().zip(&slow) {
        assert!(
            (fast.train_loss - slow.train_loss).abs() < 1e-5,
            "{fast:?} {slow:?}"
        );
        assert!((fast.eval_loss.unwrap() - slow.eval_loss.unwrap()).abs() < 1e-5);
        assert_eq!((fast.eval_top1, fast.steps), (slow.eval_top1, slow.steps));
    }
}

#[test]
fn a_run_on_features_that_is_broken_off_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = fixed(0.0);
    let heads = |name: &str| name.starts_with("head.");
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    go(
        &recipe,
        &whole,
        Existing::Refuse,
        state_of(&recipe, heads),
        usize::MAX,
    )
    .unwrap();
    let broken = go(&recipe, &parts, Existing::Refuse, state_of(&recipe, heads), 6);
    assert!(matches!(broken, Err(Error::Interrupted)));
    let saved = State::load(&RunFolder::state_in(&parts), &recipe.optim).unwrap();
    assert_eq!((saved.progress.step, saved.progress.epochs), (6, 1));
    go(&recipe, &parts, Existing::Resume, saved, usize::MAX).unwrap();
    let weights = |path: &Path| std::fs::read(path.join("final/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&parts));
    let rows = |path: &Path| -> Vec<_> {
        let rows = RunFolder::summary(path).unwrap().into_iter();
        rows.map(|row| (row.train_loss, row.eval_loss, row.eval_top1, row.steps))
            .collect()
    };
    assert_eq!(rows(&whole), rows(&parts));
}
