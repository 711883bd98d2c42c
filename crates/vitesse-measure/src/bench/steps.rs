//! Steps of training: forward, cross-entropy with soft targets, backward, AdamW, as [`Learner`] does them for `train`.
//!
//! Images and targets are functions of their place alone, simple enough to be made again in another program: a rival that
//! starts with the same weights must find the same losses (`benches/peers/train.py` checks it).

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use burn::tensor::Device;
use serde::Serialize;
use vitesse_adapt::Method;
use vitesse_engine::Isa;
use vitesse_model::Checkpoint;
use vitesse_model::network::{Compute, Precision};
use vitesse_train::adamw::OptimConfig;
use vitesse_train::learner::{Learner, Lesson, Settings};
use vitesse_train::loss::{Distillation, target_rows};
use vitesse_train::method::head_tensors;
use vitesse_train::state::State;
use vitesse_words::counted;

use crate::machine::peak_memory;
use crate::timing::{Budget, quantile, repeat};
use crate::{Error, Events, Result, Weights};

use super::segments::Profiled;

/// Steps before the first that counts: the first allocates moments and meets cold caches.
const WARM: Budget = Budget {
    time: Duration::ZERO,
    runs: 2,
};
/// Label smoothing, so that no target is zero.
const SMOOTHING: f64 = 0.1;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trained {
    /// Every weight.
    All,
    /// The classifier alone; the rest of the model is computed forward only.
    Head,
    /// LoRA's updates of rank 8 on qkv, and the classifier.
    Lora,
}

impl Trained {
    /// What an optimiser begins with that trains this part of `checkpoint`.
    fn state(self, checkpoint: &Checkpoint, optim: &OptimConfig) -> Result<State> {
        let of =
            |checkpoint, trains: &dyn Fn(&str) -> bool| Ok(State::new(checkpoint, optim, false, trains)?);
        match self {
            Trained::All => of(checkpoint, &|_| true),
            Trained::Head => {
                let heads = head_tensors(&checkpoint.spec);
                of(checkpoint, &|name| heads.contains(name))
            }
            Trained::Lora => {
                let method = Method::parse("lora", &[])?;
                let adapted = method.begin(&checkpoint.spec, &checkpoint.tensors, 0)?;
                let checkpoint = Checkpoint {
                    spec: adapted.spec,
                    tensors: adapted.tensors,
                    ..checkpoint.clone()
                };
                of(&checkpoint, &|name| adapted.trained.contains(name))
            }
        }
    }
}

/// What is measured: every model with every number of threads and every batch size.
#[derive(Debug)]
pub struct Steps {
    /// What each model is called, and the model.
    pub models: Vec<(String, Checkpoint)>,
    /// What is trained of it.
    pub trained: Trained,
    /// Images in a step.
    pub batches: Vec<usize>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// How steps compute.
    pub compute: Compute,
    /// For each of the configurations.
    pub budget: Budget,
    /// Whether it is also measured where the time goes.
    pub profile: bool,
}

impl Steps {
    /// Measures everything. What the process does with memory that is freed is its own affair: a program that trains calls
    /// [`keep_memory`](vitesse_kernels::train::keep_memory) before it loads the models.
    ///
    /// # Errors
    /// A model that cannot be trained so; [`Error::Interrupted`] once `stop` was set.
    pub fn run(&self, stop: &AtomicBool, events: &mut dyn Events) -> Result<Vec<Row>> {
        let isa = Isa::choose().map_err(vitesse_engine::Error::Isa)?;
        let mut rows = Vec::new();
        for (model, checkpoint) in &self.models {
            for &threads in &self.threads {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .map_err(|error| Error::Threads {
                        threads,
                        reason: error.to_string(),
                    })?;
                for &batch in &self.batches {
                    let case = Case {
                        model,
                        checkpoint,
                        trained: self.trained,
                        batch,
                        threads,
                        isa,
                        compute: self.compute,
                        budget: self.budget,
                        profile: self.profile,
                    };
                    events.say("step", &case.name());
                    rows.push(case.measure(&pool, stop)?);
                }
            }
        }
        Ok(rows)
    }
}

/// One configuration.
struct Case<'a> {
    model: &'a str,
    checkpoint: &'a Checkpoint,
    trained: Trained,
    batch: usize,
    threads: usize,
    isa: Isa,
    compute: Compute,
    budget: Budget,
    profile: bool,
}

