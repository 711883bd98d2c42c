//! Teams of threads do what one process does.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use vitesse_data::DataSet;
use vitesse_model::network::Network;
use vitesse_rng::Key;

use super::{BUCKET, Team};
use crate::evaluate::{EvalOptions, Evaluated, Evaluation, evaluate_together};
use crate::events::{Events, Outcome};
use crate::learner::{Learner, Lesson, Settings};
use crate::loss::{Distillation, target_rows};
use crate::objective::At;
use crate::run::{Existing, RunFolder, StepRecord};
use crate::state::State;
use crate::testing::{CLASSES, noise, prepared, regnet, together, vit};
use crate::trainer::{Start, train_together};
use crate::{Error, Recipe, Result};

/// Sizes of tensors that lie across buckets, or are empty.
const SIZES: [usize; 5] = [3, 0, BUCKET - 5, 7, 1];

#[test]
fn sums_have_one_order_and_the_same_bits_everywhere() {
    let tensors = |rank: usize| -> Vec<Vec<f32>> {
        let mut rng = Key::new(1).at(rank as u64).rng();
        SIZES
            .iter()
            .map(|&n| (0..n).map(|_| rng.uniform() as f32 - 0.5).collect())
            .collect()
    };
    let sums = together(3, |team| {
        let mut tensors = tensors(team.rank());
        team.sum(tensors.iter_mut().map(Vec::as_mut_slice)).unwrap();
        tensors
    });
    let parts: Vec<Vec<f32>> = (0..3).map(|rank| tensors(rank).concat()).collect();
    for sum in sums {
        let sum = sum.unwrap();
        assert_eq!(sum.iter().map(Vec::len).collect::<Vec<_>>(), SIZES);
        for (i, sum) in sum.concat().into_iter().enumerate() {
            let expected = (parts[0][i] + parts[1][i]) + parts[2][i];
            assert_eq!(sum.to_bits(), expected.to_bits(), "{i}");
        }
    }
}

#[test]
fn words_of_any_number_are_gathered() {
    let expected = vec![vec![], vec![7], vec![7, 7]];
    for found in together(3, |team| team.gather(vec![7; team.rank()]).unwrap()) {
        assert_eq!(found.unwrap(), expected);
    }
    let alone = Team::alone();
    assert_eq!(alone.gather(vec![1, 2]).unwrap(), [[1, 2]]);
    for found in together(2, |team| team.gather(vec![]).unwrap()) {
        assert_eq!(found.unwrap(), vec![Vec::<u64>::new(); 2]);
    }
}

#[test]
fn what_one_says_all_know() {
    for meeting in together(3, |team| {
        team.meet(team.rank() == 1, [team.rank() as u64; 4]).unwrap()
    }) {
        let meeting = meeting.unwrap();
        assert!(meeting.stop);
        assert_eq!(meeting.words, [[0; 4], [1; 4], [2; 4]]);
    }
    let ends = together(3, |team| match team.rank() {
        // It leaves, and is silent when it says so again.
        1 => {
            team.leave();
            team.leave();
            None
        }
        _ => {
            let error = team.meet(false, [0; 4]).err();
            team.leave();
            error
        }
    });
    for (rank, end) in ends.into_iter().enumerate() {
        let known = matches!(end.unwrap(), Some(Error::Peer { rank: 1 }));
        assert_eq!(known, rank != 1);
    }
    let ends = together(2, |team| {
        assert!(team.leads(), "dies");
        let error = team.meet(false, [0; 4]).unwrap_err();
        team.leave();
        error
    });
    assert!(matches!(ends[0], Ok(Error::Lost)) && ends[1].is_err());
    let differing = together(3, |team| {
        let data = u64::from(team.rank() == 2);
        team.agree([("recipe", 5), ("data set", data), ("weights", data), ("steps", 0)])
    });
    for end in differing {
        let error = end.unwrap().unwrap_err().to_string();
        assert!(
            error.starts_with("process 2 does not have the same data set"),
            "{error}"
        );
    }
}

