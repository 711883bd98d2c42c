//! The product `leftᵀ · right` of two tall matrices: the gradient of weights.
//!
//! The rows, which are the depth of this product, are cut into a few parts; each is one thread's, who reads it once, packs
//! some rows of both operands at a time and adds their product to sums of its own. Both operands and the sums fit the
//! second cache. At the end the parts' sums are added, in order.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::blocks::{AREA, Block, Full, Half, Kind, Matrix, Room, SIDE, Split, whole};
use super::product::{add_scaled, sum_parts};
use super::{Math, Precision};
use crate::Isa;
use crate::isa::Kernel;
use crate::simd::Simd;

/// `leftᵀ · right`, `[left.columns, right.columns]`, and the sums of the columns of `left`.
pub(super) fn over_rows(math: Math, left: Matrix<'_>, right: Matrix<'_>) -> (Vec<f32>, Vec<f32>) {
    match (math.precision, math.isa) {
        (Precision::Bf16, isa) => of_kind::<Half>(isa, left, right),
        (Precision::F32, Isa::Amx) => of_kind::<Split>(math.isa, left, right),
        (Precision::F32, isa) => of_kind::<Full>(isa, left, right),
    }
}

/// The most parts that the rows are cut into, and the bytes that all parts' sums may take together.
const MOST_PARTS: usize = 8;
const SUMS_BYTES: usize = 32 << 20;

/// Into how many parts so many blocks of rows are cut, each of which has sums of `bytes` and at least `least` blocks: a
/// power of two, so that usual numbers of threads have the same work.
pub(super) fn parts(blocks: usize, least: usize, bytes: usize) -> usize {
    let affordable = (SUMS_BYTES / bytes).max(2);
    let most = blocks.div_ceil(least).min(affordable).min(MOST_PARTS);
    1 << most.ilog2()
}

/// Blocks of rows that are packed together.
fn chunk<K: Kind>() -> usize {
    24 / (K::TERMS * size_of::<K::Element>())
}

fn of_kind<K: Kind>(isa: Isa, left: Matrix<'_>, right: Matrix<'_>) -> (Vec<f32>, Vec<f32>) {
    assert!(left.rows == right.rows && left.rows > 0 && left.columns > 0 && right.columns > 0);
    let (tiles, panels) = (left.columns.div_ceil(SIDE), right.columns.div_ceil(SIDE));
    let blocks = left.rows.div_ceil(SIDE);
    let parts = parts(blocks, chunk::<K>(), tiles * panels * AREA * size_of::<f32>());
    let found: Vec<(Vec<f32>, Vec<f32>)> = (0..parts)
        .into_par_iter()
        .map(|part| {
            let mut sums = Vec::with_capacity(tiles * panels * AREA);
            let mut columns = vec![0f32; tiles * SIDE];
            isa.run(Part::<K> {
                left,
                right,
                blocks: (blocks * part / parts, blocks * (part + 1) / parts),
                sums: &mut sums,
                columns: &mut columns,
                kind: PhantomData,
            });
            (sums, columns)
        })
        .collect();
    let (sums, columns): (Vec<Vec<f32>>, Vec<Vec<f32>>) = found.into_iter().unzip();
    let out = gather(isa, &sums, [left.columns, right.columns], false);
    (out, sum_parts(&columns, 0..left.columns))
}

/// Some blocks of rows.
struct Part<'a, K> {
    left: Matrix<'a>,
    right: Matrix<'a>,
    blocks: (usize, usize),
    /// Blocks of sums, `[panel][tile]`; empty, but with room.
    sums: &'a mut Vec<f32>,
    columns: &'a mut [f32],
    kind: PhantomData<K>,
}

