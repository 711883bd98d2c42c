//! Queries that make good for keys that are gone: `A·q` in the place of `q`, with the least mean of `(q·k − (A·q)·k′)²` over the keys `k` there were
//! and those `k′` that are left.

use crate::linalg::{Cholesky, add, dot};

/// New queries for the keys `left` of a head: rows of `queries` and `keys` are maps `[dim + 1]`, bias last; `second` is the second
/// moment `[dim + 1, dim + 1]` of what they read, 1 last. `damping` is a share of the mean square of a key.
pub(super) fn solve(
    damping: f64,
    queries: &[Vec<f64>],
    keys: &[Vec<f64>],
    left: &[usize],
    second: &[f64],
) -> Vec<Vec<f64>> {
    let width = keys.first().map_or(0, Vec::len).max(1);
    let seen: Vec<Vec<f64>> = keys
        .iter()
        .map(|key| second.chunks(width).map(|line| dot(line, key)).collect())
        .collect();
    let product = |a: usize, b: usize| dot(&keys[a], &seen[b]);
    let n = left.len();
    let mean = left.iter().map(|&key| product(key, key)).sum::<f64>() / n.max(1) as f64;
    let lambda = damping * mean;
    let mut among = vec![0.0; n * n];
    for (i, &a) in left.iter().enumerate() {
        for (j, &b) in left.iter().enumerate() {
            among[i * n + j] = product(a, b) + if i == j { lambda } else { 0.0 };
        }
    }
    let kept: Vec<Vec<f64>> = left.iter().map(|&query| queries[query].clone()).collect();
    let Some(cholesky) = Cholesky::new(among, n) else {
        return kept;
    };
    // Row by row of the dense head: what each old query gives to the new ones.
    let mut given: Vec<f64> = (0..keys.len())
        .flat_map(|old| left.iter().map(move |&new| (old, new)))
        .map(|(old, new)| product(new, old) + if old == new { lambda } else { 0.0 })
        .collect();
    cholesky.solve(&mut given);
    let mut out = vec![vec![0.0; width]; n];
    for (old, given) in queries.iter().zip(given.chunks(n.max(1))) {
        for (out, given) in out.iter_mut().zip(given) {
            add(out, *given, old);
        }
    }
    out
}
