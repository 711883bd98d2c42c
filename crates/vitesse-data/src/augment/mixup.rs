//! Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) on whole batches, as in timm and DeiT.
//!
//! Sample `i` is paired with sample `B - 1 - i`. One draw a batch decides which of the two is used, and λ:
//!
//! * mixup, `λ ~ Beta(0.8, 0.8)`: `x ← λ x + (1 - λ) x'`;
//! * CutMix, `λ ~ Beta(1, 1)`: a box of `√(1 - λ)` of each side, at a uniform centre and clipped to the picture, comes from the
//!   partner, and λ becomes the share of pixels that are still the sample's own.
//!
//! The target is `λ s(y) + (1 - λ) s(y')` with the smoothed one-hot vector `s`: `ε/K` everywhere, `1 - ε + ε/K` at the class.
//! (The DeiT paper's table calls 0.8 and 1.0 probabilities; they are the parameters of the Beta distributions.)

use serde::{Deserialize, Serialize};
use vitesse_rng::Key;

use crate::{Error, Result};

/// How batches are mixed. timm's names, DeiT's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixConfig {
    /// Parameter of mixup's Beta distribution; 0 switches mixup off. Default 0.8.
    pub mixup: f64,
    /// Parameter of CutMix's Beta distribution; 0 switches CutMix off. Default 1.
    pub cutmix: f64,
    /// Probability that a batch is mixed at all. Default 1.
    pub mixup_prob: f64,
    /// Probability of CutMix where both are on. Default 0.5.
    pub mixup_switch_prob: f64,
    /// Label smoothing ε, applied whether or not a batch is mixed. Default 0.1.
    pub smoothing: f64,
}

impl Default for MixConfig {
    fn default() -> Self {
        MixConfig {
            mixup: 0.8,
            cutmix: 1.0,
            mixup_prob: 1.0,
            mixup_switch_prob: 0.5,
            smoothing: 0.1,
        }
    }
}

/// A rectangle of pixels; the ends are not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutBox {
    /// First row.
    pub top: usize,
    /// Row after the last.
    pub bottom: usize,
    /// First column.
    pub left: usize,
    /// Column after the last.
    pub right: usize,
}

/// What happens to one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// Nothing.
    Keep,
    /// Mixup with this λ.
    Mixup(f64),
    /// CutMix with this box.
    Cutmix(CutBox),
}

impl MixConfig {
    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first field that is not.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if !(0.0..=1e3).contains(&value) {
                return Err(Error::setting(
                    key,
                    &value,
                    "0, or a positive parameter such as 0.8",
                ));
            }
        }
        let shares = [
            ("mixup_prob", self.mixup_prob),
            ("mixup_switch_prob", self.mixup_switch_prob),
            ("smoothing", self.smoothing),
        ];
        for (key, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::setting(key, &value, "a share from 0 to 1"));
            }
        }
        Ok(())
    }

    /// Whether any batch is ever mixed, so that batches must be even.
    pub fn is_on(&self) -> bool {
        self.mixup_prob > 0.0 && (self.mixup > 0.0 || self.cutmix > 0.0)
    }

    /// Decides for one batch of `height` x `width` pictures; `key` is the batch's.
    pub fn draw(&self, height: usize, width: usize, key: Key) -> Mix {
        let mut rng = key.with("mix").rng();
        if !self.is_on() || !rng.bernoulli(self.mixup_prob) {
            return Mix::Keep;
        }
        let use_cutmix = self.cutmix > 0.0 && (self.mixup == 0.0 || rng.bernoulli(self.mixup_switch_prob));
        if !use_cutmix {
            return Mix::Mixup(rng.beta(self.mixup, self.mixup));
        }
        let share = (1.0 - rng.beta(self.cutmix, self.cutmix)).sqrt();
        let mut range = |side: usize| {
            let half = (side as f64 * share) as usize / 2;
            let centre = rng.below(side);
            (centre.saturating_sub(half), (centre + half).min(side))
        };
        let (top, bottom) = range(height);
        let (left, right) = range(width);
        Mix::Cutmix(CutBox {
            top,
            bottom,
            left,
            right,
        })
    }
}

impl Mix {
    /// Mixes a batch, `shape` = `[samples, channels, height, width]`, in place and gives λ, each sample's own share.
    ///
    /// # Errors
    /// [`Error::Setting`] for an odd batch, values that do not have the shape, or a box outside it.
    pub fn apply(self, images: &mut [f32], shape: [usize; 4]) -> Result<f64> {
        match self {
            Mix::Keep => Ok(1.0),
            Mix::Mixup(lam) => mixup(images, shape, lam).map(|()| lam),
            Mix::Cutmix(cut) => cutmix(images, shape, cut),
        }
    }
}

/// Calls `work` with every sample and its partner.
fn for_pairs(
    images: &mut [f32],
    shape: [usize; 4],
    mut work: impl FnMut(&mut [f32], &mut [f32]),
) -> Result<()> {
    let [samples, channels, height, width] = shape;
    if samples % 2 == 1 {
        let expected = "an even number of samples, as mixup and CutMix pair them; change the batch size or drop the last batch";
        return Err(Error::setting("batch", &samples, expected));
    }
    let size = channels * height * width;
    if images.len() != samples * size {
        return Err(Error::setting(
            "images",
            &images.len(),
            format!("{} values for {shape:?}", samples * size),
        ));
    }
    if size == 0 {
        return Ok(());
    }
    let (first, second) = images.split_at_mut(images.len() / 2);
    for (a, b) in first
        .chunks_exact_mut(size)
        .zip(second.chunks_exact_mut(size).rev())
    {
        work(a, b);
    }
    Ok(())
}