impl<K: Kind> Kernel for Part<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (tiles, panels) = (
            self.left.columns.div_ceil(SIDE),
            self.right.columns.div_ceil(SIDE),
        );
        let chunk = chunk::<K>();
        let mut room = Room::new((tiles + panels) * chunk * K::PACKED * size_of::<K::Element>());
        let (left, right) = room.elements().split_at_mut(tiles * chunk * K::PACKED);
        let (mut upright, mut scratch) = (Block::ZERO, Block::ZERO);
        let mut stats = Vec::new();
        let mut first = self.blocks.0;
        while first < self.blocks.1 {
            let deep = chunk.min(self.blocks.1 - first);
            for (tile, to) in left.chunks_exact_mut(deep * K::PACKED).take(tiles).enumerate() {
                let sums = &mut self.columns[tile * SIDE..(tile + 1) * SIDE];
                for (i, to) in to.chunks_exact_mut(K::PACKED).enumerate() {
                    self.left
                        .block::<S>((first + i) * SIDE, tile * SIDE, &mut upright);
                    upright.add_columns::<S>(sums);
                    K::turned::<S>(&upright, to);
                }
            }
            let rows = first * SIDE..self.right.rows.min((first + deep) * SIDE);
            let matrix = self.right.known::<S>(rows, &mut stats);
            for (panel, to) in right.chunks_exact_mut(deep * K::PACKED).take(panels).enumerate() {
                for (i, to) in to.chunks_exact_mut(K::PACKED).enumerate() {
                    matrix.block::<S>((first + i) * SIDE, panel * SIDE, &mut upright);
                    K::right::<S>(&upright, to);
                }
            }
            S::begin();
            for (panel, right) in right.chunks_exact(deep * K::PACKED).take(panels).enumerate() {
                for (tile, left) in left.chunks_exact(deep * K::PACKED).take(tiles).enumerate() {
                    add::<S, K>(left, right, deep, self.sums, panel * tiles + tile, &mut scratch);
                }
            }
            S::end();
            first += deep;
        }
    }
}

/// Adds the product of `depth` blocks of each, the left ones [turned](Kind::turned), to the `at`th block of `sums`; where there is none yet, this becomes it.
#[inline(always)]
pub(super) fn add<S: Simd, K: Kind>(
    left: &[K::Element],
    right: &[K::Element],
    depth: usize,
    sums: &mut Vec<f32>,
    at: usize,
    scratch: &mut Block,
) {
    let next = sums.get((at + 1) * AREA..).unwrap_or_default();
    let next = bytemuck::cast_slice(next);
    K::tile_turned::<S>(left, right, whole(depth), [SIDE; 2], next, &mut scratch.0);
    let more = scratch.0.as_flattened();
    match sums.get_mut(at * AREA..(at + 1) * AREA) {
        Some(sums) => add_scaled::<S>(sums, more, 1.0),
        None => sums.extend_from_slice(more),
    }
}

/// The matrix `[rows, columns]` whose blocks, `[panel][tile]`, are the sums of all parts' blocks, in order; or, `turned`,
/// its transpose.
pub(super) fn gather(isa: Isa, sums: &[Vec<f32>], [rows, columns]: [usize; 2], turned: bool) -> Vec<f32> {
    let width = if turned { rows } else { columns };
    let mut out = vec![0f32; rows * columns];
    out.par_chunks_mut(SIDE * width).enumerate().for_each(|(i, out)| {
        isa.run(Gather {
            sums,
            tiles: rows.div_ceil(SIDE),
            turned,
            i,
            width,
            out,
        });
    });
    out
}

/// 32 rows of the result, of `width` numbers each.
struct Gather<'a> {
    sums: &'a [Vec<f32>],
    tiles: usize,
    turned: bool,
    i: usize,
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (mut sum, mut turned) = (Block::ZERO, Block::ZERO);
        for j in 0..self.width.div_ceil(SIDE) {
            let [panel, tile] = if self.turned { [self.i, j] } else { [j, self.i] };
            let at = (panel * self.tiles + tile) * AREA;
            sum.0.as_flattened_mut().fill(0.0);
            for part in self.sums {
                add_scaled::<S>(sum.0.as_flattened_mut(), &part[at..at + AREA], 1.0);
            }
            let block = if self.turned {
                sum.transpose::<S>(&mut turned);
                &turned
            } else {
                &sum
            };
            let width = SIDE.min(self.width - j * SIDE);
            for (from, to) in block.0.iter().zip(self.out.chunks_exact_mut(self.width)) {
                let to = &mut to[j * SIDE..][..width];
                if let Ok(to) = <&mut [f32; SIDE]>::try_from(&mut *to) {
                    // Of known length, which needs no call.
                    *to = *from;
                } else {
                    to.copy_from_slice(&from[..width]);
                }
            }
        }
    }
}
