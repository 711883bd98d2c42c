//! Convolutions, forward and backward, on every instruction set and for any number of threads.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use vitesse_kernels::Isa;
use vitesse_kernels::train::conv::{Conv, Layout, reference};
use vitesse_kernels::train::{Math, Precision};
use vitesse_rng::Rng;

/// A convolution, its input, weight, bias and output gradient.
struct Case {
    conv: Conv,
    input: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    grad: Vec<f32>,
}

impl Case {
    fn new(conv: Conv, rng: &mut Rng) -> Case {
        Case {
            conv,
            input: normals(rng, conv.input_len()),
            weight: normals(rng, conv.weight_len()),
            bias: normals(rng, conv.channels_out),
            grad: normals(rng, conv.output_len()),
        }
    }

    /// Output, and gradients of input, weight and bias.
    fn fast(&self, isa: Isa) -> [Vec<f32>; 4] {
        let Case {
            conv,
            input,
            weight,
            bias,
            grad,
        } = self;
        let math = Math {
            isa,
            precision: Precision::F32,
        };
        [
            conv.forward(math, input, weight, Some(bias)),
            conv.backward_input(math, grad, weight),
            conv.backward_weight(math, input, grad),
            conv.backward_bias(grad),
        ]
    }

    fn plain(&self) -> [Vec<f32>; 4] {
        let Case {
            conv,
            input,
            weight,
            bias,
            grad,
        } = self;
        [
            reference::forward(conv, input, weight, Some(bias)),
            reference::backward_input(conv, grad, weight),
            reference::backward_weight(conv, input, grad),
            reference::backward_bias(conv, grad),
        ]
    }

    fn compare(&self) {
        let wanted = self.plain();
        for isa in isas() {
            for (what, (found, wanted)) in ["output", "input", "weight", "bias"]
                .iter()
                .zip(self.fast(isa).iter().zip(&wanted))
            {
                assert_eq!(found.len(), wanted.len());
                // What is summed is normal: the sums are about the root of the number of terms.
                let size = (wanted.iter().map(|x| x * x).sum::<f32>() / wanted.len() as f32).sqrt();
                for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                    assert!(
                        (found - wanted).abs() <= 2e-5 * (1.0 + size + wanted.abs()),
                        "{isa} {what}[{at}]: {found}, not {wanted}, {:?}",
                        self.conv
                    );
                }
            }
        }
    }
}

fn random(rng: &mut Rng, layout: Layout) -> Conv {
    loop {
        let groups = [1, 1, 2, 3, 5][rng.below(5)];
        let (inner, outer) = [(1, 1), (1, 2), (3, 4), (8, 8), (12, 5), (7, 17)][rng.below(6)];
        let kernels = [1, 2, 3, 5, 7];
        let conv = Conv {
            batch: between(rng, 1, 5),
            channels_in: groups * inner,
            channels_out: groups * outer,
            groups,
            kernel: [kernels[rng.below(5)], kernels[rng.below(5)]],
            stride: [between(rng, 1, 3), between(rng, 1, 3)],
            padding: [between(rng, 0, 3), between(rng, 0, 3)],
            size: [between(rng, 1, 19), between(rng, 1, 35)],
            layout,
        };
        if (0..2).all(|side| conv.kernel[side] <= conv.size[side] + 2 * conv.padding[side]) {
            return conv;
        }
    }
}

#[test]
fn convolutions_of_random_shapes_are_right_on_every_instruction_set() {
    for i in 0..300 {
        let mut rng = rng("conv", i);
        let layout = [Layout::BatchFirst, Layout::ChannelsFirst][rng.below(2)];
        let conv = random(&mut rng, layout);
        Case::new(conv, &mut rng).compare();
    }
}

fn square(batch: usize, groups: usize, width: usize, kernel: usize, stride: usize, size: usize) -> Conv {
    Conv {
        batch,
        channels_in: groups * width,
        channels_out: groups * width,
        groups,
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [kernel / 2; 2],
        size: [size; 2],
        layout: Layout::BatchFirst,
    }
}

/// Maps that are taken in bands of rows, several runs of images, channels in several parts.
#[test]
fn large_convolutions_are_right_on_every_instruction_set() {
    let channels_first = |conv| Conv {
        layout: Layout::ChannelsFirst,
        ..conv
    };
    for (i, conv) in [
        channels_first(square(3, 1, 100, 1, 1, 9)),
        channels_first(square(2, 1, 100, 1, 2, 13)),
        square(2, 1, 3, 3, 2, 150),
        square(1, 2, 48, 3, 1, 80),
        square(40, 3, 1, 7, 1, 14),
        square(3, 1, 300, 1, 1, 9),
        square(2, 1, 300, 1, 2, 33),
    ]
    .into_iter()
    .enumerate()
    {
        Case::new(conv, &mut rng("large", i as u64)).compare();
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let isa = Isa::detect();
    for (i, conv) in [
        square(5, 4, 24, 3, 1, 28),
        square(6, 96, 1, 7, 1, 14),
        square(3, 1, 64, 3, 2, 30),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case::new(conv, &mut rng("threads", i as u64));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| case.fast(isa))
        };
        let one = with(1);
        assert!([2, 3, 7].into_iter().all(|threads| with(threads) == one));
    }
}
