//! The algebra of folding: affine maps of a token, and what becomes of a projection before or after one.
//!
//! With column vectors, a projection is `y = W x + b` and an adapter `x ↦ M x + m`. In front of the projection,
//! `W' = W M`, `b' = b + W m`; behind it, `W' = M W`, `b' = M b + m`. `M` is either diagonal (scale and shift) or the
//! identity plus a product of thin matrices (a linear bottleneck); neither is ever multiplied out.

use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::{Sites, Tensors};

use super::matrix::Matrix;
use crate::Result;

/// `x ↦ M x + m`.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// `M`.
    pub map: Map,
    /// `m`.
    pub shift: Vec<f64>,
}

/// The linear part of an [`Affine`].
#[derive(Debug, Clone, PartialEq)]
pub enum Map {
    /// `diag(γ)`.
    Diagonal(Vec<f64>),
    /// `I + up · down`, with `down` `[hidden, width]` and `up` `[width, hidden]`.
    Thin {
        /// Its factor on the right.
        down: Matrix,
        /// Its factor on the left.
        up: Matrix,
    },
}

impl Affine {
    /// What an op of a model computes; `None` for a kind that is no affine map of each token.
    ///
    /// # Errors
    /// Tensors that are not the spec's.
    pub fn of(op: &OpSpec, index: usize, sites: &dyn Sites, tensors: &Tensors) -> Result<Option<Affine>> {
        if op.nonlinear().is_some() {
            return Ok(None);
        }
        let prefix = op.prefix(index);
        let read = |name: &str| -> Result<Vec<f64>> {
            let values = tensors.get(&format!("{prefix}.{name}"))?.to_f32();
            Ok(values.iter().map(|&x| f64::from(x)).collect())
        };
        Ok(match &op.kind {
            OpKind::ScaleShift(kind) => {
                let scale = read("scale")?;
                let shift = if kind.shift {
                    read("shift")?
                } else {
                    vec![0.0; scale.len()]
                };
                Some(Affine {
                    map: Map::Diagonal(scale),
                    shift,
                })
            }
            OpKind::Bottleneck(kind) => {
                let width = sites.width_at(op.site, op.layer).unwrap_or(0);
                let scale = if kind.learned_scale {
                    read("scale")?.first().copied().unwrap_or(kind.scale)
                } else {
                    kind.scale
                };
                let down = Matrix {
                    rows: kind.hidden,
                    columns: width,
                    values: read("down.weight")?,
                };
                let up = Matrix {
                    rows: width,
                    columns: kind.hidden,
                    values: kind.dense_up(&read("up.weight")?, width),
                };
                Some(Affine::bottleneck(
                    down,
                    &read("down.bias")?,
                    up,
                    &read("up.bias")?,
                    scale,
                ))
            }
            OpKind::LowRank(_)
            | OpKind::Prompts(_)
            | OpKind::HeadMixing(_)
            | OpKind::RelativePositions(_)
            | OpKind::LocalConvolution(_)
            | OpKind::BipartiteMatching(_)
            | OpKind::AttentiveTokens(_)
            | OpKind::TokenPredictor(_)
            | OpKind::TokenSelector(_)
            | OpKind::GridMerging(_)
            | OpKind::StaticTokens(_) => None,
        })
    }

    /// `x ↦ x + s (B (A x + a) + β)` as `M = I + s B A`, `m = s (B a + β)`.
    pub fn bottleneck(down: Matrix, a: &[f64], up: Matrix, beta: &[f64], scale: f64) -> Affine {
        let shift = up
            .apply(a)
            .iter()
            .zip(beta)
            .map(|(ba, beta)| scale * (ba + beta))
            .collect();
        Affine {
            map: Map::Thin {
                down,
                up: up.scaled(scale),
            },
            shift,
        }
    }

    /// Channels.
    pub fn width(&self) -> usize {
        self.shift.len()
    }

