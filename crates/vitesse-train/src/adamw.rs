//! AdamW with groups, clipping by the global norm and a moving average of the weights, in one pass over memory.
//!
//! Paper: Loshchilov & Hutter, *Decoupled weight decay regularization*, ICLR 2019. For step `t` from 1,
//!
//! ```text
//! w ← w (1 − lr · decay)
//! m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
//! w ← w − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
//! e ← e + (1 − d) (w − e)
//! ```
//!
//! where `g` is the gradient after clipping, `lr` the tensor's share of the rate, and `e` the average with decay `d`.
//! Each element is computed by itself, and the norm is summed in `f64` over pieces that the tensors' sizes alone decide,
//! in the order of their names: the result does not depend on the number of threads. A tensor without a gradient is left as it is, moments too.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::groups::Group;

/// The optimiser. The defaults are DeiT's, with the learning rate at face value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// The peak learning rate, of `lr_base_size` samples if that is set. Default 5e-4.
    pub lr: f64,
    /// The batch size that `lr` is meant for: the rate becomes `lr · batch / lr_base_size`. Not set: `lr` as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_base_size: Option<usize>,
    /// Decoupled weight decay. Default 0.05.
    pub weight_decay: f64,
    /// The decay of the two moments. Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the square root of the second moment. Default 1e-8.
    pub eps: f64,
    /// The largest global norm of the gradients. Not set: no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// What the learning rate is multiplied by from one layer to the one before it. Default 1: the same for all.
    pub layer_decay: f64,
    /// Tensors that do not decay, besides vectors, biases, `pos_embed` and `cls_token`; such as `dist_token`.
    pub no_weight_decay: Vec<String>,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig {
            lr: 5e-4,
            lr_base_size: None,
            weight_decay: 0.05,
            betas: [0.9, 0.999],
            eps: 1e-8,
            clip_grad: None,
            layer_decay: 1.0,
            no_weight_decay: Vec::new(),
        }
    }
}

impl OptimConfig {
    /// The peak learning rate for batches of `batch` samples, all accumulated parts and all processes together.
    pub fn peak_lr(&self, batch: usize) -> f64 {
        self.lr_base_size
            .map_or(self.lr, |base| self.lr * batch as f64 / base.max(1) as f64)
    }
}

/// One trained tensor with everything the optimiser keeps for it; all vectors have one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// The tensor's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is trained.
    pub group: Group,
    /// Its values.
    pub weight: Vec<f32>,
    /// First moment.
    pub m: Vec<f32>,
    /// Second moment.
    pub v: Vec<f32>,
    /// Moving average of the values, if one is kept.
    pub ema: Option<Vec<f32>>,
}

impl Slot {
    /// A tensor that has not been trained yet. The average, if one is wanted, begins as the tensor itself.
    pub fn new(name: impl Into<String>, shape: &[usize], group: Group, weight: Vec<f32>, ema: bool) -> Self {
        let zeros = vec![0.0; weight.len()];
        Slot {
            name: name.into(),
            shape: shape.to_vec(),
            group,
            m: zeros.clone(),
            v: zeros,
            ema: ema.then(|| weight.clone()),
            weight,
        }
    }

    /// Its share of the learning rate `lr`.
    pub(crate) fn rate(&self, lr: f64) -> f64 {
        lr * self.group.lr_scale
    }
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The index of the step, from 1.
    pub t: u64,
    /// The learning rate.
    pub lr: f64,
    /// The decay of the moving average.
    pub ema_decay: f64,
}

/// The elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// The norm of all gradients together. `gradients` are in the order of the tensors' names; those without one are
/// `None`.
pub fn global_norm(gradients: &[Option<Vec<f32>>]) -> f64 {
    let chunks: Vec<&[f32]> = gradients
        .iter()
        .flatten()
        .flat_map(|gradient| gradient.chunks(CHUNK))
        .collect();
    let sums: Vec<f64> = chunks.par_iter().map(|chunk| sum_of_squares(chunk)).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// In eight sums side by side, as vectors have them.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let mut add = |values: &[f32]| {
        for (sum, x) in sums.iter_mut().zip(values) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    };
    // Of known length, or they would be added one by one.
    let (whole, rest) = values.as_chunks::<8>();
    whole.iter().for_each(|values| add(values));
    add(rest);
    sums.iter().sum()
}

