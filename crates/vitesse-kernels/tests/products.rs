//! Every product on every instruction set against sums in `f64`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::ops::Range;

use common::*;
use vitesse_kernels::{
    Bf16, Gelu, Isa, Left, Linear, Packed, Panels, Quantized, Weight, linear, linear_add, linear_gelu,
    panels_of, quantize,
};
use vitesse_rng::Rng;

/// A product to be computed.
#[derive(Debug)]
struct Case {
    all: usize,
    rows: Range<usize>,
    depths: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
    /// `[all, depth]`
    a: Vec<f32>,
    /// `[width, depth]`
    w: Vec<f32>,
    scale: Option<Vec<f32>>,
    bias: Vec<f32>,
}

impl Case {
    fn random(rng: &mut Rng) -> Case {
        let all = between(rng, 1, 70);
        let start = if rng.bernoulli(0.5) { 0 } else { rng.below(all) };
        let end = between(rng, start, all);
        // Now and then deep enough for sums in several parts.
        let depth = if rng.bernoulli(0.1) {
            between(rng, 200, 600)
        } else {
            between(rng, 1, 200)
        };
        let width = between(rng, 1, 100);
        let depths = panels_of(widths(rng, depth));
        let columns = panels_of(widths(rng, width));
        Case {
            all,
            rows: start..end,
            depths,
            columns,
            a: normals(rng, all * depth),
            w: normals(rng, width * depth),
            scale: rng.bernoulli(0.5).then(|| normals(rng, width)),
            bias: normals(rng, width),
        }
    }

    fn depth(&self) -> usize {
        self.depths.last().map_or(0, |range| range.end)
    }

    fn width(&self) -> usize {
        self.columns.last().map_or(0, |range| range.end)
    }

    fn pack<W: Weight>(&self) -> Packed<W> {
        let depth = self.depth();
        W::pack(
            &|n| &self.w[n * depth..(n + 1) * depth],
            &self.columns,
            &self.depths,
        )
    }

    /// The three kinds of operands, each with what its numbers stand for.
    fn on(&self, isa: Isa, check: &mut dyn Check) {
        let exact = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let rounded = |values: &[f32]| {
            values
                .iter()
                .map(|&x| f64::from(Bf16::from_f32(x).to_f32()))
                .collect::<Vec<_>>()
        };
        // Weights are zero where panels end, so the left operand may hold anything finite there.
        let a = panels::<f32>(&self.a, self.all, &self.depths, 3.0);
        check.f32(self, isa, &a, &Sums::new(self, &exact(&self.a), &exact(&self.w)));
        let a = panels::<Bf16>(&self.a, self.all, &self.depths, -5.0);
        check.bf16(
            self,
            isa,
            &a,
            &Sums::new(self, &rounded(&self.a), &rounded(&self.w)),
        );
        let (a, values) = self.quantized(isa);
        check.int8(
            self,
            isa,
            &a,
            &Sums::new(self, &values, &self.quantized_weights()),
        );
    }

    /// The rows in 8 bits, and what they stand for.
    fn quantized(&self, isa: Isa) -> (Quantized, Vec<f64>) {
        let a = panels::<f32>(&self.a, self.all, &self.depths, 0.0);
        let mut out = Quantized::zeros(self.all, self.depths.len().div_ceil(2));
        quantize(isa, &a, 0..self.all, &mut out);
        let places = places(&self.depths);
        let at = |row, (panel, lane)| f64::from(out.at(row, panel * 32 + lane));
        let values = (0..self.all)
            .flat_map(|row| places.iter().map(move |&place| at(row, place)))
            .collect();
        (out, values)
    }

    /// Each output's greatest weight becomes 127.
    fn quantized_weights(&self) -> Vec<f64> {
        let rows = self.w.chunks_exact(self.depth().max(1));
        rows.flat_map(|row| {
            let most = row.iter().fold(0f32, |most, w| most.max(w.abs()));
            let step = if most > 0.0 { most / 127.0 } else { 1.0 };
            row.iter()
                .map(move |w| f64::from((w * (1.0 / step)).round_ties_even()) * f64::from(step))
        })
        .collect()
    }
}

