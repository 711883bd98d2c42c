//! Attention, and the packing of keys and values, against a softmax in `f64`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::ops::Range;

use common::*;
use vitesse_kernels::{Attention, Between, Bf16, Bias, Isa, Packed, Panels, Plain, Real, Segment, panels_of};
use vitesse_rng::Rng;

/// One head among others: where its columns lie, and its tokens in segments.
struct Case {
    tokens: usize,
    segments: Vec<Range<usize>>,
    qk: usize,
    v: usize,
    /// Widths of the heads before it, which take panels of their own.
    before: [usize; 2],
    rows: Range<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    values: Vec<f32>,
}

impl Case {
    fn random(rng: &mut Rng) -> Case {
        let most = if rng.bernoulli(0.3) { 250 } else { 70 };
        let tokens = between(rng, 1, most);
        // A thread may have no token.
        let mut ends: Vec<usize> = (0..rng.below(3)).map(|_| rng.below(tokens)).collect();
        if !ends.is_empty() && rng.bernoulli(0.3) {
            ends[0] = [0, tokens][rng.below(2)];
        }
        ends.push(tokens);
        ends.sort_unstable();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let segments = starts.zip(&ends).map(|(start, &end)| start..end).collect();
        let (qk, v) = (between(rng, 1, 70), between(rng, 1, 70));
        let start = if rng.bernoulli(0.5) { 0 } else { rng.below(tokens) };
        let rows = start..between(rng, start, tokens);
        // Scaled so that the softmax is neither flat nor a choice of one.
        let scale = 2.0 / (qk as f32).sqrt();
        Case {
            q: normals(rng, tokens * qk).iter().map(|q| q * scale).collect(),
            k: normals(rng, tokens * qk),
            values: normals(rng, tokens * v),
            tokens,
            segments,
            qk,
            v,
            before: [rng.below(40), rng.below(40)],
            rows,
        }
    }

    /// The numbers as `T` keeps them.
    fn exact<T: Real>(values: &[f32]) -> Vec<f64> {
        values
            .iter()
            .map(|&x| f64::from(T::from_f32(x).to_f32()))
            .collect()
    }

    /// The result, and how large the values are that each is a mean of. `bias(query, key)` is added to the logits.
    fn reference<T: Real>(&self, bias: impl Fn(usize, usize) -> f64) -> (Vec<f64>, Vec<f64>) {
        let (q, k, values) = (
            Self::exact::<T>(&self.q),
            Self::exact::<T>(&self.k),
            Self::exact::<T>(&self.values),
        );
        let (mut out, mut sizes) = (Vec::new(), Vec::new());
        for row in self.rows.clone() {
            let q = &q[row * self.qk..][..self.qk];
            let logits = k
                .chunks_exact(self.qk)
                .enumerate()
                .map(|(key, k)| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() + bias(row, key));
            let logits: Vec<f64> = logits.collect();
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let e: Vec<f64> = logits.iter().map(|x| libm::exp(x - most)).collect();
            let sum: f64 = e.iter().sum();
            for channel in 0..self.v {
                let column = || values.iter().skip(channel).step_by(self.v);
                out.push(e.iter().zip(column()).map(|(e, v)| e * v / sum).sum());
                sizes.push(e.iter().zip(column()).map(|(e, v)| e * v.abs() / sum).sum());
            }
        }
        (out, sizes)
    }

