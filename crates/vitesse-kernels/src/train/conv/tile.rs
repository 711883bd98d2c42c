//! Products of weights with shifted maps, and of shifted maps with each other, over vectors of consecutive places.

use std::ops::Range;

use rayon::prelude::*;

use crate::isa::{Isa, Kernel};
use crate::simd::Simd;

/// Output channels that are computed together.
#[derive(Debug, Clone)]
pub(super) struct Channels {
    /// Which, in their group.
    pub(super) range: Range<usize>,
    /// How many are computed: at least as many, the further ones with weights of zero.
    pub(super) width: usize,
    /// Where their weights begin among those of a group, in units of one channel's.
    start: usize,
}

/// The output channels of a group, in blocks that the tiles of `isa` take.
pub(super) fn blocks(isa: Isa, channels: usize) -> Vec<Channels> {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd>(self) -> usize {
            S::LANES
        }
    }
    let widest = if isa.run(Lanes) == 16 { 8 } else { 4 };
    let (mut blocks, mut first, mut start) = (Vec::new(), 0, 0);
    while first < channels {
        let count = (channels - first).min(widest);
        let width = match count {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        blocks.push(Channels {
            range: first..first + count,
            width,
            start,
        });
        first += count;
        start += width;
    }
    blocks
}

/// Weights in the order of their use: `[group][block][k][channel of the block]`.
pub(super) struct Packed {
    weights: Vec<f32>,
    /// Weights of a channel.
    depth: usize,
    /// Weights of a group.
    group: usize,
}

impl Packed {
    /// Weight `k` of channel `c` of a group is `weight[places[k] + c · stride]` of the group's share.
    pub(super) fn new(
        weight: &[f32],
        groups: usize,
        places: &[usize],
        stride: usize,
        blocks: &[Channels],
    ) -> Packed {
        let depth = places.len();
        let group = depth * blocks.iter().map(|block| block.width).sum::<usize>();
        let mut weights = vec![0.0; groups * group];
        let mut parts: Vec<(&[f32], &Channels, &mut [f32])> = Vec::new();
        let mut rest = weights.as_mut_slice();
        for weight in weight.chunks_exact(weight.len() / groups) {
            for block in blocks {
                let (part, others) = rest.split_at_mut(depth * block.width);
                parts.push((weight, block, part));
                rest = others;
            }
        }
        parts
            .into_par_iter()
            .with_min_len(16)
            .for_each(|(from, block, part)| {
                for (to, place) in part.chunks_exact_mut(block.width).zip(places) {
                    let from = from[place + block.range.start * stride..].iter().step_by(stride);
                    to.iter_mut()
                        .zip(from.take(block.range.len()))
                        .for_each(|(to, from)| *to = *from);
                }
            });
        Packed {
            weights,
            depth,
            group,
        }
    }

    /// The weights of a block, `[k][channel of the block]`.
    pub(super) fn block(&self, group: usize, block: &Channels) -> &[f32] {
        &self.weights[group * self.group + block.start * self.depth..][..block.width * self.depth]
    }
}

/// Distance between the results of two channels when `used` places are computed: whole vectors.
pub(super) fn pitch(used: usize) -> usize {
    used.next_multiple_of(16)
}

/// `to[channel · pitch + q] = Σ_k weights[k · width + channel] · copy[offsets[k] + q]` for `q < used`.
#[inline(always)]
pub(super) fn block<S: Simd>(
    copy: &[f32],
    offsets: &[usize],
    weights: &[f32],
    width: usize,
    used: usize,
    to: &mut [f32],
) {
    // 32 vector registers with 512 bits, 16 without.
    match (width, S::LANES) {
        (8, _) => block_of::<S, 8, 3>(copy, offsets, weights, used, to),
        (4, 16) => block_of::<S, 4, 6>(copy, offsets, weights, used, to),
        (4, _) => block_of::<S, 4, 3>(copy, offsets, weights, used, to),
        _ => block_of::<S, 1, 8>(copy, offsets, weights, used, to),
    }
}

#[inline(always)]
fn block_of<S: Simd, const M: usize, const N: usize>(
    copy: &[f32],
    offsets: &[usize],
    weights: &[f32],
    used: usize,
    to: &mut [f32],
) {
    let mut q = 0;
    while q + (N - 1) * S::LANES < used {
        tile::<S, M, N>(copy, offsets, weights, q, pitch(used), to);
        q += N * S::LANES;
    }
    while q < used {
        tile::<S, M, 1>(copy, offsets, weights, q, pitch(used), to);
        q += S::LANES;
    }
}

