//! What a frozen network's heads read, computed once.
//!
//! Where nothing but the heads learns, the network computes as in evaluation, and an image is the same each time, the
//! features of an image are the same in every epoch. Then an epoch is a product with the heads alone, and a hundred of them
//! cost little more than one.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use vitesse_data::{DataSet, Failure, Loader, LoaderOptions, OnError, Transform};
use vitesse_model::network::{Compute, Ctx, Logits, Network};

use crate::evaluate::{EvalProgress, Heads};
use crate::loss::rows;
use crate::objective::Wants;
use crate::recipe::Recipe;
use crate::state::State;
use crate::{Error, Result};

/// Images a batch.
const BATCH: usize = 32;
/// The most memory that features may take, in numbers.
const MOST: usize = 1 << 28;

/// The features of every image of a data set.
#[derive(Debug)]
pub(crate) struct Features {
    /// Numbers of an image: of each head, one after the other.
    width: usize,
    distilled: bool,
    /// `[images, width]`; zeros for those that could not be read.
    values: Vec<f32>,
    /// What could not be read.
    pub(crate) failures: Vec<Failure>,
}

/// Whether a run may work on features: all that is trained are heads, they see the same of each of `images` images in every
/// epoch, and what is minimised is read from what they say. (Hooks change nothing but what is trained.)
pub(crate) fn suffice(recipe: &Recipe, state: &State, wants: &Wants, images: usize) -> bool {
    let heads = state.spec.classifiers();
    let of_head = |name: &str| {
        heads.iter().any(|head| {
            name.strip_prefix(head)
                .is_some_and(|end| end == ".weight" || end == ".bias")
        })
    };
    recipe.model.eval_mode
        && *wants == Wants::default()
        && recipe.augment.is_fixed()
        && state.slots.iter().all(|slot| of_head(&slot.name))
        && images * state.spec.num_features() * heads.len() <= MOST
}

impl Features {
    /// Runs `network` on all of `data`, prepared by `transform`, computing as `compute` says.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `stop` was set, [`Error::NothingReadable`], and what the network says.
    pub(crate) fn of(
        (network, device): (&Network, &Device),
        compute: Compute,
        data: &DataSet,
        transform: impl Transform + 'static,
        workers: usize,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(EvalProgress),
    ) -> Result<Features> {
        let options = LoaderOptions {
            batch_size: BATCH,
            workers,
            on_error: OnError::Skip,
            ..LoaderOptions::default()
        };
        let mut features = Features {
            width: 0,
            distilled: false,
            values: Vec::new(),
            failures: Vec::new(),
        };
        let mut done = 0;
        for batch in Loader::new(data.clone(), transform, options)?.epoch(0)? {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let batch = batch?;
            done += batch.len() + batch.failures.len();
            features.failures.extend(batch.failures);
            if !batch.indices.is_empty() {
                let images = Tensor::from_data(TensorData::new(batch.images, batch.shape), device);
                let mut ctx = Ctx::eval();
                ctx.compute = compute;
                let found = rayon::scope(|_| network.features(images, &mut ctx))?;
                features.put(data.len(), &batch.indices, &found)?;
            }
            progress(EvalProgress {
                done,
                total: data.len(),
            });
        }
        if features.values.is_empty() {
            let first = features.failures.first();
            return Err(Error::NothingReadable {
                samples: data.len(),
                first: first.map(|failure| failure.reason.clone()).unwrap_or_default(),
            });
        }
        Ok(features)
    }

    /// Keeps the features of the images `indices` of `images`.
    fn put(&mut self, images: usize, indices: &[usize], found: &Logits) -> Result<()> {
        let heads = std::iter::once(&found.class).chain(&found.distillation);
        let heads: Vec<Vec<f32>> = heads.map(rows).collect::<Result<_>>()?;
        let dim = found.class.dims()[1];
        self.width = dim * heads.len();
        self.distilled = heads.len() > 1;
        self.values.resize(images * self.width, 0.0);
        for (at, &index) in indices.iter().enumerate() {
            let row = heads.iter().flat_map(|head| head.iter().skip(at * dim).take(dim));
            let place = self.values.iter_mut().skip(index * self.width);
            place.zip(row).for_each(|(place, &value)| *place = value);
        }
        Ok(())
    }

