//! Attention with mixed heads, and depth-wise convolutions, against plain loops in `f64`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use vitesse_kernels::{
    Bf16, Columns, Depthwise, Isa, MOST_BUCKETS, Mixed, MixedAttention, Packed, PairBuckets, Panels,
    Positions, Real, Segment, Tables, Weight, depthwise, panels_of,
};
use vitesse_rng::Rng;

/// All heads of a window, with some of what can stand between.
struct Case {
    heads: usize,
    tokens: usize,
    /// Queries from this one on.
    first: usize,
    width: usize,
    cut: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Option<Vec<f32>>,
    mask: Option<Vec<f32>>,
    before: Option<Vec<f32>>,
    after: Option<Vec<f32>>,
    /// `[heads, buckets, width]`, and the bucket of each pair.
    tables: Option<(usize, Vec<f32>, Vec<Option<usize>>)>,
}

impl Case {
    fn random(rng: &mut Rng) -> Case {
        let heads = between(rng, 1, 9);
        let tokens = between(rng, 1, 80);
        let width = between(rng, 1, 40);
        let some = |rng: &mut Rng, count: usize, scale: f32| {
            let values: Vec<f32> = normals(rng, count).iter().map(|x| x * scale).collect();
            rng.bernoulli(0.6).then_some(values)
        };
        let count = heads * tokens * width;
        // As few as are looked up at once, one too many, and more.
        let buckets = match rng.below(4) {
            0 => 63,
            1 => 64,
            2 => between(rng, 1, 62),
            _ => between(rng, 65, 150),
        };
        let pairs = (0..tokens * tokens).map(|_| Some(rng.below(buckets + 1)).filter(|&of| of < buckets));
        let pairs: Vec<Option<usize>> = pairs.collect();
        let tables = some(rng, heads * buckets * width, 0.5).map(|values| (buckets, values, pairs));
        let scale = 1.0 / (width as f32).sqrt();
        Case {
            q: normals(rng, count).iter().map(|q| q * scale).collect(),
            k: normals(rng, count),
            v: normals(rng, count),
            bias: some(rng, heads * tokens * tokens, 0.5),
            mask: some(rng, tokens * tokens, 1.0),
            before: some(rng, heads * (heads + 1), 0.5),
            after: some(rng, heads * (heads + 1), 0.5),
            tables,
            first: rng.below(tokens),
            cut: rng.below(tokens + 1),
            heads,
            tokens,
            width,
        }
    }

