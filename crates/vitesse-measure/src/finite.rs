//! Whether answers are numbers, and where they are not, what is to blame.

use vitesse_model::{Checkpoint, ModelSpec, Tensors};
use vitesse_train::evaluate::{Classify, Heads};

use crate::{Error, Result, origin};

/// The weights behind a model's answers, which are looked through once an answer is no number.
#[derive(Debug)]
pub(crate) struct Finite {
    architecture: String,
    file: String,
    tensors: Tensors,
}

impl Finite {
    /// Those of a checkpoint; nothing is copied.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Finite {
        Finite {
            architecture: checkpoint.spec.architecture.clone(),
            file: origin(checkpoint),
            tensors: checkpoint.tensors.clone(),
        }
    }

    /// Refuses logits that hold NaN or infinity.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first tensor that holds such values, [`Error::Overflow`] where none does.
    pub(crate) fn check(&self, heads: &Heads) -> Result<()> {
        let logits = heads.class.iter().chain(heads.distillation.iter().flatten());
        if logits.copied().all(f32::is_finite) {
            return Ok(());
        }
        let strange = self.tensors.iter().find(|(_, tensor)| !tensor.is_finite());
        Err(match strange {
            Some((tensor, _)) => Error::NotFinite {
                file: self.file.clone(),
                tensor: tensor.to_owned(),
            },
            None => Error::Overflow(self.architecture.clone()),
        })
    }
}

/// A model whose answers are checked.
pub(crate) struct Checked<'a> {
    pub(crate) model: &'a mut dyn Classify,
    pub(crate) weights: &'a Finite,
}

impl Classify for Checked<'_> {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> vitesse_train::Result<Heads> {
        let heads = self.model.classify(images, shape)?;
        let checked = self.weights.check(&heads);
        checked.map_err(|error| vitesse_train::Error::Classifier(Box::new(error)))?;
        Ok(heads)
    }
}

/// The error of this crate inside one of an evaluation.
pub(crate) fn own(error: vitesse_train::Error) -> Error {
    match error {
        vitesse_train::Error::Classifier(source) => match source.downcast::<Error>() {
            Ok(own) => *own,
            Err(source) => vitesse_train::Error::Classifier(source).into(),
        },
        other => other.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_tensor_that_spoils_the_logits_is_named() {
        let mut model = Checkpoint::fresh("vit_nano_patch4_32", Some(2), None, 0).unwrap();
        let heads = |class: [f32; 2], distillation| Heads {
            class: class.to_vec(),
            distillation,
        };
        let said =
            |model: &Checkpoint, heads: &Heads| Finite::of(model).check(heads).unwrap_err().to_string();
        let (fine, bad) = (heads([1.0, -2.0], None), heads([1.0, f32::NEG_INFINITY], None));
        assert!(Finite::of(&model).check(&fine).is_ok());
        assert!(said(&model, &bad).contains("all its weights are finite"));
        let name = "blocks.1.norm1.bias";
        let tensor = model.tensors.get(name).unwrap();
        let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32().into_owned());
        values[3] = f32::NAN;
        model.tensors.insert_f32(name, &shape, values).unwrap();
        assert!(said(&model, &bad).contains("tensor `blocks.1.norm1.bias` of `fresh weights`"));
        // Either head.
        let second = heads([0.0, 0.0], Some(vec![f32::NAN, 0.0]));
        assert!(said(&model, &second).contains(name));
    }
}