/// What gradients of norm `norm` are multiplied by to have at most the norm `limit`.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

/// One optimiser step: `gradients[i]` belongs to `slots[i]` and is multiplied by `factor` first.
pub fn step(
    config: &OptimConfig,
    slots: &mut [Slot],
    gradients: &[Option<Vec<f32>>],
    factor: f64,
    step: Step,
) {
    let rates: Vec<f64> = slots.iter().map(|slot| slot.rate(step.lr)).collect();
    step_at(config, slots, gradients, factor, step, &rates);
}

/// As [`step`], each tensor at a rate of its own.
pub(crate) fn step_at(
    config: &OptimConfig,
    slots: &mut [Slot],
    gradients: &[Option<Vec<f32>>],
    factor: f64,
    step: Step,
    rates: &[f64],
) {
    let [beta1, beta2] = config.betas;
    let power = step.t.min(i32::MAX as u64) as i32;
    let correction = [1.0 - beta1.powi(power), 1.0 - beta2.powi(power)];
    for ((slot, gradient), &lr) in slots.iter_mut().zip(gradients).zip(rates) {
        let pass = Pass {
            shrink: (1.0
                - if slot.group.decays {
                    lr * config.weight_decay
                } else {
                    0.0
                }) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            rate: (lr / correction[0]) as f32,
            root: (1.0 / correction[1].sqrt()) as f32,
            eps: config.eps as f32,
            factor: factor as f32,
        };
        let take = (1.0 - step.ema_decay) as f32;
        let Slot {
            weight, m, v, ema, ..
        } = slot;
        match (gradient, ema) {
            (Some(g), None) => (
                weight.par_chunks_mut(CHUNK),
                m.par_chunks_mut(CHUNK),
                v.par_chunks_mut(CHUNK),
            )
                .into_par_iter()
                .zip(g.par_chunks(CHUNK))
                .for_each(|((w, m, v), g)| pass.run(w, m, v, g)),
            (Some(g), Some(e)) => (
                weight.par_chunks_mut(CHUNK),
                m.par_chunks_mut(CHUNK),
                v.par_chunks_mut(CHUNK),
                e.par_chunks_mut(CHUNK),
            )
                .into_par_iter()
                .zip(g.par_chunks(CHUNK))
                .for_each(|((w, m, v, e), g)| {
                    pass.run(w, m, v, g);
                    follow(e, w, take);
                }),
            (None, Some(e)) => follow(e, weight, take),
            (None, None) => {}
        }
    }
}

/// Moves an average by the share `take` of its distance to `values`.
pub fn follow(ema: &mut [f32], values: &[f32], take: f32) {
    for (e, x) in ema.iter_mut().zip(values) {
        *e += take * (x - *e);
    }
}

/// One tensor's constants.
#[derive(Clone, Copy)]
struct Pass {
    shrink: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    /// Learning rate over the first moment's correction.
    rate: f32,
    /// What the root of the second moment is multiplied by.
    root: f32,
    eps: f32,
    factor: f32,
}