    /// `room` and `packed` hold what other cases left there.
    fn run<T: Real>(
        &self,
        isa: Isa,
        room: &mut Attention<T>,
        packed: &mut [(Packed<T>, Packed<T>)],
        between: &impl Between,
    ) -> Vec<f32> {
        let [before_qk, before_v] = self.before;
        let (first, to) = (before_qk.div_ceil(32), before_v.div_ceil(32));
        // Queries lie behind those of another head; where their panels end there are zeros.
        let after = |values: &[f32], width: usize, before: usize, tokens: Range<usize>| -> Vec<f32> {
            let other = std::iter::repeat_n(9.0, before);
            let rows = tokens.map(|token| &values[token * width..(token + 1) * width]);
            rows.flat_map(|row| other.clone().chain(row.iter().copied()))
                .collect()
        };
        let q = panels::<T>(
            &after(&self.q, self.qk, before_qk, 0..self.tokens),
            self.tokens,
            &panels_of([before_qk, self.qk]),
            0.0,
        );
        for (range, (keys, values)) in self.segments.iter().zip(packed.iter_mut()) {
            let k = after(&self.k, self.qk, before_qk, range.clone());
            let k = panels::<T>(&k, range.len(), &panels_of([before_qk, self.qk]), 2.0);
            T::pack_keys(isa, &k, 0..range.len(), first, self.qk, keys);
            let v = after(&self.values, self.v, before_v, range.clone());
            let v = panels::<T>(&v, range.len(), &panels_of([before_v, self.v]), 2.0);
            T::pack_values(&v, 0..range.len(), to, self.v, values);
        }
        let segments = |i: usize| {
            let (keys, values) = &packed[..self.segments.len()].get(i)?;
            Some(Segment { keys, values })
        };
        let mut out = Panels::<T>::zeros(self.tokens, to + self.v.div_ceil(32));
        let rows = self.rows.clone();
        room.head(isa, &q, first, rows, &segments, between, &mut out, to);
        let at = |row, channel| out.at(row, to * 32 + channel).to_f32();
        self.rows
            .clone()
            .flat_map(|row| (0..self.v).map(move |channel| at(row, channel)))
            .collect()
    }
}

/// Keys and values of each segment.
type Segments<T> = Vec<(Packed<T>, Packed<T>)>;

fn room<T: Real>() -> (Attention<T>, Segments<T>) {
    (
        Attention::new(1),
        (0..3)
            .map(|_| (Packed::zeros(0, 0), Packed::zeros(0, 0)))
            .collect(),
    )
}

/// `error` is that of the result in relation to the values' size.
fn check<T: Real>(error: f64, count: u64) {
    for isa in isas() {
        let (mut attention, mut packed) = room::<T>();
        for i in 0..count {
            let case = Case::random(&mut rng("attention", i));
            let near = |what: &str, found: Vec<f32>, (expected, sizes): (Vec<f64>, Vec<f64>)| {
                assert_eq!(found.len(), expected.len());
                for (at, ((&found, &value), size)) in found.iter().zip(&expected).zip(&sizes).enumerate() {
                    assert_near(found, value, error * (size + 1e-2), &|| {
                        let Case {
                            tokens,
                            segments,
                            qk,
                            v,
                            rows,
                            ..
                        } = &case;
                        format!(
                            "{what}, {isa} case {i}: {at} of {rows:?}, {tokens} tokens in {segments:?}, widths {qk}, {v}"
                        )
                    });
                }
            };
            let found = case.run(isa, &mut attention, &mut packed, &Plain);
            near("plain", found, case.reference::<T>(|_, _| 0.0));
            // As by the sizes of merged tokens, and as by relative positions; some keys are hidden.
            let mut bias = normals(&mut rng("bias", i), case.tokens * case.tokens);
            for row in bias.chunks_exact_mut(case.tokens) {
                row.iter_mut()
                    .skip(1)
                    .step_by(3)
                    .for_each(|x| *x = f32::NEG_INFINITY);
            }
            let keys = &bias[..case.tokens];
            let found = case.run(isa, &mut attention, &mut packed, &Bias::by_key(keys));
            near("by key", found, case.reference::<T>(|_, key| keys[key].into()));
            let full = Bias::full(&bias, case.tokens);
            let found = case.run(isa, &mut attention, &mut packed, &full);
            let at = |query: usize, key: usize| bias[query * case.tokens + key].into();
            near("full", found, case.reference::<T>(at));
            // The same with longer rows, from the first query on.
            let (start, stride) = (case.rows.start, case.tokens.next_multiple_of(32));
            let mut wide = vec![f32::NAN; case.rows.len() * stride];
            for (to, row) in wide.chunks_exact_mut(stride).zip(case.rows.clone()) {
                to[..case.tokens].copy_from_slice(&bias[row * case.tokens..][..case.tokens]);
            }
            let padded = Bias::padded(&wide, start, stride, case.tokens);
            let found = case.run(isa, &mut attention, &mut packed, &padded);
            near("padded", found, case.reference::<T>(at));
        }
    }
}

