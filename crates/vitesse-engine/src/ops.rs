//! What becomes of the ops of a model: the one place that knows each kind.
//!
//! Ops that are linear and per token become an [`Affine`]; where they stand between two matrices or beside a norm, the
//! plan folds them into it, so that they cost nothing.

use vitesse_kernels::panels_of;
use vitesse_model::ops::{OpKind, ScaleShift};
use vitesse_model::site::Site;
use vitesse_model::{Sites, Tensors};

use crate::Result;

/// `y = x · scale + shift`, by channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Affine {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
}

impl Affine {
    /// The first ops at `site` of `layer`, as long as they scale and shift, one after the other; `None` where there are
    /// none. (Prompts, which come first of all, are not among them.)
    pub(crate) fn at(
        sites: &dyn Sites,
        tensors: &Tensors,
        site: Site,
        layer: Option<usize>,
    ) -> Result<Option<Affine>> {
        let mut whole: Option<Affine> = None;
        for (index, op) in sites.ops_at(site, layer) {
            let next = match &op.kind {
                OpKind::ScaleShift(kind) => Affine::of(kind, &op.prefix(index), tensors)?,
                OpKind::Prompts(_) => continue,
                OpKind::LowRank(_) | OpKind::Bottleneck(_) => break,
            };
            whole = Some(match whole {
                Some(before) => before.then(&next),
                None => next,
            });
        }
        Ok(whole)
    }

    /// One op, whose tensors begin with `prefix`.
    pub(crate) fn of(kind: &ScaleShift, prefix: &str, tensors: &Tensors) -> Result<Affine> {
        let scale = tensors.get(&format!("{prefix}.scale"))?.to_f32().into_owned();
        let shift = if kind.shift {
            tensors.get(&format!("{prefix}.shift"))?.to_f32().into_owned()
        } else {
            vec![0.0; scale.len()]
        };
        Ok(Affine { scale, shift })
    }

    /// First this, then `next`.
    fn then(&self, next: &Affine) -> Affine {
        let pairs = next.scale.iter().zip(&next.shift);
        Affine {
            scale: self.scale.iter().zip(&next.scale).map(|(a, b)| a * b).collect(),
            shift: self
                .shift
                .iter()
                .zip(pairs)
                .map(|(t, (scale, shift))| t * scale + shift)
                .collect(),
        }
    }

    /// In panels of 32 channels.
    pub(crate) fn panels(&self) -> (Rows, Rows) {
        let columns = panels_of([self.scale.len()]);
        (
            rows(&columns, |n| self.scale[n]),
            rows(&columns, |n| self.shift[n]),
        )
    }
}

/// A vector in panels, zero past the last element of each.
pub(crate) type Rows = Vec<[f32; 32]>;

/// The values `f(n)` of the columns of each panel.
pub(crate) fn rows(columns: &[std::ops::Range<usize>], f: impl Fn(usize) -> f32) -> Rows {
    columns
        .iter()
        .map(|columns| {
            let mut row = [0.0; 32];
            row.iter_mut().zip(columns.clone()).for_each(|(to, n)| *to = f(n));
            row
        })
        .collect()
}
