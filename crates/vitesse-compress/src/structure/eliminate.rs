//! Optimal brain surgery on structures: the unit whose loss hurts least goes, the others make good for it as far as they can, and so on.
//!
//! A projection reads `x` with covariance `H` and writes `W·x`. If the units `S` go and what is left of `W` is solved anew, the mean squared
//! error of the output grows by `Σ W_S·(H⁻¹_SS)⁻¹·W_Sᵀ`; then `W` becomes `W − W_S·(H⁻¹_SS)⁻¹·H⁻¹_S` and `H⁻¹` loses `S` by Gaussian
//! elimination. The sum over all that went is exactly the error of the least squares that are left, so one sweep tells for
//! every number of units which are kept and what it costs.
//!
//! Papers: Hassibi and Stork, *Optimal Brain Surgeon*, NIPS 1992; Kurtic et al., *ZipLM*, NeurIPS 2023, equations 3 to 6.

use rayon::prelude::*;

use super::moments::Moments;
use crate::linalg::{Cholesky, add, dot};

/// In which order units go.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sweep {
    /// All units, the first to go first.
    pub(super) order: Vec<usize>,
    /// The mean squared error with none, one, two … of them gone, summed over outputs: one more than there are units.
    pub(super) damage: Vec<f64>,
}

/// Lets one unit after the other go; each has its `places` among the inputs of `weight` `[outputs, inputs]`. `damping` is a share of the mean
/// variance of an input. `None` where inputs never move.
pub(super) fn sweep(moments: &Moments, weight: &[f64], places: &[Vec<usize>], damping: f64) -> Option<Sweep> {
    let n = moments.inputs();
    let mut left = Left {
        inputs: n,
        inverse: moments.damped(damping)?.0.inverse(),
        columns: (0..n)
            .map(|input| weight.iter().skip(input).step_by(n).copied().collect())
            .collect(),
        there: vec![true; n],
    };
    let mut units: Vec<usize> = (0..places.len()).collect();
    let mut out = Sweep {
        order: Vec::with_capacity(units.len()),
        damage: vec![0.0],
    };
    let mut total = 0.0;
    while !units.is_empty() {
        let costs: Vec<f64> = units.par_iter().map(|&unit| left.cost(&places[unit])).collect();
        let cheapest = (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b]))?;
        total += costs[cheapest].max(0.0);
        let unit = units.remove(cheapest);
        left.remove(&places[unit]);
        out.order.push(unit);
        out.damage.push(total);
    }
    Some(out)
}

/// What has not gone.
struct Left {
    inputs: usize,
    /// `[inputs, inputs]`; rows and columns of what went are not read.
    inverse: Vec<f64>,
    /// Of each input the column of the weight that reads it.
    columns: Vec<Vec<f64>>,
    there: Vec<bool>,
}

impl Left {
    /// `(H⁻¹_SS)⁻¹·W_Sᵀ`, `[S, outputs]`; `None` where rounding has left nothing to invert.
    fn share(&self, places: &[usize]) -> Option<Vec<Vec<f64>>> {
        if let [place] = places {
            let diagonal = self.inverse[place * self.inputs + place];
            let column = self.columns[*place].iter().map(|value| value / diagonal);
            return (diagonal > 0.0).then(|| vec![column.collect()]);
        }
        let side = places.len();
        let entry = |i: usize| self.inverse[places[i / side] * self.inputs + places[i % side]];
        let cholesky = Cholesky::new((0..side * side).map(entry).collect(), side)?;
        let outputs = self.columns.first().map_or(0, Vec::len);
        let mut rows: Vec<f64> = (0..outputs)
            .flat_map(|output| places.iter().map(move |&place| self.columns[place][output]))
            .collect();
        cholesky.solve(&mut rows);
        let column = |i| rows.iter().skip(i).step_by(side).copied().collect();
        Some((0..side).map(column).collect())
    }

    /// What the error grows by if these inputs go; without bound where rounding says that no others could stand for them.
    fn cost(&self, places: &[usize]) -> f64 {
        let Some(share) = self.share(places) else {
            return f64::INFINITY;
        };
        let each = share.iter().zip(places);
        each.map(|(share, &place)| dot(share, &self.columns[place])).sum()
    }

