use super::*;
use crate::loss::{Distillation, Kind, target_rows};
use crate::objective::{Seen, Term};
use crate::testing::{CLASSES, prepared, regnet, vit};
use burn::tensor::Tensor;
use vitesse_model::Checkpoint;
use vitesse_model::network::Precision;

const SAMPLES: usize = 7;

fn settings(accumulate: usize) -> Settings {
    Settings {
        optim: OptimConfig {
            clip_grad: Some(1.0),
            ..OptimConfig::default()
        },
        ema_decay: 0.9,
        drop_path: 0.3,
        eval_mode: false,
        accumulate,
        seed: 1,
        compute: Compute::default(),
    }
}

fn objective() -> Box<dyn Objective> {
    Box::new(Distillation {
        kind: Kind::Soft,
        alpha: 0.3,
        tau: 2.0,
        ..Distillation::default()
    })
}

fn targets() -> Vec<f32> {
    let labels: Vec<usize> = (0..SAMPLES).map(|i| i % CLASSES).collect();
    target_rows(&labels, CLASSES, 0.1).unwrap()
}

fn lesson_of(step: u64, targets: Vec<f32>) -> Result<Lesson> {
    let mut rng = Key::new(9).at(step).rng();
    let images = (0..SAMPLES * 3 * 64).map(|_| rng.normal() as f32).collect();
    Lesson::new(images, [SAMPLES, 3, 8, 8], targets, CLASSES, &Device::flex())
}

fn lesson(step: u64) -> Lesson {
    lesson_of(step, targets()).unwrap()
}

fn learner_of(student: &Checkpoint, settings: Settings, trained: &dyn Fn(&str) -> bool) -> Learner {
    let device = Device::flex();
    let state = State::new(student, &settings.optim, true, trained).unwrap();
    let teacher = Teacher::new(&vit(2), &student.spec, &prepared(), &device).unwrap();
    Learner::new(state, settings, objective(), Some(teacher), &device).unwrap()
}

fn learner(accumulate: usize, trained: &dyn Fn(&str) -> bool) -> Learner {
    learner_of(&vit(1), settings(accumulate), trained)
}

