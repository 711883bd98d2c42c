//! Attention whose maps depend on those of other heads, or on relative positions of keys: all heads of 32 queries at once.
//!
//! Forward: products of the queries `q` with all keys and with the buckets of the table, of which each pair takes its own; their sum times
//! the scale; biases; heads mixed; masks; softmax; heads mixed again; products with the values. What is kept is the log of each row's sum of
//! exponentials.
//!
//! Backward, of the same queries: logits `s`, mixed ones, their softmax `p` and the mixed `a` once more, and with the gradient `g` of the result,
//! weights `B` before the softmax and `A` after it,
//!
//! ```text
//! da = g·vᵀ    dp = Aᵀ da    dl = p ∘ (dp − Σ dp·p)    ds = Bᵀ dl    gradients: v: aᵀ·g    A: da·p    B: dl·s
//! db[i, bucket] = Σ ds[i, j] of its pairs    q: scale · (ds·k + db·tableᵀ)    k: scale · dsᵀ·q    table: scale · qᵀ·db
//! ```

mod backward;
mod forward;
mod maps;
mod pack;

use rayon::prelude::*;

use self::backward::{Backward, Sums};
use self::forward::Forward;
use super::terms::{Added, Padded};
use super::{Attention, Head, Job, MOST_PARTS, unwritten, written};
use crate::Isa;
use crate::train::blocks::{Full, Half, Kind, SIDE, Split};
use crate::train::product::sum_parts;
use crate::train::{Math, Precision};

/// Slots of a row of products with buckets: one for every `u8`.
const SLOTS: usize = 1 << 8;

/// The most buckets of a table: the last slot stays 0, for pairs without a bucket. Fewer than the engine's
/// [`MOST_BUCKETS`](crate::MOST_BUCKETS), since a bucket is a `u8` here.
pub const MOST_BUCKETS: usize = SLOTS - 1;

/// Softmax attention with what can stand at its maps. All heads have one width.
#[derive(Debug, Clone, Copy)]
pub struct MixedAttention<'a> {
    /// Queries, keys and values. Of its terms, biases are added before heads are mixed, masks after that; masks need not be symmetric here.
    pub attention: Attention<'a>,
    /// What is looked up for each pair.
    pub positions: Option<Positions<'a>>,
    /// How logits are mixed.
    pub before: Option<Mixing<'a>>,
    /// How probabilities are mixed.
    pub after: Option<Mixing<'a>>,
}

/// Relative positions of keys: `logit[i, j] += scale · Σ_c q[i, c] · table[c, bucket(i, j)]`.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// `[1 | heads, width, buckets]`
    pub table: &'a [f32],
    /// Buckets of a table, at most [`MOST_BUCKETS`].
    pub count: usize,
    /// The bucket of each query and key, `[tokens, tokens]`; [`u8::MAX`] for a pair that has none.
    pub buckets: &'a [u8],
}

/// The maps of all heads, mixed: `new[h] = Σ_g weight[h, g] · old[g] + bias[h]`.
#[derive(Debug, Clone, Copy)]
pub struct Mixing<'a> {
    /// `[heads, heads]`
    pub weight: &'a [f32],
    /// `[heads]`; empty where there is none.
    pub bias: &'a [f32],
}

/// The gradients of what a [`MixedAttention`] has.
#[derive(Debug, Clone)]
pub struct MixedGradients {
    /// As the fused projection.
    pub qkv: Vec<f32>,
    /// As the biases of the logits.
    pub bias: Option<Vec<f32>>,
    /// As the table.
    pub table: Option<Vec<f32>>,
    /// Of the mixing before the softmax.
    pub before: Option<MixingGradients>,
    /// Of that after it.
    pub after: Option<MixingGradients>,
}

/// The gradients of a [`Mixing`].
#[derive(Debug, Clone)]
pub struct MixingGradients {
    /// `[heads, heads]`
    pub weight: Vec<f32>,
    /// `[heads]`, whether there is a bias or not.
    pub bias: Vec<f32>,
}

