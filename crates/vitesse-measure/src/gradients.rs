//! Norms of gradients, layer by layer: of a model as it stands, or of one that learns.
//!
//! What is differentiated is cross-entropy against the labels, mean over a batch, with respect to the matrices of each layer. Where layers share
//! them, [`Uses`] tells what they contribute together from what each of them does. The model computes as in evaluation, on images that
//! are not augmented: what is seen is the model, not the recipe.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use serde::Serialize;
use vitesse_compress::share::uses::{Norms, Uses};
use vitesse_data::{Batch, DataSet, Loader, LoaderOptions, OnError, Order};
use vitesse_model::network::{Compute, Network};
use vitesse_model::{Checkpoint, Sites, Tensors};
use vitesse_train::adamw::OptimConfig;
use vitesse_train::classes::LabelsBy;
use vitesse_train::gradients::{Of, Over, gradients};
use vitesse_train::learner::{Learner, Lesson, Settings};
use vitesse_train::loss::{Distillation, target_rows};
use vitesse_train::state::State;

use crate::error::check;
use crate::finite::check_finite;
use crate::labelled::{Need, labelled};
use crate::{Error, Events, Progress, Result, origin};

const NEED: Need = Need {
    labels: "and gradients are those of a loss on labels; take labelled images",
    softmax: "and the gradients shown are those of a loss of classes of which an image has one",
};

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// So many batches of the shuffled images, which are gone through as often as that takes.
    pub batches: usize,
    /// Images of a batch; fewer where there are not so many.
    pub batch_size: usize,
    /// The rate at which AdamW learns from each batch after it was looked at; without one the model stays as it is.
    pub lr: Option<f64>,
    /// How the classes of the images and of the model find each other.
    pub labels_by: LabelsBy,
}

/// Euclidean norms of the gradients of one model, before any clipping.
#[derive(Debug, Clone, Serialize)]
pub struct GradientNorms {
    /// Images of each batch.
    pub batch_size: usize,
    /// Of all parameters together, batch by batch.
    pub grad_norm: Vec<f64>,
    /// What was minimised, batch by batch; nothing for a model that stays as it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loss: Vec<f64>,
    /// Of the matrices of each layer.
    pub layers: Vec<LayerNorms>,
}

/// Norms of the gradients of a layer's matrices, biases and, in a Swin, the table of relative positions included, batch by batch.
#[derive(Debug, Clone, Serialize)]
pub struct LayerNorms {
    /// The layer, from 0.
    pub layer: usize,
    /// The layers that have its matrices, this one included.
    pub group: Vec<usize>,
    /// Of what all of these contribute together; nothing for a layer without matrices.
    pub summed: Vec<f64>,
    /// Of what this layer alone contributes.
    pub per_use: Vec<f64>,
}

/// Looks at the gradients of `model` on the images of `data`, which is called `name`.
///
/// # Errors
/// A network without layers that could share, one with weights that are not finite; images without labels or with other classes than the
/// model's; a loss that is not finite; [`Error::Interrupted`] once `stop` was set.
pub fn gradient_norms(
    model: &Checkpoint,
    (data, name): (&DataSet, &str),
    how: How,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<GradientNorms> {
    let uses = Uses::new(&model.spec)?;
    check_finite(model)?;
    let data = labelled(data, name, model, how.labels_by, NEED, events)?;
    let batch_size = how.batch_size.min(data.len());
    if batch_size < how.batch_size {
        events.say(
            "note",
            &format!("`{name}` has {batch_size} labelled images, so a batch has no more"),
        );
    }
    let options = LoaderOptions {
        batch_size,
        order: Order::Shuffled,
        drop_last: true,
        on_error: OnError::Replace,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(data, model.preprocess()?, options)?;
    let mut looking = Looking {
        network: network(model, &uses, &model.tensors)?,
        learner: how
            .lr
            .map(|lr| Ok::<_, Error>((learner(model)?, lr)))
            .transpose()?,
        found: GradientNorms::of(model, batch_size),
        uses,
        model,
    };
    let mut progress = Progress {
        about: "",
        unit: "batches",
        done: 0,
        total: how.batches,
    };
    events.progress(progress);
    for epoch in 0.. {
        for batch in loader.epoch(epoch)?.take(how.batches - progress.done) {
            check(stop)?;
            looking.at(batch?, loader.data(), epoch as usize)?;
            progress.done += 1;
            events.progress(progress);
        }
        if progress.done == how.batches {
            break;
        }
    }
    Ok(looking.found)
}

/// A model under way.
struct Looking<'a> {
    model: &'a Checkpoint,
    uses: Uses,
    /// The untied copy.
    network: Network,
    /// The model itself, if it learns, and the rate.
    learner: Option<(Learner, f64)>,
    found: GradientNorms,
}

impl Looking<'_> {
    fn at(&mut self, batch: Batch, data: &DataSet, epoch: usize) -> Result<()> {
        /// Names of images that are told.
        const TOLD: usize = 3;
        let classes = self.model.spec.num_classes;
        let targets = target_rows(&batch.classes(data)?, classes, 0.0)?;
        let lesson = Lesson::new(batch.images, batch.shape, targets, classes, &Device::flex())?;
        let of = Of {
            network: &self.network,
            names: &self.uses.names(),
            objective: &Distillation::default(),
            teacher: None,
        };
        let (step, lr) = (
            self.found.grad_norm.len(),
            self.learner.as_ref().map(|(_, lr)| *lr),
        );
        let diverged = |error| match (error, lr) {
            (vitesse_train::Error::NotFinite { what, value }, Some(lr)) => {
                let names = batch.indices.iter().take(TOLD).map(|&index| data.name(index));
                vitesse_train::Error::Diverged {
                    what,
                    value,
                    step,
                    epoch,
                    lr,
                    files: names.collect::<Vec<_>>().join(", "),
                }
            }
            (error, _) => error,
        };
        let gradients = gradients(of, &lesson, Over::Mean).map_err(diverged)?;
        self.found.push(self.uses.norms(&gradients));
        let Some((learner, lr)) = &mut self.learner else {
            return Ok(());
        };
        self.found
            .loss
            .push(learner.step(&lesson, *lr).map_err(diverged)?.loss);
        self.network = network(self.model, &self.uses, &learner.state().tensors(false)?)?;
        Ok(())
    }
}

