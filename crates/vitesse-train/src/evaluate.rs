//! How good a model is on a data set.
//!
//! Samples are visited once, in order, prepared as the checkpoint says. The result does not depend on the batch size
//! but for the rounding of the model's own arithmetic. An image that cannot be read is left out and named. Several
//! processes take a stretch of the samples each; what they count together is what one would count.

use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use serde::Serialize;
use vitesse_data::{Batch, DataSet, Failure, Loader, LoaderOptions, OnError, Preprocess};
use vitesse_model::{Fusion, ModelSpec};

use crate::metrics::{Counter, Metrics, Scores};
use crate::parallel::Team;
use crate::{Error, Result};

#[cfg(feature = "train")]
pub use network::Evaluated;

/// How to evaluate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalOptions {
    /// Samples a batch, at least 1. Default 64.
    pub batch_size: usize,
    /// Threads that read images; 0, the default, is one for each core.
    pub workers: usize,
    /// How the heads of a distilled model become one prediction.
    pub fusion: Fusion,
}

impl Default for EvalOptions {
    fn default() -> Self {
        EvalOptions {
            batch_size: 64,
            workers: 0,
            fusion: Fusion::default(),
        }
    }
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalProgress {
    /// Samples read so far, those that could not be included.
    pub done: usize,
    /// All samples.
    pub total: usize,
}

/// What an evaluation found.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// The prediction of both heads together, as [`EvalOptions::fusion`] says.
    pub joint: Metrics,
    /// Each head of a distilled model by itself.
    pub heads: Option<HeadMetrics>,
    /// The images that could not be read; they are in no metric.
    #[serde(serialize_with = "names")]
    pub failures: Vec<Failure>,
    /// Where the time went.
    pub timing: Timing,
}

/// The two heads of a distilled model.
#[derive(Debug, Clone, Serialize)]
pub struct HeadMetrics {
    /// The class head alone.
    pub class: Metrics,
    /// The distillation head alone.
    pub distillation: Metrics,
}

/// Where the time of an evaluation went.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timing {
    /// Waiting for images, in seconds; they are read while the model computes.
    #[serde(rename = "load_seconds", serialize_with = "seconds")]
    pub load: Duration,
    /// Computing, in seconds.
    #[serde(rename = "forward_seconds", serialize_with = "seconds")]
    pub forward: Duration,
}

fn names<S: serde::Serializer>(failures: &[Failure], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(failures.iter().map(|failure| &failure.name))
}

fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}

/// Anything that classifies: a network, or an engine compiled from one.
pub trait Classify {
    /// What the model is.
    fn spec(&self) -> &ModelSpec;

    /// The heads' logits for images `[batch, channels, height, width]`, normalised as the checkpoint says.
    ///
    /// # Errors
    /// Whatever keeps the model from computing them; [`Error::Model`] and [`Error::Classifier`] are meant for it.
    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> Result<Heads>;
}

/// What a classifier says about a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    /// The class head's logits, `[batch, classes]`.
    pub class: Vec<f32>,
    /// The distillation head's, for distilled models.
    pub distillation: Option<Vec<f32>>,
}

impl Heads {
    /// One prediction from both heads, `[batch, classes]`, as [`Fusion`] defines it.
    pub fn joint(&self, fusion: Fusion, classes: usize) -> Vec<f32> {
        let mean = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect();
        match (fusion, &self.distillation) {
            (Fusion::LogitMean, Some(other)) => mean(&self.class, other),
            (Fusion::SoftmaxMean, Some(other)) => {
                mean(&softmax(&self.class, classes), &softmax(other, classes))
            }
            (Fusion::SoftmaxMean, None) => softmax(&self.class, classes),
            (Fusion::Distillation, Some(other)) => other.clone(),
            _ => self.class.clone(),
        }
    }
}

