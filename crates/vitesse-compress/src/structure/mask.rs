//! The masked twin of a sliced model: as large as before, with zeros where something was cut.

use vitesse_model::{ModelSpec, Tensors};

use super::cut::{put, zeros};
use super::kept::Kept;
use super::selection::Selection;
use super::slice::{slice, smaller};
use super::table::pieces;
use super::units::prunable;
use crate::{Error, Result};

/// The tensors of `spec` in which every row and column that [`slice`](super::slice()) would cut is zero, biases included: with them the
/// dense model gives the sliced one's logits.
///
/// # Errors
/// As [`slice`](super::slice()); embedding channels, since the statistics of a layer norm see zeros too; blocks that share their
/// matrices with others that stay.
pub fn mask(spec: &ModelSpec, tensors: &Tensors, selection: &Selection) -> Result<Tensors> {
    widen(
        spec,
        tensors,
        selection,
        &slice(spec, tensors, selection)?.tensors,
    )
}

/// As [`mask`], with the tensors that the sliced model has by now: what was corrected or trained after the cut stands where it was cut from.
///
/// # Errors
/// As [`mask`]; tensors that are not those of the sliced model.
pub fn widen(
    spec: &ModelSpec,
    tensors: &Tensors,
    selection: &Selection,
    sliced: &Tensors,
) -> Result<Tensors> {
    let body = prunable(spec)?;
    let kept = Kept::of(spec, tensors, selection)?;
    if kept.embed.is_some() {
        return Err(Error::Unsuited(
            "a model that lost embedding channels has no masked twin: the statistics of its layer norms are taken over the \
             channels that are left; compare it with another implementation of the sliced model instead"
                .into(),
        ));
    }
    let gone = (0..body.layers().len()).filter(|layer| kept.layers.binary_search(layer).is_err());
    for layer in gone {
        if kept
            .layers
            .iter()
            .any(|&other| body.core(other) == body.core(layer))
        {
            return Err(Error::Unsuited(format!(
                "block {layer} shares its matrices with one that stays, so it cannot be masked by zeros in them"
            )));
        }
    }
    let mut out = Tensors::new();
    for (name, tensor) in tensors.iter() {
        out.insert(name, zeros(tensor, tensor.shape())?);
    }
    for piece in pieces(spec, &smaller(spec, &kept)?, &kept)? {
        let shape = tensors.get(&piece.from)?.shape();
        let masked = put(sliced.get(&piece.to)?, &piece.cuts, shape)?;
        out.insert(piece.from, masked);
    }
    Ok(out)
}