/// `M` channels of `N` vectors.
#[inline(always)]
fn tile<S: Simd, const M: usize, const N: usize>(
    copy: &[f32],
    offsets: &[usize],
    weights: &[f32],
    q: usize,
    pitch: usize,
    to: &mut [f32],
) {
    let mut sums = [[S::splat(0.0); N]; M];
    let copy = &copy[q..];
    for (&offset, weights) in offsets.iter().zip(weights.as_chunks::<M>().0) {
        let from = &copy[offset..offset + N * S::LANES];
        let mut vectors = [S::splat(0.0); N];
        for n in 0..N {
            vectors[n] = S::load(&from[n * S::LANES..]);
        }
        for m in 0..M {
            let weight = S::splat(weights[m]);
            for n in 0..N {
                sums[m][n] = S::mul_add(weight, vectors[n], sums[m][n]);
            }
        }
    }
    for m in 0..M {
        let to = &mut to[m * pitch + q..][..N * S::LANES];
        for n in 0..N {
            S::store(sums[m][n], &mut to[n * S::LANES..]);
        }
    }
}

/// `to[c · depth + k] += Σ_q grad[c · stride + q] · copy[offsets[k] + q]` for `q < used`, which is a number of whole
/// vectors, and for as many channels `c` as begin in `to`.
#[inline(always)]
pub(super) fn dot<S: Simd>(
    grad: &[f32],
    stride: usize,
    copy: &[f32],
    offsets: &[usize],
    used: usize,
    to: &mut [f32],
    depth: usize,
) {
    // 32 vector registers with 512 bits, 16 without.
    match (to.len().div_ceil(depth), S::LANES) {
        (1, 16) => dot_of::<S, 1, 9>(grad, stride, copy, offsets, used, to, depth),
        (1, _) => dot_of::<S, 1, 7>(grad, stride, copy, offsets, used, to, depth),
        (_, 16) => dot_of::<S, 4, 6>(grad, stride, copy, offsets, used, to, depth),
        _ => dot_of::<S, 2, 5>(grad, stride, copy, offsets, used, to, depth),
    }
}

#[inline(always)]
fn dot_of<S: Simd, const M: usize, const N: usize>(
    grad: &[f32],
    stride: usize,
    copy: &[f32],
    offsets: &[usize],
    used: usize,
    to: &mut [f32],
    depth: usize,
) {
    for (block, to) in to.chunks_mut(M * depth).enumerate() {
        let last = to.len().div_ceil(depth) - 1;
        let mut rows: [&[f32]; M] = [&[]; M];
        for m in 0..M {
            // A row that is none repeats the last, and its sums are not used.
            rows[m] = &grad[(block * M + m.min(last)) * stride..][..used];
        }
        for first in (0..offsets.len()).step_by(N) {
            let mut maps: [&[f32]; N] = [&[]; N];
            for n in 0..N {
                maps[n] = &copy[offsets[(first + n).min(offsets.len() - 1)]..][..used];
            }
            let sums = dots::<S, M, N>(rows, maps, used);
            let count = N.min(offsets.len() - first);
            for (to, sums) in to.chunks_mut(depth).zip(sums) {
                to[first..first + count]
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(to, sum)| *to += sum);
            }
        }
    }
}

/// The products of `M` rows with `N` maps, all `used` long.
#[inline(always)]
fn dots<S: Simd, const M: usize, const N: usize>(
    rows: [&[f32]; M],
    maps: [&[f32]; N],
    used: usize,
) -> [[f32; N]; M] {
    let mut sums = [[S::splat(0.0); N]; M];
    for q in (0..used).step_by(S::LANES) {
        let mut grads = [S::splat(0.0); M];
        for m in 0..M {
            grads[m] = S::load(&rows[m][q..q + S::LANES]);
        }
        for n in 0..N {
            let map = S::load(&maps[n][q..q + S::LANES]);
            for m in 0..M {
                sums[m][n] = S::mul_add(grads[m], map, sums[m][n]);
            }
        }
    }
    let mut out = [[0.0; N]; M];
    for m in 0..M {
        for n in 0..N {
            out[m][n] = S::sum(sums[m][n]);
        }
    }
    out
}
