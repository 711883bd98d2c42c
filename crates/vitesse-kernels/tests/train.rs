//! Training's segments against their plain versions, for every instruction set.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::training::{agree, difference, maths};
use common::{between, isas, normals, rng};
use vitesse_kernels::train::{
    Attention, Before, Linear, LinearGradients, Math, NormGradients, Perceptron, PerceptronGradients,
    PerceptronWanted, Precision, Terms, Wanted, gelu, gelu_backward, layer_norm, layer_norm_backward,
    reference, soft_cross_entropy, soft_cross_entropy_backward,
};
use vitesse_kernels::{Gelu, Isa};
use vitesse_rng::Rng;

/// What a linear segment is made of.
struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    before: u64,
    values: [Vec<f32>; 8],
    bias: bool,
    residual: bool,
    factors: bool,
}

impl Case {
    fn new(rng: &mut Rng, before: u64, [samples, each, inputs, outputs]: [usize; 4]) -> Case {
        let rows = samples * each;
        let values = [
            rows * inputs,
            inputs,
            inputs,
            outputs * inputs,
            outputs,
            samples,
            rows * outputs,
            rows * outputs,
        ];
        let mut values = values.map(|count| normals(rng, count));
        values[5]
            .iter_mut()
            .for_each(|factor| *factor = if *factor > 0.5 { 0.0 } else { 1.25 });
        let [bias, residual, factors] = std::array::from_fn(|_| rng.bernoulli(0.5));
        Case {
            rows,
            inputs,
            outputs,
            before,
            values,
            bias,
            residual,
            factors,
        }
    }

    fn linear(&self) -> Linear<'_> {
        let [x, gain, shift, weight, bias, factors, ..] = &self.values;
        Linear {
            input: x,
            before: match self.before {
                0 => Before::Nothing,
                1 => Before::Norm {
                    gain,
                    shift,
                    eps: 1e-6,
                },
                2 => Before::Gelu(Gelu::Exact),
                _ => Before::Gelu(Gelu::Quick),
            },
            weight,
            bias: self.bias.then_some(bias),
            factors: self.factors.then_some(factors),
            outputs: self.outputs,
            inputs: self.inputs,
        }
    }

    fn residual(&self) -> Option<&[f32]> {
        self.residual.then_some(&self.values[6])
    }

    fn name(&self) -> String {
        format!(
            "{}x{} to {}, before {}, bias {}, residual {}, factors {}",
            self.rows, self.inputs, self.outputs, self.before, self.bias, self.residual, self.factors
        )
    }
}

