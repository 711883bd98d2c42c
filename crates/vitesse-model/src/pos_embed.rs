//! Position tables for another image size: bicubic resizing of learned position embeddings.
//!
//! A table holds one row for each prefix token (class, distillation), then one for each patch, row by row of the grid.
//! The prefix rows are kept; the others are an image of `dim` channels and are resized as one. Bicubic, because
//! bilinear averaging shrinks the norm of the vectors and costs accuracy before fine-tuning (DeiT, section 6).
//!
//! Two ways are in use and do not agree, not even for enlarging:
//!
//! | | [`Flavour::Deit`], [`Flavour::Transformers`] | [`Flavour::Timm`] |
//! | --- | --- | --- |
//! | cubic kernel's `a` | -0.75 | -0.5 |
//! | when shrinking | four taps, as for enlarging | support widened by the ratio (antialiasing) |
//! | at the border | outer taps repeat the border | outer taps are left out, the others normalised |
//! | PyTorch | `interpolate(…, "bicubic")` | `interpolate(…, "bicubic", antialias=True)` |

use std::fmt;

use crate::error::{Error, Result};
use crate::tensors::{Tensor, byte_len};

/// Whose bicubic interpolation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flavour {
    /// The original DeiT code's: what its published fine-tuned models were made with.
    Deit,
    /// That of transformers' `interpolate_pos_encoding`, which computes what DeiT's code does.
    Transformers,
    /// timm's, antialiased.
    #[default]
    Timm,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Deit => "as the original DeiT code does, without antialiasing",
            Flavour::Transformers => "as transformers does, without antialiasing",
            Flavour::Timm => "as timm does, antialiased",
        })
    }
}

/// The most patches of a grid: an image of 16384 × 16384 pixels in patches of 16.
const MAX_PATCHES: usize = 1 << 20;

/// Resizes a table `[1, prefix + h·w, dim]` of any type from the grid `(h, w)` to the grid `to`.
///
/// Without `from` the old grid is taken to be square. The result is `f32`, `[1, prefix + to.0·to.1, dim]`; between
/// equal grids the rows do not change.
///
/// # Errors
///
/// When the rows are not `prefix` plus the grid. A table of a plain model in a distilled one, or the reverse, is told
/// apart and reported as [`Error::PosEmbedPrefix`].
pub fn resize(
    table: &Tensor,
    prefix: usize,
    from: Option<(usize, usize)>,
    to: (usize, usize),
    flavour: Flavour,
) -> Result<Tensor> {
    let &[1, rows, dim] = table.shape() else {
        return Err(Error::PosEmbedShape {
            found: table.shape().to_vec(),
            prefix,
        });
    };
    if rows <= prefix || dim == 0 {
        return Err(Error::PosEmbedShape {
            found: table.shape().to_vec(),
            prefix,
        });
    }
    let from = old_grid(rows, prefix, from)?;
    let patches =
        to.0.checked_mul(to.1)
            .filter(|patches| (1..=MAX_PATCHES).contains(patches));
    let shape = patches.map(|patches| [1, prefix + patches, dim]);
    let Some(shape) = shape.filter(|shape| byte_len(table.dtype(), shape).is_some()) else {
        return Err(Error::Unsupported {
            what: format!("a position table of {} × {} patches", to.0, to.1),
            why: format!("a grid has 1 to {MAX_PATCHES} patches; choose another image size"),
        });
    };

    let values = table.to_f32();
    let (kept, grid) = values.split_at(prefix * dim);
    let grid: Vec<f64> = grid.iter().map(|&v| f64::from(v)).collect();
    // Rows of the grid first, then the columns within each: [h, w·dim] → [h', w·dim] → h' times [w, dim] → [w', dim].
    let tall = mix(&grid, from.1 * dim, &taps(from.0, to.0, flavour));
    let across = taps(from.1, to.1, flavour);
    let mut out = kept.to_vec();
    for line in tall.chunks_exact(from.1 * dim) {
        out.extend(mix(line, dim, &across).iter().map(|&v| v as f32));
    }
    Tensor::from_f32(&shape, out)
}

