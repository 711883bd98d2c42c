//! Relations of tokens of two models, compared: the softmax of products between tokens, by cross-entropy.
//!
//! Each sample is `[tokens, parts · width]`: several matrices beside each other, such as queries, keys and values, each of which is
//! multiplied with each. Maps are made for 32 rows at a time; the gradient is found with the loss, of which it is a multiple:
//!
//! ```text
//! r = softmax(c · S_i S_jᵀ)    t: the teacher's    loss: −Σ t · log r    dr = c · (r − t)    gradients: S_i: dr·S_j    S_j: drᵀ·S_i
//! ```

use rayon::prelude::*;

use super::attention::{pack_left, pack_right, softmax};
use super::blocks::{Block, Full, Half, Kind, Matrix, Room, SIDE, Split, counted, product};
use super::product::Operand;
use super::{Math, Precision};
use crate::Isa;
use crate::isa::Kernel;
use crate::simd::Simd;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Relations<'a> {
    /// `[samples, tokens, parts · width]`
    pub student: &'a [f32],
    /// The same with a width of its own.
    pub teacher: &'a [f32],
    /// Samples.
    pub samples: usize,
    /// Tokens of a sample.
    pub tokens: usize,
    /// Matrices of a sample.
    pub parts: usize,
    /// Relation heads, into which each matrix is cut: both widths are multiples of their number.
    pub heads: usize,
}

impl<'a> Relations<'a> {
    /// The width of a relation head.
    fn width(&self, of: &[f32]) -> usize {
        of.len() / (self.samples * self.tokens * self.parts * self.heads).max(1)
    }

    /// Cross-entropy of the student's relations against the teacher's, mean over pairs of parts, samples, heads and rows; and its gradient, as
    /// the student's numbers.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn cross_entropy(&self, math: Math) -> (f32, Vec<f32>) {
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.of_kind::<Half>(isa),
            (Precision::F32, Isa::Amx) => self.of_kind::<Split>(math.isa),
            (Precision::F32, isa) => self.of_kind::<Full>(isa),
        }
    }

    fn of_kind<K: Kind>(&self, isa: Isa) -> (f32, Vec<f32>) {
        let Relations {
            student,
            teacher,
            samples,
            tokens,
            parts,
            heads,
        } = *self;
        let widths = [student, teacher].map(|of| self.width(of));
        for (of, width) in [student, teacher].into_iter().zip(widths) {
            assert!(width > 0 && of.len() == samples * tokens * parts * heads * width);
        }
        let rows = parts * parts * samples * heads * tokens;
        let mut gradient = vec![0f32; student.len()];
        let [own, other] = widths.map(|width| tokens * parts * heads * width);
        let losses: Vec<f64> = gradient
            .par_chunks_mut(own)
            .zip(student.par_chunks(own).zip(teacher.par_chunks(other)))
            .map(|(to, (student, teacher))| {
                isa.run(Sample::<K> {
                    of: self,
                    models: [student, teacher],
                    widths,
                    share: 1.0 / rows as f32,
                    to,
                    kind: std::marker::PhantomData,
                })
            })
            .collect();
        ((losses.iter().sum::<f64>() / rows as f64) as f32, gradient)
    }
}

struct Sample<'a, K> {
    of: &'a Relations<'a>,
    /// Student and teacher, `[tokens, parts · heads · width]`.
    models: [&'a [f32]; 2],
    /// Of a relation head.
    widths: [usize; 2],
    /// What a row counts.
    share: f32,
    to: &'a mut [f32],
    kind: std::marker::PhantomData<K>,
}

