//! Raw tensors in, raw logits out, to compare with other programs or to feed them.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vitesse_model::storage::safetensors::{self, Metadata};
use vitesse_model::{Fusion, ModelSpec, Tensor, Tensors};
use vitesse_train::evaluate::Classify;

use crate::classify::{Arithmetic, Runner};
use crate::{Error, Events, Result};

/// The name of the input tensor.
const PIXELS: &str = "pixel_values";
/// Tensors that a sentence names at most.
const SHOWN: usize = 5;

/// The normalised images of a file, in one piece, read as they are needed.
#[derive(Debug, Clone)]
pub struct Images {
    tensor: Tensor,
    /// `[images, channels, height, width]`.
    shape: [usize; 4],
}

/// What was computed and written.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The architecture.
    pub model: String,
    /// The file.
    pub output: String,
    /// The tensors in it.
    pub tensors: Vec<String>,
    /// `[images, classes]`, of each of the tensors.
    pub shape: [usize; 2],
    /// The computation, with the reading of the pixels.
    pub seconds: f64,
    /// Images over that.
    pub images_per_s: f64,
    /// What computed.
    #[serde(flatten)]
    pub arithmetic: Arithmetic,
}

impl Images {
    /// The tensor `pixel_values` of the safetensors file `path`, for a model of this `spec`.
    ///
    /// # Errors
    /// A file that cannot be read; [`Error::NoTensor`], [`Error::TensorType`] and [`Error::TensorShape`] for one that does
    /// not hold such images.
    pub fn read(path: &Path, spec: &ModelSpec) -> Result<Images> {
        let size = spec.input_size();
        let [channels, height, width] = size;
        let expected = format!("[images, {channels}, {height}, {width}]");
        let (tensors, _) = safetensors::read(path)?;
        let Ok(tensor) = tensors.get(PIXELS) else {
            let names: Vec<&str> = tensors.names().take(SHOWN).collect();
            let found = if names.is_empty() {
                "no tensor".to_owned()
            } else {
                format!("`{}`", names.join("`, `"))
            };
            return Err(Error::NoTensor {
                path: path.to_owned(),
                name: PIXELS,
                expected,
                found,
            });
        };
        if !tensor.dtype().is_float() {
            return Err(Error::TensorType {
                path: path.to_owned(),
                name: PIXELS,
                found: tensor.dtype(),
            });
        }
        let found = match *tensor.shape() {
            [0, ..] => "holds no image".to_owned(),
            [images, c, h, w] if [c, h, w] == size => {
                return Ok(Images {
                    tensor: tensor.clone(),
                    shape: [images, c, h, w],
                });
            }
            ref other => format!("has {other:?}"),
        };
        Err(Error::TensorShape {
            path: path.to_owned(),
            name: PIXELS,
            expected,
            found,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.shape[0]
    }

    /// `[channels, height, width]` of each.
    pub(crate) fn size(&self) -> [usize; 3] {
        let [_, channels, height, width] = self.shape;
        [channels, height, width]
    }

    /// Some of them, one after the other.
    pub(crate) fn pixels(&self, images: Range<usize>) -> Result<Vec<f32>> {
        Ok(self.tensor.rows(images)?.to_f32().into_owned())
    }

    /// Writes what the model says about them to the safetensors file `output`: `logits` `[images, classes]`, and for a
    /// distilled model `logits_class` and `logits_distill`, its heads. A model without classes gives features.
    ///
    /// # Errors
    /// Images of another size than the model's; a file that cannot be written; [`Error::Interrupted`] once `stop` was set.
    pub fn classify(
        &self,
        runner: &mut Runner,
        how: (usize, Fusion),
        output: &Path,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Report> {
        let begun = Instant::now();
        let logits = runner.logits(&self.tensor.to_f32(), self.shape, how, stop, events)?;
        let seconds = begun.elapsed().as_secs_f64();

        let [images, ..] = self.shape;
        let shape = [images, logits.joint.len() / images];
        let mut tensors = Tensors::new();
        tensors.insert_f32("logits", &shape, logits.joint)?;
        if !logits.distillation.is_empty() {
            tensors.insert_f32("logits_class", &shape, logits.class)?;
            tensors.insert_f32("logits_distill", &shape, logits.distillation)?;
        }
        safetensors::write(output, &tensors, &Metadata::new())?;
        Ok(Report {
            model: runner.spec().architecture.clone(),
            output: output.display().to_string(),
            tensors: tensors.names().map(str::to_owned).collect(),
            shape,
            seconds,
            images_per_s: images as f64 / seconds,
            arithmetic: runner.arithmetic(),
        })
    }
}