fn each(gradients: &LinearGradients) -> [(&'static str, &Option<Vec<f32>>); 5] {
    [
        ("input", &gradients.input),
        ("weight", &gradients.weight),
        ("bias", &gradients.bias),
        ("gain", &gradients.gain),
        ("shift", &gradients.shift),
    ]
}

/// Shapes with every kind of edge; the last is deeper than one chunk.
fn shapes(rng: &mut Rng) -> Vec<[usize; 4]> {
    let mut shapes = vec![
        [1, 1, 1, 1],
        [2, 32, 64, 32],
        [3, 11, 33, 47],
        [2, 70, 40, 17],
        [1, 5, 900, 70],
    ];
    shapes.extend((0..6).map(|_| {
        [
            between(rng, 1, 4),
            between(rng, 1, 40),
            between(rng, 1, 100),
            between(rng, 1, 100),
        ]
    }));
    shapes.push([2, 600, 20, 24]);
    shapes
}

#[test]
fn linear_segments_are_the_plain_ones() {
    for before in 0..4 {
        let mut rng = rng("linear", before);
        for shape in shapes(&mut rng) {
            let case = Case::new(&mut rng, before, shape);
            let linear = case.linear();
            let expected = reference::linear(&linear, case.residual());
            let gradients = reference::linear_backward(&linear, &case.values[7], Wanted::ALL);
            for math in maths() {
                let name = case.name();
                agree(&name, math, &linear.forward(math, case.residual()), &expected);
                let found = linear.backward(math, &case.values[7], Wanted::ALL);
                for ((what, found), (_, expected)) in each(&found).into_iter().zip(each(&gradients)) {
                    assert_eq!(found.is_some(), expected.is_some(), "{what} of {name}");
                    if let (Some(found), Some(expected)) = (found, expected) {
                        agree(&format!("{what} of {name}"), math, found, expected);
                    }
                }
            }
        }
    }
}

#[test]
fn only_what_is_wanted_is_computed_and_it_is_the_same() {
    for before in 0..4 {
        let mut case = Case::new(&mut rng("wanted", before), before, [3, 7, 40, 50]);
        case.bias = true;
        let (linear, grad) = (case.linear(), &case.values[7]);
        let math = Math {
            isa: Isa::detect(),
            precision: Precision::F32,
        };
        let all = linear.backward(math, grad, Wanted::ALL);
        for bits in 0..32 {
            let [input, weight, bias, gain, shift] = std::array::from_fn(|i| bits >> i & 1 == 1);
            let wanted = Wanted {
                input,
                weight,
                bias,
                gain,
                shift,
            };
            let found = linear.backward(math, grad, wanted);
            let asked = [input, weight, bias, gain && before == 1, shift && before == 1];
            for (((what, found), (_, all)), asked) in each(&found).into_iter().zip(each(&all)).zip(asked) {
                assert_eq!(found.is_some(), asked, "{what}, {wanted:?}");
                // The sums of a bias come with the weights' where those are wanted, in another order.
                if let (Some(found), Some(all), "bias") = (found, all, what) {
                    agree(what, math, found, all);
                } else {
                    assert!(!asked || found == all, "{what}, {wanted:?}");
                }
            }
        }
    }
}

/// What a perceptron is made of: input, gain, shift, two weights and biases, factors, and the gradient of its result.
struct Hidden([Vec<f32>; 9], bool);

impl Hidden {
    fn new(rng: &mut Rng, [samples, each, dim, hidden]: [usize; 4]) -> Hidden {
        let rows = samples * each;
        let shares = (1.0 / (dim as f32).sqrt(), 1.0 / (hidden as f32).sqrt());
        let values = [
            (rows * dim, 1.0),
            (dim, 1.0),
            (dim, 1.0),
            (hidden * dim, shares.0),
            (hidden, 1.0),
            (dim * hidden, shares.1),
            (dim, 1.0),
            (samples, 1.0),
            (rows * dim, 1.0),
        ];
        let mut values =
            values.map(|(count, scale)| normals(rng, count).into_iter().map(|x| x * scale).collect());
        let factors: &mut Vec<f32> = &mut values[7];
        factors
            .iter_mut()
            .for_each(|factor| *factor = if *factor > 0.5 { 0.0 } else { 1.25 });
        Hidden(values, rng.bernoulli(0.5))
    }

    fn perceptron(&self) -> Perceptron<'_> {
        let [input, gain, shift, weight1, bias1, weight2, bias2, factors, _] = &self.0;
        Perceptron {
            input,
            gain,
            shift,
            eps: 1e-6,
            weight1,
            bias1,
            gelu: if bias2.len() % 2 == 0 {
                Gelu::Exact
            } else {
                Gelu::Quick
            },
            weight2,
            bias2,
            factors: self.1.then_some(factors),
        }
    }
}

fn bits(bits: u32) -> PerceptronWanted {
    let [input, gain, shift, weight1, bias1, weight2, bias2] = std::array::from_fn(|i| bits >> i & 1 == 1);
    PerceptronWanted {
        input,
        gain,
        shift,
        weight1,
        bias1,
        weight2,
        bias2,
    }
}

