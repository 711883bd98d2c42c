//! Operands of products, packed.

use super::super::{pack_left, pack_right};
use super::{Common, Sizes};
use crate::isa::Kernel;
use crate::simd::Simd;
use crate::train::blocks::{Kind, Matrix};
use crate::train::product::Operand;

/// An operand: its shape, and where it goes.
pub(super) struct Packing<'a, K: Kind> {
    of: Operand<'a>,
    shape: [usize; 2],
    to: &'a mut [K::Element],
}

impl<'a, K: Kind> Packing<'a, K> {
    pub(super) fn upright(of: Matrix<'a>, to: &'a mut [K::Element]) -> Self {
        Packing {
            shape: [of.rows, of.columns],
            of: Operand::Upright(of),
            to,
        }
    }

    pub(super) fn transposed(of: Matrix<'a>, to: &'a mut [K::Element]) -> Self {
        Packing {
            shape: [of.columns, of.rows],
            of: Operand::Transposed(of),
            to,
        }
    }
}

/// Packs left operands and right ones.
pub(super) struct Pack<'a, K: Kind> {
    pub(super) left: Vec<Packing<'a, K>>,
    pub(super) right: Vec<Packing<'a, K>>,
}

impl<K: Kind> Kernel for Pack<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for Packing { of, shape, to } in self.left {
            pack_left::<S, K>(of, shape[0], shape[1], to);
        }
        for Packing { of, shape, to } in self.right {
            pack_right::<S, K>(of, shape[0], shape[1], to);
        }
    }
}

impl<'a> Common<'a> {
    /// The tables, `[width, buckets]` each, and their places in what is packed of all of them.
    pub(super) fn tables<'t, K: Kind>(
        &self,
        to: &'t mut [K::Element],
    ) -> impl Iterator<Item = (Matrix<'a>, &'t mut [K::Element])> {
        let Sizes { qk, buckets, .. } = self.sizes();
        let width = self.of.attention.qk[0];
        let tables = self.of.positions.into_iter().flat_map(move |positions| {
            let tables = positions.table.chunks_exact(width * positions.count);
            tables.map(move |table| Matrix::new(table, positions.count))
        });
        // Without positions nothing is cut.
        tables.zip(to.chunks_exact_mut((qk * buckets * K::PACKED).max(1)))
    }
}