impl<K: Kind> Kernel for Sample<'_, K> {
    /// The sum over rows.
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self) -> f64 {
        let Relations {
            tokens, parts, heads, ..
        } = *self.of;
        let n = tokens.div_ceil(SIDE);
        let wide = self.widths.map(|width| width.div_ceil(SIDE));
        let deep = self.widths.map(counted::<K>);
        let (deep_tokens, scales) = (
            counted::<K>(tokens),
            self.widths.map(|width| (width as f32).powf(-0.5)),
        );
        let [own, other] = wide.map(|wide| parts * n * wide);
        let sizes = [own, own, own, other, other, n, 1];
        let mut room = Room::of::<K>(&sizes);
        let [left, right, upright, left_teacher, right_teacher, slopes, turned] = room.parts::<K, 7>(sizes);
        let (mut maps, mut wanted) = (vec![Block::ZERO; n], vec![Block::ZERO; n]);
        let mut sums = vec![Block::ZERO; own];
        let mut sum = Block::ZERO;
        let mut loss = 0f64;
        for head in 0..heads {
            for (model, width) in self.widths.into_iter().enumerate() {
                let (left, right) = match model {
                    0 => (&mut *left, &mut *right),
                    _ => (&mut *left_teacher, &mut *right_teacher),
                };
                let of_part = n * wide[model] * K::PACKED;
                for part in 0..parts {
                    let stride = parts * heads * width;
                    let first = (part * heads + head) * width;
                    let matrix = Matrix::part(self.models[model], tokens, stride, first, width);
                    let at = part * of_part..(part + 1) * of_part;
                    pack_left::<S, K>(Operand::Upright(matrix), tokens, width, &mut left[at.clone()]);
                    // Of the student also what gradients are multiplied with.
                    let turns = [
                        (Operand::Transposed(matrix), width, tokens),
                        (Operand::Upright(matrix), tokens, width),
                    ];
                    for (i, (operand, depth, columns)) in turns.into_iter().take(2 - model).enumerate() {
                        let to = if i == 0 { &mut *right } else { &mut *upright };
                        pack_right::<S, K>(operand, depth, columns, &mut to[at.clone()]);
                    }
                }
            }
            sums.fill(Block::ZERO);
            S::begin();
            for (i, tile, j) in
                (0..parts).flat_map(|i| (0..n).flat_map(move |tile| (0..parts).map(move |j| (i, tile, j))))
            {
                let rows = SIDE.min(tokens - tile * SIDE);
                for model in 0..2 {
                    let (left, right, maps) = match model {
                        0 => (&*left, &*right, &mut maps),
                        _ => (&*left_teacher, &*right_teacher, &mut wanted),
                    };
                    let one = wide[model] * K::PACKED;
                    for (block, map) in maps.iter_mut().enumerate() {
                        let columns = SIDE.min(tokens - block * SIDE);
                        let (left, right) = (&left[(i * n + tile) * one..], &right[(j * n + block) * one..]);
                        product::<S, K>(left, right, &deep[model], [rows, columns], map);
                    }
                }
                for row in 0..rows {
                    loss += f64::from(compare::<S>(
                        [&mut maps, &mut wanted],
                        row,
                        tokens,
                        scales,
                        self.share,
                    ));
                    S::awake();
                }
                for (map, to) in maps.iter_mut().zip(slopes.chunks_exact_mut(K::PACKED)) {
                    map.0[rows..].fill([0.0; SIDE]);
                    K::left::<S>(map, to);
                    S::awake();
                }
                let one = wide[0];
                for panel in 0..one {
                    let columns = SIDE.min(self.widths[0] - panel * SIDE);
                    let right = &upright[(j * one + panel) * n * K::PACKED..];
                    K::tile::<S>(slopes, right, &deep_tokens, [rows, columns], &[], &mut sum.0);
                    add::<S>(&sum, &mut sums[(i * n + tile) * one + panel], rows);
                }
                let deep = counted::<K>(rows);
                for (block, map) in maps.iter().enumerate() {
                    K::turned::<S>(map, turned);
                    let count = SIDE.min(tokens - block * SIDE);
                    for panel in 0..one {
                        let columns = SIDE.min(self.widths[0] - panel * SIDE);
                        let right = &upright[((i * one + panel) * n + tile) * K::PACKED..];
                        K::tile_turned::<S>(turned, right, &deep, [count, columns], &[], &mut sum.0);
                        add::<S>(&sum, &mut sums[(j * n + block) * one + panel], count);
                    }
                }
            }
            S::end();
            let width = self.widths[0];
            for (at, sums) in sums.iter().enumerate() {
                let (part, block, panel) = (at / wide[0] / n, at / wide[0] % n, at % wide[0]);
                let columns = SIDE.min(width - panel * SIDE);
                let first = (part * heads + head) * width + panel * SIDE;
                let rows = self.to.chunks_exact_mut(parts * heads * width).skip(block * SIDE);
                for (to, sums) in rows.zip(&sums.0) {
                    to[first..first + columns].copy_from_slice(&sums[..columns]);
                }
            }
        }
        loss
    }
}

/// Of a row of products of both models: its cross-entropy, and in place of the student's products their gradients.
#[inline(always)]
fn compare<S: Simd>(
    [maps, wanted]: [&mut [Block]; 2],
    row: usize,
    columns: usize,
    [scale, scale_wanted]: [f32; 2],
    share: f32,
) -> f32 {
    let (_, mass) = softmax::<S>(wanted, row, columns, scale_wanted, None);
    let mut dot = S::splat(0.0);
    for (map, wanted) in maps.iter().zip(wanted.iter()) {
        for at in (0..SIDE).step_by(S::LANES) {
            dot = S::mul_add(S::load(&map.0[row][at..]), S::load(&wanted.0[row][at..]), dot);
        }
    }
    let dot = S::sum(dot);
    let (most, sum) = softmax::<S>(maps, row, columns, scale, None);
    let [own, other] = [sum, mass].map(|sum| S::splat(scale * share / sum));
    for (map, wanted) in maps.iter_mut().zip(wanted.iter()) {
        let (map, wanted) = (&mut map.0[row], &wanted.0[row]);
        for at in (0..SIDE).step_by(S::LANES) {
            let expected = S::mul(S::load(&wanted[at..]), other);
            let slope = S::sub(S::mul(S::load(&map[at..]), own), expected);
            S::store(slope, &mut map[at..]);
        }
    }
    most + sum.ln() - scale * dot / mass
}

/// Adds the first rows of a block to another.
#[inline(always)]
fn add<S: Simd>(from: &Block, to: &mut Block, rows: usize) {
    for (from, to) in from.0[..rows].iter().zip(&mut to.0) {
        for at in (0..SIDE).step_by(S::LANES) {
            S::store(S::add(S::load(&to[at..]), S::load(&from[at..])), &mut to[at..]);
        }
    }
}
