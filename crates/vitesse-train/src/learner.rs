//! One optimiser step: forward, loss, backward, clip, update.
//!
//! A batch may be cut into parts whose gradients are added up, for less memory: the result is that of the whole batch
//! but for rounding, since losses are weighted by the parts' sizes, mixing has happened before, and drop path depends
//! on a sample's place in the whole batch. (Batch norms are the exception: they see the parts.) Whatever is random is
//! a function of the seed and the step.
//!
//! Several processes take a step together: each has its part of the batch, with as many samples as the others, and what
//! holds for parts that are computed one after the other holds for theirs. Running statistics are averaged over the
//! processes.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use vitesse_model::network::{Compute, Ctx, Draws, Logits, Mode, Network};
use vitesse_rng::Key;

use crate::adamw::{self, OptimConfig, Slot, Step};
use crate::hooks::Hooks;
use crate::objective::{Asked, Asking, At, Input, Objective, Wants};
use crate::parallel::{Team, WORDS};
use crate::state::State;
use crate::teacher::Teacher;
use crate::weights::{Gradients, Ids, add_gradients, copies, refresh, train_only};
use crate::{Error, Result};

/// What stays the same over all steps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The optimiser.
    pub optim: OptimConfig,
    /// The decay of the moving average of the weights, if the state keeps one.
    pub ema_decay: f64,
    /// Probability of drop path at the last block.
    pub drop_path: f64,
    /// Whether the model computes as in evaluation: no drop path, running statistics in batch norms.
    pub eval_mode: bool,
    /// How many parts a batch is cut into, at least 1.
    pub accumulate: usize,
    /// Decides drop path.
    pub seed: u64,
    /// How steps compute. Evaluation is in `f32`.
    pub compute: Compute,
}

/// Images with their target probabilities, where the network computes.
#[derive(Debug, Clone)]
pub struct Lesson {
    pub(crate) input: Input,
    pub(crate) targets: Tensor<2>,
}

impl Lesson {
    /// Normalised, augmented and mixed `images` of `shape` `[samples, channels, height, width]`, and rows of `targets`
    /// `[samples, classes]`. On the CPU nothing is copied.
    ///
    /// # Errors
    /// As many numbers as do not fit; no samples.
    pub fn new(
        images: Vec<f32>,
        shape: [usize; 4],
        targets: Vec<f32>,
        classes: usize,
        device: &Device,
    ) -> Result<Lesson> {
        let samples = shape[0];
        if samples == 0 {
            return Err(Error::Empty {
                what: "a training batch",
            });
        }
        let fits = |what, values: &[f32], width: usize| {
            if values.len() == samples * width {
                return Ok(());
            }
            let (expected, found) = ([samples, width], [samples, values.len() / samples]);
            Err(Error::Shape {
                what,
                expected,
                found,
            })
        };
        fits("images", &images, shape[1..].iter().product())?;
        fits("targets", &targets, classes)?;
        let device = device.clone().without_autodiff();
        Ok(Lesson {
            input: Input::Images(Tensor::from_data(TensorData::new(images, shape), &device)),
            targets: Tensor::from_data(TensorData::new(targets, [samples, classes]), &device),
        })
    }

    /// The same of `features` that were computed before, `[samples, features]` for each head.
    pub(crate) fn of_features(features: Logits, targets: Vec<f32>, device: &Device) -> Lesson {
        let samples = features.class.dims()[0];
        let shape = [samples, targets.len() / samples.max(1)];
        Lesson {
            input: Input::Features(features),
            targets: Tensor::from_data(TensorData::new(targets, shape), device),
        }
    }

    /// How many.
    pub fn samples(&self) -> usize {
        self.targets.dims()[0]
    }