/// The untied copy of a model with these weights.
fn network(model: &Checkpoint, uses: &Uses, tensors: &Tensors) -> Result<Network> {
    let (tensors, device) = (uses.tensors(tensors)?, Device::flex().autodiff());
    Ok(Network::new(uses.spec(), &tensors, &origin(model), &device)?)
}

fn learner(model: &Checkpoint) -> Result<Learner> {
    let optim = OptimConfig::default();
    let state = State::new(model, &optim, false, &|_| true)?;
    let settings = Settings {
        optim,
        ema_decay: 0.0,
        drop_path: 0.0,
        eval_mode: true,
        accumulate: 1,
        seed: 0,
        compute: Compute::default(),
    };
    let objective = Box::new(Distillation::default());
    Ok(Learner::new(state, settings, objective, None, &Device::flex())?)
}

impl GradientNorms {
    /// Of no batch yet.
    fn of(model: &Checkpoint, batch_size: usize) -> GradientNorms {
        let layers = (0..model.spec.depth()).map(|layer| LayerNorms {
            layer,
            group: model.spec.group_of(layer),
            summed: Vec::new(),
            per_use: Vec::new(),
        });
        GradientNorms {
            batch_size,
            grad_norm: Vec::new(),
            loss: Vec::new(),
            layers: layers.collect(),
        }
    }

    fn push(&mut self, norms: Norms) {
        self.grad_norm.push(norms.all);
        let of_layers = norms.summed.into_iter().zip(norms.per_use);
        for (layer, (summed, per_use)) in self.layers.iter_mut().zip(of_layers) {
            layer.summed.extend(summed);
            layer.per_use.extend(per_use);
        }
    }
}

#[cfg(test)]
mod tests {
    use vitesse_data::{OpenOptions, Split, open};
    use vitesse_model::spec::{Groups, NormsOf};

    use super::*;

    #[test]
    fn a_model_that_learns_shows_the_norms_by_which_it_is_clipped() {
        let mut model = Checkpoint::fresh("deit_nano_patch8_32", Some(8), None, 3).unwrap();
        model.spec = model.spec.share(&Groups::Of(2), NormsOf::Layer).unwrap();
        model.tensors = model.spec.init(3).unwrap();
        let options = OpenOptions {
            split: Some(Split::Train),
            ..OpenOptions::default()
        };
        let data = open("shapes", &options).unwrap().limit(20, 0);
        let look = |lr| {
            let how = How {
                batches: 4,
                batch_size: 8,
                lr,
                labels_by: LabelsBy::Name,
            };
            gradient_norms(&model, (&data, "shapes"), how, &AtomicBool::new(false), &mut ()).unwrap()
        };
        let (still, learning) = (look(None), look(Some(1e-3)));
        assert_eq!((still.loss.len(), learning.loss.len()), (0, 4));
        // Two batches an epoch: the third is of the second epoch's order.
        assert_eq!(still.grad_norm.len(), 4);
        assert_eq!(still.grad_norm[0], learning.grad_norm[0]);
        assert!(still.grad_norm[1] != learning.grad_norm[1]);
        assert_eq!(still.layers[3].group, [2, 3]);
        // The optimiser's own norm, of the model that shares: the same steps once more.
        let loader = LoaderOptions {
            batch_size: 8,
            order: Order::Shuffled,
            drop_last: true,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(data.clone(), model.preprocess().unwrap(), loader).unwrap();
        let mut learner = learner(&model).unwrap();
        for (batch, expected) in loader.epoch(0).unwrap().zip(&learning.grad_norm) {
            let batch = batch.unwrap();
            let targets = target_rows(&batch.classes(&data).unwrap(), 8, 0.0).unwrap();
            let lesson = Lesson::new(batch.images, batch.shape, targets, 8, &Device::flex()).unwrap();
            let norm = learner.step(&lesson, 1e-3).unwrap().grad_norm;
            assert!((norm - expected).abs() < 1e-4 * expected, "{norm} {expected}");
        }
    }
}