fn largest_difference(a: &State, b: &State) -> f32 {
    let pairs = a
        .slots
        .iter()
        .zip(&b.slots)
        .flat_map(|(a, b)| a.weight.iter().zip(&b.weight));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The sum of all outputs, where they are wanted.
#[derive(Debug)]
struct Outputs(bool);

impl Objective for Outputs {
    fn wants(&self) -> Wants {
        Wants {
            outputs: self.0,
            ..Wants::default()
        }
    }

    fn terms(&self, seen: &Seen<'_>) -> Result<Vec<Term>> {
        let zero = seen.student.logits.class.clone().sum() * 0.0;
        let outputs = seen.student.outputs.values().cloned().map(Tensor::sum);
        Ok(vec![Term {
            name: "outputs",
            value: outputs.fold(zero, |sum, output| sum + output),
            weight: 2.0,
        }])
    }
}

#[test]
fn a_pass_knows_its_labels_and_its_moment_and_its_outputs_enter_the_loss_where_wanted() {
    let device = Device::flex();
    for (wanted, loss) in [(true, 2.0 * SAMPLES as f64 * 0.5), (false, 0.0)] {
        let state = State::new(&vit(1), &settings(1).optim, true, &|_| true).unwrap();
        let learner = Learner::new(state, settings(1), Box::new(Outputs(wanted)), None, &device).unwrap();
        let at = At {
            step: 3,
            epoch: 0,
            steps_per_epoch: 4,
            epochs: 3,
        };
        let mut ctx = learner.context(at, 0);
        assert_eq!(ctx.progress, 0.25);
        // What an op of the pass would say.
        let said = Tensor::<2>::full([SAMPLES, 1], 0.5, &device)
            .autodiff()
            .require_grad();
        ctx.outputs.insert("ops.0.kept".into(), said.clone());
        let asking = Asking {
            network: &learner.network,
            objective: learner.objective.as_ref(),
            wants: &learner.wants,
            teacher: None,
            method: &learner.state.method,
            at,
        };
        let Lesson { input, targets: rows } = lesson(0);
        let asked = asking.loss(input, rows, &mut ctx).unwrap();
        assert_eq!(asked.loss, loss);
        let labels = ctx.labels.clone().unwrap().into_data().try_into_vec::<f32>();
        assert_eq!(labels.unwrap(), targets());
        let gradient = said.grad(&asked.total.backward());
        let gradient = gradient.map(|gradient| gradient.into_data().try_into_vec::<f32>().unwrap());
        assert_eq!(gradient, wanted.then(|| vec![2.0; SAMPLES]));
    }
}

#[test]
fn parts_of_a_batch_are_the_batch() {
    let (mut whole, mut parts) = (learner(1, &|_| true), learner(3, &|_| true));
    for step in 0..3 {
        let (a, b) = (
            whole.step(&lesson(step), 1e-3).unwrap(),
            parts.step(&lesson(step), 1e-3).unwrap(),
        );
        assert!(
            (a.loss - b.loss).abs() < 1e-5 && (a.grad_norm - b.grad_norm).abs() < 1e-5,
            "{a:?} {b:?}"
        );
    }
    let difference = largest_difference(whole.state(), parts.state());
    assert!(difference < 1e-5, "{difference}");
    assert!(
        largest_difference(whole.state(), learner(1, &|_| true).state()) > 1e-3,
        "nothing was learned"
    );
}

/// The losses of some steps of a run with drop path and a teacher that computes as `compute` says.
fn curve(compute: Compute, steps: u64, trained: &dyn Fn(&str) -> bool) -> (Vec<f64>, Learner) {
    let settings = Settings {
        compute,
        ..settings(1)
    };
    let mut learner = learner_of(&vit(1), settings, trained);
    let losses = (0..steps).map(|step| learner.step(&lesson(step % 5), 1e-3).unwrap().loss);
    (losses.collect(), learner)
}

#[test]
fn fused_and_composed_segments_learn_alike() {
    let run = |fused| {
        let compute = Compute {
            fused,
            ..Compute::default()
        };
        curve(compute, 50, &|_| true).0
    };
    let (fused, composed) = (run(true), run(false));
    for (step, (a, b)) in fused.iter().zip(&composed).enumerate() {
        assert!((a - b).abs() < 1e-4, "step {step}: {a} and {b}");
    }
    assert!(fused[49] < 0.9 * fused[0], "nothing was learned: {fused:?}");
}

#[test]
fn blocks_that_are_computed_again_change_no_bit() {
    // All of it; and a model whose first blocks have nothing to learn, or nothing but biases.
    let all: &dyn Fn(&str) -> bool = &|_| true;
    let late: &dyn Fn(&str) -> bool = &|name| name.starts_with("blocks.2") || name.starts_with("head");
    let biases: &dyn Fn(&str) -> bool = &|name| name.ends_with(".bias");
    for trained in [all, late, biases] {
        let run = |grad_checkpointing| {
            let compute = Compute {
                grad_checkpointing,
                ..Compute::default()
            };
            curve(compute, 4, trained)
        };
        let ((kept, a), (again, b)) = (run(false), run(true));
        assert_eq!(kept, again);
        assert!(a.state() == b.state());
    }
}

#[test]
fn bf16_learns_nearly_alike() {
    let compute = Compute {
        precision: Precision::Bf16,
        ..Compute::default()
    };
    let (low, high) = (
        curve(compute, 50, &|_| true).0,
        curve(Compute::default(), 50, &|_| true).0,
    );
    assert!(low != high);
    assert!((low[49] - high[49]).abs() < 0.02, "{} and {}", low[49], high[49]);
}

#[test]
fn ops_are_told_when_it_is_and_where_numbers_come_from_in_every_mode() {
    let at = At {
        step: 3,
        epoch: 1,
        steps_per_epoch: 2,
        epochs: 6,
    };
    let context = |eval_mode| {
        let settings = Settings {
            eval_mode,
            ..settings(1)
        };
        learner_of(&vit(1), settings, &|_| true).context(at, 5)
    };
    let (train, eval) = (context(false), context(true));
    assert_eq!(
        (train.mode, eval.mode),
        (Mode::Train { drop_path: 0.3 }, Mode::Eval)
    );
    assert_eq!((train.progress, train.draws.first_sample), (0.25, 5));
    assert_eq!((eval.progress, eval.draws), (train.progress, train.draws));
    assert_eq!(At::default().progress(), 1.0);
}

#[test]
fn what_is_not_trained_stays() {
    let mut learner = learner(1, &|name| name.starts_with("head"));
    let before = learner.state().tensors(false).unwrap();
    learner.step(&lesson(0), 1e-2).unwrap();
    let after = learner.state().tensors(false).unwrap();
    for (name, tensor) in before.iter() {
        assert_eq!(
            tensor == after.get(name).unwrap(),
            !name.starts_with("head"),
            "{name}"
        );
    }
    assert_eq!(learner.network(false).tensors().unwrap(), after);
    let average = learner.state().tensors(true).unwrap();
    assert_eq!(learner.network(true).tensors().unwrap(), average);
    assert!(average != after);
}

#[test]
fn a_state_continues_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for (student, count) in [(vit(1), 0), (regnet(1), 18)] {
        let path = folder.path().join(&student.spec.architecture);
        let mut whole = learner_of(&student, settings(1), &|name| name != "pos_embed");
        whole.step(&lesson(0), 1e-3).unwrap();
        whole.state().save(&path).unwrap();
        let loaded = State::load(&path, &whole.settings.optim).unwrap();
        assert!(loaded == *whole.state());
        assert_eq!(loaded.buffers.len(), count);
        let teacher = Teacher::new(&vit(2), &student.spec, &prepared(), &Device::flex()).unwrap();
        let mut resumed =
            Learner::new(loaded, settings(1), objective(), Some(teacher), &Device::flex()).unwrap();
        assert_eq!(
            whole.step(&lesson(1), 1e-3).unwrap(),
            resumed.step(&lesson(1), 1e-3).unwrap()
        );
        assert!(whole.state() == resumed.state());
    }
}

