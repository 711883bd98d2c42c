//! Colour jitter with torchvision's meaning: brightness, contrast and saturation, each by a factor uniform in
//! `[max(0, 1 - strength), 1 + strength]`, in a random order.

use vitesse_rng::Rng;

use super::enhance;
use crate::Image;

/// Jitters all three with one strength, as timm's `--color-jitter` does.
pub(super) fn color_jitter(mut image: Image, strength: f64, rng: &mut Rng) -> Image {
    let adjustments = [enhance::brightness, enhance::contrast, enhance::colour];
    for which in rng.permutation(adjustments.len()) {
        let factor = rng.uniform_in((1.0 - strength).max(0.0), 1.0 + strength);
        image = adjustments[which](&image, factor);
    }
    image
}
