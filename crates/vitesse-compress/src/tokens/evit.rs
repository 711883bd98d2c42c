//! EViT — how many tokens stay while a model is trained from scratch.
//!
//! Paper: Liang et al., *Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations*, ICLR 2022, section 4.1.
//! At first all tokens stay; then the share falls along a half cosine to the one of the finished model.

use std::f64::consts::PI;

/// The share of tokens that stays, by epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeepRate {
    /// The share at the end.
    pub base: f64,
    /// The epoch in which it begins to fall.
    pub start: usize,
    /// The epoch from which it is `base`.
    pub end: usize,
}

impl KeepRate {
    /// The share at `step`, where an epoch has `steps_per_epoch`.
    pub fn at(&self, step: usize, steps_per_epoch: usize) -> f64 {
        let epoch = step / steps_per_epoch.max(1);
        if epoch < self.start {
            return 1.0;
        }
        if epoch >= self.end {
            return self.base;
        }
        let done = (step - self.start * steps_per_epoch) as f64;
        let all = ((self.end - self.start) * steps_per_epoch) as f64;
        self.base + (1.0 - self.base) * ((PI * done / all).cos() + 1.0) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_from_all_to_the_base() {
        let rate = KeepRate {
            base: 0.6,
            start: 1,
            end: 3,
        };
        let at = |step| rate.at(step, 4);
        assert_eq!((at(0), at(3), at(4)), (1.0, 1.0, 1.0));
        assert!((at(8) - 0.8).abs() < 1e-12, "{}", at(8));
        assert_eq!((at(12), at(100)), (0.6, 0.6));
    }
}