    fn at<'a>(&self, of: &'a [f32], head: usize, token: usize) -> &'a [f32] {
        &of[(head * self.tokens + token) * self.width..][..self.width]
    }

    /// `[queries, heads, width]`, and the largest sizes that are summed.
    fn reference<T: Real>(&self) -> (Vec<f64>, f64) {
        let exact = |x: f32| f64::from(T::from_f32(x).to_f32());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| exact(*a) * exact(*b)).sum::<f64>();
        let (heads, tokens, width) = (self.heads, self.tokens, self.width);
        let mix = |weights: &Option<Vec<f32>>, maps: Vec<Vec<f64>>| match weights {
            None => maps,
            Some(weights) => (0..heads)
                .map(|result| {
                    let weight = |h: usize| f64::from(weights[h * heads + result]);
                    let of = |key: usize| {
                        let sum: f64 = (0..heads).map(|h| weight(h) * maps[h][key]).sum();
                        sum + weight(heads)
                    };
                    (0..tokens).map(of).collect()
                })
                .collect(),
        };
        let (mut out, mut size) = (Vec::new(), 0.0f64);
        for query in self.first..tokens {
            let logits = (0..heads).map(|h| {
                let q = self.at(&self.q, h, query);
                let of = |key: usize| {
                    let pair = query * tokens + key;
                    let bias = self
                        .bias
                        .as_ref()
                        .map_or(0.0, |b| b[h * tokens * tokens + pair].into());
                    let found =
                        self.tables
                            .as_ref()
                            .map_or(0.0, |(buckets, tables, pairs)| match pairs[pair] {
                                None => 0.0,
                                Some(bucket) => dot(q, &tables[(h * buckets + bucket) * width..][..width]),
                            });
                    dot(q, self.at(&self.k, h, key)) + bias + found
                };
                (0..tokens).map(of).collect::<Vec<f64>>()
            });
            let mut maps = mix(&self.before, logits.collect());
            for map in &mut maps {
                if let Some(mask) = &self.mask {
                    map.iter_mut()
                        .zip(&mask[query * tokens..])
                        .for_each(|(x, m)| *x += f64::from(*m));
                }
                let most = map.iter().copied().fold(f64::MIN, f64::max);
                map.iter_mut().for_each(|x| *x = libm::exp(*x - most));
                let sum: f64 = map.iter().sum();
                map.iter_mut().for_each(|x| *x /= sum);
            }
            let maps = mix(&self.after, maps);
            for (h, map) in maps.iter().enumerate() {
                for channel in 0..width {
                    let value = |key| exact(self.at(&self.v, h, key)[channel]);
                    out.push((0..tokens).map(|key| map[key] * value(key)).sum());
                    size = size.max((0..tokens).map(|key| (map[key] * value(key)).abs()).sum());
                }
            }
        }
        (out, size)
    }

    fn run<T: Real>(&self, isa: Isa, room: &mut MixedAttention<T>) -> Vec<f32> {
        let (heads, tokens, width) = (self.heads, self.tokens, self.width);
        let columns = panels_of(vec![width; heads]);
        let rows = |of: &[f32]| {
            let rows = (0..tokens).flat_map(|token| (0..heads).map(move |head| (head, token)));
            let values: Vec<f32> = rows.flat_map(|(h, t)| self.at(of, h, t).to_vec()).collect();
            panels::<T>(&values, tokens, &columns, 0.0)
        };
        let (q, k, v) = (rows(&self.q), rows(&self.k), rows(&self.v));
        let each = width.div_ceil(32);
        let parts = [0..self.cut, self.cut..tokens];
        let packed: Vec<Vec<(Packed<T>, Packed<T>)>> = (0..heads)
            .map(|h| {
                let pack = |part: &std::ops::Range<usize>| {
                    let (mut keys, mut values) = (Packed::zeros(0, 0), Packed::zeros(0, 0));
                    T::pack_keys(isa, &k, part.clone(), h * each, width, &mut keys);
                    T::pack_values(&v, part.clone(), h * each, width, &mut values);
                    (keys, values)
                };
                parts.iter().filter(|part| !part.is_empty()).map(pack).collect()
            })
            .collect();
        let segments = |h: usize, i: usize| {
            let (keys, values) = packed[h].get(i)?;
            Some(Segment { keys, values })
        };
        // More than keys need, too.
        let stride = tokens.next_multiple_of(32) + 32 * (tokens % 2);
        let wide = |values: &[f32]| {
            let mut out = vec![0.0; tokens * stride];
            for (to, from) in out.chunks_exact_mut(stride).zip(values.chunks_exact(tokens)) {
                to[..tokens].copy_from_slice(from);
            }
            out
        };
        let bias: Option<Vec<Vec<f32>>> = self
            .bias
            .as_ref()
            .map(|bias| bias.chunks_exact(tokens * tokens).map(wide).collect());
        let mask = self.mask.as_ref().map(|mask| vec![wide(mask)]);
        let tables = self.tables.as_ref().map(|(buckets, values, pairs)| {
            let pack = |table: &[f32]| {
                let row = |bucket: usize| &table[bucket * width..(bucket + 1) * width];
                T::pack(&row, &panels_of([*buckets]), &panels_of([width]))
            };
            let packed: Vec<Packed<T>> = values.chunks_exact(buckets * width).map(pack).collect();
            (packed, PairBuckets::new(*buckets, pairs, tokens))
        });
        let heads_at: Vec<Columns> = (0..heads)
            .map(|h| Columns {
                q: h * each,
                out: h * each,
            })
            .collect();
        let how = Mixed {
            heads: &heads_at,
            query: self.first,
            positions: tables
                .as_ref()
                .map(|(tables, buckets)| Positions { tables, buckets }),
            bias: bias.as_ref().map(|values| Tables { values, stride }),
            before: self.before.as_deref(),
            mask: mask.as_ref().map(|values| Tables { values, stride }),
            after: self.after.as_deref(),
        };
        let mut out = Panels::<T>::zeros(tokens, heads * each);
        room.run(isa, &q, self.first..tokens, &segments, &how, &mut out);
        let at = |token, h: usize, channel| out.at(token, h * each * 32 + channel).to_f32();
        (self.first..tokens)
            .flat_map(|token| {
                (0..heads).flat_map(move |h| (0..width).map(move |channel| (token, h, channel)))
            })
            .map(|(token, h, channel)| at(token, h, channel))
            .collect()
    }
}

