//! What goes into a step, and what a step did.

use burn::tensor::{Device, Tensor, TensorData};
use vitesse_model::network::Logits;

use crate::objective::{Asked, Input};
use crate::parallel::{Team, WORDS};
use crate::{Error, Result};

/// Images with their target probabilities, where the network computes.
#[derive(Debug, Clone)]
pub struct Lesson {
    pub(crate) input: Input,
    pub(crate) targets: Tensor<2>,
}

impl Lesson {
    /// Normalised, augmented and mixed `images` of `shape` `[samples, channels, height, width]`, and rows of `targets`
    /// `[samples, classes]`. On the CPU nothing is copied.
    ///
    /// # Errors
    /// As many numbers as do not fit; no samples.
    pub fn new(
        images: Vec<f32>,
        shape: [usize; 4],
        targets: Vec<f32>,
        classes: usize,
        device: &Device,
    ) -> Result<Lesson> {
        let samples = shape[0];
        if samples == 0 {
            return Err(Error::Empty {
                what: "a training batch",
            });
        }
        let fits = |what, values: &[f32], width: usize| {
            if values.len() == samples * width {
                return Ok(());
            }
            let (expected, found) = ([samples, width], [samples, values.len() / samples]);
            Err(Error::Shape {
                what,
                expected,
                found,
            })
        };
        fits("images", &images, shape[1..].iter().product())?;
        fits("targets", &targets, classes)?;
        let device = device.clone().without_autodiff();
        Ok(Lesson {
            input: Input::Images(Tensor::from_data(TensorData::new(images, shape), &device)),
            targets: Tensor::from_data(TensorData::new(targets, [samples, classes]), &device),
        })
    }

    /// The same of `features` that were computed before, `[samples, features]` for each head.
    pub(crate) fn of_features(features: Logits, targets: Vec<f32>, device: &Device) -> Lesson {
        let samples = features.class.dims()[0];
        let shape = [samples, targets.len() / samples.max(1)];
        Lesson {
            input: Input::Features(features),
            targets: Tensor::from_data(TensorData::new(targets, shape), device),
        }
    }

    /// How many.
    pub fn samples(&self) -> usize {
        self.targets.dims()[0]
    }

    /// `count` of them from `first` on; a view.
    pub(crate) fn part(&self, first: usize, count: usize) -> Lesson {
        let input = match self.input.clone() {
            Input::Images(images) => Input::Images(images.narrow(0, first, count)),
            Input::Features(features) => Input::Features(Logits {
                class: features.class.narrow(0, first, count),
                distillation: features.distillation.map(|x| x.narrow(0, first, count)),
            }),
        };
        Lesson {
            input,
            targets: self.targets.clone().narrow(0, first, count),
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taken {
    /// What was minimised, mean over the samples.
    pub loss: f64,
    /// Its terms, before they are weighted.
    pub terms: Vec<(&'static str, f64)>,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
}

impl Taken {
    /// The value of a term; 0 if there is none of this name.
    pub fn term(&self, name: &str) -> f64 {
        let mut terms = self.terms.iter();
        terms
            .find(|(other, _)| *other == name)
            .map_or(0.0, |(_, value)| *value)
    }

    /// Adds a part that has this share of the whole.
    pub(super) fn add(&mut self, asked: &Asked, share: f64) {
        self.loss += share * asked.loss;
        if self.terms.is_empty() {
            self.terms = asked.terms.iter().map(|&(name, _)| (name, 0.0)).collect();
        }
        for ((_, sum), (_, value)) in self.terms.iter_mut().zip(&asked.terms) {
            *sum += share * value;
        }
    }

    /// Adds up the parts of all processes; whether any of them wants to stop.
    pub(super) fn share(&mut self, team: &Team, stop: bool) -> Result<bool> {
        let mut losses: Vec<&mut f64> = std::iter::once(&mut self.loss)
            .chain(self.terms.iter_mut().map(|(_, value)| value))
            .collect();
        let mut any = false;
        for some in losses.chunks_mut(WORDS) {
            let mut words = [0; WORDS];
            words
                .iter_mut()
                .zip(&*some)
                .for_each(|(word, loss)| *word = loss.to_bits());
            let meeting = team.meet(stop, words)?;
            any |= meeting.stop;
            some.iter_mut()
                .enumerate()
                .for_each(|(i, loss)| **loss = meeting.total(i));
        }
        Ok(any)
    }
}