/// What a product should be before scale and bias, and how large its terms are.
struct Sums {
    width: usize,
    depth: usize,
    values: Vec<f64>,
    sizes: Vec<f64>,
}

impl Sums {
    fn new(case: &Case, a: &[f64], w: &[f64]) -> Sums {
        let (width, depth) = (case.width(), case.depth());
        let (mut values, mut sizes) = (Vec::new(), Vec::new());
        for row in 0..case.all {
            for n in 0..width {
                let (a, w) = (&a[row * depth..][..depth], &w[n * depth..][..depth]);
                values.push(a.iter().zip(w).map(|(a, w)| a * w).sum());
                sizes.push(a.iter().zip(w).map(|(a, w)| (a * w).abs()).sum());
            }
        }
        Sums {
            width,
            depth,
            values,
            sizes,
        }
    }

    /// The result of the linear layer, and how far rounding may carry a computation in `f32` from it.
    fn affine(&self, case: &Case, row: usize, n: usize) -> (f64, f64) {
        let at = row * self.width + n;
        let scale = case.scale.as_ref().map_or(1.0, |scale| f64::from(scale[n]));
        let value = self.values[at] * scale + f64::from(case.bias[n]);
        let size = self.sizes[at] * scale.abs() + f64::from(case.bias[n]).abs();
        (value, (self.depth + 8) as f64 * 6e-8 * size)
    }
}

trait Check {
    fn f32(&mut self, case: &Case, isa: Isa, a: &Panels<f32>, sums: &Sums);
    fn bf16(&mut self, case: &Case, isa: Isa, a: &Panels<Bf16>, sums: &Sums);
    fn int8(&mut self, case: &Case, isa: Isa, a: &Quantized, sums: &Sums);
}

/// A check that is the same for all kinds of operands.
macro_rules! for_all_kinds {
    ($type:ty) => {
        impl Check for $type {
            fn f32(&mut self, case: &Case, isa: Isa, a: &Panels<f32>, sums: &Sums) {
                self.check(case, isa, "f32", a, &case.pack(), sums);
            }
            fn bf16(&mut self, case: &Case, isa: Isa, a: &Panels<Bf16>, sums: &Sums) {
                self.check(case, isa, "bf16", a, &case.pack(), sums);
            }
            fn int8(&mut self, case: &Case, isa: Isa, a: &Quantized, sums: &Sums) {
                self.check(case, isa, "int8", a, &case.pack(), sums);
            }
        }
    };
}

/// All three functions against the reference.
struct Reference(Rng);
for_all_kinds!(Reference);

