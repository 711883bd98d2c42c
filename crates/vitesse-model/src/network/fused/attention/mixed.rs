//! Attention in which heads are mixed, or relative positions are looked up.

use std::sync::Arc;

use vitesse_kernels::train;

use super::super::segment::{Gradient, Input, Segment};
use super::{Between, Heads, MOST_BUCKETS};

/// Its inputs: the fused projection, biases, the table of positions, weight and bias of the mixing before the softmax and of that after it.
const INPUTS: usize = 7;

#[derive(Debug, Clone)]
pub(super) struct MixedHeads {
    heads: Heads,
    /// How many there are, and that of each pair.
    buckets: Option<(usize, Arc<[u8]>)>,
    /// Whether heads are mixed before and after the softmax.
    mixes: [bool; 2],
}

impl MixedHeads {
    /// With its inputs. `None` where it is not fused.
    pub(super) fn new(
        heads: Heads,
        [qkv, bias]: [Input; 2],
        between: &Between<'_>,
    ) -> Option<(Self, [Input; INPUTS])> {
        let buckets = between.positions.as_ref().map(|positions| {
            let [_, _, count] = positions.table.dims();
            (count, Arc::clone(&positions.buckets))
        });
        let fits = |(count, of_pairs): &(usize, Arc<[u8]>)| {
            *count <= MOST_BUCKETS && of_pairs.len() == heads.tokens * heads.tokens
        };
        if !buckets.iter().all(fits) {
            return None;
        }
        let mixings = [&between.before, &between.after];
        let weight = |i: usize| Input::of_option(mixings[i].as_ref().map(|mixing| &mixing.weight));
        let added = |i: usize| Input::of_option(mixings[i].as_ref().and_then(|mixing| mixing.bias.as_ref()));
        let inputs = [
            qkv,
            bias,
            Input::of_option(between.positions.as_ref().map(|positions| &positions.table))?,
            weight(0)?,
            added(0)?,
            weight(1)?,
            added(1)?,
        ];
        let segment = MixedHeads {
            heads,
            buckets,
            mixes: mixings.map(Option::is_some),
        };
        Some((segment, inputs))
    }

    fn kernel<'a>(
        &'a self,
        [qkv, bias, table, before, added_before, after, added_after]: [&'a [f32]; INPUTS],
    ) -> train::MixedAttention<'a> {
        let mixing = |there: bool, weight, bias| there.then_some(train::Mixing { weight, bias });
        train::MixedAttention {
            attention: self.heads.kernel(qkv, bias),
            positions: self.buckets.as_ref().map(|(count, buckets)| train::Positions {
                table,
                count: *count,
                buckets,
            }),
            before: mixing(self.mixes[0], before, added_before),
            after: mixing(self.mixes[1], after, added_after),
        }
    }
}

impl Segment<INPUTS> for MixedHeads {
    const KEEPS: [bool; INPUTS] = [true; INPUTS];
    /// The logarithms of the sums, `[batch, heads, tokens]`.
    type Saved = Vec<f32>;

    fn name(&self) -> String {
        "mixed attention".into()
    }

    fn flops(&self, _: [&[f32]; INPUTS], wanted: Option<[bool; INPUTS]>) -> f64 {
        let Heads {
            batch, tokens, qk, ..
        } = &self.heads;
        let passes = if wanted.is_some() { 3 } else { 1 };
        let mixed =
            self.mixes.iter().filter(|mixes| **mixes).count() * qk.len() * qk.len() * self.heads.pairs();
        let count = self.buckets.as_ref().map_or(0, |(count, _)| *count);
        let looked_up = count * batch * tokens * qk.iter().sum::<usize>();
        self.heads.flops(wanted.is_some()) + 2.0 * (passes * (mixed + looked_up)) as f64
    }

    fn forward(&self, inputs: [&[f32]; INPUTS]) -> (Vec<f32>, Vec<f32>) {
        self.kernel(inputs).forward(self.heads.math)
    }

    fn backward(
        &self,
        inputs: [&[f32]; INPUTS],
        _: &[f32],
        sums: &Vec<f32>,
        grad: &[f32],
        wanted: [bool; INPUTS],
    ) -> [Option<Gradient>; INPUTS] {
        if wanted == [false; INPUTS] {
            return [const { None }; INPUTS];
        }
        let found = self.kernel(inputs).backward(self.heads.math, sums, grad);
        let apart = |mixing: Option<train::MixingGradients>| {
            mixing.map_or([None, None], |mixing| [mixing.weight, mixing.bias].map(Some))
        };
        let ([before, added_before], [after, added_after]) = (apart(found.before), apart(found.after));
        let all = [
            Some(found.qkv),
            found.bias,
            found.table,
            before,
            added_before,
            after,
            added_after,
        ];
        let mut gradients = all
            .into_iter()
            .zip(wanted)
            .map(|(found, wanted)| found.filter(|_| wanted));
        std::array::from_fn(|_| gradients.next().flatten().map(Gradient::Values))
    }
}
