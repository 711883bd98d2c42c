//! Taking some rows, columns or channels of a tensor, of whatever type: bytes are moved, no number changes.

use vitesse_model::Tensor;

use crate::Result;

/// What is kept along one axis, ascending.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    pub(super) axis: usize,
    pub(super) kept: Vec<usize>,
}

/// How the bytes of a tensor lie around one axis.
struct Layout {
    outer: usize,
    side: usize,
    inner: usize,
}

fn layout(tensor: &Tensor, axis: usize) -> Layout {
    let sides = tensor.shape();
    Layout {
        outer: sides.iter().take(axis).product(),
        side: sides.get(axis).copied().unwrap_or(1),
        inner: sides.iter().skip(axis + 1).product::<usize>() * tensor.dtype().size(),
    }
}

/// Only what is kept.
pub(super) fn take(tensor: &Tensor, cuts: &[Cut]) -> Result<Tensor> {
    cuts.iter().try_fold(tensor.clone(), |tensor, cut| {
        let Layout { outer, side, inner } = layout(&tensor, cut.axis);
        let mut bytes = Vec::with_capacity(outer * cut.kept.len() * inner);
        for row in 0..outer {
            for &kept in &cut.kept {
                let at = (row * side + kept) * inner;
                bytes.extend(tensor.bytes().get(at..at + inner).unwrap_or_default());
            }
        }
        let mut shape = tensor.shape().to_vec();
        shape
            .iter_mut()
            .skip(cut.axis)
            .take(1)
            .for_each(|side| *side = cut.kept.len());
        Ok(Tensor::from_bytes(tensor.dtype(), &shape, bytes)?)
    })
}

/// The inverse: what [`take`] took, among zeros, in a tensor of this shape.
pub(super) fn put(tensor: &Tensor, cuts: &[Cut], shape: &[usize]) -> Result<Tensor> {
    cuts.iter().try_fold(tensor.clone(), |tensor, cut| {
        let full = shape.get(cut.axis).copied().unwrap_or(1);
        let Layout { outer, side, inner } = layout(&tensor, cut.axis);
        let mut bytes = vec![0; outer * full * inner];
        for row in 0..outer {
            for (from, &to) in cut.kept.iter().enumerate() {
                let (from, to) = ((row * side + from) * inner, (row * full + to) * inner);
                if let (Some(to), Some(from)) = (
                    bytes.get_mut(to..to + inner),
                    tensor.bytes().get(from..from + inner),
                ) {
                    to.copy_from_slice(from);
                }
            }
        }
        let mut shape = tensor.shape().to_vec();
        shape
            .iter_mut()
            .skip(cut.axis)
            .take(1)
            .for_each(|side| *side = full);
        Ok(Tensor::from_bytes(tensor.dtype(), &shape, bytes)?)
    })
}

/// Zeros of the same type.
pub(super) fn zeros(like: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let bytes = vec![0; shape.iter().product::<usize>() * like.dtype().size()];
    Ok(Tensor::from_bytes(like.dtype(), shape, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::DType;

    #[test]
    fn what_is_put_back_is_what_was_taken() {
        let values: Vec<u8> = (1..25).collect();
        let tensor = Tensor::from_bytes(DType::U8, &[2, 3, 4], values).unwrap();
        let cuts = [
            Cut {
                axis: 1,
                kept: vec![0, 2],
            },
            Cut {
                axis: 2,
                kept: vec![1],
            },
        ];
        let taken = take(&tensor, &cuts).unwrap();
        assert_eq!(
            (taken.shape(), taken.bytes()),
            (&[2, 2, 1][..], &[2, 10, 14, 22][..])
        );
        let back = put(&taken, &cuts, &[2, 3, 4]).unwrap();
        assert_eq!(take(&back, &cuts).unwrap(), taken);
        assert_eq!(back.bytes().iter().filter(|byte| **byte != 0).count(), 4);
    }
}
