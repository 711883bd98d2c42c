//! Which bucket the offset between two patches falls into.
//!
//! Numbers only, for network and engine alike. Equations of Wu et al., *Rethinking and Improving Relative Position Encoding for Vision
//! Transformer*, ICCV 2021, computed in `f32` as the published code does.

use super::Method;

/// The piecewise index: small distances have a bucket each, larger ones share it with more and more others, and beyond some all share
/// one. For `ratio` 1.9: 0, ±1, ±2 for 2 and 3, ±3 from 4 on.
pub fn piecewise(distance: f32, ratio: f64) -> i64 {
    let (alpha, beta) = (ratio, 2.0 * ratio);
    let size = distance.abs();
    if f64::from(size) <= alpha {
        return distance.round_ties_even() as i64;
    }
    // γ is 8 α.
    let log = (size / alpha as f32).ln() / 8f64.ln() as f32;
    let index = alpha as f32 + log * (beta - alpha) as f32;
    let index = index.round_ties_even().min(beta as f32);
    (distance.signum() * index).trunc() as i64
}

/// Which of the buckets of a table each pair of tokens has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    grid: [usize; 2],
    /// For each offset between two patches, `[2·rows − 1, 2·columns − 1]`, from the most negative on.
    offsets: Vec<usize>,
    /// The bucket of pairs with a token that is no patch, if they have one.
    special: Option<usize>,
}

/// The part of an offset that a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// All of it.
    Both,
    /// Rows alone, of [`Method::Cross`].
    Rows,
    /// Columns alone.
    Columns,
}

/// Buckets of one axis.
fn side(ratio: f64) -> usize {
    2 * (2.0 * ratio) as usize + 1
}

/// Buckets of a table for patches.
fn patches(method: Method, ratio: f64) -> usize {
    match method {
        Method::Product => side(ratio) * side(ratio),
        Method::Euclidean | Method::Quant | Method::Cross => side(ratio),
    }
}

/// Buckets of a table.
pub(super) fn count(method: Method, ratio: f64, special: bool) -> usize {
    patches(method, ratio) + usize::from(special)
}

impl Buckets {
    pub(super) fn new(method: Method, axis: Axis, ratio: f64, special: bool, grid: [usize; 2]) -> Self {
        let furthest = (2.0 * ratio) as i64;
        let index = |distance: f32| (piecewise(distance, ratio) + furthest).max(0) as usize;
        let bucket = |down: i64, across: i64| match (method, axis) {
            (Method::Product, _) => index(down as f32) * side(ratio) + index(across as f32),
            (Method::Euclidean, _) => {
                index(((down * down + across * across) as f32).sqrt().round_ties_even())
            }
            (Method::Quant, _) => index((down * down + across * across) as f32),
            (Method::Cross, Axis::Columns) => index(across as f32),
            (Method::Cross, Axis::Both | Axis::Rows) => index(down as f32),
        };
        let reach = |side: usize| {
            let most = side as i64 - 1;
            -most..=most
        };
        let [rows, columns] = grid;
        let offsets = reach(rows).flat_map(|down| reach(columns).map(move |across| (down, across)));
        Buckets {
            grid,
            offsets: offsets.map(|(down, across)| bucket(down, across)).collect(),
            special: special.then(|| patches(method, ratio)),
        }
    }

    /// Patches of the map.
    pub fn patches(&self) -> usize {
        self.grid.iter().product()
    }

    /// The bucket of each pair of a query and a key, `[tokens, tokens]`, where `before` tokens stand before the patches and
    /// `behind` behind them; `None` for a pair that has none.
    pub fn pairs(&self, before: usize, behind: usize) -> Vec<Option<usize>> {
        let [rows, columns] = self.grid;
        let tokens = before + rows * columns + behind;
        let place = |token: usize| {
            let patch = token.checked_sub(before)?;
            (patch < rows * columns).then(|| [patch / columns, patch % columns])
        };
        let bucket = |query, key| {
            let (Some([y, x]), Some([other_y, other_x])) = (place(query), place(key)) else {
                return self.special;
            };
            let (down, across) = (y + rows - 1 - other_y, x + columns - 1 - other_x);
            self.offsets.get(down * (2 * columns - 1) + across).copied()
        };
        let pairs = (0..tokens).flat_map(|query| (0..tokens).map(move |key| (query, key)));
        pairs.map(|(query, key)| bucket(query, key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_patches_share_buckets() {
        let found: Vec<i64> = (-6..=6).map(|x| piecewise(x as f32, 1.9)).collect();
        assert_eq!(found, [-3, -3, -3, -2, -2, -1, 0, 1, 2, 2, 3, 3, 3]);
    }

    #[test]
    fn tokens_that_are_no_patches_share_a_bucket_or_have_none() {
        let of = |special| Buckets::new(Method::Product, Axis::Both, 1.9, special, [1, 2]);
        let centre = 3 * 7 + 3;
        let patches = [Some(centre), Some(centre - 1), Some(centre + 1), Some(centre)];
        assert_eq!(of(true).pairs(0, 0), patches);
        for special in [true, false] {
            let other = special.then_some(49);
            let [p, q, r, s] = patches;
            let expected = [[other; 4], [other, p, q, other], [other, r, s, other], [other; 4]];
            assert_eq!(of(special).pairs(1, 1), expected.concat());
            assert_eq!(count(Method::Product, 1.9, special), 49 + usize::from(special));
        }
    }
}