/// The grid a table of `rows` rows covers, or why it cannot be told.
fn old_grid(rows: usize, prefix: usize, given: Option<(usize, usize)>) -> Result<(usize, usize)> {
    let grid = |prefix: usize| {
        let patches = rows.checked_sub(prefix).filter(|&patches| patches > 0)?;
        let side = patches.isqrt();
        let (h, w) = given.unwrap_or((side, side));
        (h.checked_mul(w) == Some(patches)).then_some((h, w))
    };
    if let Some(grid) = grid(prefix) {
        return Ok(grid);
    }
    if let Some(likely) = (0..=2).find(|&likely| grid(likely).is_some()) {
        return Err(Error::PosEmbedPrefix { rows, prefix, likely });
    }
    let expected = match given {
        Some((h, w)) => format!("a grid of {h} × {w} patches"),
        None => "a square grid".to_owned(),
    };
    Err(Error::PosEmbedGrid {
        rows,
        prefix,
        expected,
    })
}

/// For each of `m` outputs the inputs, of `n`, it is made of, and their weights, which sum to one.
///
/// Output i is centred on input coordinate `c = (i + 0.5)·n/m`, input k on `k + 0.5`.
fn taps(n: usize, m: usize, flavour: Flavour) -> Vec<Vec<(usize, f64)>> {
    let ratio = n as f64 / m as f64;
    let centre = |i: usize| (i as f64 + 0.5) * ratio;
    match flavour {
        Flavour::Deit | Flavour::Transformers => (0..m)
            .map(|i| {
                let at = centre(i) - 0.5;
                let floor = at.floor();
                [-1.0, 0.0, 1.0, 2.0]
                    .map(|step| {
                        let k = floor + step;
                        (k.clamp(0.0, (n - 1) as f64) as usize, cubic(at - k, -0.75))
                    })
                    .to_vec()
            })
            .collect(),
        Flavour::Timm => (0..m)
            .map(|i| {
                let (c, stretch) = (centre(i), ratio.max(1.0));
                let first = (c - 2.0 * stretch + 0.5).max(0.0) as usize;
                let end = ((c + 2.0 * stretch + 0.5) as usize).min(n);
                let weight = |k: usize| cubic((k as f64 + 0.5 - c) / stretch, -0.5);
                let sum: f64 = (first..end).map(weight).sum();
                (first..end).map(|k| (k, weight(k) / sum)).collect()
            })
            .collect(),
    }
}

/// The cubic convolution kernel (Keys, 1981) with parameter `a`.
fn cubic(u: f64, a: f64) -> f64 {
    let u = u.abs();
    if u <= 1.0 {
        ((a + 2.0) * u - (a + 3.0)) * u * u + 1.0
    } else if u < 2.0 {
        ((u - 5.0) * u + 8.0) * u * a - 4.0 * a
    } else {
        0.0
    }
}

