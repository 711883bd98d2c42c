//! A model ready to classify: compiled by the engine, or as the network that training uses.

use std::sync::atomic::AtomicBool;

#[cfg(feature = "train")]
use burn::tensor::Device;
use serde::Serialize;
use vitesse_engine::{Engine, Isa, Options, Precision};
#[cfg(feature = "train")]
use vitesse_model::network::Network;
use vitesse_model::{Checkpoint, Fusion, ModelSpec};
use vitesse_train::evaluate::{Classify, Heads};

#[cfg(feature = "train")]
use crate::Error;
use crate::error::check;
use crate::{Events, Progress, Result, origin};

/// What can run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The engine of this program: vision transformers, compiled for this processor.
    Engine,
    /// The network that training uses: every model, f32 only, slower.
    #[cfg(feature = "train")]
    Network,
}

/// The network of a checkpoint, for evaluation, and where it computes.
///
/// # Errors
/// Tensors that are not the spec's.
#[cfg(feature = "train")]
pub fn network(checkpoint: &Checkpoint) -> Result<(Network, Device)> {
    let device = Device::flex();
    let network = Network::new(
        &checkpoint.spec,
        &checkpoint.tensors,
        &origin(checkpoint),
        &device,
    )?;
    Ok((network, device))
}

/// A model ready to classify.
#[derive(Debug)]
pub enum Runner {
    /// Compiled for this processor.
    Engine(Box<Engine>),
    /// The network that training uses.
    #[cfg(feature = "train")]
    Network(Box<(Network, Device)>),
}

/// What computed a result.
#[derive(Debug, Clone, Serialize)]
pub struct Arithmetic {
    /// The engine, or what computes the network.
    pub engine: &'static str,
    /// The number format.
    pub precision: Precision,
    /// The instruction set, where the engine chose one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isa: Option<&'static str>,
}

impl Runner {
    /// The engine, unless the network is asked for or the model is none that the engine runs. Without a number of threads it has
    /// as many as rayon.
    ///
    /// # Errors
    /// A model that is not run so.
    pub fn new(
        checkpoint: &Checkpoint,
        backend: Option<Backend>,
        options: Options,
        events: &mut dyn Events,
    ) -> Result<Runner> {
        match choose(checkpoint, backend, options.precision, events)? {
            Backend::Engine => {
                let (spec, tensors, origin) = (&checkpoint.spec, &checkpoint.tensors, origin(checkpoint));
                let engine = Engine::new(spec, tensors, &origin, with_threads(options))?;
                Ok(Runner::Engine(Box::new(engine)))
            }
            #[cfg(feature = "train")]
            Backend::Network => Ok(Runner::Network(Box::new(network(checkpoint)?))),
        }
    }

    /// What the heads say about images `[batch, channels, height, width]`, normalised.
    ///
    /// # Errors
    /// Images of another size than the model's.
    pub fn heads(&self, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
        match self {
            Runner::Engine(engine) => heads(engine, images, shape),
            #[cfg(feature = "train")]
            Runner::Network(network) => {
                let (network, device) = &**network;
                vitesse_train::evaluate::Evaluated { network, device }.classify(images, shape)
            }
        }
    }

    /// How it computes.
    pub fn arithmetic(&self) -> Arithmetic {
        match self {
            Runner::Engine(engine) => Arithmetic::of_engine(engine.precision(), engine.isa()),
            #[cfg(feature = "train")]
            Runner::Network(_) => Arithmetic::of_network(),
        }
    }
}

impl Arithmetic {
    /// That of the engine.
    pub(crate) fn of_engine(precision: Precision, isa: Isa) -> Arithmetic {
        Arithmetic {
            engine: "vitesse",
            precision,
            isa: Some(isa.name()),
        }
    }

    /// That of the network.
    #[cfg(feature = "train")]
    pub(crate) fn of_network() -> Arithmetic {
        Arithmetic {
            engine: "burn",
            precision: Precision::F32,
            isa: None,
        }
    }
}

