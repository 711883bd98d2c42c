//! What the loss would change by if a unit went, to second order at a minimum: squared weight times curvature.
//!
//! Papers: LeCun et al., *Optimal Brain Damage*, NeurIPS 1989, with the diagonal of the empirical Fisher matrix for the Hessian's, as in
//! Theis et al., *Faster gaze prediction with dense networks and Fisher pruning*, 2018. When to use it: a trained model whose gradients have all but vanished, where first order
//! says little. Cost: a backward pass a sample. Deviation: DepGraph's program keeps the last sample's squared gradient only; this is the mean over
//! samples, as its formula has it.

use vitesse_model::Tensors;

use super::{Criterion, beside, over_weights};
use crate::Result;
use crate::structure::units::Group;

/// By squared weight times curvature.
#[derive(Debug, Clone)]
pub struct Fisher {
    /// Mean over samples of the squared gradient, one for each weight, by tensor name.
    pub curvature: Tensors,
}

impl Criterion for Fisher {
    fn name(&self) -> &'static str {
        "fisher"
    }

    fn scores(&self, tensors: &Tensors, group: &Group) -> Result<Vec<f64>> {
        let of = |name: &str, weights: &[f32]| {
            let curvature = beside(self.name(), &self.curvature, name, weights.len())?;
            let products = weights.iter().zip(curvature.iter());
            Ok(products
                .map(|(weight, curvature)| f64::from(*weight).powi(2) * f64::from(*curvature))
                .collect())
        };
        over_weights(self.name(), group, tensors, of, |sum| sum)
    }
}
