//! The forward pass of some samples.

use std::mem::MaybeUninit;

use super::super::{counted, put, softmax};
use super::maps::{Logits, Mix, Slots};
use super::pack::{Pack, Packing};
use super::{Common, SLOTS, Sizes};
use crate::isa::Kernel;
use crate::simd::Simd;
use crate::tile::Scratch;
use crate::train::blocks::{Block, Kind, Room, SIDE};

/// The samples from `first` on.
pub(super) struct Forward<'a, K> {
    common: &'a Common<'a>,
    first: usize,
    qkv: &'a [f32],
    out: &'a mut [MaybeUninit<f32>],
    lse: &'a mut [f32],
    kind: std::marker::PhantomData<K>,
}

impl<'a, K> Forward<'a, K> {
    pub(super) fn new(
        common: &'a Common<'a>,
        first: usize,
        qkv: &'a [f32],
        out: &'a mut [MaybeUninit<f32>],
        lse: &'a mut [f32],
    ) -> Self {
        Forward {
            common,
            first,
            qkv,
            out,
            lse,
            kind: std::marker::PhantomData,
        }
    }
}

impl<K: Kind> Kernel for Forward<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Forward {
            common,
            first: first_sample,
            qkv,
            out,
            lse,
            ..
        } = self;
        let sizes = common.sizes();
        let Sizes { heads, n, qk, v, .. } = sizes;
        let tokens = common.of.attention.tokens;
        let (width, out_width) = common.of.attention.widths();
        let of_tables = sizes.tables * sizes.buckets * qk;
        let parts = [heads * n * qk, heads * n * qk, heads * n * v, n, of_tables];
        let mut room = Room::of::<K>(&parts);
        let [queries, keys, values, probs, tables] = room.parts::<K, 5>(parts);
        let (of_qk, of_v) = (n * qk * K::PACKED, n * v * K::PACKED);
        let of_table = sizes.buckets * qk * K::PACKED;
        let deep = counted::<K>(tokens);
        let mut blocks = vec![Block::ZERO; 2 * heads * n];
        let (logits, mixed) = blocks.split_at_mut(heads * n);
        let mut slots: Box<Slots> = Box::new([[0.0; SLOTS]; SIDE]);
        let mut sums: Scratch<f32> = [[0.0; SIDE]; SIDE];
        let of_tables = common.tables::<K>(tables);
        common.isa.run(Pack::<K> {
            left: Vec::new(),
            right: of_tables.map(|(table, to)| Packing::upright(table, to)).collect(),
        });
        let samples = qkv
            .chunks_exact(tokens * width)
            .zip(out.chunks_exact_mut(tokens * out_width))
            .zip(lse.chunks_exact_mut(heads * tokens));
        for (i, ((qkv, out), lse)) in samples.enumerate() {
            let jobs = common.jobs::<K>(first_sample + i, qkv);
            let (mut left, mut right) = (Vec::new(), Vec::new());
            let parts = queries.chunks_exact_mut(of_qk).zip(keys.chunks_exact_mut(of_qk));
            let parts = parts.zip(values.chunks_exact_mut(of_v));
            for ((job, _), ((queries, keys), values)) in jobs.iter().zip(parts) {
                let head = job.head;
                left.push(Packing::upright(job.columns(head.q, head.qk_width), queries));
                right.push(Packing::transposed(job.columns(head.k, head.qk_width), keys));
                right.push(Packing::upright(job.columns(head.v, head.v_width), values));
            }
            common.isa.run(Pack::<K> { left, right });
            S::begin();
            for tile in 0..n {
                let first = tile * SIDE;
                let rows = SIDE.min(tokens - first);
                for (h, (job, [bias, _])) in jobs.iter().enumerate() {
                    let table = if sizes.tables == 1 { 0 } else { h * of_table };
                    common.isa.run(Logits {
                        common,
                        job,
                        bias: *bias,
                        tile,
                        queries: &queries[h * of_qk + tile * qk * K::PACKED..][..qk * K::PACKED],
                        keys: &keys[h * of_qk..][..of_qk],
                        table: tables.get(table..table + of_table).unwrap_or_default(),
                        maps: &mut logits[h * n..][..n],
                        slots: &mut slots,
                    });
                }
                let (maps, other) = match &common.before {
                    Some(weights) => {
                        common.isa.run(Mix {
                            weights: &weights.there,
                            from: logits,
                            to: mixed,
                            n,
                            rows,
                        });
                        (&mut *mixed, &mut *logits)
                    }
                    None => (&mut *logits, &mut *mixed),
                };
                for (h, (_, [_, mask])) in jobs.iter().enumerate() {
                    let maps = &mut maps[h * n..][..n];
                    for row in 0..rows {
                        let mask = mask.map(|mask| (mask, first + row));
                        let (most, sum) = softmax::<S>(maps, row, tokens, 1.0, mask);
                        lse[h * tokens + first + row] = most + sum.ln();
                        let inverse = S::splat(1.0 / sum);
                        for map in maps.iter_mut() {
                            let map = &mut map.0[row];
                            for at in (0..SIDE).step_by(S::LANES) {
                                S::store(S::mul(S::load(&map[at..]), inverse), &mut map[at..]);
                            }
                        }
                        S::awake();
                    }
                }
                let maps = match &common.after {
                    Some(weights) => {
                        common.isa.run(Mix {
                            weights: &weights.there,
                            from: maps,
                            to: other,
                            n,
                            rows,
                        });
                        other
                    }
                    None => maps,
                };
                for (h, (job, _)) in jobs.iter().enumerate() {
                    for (map, to) in maps[h * n..][..n].iter().zip(probs.chunks_exact_mut(K::PACKED)) {
                        K::left::<S>(map, to);
                        S::awake();
                    }
                    let values = &values[h * of_v..][..of_v];
                    for (panel, values) in values.chunks_exact(n * K::PACKED).enumerate() {
                        let wide = SIDE.min(job.head.v_width - panel * SIDE);
                        K::tile::<S>(probs, values, &deep, [rows, wide], &[], &mut sums);
                        for (row, sums) in sums[..rows].iter().enumerate() {
                            let at = (first + row) * out_width + job.head.out + panel * SIDE;
                            put(sums, &mut out[at..at + wide]);
                        }
                    }
                }
            }
            S::end();
        }
    }
}
