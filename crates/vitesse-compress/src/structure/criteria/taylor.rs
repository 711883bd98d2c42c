//! What the loss would change by if a unit went, to first order: gradient times weight.
//!
//! Papers: Molchanov et al., *Importance Estimation for Neural Network Pruning*, CVPR 2019, equations 7 and 8; Fang et al.,
//! *DepGraph*, CVPR 2023. When to use it: where some hundreds of labelled images are at hand; better than magnitude on vision
//! transformers. Cost: a backward pass a batch. Deviation: none from DepGraph's program, in both forms.

use vitesse_model::Tensors;

use super::{Criterion, beside, over_weights};
use crate::Result;
use crate::structure::units::Group;

/// By gradient times weight.
#[derive(Debug, Clone)]
pub struct Taylor {
    /// Gradients of the loss, one for each weight, by tensor name.
    pub gradients: Tensors,
    /// How the products of a unit's weights come together.
    pub form: Form,
}

/// How products of gradient and weight become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// `Σ|w·g|`: every weight counts by itself.
    #[default]
    Elementwise,
    /// `|Σ w·g|` of each module: what opposite signs take from each other is not counted.
    Joint,
}

impl Criterion for Taylor {
    fn name(&self) -> &'static str {
        "taylor"
    }

    fn scores(&self, tensors: &Tensors, group: &Group) -> Result<Vec<f64>> {
        let of = |name: &str, weights: &[f32]| {
            let gradients = beside(self.name(), &self.gradients, name, weights.len())?;
            let products = weights.iter().zip(gradients.iter());
            let products = products.map(|(weight, gradient)| f64::from(*weight) * f64::from(*gradient));
            Ok(match self.form {
                Form::Elementwise => products.map(f64::abs).collect(),
                Form::Joint => products.collect(),
            })
        };
        over_weights(self.name(), group, tensors, of, f64::abs)
    }
}