impl Case<'_> {
    fn name(&self) -> String {
        format!(
            "{}, {}, batches of {}",
            self.model,
            counted(self.threads, "thread"),
            self.batch
        )
    }

    fn measure(&self, pool: &rayon::ThreadPool, stop: &AtomicBool) -> Result<Row> {
        let mut learner = self.learner()?;
        let lesson = self.lesson()?;
        let lr = OptimConfig::default().lr;
        let mut losses = Vec::new();
        let mut step = || {
            losses.push(pool.install(|| learner.step(&lesson, lr))?.loss);
            Ok(())
        };
        repeat(WARM, stop, &mut step)?;
        let times = repeat(self.budget, stop, &mut step)?;
        let profile = self
            .profile
            .then(|| {
                Profiled::measure(pool, self.isa, self.compute.precision, stop, || {
                    learner.step(&lesson, lr).map(drop).map_err(Error::from)
                })
            })
            .transpose()?;
        let spec = &self.checkpoint.spec;
        let [_, height, width] = spec.input_size();
        Ok(Row {
            model: self.model.to_owned(),
            batch: self.batch,
            trained: self.trained,
            threads: self.threads,
            isa: self.isa.name(),
            amp: (self.compute.precision == Precision::Bf16).then_some("bf16"),
            grad_checkpointing: self.compute.grad_checkpointing,
            step_ms: Quartiles::of(&times),
            images_per_s: (self.batch * times.len()) as f64 / times.iter().sum::<f64>(),
            architecture: spec.architecture.clone(),
            weights: Weights::of(self.checkpoint),
            img_size: [height, width],
            param_count: spec.costs()?.parameters(),
            trained_param_count: learner.state().slots.iter().map(|slot| slot.weight.len()).sum(),
            peak_memory_bytes: peak_memory(),
            runs: times.len(),
            losses,
            profile,
        })
    }

    fn learner(&self) -> Result<Learner> {
        let optim = OptimConfig::default();
        let state = self.trained.state(self.checkpoint, &optim)?;
        let settings = Settings {
            optim,
            ema_decay: 0.0,
            drop_path: 0.0,
            eval_mode: false,
            accumulate: 1,
            seed: 0,
            compute: self.compute,
        };
        Ok(Learner::new(
            state,
            settings,
            Box::new(Distillation::default()),
            None,
            &Device::flex(),
        )?)
    }

    fn lesson(&self) -> Result<Lesson> {
        let spec = &self.checkpoint.spec;
        let classes = spec.num_classes;
        if classes == 0 {
            let architecture = spec.architecture.clone();
            return Err(vitesse_train::Error::NoClasses { architecture }.into());
        }
        let [channels, height, width] = spec.input_size();
        let labels: Vec<usize> = (0..self.batch).map(|sample| sample % classes).collect();
        let shape = [self.batch, channels, height, width];
        let images = pixels(shape.iter().product());
        let targets = target_rows(&labels, classes, SMOOTHING)?;
        Ok(Lesson::new(images, shape, targets, classes, &Device::flex())?)
    }
}

/// Numbers of mean 0 and variance 1, evenly distributed: each is the hash of its place, by the finaliser of MurmurHash3.
fn pixels(count: usize) -> Vec<f32> {
    let pixel = |place: usize| {
        let mut hash = place as u32;
        hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        ((f64::from(hash) / 2f64.powi(32) - 0.5) * 12f64.sqrt()) as f32
    };
    (0..count).map(pixel).collect()
}

/// Times of one step, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quartiles {
    /// The one in the middle.
    pub median: f64,
    /// What a quarter of the steps stay below.
    pub p25: f64,
    /// What three quarters stay below.
    pub p75: f64,
}

impl Quartiles {
    /// Of steps that took so many seconds.
    fn of(seconds: &[f64]) -> Quartiles {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| 1e3 * quantile(&sorted, share);
        Quartiles {
            median: at(0.5),
            p25: at(0.25),
            p75: at(0.75),
        }
    }
}

/// What was found of one configuration.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What the model is called.
    pub model: String,
    /// Images in a step.
    pub batch: usize,
    /// What is trained.
    pub trained: Trained,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set.
    pub isa: &'static str,
    /// The format of mixed precision.
    pub amp: Option<&'static str>,
    /// Whether blocks are computed again in the backward pass.
    pub grad_checkpointing: bool,
    /// Of one step with the whole batch.
    pub step_ms: Quartiles,
    /// All images over all of the measured time.
    pub images_per_s: f64,
    /// The architecture.
    pub architecture: String,
    /// Where the weights come from.
    pub weights: Weights,
    /// Height and width.
    pub img_size: [usize; 2],
    /// Parameters.
    pub param_count: usize,
    /// Those of them that are trained.
    pub trained_param_count: usize,
    /// Of the process so far, all models and images included.
    pub peak_memory_bytes: Option<u64>,
    /// Timed steps.
    pub runs: usize,
    /// Of every step from the first, those that warm up included.
    pub losses: Vec<f64>,
    /// Where the time goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profiled>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_what_another_program_makes_of_the_formula() {
        let pixels = pixels(30_000);
        // The hash of 0 is 0, that of 1 is 0x514e28b7.
        assert_eq!(pixels[0], -(3f32.sqrt()));
        assert_eq!(
            pixels[1],
            ((f64::from(0x514e_28b7_u32) / 2f64.powi(32) - 0.5) * 12f64.sqrt()) as f32
        );
        let mean = |f: fn(f32) -> f32| pixels.iter().map(|x| f(*x)).sum::<f32>() / pixels.len() as f32;
        assert!(mean(|x| x).abs() < 0.02 && (mean(|x| x * x) - 1.0).abs() < 0.02);
    }

    #[test]
    fn each_choice_trains_what_it_says() {
        let checkpoint = Checkpoint::fresh("deit_micro_patch4_32", None, None, 0).unwrap();
        let names = |trained: Trained| -> Vec<String> {
            let state = trained.state(&checkpoint, &OptimConfig::default()).unwrap();
            state.slots.into_iter().map(|slot| slot.name).collect()
        };
        let (all, head, lora) = (names(Trained::All), names(Trained::Head), names(Trained::Lora));
        assert_eq!(all.len(), checkpoint.tensors.len());
        assert!(head.iter().all(|name| name.starts_with("head")) && head.len() >= 2);
        let updates = lora.iter().filter(|name| name.starts_with("ops.")).count();
        assert_eq!(updates, 2 * checkpoint.spec.vit().unwrap().layers.len());
        assert!(head.iter().all(|name| lora.contains(name)) && lora.len() == updates + head.len());
    }
}