/// Mixup of a batch, `[samples, channels, height, width]`, in place.
///
/// # Errors
/// [`Error::Setting`] for an odd batch or values that do not have the shape.
pub fn mixup(images: &mut [f32], shape: [usize; 4], lam: f64) -> Result<()> {
    let (own, other) = (lam as f32, (1.0 - lam) as f32);
    for_pairs(images, shape, |a, b| {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (own * *a + other * *b, own * *b + other * *a);
        }
    })
}

/// CutMix of a batch, `[samples, channels, height, width]`, in place; gives λ, the share of pixels outside the box.
///
/// # Errors
/// [`Error::Setting`] for an odd batch, values that do not have the shape, or a box outside it.
pub fn cutmix(images: &mut [f32], shape: [usize; 4], cut: CutBox) -> Result<f64> {
    let [_, _, height, width] = shape;
    let CutBox {
        top,
        bottom,
        left,
        right,
    } = cut;
    if top > bottom || bottom > height || left > right || right > width {
        return Err(Error::setting(
            "box",
            &format!("{cut:?}"),
            format!("a box inside {height} x {width} pixels"),
        ));
    }
    for_pairs(images, shape, |a, b| {
        for (a, b) in a
            .chunks_exact_mut(height * width)
            .zip(b.chunks_exact_mut(height * width))
        {
            for row in top..bottom {
                let range = row * width + left..row * width + right;
                a[range.clone()].swap_with_slice(&mut b[range]);
            }
        }
    })?;
    let area = ((bottom - top) * (right - left)) as f64;
    Ok(1.0 - area / (height * width).max(1) as f64)
}

/// The targets of a batch mixed with `lam`, `[samples, classes]`; each row sums to 1. With `lam` 1, plain label smoothing.
///
/// # Errors
/// [`Error::Setting`] for a label that is not below `classes`.
pub fn targets(labels: &[usize], lam: f64, smoothing: f64, classes: usize) -> Result<Vec<f32>> {
    if let Some(label) = labels.iter().find(|&&label| label >= classes) {
        return Err(Error::setting("label", label, format!("a class below {classes}")));
    }
    let off = smoothing / classes.max(1) as f64;
    let on = 1.0 - smoothing + off;
    let mut targets = Vec::with_capacity(labels.len() * classes);
    for (&own, &other) in labels.iter().zip(labels.iter().rev()) {
        let level = |class: usize, label: usize| if class == label { on } else { off };
        targets.extend(
            (0..classes).map(|class| (lam * level(class, own) + (1.0 - lam) * level(class, other)) as f32),
        );
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_mixed_with_the_reversed_batch() {
        let mut images = [0.0, 1.0, 2.0, 10.0];
        mixup(&mut images, [4, 1, 1, 1], 0.75).unwrap();
        assert_eq!(images, [2.5, 1.25, 1.75, 7.5]);
        let error = mixup(&mut images[..3], [3, 1, 1, 1], 0.5)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`batch` is 3, expected an even number"), "{error}");
        assert!(mixup(&mut images, [2, 1, 1, 1], 0.5).is_err());
    }

    #[test]
    fn boxes_are_exchanged() {
        let mut images: Vec<f32> = (0..18).map(|i| i as f32).collect();
        let cut = CutBox {
            top: 1,
            bottom: 3,
            left: 0,
            right: 2,
        };
        let lam = cutmix(&mut images, [2, 1, 3, 3], cut).unwrap();
        assert_eq!(lam, 1.0 - 4.0 / 9.0);
        assert_eq!(images[..9], [0.0, 1.0, 2.0, 12.0, 13.0, 5.0, 15.0, 16.0, 8.0]);
        assert_eq!(images[9..], [9.0, 10.0, 11.0, 3.0, 4.0, 14.0, 6.0, 7.0, 17.0]);
        assert!(cutmix(&mut images, [2, 1, 3, 3], CutBox { bottom: 4, ..cut }).is_err());
    }

    #[test]
    fn targets_are_distributions() {
        let rows = targets(&[0, 2, 2], 0.75, 0.3, 3).unwrap();
        assert!(
            rows.chunks(3)
                .all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6)
        );
        // on = 0.8, off = 0.1: 0.75 · 0.8 + 0.25 · 0.1 at the sample's own class.
        assert!((rows[0] - 0.625).abs() < 1e-6 && (rows[2] - 0.275).abs() < 1e-6);
        assert_eq!(rows[3..6], targets(&[2], 1.0, 0.3, 3).unwrap()[..]);
        let error = targets(&[3], 1.0, 0.1, 3).unwrap_err().to_string();
        assert_eq!(error, "`label` is 3, expected a class below 3");
    }

    #[test]
    fn draws_follow_the_recipe() {
        let config = MixConfig::default();
        let draws: Vec<Mix> = (0..2_000)
            .map(|step| config.draw(16, 32, Key::new(1).at(step)))
            .collect();
        let cut = draws.iter().filter(|mix| matches!(mix, Mix::Cutmix(_))).count();
        assert!((900..1_100).contains(&cut), "{cut}");
        let mut images = vec![0.0; 2 * 16 * 32];
        let shares: Vec<f64> = draws
            .iter()
            .map(|mix| mix.apply(&mut images, [2, 1, 16, 32]).unwrap())
            .collect();
        assert!(shares.iter().all(|lam| (0.0..=1.0).contains(lam)));
        assert_eq!(draws[7], config.draw(16, 32, Key::new(1).at(7)));
        let off = MixConfig {
            mixup: 0.0,
            cutmix: 0.0,
            ..MixConfig::default()
        };
        assert_eq!(off.draw(16, 32, Key::new(1)), Mix::Keep);
        assert!(!off.is_on());
        assert!(
            MixConfig {
                smoothing: 1.5,
                ..off
            }
            .validate()
            .is_err()
        );
    }
}
