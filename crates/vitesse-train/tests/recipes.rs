//! From a recipe to checkpoints: a teacher, a student that learns from it, and a run that is shot dead.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::events::{Events, Outcome, Plan};
use vitesse_train::run::{Existing, RunFolder};
use vitesse_train::{Error, Recipe, run};

const DATA: &str = "[data]\npath = \"shapes:count\"\nlimit = 24\nvalidation_limit = 8\n";
const SMALL: &str =
    "preset = \"small\"\n[train]\nepochs = 2\nbatch_size = 8\nworkers = 1\n[schedule]\nwarmup_epochs = 1\n";

fn follow(text: &str, path: &Path, existing: Existing, events: &mut dyn Events) -> Result<Outcome, Error> {
    let recipe = Recipe::parse(text, "test.toml", &[])?;
    run(
        &recipe,
        path,
        existing,
        &Device::flex(),
        &AtomicBool::new(false),
        events,
    )
}

/// Notes what it is told.
#[derive(Default)]
struct Heard {
    plan: Option<Plan>,
    warnings: Vec<String>,
}

impl Events for Heard {
    fn begin(&mut self, plan: &Plan) {
        self.plan = Some(plan.clone());
    }

    fn warning(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }
}

#[test]
fn a_teacher_teaches_and_its_student_is_tuned() {
    let place = tempfile::tempdir().unwrap();
    let [teacher, student, tuned] = ["teacher", "student", "tuned"].map(|name| place.path().join(name));
    let model = "[model]\nname = \"vit_nano_patch4_32\"\nimg_size = 16\n";
    follow(
        &format!("{SMALL}{model}{DATA}"),
        &teacher,
        Existing::Refuse,
        &mut (),
    )
    .unwrap();

    let text = format!(
        "{SMALL}[model]\nname = \"deit_micro_distilled_patch4_32\"\nimg_size = 16\n{DATA}\
         [distill]\nteacher = {:?}\njoint = \"softmax-mean\"\n[augment]\nmixup = 0.8\n",
        teacher.join("best")
    );
    let mut heard = Heard::default();
    follow(&text, &student, Existing::Refuse, &mut heard).unwrap();
    let plan = heard.plan.unwrap();
    assert_eq!(
        (plan.steps_per_epoch, plan.train_samples, plan.validation_samples),
        (3, 24, 8)
    );
    assert!(plan.teacher.unwrap().contains("teacher"));
    // The teacher was trained with another normalisation and is only told so.
    assert!(heard.warnings.is_empty(), "{:?}", heard.warnings);
    let rows = RunFolder::summary(&student).unwrap();
    assert!(
        rows.len() == 2
            && rows
                .iter()
                .all(|row| row.distillation_top1.is_some() && row.eval_loss.is_some())
    );

    // Fine-tuning at a higher resolution, another number of classes, without the teacher.
    let text = format!(
        "{SMALL}[model]\ncheckpoint = {:?}\nimg_size = 32\neval_mode = true\n{}\
         [optim]\nlayer_decay = 0.75\n",
        student.join("final"),
        DATA.replace("count", "location")
    );
    let mut heard = Heard::default();
    follow(&text, &tuned, Existing::Refuse, &mut heard).unwrap();
    let found = heard.warnings.join("\n");
    assert!(
        found.contains("resized from 4x4 to 8x8") && found.contains("drawn anew"),
        "{found}"
    );
    assert!(found.contains("nothing trains that head"), "{found}");
    let last = Checkpoint::load(tuned.join("final"), &LoadOptions::default()).unwrap();
    let steps: Vec<&str> = last
        .config
        .history
        .iter()
        .map(|step| step.step.as_str())
        .collect();
    assert_eq!(steps, ["distill", "train"]);
    assert!(last.config.history[1].parent_sha256.is_some() && last.config.history[0].parent_sha256.is_none());

    // A teacher of other classes is refused before anything is written.
    let text = format!(
        "{SMALL}{model}{}[distill]\nteacher = {:?}\n",
        DATA.replace("count", "location"),
        teacher.join("best")
    );
    let refused = place.path().join("refused");
    let error = follow(&text, &refused, Existing::Refuse, &mut ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("distillation compares them one by one"), "{error}");
    assert!(!refused.exists());
    assert!(
        follow(&text, &refused, Existing::Resume, &mut ())
            .unwrap_err()
            .to_string()
            .contains("no run in it")
    );
}

const KILLED: &str = "[model]\nname = \"vit_nano_patch4_32\"\nimg_size = 16\n";
const FOLDER: &str = "VITESSE_TEST_KILLED_RUN";

fn killed_recipe() -> String {
    format!(
        "{}{KILLED}{DATA}",
        SMALL.replace("epochs = 2", "epochs = 8\nsave_every = 2")
    )
}

/// Not a test: the process that [`a_run_survives_its_process`] shoots.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let existing = if folder.join("recipe.toml").exists() {
        Existing::Resume
    } else {
        Existing::Refuse
    };
    follow(&killed_recipe(), folder, existing, &mut ()).unwrap();
}

/// Killed at whatever moment it has got to, again and again, a run still ends with the bits of one that was not.
#[test]
fn a_run_survives_its_process() {
    let place = tempfile::tempdir().unwrap();
    let (whole, killed) = (place.path().join("whole"), place.path().join("killed"));
    follow(&killed_recipe(), &whole, Existing::Refuse, &mut ()).unwrap();
    let mut deaths = 0;
    for life in 0.. {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact"])
            .env(FOLDER, &killed)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The first lives end after this many log lines; later ones are left in peace.
        let lines = || {
            std::fs::read(killed.join("metrics.jsonl")).map_or(0, |log| log.split(|&b| b == b'\n').count())
        };
        let (target, began) = (lines() + 3 + 2 * life, Instant::now());
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if life < 3 && lines() >= target {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            assert!(began.elapsed() < Duration::from_secs(120), "the run hangs");
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.success() {
            break;
        }
        deaths += 1;
        assert!(deaths <= 3, "the run fails by itself");
    }
    for file in [
        "final/model.safetensors",
        "final/config.json",
        "best/model.safetensors",
        "best/config.json",
    ] {
        let read = |path: &Path| std::fs::read(path.join(file)).unwrap();
        assert!(read(&whole) == read(&killed), "{file} after {deaths} deaths");
    }
}
