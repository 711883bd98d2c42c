//! The backward pass of some samples.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::super::{Job, counted, put};
use super::maps::{self, Dots, Logits, Mix, Slots};
use super::pack::{Pack, Packing};
use super::{Added, Common, SLOTS, Sizes, Weights};
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;
use crate::train::blocks::{AREA, Block, Kind, Matrix, Room, SIDE, product};

/// The samples from `first` on.
pub(super) struct Backward<'a, K> {
    common: &'a Common<'a>,
    first: usize,
    qkv: &'a [f32],
    lse: &'a [f32],
    grad: &'a [f32],
    to: &'a mut [MaybeUninit<f32>],
    kind: PhantomData<K>,
}

impl<'a, K> Backward<'a, K> {
    pub(super) fn new(
        common: &'a Common<'a>,
        first: usize,
        qkv: &'a [f32],
        (lse, grad): (&'a [f32], &'a [f32]),
        to: &'a mut [MaybeUninit<f32>],
    ) -> Self {
        Backward {
            common,
            first,
            qkv,
            lse,
            grad,
            to,
            kind: PhantomData,
        }
    }
}

/// The gradients of what all samples have in common, summed over some.
pub(super) struct Sums {
    /// In rows as long as those of the biases; empty where there are none.
    pub(super) bias: Vec<f32>,
    /// In blocks: `[tables, width, buckets]`, not yet scaled.
    pub(super) table: Vec<f32>,
    /// `[heads, heads + 1]`
    pub(super) before: Vec<f64>,
    /// The same.
    pub(super) after: Vec<f64>,
}