impl Reference {
    fn check<A: Left>(
        &mut self,
        case: &Case,
        isa: Isa,
        kind: &str,
        a: &A,
        w: &Packed<A::Weight>,
        sums: &Sums,
    ) {
        let (count, panels) = (case.rows.len(), case.columns.len());
        let places = places(&case.columns);
        let (scale, bias) = (
            case.scale.as_ref().map(|s| row_of(s, &case.columns)),
            row_of(&case.bias, &case.columns),
        );
        let of = Linear {
            weights: w,
            scale: scale.as_deref(),
            bias: &bias,
        };
        let name = |what: &str, row: usize, n: usize| {
            let Case {
                all,
                rows,
                depths,
                columns,
                ..
            } = case;
            format!(
                "{what} {kind} {isa}: row {row} of {rows:?} of {all}, {n} of {columns:?}, depths {depths:?}"
            )
        };

        // The plain product, of some panels, to memory with other rows and panels besides.
        let first = self.0.below(panels);
        let some = first..between(&mut self.0, first, panels);
        let mut out = filled(count + self.0.below(2), panels, 77.0);
        let mut half = Panels::<Bf16>::zeros(count, panels);
        linear(isa, a, case.rows.clone(), of, some.clone(), &mut out);
        linear(isa, a, case.rows.clone(), of, some.clone(), &mut half);
        for row in 0..count {
            for (n, &(panel, lane)) in places
                .iter()
                .enumerate()
                .filter(|(_, place)| some.contains(&place.0))
            {
                let (value, error) = sums.affine(case, case.rows.start + row, n);
                let at = (panel - some.start) * 32 + lane;
                assert_near(out.at(row, at), value, error, &|| name("linear", row, n));
                let rounded = half.at(row, at).to_f32();
                assert_near(rounded, value, error + value.abs() / 256.0, &|| {
                    name("linear to bf16", row, n)
                });
            }
            // Padding is zero, whatever was in the registers: later products read it.
            for (panel, columns) in case.columns[some.clone()].iter().enumerate() {
                for lane in columns.len()..32 {
                    assert_eq!(
                        out.at(row, panel * 32 + lane),
                        0.0,
                        "{}",
                        name("padding", row, panel * 32 + lane)
                    );
                }
            }
            (some.len() * 32..panels * 32).for_each(|at| assert_eq!(out.at(row, at), 77.0));
        }
        (count..out.rows()).for_each(|row| (0..panels * 32).for_each(|at| assert_eq!(out.at(row, at), 77.0)));

        // GELU, with and without what may follow it.
        let (after_scale, after_shift) = (normals(&mut self.0, sums.width), normals(&mut self.0, sums.width));
        let (scale, shift) = (
            row_of(&after_scale, &case.columns),
            row_of(&after_shift, &case.columns),
        );
        let mut out = filled(count, panels, 77.0);
        let folded = Some((&scale[..], &shift[..]));
        for (form, after) in [
            (Gelu::Exact, None),
            (Gelu::Exact, folded),
            (Gelu::Quick, None),
            (Gelu::Quick, folded),
        ] {
            linear_gelu(isa, a, case.rows.clone(), of, (form, after), &mut out);
            for row in 0..count {
                for (n, &(panel, lane)) in places.iter().enumerate() {
                    let (x, error) = sums.affine(case, case.rows.start + row, n);
                    let (mut value, mut error) = (of_form(form, x), 1.13 * error + 3e-7 * x.abs().max(1.0));
                    if after.is_some() {
                        let scale = f64::from(after_scale[n]);
                        value = value * scale + f64::from(after_shift[n]);
                        error = error * scale.abs() + 2e-7 * value.abs() + 1e-7;
                    }
                    assert_near(out.at(row, panel * 32 + lane), value, error, &|| {
                        name("linear_gelu", row, n)
                    });
                }
            }
        }

        // Added to something, at other rows.
        let first = self.0.below(4);
        let before = filled(count + first, panels, 0.25);
        let mut x = before.clone();
        linear_add(isa, a, case.rows.clone(), of, None, &mut x, first);
        for row in 0..count {
            for (n, &(panel, lane)) in places.iter().enumerate() {
                let (value, error) = sums.affine(case, case.rows.start + row, n);
                let found = x.at(first + row, panel * 32 + lane);
                assert_near(found, value + 0.25, error + 1e-7, &|| name("linear_add", row, n));
            }
        }
        (0..first).for_each(|row| (0..panels * 32).for_each(|at| assert_eq!(x.at(row, at), 0.25)));

        // The same to channels of its own, where outputs fill their panels.
        if case.columns == plain(sums.width) {
            let channels = sums.width + self.0.below(60);
            let mut into = self.0.permutation(channels)[..sums.width].to_vec();
            into.sort_unstable();
            let mut x = filled(count + first, channels.div_ceil(32), 0.25);
            linear_add(isa, a, case.rows.clone(), of, Some(&into), &mut x, first);
            for row in 0..count {
                for channel in 0..channels.div_ceil(32) * 32 {
                    let found = x.at(first + row, channel);
                    match into.binary_search(&channel) {
                        Ok(n) => {
                            let (value, error) = sums.affine(case, case.rows.start + row, n);
                            assert_near(found, value + 0.25, error + 1e-7, &|| name("scattered", row, n));
                        }
                        Err(_) => assert_eq!(found, 0.25, "{}", name("not scattered", row, channel)),
                    }
                }
            }
        }
    }
}

