//! What ops that choose tokens by a score have in common: the network that scores, the best tokens, decisions in training.

use crate::spec::{Init, TensorSpec};

/// The linear maps of the network that scores tokens of this width, outputs by inputs: whether they stand before (0) or after (1)
/// the mean, and their number there.
fn layers(width: usize) -> [(usize, usize, [usize; 2]); 4] {
    [
        (0, 1, [width, width]),
        (1, 0, [width / 2, width]),
        (1, 2, [width / 4, width / 2]),
        (1, 4, [2, width / 4]),
    ]
}

/// The tensors of that network; `names` are the prefixes of those before and after the mean.
pub(super) fn tensors(names: &[String; 2], width: usize) -> Vec<TensorSpec> {
    let mut out = vec![
        TensorSpec::parameter(format!("{}.0.weight", names[0]), &[width], Init::Ones),
        TensorSpec::parameter(format!("{}.0.bias", names[0]), &[width], Init::Zeros),
    ];
    for (part, number, shape) in layers(width) {
        out.extend(linear(&format!("{}.{number}", names[part]), shape));
    }
    out
}

/// The tensors of a linear map, outputs by inputs, as the original programs draw them.
pub(super) fn linear(name: &str, shape: [usize; 2]) -> [TensorSpec; 2] {
    let init = Init::TruncatedNormal { std: 0.02 };
    [
        TensorSpec::parameter(format!("{name}.weight"), &shape, init),
        TensorSpec::parameter(format!("{name}.bias"), &shape[..1], Init::Zeros),
    ]
}

/// Its multiply-accumulates for a token.
pub(super) fn macs(width: usize) -> usize {
    layers(width)
        .iter()
        .map(|(_, _, [outputs, inputs])| outputs * inputs)
        .sum()
}

/// The `count` best of these scores, best first, of equals the first one; `None` where a score is no number.
#[cfg(feature = "train")]
pub(super) fn best(scores: &[f32], count: usize) -> Option<Vec<usize>> {
    if scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(count);
    Some(order)
}

#[cfg(feature = "train")]
pub(super) use network::{Scorer, chosen, log_softmax, sampled, values};

#[cfg(feature = "train")]
mod network {
    use burn::module::Module;
    use burn::tensor::Tensor;
    use vitesse_kernels::Gelu;

    use super::best;
    use crate::Result;
    use crate::network::fused::{Before, gelu};
    use crate::network::layers::{LayerNorm, Linear};
    use crate::network::{Compute, Ctx, Parameters};
    use crate::ops::SCORE_NORM_EPS;

    /// `norm → linear → GELU`, of which half is replaced by its mean over the tokens that are there, `→ linear → GELU → linear → GELU → linear`.
    #[derive(Module, Debug)]
    pub(in crate::ops::tokens) struct Scorer {
        norm: LayerNorm,
        before: Linear,
        after: [Linear; 3],
    }

    impl Scorer {
        pub(in crate::ops::tokens) fn new(names: &[String; 2], parameters: &Parameters<'_>) -> Result<Self> {
            let [before, after] = names;
            let linear = |name: String| Linear::new(&name, true, parameters);
            Ok(Scorer {
                norm: LayerNorm::new(&format!("{before}.0"), SCORE_NORM_EPS, parameters)?,
                before: linear(format!("{before}.1"))?,
                after: [
                    linear(format!("{after}.0"))?,
                    linear(format!("{after}.2"))?,
                    linear(format!("{after}.4"))?,
                ],
            })
        }

