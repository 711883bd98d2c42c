//! Plain loops: the oracle of the others.

use super::{COLUMNS, Operands, Scratch, Tile};
use crate::panels::Bf16;
use crate::simd::Scalar;

impl Tile for Scalar {
    const TURNS: bool = true;
    const ROWS_F32: usize = 8;
    const ROWS_BF16: usize = 8;
    const ROWS_I8: usize = 8;

    fn tile_f32(of: Operands<'_, f32>, out: &mut [[f32; 32]]) {
        of.check(Self::ROWS_F32, Self::TURNS, out.len());
        for (r, out) in out.iter_mut().enumerate().take(of.rows) {
            let mut sums = [0.0; COLUMNS];
            for (panel, (&depth, block)) in of.depths.iter().zip(of.b.chunks_exact(32 * COLUMNS)).enumerate()
            {
                let mut turned = [0.0; 32];
                let a = if of.turned {
                    let rows = &of.a[panel * of.stride..][..32];
                    turned
                        .iter_mut()
                        .zip(rows)
                        .for_each(|(to, row)| *to = row[of.row + r]);
                    &turned
                } else {
                    &of.a[panel * of.stride + of.row + r]
                };
                // Arrays, not slices: loops of a known length are what the compiler makes vectors of.
                for (a, b) in a[..depth].iter().zip(block.as_chunks::<COLUMNS>().0) {
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum += a * b;
                    }
                }
            }
            *out = sums;
        }
    }

    fn tile_bf16(of: Operands<'_, Bf16>, out: &mut [[f32; 32]]) {
        of.check(Self::ROWS_BF16, Self::TURNS, out.len());
        for (r, out) in out.iter_mut().enumerate().take(of.rows) {
            let mut sums = [0.0; COLUMNS];
            for (panel, (&depth, block)) in of.depths.iter().zip(of.b.chunks_exact(32 * COLUMNS)).enumerate()
            {
                let mut turned = [Bf16(0); 32];
                let a = if of.turned {
                    // Two rows of memory hold the pairs of all 32 rows.
                    let pairs = of.a[panel * of.stride..][..32]
                        .as_flattened()
                        .chunks_exact(2 * COLUMNS);
                    for (to, pairs) in turned.chunks_exact_mut(2).zip(pairs) {
                        to.copy_from_slice(&pairs[2 * (of.row + r)..][..2]);
                    }
                    &turned
                } else {
                    &of.a[panel * of.stride + of.row + r]
                };
                let pairs = a.chunks_exact(2).zip(block.chunks_exact(2 * COLUMNS));
                for (a, b) in pairs.take(depth.div_ceil(2)) {
                    let (even, odd) = (a[0].to_f32(), a[1].to_f32());
                    for (sum, b) in sums.iter_mut().zip(b.chunks_exact(2)) {
                        *sum += even * b[0].to_f32();
                        *sum += odd * b[1].to_f32();
                    }
                }
            }
            *out = sums;
        }
    }

    fn tile_i8(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
        of.check(Self::ROWS_I8, false, out.len());
        for (r, out) in out.iter_mut().enumerate().take(of.rows) {
            let mut sums = [0; COLUMNS];
            for (panel, (&depth, block)) in of.depths.iter().zip(of.b.chunks_exact(64 * COLUMNS)).enumerate()
            {
                let a = &of.a[panel * of.stride + of.row + r];
                let quads = a.as_chunks::<4>().0.iter().zip(block.chunks_exact(4 * COLUMNS));
                for (a, b) in quads.take(depth.div_ceil(4)) {
                    for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
                        let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b as i8));
                        *sum += products.sum::<i32>();
                    }
                }
            }
            *out = sums;
        }
    }
}