    /// `M`, multiplied out.
    pub fn dense(&self) -> Matrix {
        let mut out = Matrix::identity(self.width());
        match &self.map {
            Map::Diagonal(scale) => {
                for (i, scale) in scale.iter().enumerate() {
                    out.values[i * self.width() + i] = *scale;
                }
            }
            Map::Thin { down, up } => out.add(1.0, &up.times(down)),
        }
        out
    }

    /// `M x`.
    fn linear(&self, x: &[f64]) -> Vec<f64> {
        match &self.map {
            Map::Diagonal(scale) => scale.iter().zip(x).map(|(scale, x)| scale * x).collect(),
            Map::Thin { down, up } => {
                let u = up.apply(&down.apply(x));
                x.iter().zip(u).map(|(x, u)| x + u).collect()
            }
        }
    }

    /// `M x + m`.
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        let mut out = self.linear(x);
        out.iter_mut().zip(&self.shift).for_each(|(x, m)| *x += m);
        out
    }

    /// Folds the map into the projection that follows it: `W ← W M`, `b ← b + W m`.
    pub fn before(&self, weight: &mut Matrix, bias: &mut [f64]) {
        for (bias, more) in bias.iter_mut().zip(weight.apply(&self.shift)) {
            *bias += more;
        }
        match &self.map {
            Map::Diagonal(scale) => {
                for row in weight.values.chunks_exact_mut(scale.len().max(1)) {
                    row.iter_mut().zip(scale).for_each(|(w, scale)| *w *= scale);
                }
            }
            Map::Thin { down, up } => {
                let change = weight.times(up).times(down);
                weight.add(1.0, &change);
            }
        }
    }

    /// Folds the map into the projection that it follows: `W ← M W`, `b ← M b + m`.
    pub fn after(&self, weight: &mut Matrix, bias: &mut Vec<f64>) {
        match &self.map {
            Map::Diagonal(scale) => {
                for (row, scale) in weight.values.chunks_exact_mut(weight.columns.max(1)).zip(scale) {
                    row.iter_mut().for_each(|w| *w *= scale);
                }
            }
            Map::Thin { down, up } => {
                let change = up.times(&down.times(weight));
                weight.add(1.0, &change);
            }
        }
        *bias = self.apply(bias);
    }

    /// `x ↦ M⁻¹ x − M⁻¹ m` and the condition number of the system that was solved; the number alone where there is no
    /// inverse. For a thin map that is `M⁻¹ = I − U (I + D U)⁻¹ D`, a system as small as the bottleneck.
    pub fn inverse(&self) -> (Option<Affine>, f64) {
        let (map, condition) = match &self.map {
            Map::Diagonal(scale) => {
                let (least, most) = scale.iter().fold((f64::INFINITY, 0.0f64), |(least, most), x| {
                    (least.min(x.abs()), most.max(x.abs()))
                });
                if least == 0.0 || !most.is_finite() {
                    return (None, f64::INFINITY);
                }
                let inverse = scale.iter().map(|x| 1.0 / x).collect();
                (
                    Map::Diagonal(inverse),
                    if scale.is_empty() { 1.0 } else { most / least },
                )
            }
            Map::Thin { down, up } => {
                let mut system = Matrix::identity(down.rows);
                system.add(1.0, &down.times(up));
                let (inverse, condition) = system.inverse();
                let Some(inverse) = inverse else {
                    return (None, condition);
                };
                let map = Map::Thin {
                    down: down.clone(),
                    up: up.times(&inverse).scaled(-1.0),
                };
                (map, condition)
            }
        };
        let mut out = Affine {
            map,
            shift: vec![0.0; self.width()],
        };
        out.shift = out.linear(&self.shift).iter().map(|x| -x).collect();
        (Some(out), condition)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use vitesse_model::ops::{Activation, Bottleneck};
    use vitesse_rng::{Key, Rng};

    fn normals(rng: &mut Rng, count: usize) -> Vec<f64> {
        (0..count).map(|_| 0.5 * rng.normal()).collect()
    }

    fn random(rng: &mut Rng, rows: usize, columns: usize) -> Matrix {
        Matrix {
            rows,
            columns,
            values: normals(rng, rows * columns),
        }
    }

    /// Thin with groups, or diagonal where `groups` is 0.
    fn affine(rng: &mut Rng, width: usize, hidden: usize, groups: usize, scale: f64) -> Affine {
        if groups == 0 {
            return Affine {
                map: Map::Diagonal(normals(rng, width).iter().map(|x| 1.0 + x).collect()),
                shift: normals(rng, width),
            };
        }
        let down = random(rng, hidden, width);
        let kind = Bottleneck {
            hidden,
            groups,
            activation: Activation::None,
            scale,
            learned_scale: false,
            norm: None,
            from: None,
            dropout: 0.0,
        };
        let up = Matrix {
            rows: width,
            columns: hidden,
            values: kind.dense_up(&normals(rng, width * hidden / groups), width),
        };
        Affine::bottleneck(down, &normals(rng, hidden), up, &normals(rng, width), scale)
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
        let scale = b.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * scale)
    }

    fn project(weight: &Matrix, bias: &[f64], x: &[f64]) -> Vec<f64> {
        weight.apply(x).iter().zip(bias).map(|(y, b)| y + b).collect()
    }

    proptest! {
        #[test]
        fn folding_is_the_adapter_and_unfolding_is_what_was_before(
            seed in 0u64..1 << 40,
            (groups, in_group, of_width) in (0usize..5, 1usize..4, 1usize..4),
            outputs in 1usize..9,
            scale in prop::sample::select(vec![0.1, 0.5, 1.0, 5.0, -2.0]),
        ) {
            let mut rng = Key::new(seed).rng();
            let unit = groups.max(1);
            let (hidden, width) = (unit * in_group, unit * of_width);
            let map = affine(&mut rng, width, hidden, groups, scale);
            let x = normals(&mut rng, width);

            // In front of a projection.
            let (weight, bias) = (random(&mut rng, outputs, width), normals(&mut rng, outputs));
            let (mut w, mut b) = (weight.clone(), bias.clone());
            map.before(&mut w, &mut b);
            let expected = project(&weight, &bias, &map.apply(&x));
            prop_assert!(close(&project(&w, &b, &x), &expected, 1e-10));
            prop_assert!(close(&w.values, &weight.times(&map.dense()).values, 1e-10));
            if let (Some(inverse), condition) = map.inverse() && condition < 1e6 {
                inverse.before(&mut w, &mut b);
                prop_assert!(close(&w.values, &weight.values, 1e-8) && close(&b, &bias, 1e-8), "{}", condition);
            }

            // Behind one.
            let (weight, bias) = (random(&mut rng, width, outputs), normals(&mut rng, width));
            let (mut w, mut b) = (weight.clone(), bias.clone());
            map.after(&mut w, &mut b);
            let y = normals(&mut rng, outputs);
            let expected = map.apply(&project(&weight, &bias, &y));
            prop_assert!(close(&project(&w, &b, &y), &expected, 1e-10));
            if let (Some(inverse), condition) = map.inverse() && condition < 1e6 {
                inverse.after(&mut w, &mut b);
                prop_assert!(close(&w.values, &weight.values, 1e-8) && close(&b, &bias, 1e-8), "{}", condition);
            }
        }
    }

    #[test]
    fn a_map_that_loses_a_channel_has_no_inverse() {
        let diagonal = Affine {
            map: Map::Diagonal(vec![1.0, 0.0]),
            shift: vec![0.0; 2],
        };
        assert_eq!(diagonal.inverse(), (None, f64::INFINITY));
        let one = |x| Matrix {
            rows: 1,
            columns: 1,
            values: vec![x],
        };
        let thin = Affine::bottleneck(one(1.0), &[0.0], one(-1.0), &[0.0], 1.0);
        assert_eq!(thin.inverse(), (None, f64::INFINITY));
    }
}
