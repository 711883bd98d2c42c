//! The teacher of a distillation: any model, in evaluation mode, without gradients.
//!
//! It sees exactly the student's images, augmented and mixed as they are, so that what it says belongs to what the
//! student sees. Only the normalisation is exchanged, channel by channel, when the two models want different ones. Its
//! input size is made the student's when it is loaded.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse_data::Preprocess;
use vitesse_model::network::{Ctx, Fusion, Network};
use vitesse_model::{Checkpoint, LoadOptions, ModelSpec};

use crate::prepare::preprocess;
use crate::{Error, Result};

/// A model that teaches.
#[derive(Debug)]
pub struct Teacher {
    network: Network,
    device: Device,
    /// Per channel, what turns the student's normalisation into the teacher's: `x · scale + shift`.
    renormalise: Option<[(f32, f32); 3]>,
    name: String,
}

impl Teacher {
    /// Loads the checkpoint `path` as the teacher of a student, which takes images as `prepared` says.
    ///
    /// # Errors
    /// A checkpoint that cannot be loaded or resized, or that knows other classes than the student.
    pub fn load(path: &Path, student: &ModelSpec, prepared: &Preprocess, device: &Device) -> Result<Teacher> {
        let [_, height, width] = student.input_size();
        let options = LoadOptions {
            img_size: Some([height, width]),
            ..LoadOptions::default()
        };
        Teacher::new(&Checkpoint::load(path, &options)?, student, prepared, device)
    }

    /// Makes `checkpoint`, whose input size is the student's, its teacher. Autodiff is left off.
    ///
    /// # Errors
    /// Another input size or other classes than the student's.
    pub fn new(
        checkpoint: &Checkpoint,
        student: &ModelSpec,
        prepared: &Preprocess,
        device: &Device,
    ) -> Result<Teacher> {
        let spec = &checkpoint.spec;
        let source = checkpoint
            .source
            .weights
            .as_ref()
            .map(|path| path.display().to_string());
        let name = source.unwrap_or_else(|| spec.architecture.clone());
        let refuse = |reason: String| Error::Teacher {
            teacher: name.clone(),
            reason,
        };
        if spec.num_classes != student.num_classes {
            return Err(refuse(format!(
                "it knows {} classes and the student {}; distillation compares them one by one, so train the teacher on \
                 the student's classes first",
                spec.num_classes, student.num_classes
            )));
        }
        if spec.input_size() != student.input_size() {
            let (found, wanted) = (spec.input_size(), student.input_size());
            return Err(refuse(format!(
                "it takes images of {found:?} and the student of {wanted:?}"
            )));
        }
        let own = preprocess(spec, &checkpoint.config.pretrained_cfg)?;
        let same = own.mean == prepared.mean && own.std == prepared.std;
        let exchange = |channel: usize| {
            let [mean, std, own_mean, own_std] = [prepared.mean, prepared.std, own.mean, own.std]
                .map(|values| f64::from(values.get(channel).copied().unwrap_or(1.0)));
            ((std / own_std) as f32, ((mean - own_mean) / own_std) as f32)
        };
        let device = device.clone().without_autodiff();
        Ok(Teacher {
            network: Network::new(spec, &checkpoint.tensors, &name, &device)?,
            renormalise: (!same).then(|| [0, 1, 2].map(exchange)),
            device,
            name,
        })
    }

    /// What the teacher is called in messages: its weights file, or its architecture.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its logits for `images` `[batch, 3, height, width]`, normalised for the student; of a distilled model the mean
    /// of both heads.
    ///
    /// # Errors
    /// Images of another size, and logits that are not numbers.
    pub fn logits(&self, images: &[f32], shape: [usize; 4]) -> Result<Tensor<2>> {
        let mut images = images.to_vec();
        if let Some(channels) = self.renormalise {
            let plane = shape[2] * shape[3];
            for (i, values) in images.chunks_exact_mut(plane.max(1)).enumerate() {
                let (scale, shift) = channels.get(i % 3).copied().unwrap_or((1.0, 0.0));
                values.iter_mut().for_each(|x| *x = *x * scale + shift);
            }
        }
        let images = Tensor::from_data(TensorData::new(images, shape), &self.device);
        let logits = self
            .network
            .forward(images, &mut Ctx::eval())?
            .joint(Fusion::LogitMean);
        if crate::loss::rows(&logits)?.iter().all(|x| x.is_finite()) {
            return Ok(logits);
        }
        let reason = "its logits are not numbers; check that its weights are whole".to_owned();
        Err(Error::Teacher {
            teacher: self.name.clone(),
            reason,
        })
    }
}
