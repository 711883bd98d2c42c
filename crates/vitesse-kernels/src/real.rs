//! The floating-point types in which activations are kept.

use std::ops::Range;

use crate::isa::Isa;
use crate::packed::{Packed, Weight, transpose};
use crate::panels::{Bf16, Panels};
use crate::simd::Simd;
use crate::tile::{COLUMNS, Operands};

/// `f32` or [`Bf16`]: panels of 32 columns.
pub trait Real: Weight {
    #[doc(hidden)]
    /// Rows of a right operand that lie together.
    const GROUP: usize;

    /// The nearest one.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;

    /// Packs some rows of keys, so that a product with queries gives one column for each key. The keys' `width` columns are
    /// the panels of `keys` from `first` on.
    fn pack_keys(
        isa: Isa,
        keys: &Panels<Self>,
        rows: Range<usize>,
        first: usize,
        width: usize,
        to: &mut Packed<Self>,
    );
    /// Packs some rows of values, so that a product with probabilities gives the head's `width` columns.
    fn pack_values(
        values: &Panels<Self>,
        rows: Range<usize>,
        first: usize,
        width: usize,
        to: &mut Packed<Self>,
    );

    #[doc(hidden)]
    fn load<S: Simd>(from: &[Self]) -> S::F;
    #[doc(hidden)]
    fn store<S: Simd>(x: S::F, to: &mut [Self]);
    #[doc(hidden)]
    fn most_rows<S: Simd>() -> usize;
    #[doc(hidden)]
    fn tile<S: Simd>(of: Operands<'_, Self>, out: &mut [[f32; COLUMNS]]);
}

impl Real for f32 {
    const GROUP: usize = 1;

    fn from_f32(x: f32) -> f32 {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(from: &[f32]) -> S::F {
        S::load(from)
    }
    #[inline(always)]
    fn store<S: Simd>(x: S::F, to: &mut [f32]) {
        S::store(x, to);
    }
    #[inline(always)]
    fn most_rows<S: Simd>() -> usize {
        S::ROWS_F32
    }
    #[inline(always)]
    fn tile<S: Simd>(of: Operands<'_, f32>, out: &mut [[f32; COLUMNS]]) {
        S::tile_f32(of, out);
    }

    fn pack_keys(
        isa: Isa,
        keys: &Panels<f32>,
        rows: Range<usize>,
        first: usize,
        width: usize,
        to: &mut Packed<f32>,
    ) {
        let tokens = rows.len();
        to.reshape(width, tokens);
        let depths = to.depths.len();
        let blocks = to.blocks.as_mut_slice();
        for (at, block) in blocks.chunks_exact_mut(32 * COLUMNS).enumerate() {
            let (token, depth) = (at / depths * COLUMNS, at % depths);
            let own = &keys.panel(first + depth)[rows.clone()];
            let rows = &own[token..tokens.min(token + COLUMNS)];
            transpose(isa, rows, block);
        }
    }

    fn pack_values(
        values: &Panels<f32>,
        rows: Range<usize>,
        first: usize,
        width: usize,
        to: &mut Packed<f32>,
    ) {
        let tokens = rows.len();
        to.reshape(tokens, width);
        // There may be no token at all.
        let (len, panels) = ((to.depths.len() * 32 * COLUMNS).max(1), to.panels());
        for (panel, blocks) in to
            .blocks
            .as_mut_slice()
            .chunks_exact_mut(len)
            .enumerate()
            .take(panels)
        {
            let rows = values.panel(first + panel)[rows.clone()].as_flattened();
            blocks[..rows.len()].copy_from_slice(rows);
        }
    }
}

impl Real for Bf16 {
    const GROUP: usize = 2;

    fn from_f32(x: f32) -> Bf16 {
        Bf16::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        Bf16::to_f32(self)
    }
    #[inline(always)]
    fn load<S: Simd>(from: &[Bf16]) -> S::F {
        S::load_bf16(from)
    }
    #[inline(always)]
    fn store<S: Simd>(x: S::F, to: &mut [Bf16]) {
        S::store_bf16(x, to);
    }
    #[inline(always)]
    fn most_rows<S: Simd>() -> usize {
        S::ROWS_BF16
    }
    #[inline(always)]
    fn tile<S: Simd>(of: Operands<'_, Bf16>, out: &mut [[f32; COLUMNS]]) {
        S::tile_bf16(of, out);
    }

    fn pack_keys(
        isa: Isa,
        keys: &Panels<Bf16>,
        rows: Range<usize>,
        first: usize,
        width: usize,
        to: &mut Packed<Bf16>,
    ) {
        let tokens = rows.len();
        to.reshape(width, tokens);
        let depths = to.depths.len();
        let blocks: &mut [f32] = bytemuck::cast_slice_mut(to.blocks.as_mut_slice());
        for (at, block) in blocks.chunks_exact_mut(16 * COLUMNS).enumerate() {
            let (token, depth) = (at / depths * COLUMNS, at % depths);
            let own = &keys.panel(first + depth)[rows.clone()];
            let rows = &own[token..tokens.min(token + COLUMNS)];
            // Pairs move as one: they are neighbours already.
            transpose(isa, bytemuck::cast_slice::<[Bf16; 32], [f32; 16]>(rows), block);
        }
    }

    fn pack_values(
        values: &Panels<Bf16>,
        rows: Range<usize>,
        first: usize,
        width: usize,
        to: &mut Packed<Bf16>,
    ) {
        let tokens = rows.len();
        to.reshape(tokens, width);
        let len = (to.depths.len() * 16 * COLUMNS).max(COLUMNS);
        let blocks: &mut [[u32; COLUMNS]] = bytemuck::cast_slice_mut(to.blocks.as_mut_slice());
        for (panel, pairs) in blocks.chunks_exact_mut(len / COLUMNS).enumerate() {
            let rows = &values.panel(first + panel)[rows.clone()];
            for (i, pair) in pairs.iter_mut().enumerate() {
                let zero = [Bf16::default(); 32];
                let (even, odd) = (
                    rows.get(2 * i).unwrap_or(&zero),
                    rows.get(2 * i + 1).unwrap_or(&zero),
                );
                for ((to, even), odd) in pair.iter_mut().zip(even).zip(odd) {
                    *to = u32::from(even.0) | u32::from(odd.0) << 16;
                }
            }
        }
    }
}
