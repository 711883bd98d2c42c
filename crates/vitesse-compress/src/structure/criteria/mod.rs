//! What a unit is worth: one criterion a file.
//!
//! A criterion gives each unit of a [`Group`] a number, the larger the more it is worth. Most score the *weights*: every
//! weight by itself, then summed over the rows and columns that a unit has in each of the group's modules, and averaged over
//! the modules (DepGraph, equation 5). So a hidden unit's score is made of its row of `fc1` and its column of `fc2`, and an
//! embedding channel's of every module. Biases and raw parameters, such as the class token, are not counted, as in the published program.
//!
//! In the end a group's scores are divided by their mean, which makes groups of different size and depth comparable
//! ([`Scope`](super::rank::Scope)). Groups whose units are whole modules have no members, and only [`random`] scores them: methods that
//! drop sub-layers and blocks learn which.

pub mod activation;
#[cfg(feature = "train")]
pub mod calibrate;
pub mod fisher;
pub mod magnitude;
pub mod random;
pub mod taylor;

use std::fmt::Debug;

use vitesse_model::Tensors;
use vitesse_words::counted;

use super::units::{Axis, Group, Member};
use crate::{Error, Result};

/// Scores units.
pub trait Criterion: Debug {
    /// Its name on the command line and in a model's history.
    fn name(&self) -> &'static str;

    /// One number for each unit of `group`, with mean 1 unless all are 0.
    ///
    /// # Errors
    /// Units that it cannot score; tensors that are not there.
    fn scores(&self, tensors: &Tensors, group: &Group) -> Result<Vec<f64>>;
}

/// Sums over the weights of each member what `of` says of all of the module's weights, averages over members, normalises.
/// `total` sees the sum that a unit has in one member.
fn over_weights(
    criterion: &'static str,
    group: &Group,
    tensors: &Tensors,
    of: impl Fn(&str, &[f32]) -> Result<Vec<f64>>,
    total: impl Fn(f64) -> f64,
) -> Result<Vec<f64>> {
    if group.members.is_empty() {
        return Err(Error::Criterion {
            criterion,
            sentence: format!(
                "units of `{}` are whole modules, which it cannot score; choose them by name or at random",
                group.id
            ),
        });
    }
    let mut scores = vec![0.0; group.units];
    for member in &group.members {
        let name = format!("{}.weight", member.module);
        let tensor = tensors.get(&name)?;
        let values = of(&name, &tensor.to_f32())?;
        let sums = sums(member, tensor.shape(), &values);
        for (score, places) in scores.iter_mut().zip(&member.places) {
            let sum: f64 = places.iter().filter_map(|&place| sums.get(place)).sum();
            *score += total(sum);
        }
    }
    let members = group.members.len() as f64;
    scores.iter_mut().for_each(|score| *score /= members);
    normalise(&mut scores);
    Ok(scores)
}

/// The sum over each row, or each column, of a weight whose first axis is its rows.
fn sums(member: &Member, shape: &[usize], values: &[f64]) -> Vec<f64> {
    let rows = shape.first().copied().unwrap_or(0).max(1);
    let columns = (values.len() / rows).max(1);
    match member.axis {
        Axis::Out => values.chunks(columns).map(|row| row.iter().sum()).collect(),
        Axis::In => {
            let mut out = vec![0.0; columns];
            for row in values.chunks(columns) {
                out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            out
        }
    }
}

/// Divides by the mean, unless that is 0.
fn normalise(scores: &mut [f64]) {
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    if mean != 0.0 {
        scores.iter_mut().for_each(|score| *score /= mean);
    }
}

/// Values of the same shape as a weight, which a criterion was given beside it.
fn beside<'a>(
    criterion: &'static str,
    given: &'a Tensors,
    name: &str,
    len: usize,
) -> Result<std::borrow::Cow<'a, [f32]>> {
    let found = given.get(name).map_err(|_| Error::Criterion {
        criterion,
        sentence: format!(
            "nothing was measured of `{name}`; calibrate with the groups that are to be scored"
        ),
    })?;
    if found.numel() != len {
        return Err(Error::Criterion {
            criterion,
            sentence: format!(
                "what was measured of `{name}` has {}, but the tensor has {len}; calibrate on this model",
                counted(found.numel(), "value")
            ),
        });
    }
    Ok(found.to_f32())
}