    /// `count` of them from `first` on; a view.
    pub(crate) fn part(&self, first: usize, count: usize) -> Lesson {
        let input = match self.input.clone() {
            Input::Images(images) => Input::Images(images.narrow(0, first, count)),
            Input::Features(features) => Input::Features(Logits {
                class: features.class.narrow(0, first, count),
                distillation: features.distillation.map(|x| x.narrow(0, first, count)),
            }),
        };
        Lesson {
            input,
            targets: self.targets.clone().narrow(0, first, count),
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taken {
    /// What was minimised, mean over the samples.
    pub loss: f64,
    /// Its terms, before they are weighted.
    pub terms: Vec<(&'static str, f64)>,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
}

impl Taken {
    /// The value of a term; 0 if there is none of this name.
    pub fn term(&self, name: &str) -> f64 {
        let mut terms = self.terms.iter();
        terms
            .find(|(other, _)| *other == name)
            .map_or(0.0, |(_, value)| *value)
    }

    /// Adds a part that has this share of the whole.
    fn add(&mut self, asked: &Asked, share: f64) {
        self.loss += share * asked.loss;
        if self.terms.is_empty() {
            self.terms = asked.terms.iter().map(|&(name, _)| (name, 0.0)).collect();
        }
        for ((_, sum), (_, value)) in self.terms.iter_mut().zip(&asked.terms) {
            *sum += share * value;
        }
    }

    /// Adds up the parts of all processes; whether any of them wants to stop.
    fn share(&mut self, team: &Team, stop: bool) -> Result<bool> {
        let mut losses: Vec<&mut f64> = std::iter::once(&mut self.loss)
            .chain(self.terms.iter_mut().map(|(_, value)| value))
            .collect();
        let mut any = false;
        for some in losses.chunks_mut(WORDS) {
            let mut words = [0; WORDS];
            words
                .iter_mut()
                .zip(&*some)
                .for_each(|(word, loss)| *word = loss.to_bits());
            let meeting = team.meet(stop, words)?;
            any |= meeting.stop;
            some.iter_mut()
                .enumerate()
                .for_each(|(i, loss)| **loss = meeting.total(i));
        }
        Ok(any)
    }
}

/// A model that learns: its state, and the network that is a view of it.
#[derive(Debug)]
pub struct Learner {
    state: State,
    settings: Settings,
    objective: Box<dyn Objective>,
    wants: Wants,
    hooks: Vec<Box<dyn Hooks>>,
    teacher: Option<Teacher>,
    network: Network,
    device: Device,
    trained: Ids,
    buffers: Ids,
}

impl Learner {
    /// Puts the state's model on `device`, with gradients for what it trains.
    ///
    /// # Errors
    /// None for a state made by [`State::new`] or [`State::load`].
    pub fn new(
        state: State,
        settings: Settings,
        objective: Box<dyn Objective>,
        teacher: Option<Teacher>,
        device: &Device,
    ) -> Result<Learner> {
        let device = device.clone().autodiff();
        let trained = Ids::new(state.slots.iter().map(|slot| slot.name.as_str()));
        let buffers = Ids::new(state.buffers.iter().map(|buffer| buffer.name.as_str()));
        let network = Network::new(&state.spec, &state.tensors(false)?, "the training state", &device)?;
        let network = train_only(network, &trained);
        Ok(Learner {
            state,
            settings,
            wants: objective.wants(),
            objective,
            hooks: Vec::new(),
            teacher,
            network,
            device,
            trained,
            buffers,
        })
    }

    /// The same with hooks.
    #[must_use]
    pub fn with_hooks(self, hooks: Vec<Box<dyn Hooks>>) -> Learner {
        Learner { hooks, ..self }
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state, to record progress in.
    pub(crate) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The network for evaluation, without gradients; with averaged weights if `ema` is set and an average is kept.
    pub fn network(&self, ema: bool) -> Network {
        let network = self.network.valid();
        if !ema {
            return network;
        }
        let trained = copies(&self.state.slots, |slot| slot.ema.as_deref());
        let buffers = copies(&self.state.buffers, |buffer| buffer.ema.as_deref());
        let network = refresh(network, &self.trained, trained);
        refresh(network, &self.buffers, buffers)
    }

    /// Where [`Learner::network`] computes.
    pub fn device(&self) -> Device {
        self.device.clone().without_autodiff()
    }

    /// Learns from one batch at the rate `lr`, in a step that is no part of a run.
    ///
    /// # Errors
    /// A batch that does not fit the model, a missing teacher; [`Error::NotFinite`] when the loss or a gradient is not
    /// a number. The state is then as it was.
    pub fn step(&mut self, lesson: &Lesson, lr: f64) -> Result<Taken> {
        let at = At {
            step: self.state.progress.step,
            ..At::default()
        };
        let (taken, _) = self.step_together(&Team::alone(), lesson, at, lr, || false)?;
        Ok(taken)
    }

    /// As [`Learner::step`], by all processes of `team`, each with its part of the batch. Also returns whether any of
    /// them wants to `stop` after this step.
    ///
    /// # Errors
    /// As [`Learner::step`], for this process's part; what [`Team::meet`] says. The state is as it was.
    pub(crate) fn step_together(
        &mut self,
        team: &Team,
        lesson: &Lesson,
        at: At,
        lr: f64,
        stop: impl FnOnce() -> bool,
    ) -> Result<(Taken, bool)> {
        let (buffers, method) = (self.state.buffers.clone(), self.state.method.clone());
        // Among the threads that compute: woken from outside for each piece of work, half of them would oversleep it.
        let place = [team.rank(), team.size()];
        let shared = self
            .begin(at)
            .and_then(|()| rayon::scope(|_| self.gradients(place, at, lesson)))
            .and_then(|(gradients, taken)| self.share(team, gradients, taken, stop()))
            .and_then(|(mut gradients, mut taken, stop)| {
                self.finish_gradients(at, &mut gradients, &mut taken)?;
                Ok((gradients, taken, stop))
            });
        match shared {
            Ok((gradients, taken, stop)) => {
                rayon::scope(|_| self.update(at, &gradients, &taken, lr))?;
                Ok((taken, stop))
            }
            Err(error) => {
                self.state.method = method;
                self.state.buffers = buffers;
                self.refresh_buffers();
                Err(error)
            }
        }
    }

    /// Tells hooks that a step begins.
    fn begin(&mut self, at: At) -> Result<()> {
        let State { slots, method, .. } = &mut self.state;
        for hooks in &self.hooks {
            if at.begins_epoch() {
                hooks.begin_epoch(at, slots, method)?;
            }
            hooks.begin_step(at, slots, method)?;
        }
        Ok(())
    }

    /// The gradients of this process's part of the batch, and what it adds to the loss; `place` is its rank and of how many.
    fn gradients(&mut self, place: [usize; 2], at: At, lesson: &Lesson) -> Result<(Gradients, Taken)> {
        let samples = lesson.samples();
        let part = samples.div_ceil(self.settings.accumulate.max(1));
        let mut gradients = vec![None; self.state.slots.len()];
        let mut taken = Taken::default();
        for first in (0..samples).step_by(part) {
            let range = [first, part.min(samples - first)];
            self.part(place, at, lesson, range, &mut gradients, &mut taken)?;
        }
        Ok((gradients, taken))
    }

    /// Adds up gradients and losses over the processes, and averages the running statistics.
    fn share(
        &mut self,
        team: &Team,
        mut gradients: Gradients,
        mut taken: Taken,
        stop: bool,
    ) -> Result<(Gradients, Taken, bool)> {
        let stop = taken.share(team, stop)?;
        team.sum(gradients.iter_mut().flatten().map(Vec::as_mut_slice))?;
        if team.size() > 1 && !self.settings.eval_mode {
            let share = 1.0 / team.size() as f32;
            let buffers = self.state.buffers.iter_mut().map(|buffer| &mut buffer.values);
            buffers.flatten().for_each(|value| *value *= share);
            let buffers = self.state.buffers.iter_mut();
            team.sum(buffers.map(|buffer| buffer.values.as_mut_slice()))?;
            self.refresh_buffers();
        }
        Ok((gradients, taken, stop))
    }

    /// What hooks do to the gradients of the whole batch, and their norm.
    fn finish_gradients(&mut self, at: At, gradients: &mut Gradients, taken: &mut Taken) -> Result<()> {
        let State { slots, method, .. } = &mut self.state;
        for hooks in &self.hooks {
            hooks.gradients(at, slots, gradients, method)?;
        }
        taken.grad_norm = adamw::global_norm(gradients);
        if taken.grad_norm.is_finite() {
            return Ok(());
        }
        Err(Error::NotFinite {
            what: "the norm of the gradients",
            value: taken.grad_norm,
        })
    }

    /// Takes the optimiser step.
    fn update(&mut self, at: At, gradients: &Gradients, taken: &Taken, lr: f64) -> Result<()> {
        let factor = adamw::clip_factor(taken.grad_norm, self.settings.optim.clip_grad);
        let t = self.state.progress.step as u64 + 1;
        let step = Step {
            t,
            lr,
            ema_decay: self.settings.ema_decay,
        };
        let State { slots, method, .. } = &mut self.state;
        let rate = |slot: &Slot| {
            let hooks = self.hooks.iter();
            hooks.fold(slot.rate(lr), |rate, hooks| hooks.rate(at, slot, rate, method))
        };
        let rates: Vec<f64> = slots.iter().map(rate).collect();
        adamw::step_at(&self.settings.optim, slots, gradients, factor, step, &rates);
        for hooks in &self.hooks {
            hooks.updated(at, slots, taken, method)?;
        }
        self.state.average_buffers(self.settings.ema_decay);
        self.state.progress.step += 1;
        let weights = copies(&self.state.slots, |slot| Some(&slot.weight));
        self.network = refresh(self.network.clone(), &self.trained, weights);
        Ok(())
    }

    /// Adds the gradients and the loss of `count` samples from `first` on, weighted as their share of the whole batch.
    fn part(
        &mut self,
        [rank, processes]: [usize; 2],
        at: At,
        lesson: &Lesson,
        [first, count]: [usize; 2],
        gradients: &mut Gradients,
        taken: &mut Taken,
    ) -> Result<()> {
        let samples = lesson.samples();
        let share = count as f64 / (samples * processes) as f64;
        let Lesson { input, targets } = lesson.part(first, count);
        let mut ctx = self.context(at, rank * samples + first);
        let asking = Asking {
            network: &self.network,
            objective: self.objective.as_ref(),
            wants: &self.wants,
            teacher: self.teacher.as_ref(),
            method: &self.state.method,
            at,
        };
        let asked = asking.loss(input, targets, &mut ctx)?;
        taken.add(&asked, share);
        let mut backward = (asked.total * share).backward();
        add_gradients(&self.network, &mut backward, &self.trained, gradients)?;
        self.store_buffers(ctx)
    }

    fn context(&self, at: At, first_sample: usize) -> Ctx {
        let key = Key::new(self.settings.seed)
            .with("train")
            .at(self.state.progress.step as u64);
        let mut ctx = Ctx::eval();
        if !self.settings.eval_mode {
            ctx.mode = Mode::Train {
                drop_path: self.settings.drop_path,
            };
        }
        ctx.draws = Draws { key, first_sample };
        ctx.progress = at.progress();
        ctx.compute = self.settings.compute;
        ctx
    }

    /// Keeps the running statistics that a forward pass has computed.
    fn store_buffers(&mut self, ctx: Ctx) -> Result<()> {
        if ctx.buffers.is_empty() {
            return Ok(());
        }
        for (name, values) in ctx.buffers {
            let values = values.into_data().try_into_vec::<f32>();
            self.state.set_buffer(
                &name,
                values.map_err(|error| Error::Backend(format!("{name}: {error:?}")))?,
            );
        }
        self.refresh_buffers();
        Ok(())
    }

    /// Gives the network the state's running statistics.
    fn refresh_buffers(&mut self) {
        let buffers = copies(&self.state.buffers, |buffer| Some(&buffer.values));
        self.network = refresh(self.network.clone(), &self.buffers, buffers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{Distillation, Kind, target_rows};
    use crate::objective::{Seen, Term};
    use crate::testing::{CLASSES, prepared, regnet, vit};
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
}
