//! What works row by row: layer norm, rounding to 8 bits, scale and shift, patches; and bf16.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use vitesse_kernels::{Bf16, Norm, Panels, Quantized, Real, layer_norm, patches, quantize, scale_shift};

fn norms<U: Real>(error: f64) {
    for i in 0..60 {
        let mut rng = rng("norm", i);
        let (all, dim) = (between(&mut rng, 1, 20), between(&mut rng, 1, 200));
        let start = rng.below(all);
        let rows = start..between(&mut rng, start, all);
        let offset = rng.normal() as f32;
        let x: Vec<f32> = normals(&mut rng, all * dim).iter().map(|x| x + offset).collect();
        let (gain, bias) = (normals(&mut rng, dim), normals(&mut rng, dim));
        let columns = plain(dim);
        let (gain_rows, bias_rows) = (row_of(&gain, &columns), row_of(&bias, &columns));
        let norm = Norm {
            gain: &gain_rows,
            bias: &bias_rows,
            eps: 1e-6,
            dim,
        };
        // What is past the last channel must count for nothing.
        let from = panels::<f32>(&x, all, &columns, 100.0);
        for isa in isas() {
            let mut out = Panels::<U>::zeros(rows.len(), columns.len());
            layer_norm(isa, &from, rows.clone(), norm, &mut out);
            for (to, row) in rows.clone().enumerate() {
                let x: Vec<f64> = x[row * dim..][..dim].iter().map(|&x| f64::from(x)).collect();
                let mean = x.iter().sum::<f64>() / dim as f64;
                let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / dim as f64;
                for n in 0..dim {
                    let normed = (x[n] - mean) / (variance + 1e-6).sqrt();
                    let value = normed * f64::from(gain[n]) + f64::from(bias[n]);
                    let size = (normed * f64::from(gain[n])).abs() + f64::from(bias[n]).abs();
                    // One channel alone is its own mean: what is left of it is rounding, and the epsilon makes it large.
                    let few = if dim < 4 { 1e-3 } else { 1e-5 };
                    let what = || format!("{isa} row {row} channel {n} of {dim}");
                    assert_near(
                        out.at(to, n).to_f32(),
                        value,
                        few * (size + 0.1) + error * value.abs(),
                        &what,
                    );
                }
                (dim..columns.len() * 32).for_each(|n| assert_eq!(out.at(to, n).to_f32(), 0.0, "{isa}"));
            }
        }
    }
}

#[test]
fn layer_norms_are_right_on_every_instruction_set() {
    norms::<f32>(0.0);
    norms::<Bf16>(1.0 / 256.0);
}

#[test]
fn layer_norm_keeps_what_is_not_finite_in_its_row() {
    for isa in isas() {
        let mut x = panels::<f32>(&normals(&mut rng("rows", 0), 5 * 50), 5, &plain(50), 0.0);
        x.set(1, 3, f32::NAN);
        x.set(3, 40, f32::INFINITY);
        let ones = vec![[1.0; 32]; 2];
        let mut out = Panels::<f32>::zeros(5, 2);
        layer_norm(
            isa,
            &x,
            0..5,
            Norm {
                gain: &ones,
                bias: &ones,
                eps: 1e-6,
                dim: 50,
            },
            &mut out,
        );
        for row in 0..5 {
            let finite = (0..50).all(|n| out.at(row, n).is_finite());
            assert_eq!(finite, row % 2 == 0, "{isa} row {row}");
        }
    }
}

fn rounded<U: Real>() {
    for i in 0..60 {
        let mut rng = rng("quantize", i);
        let (all, dim) = (between(&mut rng, 1, 20), between(&mut rng, 1, 200));
        let start = rng.below(all);
        let rows = start..between(&mut rng, start, all);
        let size = 10f32.powi(between(&mut rng, 0, 60) as i32 - 30);
        let mut x: Vec<f32> = normals(&mut rng, all * dim).iter().map(|x| x * size).collect();
        x[start * dim..][..dim].fill(0.0);
        let from = panels::<U>(&x, all, &plain(dim), 0.0);
        let mut first: Option<Vec<u32>> = None;
        for isa in isas() {
            let mut out = Quantized::zeros(rows.len(), dim.div_ceil(64));
            quantize(isa, &from, rows.clone(), &mut out);
            let mut bits = Vec::new();
            for (to, row) in rows.clone().enumerate() {
                let most = (0..dim).fold(0f32, |most, n| most.max(from.at(row, n).to_f32().abs()));
                let half = most / 254.0;
                for n in 0..dim {
                    let (x, found) = (from.at(row, n).to_f32(), out.at(to, n));
                    assert!(
                        (x - found).abs() <= half * 1.0001,
                        "{isa}: {found} for {x}, greatest {most}"
                    );
                    bits.push(found.to_bits());
                }
            }
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa}");
        }
    }
}