impl Pass {
    fn run(self, weight: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
        for (((w, m), v), g) in weight.iter_mut().zip(m).zip(v).zip(gradient) {
            let g = g * self.factor;
            *m = self.beta1 * *m + self.rest1 * g;
            *v = self.beta2 * *v + self.rest2 * g * g;
            *w = *w * self.shrink - self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_rng::Key;

    fn slot(n: usize, ema: bool) -> Slot {
        let mut rng = Key::new(1).rng();
        let weight = (0..n).map(|_| rng.normal() as f32).collect();
        Slot::new(
            "w",
            &[n],
            Group {
                decays: true,
                lr_scale: 1.0,
            },
            weight,
            ema,
        )
    }

    fn gradient(n: usize, t: u64) -> Option<Vec<f32>> {
        let mut rng = Key::new(2).at(t).rng();
        Some((0..n).map(|_| rng.normal() as f32).collect())
    }

    /// The module's formulas in `f64`, as written.
    fn reference(
        config: &OptimConfig,
        weight: &[f32],
        steps: u64,
        lr: f64,
        decay: f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let mut w: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
        let (mut m, mut v, mut e) = (vec![0.0; w.len()], vec![0.0; w.len()], w.clone());
        let [b1, b2] = config.betas;
        for t in 1..=steps {
            let g = gradient(w.len(), t).unwrap();
            for i in 0..w.len() {
                let g = f64::from(g[i]);
                w[i] *= 1.0 - lr * config.weight_decay;
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let (mhat, vhat) = (m[i] / (1.0 - b1.powi(t as i32)), v[i] / (1.0 - b2.powi(t as i32)));
                w[i] -= lr * mhat / (vhat.sqrt() + config.eps);
                e[i] = decay * e[i] + (1.0 - decay) * w[i];
            }
        }
        (w, e)
    }

    #[test]
    fn three_steps_are_the_papers() {
        let config = OptimConfig::default();
        let mut slots = [slot(17, true)];
        let (weight, average) = reference(&config, &slots[0].weight, 3, 1e-2, 0.9);
        for t in 1..=3 {
            step(
                &config,
                &mut slots,
                &[gradient(17, t)],
                1.0,
                Step {
                    t,
                    lr: 1e-2,
                    ema_decay: 0.9,
                },
            );
        }
        let close = |found: &[f32], expected: &[f64]| {
            found
                .iter()
                .zip(expected)
                .all(|(f, e)| (f64::from(*f) - e).abs() < 1e-6)
        };
        assert!(close(&slots[0].weight, &weight));
        assert!(close(slots[0].ema.as_deref().unwrap(), &average));
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let n = 3 * CHUNK + 5;
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (mut slots, gradients) = ([slot(n, true)], [gradient(n, 1)]);
                let factor = clip_factor(global_norm(&gradients), Some(1.0));
                step(
                    &OptimConfig::default(),
                    &mut slots,
                    &gradients,
                    factor,
                    Step {
                        t: 1,
                        lr: 0.1,
                        ema_decay: 0.5,
                    },
                );
                slots
            })
        };
        assert!(run(1) == run(4));
    }

    #[test]
    fn clipping_shortens_and_never_lengthens() {
        let gradients = [Some(vec![3.0, 0.0]), None, Some(vec![4.0])];
        let norm = global_norm(&gradients);
        assert_eq!(norm, 5.0);
        assert!((clip_factor(norm, Some(1.0)) - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(norm, Some(10.0)), 1.0);
        assert_eq!(clip_factor(norm, None), 1.0);
    }

    #[test]
    fn without_a_gradient_nothing_decays() {
        let mut slots = [slot(4, true)];
        let before = slots.clone();
        step(
            &OptimConfig::default(),
            &mut slots,
            &[None],
            1.0,
            Step {
                t: 1,
                lr: 0.1,
                ema_decay: 0.5,
            },
        );
        assert_eq!(slots, before);
    }

    #[test]
    fn the_rate_is_scaled_only_when_asked() {
        let config = OptimConfig::default();
        assert_eq!(config.peak_lr(1024), 5e-4);
        assert_eq!(
            OptimConfig {
                lr_base_size: Some(512),
                ..config
            }
            .peak_lr(1024),
            1e-3
        );
    }

    proptest::proptest! {
        #[test]
        fn clipped_gradients_are_within_the_limit(
            gradients in proptest::collection::vec(proptest::collection::vec(-1e3f32..1e3, 0..20), 0..6),
            limit in 1e-3f64..1e3,
        ) {
            let gradients: Vec<Option<Vec<f32>>> = gradients.into_iter().map(Some).collect();
            let norm = global_norm(&gradients);
            let factor = clip_factor(norm, Some(limit));
            proptest::prop_assert!(factor <= 1.0 && norm * factor <= limit);
            proptest::prop_assert!(norm > limit || factor > 1.0 - 1e-2);
        }
    }
}
