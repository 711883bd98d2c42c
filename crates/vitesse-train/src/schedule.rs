//! The learning rate over a run: linear warm-up, then cosine or constant, stepped by epoch or by step.
//!
//! With `t` in epochs,
//!
//! ```text
//! f(t) = warmup_lr + t (lr − warmup_lr) / warmup              for t < warmup
//! f(t) = min_lr + ½ (lr − min_lr) (1 + cos(π t / epochs))     for t < epochs     (f(t) = lr when constant)
//! f(t) = min_lr                                               afterwards
//! ```
//!
//! The warm-up is not prefixed: when it ends, the cosine is `warmup` epochs in. Stepped by epoch, the reference
//! program steps at an epoch's end with that epoch's own index, so epoch 0 *and* epoch 1 train at `f(0)`, and epoch
//! `e` at `f(e − 1)`. That is kept, since the published recipes were tuned with it. Stepped by step, `t` is exact.

use serde::{Deserialize, Serialize};

/// The curve after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curve {
    /// Half a cosine from the peak to the minimum.
    #[default]
    Cosine,
    /// The peak throughout.
    Constant,
}

/// How often the rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// After each epoch, one epoch late, as timm does.
    #[default]
    Epoch,
    /// Before each step.
    Step,
}

/// A learning-rate schedule. The defaults are DeiT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The curve after the warm-up: `cosine` or `constant`. Default `cosine`.
    pub curve: Curve,
    /// Length of the warm-up, in epochs. Default 5.
    pub warmup_epochs: f64,
    /// The rate at which the warm-up begins; not scaled by the batch. Default 1e-6.
    pub warmup_lr: f64,
    /// The rate at which the cosine ends; not scaled by the batch. Default 1e-5.
    pub min_lr: f64,
    /// Whether the rate changes per `epoch` or per `step`. Default `epoch`.
    pub per: Per,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            curve: Curve::Cosine,
            warmup_epochs: 5.0,
            warmup_lr: 1e-6,
            min_lr: 1e-5,
            per: Per::Epoch,
        }
    }
}

impl Schedule {
    /// The rate of optimiser step `step` (from 0) in a run of `epochs` epochs of `steps` steps, whose peak is `lr`.
    pub fn lr(&self, lr: f64, epochs: usize, steps: usize, step: usize) -> f64 {
        let steps = steps.max(1);
        match self.per {
            Per::Step => self.at(lr, epochs, step as f64 / steps as f64),
            Per::Epoch => self.at(lr, epochs, (step / steps).saturating_sub(1) as f64),
        }
    }

    /// `f(t)` of the module's text, with `t` in epochs.
    pub fn at(&self, lr: f64, epochs: usize, t: f64) -> f64 {
        if t < self.warmup_epochs {
            return self.warmup_lr + t * (lr - self.warmup_lr) / self.warmup_epochs;
        }
        match self.curve {
            Curve::Constant => lr,
            Curve::Cosine if t < epochs as f64 => {
                let turn = std::f64::consts::PI * t / epochs as f64;
                self.min_lr + 0.5 * (lr - self.min_lr) * (1.0 + turn.cos())
            }
            Curve::Cosine => self.min_lr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LR: f64 = 1e-3;

    #[test]
    fn by_epoch_the_first_two_epochs_train_at_the_start_value() {
        let schedule = Schedule::default();
        let lr = |epoch: usize| schedule.lr(LR, 300, 7, epoch * 7 + 3);
        assert_eq!((lr(0), lr(1)), (1e-6, 1e-6));
        assert!((lr(2) - (1e-6 + (LR - 1e-6) / 5.0)).abs() < 1e-15);
        // The cosine does not begin at its peak: five epochs have passed.
        let turn = (std::f64::consts::PI * 5.0 / 300.0).cos();
        assert!((lr(6) - (1e-5 + 0.5 * (LR - 1e-5) * (1.0 + turn))).abs() < 1e-15);
        assert_eq!(lr(301), 1e-5);
    }

    #[test]
    fn by_step_the_rate_is_exact_and_continuous() {
        let schedule = Schedule {
            per: Per::Step,
            warmup_epochs: 2.0,
            min_lr: 0.0,
            ..Schedule::default()
        };
        let lr = |step| schedule.lr(LR, 10, 4, step);
        assert_eq!(lr(0), 1e-6);
        assert!((lr(4) - (1e-6 + 0.5 * (LR - 1e-6))).abs() < 1e-15);
        assert!(
            (lr(20) - 0.5 * LR).abs() < 1e-15,
            "half of the run is half of the cosine"
        );
        assert!((8..40).all(|step| lr(step) > lr(step + 1)));
        assert_eq!(lr(40), 0.0);
    }

    #[test]
    fn constant_stays_at_the_peak_and_no_warm_up_is_none() {
        let schedule = Schedule {
            curve: Curve::Constant,
            warmup_epochs: 0.0,
            ..Schedule::default()
        };
        assert!((0..50).all(|step| schedule.lr(LR, 4, 5, step) == LR));
    }

    proptest::proptest! {
        #[test]
        fn the_rate_stays_between_its_ends(
            step in 0usize..500,
            epochs in 1usize..40,
            warmup_epochs in 0.0f64..50.0,
            [lr, warmup_lr, min_lr] in [1e-7f64..1.0, 1e-7f64..1.0, 1e-7f64..1.0],
            per_step in proptest::bool::ANY,
            constant in proptest::bool::ANY,
        ) {
            let schedule = Schedule {
                curve: if constant { Curve::Constant } else { Curve::Cosine },
                warmup_epochs,
                warmup_lr,
                min_lr,
                per: if per_step { Per::Step } else { Per::Epoch },
            };
            let found = schedule.lr(lr, epochs, 7, step);
            let (low, high) = (lr.min(warmup_lr).min(min_lr), lr.max(warmup_lr).max(min_lr));
            proptest::prop_assert!(found >= low * (1.0 - 1e-12) && found <= high * (1.0 + 1e-12), "{found}");
        }
    }
}