#[test]
fn rows_in_8_bits_are_within_half_a_step_and_the_same_on_every_instruction_set() {
    rounded::<f32>();
    rounded::<Bf16>();
}

#[test]
fn rows_that_are_not_finite_or_hardly_anything_become_nan_or_zero() {
    for isa in isas() {
        let mut x = Panels::<f32>::zeros(6, 3);
        for row in 0..6 {
            (0..96).for_each(|n| x.set(row, n, n as f32));
        }
        x.set(0, 95, f32::NAN);
        x.set(1, 0, f32::INFINITY);
        x.set(2, 33, f32::NEG_INFINITY);
        (0..96).for_each(|n| x.set(3, n, 1e-38 * (n % 2) as f32));
        (0..96).for_each(|n| x.set(4, n, 3e38 * (n % 2) as f32));
        let mut out = Quantized::zeros(6, 2);
        quantize(isa, &x, 0..6, &mut out);
        for n in 0..96 {
            (0..3).for_each(|row| assert!(out.at(row, n).is_nan(), "{isa}"));
            assert!(out.at(3, n).abs() <= 1e-38, "{isa}");
            assert!((out.at(4, n) - x.at(4, n)).abs() <= 2e36, "{isa}");
            assert!((out.at(5, n) - x.at(5, n)).abs() <= 0.4, "{isa}");
        }
    }
}

#[test]
fn scale_and_shift_are_applied_to_every_row() {
    for i in 0..10 {
        let mut rng = rng("scale", i);
        let (rows, dim) = (rng.below(9), between(&mut rng, 1, 100));
        let (x, scale, shift) = (
            normals(&mut rng, rows * dim),
            normals(&mut rng, dim),
            normals(&mut rng, dim),
        );
        for isa in isas() {
            let columns = plain(dim);
            let mut out = panels::<f32>(&x, rows, &columns, 0.0);
            scale_shift(
                isa,
                &mut out,
                &row_of(&scale, &columns),
                &row_of(&shift, &columns),
            );
            for (at, &x) in x.iter().enumerate() {
                let (row, n) = (at / dim, at % dim);
                let value = f64::from(x) * f64::from(scale[n]) + f64::from(shift[n]);
                assert_near(out.at(row, n), value, 2e-6, &|| format!("{isa} {row} {n}"));
            }
        }
    }
}

#[test]
fn patches_hold_their_pixels_wherever_the_image_begins() {
    for (channels, side, grid) in [
        (3, 16, [2, 3]),
        (3, 8, [4, 2]),
        (3, 4, [3, 3]),
        (1, 14, [2, 2]),
        (2, 5, [3, 2]),
        (3, 32, [1, 2]),
    ] {
        let [height, width] = [grid[0] * side, grid[1] * side];
        let size = channels * height * width;
        let columns = channels * side * side;
        // One number before the image, so that nothing about its place in memory can be assumed.
        let memory = normals(&mut rng("patches", side as u64), size + 1);
        let image = &memory[1..];
        for isa in isas() {
            for range in [0..grid[0] * grid[1], 1..grid[0] * grid[1], 1..1] {
                let mut out = Panels::<f32>::zeros(range.len(), columns.div_ceil(32));
                for row in 0..out.rows() {
                    (0..out.panels() * 32).for_each(|n| out.set(row, n, f32::NAN));
                }
                let mut half = Panels::<Bf16>::zeros(range.len(), columns.div_ceil(32));
                patches(
                    isa,
                    image,
                    [channels, height, width],
                    side,
                    range.clone(),
                    &mut out,
                );
                patches(
                    isa,
                    image,
                    [channels, height, width],
                    side,
                    range.clone(),
                    &mut half,
                );
                for (row, patch) in range.enumerate() {
                    for n in 0..columns {
                        let (channel, y, x) = (n / side / side, n / side % side, n % side);
                        let (y, x) = (patch / grid[1] * side + y, patch % grid[1] * side + x);
                        let pixel = image[(channel * height + y) * width + x];
                        assert_eq!(
                            out.at(row, n),
                            pixel,
                            "{isa} side {side} patch {patch} column {n}"
                        );
                        assert_eq!(
                            half.at(row, n),
                            Bf16::from_f32(pixel),
                            "{isa} side {side} patch {patch} column {n}"
                        );
                    }
                    // Zeros, whatever was there: NaN would go on through weights of zero.
                    (columns..out.panels() * 32).for_each(|n| assert_eq!(out.at(row, n), 0.0, "{isa}"));
                }
            }
        }
    }
}

