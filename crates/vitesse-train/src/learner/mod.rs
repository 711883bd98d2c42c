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

mod lesson;

pub use lesson::{Lesson, Taken};

use burn::module::Module;
use burn::tensor::Device;
use vitesse_model::network::profile::{self, Cost, Pass};
use vitesse_model::network::{Compute, Ctx, Draws, Mode, Network};
use vitesse_rng::Key;

use crate::adamw::{self, OptimConfig, Slot, Step};
use crate::hooks::Hooks;
use crate::objective::{Asking, At, Objective, Wants};
use crate::parallel::Team;
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
                rayon::scope(|_| profile::pass(Pass::Update, || self.update(at, &gradients, &taken, lr)))?;
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
        let cost = moved(slots, 1);
        taken.grad_norm = profile::pass(Pass::Update, || {
            profile::span(
                || adamw::global_norm(gradients),
                |_| ("norm of the gradients".into(), cost),
            )
        });
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
        // Gradients are read; weights and both moments, and an average where there is one, are read and written.
        let averaged = slots.iter().any(|slot| slot.ema.is_some());
        let cost = moved(slots, if averaged { 9 } else { 7 });
        profile::span(
            || adamw::step_at(&self.settings.optim, slots, gradients, factor, step, &rates),
            |()| ("AdamW".into(), cost),
        );
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
        let asked = profile::pass(Pass::Forward, || asking.loss(input, targets, &mut ctx))?;
        taken.add(&asked, share);
        let mut backward = profile::pass(Pass::Backward, || (asked.total * share).backward());
        profile::pass(Pass::Update, || {
            add_gradients(&self.network, &mut backward, &self.trained, gradients)
        })?;
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

/// So many passes over all that is trained.
fn moved(slots: &[Slot], passes: usize) -> Cost {
    let numbers: usize = slots.iter().map(|slot| slot.weight.len()).sum();
    Cost {
        flops: 0.0,
        bytes: (passes * numbers * size_of::<f32>()) as f64,
    }
}

#[cfg(test)]
mod tests;
