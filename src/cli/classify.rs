//! What `eval`, `predict` and `run` have in common: a model ready to classify, and images prepared for it.

#[cfg(feature = "train")]
use burn::tensor::Device;
use clap::ValueEnum;
use serde::Serialize;
use vitesse::data::{Interpolation, Preprocess};
use vitesse::engine::{Engine, Options, Precision};
#[cfg(feature = "train")]
use vitesse::model::network::Network;
use vitesse::model::{Checkpoint, Fusion, LoadOptions, ModelSpec};
use vitesse_train::evaluate::{Classifier, Heads};
use vitesse_train::prepare::preprocess;

use super::Console;
use super::args::{Backend, share};
#[cfg(feature = "train")]
use super::failure::Failure;
use super::failure::Result;

/// How images are prepared, as typed. What is not typed is as the checkpoint says.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Image preparation")]
pub(super) struct PreprocessArgs {
    /// Share of the resized image's side that the centre crop keeps, above 0 up to 1 [default: the checkpoint's]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    crop_pct: Option<f64>,
    /// Filter that resizes images [default: the checkpoint's]
    #[arg(long, value_enum, value_name = "FILTER")]
    interpolation: Option<Filter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Filter {
    Nearest,
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

/// How the two heads of a distilled model answer together, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Joint {
    /// The mean of their logits, as the released DeiT does
    LogitMean,
    /// The mean of their probabilities, as the paper writes
    Softmax,
    /// The class head alone
    Class,
    /// The distillation head alone
    Distillation,
}

impl Joint {
    pub(super) fn fusion(self) -> Fusion {
        match self {
            Joint::LogitMean => Fusion::LogitMean,
            Joint::Softmax => Fusion::SoftmaxMean,
            Joint::Class => Fusion::Class,
            Joint::Distillation => Fusion::Distillation,
        }
    }
}

impl PreprocessArgs {
    /// How images are prepared for `checkpoint`. One that does best on larger images than it was trained on becomes a model
    /// for those, as in timm.
    pub(super) fn plan(&self, checkpoint: &mut Checkpoint) -> Result<Preprocess> {
        let mut cfg = checkpoint.config.pretrained_cfg.clone();
        if let Some([_, height, width]) = cfg.test_input_size {
            checkpoint.set_img_size([height, width], LoadOptions::default().pos_embed)?;
            cfg.crop_pct = cfg.test_crop_pct.unwrap_or(cfg.crop_pct);
        }
        let mut plan = preprocess(&checkpoint.spec, &cfg)?;
        plan.crop_pct = self.crop_pct.unwrap_or(plan.crop_pct);
        if let Some(filter) = self.interpolation {
            plan.interpolation = match filter {
                Filter::Nearest => Interpolation::Nearest,
                Filter::Box => Interpolation::Box,
                Filter::Bilinear => Interpolation::Bilinear,
                Filter::Hamming => Interpolation::Hamming,
                Filter::Bicubic => Interpolation::Bicubic,
                Filter::Lanczos => Interpolation::Lanczos,
            };
        }
        Ok(plan)
    }
}

/// The network of a checkpoint, for evaluation, and where it computes.
#[cfg(feature = "train")]
pub(super) fn network(checkpoint: &Checkpoint) -> Result<(Network, Device)> {
    let device = Device::flex();
    let network = Network::new(
        &checkpoint.spec,
        &checkpoint.tensors,
        &origin(checkpoint),
        &device,
    )?;
    Ok((network, device))
}

/// Where the weights of a checkpoint come from, for errors.
pub(super) fn origin(checkpoint: &Checkpoint) -> String {
    let weights = &checkpoint.source.weights;
    weights
        .as_ref()
        .map_or_else(|| "fresh weights".to_owned(), |path| path.display().to_string())
}

/// A model ready to classify.
#[derive(Debug)]
pub(super) enum Runner {
    /// Compiled for this processor.
    Engine(Box<Engine>),
    /// The network that training uses.
    #[cfg(feature = "train")]
    Network(Box<(Network, Device)>),
}

/// What computed a result.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Arithmetic {
    pub(super) engine: &'static str,
    pub(super) precision: Precision,
    /// The instruction set, where the engine chose one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) isa: Option<&'static str>,
}

impl Runner {
    /// The engine, unless another is asked for or the model is none of its networks.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        backend: Option<Backend>,
        precision: Precision,
        console: &Console,
    ) -> Result<Runner> {
        #[cfg(feature = "train")]
        {
            let known = checkpoint.spec.vit().is_ok();
            if backend == Some(Backend::Burn) || (backend.is_none() && !known) {
                if precision != Precision::F32 {
                    let sentence = format!("the network computes in f32 only, not in {precision}");
                    return Err(Failure::new("E_MODEL_UNSUPPORTED", sentence)
                        .hint("leave --precision out, or take a vision transformer, which the engine runs"));
                }
                if backend.is_none() {
                    console.note(&format!(
                        "`{}` is no vision transformer: the network computes it, not the engine",
                        checkpoint.spec.architecture
                    ));
                }
                return Ok(Runner::Network(Box::new(network(checkpoint)?)));
            }
        }
        #[cfg(not(feature = "train"))]
        let _ = (backend, console);
        let options = Options {
            threads: rayon::current_num_threads(),
            precision,
            isa: None,
        };
        let engine = Engine::new(
            &checkpoint.spec,
            &checkpoint.tensors,
            &origin(checkpoint),
            options,
        )?;
        Ok(Runner::Engine(Box::new(engine)))
    }

    pub(super) fn arithmetic(&self) -> Arithmetic {
        match self {
            Runner::Engine(engine) => Arithmetic {
                engine: "vitesse",
                precision: engine.precision(),
                isa: Some(engine.isa().name()),
            },
            #[cfg(feature = "train")]
            Runner::Network(_) => Arithmetic {
                engine: "burn",
                precision: Precision::F32,
                isa: None,
            },
        }
    }
}

impl Classifier for Runner {
    fn spec(&self) -> &ModelSpec {
        match self {
            Runner::Engine(engine) => engine.spec(),
            #[cfg(feature = "train")]
            Runner::Network(network) => network.0.spec(),
        }
    }

    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
        match self {
            Runner::Engine(engine) => {
                let output = engine
                    .run(images, shape[0])
                    .map_err(|error| vitesse_train::Error::Classifier(Box::new(error)))?;
                Ok(Heads {
                    class: output.class,
                    distillation: Some(output.distillation).filter(|logits| !logits.is_empty()),
                })
            }
            #[cfg(feature = "train")]
            Runner::Network(network) => {
                let (network, device) = &**network;
                vitesse_train::evaluate::Evaluated { network, device }.classify(images, shape)
            }
        }
    }
}

/// An engine whose answers are written down.
pub(super) struct Recorder<'a> {
    engine: &'a Engine,
    fusion: Fusion,
    /// The class of each image so far.
    pub(super) predictions: Vec<usize>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(engine: &'a Engine, fusion: Fusion) -> Recorder<'a> {
        Recorder {
            engine,
            fusion,
            predictions: Vec::new(),
        }
    }
}

impl Classifier for Recorder<'_> {
    fn spec(&self) -> &ModelSpec {
        self.engine.spec()
    }

    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
        let output = self
            .engine
            .run(images, shape[0])
            .map_err(|error| vitesse_train::Error::Classifier(Box::new(error)))?;
        let heads = Heads {
            class: output.class,
            distillation: Some(output.distillation).filter(|logits| !logits.is_empty()),
        };
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