fn check<T: Real>(error: f64) {
    for isa in isas() {
        // What other cases left in the room must not matter.
        let mut room = MixedAttention::<T>::new();
        for i in 0..40 {
            let mut case = Case::random(&mut rng("mixed", i));
            if i % 8 == 7 {
                // What is no number is not lost, not even beside keys that are not there.
                let last = (case.tokens - 1) * case.width;
                case.k[last..][..case.width].fill(f32::NAN);
            }
            let (expected, size) = case.reference::<T>();
            let found = case.run(isa, &mut room);
            assert_eq!(found.len(), expected.len());
            for (at, (&found, &value)) in found.iter().zip(&expected).enumerate() {
                assert_near(found, value, error * (size + 1e-2), &|| {
                    let Case {
                        heads,
                        tokens,
                        first,
                        width,
                        cut,
                        ..
                    } = &case;
                    format!(
                        "{isa} case {i}: {at}, {heads} heads, {tokens} tokens from {first}, width {width}, cut at {cut}"
                    )
                });
            }
        }
    }
}

#[test]
fn mixed_attention_in_f32_is_right_on_every_instruction_set() {
    check::<f32>(3e-5);
}

#[test]
fn mixed_attention_in_bf16_is_right_on_every_instruction_set() {
    // Queries' products with tables, probabilities and results have eight bits.
    check::<Bf16>(3e-2);
}

#[test]
fn the_cut_into_segments_changes_no_bit() {
    for isa in isas() {
        let mut room = MixedAttention::<f32>::new();
        for i in 0..10 {
            let mut case = Case::random(&mut rng("mixed cut", i));
            case.cut = 0;
            let whole = case.run(isa, &mut room);
            for cut in [1, case.tokens / 2, case.tokens] {
                case.cut = cut;
                assert_eq!(case.run(isa, &mut room), whole, "{isa} case {i}: {cut}");
            }
        }
    }
}

#[test]
fn depthwise_convolutions_are_right_on_every_instruction_set() {
    for isa in isas() {
        for i in 0..20 {
            let mut rng = rng("depthwise", i);
            let (rows, width, taps) = (
                between(&mut rng, 1, 30),
                between(&mut rng, 1, 70),
                between(&mut rng, 1, 9),
            );
            let columns = plain(width);
            let x = normals(&mut rng, rows * width);
            let weights: Vec<Vec<f32>> = (0..taps).map(|_| normals(&mut rng, width)).collect();
            let bias = normals(&mut rng, width);
            let first = rng.below(rows);
            let neighbours: Vec<u32> = (0..(rows - first) * taps)
                .map(|_| rng.below(rows) as u32)
                .collect();
            let by_panel: Vec<Vec<[f32; 32]>> = (0..columns.len())
                .map(|panel| {
                    weights
                        .iter()
                        .map(|weight| row_of(weight, &columns)[panel])
                        .collect()
                })
                .collect();
            let of = Depthwise {
                weights: &by_panel,
                bias: &row_of(&bias, &columns),
                neighbours: &neighbours,
                first,
            };
            let mut out = Panels::<f32>::zeros(rows - first, columns.len());
            depthwise(isa, &panels::<f32>(&x, rows, &columns, 0.0), of, &mut out);
            for row in 0..rows - first {
                for channel in 0..width {
                    let at = |row: usize| f64::from(x[row * width + channel]);
                    let own = &neighbours[row * taps..(row + 1) * taps];
                    let taps = own.iter().zip(&weights);
                    let sum: f64 = taps.map(|(&n, w)| at(n as usize) * f64::from(w[channel])).sum();
                    let expected = at(first + row) + f64::from(bias[channel]) + sum;
                    assert_near(out.at(row, channel), expected, 1e-5 * 10.0, &|| {
                        format!("{isa} case {i}: row {row}, channel {channel}")
                    });
                }
            }
        }
    }
}

/// That a check refuses it, and not a slice that something else ends at.
#[track_caller]
fn refused_by_check(what: &str, call: impl FnOnce()) {
    let text = refused(what, call);
    assert!(text.starts_with("assertion failed"), "{what}: {text}");
}

// What is refused here would read and write inside all slices: nothing but the checks would notice.

