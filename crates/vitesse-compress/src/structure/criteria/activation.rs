//! What a unit adds to its sub-layer's output on real images: the mean square of what passes it, times the squared norm of the column that
//! reads it.
//!
//! Papers: Sun et al., *A Simple and Effective Pruning Approach for Large Language Models* (Wanda), ICLR 2024, by weight; here summed over a
//! column, as its structured followers do. When to use it: images without labels are at hand. Cost: a forward pass a batch. Deviation: Wanda
//! compares `|w|·‖x‖`; squares are summed here, so that a column's score is the energy of what it writes.

use vitesse_model::Tensors;

use super::{Criterion, beside, normalise, sums};
use crate::structure::units::{Axis, Group, Kind};
use crate::{Error, Result};

/// By what passes the units that `proj` and `fc2` read: heads, dimensions of values, hidden units.
#[derive(Debug, Clone)]
pub struct Activation {
    /// The mean square of what enters each column, `[inputs]`, by the name of the weight, such as `blocks.3.mlp.fc2.weight`.
    pub squares: Tensors,
}

impl Criterion for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn scores(&self, tensors: &Tensors, group: &Group) -> Result<Vec<f64>> {
        let read = group.members.iter().find(|member| member.axis == Axis::In);
        let (Some(member), true) = (read, group.id.kind != Kind::Embed) else {
            return Err(Error::Criterion {
                criterion: self.name(),
                sentence: format!(
                    "units of `{}` are not what `proj` or `fc2` read, which it scores; use another criterion for them",
                    group.id
                ),
            });
        };
        let name = format!("{}.weight", member.module);
        let weight = tensors.get(&name)?;
        let energies: Vec<f64> = weight.to_f32().iter().map(|w| f64::from(*w).powi(2)).collect();
        let norms = sums(member, weight.shape(), &energies);
        let squares = beside(self.name(), &self.squares, &name, norms.len())?;
        let energy = |place: &usize| Some(norms.get(*place)? * f64::from(*squares.get(*place)?));
        let of_unit = |places: &Vec<usize>| places.iter().filter_map(energy).sum();
        let mut scores: Vec<f64> = member.places.iter().map(of_unit).collect();
        normalise(&mut scores);
        Ok(scores)
    }
}