fn filled(rows: usize, panels: usize, value: f32) -> Panels<f32> {
    let mut out = Panels::zeros(rows, panels);
    for row in 0..rows {
        (0..panels * 32).for_each(|at| out.set(row, at, value));
    }
    out
}

/// A GELU of either form.
fn of_form(form: Gelu, x: f64) -> f64 {
    match form {
        Gelu::Exact => gelu(x),
        Gelu::Quick => x / (1.0 + libm::exp(-1.702 * x)),
    }
}

#[test]
fn products_are_right_on_every_instruction_set() {
    for i in 0..90 {
        let case = Case::random(&mut rng("products", i));
        for isa in isas() {
            case.on(isa, &mut Reference(rng("products, choices", i)));
        }
    }
}

#[test]
fn sizes_around_those_of_tiles_are_right() {
    let edges = [
        1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 47, 48, 49, 64, 65,
    ];
    let mut choices = rng("edges", 0);
    for rows in edges {
        let pick = |rng: &mut Rng| edges[rng.below(edges.len())];
        let (depth, width) = (pick(&mut choices), pick(&mut choices));
        let case = Case {
            all: rows,
            rows: 0..rows,
            depths: plain(depth),
            columns: plain(width),
            a: normals(&mut choices, rows * depth),
            w: normals(&mut choices, width * depth),
            scale: None,
            bias: normals(&mut choices, width),
        };
        for isa in isas() {
            case.on(isa, &mut Reference(rng("edges, choices", rows as u64)));
        }
    }
}

#[test]
fn nothing_times_something_is_the_bias() {
    // No inputs at all; memory that holds something else from before.
    for isa in isas() {
        let columns = panels_of([40, 7]);
        let bias = row_of(&[1.5; 47], &columns);
        fn of<'a, W: Weight>(weights: &'a Packed<W>, bias: &'a [[f32; 32]]) -> Linear<'a, W> {
            Linear {
                weights,
                scale: None,
                bias,
            }
        }
        let mut out = filled(20, 3, f32::NAN);
        let expected = |out: &Panels<f32>| {
            for (row, (panel, lane)) in
                (0..20).flat_map(|row| places(&columns).into_iter().map(move |p| (row, p)))
            {
                assert_eq!(out.at(row, panel * 32 + lane), 1.5, "{isa}");
            }
        };
        linear(
            isa,
            &Panels::<f32>::zeros(20, 0),
            0..20,
            of(&f32::pack(&|_| &[], &columns, &[]), &bias),
            0..3,
            &mut out,
        );
        expected(&out);
        out = filled(20, 3, f32::NAN);
        linear(
            isa,
            &Panels::<Bf16>::zeros(20, 0),
            0..20,
            of(&Bf16::pack(&|_| &[], &columns, &[]), &bias),
            0..3,
            &mut out,
        );
        expected(&out);
        out = filled(20, 3, f32::NAN);
        let mut a = Quantized::zeros(20, 0);
        quantize(isa, &Panels::<f32>::zeros(20, 0), 0..20, &mut a);
        linear(
            isa,
            &a,
            0..20,
            of(&u8::pack(&|_| &[], &columns, &[]), &bias),
            0..3,
            &mut out,
        );
        expected(&out);
        // No rows, and no outputs.
        let (a, w) = (
            panels::<f32>(&[1.0; 100], 10, &plain(10), 0.0),
            f32::pack(&|_| &[1.0; 10], &plain(10), &plain(10)),
        );
        let before = bits(&out);
        linear(isa, &a, 3..3, of(&w, &[[0.0; 32]]), 0..1, &mut out);
        linear(isa, &a, 0..10, of(&w, &[[0.0; 32]]), 1..1, &mut out);
        linear_gelu(
            isa,
            &a,
            10..10,
            of(&w, &[[0.0; 32]]),
            (Gelu::Exact, None),
            &mut out,
        );
        linear_add(isa, &a, 0..0, of(&w, &[[0.0; 32]]), None, &mut out, 20);
        let none = f32::pack(&|_| &[1.0; 10], &[], &plain(10));
        linear_gelu(isa, &a, 0..10, of(&none, &[]), (Gelu::Exact, None), &mut out);
        linear_add(isa, &a, 0..10, of(&none, &[]), Some(&[]), &mut out, 0);
        assert_eq!(before, bits(&out), "{isa}");
    }
}