#[test]
fn attention_whose_shapes_do_not_fit_is_refused() {
    let (isa, tokens, stride) = (Isa::Scalar, 3, 32);
    let pack = |part: std::ops::Range<usize>| {
        let all = Panels::<f32>::zeros(tokens, 1);
        let (mut keys, mut values) = (Packed::zeros(0, 0), Packed::zeros(0, 0));
        f32::pack_keys(isa, &all, part.clone(), 0, 32, &mut keys);
        f32::pack_values(&all, part, 0, 32, &mut values);
        (keys, values)
    };
    let (whole, cut) = ([pack(0..3)], [pack(0..2), pack(2..3)]);
    let run = |second: &[(Packed<f32>, Packed<f32>)], how: &Mixed<'_, f32>| {
        let segments = |h: usize, i: usize| {
            let (keys, values) = if h == 0 { whole.get(i) } else { second.get(i) }?;
            Some(Segment { keys, values })
        };
        let (q, mut out) = (Panels::zeros(tokens, 2), Panels::zeros(tokens, 2));
        MixedAttention::new().run(isa, &q, 0..tokens, &segments, how, &mut out);
    };
    let heads = [0, 1].map(|at| Columns { q: at, out: at });
    // Room enough for any of them.
    let tables = vec![vec![0.0; tokens * 2 * stride]; 3];
    let of = |count: usize, stride| {
        let values = &tables[..count];
        Some(Tables { values, stride })
    };
    let mixing = [0.0; 7];
    let by_bucket = |count: usize| f32::pack(&|_| &[0.0; 32], &panels_of([count]), &panels_of([32]));
    let (five, six) = ([by_bucket(5)], [by_bucket(5), by_bucket(6)]);
    let buckets =
        |count, queries: usize, keys: usize| PairBuckets::new(count, &vec![Some(4); queries * keys], keys);
    let [of_five, of_six] = [5, 6].map(|count| buckets(count, tokens, tokens));
    let (of_fewer, of_more) = (buckets(5, tokens - 1, tokens), buckets(5, tokens, 33));
    let positions = |tables, buckets| Some(Positions { tables, buckets });
    let right = Mixed {
        heads: &heads,
        query: 0,
        positions: positions(&five, &of_five),
        bias: of(2, stride),
        before: Some(&mixing[..6]),
        mask: of(1, stride),
        after: Some(&mixing[..6]),
    };
    run(&whole, &right);
    refused_by_check("a head with another cut", || run(&cut, &right));
    for (what, wrong) in [
        (
            "a mask's stride of no whole panels",
            Mixed {
                mask: of(1, stride + 1),
                ..right
            },
        ),
        (
            "a bias' stride of no whole panels",
            Mixed {
                bias: of(2, stride + 1),
                ..right
            },
        ),
        (
            "two masks",
            Mixed {
                mask: of(2, stride),
                ..right
            },
        ),
        (
            "a bias for a head that is not there",
            Mixed {
                bias: of(3, stride),
                ..right
            },
        ),
        (
            "a weight too many before the softmax",
            Mixed {
                before: Some(&mixing),
                ..right
            },
        ),
        (
            "a weight too many after it",
            Mixed {
                after: Some(&mixing),
                ..right
            },
        ),
        (
            "a table with fewer buckets than pairs have",
            Mixed {
                positions: positions(&five, &of_six),
                ..right
            },
        ),
        (
            "buckets of fewer queries",
            Mixed {
                positions: positions(&five, &of_fewer),
                ..right
            },
        ),
        (
            "buckets of more keys",
            Mixed {
                positions: positions(&five, &of_more),
                ..right
            },
        ),
        (
            "tables of different lengths",
            Mixed {
                positions: positions(&six, &of_five),
                ..right
            },
        ),
    ] {
        refused_by_check(what, || run(&whole, &wrong));
    }
    refused_by_check("a bucket past the last", || drop(buckets(4, 1, 1)));
    refused_by_check("more buckets than there are places", || {
        drop(buckets(MOST_BUCKETS + 1, 1, 1));
    });
}

#[test]
fn convolutions_whose_shapes_do_not_fit_are_refused() {
    let run = |neighbours: &[u32], bias: &[[f32; 32]]| {
        let (x, mut out) = (Panels::<f32>::zeros(3, 1), Panels::<f32>::zeros(3, 1));
        let of = Depthwise {
            weights: &[vec![[0.0; 32]]],
            bias,
            neighbours,
            first: 0,
        };
        depthwise(Isa::Scalar, &x, of, &mut out);
    };
    let bias = [[0.0; 32]; 2];
    run(&[0, 1, 2], &bias[..1]);
    refused_by_check("more neighbours than rows", || run(&[0, 1, 2, 0], &bias[..1]));
    refused_by_check("more of the bias than panels", || run(&[0, 1, 2], &bias));
}