fn each_of(gradients: &PerceptronGradients) -> [(&'static str, &Option<Vec<f32>>); 7] {
    [
        ("input", &gradients.input),
        ("gain", &gradients.gain),
        ("shift", &gradients.shift),
        ("weight1", &gradients.weight1),
        ("bias1", &gradients.bias1),
        ("weight2", &gradients.weight2),
        ("bias2", &gradients.bias2),
    ]
}

#[test]
fn perceptrons_are_the_plain_ones() {
    let mut rng = rng("perceptron", 0);
    let mut shapes = vec![
        [1, 1, 1, 1],
        [2, 32, 64, 32],
        [3, 11, 33, 47],
        [1, 5, 24, 900],
        [2, 170, 40, 17],
        [5, 131, 20, 24],
    ];
    shapes.extend((0..6).map(|_| {
        [
            between(&mut rng, 1, 4),
            between(&mut rng, 1, 70),
            between(&mut rng, 1, 100),
            between(&mut rng, 1, 100),
        ]
    }));
    for shape in shapes {
        let case = Hidden::new(&mut rng, shape);
        let (perceptron, grad) = (case.perceptron(), &case.0[8]);
        let name = format!("{shape:?}, factors {}", case.1);
        let expected = reference::perceptron(&perceptron);
        let gradients = reference::perceptron_backward(&perceptron, grad);
        for math in maths() {
            agree(&name, math, &perceptron.forward(math), &expected);
            let found = perceptron.backward(math, grad, bits(127));
            for ((what, found), (_, expected)) in each_of(&found).into_iter().zip(each_of(&gradients)) {
                let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
                agree(&format!("{what} of {name}"), math, found, expected);
            }
        }
    }
}

#[test]
fn a_perceptron_computes_only_what_is_wanted_and_it_is_the_same() {
    let case = Hidden::new(&mut rng("wanted hidden", 0), [3, 27, 40, 70]);
    let (perceptron, grad) = (case.perceptron(), &case.0[8]);
    for precision in [Precision::F32, Precision::Bf16] {
        let isa = Isa::detect();
        let math = Math { isa, precision };
        let all = perceptron.backward(math, grad, bits(127));
        for number in 0..128 {
            let found = perceptron.backward(math, grad, bits(number));
            let pairs = each_of(&found).into_iter().zip(each_of(&all)).enumerate();
            for (i, ((what, found), (_, all))) in pairs {
                let asked = number >> i & 1 == 1;
                assert_eq!(found.is_some(), asked, "{what}, {number:b}");
                // The sums of the last bias alone are taken without the rest, in another order.
                if let (Some(found), Some(all), "bias2") = (found, all, what) {
                    agree(what, math, found, all);
                } else {
                    assert!(!asked || found == all, "{what}, {number:b}");
                }
            }
        }
    }
}

/// `f32` as three of bf16 is no less exact than `f32` itself, on numbers of very different sizes.
#[test]
fn split_products_are_as_exact_as_multiplied_ones() {
    let Some(best) = isas().into_iter().find(|isa| *isa == Isa::Amx) else {
        println!("skipped: no AMX");
        return;
    };
    let mut rng = rng("split", 0);
    let mut case = Case::new(&mut rng, 0, [1, 64, 768, 64]);
    for values in &mut case.values {
        values
            .iter_mut()
            .for_each(|x| *x *= (rng.normal() as f32 * 3.0).exp());
    }
    let linear = case.linear();
    let exact = reference::linear(&linear, None);
    let [split, multiplied] = [best, Isa::Avx512].map(|isa| {
        let math = Math {
            isa,
            precision: Precision::F32,
        };
        difference(&linear.forward(math, None), &exact)
    });
    println!("as a share of the greatest value: split {split:e}, multiplied {multiplied:e}");
    assert!(split <= 2.0 * multiplied.max(1e-7));
}

#[test]
fn attention_is_the_plain_one() {
    let cases: [(usize, usize, &[usize], &[usize]); 7] = [
        (1, 1, &[1], &[1]),
        (2, 33, &[32, 32], &[32, 32]),
        // More samples than parts, into which the gradients of biases are cut.
        (36, 9, &[8], &[8]),
        (1, 70, &[64], &[64]),
        (2, 17, &[24, 8], &[40, 16]),
        (3, 50, &[16, 48, 5], &[33, 7, 64]),
        (1, 197, &[64], &[64]),
    ];
    let cases = cases
        .into_iter()
        .flat_map(|case| [0, 1, 2].map(|terms| (case, terms)));
    for (i, ((batch, tokens, qk, v), terms)) in cases.enumerate() {
        let mut rng = rng("attention", i as u64);
        // Biases in the second turn, and in the third masks of two windows, where samples come in pairs. The first window hides
        // nothing.
        let bias = normals(&mut rng, qk.len() * tokens * tokens);
        let windows = if terms == 2 && batch % 2 == 0 { 2 } else { 0 };
        let mut mask = vec![0.0; windows * tokens * tokens];
        for (at, x) in mask.iter_mut().enumerate().skip(tokens * tokens) {
            let (row, column) = (at / tokens % tokens, at % tokens);
            *x = if (row < tokens / 2) == (column < tokens / 2) {
                0.0
            } else {
                -100.0
            };
        }
        let (qk_sum, v_sum): (usize, usize) = (qk.iter().sum(), v.iter().sum());
        let qkv = normals(&mut rng, batch * tokens * (2 * qk_sum + v_sum));
        let grad = normals(&mut rng, batch * tokens * v_sum);
        let attention = Attention {
            qkv: &qkv,
            batch,
            tokens,
            qk,
            v,
            scale: 0.3,
            terms: (terms > 0).then_some(Terms {
                bias: &bias,
                mask: &mask,
            }),
        };
        let (out, lse) = reference::attention(&attention);
        let expected = reference::attention_backward(&attention, &out, &lse, &grad);
        for math in maths() {
            let name = format!("{batch} images of {tokens} tokens, heads of {qk:?} and {v:?}");
            let found = attention.forward(math);
            agree(&name, math, &found.0, &out);
            agree(&format!("logs of {name}"), math, &found.1, &lse);
            let found = attention.backward(math, &found.0, &found.1, &grad);
            agree(&format!("gradient of {name}"), math, &found.qkv, &expected.qkv);
            match (&found.bias, &expected.bias) {
                // The gradient of a single logit is zero: nothing but rounding is left of it.
                (Some(_), Some(_)) if tokens == 1 => {}
                (Some(found), Some(expected)) => agree(&format!("bias of {name}"), math, found, expected),
                (found, expected) => assert!(found.is_none() && expected.is_none()),
            }
        }
    }
}

#[test]
fn norms_and_activations_are_the_plain_ones() {
    for (i, (rows, dim)) in [(1, 1), (3, 5), (70, 33), (130, 192), (2, 768)]
        .into_iter()
        .enumerate()
    {
        let mut rng = rng("norm", i as u64);
        let [x, grad] = [(); 2].map(|()| normals(&mut rng, rows * dim));
        let [gain, shift] = [(); 2].map(|()| normals(&mut rng, dim));
        let expected = reference::layer_norm(&x, &gain, &shift, 1e-5);
        let gradients = reference::layer_norm_backward(&x, &gain, 1e-5, &grad, [true; 3]);
        for isa in isas() {
            let math = Math {
                isa,
                precision: Precision::F32,
            };
            agree("norm", math, &layer_norm(isa, &x, &gain, &shift, 1e-5), &expected);
            for bits in 0..8 {
                let wanted: [bool; 3] = std::array::from_fn(|i| bits >> i & 1 == 1);
                let found = layer_norm_backward(isa, &x, &gain, 1e-5, &grad, wanted);
                let list = |g: &NormGradients| [g.input.clone(), g.gain.clone(), g.shift.clone()];
                for ((found, expected), wanted) in list(&found).iter().zip(list(&gradients)).zip(wanted) {
                    assert_eq!(found.is_some(), wanted);
                    if let Some(found) = found {
                        agree(
                            &format!("{rows}x{dim}, {bits:b}"),
                            math,
                            found,
                            &expected.unwrap(),
                        );
                    }
                }
            }
            for form in [Gelu::Exact, Gelu::Quick] {
                let found = gelu(isa, form, &x);
                agree("gelu", math, &found, &reference::gelu(form, &x));
                let found = gelu_backward(isa, form, &x, &grad);
                let expected = reference::gelu_backward(form, &x, &grad);
                agree("gelu's slope", math, &found, &expected);
            }
        }
    }
}

#[test]
fn cross_entropy_is_the_plain_one() {
    let mut rng = rng("loss", 0);
    for (rows, classes) in [(1, 1), (7, 10), (3, 1000)] {
        let logits: Vec<f32> = normals(&mut rng, rows * classes)
            .iter()
            .map(|x| x * 20.0)
            .collect();
        let targets: Vec<f32> = (0..rows * classes).map(|_| rng.uniform() as f32).collect();
        let found = soft_cross_entropy(&logits, &targets, classes);
        let expected = reference::soft_cross_entropy(&logits, &targets, classes);
        assert!(
            (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
            "{found} {expected}"
        );
        let found = soft_cross_entropy_backward(&logits, &targets, classes, 0.7);
        let expected = reference::soft_cross_entropy_backward(&logits, &targets, classes, 0.7);
        assert!(difference(&found, &expected) < 1e-6);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = rng("threads", 0);
    let bias = normals(&mut rng, 2 * 40 * 40);
    let mut mask = vec![0.0; 2 * 40 * 40];
    mask[40 * 40..].fill(-100.0);
    let mut case = Case::new(&mut rng, 1, [8, 110, 70, 96]);
    case.bias = true;
    let hidden = Hidden::new(&mut rng, [5, 210, 70, 130]);
    let qkv = normals(&mut rng, 4 * 40 * 96);
    let grad = normals(&mut rng, 4 * 40 * 32);
    let run = |threads: usize, math| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let linear = case.linear();
            let attention = Attention {
                qkv: &qkv,
                batch: 4,
                tokens: 40,
                qk: &[16, 16],
                v: &[16, 16],
                scale: 0.25,
                terms: Some(Terms {
                    bias: &bias,
                    mask: &mask,
                }),
            };
            let (out, lse) = attention.forward(math);
            let back = attention.backward(math, &out, &lse, &grad);
            let back = (back.qkv, back.bias);
            let gradients = linear.backward(math, &case.values[7], Wanted::ALL);
            let perceptron = hidden.perceptron();
            let whole = (
                perceptron.forward(math),
                perceptron.backward(math, &hidden.0[8], bits(127)),
            );
            (linear.forward(math, case.residual()), gradients, out, back, whole)
        })
    };
    for math in maths() {
        assert!(run(1, math) == run(3, math), "{math:?}");
    }
}