/// What computes a model: what is `asked` for, else the engine, and the network where the engine does not run the model, which is
/// said.
///
/// # Errors
/// [`Error::NetworkPrecision`].
pub(crate) fn choose(
    checkpoint: &Checkpoint,
    asked: Option<Backend>,
    precision: Precision,
    events: &mut dyn Events,
) -> Result<Backend> {
    #[cfg(feature = "train")]
    {
        let known = checkpoint.spec.is_transformer();
        if asked == Some(Backend::Network) || (asked.is_none() && !known) {
            if precision != Precision::F32 {
                return Err(Error::NetworkPrecision(precision));
            }
            if asked.is_none() {
                let text = format!(
                    "`{}` is not a vision transformer, so the network computes it and not the engine",
                    checkpoint.spec.architecture
                );
                events.say("note", &text);
            }
            return Ok(Backend::Network);
        }
    }
    #[cfg(not(feature = "train"))]
    let _ = (checkpoint, asked, precision, events);
    Ok(Backend::Engine)
}

/// The same with as many threads as rayon has, where no number is given.
pub(crate) fn with_threads(options: Options) -> Options {
    Options {
        threads: match options.threads {
            0 => rayon::current_num_threads(),
            threads => threads,
        },
        ..options
    }
}

impl Classify for Runner {
    fn spec(&self) -> &ModelSpec {
        match self {
            Runner::Engine(engine) => engine.spec(),
            #[cfg(feature = "train")]
            Runner::Network(network) => network.0.spec(),
        }
    }

    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
        self.heads(images, shape)
    }
}

/// Logits of some images, in their order.
#[derive(Debug, Clone, Default)]
pub struct Logits {
    /// Of both heads together, `[images, classes]`.
    pub joint: Vec<f32>,
    /// Of the class head.
    pub class: Vec<f32>,
    /// Of the distillation head; empty for a model with one head.
    pub distillation: Vec<f32>,
}

impl Runner {
    /// What the model says about `images`, normalised, of `shape` `[images, channels, height, width]`.
    ///
    /// # Errors
    /// Images of another size than the model's; [`crate::Error::Interrupted`] once `stop` was set.
    pub fn logits(
        &mut self,
        images: &[f32],
        shape: [usize; 4],
        (batch_size, fusion): (usize, Fusion),
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Logits> {
        let [total, channels, height, width] = shape;
        let size = channels * height * width;
        let mut logits = Logits::default();
        let mut at = Progress::of_images(total);
        events.progress(at);
        for batch in images.chunks((batch_size * size).max(1)) {
            let count = batch.len() / size.max(1);
            let heads = self.classify(batch, [count, channels, height, width])?;
            let classes = heads.class.len() / count.max(1);
            logits.joint.extend(heads.joint(fusion, classes));
            logits.class.extend(heads.class);
            logits
                .distillation
                .extend(heads.distillation.into_iter().flatten());
            at.done += count;
            events.progress(at);
            check(stop)?;
        }
        Ok(logits)
    }
}

/// What an engine says about images `[batch, channels, height, width]`.
fn heads(engine: &Engine, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
    let output = engine
        .run(images, shape[0])
        .map_err(|error| vitesse_train::Error::Classifier(Box::new(error)))?;
    Ok(Heads {
        class: output.class,
        distillation: Some(output.distillation).filter(|logits| !logits.is_empty()),
    })
}

/// An engine whose answers are written down.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    engine: &'a Engine,
    fusion: Fusion,
    /// The class of each image so far.
    pub(crate) predictions: Vec<usize>,
}

impl<'a> Recorder<'a> {
    /// Nothing is written down yet.
    pub(crate) fn new(engine: &'a Engine, fusion: Fusion) -> Recorder<'a> {
        Recorder {
            engine,
            fusion,
            predictions: Vec::new(),
        }
    }
}

impl Classify for Recorder<'_> {
    fn spec(&self) -> &ModelSpec {
        self.engine.spec()
    }

    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
        let heads = heads(self.engine, images, shape)?;
        let classes = self.engine.spec().num_classes.max(1);
        let scores = heads.joint(self.fusion, classes);
        self.predictions
            .extend(scores.chunks_exact(classes).map(likeliest));
        Ok(heads)
    }
}

/// The class with the highest score; of equal ones, the first.
fn likeliest(scores: &[f32]) -> usize {
    let better =
        |best: (usize, f32), (i, &score): (usize, &f32)| if score > best.1 { (i, score) } else { best };
    scores.iter().enumerate().fold((0, f32::NEG_INFINITY), better).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_scores_the_first_wins() {
        assert_eq!(likeliest(&[0.5, 2.0, 2.0, -1.0]), 1);
    }
}
