//! Cross-entropy against rows of target probabilities.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use vitesse_kernels::train;

use super::Compute;
use super::segment::{Gradient, Input, Segment, apply};

/// Mean over the batch of `−Σ t·log softmax(z)`, for logits and targets `[batch, classes]` of one shape, to `[1]`.
/// The targets get no gradient where they ask for none; they need not sum to 1.
pub fn soft_cross_entropy(logits: Tensor<2>, targets: Tensor<2>, compute: Compute) -> Tensor<1> {
    let [batch, classes] = logits.dims();
    let inputs = || Some([Input::of(&logits)?, Input::of(&targets)?]);
    let fuses = compute.fused && !targets.is_tracked();
    match fuses.then(inputs).flatten() {
        Some(inputs) => apply(CrossEntropy { classes }, inputs, [1]),
        None => (log_softmax(logits, 1) * targets).sum() / -(batch as f32),
    }
}

#[derive(Debug, Clone)]
struct CrossEntropy {
    classes: usize,
}

impl Segment<2> for CrossEntropy {
    const KEEPS: [bool; 2] = [true, true];
    type Saved = ();

    fn name(&self) -> String {
        "cross-entropy".into()
    }

    fn flops(&self, _: [&[f32]; 2], _: Option<[bool; 2]>) -> f64 {
        0.0
    }

    fn forward(&self, [logits, targets]: [&[f32]; 2]) -> (Vec<f32>, ()) {
        (vec![train::soft_cross_entropy(logits, targets, self.classes)], ())
    }

    fn backward(
        &self,
        [logits, targets]: [&[f32]; 2],
        _: &[f32],
        (): &(),
        grad: &[f32],
        [wanted, _]: [bool; 2],
    ) -> [Option<Gradient>; 2] {
        let grad = grad.first().copied().unwrap_or_default();
        let of_logits = || {
            Gradient::Values(train::soft_cross_entropy_backward(
                logits,
                targets,
                self.classes,
                grad,
            ))
        };
        [wanted.then(of_logits), None]
    }
}