#[test]
fn running_statistics_move_in_training_and_only_there() {
    let student = regnet(1);
    let mut learner = learner_of(&student, settings(1), &|_| true);
    let before = learner.state().buffers.clone();
    learner.step(&lesson(0), 1e-3).unwrap();
    let after = learner.state().buffers.clone();
    assert!(
        !after.is_empty()
            && before
                .iter()
                .zip(&after)
                .all(|(old, new)| old.values != new.values)
    );
    let average = after[0].ema.as_ref().unwrap()[0];
    assert!((average - (0.9 * before[0].values[0] + 0.1 * after[0].values[0])).abs() < 1e-6);
    let mut still = learner_of(
        &student,
        Settings {
            eval_mode: true,
            ..settings(1)
        },
        &|_| true,
    );
    still.step(&lesson(0), 1e-3).unwrap();
    assert_eq!(still.state().buffers, before);
}

#[test]
fn what_is_not_a_number_changes_nothing() {
    let mut learner = learner(2, &|_| true);
    let before = learner.state().clone();
    let mut targets = targets();
    *targets.last_mut().unwrap() = f32::NAN;
    let broken = lesson_of(0, targets.clone()).unwrap();
    let error = learner.step(&broken, 1e-3).unwrap_err();
    assert!(
        matches!(error, Error::NotFinite { what: "the loss", .. }),
        "{error}"
    );
    targets.pop();
    assert!(matches!(lesson_of(0, targets), Err(Error::Shape { .. })));
    assert!(*learner.state() == before);
}

#[test]
fn a_teacher_that_is_asked_for_must_be_there() {
    let state = State::new(&vit(1), &OptimConfig::default(), true, &|_| true).unwrap();
    let mut learner = Learner::new(state, settings(1), objective(), None, &Device::flex()).unwrap();
    assert!(matches!(
        learner.step(&lesson(0), 1e-3),
        Err(Error::TeacherMissing)
    ));
}