#[test]
fn bf16_is_rounded_the_same_way_on_every_instruction_set() {
    let edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.003_906_2,
        1.011_718_8,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    let mut random = rng("bf16", 0);
    let bits = (0..4096 - edges.len()).map(|_| f32::from_bits(random.next_u64() as u32));
    // Numbers smaller than normal ones are left out: the instruction takes them for zero.
    let values: Vec<f32> = edges
        .into_iter()
        .chain(bits.filter(|x| !x.is_subnormal()))
        .collect();
    for isa in isas() {
        for values in values.chunks_exact(16) {
            // A patch of one line is what goes through a vector's rounding unchanged.
            let mut out = Panels::<Bf16>::zeros(1, 8);
            let image: Vec<f32> = values.iter().copied().cycle().take(256).collect();
            patches(isa, &image, [1, 16, 16], 16, 0..1, &mut out);
            for (n, &x) in values.iter().enumerate() {
                let (found, expected) = (out.at(0, n), Bf16::from_f32(x));
                if x.is_nan() {
                    assert!(found.to_f32().is_nan() && expected.to_f32().is_nan(), "{isa}");
                } else {
                    assert_eq!(found, expected, "{isa} {x}");
                    assert!(
                        (expected.to_f32() - x).abs() <= x.abs() / 256.0 || !expected.to_f32().is_finite()
                    );
                }
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for isa in isas() {
        let x = Panels::<f32>::zeros(4, 2);
        let two = [[0.0; 32]; 2];
        let norm = |dim, rows: std::ops::Range<usize>, gain: &[[f32; 32]], out: (usize, usize)| {
            let mut out = Panels::<f32>::zeros(out.0, out.1);
            layer_norm(
                isa,
                &x,
                rows,
                Norm {
                    gain,
                    bias: &two,
                    eps: 1e-6,
                    dim,
                },
                &mut out,
            );
        };
        norm(64, 0..4, &two, (4, 2));
        refused("norm: dim", || norm(65, 0..4, &two, (4, 3)));
        refused("norm: gain", || norm(64, 0..4, &two[..1], (4, 2)));
        refused("norm: rows", || norm(64, 1..5, &two, (4, 2)));
        refused("norm: result's rows", || norm(64, 0..4, &two, (3, 2)));
        refused("norm: result's panels", || norm(64, 0..4, &two, (4, 1)));
        refused("quantize: rows", || {
            quantize(isa, &x, 1..5, &mut Quantized::zeros(4, 1));
        });
        refused("quantize: result's rows", || {
            quantize(isa, &x, 0..4, &mut Quantized::zeros(3, 1));
        });
        refused("quantize: result's panels", || {
            quantize(isa, &x, 0..4, &mut Quantized::zeros(4, 0));
        });
        refused("scale: panels", || {
            scale_shift(isa, &mut x.clone(), &[[0.0; 32]; 3], &[[0.0; 32]; 3]);
        });
        refused("scale: shift", || {
            scale_shift(isa, &mut x.clone(), &two, &two[..1]);
        });
        let image = vec![0.0; 3 * 16 * 16];
        let cut = |image: &[f32], side, range, out: (usize, usize)| {
            patches(
                isa,
                image,
                [3, 16, 16],
                side,
                range,
                &mut Panels::<f32>::zeros(out.0, out.1),
            );
        };
        cut(&image, 8, 0..4, (4, 6));
        refused("patches: image", || cut(&image[1..], 8, 0..4, (4, 6)));
        refused("patches: side", || cut(&image, 0, 0..4, (4, 6)));
        refused("patches: range", || cut(&image, 8, 1..5, (4, 6)));
        refused("patches: rows", || cut(&image, 8, 0..4, (3, 6)));
        refused("patches: panels", || cut(&image, 8, 0..4, (4, 5)));
    }
}