#[test]
fn attention_in_f32_is_right_on_every_instruction_set() {
    check::<f32>(1e-5, 60);
}

#[test]
fn attention_in_bf16_is_right_on_every_instruction_set() {
    // Probabilities and results have eight bits.
    check::<Bf16>(1.2e-2, 60);
}

#[test]
fn a_query_does_not_depend_on_the_queries_beside_it() {
    for isa in isas() {
        let (mut attention, mut packed) = room::<f32>();
        let mut case = Case::random(&mut rng("alone", 1));
        case.rows = 0..case.tokens;
        let all = case.run(isa, &mut attention, &mut packed, &Plain);
        for row in 0..case.tokens {
            case.rows = row..row + 1;
            let one = case.run(isa, &mut attention, &mut packed, &Plain);
            assert_eq!(one, all[row * case.v..(row + 1) * case.v], "{isa} row {row}");
        }
    }
}

/// As threads divide the tokens of an image.
#[test]
fn the_cut_into_segments_changes_no_bit() {
    fn same<T: Real>() {
        for isa in isas() {
            let (mut attention, mut packed) = room::<T>();
            for i in 0..20 {
                let mut case = Case::random(&mut rng("cut", i));
                let bias = normals(&mut rng("cut bias", i), case.tokens);
                let bias = Bias::by_key(&bias);
                case.segments.truncate(1);
                case.segments[0] = 0..case.tokens;
                let whole = case.run(isa, &mut attention, &mut packed, &bias);
                for cut in [0, 1, case.tokens / 2, case.tokens - 1, case.tokens] {
                    case.segments = vec![0..cut / 3, cut / 3..cut, cut..case.tokens];
                    let parts = case.run(isa, &mut attention, &mut packed, &bias);
                    assert_eq!(parts, whole, "{isa} case {i}: {:?}", case.segments);
                }
            }
        }
    }
    same::<f32>();
    same::<Bf16>();
}

#[test]
fn very_different_logits_give_the_nearest_value_and_none_overflows() {
    for isa in isas() {
        let (mut attention, mut packed) = room::<f32>();
        let case = Case {
            tokens: 40,
            segments: vec![0..33, 33..40],
            qk: 1,
            v: 1,
            before: [0, 0],
            rows: 0..40,
            q: vec![1000.0; 40],
            k: (0..40).map(|i| i as f32 - 20.0).collect(),
            values: (0..40).map(|i| i as f32).collect(),
        };
        assert_eq!(
            case.run(isa, &mut attention, &mut packed, &Plain),
            [39.0; 40],
            "{isa}"
        );
    }
}

fn contained<T: Real>() {
    for isa in isas() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut attention, mut packed) = room::<T>();
            let mut case = Case::random(&mut rng("contained", 3));
            case.rows = 0..case.tokens;
            let clean = case.run(isa, &mut attention, &mut packed, &Plain);
            let row = case.tokens / 2;
            case.q[row * case.qk] = bad;
            let found = case.run(isa, &mut attention, &mut packed, &Plain);
            for (at, (found, clean)) in found.iter().zip(&clean).enumerate() {
                if at / case.v == row {
                    assert!(found.is_nan(), "{isa} {bad}");
                } else {
                    assert_eq!(found, clean, "{isa} {bad}");
                }
            }
            // What a case left behind must not reach the next one, either.
            case.q[row * case.qk] = 0.0;
            case.values[0] = bad;
            case.run(isa, &mut attention, &mut packed, &Plain);
            let mut next = Case::random(&mut rng("contained", 4));
            next.rows = 0..next.tokens;
            assert!(
                next.run(isa, &mut attention, &mut packed, &Plain)
                    .iter()
                    .all(|x| x.is_finite()),
                "{isa} {bad}"
            );
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_query() {
    contained::<f32>();
    contained::<Bf16>();
}

