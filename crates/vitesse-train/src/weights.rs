//! Weights and gradients between the Burn network and plain slices.
//!
//! The optimiser owns the weights, as `f32` slices by tensor name; the network is a view that is refreshed after each
//! step. What links the two are the parameters' ids, which are hashes of the tensors' names.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use vitesse_model::network::{Network, param_id};

use crate::{Error, Result};

/// What each tensor's gradient is, in their order; `None` where the loss does not depend on it.
pub type Gradients = Vec<Option<Vec<f32>>>;

/// Where in a list the tensor of each parameter stands.
#[derive(Debug, Clone)]
pub struct Ids(HashMap<ParamId, usize>);

impl Ids {
    /// The ids of these tensors, in this order.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Ids(names
            .into_iter()
            .enumerate()
            .map(|(i, name)| (param_id(name), i))
            .collect())
    }
}

/// Adds the network's gradients to `sums`, which has one entry for each of `ids`. A tensor that the loss does not
/// depend on leaves its entry as it is.
///
/// # Errors
/// None that a network built from its own spec could cause.
pub fn add_gradients(
    network: &Network,
    gradients: &mut burn::tensor::Gradients,
    ids: &Ids,
    sums: &mut [Option<Vec<f32>>],
) -> Result<()> {
    struct Collect<'a> {
        gradients: &'a mut burn::tensor::Gradients,
        ids: &'a Ids,
        sums: &'a mut [Option<Vec<f32>>],
        failed: Option<String>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(sum) = self.ids.0.get(&param.id).and_then(|&i| self.sums.get_mut(i)) else {
                return;
            };
            let Some(gradient) = param.val().grad_remove(self.gradients) else {
                return;
            };
            match (gradient.into_data().try_into_vec::<f32>(), sum) {
                (Ok(new), Some(sum)) => sum.par_iter_mut().zip(new).for_each(|(sum, new)| *sum += new),
                (Ok(new), sum) => *sum = Some(new),
                (Err(error), _) => self.failed = Some(format!("{error:?}")),
            }
        }
    }
    let mut collect = Collect {
        gradients,
        ids,
        sums,
        failed: None,
    };
    network.visit(&mut collect);
    match collect.failed {
        Some(error) => Err(Error::Backend(format!("reading gradients: {error}"))),
        None => Ok(()),
    }
}

/// Copies of one kind of value of each item, where it has one; one thread an item.
pub fn copies<T: Sync>(items: &[T], value: impl Fn(&T) -> Option<&[f32]> + Sync) -> Vec<Option<Vec<f32>>> {
    items
        .par_iter()
        .map(|item| value(item).map(<[f32]>::to_vec))
        .collect()
}

/// The network with new values for the tensors of `ids`; those without one, and all others, keep theirs.
pub fn refresh(network: Network, ids: &Ids, values: Vec<Option<Vec<f32>>>) -> Network {
    struct Replace<'a>(&'a Ids, Vec<Option<Vec<f32>>>);
    impl ModuleMapper for Replace<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let place = self.0.0.get(&param.id).and_then(|&i| self.1.get_mut(i));
            let Some(values) = place.and_then(Option::take) else {
                return param;
            };
            param.map(|old| {
                let data = TensorData::new(values, old.shape());
                Tensor::from_data(data, &old.device()).set_require_grad(old.is_require_grad())
            })
        }
    }
    network.map(&mut Replace(ids, values))
}

/// The network in which only the tensors of `ids` ask for gradients.
pub fn train_only(network: Network, ids: &Ids) -> Network {
    struct Freeze<'a>(&'a Ids);
    impl ModuleMapper for Freeze<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let trained = self.0.0.contains_key(&param.id);
            param.set_require_grad(trained)
        }
    }
    network.map(&mut Freeze(ids))
}