    /// An image that could be read: `index`, or the next one after it.
    pub(crate) fn readable(&self, index: usize) -> usize {
        let images = self.values.len() / self.width.max(1);
        let torn = |i: &usize| self.failures.iter().any(|failure| failure.index == *i);
        (index..images)
            .chain(0..index)
            .find(|i| !torn(i))
            .unwrap_or(index)
    }

    /// The features of some images as the heads read them.
    pub(crate) fn batch(&self, indices: &[usize], device: &Device) -> Logits {
        let row = |&index: &usize| self.values.iter().skip(index * self.width).take(self.width);
        let values: Vec<f32> = indices.iter().flat_map(row).copied().collect();
        let all = Tensor::<2>::from_data(TensorData::new(values, [indices.len(), self.width]), device);
        split(all, self.distilled)
    }

    /// What the heads of `network` say about every image that could be read, with the images' numbers, some at a time.
    pub(crate) fn classify<'a>(
        &'a self,
        network: &'a Network,
        device: &'a Device,
        images: usize,
    ) -> impl Iterator<Item = Result<(Vec<usize>, Heads)>> + 'a {
        let torn = move |i: &usize| self.failures.iter().any(|failure| failure.index == *i);
        let readable: Vec<usize> = (0..images).filter(|i| !torn(i)).collect();
        let batches: Vec<Vec<usize>> = readable.chunks(1024).map(<[usize]>::to_vec).collect();
        batches.into_iter().map(move |indices| {
            let logits = network.heads(self.batch(&indices, device), &Ctx::eval());
            let heads = Heads {
                class: rows(&logits.class)?,
                distillation: logits.distillation.as_ref().map(rows).transpose()?,
            };
            Ok((indices, heads))
        })
    }
}

/// Features of all heads side by side, head by head.
fn split(all: Tensor<2>, distilled: bool) -> Logits {
    if !distilled {
        return Logits {
            class: all,
            distillation: None,
        };
    }
    let half = all.dims()[1] / 2;
    Logits {
        class: all.clone().narrow(1, 0, half),
        distillation: Some(all.narrow(1, half, half)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, prepared, vit};

    #[test]
    fn features_are_the_networks_and_torn_images_have_stand_ins() {
        let (model, device, data) = (vit(4), Device::flex(), noise(43));
        let network = Network::new(&model.spec, &model.tensors, "test", &device).unwrap();
        let (mut done, stop) = (0, AtomicBool::new(false));
        let mut progress = |at: EvalProgress| done = at.done;
        let on = (&network, &device);
        let of = |stop: &AtomicBool, progress: &mut dyn FnMut(EvalProgress)| {
            Features::of(on, Compute::default(), &data, prepared(), 1, stop, progress)
        };
        let features = of(&stop, &mut progress).unwrap();
        assert_eq!(done, 43);
        let torn: Vec<usize> = features.failures.iter().map(|failure| failure.index).collect();
        assert_eq!(torn, [5, 15, 25, 35]);
        assert_eq!([4, 5, 35].map(|index| features.readable(index)), [4, 6, 36]);
        // Both heads, image by image, from two batches.
        for index in [0, 17, 42] {
            let image = prepared().run(&data.load(index).unwrap()).unwrap();
            let image = Tensor::from_data(TensorData::new(image, [1, 3, 8, 8]), &device);
            let logits = network.forward(image, &mut Ctx::eval()).unwrap();
            let found = network.heads(features.batch(&[index], &device), &Ctx::eval());
            let heads = [
                (logits.class, found.class),
                (logits.distillation.unwrap(), found.distillation.unwrap()),
            ];
            for (expected, found) in heads {
                let pairs = rows(&expected).unwrap().into_iter().zip(rows(&found).unwrap());
                assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5), "{index}");
            }
        }
        let said: Vec<usize> = features
            .classify(&network, &device, data.len())
            .flat_map(|batch| batch.unwrap().0)
            .collect();
        assert_eq!((said.len(), said.contains(&5)), (39, false));
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(of(&stop, &mut |_| {}), Err(Error::Interrupted)));
    }
}