type Given<'a, 's> = &'a dyn Fn(usize) -> Option<Segment<'s, f32>>;

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let isa = Isa::detect();
    let (mut keys, mut values) = (Packed::<f32>::zeros(0, 0), Packed::<f32>::zeros(0, 0));
    let kv = Panels::<f32>::zeros(10, 3);
    f32::pack_keys(isa, &kv, 0..10, 0, 40, &mut keys);
    f32::pack_values(&kv, 0..10, 2, 20, &mut values);
    let (mut short_keys, mut short_values) = (Packed::<f32>::zeros(0, 0), Packed::<f32>::zeros(0, 0));
    f32::pack_keys(isa, &kv, 0..10, 0, 20, &mut short_keys);
    f32::pack_values(&Panels::zeros(40, 1), 0..40, 0, 20, &mut short_values);
    let q = Panels::<f32>::zeros(10, 2);
    let run = |q: &Panels<f32>, first, rows, segments: Given<'_, '_>, rows_out, to| {
        let mut out = Panels::<f32>::zeros(rows_out, 1);
        Attention::new(1).head(isa, q, first, rows, segments, &Plain, &mut out, to);
    };
    let one = |i: usize| {
        (i == 0).then_some(Segment {
            keys: &keys,
            values: &values,
        })
    };
    run(&q, 0, 0..10, &one, 10, 0);
    refused("no keys", || run(&q, 0, 0..10, &|_| None, 10, 0));
    refused("rows past the last", || run(&q, 0, 0..11, &one, 11, 0));
    refused("too few rows in the result", || run(&q, 0, 0..10, &one, 9, 0));
    refused("queries past the last", || run(&q, 1, 0..10, &one, 10, 0));
    refused("result past the last panel", || run(&q, 0, 0..10, &one, 10, 1));
    let biased = |bias: Bias<'_>| {
        let mut out = Panels::<f32>::zeros(10, 1);
        Attention::new(1).head(isa, &q, 0, 0..10, &one, &bias, &mut out, 0);
    };
    biased(Bias::by_key(&[0.0; 10]));
    biased(Bias::full(&[0.0; 100], 10));
    refused("fewer numbers than keys", || biased(Bias::by_key(&[0.0; 9])));
    refused("fewer numbers than pairs", || biased(Bias::full(&[0.0; 99], 10)));
    refused("rows of another length", || biased(Bias::full(&[0.0; 110], 11)));
    let unlike = |i: usize| {
        (i == 0).then_some(Segment {
            keys: &keys,
            values: &short_values,
        })
    };
    refused("keys and values of different tokens", || {
        run(&q, 0, 0..10, &unlike, 10, 0);
    });
    let unequal = |i: usize| match i {
        0 => Some(Segment {
            keys: &keys,
            values: &values,
        }),
        1 => Some(Segment {
            keys: &short_keys,
            values: &values,
        }),
        _ => None,
    };
    refused("segments of different widths", || {
        run(&q, 0, 0..10, &unequal, 10, 0);
    });
    refused("keys past the last panel", || {
        f32::pack_keys(isa, &kv, 0..10, 2, 40, &mut Packed::zeros(0, 0));
    });
    refused("values past the last panel", || {
        f32::pack_values(&kv, 0..10, 3, 1, &mut Packed::zeros(0, 0));
    });
}