/// Packed operands of all heads of a sample.
struct Packed<'a, K: Kind> {
    queries: &'a mut [K::Element],
    /// Transposed, and upright.
    keys: [&'a mut [K::Element]; 2],
    values: &'a mut [K::Element],
    /// As a left operand.
    grads: &'a mut [K::Element],
    /// As right operands: of the gradients of keys and values.
    rows: [&'a mut [K::Element]; 2],
    /// Upright, and transposed.
    tables: [&'a mut [K::Element]; 2],
    /// The gradients of one head's logits of a tile.
    slopes: &'a mut [K::Element],
    /// Their sums by bucket as a left operand, and as a right one.
    sums: [&'a mut [K::Element]; 2],
    /// Queries of a tile, turned.
    turned: &'a mut [K::Element],
    /// Maps of all tiles, turned: gradients of logits, and what values are weighed by.
    maps: [&'a mut [K::Element]; 2],
}

impl<'a, K: Kind> Packed<'a, K> {
    fn new(room: &'a mut Room, sizes: [usize; 15]) -> Self {
        let [
            queries,
            k0,
            k1,
            values,
            grads,
            r0,
            r1,
            t0,
            t1,
            slopes,
            s0,
            s1,
            turned,
            m0,
            m1,
        ] = room.parts::<K, 15>(sizes);
        Packed {
            queries,
            keys: [k0, k1],
            values,
            grads,
            rows: [r0, r1],
            tables: [t0, t1],
            slopes,
            sums: [s0, s1],
            turned,
            maps: [m0, m1],
        }
    }

    fn sizes(of: Sizes) -> [usize; 15] {
        let (of_qk, of_v) = (of.heads * of.n * of.qk, of.heads * of.n * of.v);
        let (tables, b, maps) = (of.tables * of.buckets * of.qk, of.buckets, of.heads * of.n * of.n);
        [
            of_qk, of_qk, of_qk, of_v, of_v, of_qk, of_v, tables, tables, of.n, b, b, 1, maps, maps,
        ]
    }

    /// Packs what does not change from tile to tile.
    fn fill(&mut self, common: &Common<'_>, jobs: &[(Job<'_, K>, [Option<Added<'_>>; 2])], grad: &[f32]) {
        let Sizes { n, qk, v, .. } = common.sizes();
        let (of_qk, of_v) = (n * qk * K::PACKED, n * v * K::PACKED);
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let [keys_t, keys] = &mut self.keys;
        let [rows, grad_rows] = &mut self.rows;
        let narrow = self
            .queries
            .chunks_exact_mut(of_qk)
            .zip(rows.chunks_exact_mut(of_qk));
        let narrow = narrow.zip(keys_t.chunks_exact_mut(of_qk).zip(keys.chunks_exact_mut(of_qk)));
        let wide = self
            .values
            .chunks_exact_mut(of_v)
            .zip(self.grads.chunks_exact_mut(of_v));
        let wide = wide.zip(grad_rows.chunks_exact_mut(of_v));
        for ((job, _), (narrow, wide)) in jobs.iter().zip(narrow.zip(wide)) {
            let head = job.head;
            let [q, k] = [head.q, head.k].map(|first| job.columns(first, head.qk_width));
            let values = job.columns(head.v, head.v_width);
            let grad = Matrix::part(grad, job.tokens, job.out_width, head.out, head.v_width);
            let ((queries, rows), (keys_t, keys)) = narrow;
            let ((values_t, grads), grad_rows) = wide;
            left.extend([Packing::upright(q, queries), Packing::upright(grad, grads)]);
            right.extend([
                Packing::upright(q, rows),
                Packing::transposed(k, keys_t),
                Packing::upright(k, keys),
                Packing::transposed(values, values_t),
                Packing::upright(grad, grad_rows),
            ]);
        }
        common.isa.run(Pack::<K> { left, right });
    }

    /// The same of what all samples have in common.
    fn fill_tables(&mut self, common: &Common<'_>) {
        let [upright, transposed] = &mut self.tables;
        let upright = common
            .tables::<K>(upright)
            .map(|(table, to)| Packing::upright(table, to));
        let transposed = common
            .tables::<K>(transposed)
            .map(|(table, to)| Packing::transposed(table, to));
        common.isa.run(Pack::<K> {
            left: Vec::new(),
            right: upright.chain(transposed).collect(),
        });
    }
}

impl<K: Kind> Kernel for Backward<'_, K> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self) -> Sums {
        let Backward {
            common,
            first: first_sample,
            qkv,
            lse,
            grad,
            to,
            ..
        } = self;
        let sizes = common.sizes();
        let Sizes { heads, n, qk, v, .. } = sizes;
        let tokens = common.of.attention.tokens;
        let (width, out_width) = common.of.attention.widths();
        let mut sums = Sums {
            bias: common.terms.as_ref().map_or(Vec::new(), |terms| terms.no_sums()),
            table: vec![0.0; sizes.tables * qk * sizes.buckets * AREA],
            before: vec![0.0; heads * (heads + 1)],
            after: vec![0.0; heads * (heads + 1)],
        };
        let parts = Packed::<K>::sizes(sizes);
        let mut room = Room::of::<K>(&parts);
        let mut packed = Packed::<K>::new(&mut room, parts);
        packed.fill_tables(common);
        let mut blocks = vec![Block::ZERO; 4 * heads * n];
        let mut slots: Box<[Slots; 2]> = Box::new([[[0.0; SLOTS]; SIDE]; 2]);
        let mut sum = Block::ZERO;
        let deep_v = counted::<K>(common.of.attention.v[0]);
        let (of_qk, of_v) = (n * qk * K::PACKED, n * v * K::PACKED);
        let of_table = sizes.buckets * qk * K::PACKED;
        let samples = qkv
            .chunks_exact(tokens * width)
            .zip(to.chunks_exact_mut(tokens * width))
            .zip(grad.chunks_exact(tokens * out_width))
            .zip(lse.chunks_exact(heads * tokens));
        for (i, (((qkv, to), grad), lse)) in samples.enumerate() {
            let jobs = common.jobs::<K>(first_sample + i, qkv);
            packed.fill(common, &jobs, grad);
            S::begin();
            for tile in 0..n {
                let first = tile * SIDE;
                let rows = SIDE.min(tokens - first);
                let (maps, rest) = blocks.split_at_mut(heads * n);
                let (second, rest) = rest.split_at_mut(heads * n);
                let (third, fourth) = rest.split_at_mut(heads * n);
                for (h, (job, [bias, _])) in jobs.iter().enumerate() {
                    let table = if sizes.tables == 1 { 0 } else { h * of_table };
                    common.isa.run(Logits {
                        common,
                        job,
                        bias: *bias,
                        tile,
                        queries: &packed.queries[h * of_qk + tile * qk * K::PACKED..][..qk * K::PACKED],
                        keys: &packed.keys[0][h * of_qk..][..of_qk],
                        table: packed.tables[0].get(table..table + of_table).unwrap_or_default(),
                        maps: &mut maps[h * n..][..n],
                        slots: &mut slots[0],
                    });
                    // And the gradients of what values are weighed by.
                    let grads = &packed.grads[h * of_v + tile * v * K::PACKED..][..v * K::PACKED];
                    let values = packed.values[h * of_v..][..of_v].chunks_exact(v * K::PACKED);
                    for (i, (to, values)) in third[h * n..][..n].iter_mut().zip(values).enumerate() {
                        product::<S, K>(grads, values, &deep_v, [rows, SIDE.min(tokens - i * SIDE)], to);
                    }
                }
                let (logits, probs) = match &common.before {
                    Some(weights) => {
                        common.isa.run(Mix {
                            weights: &weights.there,
                            from: maps,
                            to: second,
                            n,
                            rows,
                        });
                        (&*maps, &mut *second)
                    }
                    None => (&*second, &mut *maps),
                };
                for (h, (_, [_, mask])) in jobs.iter().enumerate() {
                    for row in 0..rows {
                        let query = first + row;
                        let maps = &mut probs[h * n..][..n];
                        maps::probabilities::<S>(maps, [row, query], tokens, *mask, lse[h * tokens + query]);
                        S::awake();
                    }
                }
                maps::end(probs, rows);
                let (mut gradients, mut other) = (third, fourth);
                match &common.after {
                    Some(weights) => {
                        common.isa.run(Mix {
                            weights: &weights.there,
                            from: probs,
                            to: other,
                            n,
                            rows,
                        });
                        maps::end(other, rows);
                        turn::<S, K>(other, n, tile, packed.maps[1]);
                        unmix(
                            common.isa,
                            weights,
                            [gradients, probs],
                            other,
                            [n, rows],
                            &mut sums.after,
                        );
                        std::mem::swap(&mut gradients, &mut other);
                    }
                    None => turn::<S, K>(probs, n, tile, packed.maps[1]),
                }
                for h in 0..heads {
                    for row in 0..rows {
                        maps::slopes::<S>(&probs[h * n..][..n], &mut gradients[h * n..][..n], row);
                        S::awake();
                    }
                }
                if let Some(weights) = &common.before {
                    unmix(
                        common.isa,
                        weights,
                        [gradients, logits],
                        other,
                        [n, rows],
                        &mut sums.before,
                    );
                    gradients = other;
                }
                maps::end(gradients, rows);
                turn::<S, K>(gradients, n, tile, packed.maps[0]);
                if common.terms.is_some() {
                    add_biases::<S>(gradients, n, common.stride, [first, rows], &mut sums.bias);
                }
                for (h, (job, _)) in jobs.iter().enumerate() {
                    let gradients = &gradients[h * n..][..n];
                    for (gradients, to) in gradients.iter().zip(packed.slopes.chunks_exact_mut(K::PACKED)) {
                        K::left::<S>(gradients, to);
                        S::awake();
                    }
                    if let Some(positions) = common.of.positions {
                        let own = if sizes.tables == 1 { 0 } else { h };
                        maps::by_bucket(common, gradients, first, rows, &mut slots[1]);
                        for panel in 0..sizes.buckets {
                            for (to, from) in sum.0.iter_mut().zip(&slots[1]) {
                                to.copy_from_slice(&from[panel * SIDE..][..SIDE]);
                            }
                            let at = panel * K::PACKED..(panel + 1) * K::PACKED;
                            K::left::<S>(&sum, &mut packed.sums[0][at.clone()]);
                            K::right::<S>(&sum, &mut packed.sums[1][at]);
                        }
                        let q = job.columns(job.head.q, job.head.qk_width);
                        let deep = counted::<K>(rows);
                        for panel in 0..qk {
                            let wide = SIDE.min(job.head.qk_width - panel * SIDE);
                            q.block::<S>(first, panel * SIDE, &mut sum);
                            K::turned::<S>(&sum, packed.turned);
                            for (b, right) in packed.sums[1].chunks_exact(K::PACKED).enumerate() {
                                let count = SIDE.min(positions.count - b * SIDE);
                                K::tile_turned::<S>(
                                    packed.turned,
                                    right,
                                    &deep,
                                    [wide, count],
                                    &[],
                                    &mut sum.0,
                                );
                                let block = (own * qk + panel) * sizes.buckets + b;
                                add_rows(&sum, [wide, count], &mut sums.table[block * AREA..][..AREA]);
                            }
                        }
                    }
                    let deep = counted::<K>(tokens);
                    for panel in 0..qk {
                        let wide = SIDE.min(job.head.qk_width - panel * SIDE);
                        let right = &packed.keys[1][h * of_qk + panel * n * K::PACKED..][..n * K::PACKED];
                        K::tile::<S>(packed.slopes, right, &deep, [rows, wide], &[], &mut sum.0);
                        let mut looked_up = Block::ZERO;
                        if let Some(positions) = common.of.positions {
                            let own = if sizes.tables == 1 { 0 } else { h };
                            let blocks = sizes.buckets * K::PACKED;
                            let right = &packed.tables[1][(own * qk + panel) * blocks..][..blocks];
                            let deep = counted::<K>(positions.count);
                            K::tile::<S>(packed.sums[0], right, &deep, [rows, wide], &[], &mut looked_up.0);
                        }
                        for (row, (sum, more)) in sum.0[..rows].iter_mut().zip(&looked_up.0).enumerate() {
                            sum.iter_mut()
                                .zip(more)
                                .for_each(|(x, more)| *x = (*x + more) * job.scale);
                            let at = (first + row) * width + job.head.q + panel * SIDE;
                            put(sum, &mut to[at..at + wide]);
                        }
                    }
                }
            }
            for (h, (job, _)) in jobs.iter().enumerate() {
                let head = job.head;
                let deep = counted::<K>(tokens);
                for (which, panels, total, column, scale) in [
                    (0, qk, head.qk_width, head.k, job.scale),
                    (1, v, head.v_width, head.v, 1.0),
                ] {
                    let right = &packed.rows[which][h * n * panels * K::PACKED..];
                    let left = &packed.maps[which][h * n * n * K::PACKED..][..n * n * K::PACKED];
                    for (i, left) in left.chunks_exact(n * K::PACKED).enumerate() {
                        let rows = SIDE.min(tokens - i * SIDE);
                        for panel in 0..panels {
                            let wide = SIDE.min(total - panel * SIDE);
                            let right = &right[panel * n * K::PACKED..][..n * K::PACKED];
                            K::tile_turned::<S>(left, right, &deep, [rows, wide], &[], &mut sum.0);
                            for (row, sum) in sum.0[..rows].iter_mut().enumerate() {
                                sum.iter_mut().for_each(|x| *x *= scale);
                                let at = (i * SIDE + row) * width + column + panel * SIDE;
                                put(sum, &mut to[at..at + wide]);
                            }
                        }
                    }
                }
            }
            S::end();
        }
        sums
    }
}

/// The gradients of `old` maps from those of the mixed ones; what that says of the weights is added to `sums`.
fn unmix(
    isa: Isa,
    weights: &Weights,
    [gradients, old]: [&[Block]; 2],
    to: &mut [Block],
    [n, rows]: [usize; 2],
    sums: &mut [f64],
) {
    isa.run(Dots {
        a: gradients,
        b: old,
        n,
        rows,
        sums,
    });
    isa.run(Mix {
        weights: &weights.back,
        from: gradients,
        to,
        n,
        rows,
    });
}

/// Packs the maps of a tile of queries as those of keys, `[heads, blocks of keys, tiles]`.
#[inline(always)]
fn turn<S: Simd, K: Kind>(maps: &[Block], n: usize, tile: usize, to: &mut [K::Element]) {
    for (i, map) in maps.iter().enumerate() {
        K::turned::<S>(map, &mut to[(i * n + tile) * K::PACKED..][..K::PACKED]);
        S::awake();
    }
}

/// Adds the gradients of a tile's logits to those of the biases, `[heads, tokens, stride]`.
#[inline(always)]
fn add_biases<S: Simd>(maps: &[Block], n: usize, stride: usize, [first, rows]: [usize; 2], sums: &mut [f32]) {
    let heads = maps.len() / n;
    let of_head = sums.len() / heads;
    for (maps, sums) in maps.chunks_exact(n).zip(sums.chunks_exact_mut(of_head)) {
        for (i, map) in maps.iter().enumerate() {
            for (row, map) in map.0[..rows].iter().enumerate() {
                let sums = &mut sums[(first + row) * stride + i * SIDE..][..SIDE];
                for at in (0..SIDE).step_by(S::LANES) {
                    S::store(S::add(S::load(&sums[at..]), S::load(&map[at..])), &mut sums[at..]);
                }
            }
        }
    }
}

/// Adds some rows and columns of a block to a block of sums.
#[inline(always)]
fn add_rows(block: &Block, [rows, columns]: [usize; 2], sums: &mut [f32]) {
    for (from, to) in block.0[..rows].iter().zip(sums.chunks_exact_mut(SIDE)) {
        to[..columns].iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
    }
}