        /// How much each token is to stay and to leave: `x` `[batch, tokens, width]` and `policy` `[batch, tokens]`, 1 for those that
        /// are there, to `[batch, tokens, 2]`.
        pub(in crate::ops::tokens) fn forward(
            &self,
            x: Tensor<3>,
            policy: Tensor<2>,
            compute: Compute,
        ) -> Tensor<3> {
            let [batch, tokens, width] = x.dims();
            let z = self.before.values().segment(x, self.norm.before(), None, compute);
            let z = gelu(z, Gelu::Exact, compute);
            let half = width / 2;
            let policy = policy.reshape([batch, tokens, 1]);
            // Of an image without tokens the mean is zero.
            let there = policy.clone().sum_dim(1).clamp_min(1e-6);
            let global = (z.clone().narrow(2, half, width - half) * policy).sum_dim(1) / there;
            let z = Tensor::cat(vec![z.narrow(2, 0, half), global.repeat_dim(1, tokens)], 2);
            let [first, second, third] = &self.after;
            let act = || Before::Gelu(Gelu::Exact);
            let z = first.forward(z, compute);
            let z = second.values().segment(z, act(), None, compute);
            third.values().segment(z, act(), None, compute)
        }
    }

    /// The numbers of a tensor, row by row of its first dimension.
    pub(in crate::ops::tokens) fn values<const D: usize>(x: &Tensor<D>) -> Vec<Vec<f32>> {
        let dims = x.dims();
        let each = dims.iter().skip(1).product::<usize>().max(1);
        let all: Vec<f32> = x.clone().detach().into_data().iter::<f32>().collect();
        all.chunks(each).map(<[f32]>::to_vec).collect()
    }

    /// The `count` best of each image by `scores` `[batch, tokens]`. Where a score is no number the first ones, and the context
    /// is told that the op with this prefix met some.
    pub(in crate::ops::tokens) fn chosen(
        scores: &Tensor<2>,
        count: usize,
        prefix: &str,
        ctx: &mut Ctx,
    ) -> Vec<Vec<usize>> {
        let rows = values(scores);
        let each = rows.iter().map(|scores| {
            best(scores, count).unwrap_or_else(|| {
                ctx.spoiled.get_or_insert_with(|| prefix.to_owned());
                (0..count).collect()
            })
        });
        each.collect()
    }

    /// The logarithm of the softmax over the last axis, with the same bits inside and outside of a graph of gradients.
    pub(in crate::ops::tokens) fn log_softmax(x: Tensor<3>) -> Tensor<3> {
        let largest = x.clone().detach().max_dim(2);
        let x = x - largest;
        let sum = x.clone().exp().sum_dim(2);
        x - sum.log()
    }

    /// Whether each token stays, by a draw from `scores` `[batch, tokens, 2]`, the logarithms of how probable it is that it stays
    /// and that it leaves: 1 or 0, `[batch, tokens]`, with the gradient of the softmax that was drawn from (Gumbel-softmax,
    /// straight-through; Jang et al., ICLR 2017).
    pub(in crate::ops::tokens) fn sampled(scores: Tensor<3>, prefix: &str, ctx: &mut Ctx) -> Tensor<2> {
        let [batch, tokens, _] = scores.dims();
        if values(&scores).iter().flatten().any(|score| score.is_nan()) {
            ctx.spoiled.get_or_insert_with(|| prefix.to_owned());
        }
        let scores = match ctx.gumbel(&scores, prefix) {
            Some(noise) => scores + noise,
            None => scores,
        };
        let soft = log_softmax(scores).exp();
        let column = |i| soft.clone().narrow(2, i, 1).reshape([batch, tokens]);
        let (stays, leaves) = (column(0), column(1));
        let hard = stays.clone().detach().greater_equal(leaves.detach()).float();
        // The second summand is zero, and has the gradient.
        hard + (stays.clone() - stays.detach())
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::best;

    #[test]
    fn of_equal_scores_the_first_is_best_and_nan_is_refused() {
        assert_eq!(best(&[0.1, 0.7, 0.7, 0.9], 3), Some(vec![3, 1, 2]));
        assert_eq!(best(&[0.0, -0.0], 1), Some(vec![0]));
        assert_eq!(best(&[0.1, f32::NAN], 1), None);
    }
}
