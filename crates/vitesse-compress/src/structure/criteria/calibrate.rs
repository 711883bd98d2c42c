//! What criteria that need data are given: gradients, their squares, and what passes inside.
//!
//! Batches come one after the other, as they are needed; whatever goes wrong with one ends the work.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor};
use vitesse_model::network::{Ctx, Network, Trace};
use vitesse_model::{ModelSpec, Tensors};
use vitesse_train::gradients::{Of, Over, each_sample, gradients};
use vitesse_train::learner::Lesson;
use vitesse_train::objective::Objective;

use crate::structure::halves::Half;
use crate::structure::units::Group;
use crate::{Error, Result};

/// The gradients of the weights of `groups`: the sum over `lessons`, each with the mean over its samples.
///
/// # Errors
/// A batch that does not fit the model; a loss that is not finite; what `lessons` say.
pub fn taylor<E: From<Error>>(
    spec: &ModelSpec,
    tensors: &Tensors,
    groups: &[&Group],
    objective: &dyn Objective,
    lessons: impl IntoIterator<Item = std::result::Result<Lesson, E>>,
) -> std::result::Result<Tensors, E> {
    let mut sums = Sums::new(spec, tensors, groups)?;
    let network = sums.network.clone();
    for lesson in lessons {
        let names: Vec<&str> = sums.names.iter().map(String::as_str).collect();
        let of = Of {
            network: &network,
            names: &names,
            objective,
            teacher: None,
        };
        let found = gradients(of, &lesson?, Over::Mean).map_err(Error::from)?;
        sums.add(found, |gradient| gradient);
    }
    Ok(sums.finish(tensors, 1.0)?)
}

/// The diagonal of the empirical Fisher matrix, for the weights of `groups`: the mean over all samples of their squared
/// gradients.
///
/// # Errors
/// As [`taylor`].
pub fn fisher<E: From<Error>>(
    spec: &ModelSpec,
    tensors: &Tensors,
    groups: &[&Group],
    objective: &dyn Objective,
    lessons: impl IntoIterator<Item = std::result::Result<Lesson, E>>,
) -> std::result::Result<Tensors, E> {
    let mut sums = Sums::new(spec, tensors, groups)?;
    let network = sums.network.clone();
    let owned = sums.names.clone();
    let names: Vec<&str> = owned.iter().map(String::as_str).collect();
    let mut samples = 0;
    for lesson in lessons {
        let of = Of {
            network: &network,
            names: &names,
            objective,
            teacher: None,
        };
        each_sample(of, &lesson?, &mut |_, found| {
            samples += 1;
            sums.add(found, |gradient| gradient * gradient);
            Ok(())
        })
        .map_err(Error::from)?;
    }
    Ok(sums.finish(tensors, 1.0 / f64::from(samples.max(1)))?)
}

/// The mean square of what enters each column of `proj` and `fc2`, `[inputs]`, by the name of the weight, over all tokens of `images`
/// `[batch, channels, height, width]`, and over all layers that share the matrix.
///
/// # Errors
/// Images that do not fit the model; what `images` say.
pub fn activations<E: From<Error>>(
    spec: &ModelSpec,
    tensors: &Tensors,
    images: impl IntoIterator<Item = std::result::Result<Tensor<4>, E>>,
) -> std::result::Result<Tensors, E> {
    let network = Network::new(spec, tensors, "the model", &Device::flex()).map_err(Error::from)?;
    let body = spec.transformer().map_err(Error::from)?;
    let read = Half::BOTH.map(|half| half.sites()[0]);
    let mut sums: BTreeMap<String, (Vec<f64>, usize)> = BTreeMap::new();
    for images in images {
        let mut ctx = Ctx::tracing(Trace::sites(read));
        network.forward(images?, &mut ctx).map_err(Error::from)?;
        let layers = 0..body.layers().len();
        for (layer, half) in layers.flat_map(|layer| Half::BOTH.map(|half| (layer, half))) {
            let (Some(passed), Some(core)) = (half.read(body, layer, &ctx), body.core(layer)) else {
                continue;
            };
            let [batch, tokens, width] = passed.dims();
            let squares = passed.square().sum_dims(&[0, 1]).reshape([width]);
            let squares: Vec<f32> = squares.to_data().iter().collect();
            let name = format!("{}.{}.weight", body.core_name(core), half.projection());
            let (sum, count) = sums.entry(name).or_insert_with(|| (vec![0.0; width], 0));
            sum.iter_mut()
                .zip(squares)
                .for_each(|(sum, square)| *sum += f64::from(square));
            *count += batch * tokens;
        }
    }
    let mut out = Tensors::new();
    for (name, (sum, count)) in sums {
        let mean = sum.iter().map(|sum| (sum / count.max(1) as f64) as f32).collect();
        out.insert_f32(name, &[sum.len()], mean).map_err(Error::from)?;
    }
    Ok(out)
}

/// Sums by tensor, in double precision.
struct Sums {
    network: Network,
    names: Vec<String>,
    sums: Vec<Vec<f64>>,
}

impl Sums {
    fn new(spec: &ModelSpec, tensors: &Tensors, groups: &[&Group]) -> Result<Sums> {
        let members = groups.iter().flat_map(|group| &group.members);
        let names: BTreeSet<String> = members
            .map(|member| format!("{}.weight", member.module))
            .collect();
        let sums = names.iter().map(|name| Ok(vec![0.0; tensors.get(name)?.numel()]));
        Ok(Sums {
            network: Network::new(spec, tensors, "the model", &Device::flex().autodiff())?,
            sums: sums.collect::<Result<_>>()?,
            names: names.into_iter().collect(),
        })
    }

    /// Adds `of` each gradient; one that is absent is zero.
    fn add(&mut self, found: Vec<Option<Vec<f32>>>, of: impl Fn(f64) -> f64) {
        for (sum, found) in self.sums.iter_mut().zip(found) {
            let found = found.into_iter().flatten();
            sum.iter_mut()
                .zip(found)
                .for_each(|(sum, gradient)| *sum += of(f64::from(gradient)));
        }
    }

    fn finish(self, tensors: &Tensors, factor: f64) -> Result<Tensors> {
        let mut out = Tensors::new();
        for (name, sum) in self.names.iter().zip(self.sums) {
            let values = sum.into_iter().map(|value| (value * factor) as f32).collect();
            out.insert_f32(name.as_str(), tensors.get(name)?.shape(), values)?;
        }
        Ok(out)
    }
}
