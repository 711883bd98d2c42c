//! Depth-wise convolution of tokens that lie in any order.

use crate::isa::{Isa, Kernel};
use crate::panels::Panels;
use crate::simd::Simd;
use crate::tile::COLUMNS;

/// A depth-wise convolution: which tokens are whose neighbours, and what each counts.
#[derive(Debug, Clone, Copy)]
pub struct Depthwise<'a> {
    /// `[taps]`, for each of the panels: the weight of a neighbour, by channel.
    pub weights: &'a [Vec<[f32; 32]>],
    /// What is added, a row for each panel.
    pub bias: &'a [[f32; 32]],
    /// The row of `x` of each neighbour, `[rows, taps]`.
    pub neighbours: &'a [u32],
    /// The row of `x` that is added to the first row of `out`, to which the next ones follow.
    pub first: usize,
}

/// `out[row] = x[first + row] + bias + Σ weights[tap] · x[neighbour]` for each row of `out`.
///
/// # Panics
/// Where shapes do not fit.
pub fn depthwise(isa: Isa, x: &Panels<f32>, of: Depthwise<'_>, out: &mut Panels<f32>) {
    struct Job<'a>(&'a Panels<f32>, Depthwise<'a>, &'a mut Panels<f32>);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let Job(x, of, out) = self;
            for (panel, (weights, bias)) in of.weights.iter().zip(of.bias).enumerate() {
                let from = x.panel(panel);
                let taps = weights.len();
                for (row, to) in out.panel_mut(panel).iter_mut().enumerate() {
                    let neighbours = &of.neighbours[row * taps..(row + 1) * taps];
                    let own = &from[of.first + row];
                    for at in (0..COLUMNS).step_by(2 * S::LANES) {
                        let mut sums =
                            [at, at + S::LANES].map(|at| S::add(S::load(&own[at..]), S::load(&bias[at..])));
                        for (&neighbour, weights) in neighbours.iter().zip(weights) {
                            let x = &from[neighbour as usize];
                            for (half, sum) in sums.iter_mut().enumerate() {
                                let at = at + half * S::LANES;
                                *sum = S::mul_add(S::load(&weights[at..]), S::load(&x[at..]), *sum);
                            }
                        }
                        S::store(sums[0], &mut to[at..]);
                        S::store(sums[1], &mut to[at + S::LANES..]);
                    }
                }
            }
        }
    }
    let (panels, taps) = (of.weights.len(), of.weights.first().map_or(0, Vec::len));
    assert!(of.bias.len() == panels && x.panels() >= panels && out.panels() >= panels);
    assert!(of.weights.iter().all(|weights| weights.len() == taps));
    assert!(of.first + out.rows() <= x.rows() && of.neighbours.len() == out.rows() * taps);
    isa.run(Job(x, of, out));
}