fn evaluated(team: &Team, data: &DataSet, stop_rank: usize) -> Result<Evaluation> {
    let (model, device) = (vit(4), Device::flex());
    let network = Network::new(&model.spec, &model.tensors, "test", &device)?;
    let (network, device) = (&network, &device);
    let options = EvalOptions {
        batch_size: 2,
        workers: 1,
        ..EvalOptions::default()
    };
    let mut done = 0;
    let mut model = Evaluated { network, device };
    let found = evaluate_together(team, &mut model, data, &prepared(), options, &mut |at| {
        assert!(
            at.total == data.len() && at.done > done && at.done <= at.total,
            "{at:?}"
        );
        done = at.done;
        if team.rank() == stop_rank {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if found.is_err() {
        team.leave();
    }
    found
}

#[test]
fn stretches_of_an_evaluation_are_the_whole() {
    const NOBODY: usize = 9;
    // More processes than samples, too; and the only sample of one of them cannot be read.
    for n in [23, 7, 2] {
        let whole = evaluated(&Team::alone(), &noise(n), NOBODY).unwrap();
        for found in together(3, |team| evaluated(team, &noise(n), NOBODY).unwrap()) {
            let found = found.unwrap();
            assert!((found.joint.loss - whole.joint.loss).abs() < 1e-6);
            assert_eq!(found.joint.confusion, whole.joint.confusion);
            assert_eq!(
                (found.joint.top1, found.joint.top5),
                (whole.joint.top1, whole.joint.top5)
            );
            assert_eq!(found.failures, whole.failures);
            let tops = |found: &Evaluation| {
                let heads = found.heads.as_ref().unwrap();
                [heads.class.top1, heads.distillation.top1]
            };
            assert_eq!(tops(&found), tops(&whole));
        }
    }
    for found in together(3, |team| evaluated(team, &noise(23), 2)) {
        assert!(matches!(found.unwrap(), Err(Error::Interrupted)));
    }
    for found in together(2, |team| evaluated(team, &noise(9).subset(&[5]), NOBODY)) {
        assert!(matches!(found.unwrap(), Err(Error::NothingReadable { .. })));
    }
}

#[test]
fn running_statistics_are_the_mean_of_all() {
    let settings = || Settings {
        optim: Default::default(),
        ema_decay: 0.5,
        drop_path: 0.0,
        eval_mode: false,
        accumulate: 1,
        seed: 1,
        compute: Default::default(),
    };
    let lesson = |rank: usize| {
        let mut rng = Key::new(2).at(rank as u64).rng();
        let images = (0..4 * 3 * 64).map(|_| rng.normal() as f32).collect();
        let targets = target_rows(&[0, 1, 2, 0], CLASSES, 0.1).unwrap();
        Lesson::new(images, [4, 3, 8, 8], targets, CLASSES, &Device::flex()).unwrap()
    };
    let learned = |team: &Team, lesson: &Lesson| {
        let state = State::new(&regnet(1), &Default::default(), true, &|_| true).unwrap();
        let mut learner = Learner::new(
            state,
            settings(),
            Box::new(Distillation::default()),
            None,
            &Device::flex(),
        )
        .unwrap();
        learner
            .step_together(team, lesson, At::default(), 1e-3, || false)
            .unwrap();
        learner.state().clone()
    };
    let alone = [0, 1].map(|rank| learned(&Team::alone(), &lesson(rank)));
    let mut shared = together(2, |team| learned(team, &lesson(team.rank()))).into_iter();
    let (first, second) = (shared.next().unwrap().unwrap(), shared.next().unwrap().unwrap());
    assert!(first == second && first.checksum() == second.checksum());
    assert_ne!(first.checksum(), alone[0].checksum());
    for (i, buffer) in first.buffers.iter().enumerate() {
        for (j, value) in buffer.values.iter().enumerate() {
            let mean = (alone[0].buffers[i].values[j] + alone[1].buffers[i].values[j]) / 2.0;
            assert!((value - mean).abs() < 1e-6, "{}", buffer.name);
        }
    }
}

/// 20 steps, each of 8 images of all processes together.
fn recipe(processes: usize) -> Recipe {
    let text = format!(
        "[model]\nname = \"vit_nano_patch4_32\"\ndrop_path = 0.3\n[data]\npath = \"memory\"\n\
         [train]\nepochs = 4\nbatch_size = {}\nworkers = 1\nema_decay = 0.9\naccumulate = 2\nsave_every = 3\n\
         [optim]\nlr = 1e-3\nlr_base_size = 8\nclip_grad = 1.0\n[schedule]\nwarmup_epochs = 1\n\
         [augment]\nmixup = 0.0\ncutmix = 0.0\n",
        8 / processes
    );
    Recipe::parse(&text, "test.toml", &[]).unwrap()
}

/// Remembers the steps, and does something after one of them.
struct Watch<'a> {
    steps: Vec<StepRecord>,
    at: usize,
    then: &'a dyn Fn(),
}

impl Events for Watch<'_> {
    fn step(&mut self, record: &StepRecord) {
        self.steps.push(record.clone());
        if record.step == self.at {
            (self.then)();
        }
    }
}

/// Trains, and does `then` after the step `at`, with the flag that asks to stop.
fn trained(
    team: &Team,
    path: &Path,
    existing: Existing,
    at: usize,
    then: &dyn Fn(&AtomicBool),
) -> (Result<Outcome>, Vec<StepRecord>) {
    let (recipe, stop) = (recipe(team.size()), AtomicBool::new(false));
    let saved = RunFolder::state_in(path);
    let state = if existing == Existing::Resume {
        State::load(&saved, &recipe.optim).unwrap()
    } else {
        State::new(&vit(1), &recipe.optim, true, &|_| true).unwrap()
    };
    let start = Start {
        state,
        train: noise(40),
        validation: Some(noise(13)),
        objective: Box::new(Distillation::default()),
        hooks: Vec::new(),
        teacher: None,
        device: Device::flex(),
    };
    let mut watch = Watch {
        steps: Vec::new(),
        at,
        then: &|| then(&stop),
    };
    let outcome = train_together(team, &recipe, start, path, existing, &stop, &mut watch);
    if outcome.is_err() {
        team.leave();
    }
    (outcome, watch.steps)
}

const NEVER: usize = usize::MAX;

fn whole(team: &Team, path: &Path, existing: Existing) -> Vec<StepRecord> {
    let (outcome, steps) = trained(team, path, existing, NEVER, &|_| ());
    assert_eq!(outcome.unwrap().steps, 20);
    steps
}

#[test]
fn two_processes_are_one_with_twice_the_batch() {
    let place = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| place.path().join(name));
    let expected = whole(&Team::alone(), &one, Existing::Refuse);
    let found = together(2, |team| whole(team, &two, Existing::Refuse));
    let found: Vec<_> = found.into_iter().map(std::thread::Result::unwrap).collect();
    assert_eq!(expected.len(), 20);
    for (i, expected) in expected.iter().enumerate() {
        let [first, second] = [&found[0][i], &found[1][i]];
        assert_eq!((first.samples, first.lr), (8, expected.lr));
        assert!(
            (first.loss - expected.loss).abs() < 1e-4,
            "{first:?} {expected:?}"
        );
        assert!(
            (first.grad_norm - expected.grad_norm).abs() < 1e-3,
            "{first:?} {expected:?}"
        );
        let bits = |record: &StepRecord| [record.loss, record.grad_norm].map(f64::to_bits);
        assert_eq!(bits(first), bits(second));
    }
    assert!(
        (expected[0].loss - expected[19].loss).abs() > 1e-3,
        "nothing was learned"
    );
    let [one, two] = [one, two].map(|path| RunFolder::summary(&path).unwrap());
    for (one, two) in one.iter().zip(&two) {
        let [a, b] = [one, two].map(|row| [row.eval_loss, row.eval_top1, row.ema_top1].map(Option::unwrap));
        assert!((a[0] - b[0]).abs() < 1e-4 && a[1..] == b[1..], "{one:?} {two:?}");
    }
}