impl MixedAttention<'_> {
    fn heads(&self) -> usize {
        self.attention.qk.len()
    }

    fn check(&self) {
        let Attention { tokens, qk, v, .. } = self.attention;
        self.attention.check();
        let heads = qk.len();
        assert!(qk.iter().all(|width| *width == qk[0]) && v.iter().all(|width| *width == v[0]));
        if let Some(Positions {
            table,
            count,
            buckets,
        }) = self.positions
        {
            assert!((1..=MOST_BUCKETS).contains(&count) && buckets.len() == tokens * tokens);
            let one = qk[0] * count;
            assert!(table.len() == one || table.len() == heads * one);
        }
        for mixing in [self.before, self.after].into_iter().flatten() {
            assert!(mixing.weight.len() == heads * heads);
            assert!(mixing.bias.is_empty() || mixing.bias.len() == heads);
        }
    }

    /// `[batch, tokens, Σv]`, and the log of the sum of exponentials of each row of mixed logits, `[batch, heads, tokens]`.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn forward(&self, math: Math) -> (Vec<f32>, Vec<f32>) {
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.forward_as::<Half>(isa),
            (Precision::F32, Isa::Amx) => self.forward_as::<Split>(math.isa),
            (Precision::F32, isa) => self.forward_as::<Full>(isa),
        }
    }

    /// The gradients of its inputs from that of the result, with the logs that [`MixedAttention::forward`] returned.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward(&self, math: Math, lse: &[f32], grad: &[f32]) -> MixedGradients {
        match (math.precision, math.isa) {
            (Precision::Bf16, isa) => self.backward_as::<Half>(isa, lse, grad),
            (Precision::F32, Isa::Amx) => self.backward_as::<Split>(math.isa, lse, grad),
            (Precision::F32, isa) => self.backward_as::<Full>(isa, lse, grad),
        }
    }

    /// How many samples a part has: each part is one thread's, with room and sums of its own.
    fn each(&self) -> usize {
        self.attention.batch.div_ceil(MOST_PARTS).max(1)
    }

    fn forward_as<K: Kind>(&self, isa: Isa) -> (Vec<f32>, Vec<f32>) {
        self.check();
        let Attention {
            qkv, batch, tokens, ..
        } = self.attention;
        let (width, out_width) = self.attention.widths();
        let (each, logs) = (self.each(), self.heads() * tokens);
        let common = Common::new(self, isa);
        let mut out = unwritten(batch * tokens * out_width);
        let mut lse = vec![0f32; batch * logs];
        out.par_chunks_mut(each * tokens * out_width)
            .zip(lse.par_chunks_mut(each * logs))
            .zip(qkv.par_chunks(each * tokens * width))
            .enumerate()
            .for_each(|(part, ((out, lse), qkv))| {
                isa.run(Forward::<K>::new(&common, part * each, qkv, out, lse));
            });
        // SAFETY: the heads' columns are all there are, and every head of every sample writes its own of every token.
        (unsafe { written(out) }, lse)
    }

    fn backward_as<K: Kind>(&self, isa: Isa, lse: &[f32], grad: &[f32]) -> MixedGradients {
        self.check();
        let Attention {
            qkv, batch, tokens, ..
        } = self.attention;
        let (width, out_width) = self.attention.widths();
        let (each, logs) = (self.each(), self.heads() * tokens);
        assert!(lse.len() == batch * logs && grad.len() == batch * tokens * out_width);
        let common = Common::new(self, isa);
        let mut all = unwritten(qkv.len());
        let sums: Vec<Sums> = all
            .par_chunks_mut(each * tokens * width)
            .zip(qkv.par_chunks(each * tokens * width))
            .zip(
                lse.par_chunks(each * logs)
                    .zip(grad.par_chunks(each * tokens * out_width)),
            )
            .enumerate()
            .map(|(part, ((to, qkv), (lse, grad)))| {
                isa.run(Backward::<K>::new(&common, part * each, qkv, (lse, grad), to))
            })
            .collect();
        // SAFETY: as above, for queries, keys and values.
        let qkv = unsafe { written(all) };
        common.gradients(qkv, sums)
    }
}

/// What all samples have in common.
struct Common<'a> {
    of: MixedAttention<'a>,
    isa: Isa,
    terms: Option<Padded>,
    /// A row for each query, as long as those of maps in whole blocks; past the last key there is no bucket.
    buckets: Vec<u8>,
    /// Of such a row.
    stride: usize,
    before: Option<Weights>,
    after: Option<Weights>,
}

/// How heads are mixed, and how gradients go back: `[heads, heads + 1]` both, the last number of a row being added.
struct Weights {
    there: Vec<f32>,
    back: Vec<f32>,
}

