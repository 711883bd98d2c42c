//! Weights that something can be computed with.

use vitesse_model::Checkpoint;

use crate::{Error, Result, origin};

/// Refuses infinities and NaN among the weights, which would make every number of an analysis one of them.
pub(crate) fn check_finite(checkpoint: &Checkpoint) -> Result<()> {
    for (name, tensor) in checkpoint.tensors.iter() {
        if !tensor.dtype().is_float() {
            continue;
        }
        let values = tensor.to_f32();
        let mut broken = values.iter().enumerate().filter(|(_, value)| !value.is_finite());
        if let Some((first, _)) = broken.next() {
            return Err(Error::NotFinite {
                model: origin(checkpoint),
                name: name.to_owned(),
                count: 1 + broken.count(),
                numel: values.len(),
                first,
            });
        }
    }
    Ok(())
}