/// Weighted sums of lines of `width` values: `[n, width]` → `[m, width]`.
fn mix(lines: &[f64], width: usize, taps: &[Vec<(usize, f64)>]) -> Vec<f64> {
    let mut out = Vec::with_capacity(taps.len() * width);
    for taps in taps {
        let start = out.len();
        out.resize(start + width, 0.0);
        for &(k, weight) in taps {
            let line = lines.iter().skip(k * width);
            out.iter_mut()
                .skip(start)
                .zip(line)
                .for_each(|(sum, value)| *sum += weight * value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(rows: usize, dim: usize) -> Tensor {
        let values = (0..rows * dim)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
            .collect();
        Tensor::from_f32(&[1, rows, dim], values).unwrap()
    }

    #[test]
    fn kernels_have_their_textbook_weights() {
        // Halfway between two inputs, far from the border: (a, 4 - a, 4 - a, a) / 8.
        let halfway = |flavour| taps(8, 16, flavour)[7].iter().map(|t| t.1).collect::<Vec<_>>();
        let at = |u: f64, a: f64| [1.0 + u, u, 1.0 - u, 2.0 - u].map(|u| cubic(u, a)).to_vec();
        assert_eq!(halfway(Flavour::Deit), at(0.25, -0.75));
        assert_eq!(halfway(Flavour::Timm), at(0.25, -0.5));
        assert_eq!(at(0.5, -0.75), [-0.09375, 0.59375, 0.59375, -0.09375]);
        // Shrinking by two: DeiT still looks at four inputs, timm at eight.
        assert_eq!(taps(16, 8, Flavour::Deit)[4].len(), 4);
        assert_eq!(taps(16, 8, Flavour::Timm)[4].len(), 8);
    }

    #[test]
    fn a_table_for_another_number_of_prefix_tokens_is_told_apart() {
        let ask =
            |rows, prefix, from| resize(&table(rows, 4), prefix, from, (2, 2), Flavour::Deit).unwrap_err();
        let plain_in_distilled = ask(197, 2, None);
        assert_eq!(plain_in_distilled.code(), "E_POS_EMBED_PREFIX");
        assert!(
            plain_in_distilled
                .to_string()
                .contains("197 rows fits 1 prefix tokens, but the model has 2")
        );
        assert_eq!(ask(198, 1, None).code(), "E_POS_EMBED_PREFIX");
        assert_eq!(ask(1 + 6, 2, Some((2, 3))).code(), "E_POS_EMBED_PREFIX");
        assert_eq!(ask(1 + 12, 1, None).code(), "E_POS_EMBED_GRID");
        assert_eq!(ask(1 + 12, 1, Some((3, 5))).code(), "E_POS_EMBED_GRID");
        assert_eq!(ask(1, 1, None).code(), "E_POS_EMBED_SHAPE");
    }

    #[test]
    fn impossible_tables_and_grids_are_errors() {
        let flat = Tensor::from_f32(&[5, 2], vec![0.0; 10]).unwrap();
        assert_eq!(
            resize(&flat, 1, None, (2, 2), Flavour::Deit).unwrap_err().code(),
            "E_POS_EMBED_SHAPE"
        );
        for to in [(0, 3), (usize::MAX, 2), (1 << 20, 2)] {
            assert_eq!(
                resize(&table(5, 2), 1, None, to, Flavour::Timm)
                    .unwrap_err()
                    .code(),
                "E_UNSUPPORTED"
            );
        }
    }

    fn any_flavour() -> impl Strategy<Value = Flavour> {
        prop::sample::select(vec![Flavour::Deit, Flavour::Timm])
    }

    proptest! {
        #[test]
        fn an_equal_grid_changes_nothing(h in 1..9usize, w in 1..9usize, prefix in 0..3usize, flavour in any_flavour()) {
            let table = table(prefix + h * w, 3);
            prop_assert_eq!(resize(&table, prefix, Some((h, w)), (h, w), flavour).unwrap(), table);
        }

        #[test]
        fn constants_stay_and_prefix_rows_are_untouched(
            from in (1..9usize, 1..9usize),
            to in (1..12usize, 1..12usize),
            prefix in 0..3usize,
            flavour in any_flavour(),
        ) {
            let dim = 2;
            let mut values = vec![0.75; (prefix + from.0 * from.1) * dim];
            for (i, value) in values.iter_mut().take(prefix * dim).enumerate() {
                *value = i as f32;
            }
            let table = Tensor::from_f32(&[1, prefix + from.0 * from.1, dim], values.clone()).unwrap();
            let out = resize(&table, prefix, Some(from), to, flavour).unwrap();
            prop_assert_eq!(out.shape(), &[1, prefix + to.0 * to.1, dim]);
            let out = out.to_f32();
            prop_assert_eq!(&out[..prefix * dim], &values[..prefix * dim]);
            prop_assert!(out[prefix * dim..].iter().all(|v| (v - 0.75).abs() < 1e-6));
        }

        #[test]
        fn transposed_grids_resize_to_the_transpose(
            from in (1..7usize, 1..7usize),
            to in (1..9usize, 1..9usize),
            flavour in any_flavour(),
        ) {
            let transpose = |v: &[f32], (h, w): (usize, usize)| -> Vec<f32> {
                (0..h * w).map(|i| v[i % h * w + i / h]).collect()
            };
            let upright = table(from.0 * from.1, 1);
            let turned = transpose(&upright.to_f32(), from);
            let turned = Tensor::from_f32(&[1, from.0 * from.1, 1], turned).unwrap();
            let a = resize(&upright, 0, Some(from), to, flavour).unwrap();
            let b = resize(&turned, 0, Some((from.1, from.0)), (to.1, to.0), flavour).unwrap();
            for (x, y) in transpose(&a.to_f32(), to).iter().zip(b.to_f32().iter()) {
                prop_assert!((x - y).abs() < 1e-6);
            }
        }
    }
}