impl Weights {
    fn new(mixing: Mixing<'_>, heads: usize) -> Self {
        let rows = |at: &dyn Fn(usize, usize) -> f32| {
            let all = (0..heads * (heads + 1)).map(|i| at(i / (heads + 1), i % (heads + 1)));
            all.collect()
        };
        Weights {
            there: rows(&|h, g| match g < heads {
                true => mixing.weight[h * heads + g],
                false => mixing.bias.get(h).copied().unwrap_or_default(),
            }),
            back: rows(&|g, h| match h < heads {
                true => mixing.weight[h * heads + g],
                false => 0.0,
            }),
        }
    }
}

impl<'a> Common<'a> {
    fn new(of: &MixedAttention<'a>, isa: Isa) -> Self {
        let Attention { tokens, .. } = of.attention;
        let (heads, stride) = (of.heads(), tokens.next_multiple_of(SIDE));
        let mut buckets = Vec::new();
        for row in of
            .positions
            .iter()
            .flat_map(|positions| positions.buckets.chunks_exact(tokens))
        {
            buckets.extend_from_slice(row);
            buckets.resize(buckets.len().next_multiple_of(SIDE), u8::MAX);
        }
        let weights = |mixing| Weights::new(mixing, heads);
        Common {
            of: *of,
            isa,
            terms: of.attention.terms.map(|terms| Padded::by_query(&terms, tokens)),
            buckets,
            stride,
            before: of.before.map(weights),
            after: of.after.map(weights),
        }
    }

    fn gradients(&self, qkv: Vec<f32>, sums: Vec<Sums>) -> MixedGradients {
        let heads = self.of.heads();
        let total = |part: &dyn Fn(&Sums) -> &Vec<f64>| {
            let mut total = vec![0f64; heads * (heads + 1)];
            for sums in &sums {
                total.iter_mut().zip(part(sums)).for_each(|(sum, x)| *sum += x);
            }
            let rows = || total.chunks_exact(heads + 1);
            MixingGradients {
                weight: rows().flat_map(|row| &row[..heads]).map(|x| *x as f32).collect(),
                bias: rows().map(|row| row[heads] as f32).collect(),
            }
        };
        let before = self.before.as_ref().map(|_| total(&|sums| &sums.before));
        let after = self.after.as_ref().map(|_| total(&|sums| &sums.after));
        let (biases, tables): (Vec<_>, Vec<_>) = sums.into_iter().map(|sums| (sums.bias, sums.table)).unzip();
        let table = self.of.positions.map(|positions| {
            let sizes = self.sizes();
            let blocks = sum_parts(&tables, 0..sizes.tables * sizes.qk * sizes.buckets * SIDE * SIDE);
            let (width, count) = (self.of.attention.qk[0], positions.count);
            let at = |i: usize| {
                let (table, row, column) = (i / count / width, i / count % width, i % count);
                let block = (table * sizes.qk + row / SIDE) * sizes.buckets + column / SIDE;
                self.of.attention.scale * blocks[(block * SIDE + row % SIDE) * SIDE + column % SIDE]
            };
            (0..positions.table.len()).map(at).collect()
        });
        MixedGradients {
            qkv,
            bias: self.terms.as_ref().map(|terms| terms.total(&biases)),
            table,
            before,
            after,
        }
    }

    fn sizes(&self) -> Sizes {
        let Attention { tokens, qk, v, .. } = self.of.attention;
        let positions = self.of.positions;
        Sizes {
            heads: qk.len(),
            n: tokens.div_ceil(SIDE),
            qk: qk[0].div_ceil(SIDE),
            v: v[0].div_ceil(SIDE),
            buckets: positions.map_or(0, |positions| positions.count.div_ceil(SIDE)),
            tables: positions.map_or(0, |positions| positions.table.len() / positions.count / qk[0]),
        }
    }

    /// The heads of a sample, with what is added to their logits: biases, and masks.
    fn jobs<'s, K: Kind>(
        &'s self,
        sample: usize,
        qkv: &'s [f32],
    ) -> Vec<(Job<'s, K>, [Option<Added<'s>>; 2])> {
        let of = |head: Head| {
            let added = self.terms.as_ref().map(|terms| terms.of(sample, head.index));
            let added = added.map_or([None; 2], |added| added.apart().map(Some));
            (Job::new(&self.of.attention, qkv, head, None), added)
        };
        self.of.attention.heads().map(of).collect()
    }
}

/// Heads, and how many blocks there are of tokens, of the width of queries, of the width of values, of buckets; and tables.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    n: usize,
    qk: usize,
    v: usize,
    buckets: usize,
    tables: usize,
}
