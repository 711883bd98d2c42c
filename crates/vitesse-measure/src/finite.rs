//! Whether weights and answers are numbers, and where answers are not, what is to blame.

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
        check(&self.file, &self.tensors)?;
        Err(Error::Overflow(self.architecture.clone()))
    }
}

/// Refuses infinities and NaN among the weights, which would make every number of an analysis one of them.
#[cfg(feature = "train")]
pub(crate) fn check_finite(checkpoint: &Checkpoint) -> Result<()> {
    check(&origin(checkpoint), &checkpoint.tensors)
}

fn check(model: &str, tensors: &Tensors) -> Result<()> {
    let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !tensor.is_finite()) else {
        return Ok(());
    };
    let values = tensor.to_f32();
    let broken = values.iter().filter(|value| !value.is_finite());
    Err(Error::NotFinite {
        model: model.to_owned(),
        name: name.to_owned(),
        count: broken.count(),
        numel: values.len(),
        first: values.iter().position(|value| !value.is_finite()).unwrap_or(0),
    })
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
        assert!(said(&model, &bad).contains("`fresh weights`: tensor `blocks.1.norm1.bias`"));
        // Either head.
        let second = heads([0.0, 0.0], Some(vec![f32::NAN, 0.0]));
        assert!(said(&model, &second).contains(name));
    }
}