/// Every row alone gives the same bits as all together.
struct Alone;
for_all_kinds!(Alone);

impl Alone {
    fn check<A: Left>(&mut self, case: &Case, isa: Isa, kind: &str, a: &A, w: &Packed<A::Weight>, _: &Sums) {
        let panels = case.columns.len();
        let (scale, bias) = (
            case.scale.as_ref().map(|s| row_of(s, &case.columns)),
            row_of(&case.bias, &case.columns),
        );
        let of = Linear {
            weights: w,
            scale: scale.as_deref(),
            bias: &bias,
        };
        let (mut all, mut one) = (
            Panels::<f32>::zeros(case.all, panels),
            Panels::<f32>::zeros(1, panels),
        );
        linear(isa, a, 0..case.all, of, 0..panels, &mut all);
        let all = bits(&all);
        for row in 0..case.all {
            linear(isa, a, row..row + 1, of, 0..panels, &mut one);
            assert_eq!(
                bits(&one),
                all[row * panels * 32..(row + 1) * panels * 32],
                "{isa} {kind} row {row}"
            );
        }
        let mut all = filled(case.all, panels, 0.5);
        linear_add(isa, a, 0..case.all, of, None, &mut all, 0);
        let all = bits(&all);
        for row in 0..case.all {
            let mut one = filled(1, panels, 0.5);
            linear_add(isa, a, row..row + 1, of, None, &mut one, 0);
            assert_eq!(
                bits(&one),
                all[row * panels * 32..(row + 1) * panels * 32],
                "{isa} {kind} row {row} added"
            );
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    for i in 0..20 {
        let case = Case::random(&mut rng("alone", i));
        isas().into_iter().for_each(|isa| case.on(isa, &mut Alone));
    }
}

/// 8-bit products are the same to the last bit everywhere: sums of integers are exact.
#[derive(Default)]
struct Same(Option<Vec<u32>>);

impl Check for Same {
    fn f32(&mut self, _: &Case, _: Isa, _: &Panels<f32>, _: &Sums) {}
    fn bf16(&mut self, _: &Case, _: Isa, _: &Panels<Bf16>, _: &Sums) {}
    fn int8(&mut self, case: &Case, isa: Isa, a: &Quantized, _: &Sums) {
        let (weights, bias) = (case.pack(), row_of(&case.bias, &case.columns));
        let of = Linear {
            weights: &weights,
            scale: None,
            bias: &bias,
        };
        let mut out = Panels::<f32>::zeros(case.all, case.columns.len());
        linear(isa, a, 0..case.all, of, 0..case.columns.len(), &mut out);
        let found = bits(&out);
        let expected = self.0.get_or_insert_with(|| found.clone());
        assert_eq!(*expected, found, "{isa} {case:?}");
    }
}

#[test]
fn int8_products_are_bit_identical_on_every_instruction_set() {
    for i in 0..60 {
        let case = Case::random(&mut rng("same", i));
        let mut same = Same::default();
        isas().into_iter().for_each(|isa| case.on(isa, &mut same));
    }
    // The greatest sums: every integer at its end.
    let case = Case {
        all: 33,
        rows: 0..33,
        depths: plain(4096),
        columns: plain(40),
        a: (0..33 * 4096)
            .map(|i| if i / 4096 % 2 == 0 { 1.0 } else { -1.0 })
            .collect(),
        w: (0..40 * 4096)
            .map(|i| if i / 4096 % 3 == 0 { 1.0 } else { -1.0 })
            .collect(),
        scale: None,
        bias: vec![0.0; 40],
    };
    let mut same = Same::default();
    isas().into_iter().for_each(|isa| case.on(isa, &mut same));
    assert!(
        same.0
            .unwrap()
            .iter()
            .any(|&bits| (f32::from_bits(bits) - 4096.0).abs() < 0.01)
    );
}

/// What is not a number, or infinite, stays in its row.
struct Contained<'a> {
    clean: &'a Case,
    bad: Vec<usize>,
}
for_all_kinds!(Contained<'_>);

impl Contained<'_> {
    fn check<A: Left>(
        &mut self,
        case: &Case,
        isa: Isa,
        kind: &str,
        a: &A,
        w: &Packed<A::Weight>,
        sums: &Sums,
    ) {
        let panels = case.columns.len();
        let bias = row_of(&case.bias, &case.columns);
        let of = Linear {
            weights: w,
            scale: None,
            bias: &bias,
        };
        let mut out = Panels::<f32>::zeros(case.all, panels);
        linear(isa, a, 0..case.all, of, 0..panels, &mut out);
        let mut activated = Panels::<Bf16>::zeros(case.all, panels);
        linear_gelu(isa, a, 0..case.all, of, (Gelu::Exact, None), &mut activated);
        for row in 0..case.all {
            for (n, (panel, lane)) in places(&case.columns).into_iter().enumerate() {
                let (value, error) = sums.affine(self.clean, row, n);
                let found = out.at(row, panel * 32 + lane);
                if self.bad.contains(&row) {
                    assert!(
                        !found.is_finite(),
                        "{isa} {kind} row {row} column {n} of {case:?}: {found}"
                    );
                } else {
                    assert_near(found, value, error, &|| {
                        format!("{isa} {kind} row {row} beside {:?}", self.bad)
                    });
                    assert!(activated.at(row, panel * 32 + lane).to_f32().is_finite());
                }
            }
            if !self.bad.contains(&row) {
                for (panel, columns) in case.columns.iter().enumerate() {
                    (columns.len()..32)
                        .for_each(|lane| assert_eq!(out.at(row, panel * 32 + lane), 0.0, "{isa} {kind}"));
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for i in 0..25 {
        let mut random = rng("contained", i);
        let mut case = Case::random(&mut random);
        // Weights of zero would hide an infinity from the sum (0 · ∞ is NaN, which is as well).
        case.scale = None;
        let mut bad = random.permutation(case.all);
        bad.truncate(case.all.div_ceil(4));
        let depth = case.depth();
        for (i, &row) in bad.iter().enumerate() {
            let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
            case.a[row * depth + random.below(depth)] = value;
        }
        for isa in isas() {
            case.on(
                isa,
                &mut Contained {
                    clean: &case,
                    bad: bad.clone(),
                },
            );
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for isa in isas() {
        let w = f32::pack(&|_| &[1.0; 70], &plain(40), &plain(70));
        let bias = [[0.0; 32]; 2];
        let of = Linear {
            weights: &w,
            scale: None,
            bias: &bias,
        };
        let a = Panels::<f32>::zeros(4, 3);
        let mut out = Panels::<f32>::zeros(4, 2);
        linear(isa, &a, 0..4, of, 0..2, &mut out);
        let try_to = |what: &str, call: &dyn Fn(&mut Panels<f32>)| {
            refused(&format!("{isa}: {what}"), || call(&mut Panels::zeros(4, 2)));
        };
        let with = |inputs: usize| Panels::<f32>::zeros(4, inputs);
        let short = &bias[..1];
        try_to("rows past the last", &|out| linear(isa, &a, 1..5, of, 0..2, out));
        try_to("panels past the last", &|out| {
            linear(isa, &a, 0..4, of, 1..3, out);
        });
        try_to("too few inputs", &|out| {
            linear(isa, &with(2), 0..4, of, 0..2, out);
        });
        try_to("too many inputs", &|out| {
            linear(isa, &with(4), 0..4, of, 0..2, out);
        });
        try_to("too few rows", &|_| {
            linear(isa, &a, 0..4, of, 0..2, &mut Panels::<f32>::zeros(3, 2));
        });
        try_to("too few panels", &|_| {
            linear(isa, &a, 0..4, of, 0..2, &mut Panels::<f32>::zeros(4, 1));
        });
        try_to("short bias", &|out| {
            linear(isa, &a, 0..4, Linear { bias: short, ..of }, 0..2, out);
        });
        try_to("short scale", &|out| {
            linear(
                isa,
                &a,
                0..4,
                Linear {
                    scale: Some(short),
                    ..of
                },
                0..2,
                out,
            );
        });
        try_to("gelu: inputs", &|out| {
            linear_gelu(isa, &with(1), 0..4, of, (Gelu::Exact, None), out);
        });
        try_to("gelu: short op", &|out| {
            linear_gelu(isa, &a, 0..4, of, (Gelu::Exact, Some((&bias, short))), out);
        });
        try_to("gelu: rows", &|_| {
            linear_gelu(
                isa,
                &a,
                0..4,
                of,
                (Gelu::Exact, None),
                &mut Panels::<f32>::zeros(3, 2),
            );
        });
        try_to("add: rows past the last", &|out| {
            linear_add(isa, &a, 0..4, of, None, out, 1);
        });
        try_to("add: panels", &|_| {
            linear_add(isa, &a, 0..4, of, None, &mut Panels::zeros(9, 1), 0);
        });
        try_to("add: channels past the last", &|out| {
            linear_add(isa, &a, 0..4, of, Some(&[64; 40]), out, 0);
        });
        try_to("add: too few channels", &|out| {
            linear_add(isa, &a, 0..4, of, Some(&[1; 39]), out, 0);
        });
        try_to("add: inputs", &|out| {
            linear_add(isa, &with(2), 0..4, of, None, out, 0);
        });
    }
    // Panels wider than a panel would be read past their end.
    #[allow(clippy::single_range_in_vec_init)]
    let wide = [0..33];
    let row = |_| &[1.0; 33][..];
    refused("f32 depths", || drop(f32::pack(&row, &[], &wide)));
    refused("f32 columns", || drop(f32::pack(&row, &wide, &[])));
    refused("bf16 depths", || drop(Bf16::pack(&row, &[], &wide)));
    refused("8-bit depths", || drop(u8::pack(&row, &[], &wide)));
    refused("short rows", || drop(f32::pack(&row, &plain(1), &plain(34))));
    // So would be a matrix whose size overflows.
    for (rows, panels) in [
        (usize::MAX / 3 + 1, 0),
        (usize::MAX / 3 + 1, 6),
        (usize::MAX, usize::MAX),
        (1 << 57, 1),
    ] {
        refused("size", || drop(Panels::<f32>::zeros(rows, panels)));
        refused("new size", || Panels::<f32>::zeros(1, 1).reshape(rows, panels));
    }
    let mut x = Panels::<f32>::zeros(2, 1);
    refused("column past the last", || assert_eq!(x.at(0, 32), 0.0));
    refused("row past the last", || assert_eq!(x.at(2, 0), 0.0));
    refused("setting past the last", || x.set(0, 32, 1.0));
}