#[test]
fn whatever_ends_one_ends_all_and_the_run_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    together(2, |team| whole(team, &path("whole"), Existing::Refuse));
    let read = |name: &str| fs::read(RunFolder::state_in(&path(name))).unwrap();
    let same = |name: &str| {
        together(2, |team| whole_rest(team, &path(name)));
        assert!(read(name) == read("whole"), "{name}");
        let lines = |name: &str| {
            fs::read_to_string(path(name).join("metrics.jsonl"))
                .unwrap()
                .lines()
                .count()
        };
        assert_eq!((lines(name), lines("whole")), (20, 20));
    };

    // Asked to stop, one of them, or about to die, or dead.
    let stopped = together(2, |team| {
        trained(team, &path("stopped"), Existing::Refuse, 6, &|stop| {
            stop.store(!team.leads(), Ordering::Relaxed);
        })
    });
    for end in stopped {
        let (outcome, steps) = end.unwrap();
        assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        // Agreed upon in the step after.
        assert_eq!(steps.len(), 8);
    }
    let loaded = |name: &str| State::load(&RunFolder::state_in(&path(name)), &recipe(2).optim).unwrap();
    assert_eq!(loaded("stopped").progress.step, 8);
    same("stopped");

    let killed = together(2, |team| {
        trained(team, &path("killed"), Existing::Refuse, 7, &|_| {
            assert!(team.leads(), "the second process dies");
        })
    });
    assert!(matches!(&killed[0], Ok((Err(Error::Lost), _))) && killed[1].is_err());
    assert_eq!(loaded("killed").progress.step, 8);
    same("killed");

    // With another number of processes it would not be the same run.
    let (outcome, _) = trained(&Team::alone(), &path("stopped"), Existing::Resume, NEVER, &|_| ());
    let refused = outcome.unwrap_err().to_string();
    assert!(refused.contains("taken by 2 processes"), "{refused}");
}

fn whole_rest(team: &Team, path: &Path) {
    let steps = whole(team, path, Existing::Resume);
    assert_eq!(steps.len(), 12);
}