    fn remove(&mut self, places: &[usize]) {
        let (n, share) = (self.inputs, self.share(places));
        places.iter().for_each(|&place| self.there[place] = false);
        let Some(share) = share else { return };
        let rows: Vec<Vec<f64>> = places
            .iter()
            .map(|&place| self.inverse[place * n..(place + 1) * n].to_vec())
            .collect();
        // (H⁻¹_SS)⁻¹·H⁻¹_S, by the same system.
        let side = places.len();
        let entry = |i: usize| rows[i / side][places[i % side]];
        let Some(cholesky) = Cholesky::new((0..side * side).map(entry).collect(), side) else {
            return;
        };
        let there = &self.there;
        self.inverse
            .par_chunks_mut(n)
            .zip(&mut self.columns)
            .enumerate()
            .filter(|(input, _)| there[*input])
            .for_each(|(input, (inverse, column))| {
                let mut towards: Vec<f64> = rows.iter().map(|row| row[input]).collect();
                for (share, &towards) in share.iter().zip(&towards) {
                    add(column, -towards, share);
                }
                cholesky.solve(&mut towards);
                for (row, towards) in rows.iter().zip(towards) {
                    add(inverse, -towards, row);
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use vitesse_rng::Key;

    use super::super::moments::Map;
    use super::*;

    /// Inputs that hang together, and what a random map makes of them.
    fn data(inputs: usize, outputs: usize) -> (Moments, Vec<f64>) {
        let mut rng = Key::new(7).rng();
        let mut some = |count: usize| -> Vec<f64> { (0..count).map(|_| rng.normal()).collect() };
        let (mixing, weight, rows) = (some(inputs * inputs), some(outputs * inputs), 400);
        let hidden = some(rows * inputs);
        let x: Vec<f32> = hidden
            .chunks(inputs)
            .flat_map(|row| mixing.chunks(inputs).map(move |mix| (dot(mix, row) + 0.5) as f32))
            .collect();
        let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let y: Vec<f32> = wide
            .chunks(inputs)
            .flat_map(|x| weight.chunks(inputs).map(move |row| dot(row, x) as f32))
            .collect();
        let tensor = |values, width| {
            Tensor::<3>::from_data(TensorData::new(values, [1, rows, width]), &Device::flex())
        };
        let mut moments = Moments::new(inputs, outputs);
        moments.add(tensor(x, inputs), tensor(y, outputs));
        (moments, weight)
    }

    /// The error of least squares on some inputs only.
    fn refitted(moments: &Moments, weight: &[f64], kept: &[usize]) -> f64 {
        let n = moments.inputs();
        let part = moments.part(kept);
        let before = Map {
            weight: weight
                .chunks(n)
                .flat_map(|row| kept.iter().map(|&input| row[input]))
                .collect(),
            bias: vec![0.0; weight.len() / n],
        };
        part.error(&part.fit(&before, 0.0))
    }

    #[test]
    fn damage_is_the_error_of_least_squares_that_are_left() {
        let (moments, weight) = data(12, 5);
        for side in [1, 3] {
            let places: Vec<Vec<usize>> = (0..12 / side)
                .map(|unit| (unit * side..(unit + 1) * side).collect())
                .collect();
            let found = sweep(&moments, &weight, &places, 0.0).unwrap();
            assert_eq!(found.damage.len(), places.len() + 1);
            let whole = moments.variance();
            for gone in 0..places.len() {
                let mut kept: Vec<usize> = found.order[gone..]
                    .iter()
                    .flat_map(|&unit| places[unit].clone())
                    .collect();
                kept.sort_unstable();
                let wanted = refitted(&moments, &weight, &kept);
                let off = (found.damage[gone] - wanted).abs() / whole;
                assert!(off < 1e-4, "{side}, {gone} gone: {} {wanted}", found.damage[gone]);
            }
            assert!((found.damage[places.len()] / whole - 1.0).abs() < 1e-4);
            // Each unit is the cheapest of those that are left: no other first step costs less.
            let first = (0..places.len()).map(|unit| {
                let kept: Vec<usize> = (0..12).filter(|input| !places[unit].contains(input)).collect();
                refitted(&moments, &weight, &kept)
            });
            let least = first.fold(f64::INFINITY, f64::min);
            assert!((found.damage[1] - least).abs() / whole < 1e-4);
        }
    }
}