/// Rows of logits to rows of probabilities.
fn softmax(logits: &[f32], classes: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = row.iter().map(|&x| f64::from(x - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.into_iter().map(move |x| (x / sum) as f32)
    };
    logits.chunks_exact(classes.max(1)).flat_map(row).collect()
}

/// Evaluates `model` on `data`. `progress` is called after each batch and may break off.
///
/// # Errors
/// A model without classes, images prepared for another size than the model's, samples without a label or with one
/// that the model does not know, no readable sample at all; [`Error::Interrupted`] when `progress` breaks off.
pub fn evaluate(
    model: &mut dyn Classify,
    data: &DataSet,
    preprocess: &Preprocess,
    options: EvalOptions,
    progress: &mut dyn FnMut(EvalProgress) -> ControlFlow<()>,
) -> Result<Evaluation> {
    evaluate_together(&Team::alone(), model, data, preprocess, options, progress)
}

/// As [`evaluate`], by all processes of `team`: each takes its stretch of the samples, and all return the same, but for the
/// time it took them.
///
/// # Errors
/// As [`evaluate`], of this process; [`Error::Peer`] and [`Error::Lost`] because of another.
pub fn evaluate_together(
    team: &Team,
    model: &mut dyn Classify,
    data: &DataSet,
    preprocess: &Preprocess,
    options: EvalOptions,
    progress: &mut dyn FnMut(EvalProgress) -> ControlFlow<()>,
) -> Result<Evaluation> {
    check(model.spec(), data, preprocess)?;
    let cut = |rank| data.len() * rank / team.size();
    let stretch = cut(team.rank())..cut(team.rank() + 1);
    let tally = Tally::new(model.spec(), options.fusion);
    let mut part = Part {
        tally: tally.clone(),
        failures: Vec::new(),
        timing: Timing::default(),
    };
    let go_on = if stretch.is_empty() {
        ControlFlow::Continue(())
    } else {
        part.count(model, data, stretch, preprocess, options, progress)?
    };
    if team.meet(go_on.is_break(), Default::default())?.stop {
        return Err(Error::Interrupted);
    }
    let (joint, heads, failures) = if team.size() == 1 {
        let (joint, heads) = part.tally.finish();
        (joint, heads, part.failures)
    } else {
        merge(team, tally, &part)?
    };
    if joint.samples == 0 {
        let first = failures
            .first()
            .map(|failure: &Failure| failure.reason.clone())
            .unwrap_or_default();
        return Err(Error::NothingReadable {
            samples: data.len(),
            first,
        });
    }
    Ok(Evaluation {
        joint,
        heads,
        failures,
        timing: part.timing,
    })
}

/// What `said` comes to, the numbers of some images and what a model's heads say about them, one after the other; `failures`
/// are those that it says nothing about.
#[cfg(feature = "train")]
pub(crate) fn count(
    spec: &ModelSpec,
    data: &DataSet,
    fusion: Fusion,
    failures: Vec<Failure>,
    said: impl Iterator<Item = Result<(Vec<usize>, Heads)>>,
) -> Result<Evaluation> {
    let begun = Instant::now();
    let mut tally = Tally::new(spec, fusion);
    for batch in said {
        let (indices, heads) = batch?;
        tally.add(&heads, &labels(data, &indices)?)?;
    }
    let (joint, heads) = tally.finish();
    Ok(Evaluation {
        joint,
        heads,
        failures,
        timing: Timing {
            load: Duration::ZERO,
            forward: begun.elapsed(),
        },
    })
}

/// The classes of some images.
#[cfg(feature = "train")]
pub(crate) fn labels(data: &DataSet, indices: &[usize]) -> Result<Vec<usize>> {
    let label = |&index: &usize| {
        let name = || data.name(index);
        data.label(index)
            .ok_or_else(|| vitesse_data::Error::NoLabel { name: name() })
    };
    Ok(indices.iter().map(label).collect::<std::result::Result<_, _>>()?)
}

/// What one process has counted.
struct Part {
    tally: Tally,
    failures: Vec<Failure>,
    timing: Timing,
}

impl Part {
    /// Counts a stretch of the samples, until it ends or `progress` breaks off.
    fn count(
        &mut self,
        model: &mut dyn Classify,
        data: &DataSet,
        stretch: Range<usize>,
        preprocess: &Preprocess,
        options: EvalOptions,
        progress: &mut dyn FnMut(EvalProgress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let loader = LoaderOptions {
            batch_size: options.batch_size,
            workers: options.workers,
            on_error: OnError::Skip,
            ..LoaderOptions::default()
        };
        let (begin, count, total) = (stretch.start, stretch.len(), data.len());
        let data = if count == total {
            data.clone()
        } else {
            data.subset(&stretch.collect::<Vec<_>>())
        };
        let loader = Loader::new(data.clone(), preprocess.clone(), loader)?;
        let mut done = 0;
        let mut waiting = Instant::now();
        for batch in loader.epoch(0)? {
            let batch = batch?;
            self.timing.load += waiting.elapsed();
            done += batch.len() + batch.failures.len();
            if !batch.is_empty() {
                let labels = batch.classes(&data)?;
                let computing = Instant::now();
                let Batch { images, shape, .. } = batch;
                self.tally.add(&model.classify(&images, shape)?, &labels)?;
                self.timing.forward += computing.elapsed();
            }
            let failures = batch.failures.into_iter();
            self.failures.extend(failures.map(|failure| Failure {
                index: begin + failure.index,
                ..failure
            }));
            // As far as this process is with its stretch, all are with everything.
            let at = EvalProgress {
                done: done * total / count,
                total,
            };
            if progress(at).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            waiting = Instant::now();
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What all processes have counted, given the empty `tally`.
fn merge(team: &Team, mut tally: Tally, mine: &Part) -> Result<(Metrics, Option<HeadMetrics>, Vec<Failure>)> {
    for words in team.gather(mine.tally.words())? {
        tally.absorb(&words);
    }
    let text: String = mine
        .failures
        .iter()
        .map(|failure| format!("{}\0{}\0{}\0", failure.index, failure.name, failure.reason))
        .collect();
    let mut failures = Vec::new();
    for words in team.gather(text.bytes().map(u64::from).collect())? {
        let bytes: Vec<u8> = words.into_iter().map(|word| word as u8).collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut fields = text.split('\0');
        while let (Some(index), Some(name), Some(reason)) = (fields.next(), fields.next(), fields.next()) {
            failures.push(Failure {
                index: index.parse().unwrap_or_default(),
                name: name.to_owned(),
                reason: reason.to_owned(),
            });
        }
    }
    let (joint, heads) = tally.finish();
    Ok((joint, heads, failures))
}

fn check(spec: &ModelSpec, data: &DataSet, preprocess: &Preprocess) -> Result<()> {
    if data.is_empty() {
        return Err(Error::Empty {
            what: "the data set to evaluate on",
        });
    }
    if spec.num_classes == 0 {
        return Err(Error::NoClasses {
            architecture: spec.architecture.clone(),
        });
    }
    if preprocess.input_size != spec.input_size() {
        return Err(Error::InputSize {
            architecture: spec.architecture.clone(),
            expected: spec.input_size(),
            found: preprocess.input_size,
        });
    }
    Ok(())
}

/// Counts the heads and their fusion.
#[derive(Clone)]
struct Tally {
    fusion: Fusion,
    classes: usize,
    joint: Counter,
    heads: [Counter; 2],
    distilled: bool,
}

impl Tally {
    fn new(spec: &ModelSpec, fusion: Fusion) -> Self {
        let scores = if fusion == Fusion::SoftmaxMean {
            Scores::Probabilities
        } else {
            Scores::Logits
        };
        let head = Counter::new(spec.num_classes, Scores::Logits);
        Tally {
            fusion,
            classes: spec.num_classes,
            joint: Counter::new(spec.num_classes, scores),
            heads: [head.clone(), head],
            distilled: false,
        }
    }

    fn add(&mut self, heads: &Heads, labels: &[usize]) -> Result<()> {
        self.joint.add(&heads.joint(self.fusion, self.classes), labels)?;
        if let Some(distillation) = &heads.distillation {
            self.distilled = true;
            let [class, other] = &mut self.heads;
            class.add(&heads.class, labels)?;
            other.add(distillation, labels)?;
        }
        Ok(())
    }

    /// What was counted, in words that [`Tally::absorb`] reads.
    fn words(&self) -> Vec<u64> {
        let [class, distillation] = &self.heads;
        let counters = [&self.joint, class, distillation].map(Counter::words);
        [vec![u64::from(self.distilled)], counters.concat()].concat()
    }

    /// Adds what another process has counted.
    fn absorb(&mut self, words: &[u64]) {
        let Some((&distilled, words)) = words.split_first() else {
            return;
        };
        self.distilled |= distilled == 1;
        let [class, distillation] = &mut self.heads;
        let rest = class.absorb(self.joint.absorb(words));
        distillation.absorb(rest);
    }

    fn finish(self) -> (Metrics, Option<HeadMetrics>) {
        let [class, distillation] = self.heads;
        let heads = self.distilled.then(|| HeadMetrics {
            class: class.finish(),
            distillation: distillation.finish(),
        });
        (self.joint.finish(), heads)
    }
}

#[cfg(feature = "train")]
mod network {
    use burn::tensor::{Device, Tensor, TensorData};
    use vitesse_model::ModelSpec;
    use vitesse_model::network::{Ctx, Network};

    use super::{Classify, Heads};
    use crate::Result;
    use crate::loss::rows;

    /// A network in evaluation mode on its device.
    #[derive(Debug)]
    pub struct Evaluated<'a> {
        /// Without gradients: `Module::valid` of a network that is trained.
        pub network: &'a Network,
        /// Where it computes.
        pub device: &'a Device,
    }

    impl Classify for Evaluated<'_> {
        fn spec(&self) -> &ModelSpec {
            self.network.spec()
        }

        fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> Result<Heads> {
            let images = Tensor::from_data(TensorData::new(images.to_vec(), shape), self.device);
            let logits = self.network.forward(images, &mut Ctx::eval())?;
            Ok(Heads {
                class: rows(&logits.class)?,
                distillation: logits.distillation.as_ref().map(rows).transpose()?,
            })
        }
    }
}

#[cfg(test)]
#[cfg(feature = "train")]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use vitesse_model::network::{Ctx, Network};

    use super::*;
    use crate::loss::rows;
    use crate::testing::{noise, prepared, vit};

    fn network() -> Network {
        let model = vit(4);
        Network::new(&model.spec, &model.tensors, "test", &Device::flex()).unwrap()
    }

    fn run(data: &DataSet, batch_size: usize, fusion: Fusion) -> Result<Evaluation> {
        let (network, device) = (network(), Device::flex());
        let options = EvalOptions {
            batch_size,
            workers: 1,
            fusion,
        };
        let mut model = Evaluated {
            network: &network,
            device: &device,
        };
        evaluate(&mut model, data, &prepared(), options, &mut |_| {
            ControlFlow::Continue(())
        })
    }

    #[test]
    fn the_batch_size_changes_nothing_and_torn_files_are_named() {
        let data = noise(23);
        let whole = run(&data, 23, Fusion::LogitMean).unwrap();
        let names: Vec<&str> = whole
            .failures
            .iter()
            .map(|failure| failure.name.as_str())
            .collect();
        assert_eq!(
            (names, whole.joint.samples),
            (vec!["picture-5", "picture-15"], 21)
        );
        for size in [1, 4] {
            let parts = run(&data, size, Fusion::LogitMean).unwrap();
            assert_eq!(parts.joint.confusion, whole.joint.confusion);
            assert!((parts.joint.loss - whole.joint.loss).abs() < 1e-6);
            assert_eq!(parts.failures, whole.failures);
        }
    }

    #[test]
    fn every_fusion_is_the_networks() {
        let network = network();
        let images = Tensor::from_data(
            TensorData::new(vec![0.3f32; 2 * 3 * 64], [2, 3, 8, 8]),
            &Device::flex(),
        );
        let logits = network.forward(images, &mut Ctx::eval()).unwrap();
        let mut heads = Heads {
            class: rows(&logits.class).unwrap(),
            distillation: Some(rows(logits.distillation.as_ref().unwrap()).unwrap()),
        };
        let mut one = logits.clone();
        for _ in 0..2 {
            for fusion in [
                Fusion::LogitMean,
                Fusion::SoftmaxMean,
                Fusion::Class,
                Fusion::Distillation,
            ] {
                let expected = rows(&one.clone().joint(fusion)).unwrap();
                let found = heads.joint(fusion, 3);
                assert!(
                    found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6),
                    "{fusion:?}"
                );
            }
            // Again with one head.
            (heads.distillation, one.distillation) = (None, None);
        }
    }

    #[test]
    fn heads_are_measured_by_themselves() {
        let (data, evaluation) = (noise(9), run(&noise(9), 4, Fusion::SoftmaxMean).unwrap());
        let heads = evaluation.heads.unwrap();
        let alone = run(&data, 4, Fusion::Distillation).unwrap();
        assert_eq!(heads.distillation, alone.joint);
        assert_eq!(heads.class, run(&data, 4, Fusion::Class).unwrap().joint);
        let json = serde_json::to_value(run(&noise(8), 4, Fusion::Class).unwrap()).unwrap();
        assert_eq!(json["failures"], serde_json::json!(["picture-5"]));
        assert!(json["timing"]["forward_seconds"].is_number());
    }

    #[test]
    fn what_cannot_be_evaluated_is_refused() {
        assert!(matches!(
            run(&noise(0), 4, Fusion::Class),
            Err(Error::Empty { .. })
        ));
        assert!(matches!(
            run(&noise(9).subset(&[5]), 4, Fusion::Class),
            Err(Error::NothingReadable { .. })
        ));
        let (network, device) = (network(), Device::flex());
        let mut model = Evaluated {
            network: &network,
            device: &device,
        };
        let options = EvalOptions {
            batch_size: 2,
            workers: 1,
            ..EvalOptions::default()
        };
        let broken = evaluate(&mut model, &noise(9), &prepared(), options, &mut |progress| {
            if progress.done >= 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(matches!(broken, Err(Error::Interrupted)));
        let wrong = Preprocess {
            input_size: [3, 16, 16],
            ..prepared()
        };
        let refused = evaluate(&mut model, &noise(9), &wrong, options, &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(matches!(refused, Err(Error::InputSize { .. })));
    }
}
